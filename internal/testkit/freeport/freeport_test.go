package freeport

import (
	"net"
	"strconv"
	"testing"
)

func TestAddr(t *testing.T) {
	seen := make(map[string]bool)
	for range 200 {
		addr, err := Addr()
		if err != nil {
			t.Fatal(err)
		}
		if seen[addr] {
			t.Errorf("%s was given twice", addr)
		}
		seen[addr] = true
		_, text, err := net.SplitHostPort(addr)
		if port, _ := strconv.Atoi(text); err != nil || port < lowest || port >= 32_768 {
			t.Errorf("%s is no address below those of connections", addr)
		}
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
	}
}
