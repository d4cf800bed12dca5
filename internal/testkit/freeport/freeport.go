// Package freeport finds ports of loopback for what is told its address before it listens, or listens there again and again.
package freeport

import (
	"errors"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
)

// From lowest on there are so many ports, below those that systems give to connections and to listeners on port 0 (Linux: from 32768):
// one of those, free a moment ago, may be somebody's by the time it is used, and the stranger answers.
const (
	lowest = 10_000
	many   = 20_000
)

var (
	mu    sync.Mutex
	given = make(map[int]bool)
)

// Addr returns an address (127.0.0.1:port) that nobody listens on, and that this process was not given before. Its error says that there
// is none.
func Addr() (string, error) {
	mu.Lock()
	defer mu.Unlock()
	for range 1000 {
		port := lowest + rand.IntN(many) //nolint:gosec // any will do
		if given[port] {
			continue
		}
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		if l, err := net.Listen("tcp", addr); err == nil { //nolint:noctx // a look
			given[port] = true
			return addr, l.Close()
		}
	}
	return "", errors.New("no port is free")
}
