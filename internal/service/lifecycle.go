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
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// Lifecycle owns what a program has started and stops it in reverse order. Its methods are for the goroutine that wires
// the program.
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
	return &Lifecycle{log: log, fatal: make(chan error, 1), dropped: dropCounter()}
}

// Collector returns the figures of the listeners.
func (l *Lifecycle) Collector() prometheus.Collector { return l.dropped }

// OnStop registers a named stop. Stops run in reverse order of their registration.
func (l *Lifecycle) OnStop(name string, run func(ctx context.Context) error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stops = append(l.stops, stop{name, run})
}

// Go starts a goroutine that the Lifecycle owns. Its context ends at its turn in the stop order, and the stop waits for
// it. An error before that, or a panic, is fatal: Wait returns it.
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
			err = nil // told by Wait
		}
		ended <- err
	}()
	l.OnStop(name, func(grace context.Context) error {
		cancel()
		select {
		case err := <-ended:
			return err
		case <-grace.Done():
			return errBusy
		}
	})
}

func (l *Lifecycle) guard(name string, run func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			l.log.Error("A part of the program panicked", zap.String("part", name), zap.ByteString("stack", debug.Stack()))
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	return run()
}

func (l *Lifecycle) fail(err error) {
	select {
	case l.fatal <- err:
	default: // the first one tells
	}
}

// Wait returns nil when ctx ends and an error when a part of the program has failed for good.
func (l *Lifecycle) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		l.log.Info("Stopping: nothing new is taken, what is in flight is finished")
		return nil
	case err := <-l.fatal:
		return err
	}
}

var errBusy = errors.New("still busy when the time for stopping was over")

// Stop runs every stop, also after one has failed, panicked or got stuck, within grace together. The errors are joined,
// each with its stop's name. A stop has at least nine tenths of grace if those before it needed nothing; a tenth is shared
// out in advance, so that one that is stuck does not cost the others theirs.
func (l *Lifecycle) Stop(grace time.Duration) error {
	over := time.Now().Add(grace)
	l.mu.Lock()
	stops := l.stops
	l.stops = nil
	l.mu.Unlock()
	share := grace / time.Duration(20*max(len(stops), 1))
	var errs []error
	for left, stop := range slices.Backward(stops) {
		// Its context ends one share before it is abandoned: time to say why.
		abandon := over.Add(-time.Duration(2*left) * share)
		if err := l.stop(stop, abandon.Add(-share), abandon); err != nil {
			errs = append(errs, fmt.Errorf("stop %s: %w", stop.name, err))
		}
	}
	return errors.Join(errs...)
}

// stop runs one stop. Some cannot be told to hurry (a pool waits for its last connection), so it is left behind at abandon:
// the process is about to end anyway.
func (l *Lifecycle) stop(s stop, deadline, abandon time.Time) error {
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- l.guard(s.name, func() error { return s.run(ctx) }) }()
	patience := time.NewTimer(time.Until(abandon))
	defer patience.Stop()
	select {
	case err := <-ended:
		return err
	case <-patience.C:
		return errBusy
	}
}

// Serve listens on addr and serves h until its turn in the stop order: then new connections are refused and
// in-flight requests are finished. variable is the configuration's name of addr. At most max connections are
// kept, and no request with a head over 8 KiB or 64 headers is read. The options change the server before it
// starts, for instance a longer WriteTimeout.
func (l *Lifecycle) Serve(variable, addr string, max int, h http.Handler, options ...func(*http.Server)) (net.Addr, error) {
	errorLog, err := zap.NewStdLogAt(l.log, zap.DebugLevel) // mostly what strangers send to an open port
	if err != nil {
		return nil, err
	}
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", addr)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("cannot listen on %s, something else does: stop that or set %s to another address", addr, variable)
	case err != nil:
		return nil, fmt.Errorf("cannot listen on %s: %w; set %s to a host:port of this machine", addr, errors.Unwrap(err), variable)
	}
	server := &http.Server{
		Handler: closeAfterChunks(h), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second,
		IdleTimeout: 75 * time.Second, MaxHeaderBytes: maxHeadBytes, ErrorLog: errorLog,
	}
	for _, change := range options {
		change(server)
	}
	bounded := bound(server, listener, variable, max, l.dropped, l.log)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := server.Serve(bounded); !errors.Is(err, http.ErrServerClosed) {
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

// closeAfterChunks ends a connection after a request whose body came in chunks. Beside Transfer-Encoding net/http overlooks a
// Content-Length, by which a proxy in front may have counted: what it took for the rest of that body would be read as a
// request of its own here, and every later answer on the connection would reach somebody else. Stripe announces lengths.
func closeAfterChunks(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if len(r.TransferEncoding) > 0 {
			w.Header().Set("Connection", "close")
		}
		h.ServeHTTP(w, r)
	})
}
