package process_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"purchase-relay/internal/testkit/process"
	"purchase-relay/internal/testkit/wait"
)

// parent makes the test binary the parent in TestStart_ChildEndsWithParent.
const parent = "PURCHASE_RELAY_PROCESS_PARENT"

func TestMain(m *testing.M) {
	if os.Getenv(parent) != "" {
		child, err := process.Start(process.Command{Path: "/bin/sh", Args: []string{"-c", "kill -STOP $$"}})
		_, _ = fmt.Fprintln(os.Stdout, child.PID(), err)
		select {}
	}
	os.Exit(m.Run())
}

// start runs a script and returns its process and its log.
func start(t *testing.T, script string) (p *process.Process, log string) {
	t.Helper()
	log = filepath.Join(t.TempDir(), "log")
	p, err := process.Start(process.Command{
		Path: "/bin/sh", Args: []string{"-c", script}, Env: []string{"PATH=" + os.Getenv("PATH")}, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	return p, log
}

// A child ends with its parent, also when it is stopped and the parent killed.
func TestStart_ChildEndsWithParent(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux signals a parent's death")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(t.TempDir(), "log")
	p, err := process.Start(process.Command{Path: self, Env: []string{parent + "=1"}, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	var child int
	state := func() string {
		data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", child)) // gone: ""
		_, after, _ := strings.Cut(string(data), ") ")
		return after
	}
	err = p.Await(t.Context(), "a stopped child", time.Minute, func() bool {
		text, err := os.ReadFile(log)
		if err != nil {
			return false
		}
		_, err = fmt.Sscan(string(text), &child)
		return err == nil && strings.HasPrefix(state(), "T")
	})
	if err != nil {
		t.Fatal(err)
	}
	p.Kill()
	ended := func() bool { s := state(); return s == "" || s[0] == 'Z' }
	if !wait.Until(t.Context(), time.Minute, 10*time.Millisecond, ended) {
		t.Errorf("the child is left: %s", state())
	}
}

func TestStart_PassesOnlyItsEnvironment(t *testing.T) {
	t.Setenv("STRANGE", "1")
	var out bytes.Buffer
	args := []string{"-c", `echo "[$STRANGE]" >&2`}
	p, err := process.Start(process.Command{Path: "/bin/sh", Args: args, Output: &out})
	if err != nil {
		t.Fatal(err)
	}
	<-p.Ended()
	if got := out.String(); got != "[]\n" {
		t.Errorf("output = %q, want []", got)
	}
}

// A log that is a symbolic link is not opened: under root, another user may have made it.
func TestStart_RefusesLinkAsLog(t *testing.T) {
	dir := t.TempDir()
	target, link := filepath.Join(dir, "target"), filepath.Join(dir, "log")
	if err := errors.Join(os.WriteFile(target, []byte("kept"), 0o600), os.Symlink(target, link)); err != nil {
		t.Fatal(err)
	}
	if p, err := process.Start(process.Command{Path: "/bin/true", Log: link}); err == nil {
		<-p.Ended()
		t.Error("the process started, want an error")
	}
	if got, err := os.ReadFile(target); err != nil || string(got) != "kept" {
		t.Errorf("target = %q, %v, want kept", got, err)
	}
}

func TestProcess_Stop(t *testing.T) {
	for name, tc := range map[string]struct{ script, want string }{
		"ends with 0": {"trap 'exit 0' TERM; echo up; while :; do sleep 0.01; done", ""},
		"ends with 3": {"trap 'exit 3' TERM; echo up; while :; do sleep 0.01; done", "exit code 3"},
		"stays":       {"trap '' TERM; echo up; while :; do sleep 0.01; done", "was killed"},
	} {
		t.Run(name, func(t *testing.T) {
			p, log := start(t, tc.script)
			up := func() bool { text, err := os.ReadFile(log); return err == nil && len(text) > 0 }
			if err := p.Await(t.Context(), "the trap", time.Minute, up); err != nil {
				t.Fatal(err)
			}
			grace := time.Minute
			if tc.want == "was killed" {
				grace = 100 * time.Millisecond
			}
			err := p.Stop(grace)
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error = %v, want %q", err, tc.want)
			}
			if err := p.Stop(time.Minute); err != nil {
				t.Errorf("second stop: %v", err)
			}
		})
	}
}

func TestProcess_AwaitReportsEnd(t *testing.T) {
	p, _ := start(t, "echo one; echo two >&2; exit 7")
	err := p.Await(t.Context(), "readiness", time.Minute, func() bool { return false })
	if err == nil || !strings.HasSuffix(err.Error(), "ends with:\none\ntwo") || p.ExitCode() != 7 {
		t.Errorf("error = %v, exit code %d, want the log's end and 7", err, p.ExitCode())
	}
	if err := p.Await(t.Context(), "readiness", time.Minute, func() bool { return true }); err != nil {
		t.Errorf("ready before the end: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	stays, _ := start(t, "kill -STOP $$")
	err = stays.Await(ctx, "readiness", time.Minute, func() bool { return false })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error = %v, want %v", err, context.Canceled)
	}
}
