package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// countingServer counts the bodies that it receives.
func countingServer(t *testing.T, answer http.HandlerFunc) (addr string, seen func() map[string]int) {
	t.Helper()
	var mu sync.Mutex
	got := make(map[string]int)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		mu.Lock()
		got[string(body)]++
		mu.Unlock()
		answer(w, r)
	}))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String(), func() map[string]int {
		mu.Lock()
		defer mu.Unlock()
		return got
	}
}

// numbered returns a load of n requests with their numbers in the bodies.
func numbered(addr string, conns, n int) load {
	return load{addr: addr, conns: conns, requests: n, status: 200, append: func(buffer []byte, i int) []byte {
		return fmt.Appendf(buffer, "POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\n%06d", i)
	}}
}

func ok(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }

func TestLoad_SendsEveryRequestOnce(t *testing.T) {
	t.Parallel()
	addr, seen := countingServer(t, ok)
	l := numbered(addr, 7, 500)
	r, err := l.run(t.Context())
	if err != nil || len(r.latencies) != 500 || r.latencies[0] <= 0 || r.took <= 0 {
		t.Fatalf("result = %+v, %v, want 500 responses", r, err)
	}
	if !slices.IsSorted(r.latencies) {
		t.Errorf("latencies = %v, want them sorted", r.latencies)
	}
	for i := range 500 {
		if n := seen()[fmt.Sprintf("%06d", i)]; n != 1 {
			t.Errorf("request %d arrived %d times, want once", i, n)
		}
	}
}

// The tenth request leaves after nine intervals.
func TestLoad_KeepsPace(t *testing.T) {
	t.Parallel()
	addr, _ := countingServer(t, ok)
	l := numbered(addr, 3, 10)
	l.every = 5 * time.Millisecond
	if r, err := l.run(t.Context()); err != nil || len(r.latencies) != 10 || r.took < 45*time.Millisecond {
		t.Fatalf("result = %+v, %v, want 10 responses in at least 45ms", r, err)
	}
}

// A rate of errors would be worse than no figure.
func TestLoad_Fails(t *testing.T) {
	t.Parallel()
	full, _ := countingServer(t, func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "full", http.StatusServiceUnavailable)
	})
	chunked, _ := countingServer(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "a")
		w.(http.Flusher).Flush()
	})
	cut, _ := countingServer(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	ctx, cancel := context.WithCancel(t.Context())
	hung, _ := countingServer(t, func(_ http.ResponseWriter, r *http.Request) { cancel(); <-r.Context().Done() })
	for _, tc := range []struct {
		name, addr, text string
		want             error // nil: any
	}{
		{"another status", full, "503 full", nil},
		{"no length", chunked, "Content-Length", nil},
		{"cut", cut, "response to request", nil},
		{"no listener", "127.0.0.1:1", "refused", nil},
		{"interrupted", hung, "", context.Canceled},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := numbered(tc.addr, 1, 3)
			_, err := l.run(ctx)
			if err == nil || tc.want != nil && !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("error = %v, want %v %s", err, tc.want, tc.text)
			}
		})
	}
}
