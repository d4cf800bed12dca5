// Package freeport finds loopback addresses for listeners whose address must be known before they listen, or
// that restart on the same one.
package freeport

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
)

// The ports are below those of outgoing connections and of listeners on port 0 (Linux: from 32768), which
// could take a port between its check and its use.
const (
	lowest = 10_000
	count  = 20_000
)

var (
	mu sync.Mutex
	// A UDP socket on each given port keeps other processes' tests from it, also while its listener restarts.
	given []net.PacketConn
)

// Addr returns an address, 127.0.0.1:port, on which nothing listens. Nobody on this machine gets it from here
// again before this process ends.
func Addr() (string, error) {
	mu.Lock()
	defer mu.Unlock()
	for range 1000 {
		port := lowest + rand.IntN(count) //nolint:gosec // any port will do
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		mark, err := net.ListenPacket("udp", addr) //nolint:noctx // held until the process ends
		if err != nil {
			continue
		}
		if Check(addr) == nil {
			given = append(given, mark)
			return addr, nil
		}
		_ = mark.Close()
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

// Check reports why an address cannot be listened on.
func Check(addr string) error {
	l, err := net.Listen("tcp", addr) //nolint:noctx // closed immediately
	if err != nil {
		return fmt.Errorf("check the address: %w", err)
	}
	return l.Close()
}
