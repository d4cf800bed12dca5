// Package freeport finds ports of loopback for a listener whose address must be known before it listens, or that
// listens there again after a restart.
package freeport

import (
	"errors"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
)

// The ports are below those that systems give to outgoing connections and to listeners on port 0 (Linux: from
// 32768). Such a port could be taken between this package's look and its use.
const (
	lowest = 10_000
	count  = 20_000
)

var (
	mu    sync.Mutex
	given = make(map[int]bool)
)

// Addr returns an address, 127.0.0.1:port, on which nothing listens. It returns no address twice.
func Addr() (string, error) {
	mu.Lock()
	defer mu.Unlock()
	for range 1000 {
		port := lowest + rand.IntN(count) //nolint:gosec // any will do
		if given[port] {
			continue
		}
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		if l, err := net.Listen("tcp", addr); err == nil { //nolint:noctx // closed immediately
			given[port] = true
			return addr, l.Close()
		}
	}
	return "", errors.New("no free port found")
}

// Addrs returns n addresses, as Addr does.
func Addrs(n int) ([]string, error) {
	addrs := make([]string, n)
	for i := range addrs {
		var err error
		if addrs[i], err = Addr(); err != nil {
			return nil, err
		}
	}
	return addrs, nil
}
