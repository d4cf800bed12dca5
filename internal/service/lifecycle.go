package service

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// Lifecycle stops a program's parts in the reverse order of their start. Its methods are not for concurrent
// use.
type Lifecycle struct {
	log     *zap.Logger
	fatal   chan error
	dropped *prometheus.CounterVec

	mu    sync.Mutex
	stops []stop
}

type stop struct {
	name string
	run  func(context.Context) error
}

// NewLifecycle returns an empty Lifecycle.
func NewLifecycle(log *zap.Logger) *Lifecycle {
	return &Lifecycle{log: log, fatal: make(chan error, 1), dropped: newDroppedCounter()}
}

// Collector returns the listeners' metrics.
func (l *Lifecycle) Collector() prometheus.Collector { return l.dropped }

// OnStop registers a named stop. Stops run in reverse order.
func (l *Lifecycle) OnStop(name string, run func(ctx context.Context) error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stops = append(l.stops, stop{name, run})
}

// Go runs a part in a goroutine. At its turn in the stop order its context is canceled and the stop waits for
// it. An earlier error or a panic is fatal: Wait returns it.
func (l *Lifecycle) Go(name string, run func(ctx context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		err := l.guard(name, func() error { return run(ctx) })
		if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			err = nil
		}
		if err != nil && ctx.Err() == nil {
			l.fail(fmt.Errorf("%s: %w", name, err))
			err = nil // Wait returns it
		}
		ended <- err
	}()
	l.OnStop(name, func(stopCtx context.Context) error {
		cancel()
		select {
		case err := <-ended:
			return err
		case <-stopCtx.Done():
			return errGrace
		}
	})
}

func (l *Lifecycle) guard(name string, run func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			l.log.Error("Component panicked", zap.String("part", name), zap.ByteString("stack", debug.Stack()))
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	return run()
}

func (l *Lifecycle) fail(err error) {
	select {
	case l.fatal <- err:
	default: // Wait returns the first one
	}
}

// Wait returns nil when ctx ends, and the first fatal error of a goroutine or a listener.
func (l *Lifecycle) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		l.log.Info("Shutting down; draining in-flight work")
		return nil
	case err := <-l.fatal:
		return err
	}
}

var errGrace = errors.New("did not stop within the grace period")

// Stop runs all stops within grace, also after one has failed, panicked or blocked, and joins their errors. A
// tenth of grace is reserved in equal shares, so that a blocked stop leaves time for the others.
func (l *Lifecycle) Stop(grace time.Duration) error {
	deadline := time.Now().Add(grace)
	l.mu.Lock()
	stops := l.stops
	l.stops = nil
	l.mu.Unlock()
	share := grace / time.Duration(20*max(len(stops), 1))
	var errs []error
	for left, stop := range slices.Backward(stops) {
		// The context ends one share earlier, which leaves time to return an error.
		abandon := deadline.Add(-time.Duration(2*left) * share)
		if err := l.stop(stop, abandon.Add(-share), abandon); err != nil {
			errs = append(errs, fmt.Errorf("stop %s: %w", stop.name, err))
		}
	}
	return errors.Join(errs...)
}

// stop runs one stop until abandon. Some ignore their context: a pool's Close waits for its last connection.
func (l *Lifecycle) stop(s stop, deadline, abandon time.Time) error {
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- l.guard(s.name, func() error { return s.run(ctx) }) }()
	timer := time.NewTimer(time.Until(abandon))
	defer timer.Stop()
	select {
	case err := <-ended:
		return err
	case <-timer.C:
		return errGrace
	}
}

// Serve serves h on addr, the value of the setting variable, until its turn in the stop order, when it drains
// in-flight requests. max limits the connections; a request header is limited to 8 KiB and 64 lines. The
// options change the server before it starts.
func (l *Lifecycle) Serve(
	variable, addr string, max int, h http.Handler, options ...func(*http.Server),
) (net.Addr, error) {
	errorLog, err := zap.NewStdLogAt(l.log, zap.DebugLevel) // mostly malformed requests of port scanners
	if err != nil {
		return nil, err
	}
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen on %s (%s): %w", addr, variable, errors.Unwrap(err))
	}
	server := &http.Server{
		Handler: closeAfterChunks(h), MaxHeaderBytes: maxHeaderBytes, ErrorLog: errorLog,
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second,
		IdleTimeout: 75 * time.Second,
	}
	for _, change := range options {
		change(server)
	}
	limited := limitConnections(server, listener, variable, max, l.dropped, l.log)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := server.Serve(limited); !errors.Is(err, http.ErrServerClosed) {
			l.fail(fmt.Errorf("listener %s: %w", variable, err))
		}
	}()
	l.OnStop(variable, func(ctx context.Context) error {
		err := server.Shutdown(ctx)
		if err != nil {
			err = errors.Join(err, server.Close())
		}
		<-ended
		return err
	})
	return listener.Addr(), nil
}

// closeAfterChunks closes a connection after a chunked request, against request smuggling: if a proxy used
// its Content-Length, which net/http ignores next to Transfer-Encoding, the rest of the body would be read
// here as another request. Stripe sends no chunks.
func closeAfterChunks(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if len(r.TransferEncoding) > 0 {
			w.Header().Set("Connection", "close")
		}
		h.ServeHTTP(w, r)
	})
}
