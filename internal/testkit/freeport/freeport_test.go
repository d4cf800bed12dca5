package freeport

import (
	"net"
	"strconv"
	"strings"
	"testing"
)

func TestAddr_IsFreeAndGivenOnce(t *testing.T) {
	t.Parallel()
	addrs, err := Addrs(200)
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	for _, addr := range addrs {
		if seen[addr] {
			t.Errorf("%s was given twice", addr)
		}
		seen[addr] = true
		_, text, err := net.SplitHostPort(addr)
		if port, _ := strconv.Atoi(text); err != nil || port < lowest || port >= lowest+count {
			t.Errorf("port = %s, want one from %d to %d", text, lowest, lowest+count-1)
		}
	}
	l, err := net.Listen("tcp", addrs[0])
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if err := Check(addrs[0]); err == nil || !strings.Contains(err.Error(), addrs[0]) {
		t.Errorf("Check of a busy address = %v, want an error with %s", err, addrs[0])
	}
}
