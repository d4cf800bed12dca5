package try_test

import (
	"errors"
	"slices"
	"testing"

	"purchase-relay/internal/testkit/try"
)

func TestScope_StopsInReverseAndReturnsTheFailure(t *testing.T) {
	t.Parallel()
	var s try.Scope
	var stopped []string
	stop := func(name string, err error) func() error {
		return func() error {
			stopped = append(stopped, name)
			return err
		}
	}
	failed, notStopped := errors.New("failed"), errors.New("not stopped")
	err := s.Scoped(func() {
		s.OnEnd(stop("outer", nil))
		try.Check(s.Scoped(func() {
			s.OnEnd(stop("first", notStopped))
			s.OnEnd(stop("second", nil))
			try.Must(0, failed)
		}))
	})
	if !errors.Is(err, failed) || !errors.Is(err, notStopped) {
		t.Errorf("err = %v, want %v and %v", err, failed, notStopped)
	}
	if want := []string{"second", "first", "outer"}; !slices.Equal(stopped, want) {
		t.Errorf("stopped = %v, want %v", stopped, want)
	}
}

func TestScope_StopsBeforeForeignPanic(t *testing.T) {
	t.Parallel()
	var s try.Scope
	stopped := false
	defer func() {
		if cause := recover(); cause != "bug" || !stopped {
			t.Errorf("panic = %v, stopped = %v, want bug and true", cause, stopped)
		}
	}()
	_ = s.Scoped(func() {
		s.OnEnd(func() error {
			stopped = true
			return nil
		})
		panic("bug")
	})
}
