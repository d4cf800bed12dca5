package load_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"purchase-relay/internal/testkit/load"
)

// server counts the bodies that it receives.
func server(t *testing.T, answer http.HandlerFunc) (addr string, seen func() map[string]int) {
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

func numbered(buffer []byte, i int) []byte {
	return fmt.Appendf(buffer, "POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\n%06d", i)
}

func ok(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }

func TestRun_SendsEveryRequestOnce(t *testing.T) {
	t.Parallel()
	addr, seen := server(t, ok)
	r, err := load.Run(t.Context(), load.Plan{Addr: addr, Conns: 7, Requests: 500, Append: numbered, Want: 200})
	if err != nil || r.Answered != 500 || len(r.Latencies) != 500 || r.Odd != 0 || r.Took <= 0 {
		t.Fatalf("result = %+v, %v, want 500 responses", r, err)
	}
	for i := range 500 {
		if n := seen()[fmt.Sprintf("%06d", i)]; n != 1 {
			t.Errorf("request %d arrived %d times, want once", i, n)
		}
	}
	median, p99, longest := r.Quantile(0.5), r.Quantile(0.99), r.Latencies[499].Seconds()*1000
	if median <= 0 || p99 < median || r.Quantile(1) != longest {
		t.Errorf("median = %f, p99 = %f, all = %f, want an increase to %f", median, p99, r.Quantile(1), longest)
	}
}

func TestRun_CountsOddResponses(t *testing.T) {
	t.Parallel()
	addr, _ := server(t, func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "full", http.StatusServiceUnavailable)
	})
	r, err := load.Run(t.Context(), load.Plan{Addr: addr, Conns: 2, Requests: 10, Append: numbered, Want: 200})
	if err != nil || r.Answered != 0 || r.Odd != 10 || r.FirstOdd != "503 full\n" || r.Quantile(0.5) != 0 {
		t.Fatalf("result = %+v, %v, want 10 odd responses", r, err)
	}
}

// The tenth request leaves after nine intervals.
func TestRun_KeepsPace(t *testing.T) {
	t.Parallel()
	addr, _ := server(t, ok)
	plan := load.Plan{Addr: addr, Conns: 3, Requests: 10, Append: numbered, Want: 200}
	plan.Every = 5 * time.Millisecond
	if r, err := load.Run(t.Context(), plan); err != nil || r.Answered != 10 || r.Took < 45*time.Millisecond {
		t.Fatalf("result = %+v, %v, want 10 responses in at least 45ms", r, err)
	}
}

func TestRun_Fails(t *testing.T) {
	t.Parallel()
	chunked, _ := server(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "a")
		w.(http.Flusher).Flush()
	})
	cut, _ := server(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	ctx, cancel := context.WithCancel(t.Context())
	hung, _ := server(t, func(_ http.ResponseWriter, r *http.Request) { cancel(); <-r.Context().Done() })
	for _, tc := range []struct {
		name, addr string
		want       error // nil: any
	}{
		{"no length", chunked, nil},
		{"cut", cut, nil},
		{"no listener", "127.0.0.1:1", nil},
		{"interrupted", hung, context.Canceled},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := load.Run(ctx, load.Plan{Addr: tc.addr, Conns: 1, Requests: 3, Append: numbered, Want: 200})
			if err == nil || tc.want != nil && !errors.Is(err, tc.want) {
				t.Errorf("error = %v, want %v", err, tc.want)
			}
		})
	}
}
