package service

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

// withoutTimeouts is an option of Serve for tests of other limits: a busy machine may exceed the timeouts.
func withoutTimeouts(s *http.Server) {
	s.ReadHeaderTimeout, s.ReadTimeout, s.WriteTimeout, s.IdleTimeout = 0, 0, 0, 0
}

// dialIdle opens n connections. Only the last one sends a request: its response shows that all were accepted.
func dialIdle(t *testing.T, addr net.Addr, n int) []net.Conn {
	t.Helper()
	list := make([]net.Conn, n)
	for i := range list {
		c, err := net.Dial("tcp", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		list[i] = c
	}
	expectOK(t, "a new connection", list[n-1])
	return list
}

// expectOK sends a request over an open connection.
func expectOK(t *testing.T, name string, c net.Conn) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("%s: status = %d, want 200", name, resp.StatusCode)
	}
}

// The longest idle connections are closed, not new ones and not those that serve a request.
func TestServe_ClosesLongestIdleConnections(t *testing.T) {
	const limit = 20
	started, release := make(chan struct{}), make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("/slow", func(http.ResponseWriter, *http.Request) { close(started); <-release })
	life, addr := serveLimited(t, limit, mux.ServeHTTP)
	slow := make(chan error)
	go func() {
		resp, err := http.Get("http://" + addr.String() + "/slow")
		if err == nil {
			_ = resp.Body.Close()
		}
		slow <- err
	}()
	<-started
	active := dialIdle(t, addr, 1)[0]
	list := dialIdle(t, addr, limit-2)
	expectOK(t, "at the limit", active) // from now on it is the least idle
	list = append(list, dialIdle(t, addr, limit-3)...)
	for i, c := range list[:limit-3] {
		_ = c.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("idle connection %d: error = %v, want EOF", i, err)
		}
	}
	expectOK(t, "an active connection", active)
	for range 3 * limit { // unfinished headers are the majority now and displace each other
		c := dialIdle(t, addr, 1)[0]
		if _, err := c.Write([]byte("GET / HT")); err != nil {
			t.Fatal(err)
		}
	}
	dialIdle(t, addr, 1)
	close(release)
	if err := <-slow; err != nil {
		t.Errorf("a request in flight: %v", err)
	}
	if got := testutil.ToFloat64(life.dropped.WithLabelValues("some", droppedNewer)); got != 4*limit-2 {
		t.Errorf("dropped = %v, want %d", got, 4*limit-2)
	}
}
