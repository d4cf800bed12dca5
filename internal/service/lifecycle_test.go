package service_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"purchase-relay/internal/service"
)

// expectErrors expects the parts in err's message.
func expectErrors(t *testing.T, err error, want ...string) {
	t.Helper()
	for _, part := range want {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("error = %v, want %q in it", err, part)
		}
	}
}

func TestLifecycle_StopsAllInReverseOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := service.NewLifecycle(zap.NewNop())
		var order []string
		add := func(name string, err error) {
			l.OnStop(name, func(context.Context) error { order = append(order, name); return err })
		}
		add("first", nil)
		l.Go("loop", func(ctx context.Context) error {
			<-ctx.Done()
			order = append(order, "loop")
			return ctx.Err()
		})
		add("broken", errors.New("failed"))
		l.Go("stuck", func(context.Context) error { <-time.After(time.Hour); return nil })
		add("last", nil)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := l.Wait(ctx); err != nil {
			t.Errorf("Wait = %v, want nil", err)
		}
		start := time.Now()
		expectErrors(t, l.Stop(8*time.Second), "stop broken: failed", "stop stuck: did not stop")
		if got := strings.Join(order, " "); got != "last broken loop first" {
			t.Errorf("order = %q, want the reverse", got)
		}
		if took := time.Since(start); took > 8*time.Second || took < 7200*time.Millisecond {
			t.Errorf("Stop took %s, want 7.2s to 8s", took)
		}
		<-time.After(time.Hour) // the stuck one ends, too
	})
}

// A pool's Close waits for its last connection without a context, and the program never ended. Several
// blocked stops took the whole grace period each.
func TestLifecycle_StopEndsWithinGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := service.NewLifecycle(zap.NewNop())
		var order []string
		release := make(chan struct{})
		l.OnStop("first", func(ctx context.Context) error { order = append(order, "first"); return ctx.Err() })
		l.OnStop("blocked", func(context.Context) error { <-release; return nil })
		for _, name := range []string{"slow", "slower"} {
			l.OnStop(name, func(ctx context.Context) error {
				<-ctx.Done()
				order = append(order, name)
				return ctx.Err()
			})
		}
		l.OnStop("panicking", func(context.Context) error { panic("failed") })
		start := time.Now()
		err := l.Stop(time.Second)
		if took := time.Since(start); took > time.Second {
			t.Errorf("Stop took %s, want at most 1s", took)
		}
		if got := strings.Join(order, " "); got != "slower slow first" {
			t.Errorf("order = %q, want slower slow first", got)
		}
		expectErrors(t, err, "stop panicking: panic: failed", "stop slower: context deadline",
			"stop slow: context deadline", "stop blocked: did not stop")
		if strings.Contains(err.Error(), "first") {
			t.Errorf("error = %v, want none of first", err)
		}
		if err := l.Stop(time.Second); err != nil {
			t.Errorf("second Stop = %v, want nil", err)
		}
		close(release)
	})
}

func TestLifecycle_StopReturnsLateErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := service.NewLifecycle(zap.NewNop())
		l.Go("ends", func(context.Context) error { return nil })
		l.Go("late", func(ctx context.Context) error { <-ctx.Done(); return errors.New("half was written") })
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := l.Wait(ctx); err != nil {
			t.Errorf("Wait = %v, want nil", err)
		}
		if err := l.Stop(time.Second); err == nil || err.Error() != "stop late: half was written" {
			t.Errorf("Stop = %v, want stop late: half was written", err)
		}
	})
}

func TestLifecycle_ErrorAndPanicAreFatal(t *testing.T) {
	for name, run := range map[string]func(context.Context) error{
		"error": func(context.Context) error { return errors.New("failed") },
		"panic": func(context.Context) error { panic("failed") },
	} {
		t.Run(name, func(t *testing.T) {
			l := service.NewLifecycle(zap.NewNop())
			l.Go("part", run)
			expectErrors(t, l.Wait(t.Context()), "part", "failed")
			if err := l.Stop(time.Minute); err != nil {
				t.Errorf("Stop = %v, want nil: Wait returned it", err)
			}
		})
	}
}

func TestServe_DrainsRequests(t *testing.T) {
	l := service.NewLifecycle(zap.NewNop())
	entered, release := make(chan struct{}), make(chan struct{})
	slow := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(entered)
		<-release
		_, _ = io.WriteString(w, "done")
	})
	addr, err := l.Serve("SOME_ADDR", "127.0.0.1:0", 20, slow)
	if err != nil {
		t.Fatal(err)
	}
	_, err = l.Serve("OTHER_ADDR", addr.String(), 20, http.NotFoundHandler())
	expectErrors(t, err, "OTHER_ADDR", addr.String())
	answer, req := make(chan string), request(t, "http://"+addr.String())
	go func() {
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			answer <- err.Error()
			return
		}
		defer func() { _ = resp.Body.Close() }()
		body, err := io.ReadAll(resp.Body)
		answer <- fmt.Sprint(string(body), err)
	}()
	<-entered
	stopped := make(chan error)
	go func() { stopped <- l.Stop(time.Minute) }()
	for { // until new connections are refused
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr.String())
		if err != nil {
			break
		}
		_ = conn.Close()
	}
	close(release)
	if got := <-answer; got != "done<nil>" {
		t.Errorf("request in flight = %q, want done", got)
	}
	if err := <-stopped; err != nil {
		t.Errorf("Stop = %v, want nil", err)
	}
}

// The server's own errors, such as a handler's panic, were never logged: their level was below the logger's.
func TestServe_LogsServerErrors(t *testing.T) {
	panics := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("failed") })
	for level, want := range map[string]bool{"debug": true, "info": false} {
		var out bytes.Buffer
		l := service.NewLifecycle(service.LogConfig{LogLevel: level}.Logger(&out))
		var timeout time.Duration
		option := func(s *http.Server) { timeout, s.WriteTimeout = s.WriteTimeout, time.Minute }
		addr, err := l.Serve("SOME_ADDR", "127.0.0.1:0", 20, panics, option)
		if err != nil {
			t.Fatal(err)
		}
		if timeout != 30*time.Second {
			t.Errorf("write timeout = %s, want 30s", timeout)
		}
		if resp, err := http.DefaultTransport.RoundTrip(request(t, "http://"+addr.String())); err == nil {
			_ = resp.Body.Close()
			t.Errorf("status after a panic = %d, want no response", resp.StatusCode)
		}
		if err := l.Stop(time.Minute); err != nil {
			t.Errorf("Stop = %v, want nil", err)
		}
		if got := strings.Contains(out.String(), "failed"); got != want {
			t.Errorf("at level %s logged = %t, want %t: %s", level, got, want, out.String())
		}
	}
}

func TestServe_AddressErrorsNameTheSetting(t *testing.T) {
	l := service.NewLifecycle(zap.NewNop())
	for _, addr := range []string{"nohost", "127.0.0.1:99999", "203.0.113.9:80"} {
		_, err := l.Serve("SOME_ADDR", addr, 20, http.NotFoundHandler())
		if want := "listen on " + addr + " (SOME_ADDR): "; err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("error = %v, want %q", err, want)
		}
	}
}

// request returns a GET that outlives the test's context.
func request(t *testing.T, url string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(context.WithoutCancel(t.Context()), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	return req
}
