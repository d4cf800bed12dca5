// Package try lets a tool fail as a test does: a failed step ends everything up to the enclosing scope,
// which stops what was started in it and returns the error.
package try

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"
)

// Main runs a tool until it returns; Ctrl-C and SIGTERM end the context. After an error it prints the error
// and exits with status 1. flag.ErrHelp is no error.
func Main(name string, run func(ctx context.Context) error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1) //nolint:forbidigo // on behalf of main
	}
}

// failure is the panic of a failed step.
type failure struct{ error }

// Check ends the scope unless err is nil. Like testing.T's FailNow it belongs to the goroutine of the scope.
func Check(err error) {
	if err != nil {
		panic(failure{err})
	}
}

// Must is Check for a call with a result.
func Must[T any](value T, err error) T {
	Check(err)
	return value
}

// Scope collects what has to be stopped. Scopes nest.
type Scope struct{ stops []func() error }

// OnEnd registers a stop for the end of the innermost scope.
func (s *Scope) OnEnd(stop func() error) { s.stops = append(s.stops, stop) }

// OnClose is OnEnd for a stop without an error.
func (s *Scope) OnClose(stop func()) {
	s.OnEnd(func() error {
		stop()
		return nil
	})
}

// Scoped calls f, stops everything that f started, the last first, and returns f's failure.
func (s *Scope) Scoped(f func()) (err error) {
	outer := s.stops
	s.stops = nil
	defer func() {
		cause := recover()
		failed, isFailure := cause.(failure)
		if isFailure {
			err = failed.error
		}
		for _, stop := range slices.Backward(s.stops) {
			err = errors.Join(err, stop())
		}
		s.stops = outer
		if cause != nil && !isFailure {
			panic(cause)
		}
	}()
	f()
	return nil
}
