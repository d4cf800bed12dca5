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

func TestLifecycle_StopsRunInReverseAndAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := service.NewLifecycle(zap.NewNop())
		var order []string
		add := func(name string, err error) {
			l.OnStop(name, func(context.Context) error { order = append(order, name); return err })
		}
		add("first", nil)
		l.Go("loop", func(ctx context.Context) error { <-ctx.Done(); order = append(order, "loop"); return ctx.Err() })
		add("broken", errors.New("it is stuck"))
		l.Go("stuck", func(context.Context) error { time.Sleep(time.Hour); return nil }) //nolint:forbidigo // virtual time
		add("last", nil)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := l.Wait(ctx); err != nil {
			t.Error(err)
		}
		began := time.Now()
		err := l.Stop(8 * time.Second)
		if got := strings.Join(order, " "); got != "last broken loop first" {
			t.Errorf("order: %s", got)
		}
		if err == nil || !strings.Contains(err.Error(), "stop broken: it is stuck") || !strings.Contains(err.Error(), "stop stuck: did not stop") {
			t.Errorf("errors: %v", err)
		}
		if took := time.Since(began); took > 8*time.Second || took < 7200*time.Millisecond {
			t.Errorf("stopping took %s", took)
		}
		time.Sleep(time.Hour) //nolint:forbidigo // virtual time: the stuck one ends too
	})
}

// A connection pool's Close waits for its last connection and knows no context: the program never ended, until it was
// killed. And several stuck parts took the grace and then more, each.
func TestLifecycle_StopIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := service.NewLifecycle(zap.NewNop())
		var order []string
		free := make(chan struct{})
		l.OnStop("first", func(ctx context.Context) error { order = append(order, "first"); return ctx.Err() })
		l.OnStop("deaf", func(context.Context) error { <-free; return nil })
		for _, name := range []string{"slow", "slower"} {
			l.OnStop(name, func(ctx context.Context) error { <-ctx.Done(); order = append(order, name); return ctx.Err() })
		}
		l.OnStop("panicking", func(context.Context) error { panic("it broke") })
		began := time.Now()
		err := l.Stop(time.Second)
		if took := time.Since(began); took > time.Second {
			t.Errorf("stopping took %s", took)
		}
		if got := strings.Join(order, " "); got != "slower slow first" {
			t.Errorf("order: %s", got)
		}
		for _, want := range []string{"stop panicking: panic: it broke", "stop slower: context deadline", "stop slow: context deadline", "stop deaf: did not stop"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q is not told: %v", want, err)
			}
		}
		if strings.Contains(err.Error(), "first") {
			t.Errorf("the stuck ones cost the first its stop: %v", err)
		}
		if err := l.Stop(time.Second); err != nil {
			t.Errorf("stopping again: %v", err)
		}
		close(free)
	})
}

func TestLifecycle_NothingIsFatalOnceStopping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := service.NewLifecycle(zap.NewNop())
		l.Go("ends", func(context.Context) error { return nil })
		l.Go("late", func(ctx context.Context) error { <-ctx.Done(); return errors.New("half was written") })
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := l.Wait(ctx); err != nil {
			t.Errorf("a good end is fatal: %v", err)
		}
		if err := l.Stop(time.Second); err == nil || err.Error() != "stop late: half was written" {
			t.Errorf("the stop tells: %v", err)
		}
	})
}

func TestLifecycle_FailureAndPanicAreFatal(t *testing.T) {
	for name, run := range map[string]func(context.Context) error{
		"error": func(context.Context) error { return errors.New("it broke") },
		"panic": func(context.Context) error { panic("it broke") },
	} {
		l := service.NewLifecycle(zap.NewNop())
		l.Go("part", run)
		if err := l.Wait(t.Context()); err == nil || !strings.Contains(err.Error(), "part") || !strings.Contains(err.Error(), "it broke") {
			t.Errorf("%s: %v", name, err)
		}
		if err := l.Stop(time.Minute); err != nil {
			t.Errorf("%s: told twice: %v", name, err)
		}
	}
}

func TestServe_FinishesInFlightRequests(t *testing.T) {
	l := service.NewLifecycle(zap.NewNop())
	entered, release := make(chan struct{}), make(chan struct{})
	addr, err := l.Serve("SOME_ADDR", "127.0.0.1:0", 20, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(entered)
		<-release
		_, _ = io.WriteString(w, "done")
	}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Serve("OTHER_ADDR", addr.String(), 20, http.NotFoundHandler()); err == nil || !strings.Contains(err.Error(), "OTHER_ADDR") || !strings.Contains(err.Error(), addr.String()) {
		t.Errorf("a busy port: %v", err)
	}
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
	for { // nothing new is taken …
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr.String())
		if err != nil {
			break
		}
		_ = conn.Close()
	}
	close(release) // … and what is in flight is finished
	if got := <-answer; got != "done<nil>" {
		t.Errorf("the request in flight: %s", got)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

// The server's own errors, a handler's panic among them, went nowhere: their level was below the one they were let
// through at.
func TestServe_LogsServerErrors(t *testing.T) {
	for level, want := range map[string]bool{"debug": true, "info": false} {
		var out bytes.Buffer
		l := service.NewLifecycle(service.LogConfig{LogLevel: level}.Logger(&out))
		var timeout time.Duration
		addr, err := l.Serve("SOME_ADDR", "127.0.0.1:0", 20, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("it broke") }),
			func(s *http.Server) { timeout, s.WriteTimeout = s.WriteTimeout, time.Minute })
		if err != nil {
			t.Fatal(err)
		}
		if timeout != 30*time.Second {
			t.Errorf("an option saw %s", timeout)
		}
		if resp, err := http.DefaultTransport.RoundTrip(request(t, "http://"+addr.String())); err == nil {
			_ = resp.Body.Close()
			t.Error("a panic was answered")
		}
		if err := l.Stop(time.Minute); err != nil {
			t.Error(err)
		}
		if got := strings.Contains(out.String(), "it broke"); got != want {
			t.Errorf("at %s: %s", level, out.String())
		}
	}
}

func TestServe_AddressErrorsNameTheVariable(t *testing.T) {
	l := service.NewLifecycle(zap.NewNop())
	for _, addr := range []string{"nohost", "127.0.0.1:99999", "203.0.113.9:80"} {
		_, err := l.Serve("SOME_ADDR", addr, 20, http.NotFoundHandler())
		if want := "listen on " + addr + " (SOME_ADDR): "; err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("error = %v, want %q", err, want)
		}
	}
}

// request is a GET that outlives the test's context, as one from outside would.
func request(t *testing.T, url string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(context.WithoutCancel(t.Context()), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	return req
}
