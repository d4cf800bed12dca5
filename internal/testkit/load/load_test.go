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

// server counts the bodies that it gets; answer says how.
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

func TestEveryRequestOnce(t *testing.T) {
	addr, seen := server(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })
	r, err := load.Run(t.Context(), load.Plan{Addr: addr, Conns: 7, Requests: 500, Append: numbered, Want: 200})
	if err != nil || r.Answered != 500 || len(r.Latencies) != 500 || r.Odd != 0 || r.Took <= 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	for i := range 500 {
		if n := seen()[fmt.Sprintf("%06d", i)]; n != 1 {
			t.Errorf("request %d came %d times", i, n)
		}
	}
	if median, p99 := r.Quantile(0.5), r.Quantile(0.99); median <= 0 || p99 < median || r.Quantile(1) != r.Latencies[499].Seconds()*1000 {
		t.Errorf("median %f, p99 %f", median, p99)
	}
}

// An answer of another status is counted beside the others, never among them.
func TestOddAnswers(t *testing.T) {
	addr, _ := server(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "full", http.StatusServiceUnavailable) })
	r, err := load.Run(t.Context(), load.Plan{Addr: addr, Conns: 2, Requests: 10, Append: numbered, Want: 200})
	if err != nil || r.Answered != 0 || r.Odd != 10 || r.FirstOdd != "503 full\n" || r.Quantile(0.5) != 0 {
		t.Fatalf("%+v, %v", r, err)
	}
}

func TestTimeOver(t *testing.T) {
	addr, _ := server(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })
	r, err := load.Run(t.Context(), load.Plan{Addr: addr, Conns: 2, Requests: 1 << 40, Append: numbered, Want: 200, For: 50 * time.Millisecond})
	if err != nil || r.Answered == 0 {
		t.Fatalf("%+v, %v", r, err)
	}
}

// A pace is a lower bound of the time: the tenth request leaves after nine intervals.
func TestPace(t *testing.T) {
	addr, _ := server(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })
	r, err := load.Run(t.Context(), load.Plan{Addr: addr, Conns: 3, Requests: 10, Append: numbered, Want: 200, Every: 5 * time.Millisecond})
	if err != nil || r.Answered != 10 || r.Took < 45*time.Millisecond {
		t.Fatalf("%+v, %v", r, err)
	}
}

func TestFailures(t *testing.T) {
	chunked, _ := server(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "a")
		w.(http.Flusher).Flush()
		_, _ = io.WriteString(w, "b")
	})
	gone, _ := server(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	for name, addr := range map[string]string{"no length": chunked, "cut": gone, "nobody": "127.0.0.1:1"} {
		if r, err := load.Run(t.Context(), load.Plan{Addr: addr, Conns: 1, Requests: 3, Append: numbered, Want: 200}); err == nil {
			t.Errorf("%s: %+v", name, r)
		}
	}
	// Whoever waits for an answer that does not come is interrupted with the context.
	ctx, cancel := context.WithCancel(t.Context())
	hung, _ := server(t, func(_ http.ResponseWriter, r *http.Request) { cancel(); <-r.Context().Done() })
	if _, err := load.Run(ctx, load.Plan{Addr: hung, Conns: 1, Requests: 3, Append: numbered, Want: 200}); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}
