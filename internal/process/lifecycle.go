package process

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

	"go.uber.org/zap"
)

// Lifecycle owns what a program has started and stops it in reverse order. Its methods are for the goroutine that wires
// the program.
type Lifecycle struct {
	log   *zap.Logger
	fatal chan error

	mu    sync.Mutex
	stops []stop
}

type stop struct {
	name string
	run  func(context.Context) error
}

// NewLifecycle returns an empty Lifecycle.
func NewLifecycle(log *zap.Logger) *Lifecycle {
	return &Lifecycle{log: log, fatal: make(chan error, 1)}
}

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
			return errors.New("still busy when the time for stopping was over")
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

// leastGrace is what each stop gets even when one before it has used up the grace: an idle part needs no longer.
const leastGrace = 200 * time.Millisecond

// Stop runs every stop, also after one has failed, within grace together (and leastGrace each past that). The errors are
// joined.
func (l *Lifecycle) Stop(grace time.Duration) error {
	over := time.Now().Add(grace)
	l.mu.Lock()
	stops := l.stops
	l.stops = nil
	l.mu.Unlock()
	var errs []error
	for _, stop := range slices.Backward(stops) {
		ctx, cancel := context.WithTimeout(context.Background(), max(time.Until(over), leastGrace))
		if err := stop.run(ctx); err != nil {
			errs = append(errs, fmt.Errorf("stop %s: %w", stop.name, err))
		}
		cancel()
	}
	return errors.Join(errs...)
}

// Serve listens on addr at once and serves h until its turn in the stop order: then nothing new is taken and what is in
// flight is finished. variable is the configuration's name of addr, for the error.
func (l *Lifecycle) Serve(variable, addr string, h http.Handler) (net.Addr, error) {
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w; stop what uses it or set %s", addr, errors.Unwrap(err), variable)
	}
	server := &http.Server{
		Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second,
		IdleTimeout: 75 * time.Second, MaxHeaderBytes: 32 << 10, ErrorLog: zap.NewStdLog(l.log.WithOptions(zap.IncreaseLevel(zap.ErrorLevel))),
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
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
