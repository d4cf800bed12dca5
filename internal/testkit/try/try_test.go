package try_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"testing"

	"purchase-relay/internal/testkit/try"
)

// tool makes the test binary a tool that ends with one of outcomes.
const tool = "PURCHASE_RELAY_TRY_TOOL"

var outcomes = map[string]error{
	"success": nil, "help": fmt.Errorf("parse: %w", flag.ErrHelp), "failure": errors.New("disk is full"),
}

func TestMain(m *testing.M) {
	if outcome := os.Getenv(tool); outcome != "" {
		try.Main("tool", func(context.Context) error { return outcomes[outcome] })
		return
	}
	os.Exit(m.Run())
}

func TestMain_ExitsByError(t *testing.T) {
	t.Parallel()
	for outcome := range outcomes {
		cmd := exec.Command(os.Args[0])
		cmd.Env = []string{tool + "=" + outcome}
		out, _ := cmd.CombinedOutput() // the exit code is checked
		text, code := "", 0
		if outcome == "failure" {
			text, code = "tool: disk is full\n", 1
		}
		if got := cmd.ProcessState.ExitCode(); got != code || string(out) != text {
			t.Errorf("%s: exit code %d, output %q, want %d and %q", outcome, got, out, code, text)
		}
	}
}

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
