// Package process runs child processes that end with their parent: for tests and tools.
package process

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// Command is a program with its arguments. Env is the whole environment: the parent's is not passed on.
type Command struct {
	Path       string
	Args, Env  []string
	Dir        string
	Log        string              // a file that the output is appended to; a symbolic link is refused
	Output     io.Writer           // gets the output where there is no Log
	Credential *syscall.Credential // of another user; nil: the parent's own

	// OnParentDeath is the signal that the child gets when its parent ends, however (Linux only). 0: SIGKILL,
	// which ends a stopped process, too.
	OnParentDeath syscall.Signal
}

// Process is a started command.
type Process struct {
	name, log string
	cmd       *exec.Cmd
	ended     chan struct{}
}

// Start runs a command in a process group of its own, so that Ctrl-C reaches it through its parent alone.
func Start(c Command) (*Process, error) {
	p := &Process{name: filepath.Base(c.Path), log: c.Log, ended: make(chan struct{})}
	if c.Log != "" {
		const flags = os.O_CREATE | os.O_APPEND | os.O_WRONLY | syscall.O_NOFOLLOW
		log, err := os.OpenFile(c.Log, flags, 0o600)
		if err != nil {
			return nil, err
		}
		defer func() { _ = log.Close() }() // the child has its own
		c.Output = log
	}
	p.cmd = exec.Command(c.Path, c.Args...) //nolint:gosec,noctx // ended by Stop or Kill
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = c.Dir, c.Output, c.Output
	p.cmd.Env = append([]string{}, c.Env...) // nil would pass on the parent's
	p.cmd.SysProcAttr = attributes(cmp.Or(c.OnParentDeath, syscall.SIGKILL))
	p.cmd.SysProcAttr.Credential = c.Credential
	started := make(chan error, 1)
	go func() {
		// The kernel signals the child when the thread that started it ends, so this thread stays as long as
		// the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait() // ProcessState holds the result
		}
		close(p.ended)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	return p, nil
}

// PID returns the process' id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Ended is closed when the process has ended.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// ExitCode returns the exit status of a process that has ended; -1 after a signal.
func (p *Process) ExitCode() int { return p.cmd.ProcessState.ExitCode() }

// Signal sends a signal. A process that has ended ignores it.
func (p *Process) Signal(s syscall.Signal) { _ = p.cmd.Process.Signal(s) }

// Kill ends the process with SIGKILL and waits.
func (p *Process) Kill() {
	p.Signal(syscall.SIGKILL)
	<-p.ended
}

// Stop ends the process as an operator would, and kills it after grace. The error reports a kill or an exit
// status other than 0, unless the process had ended before.
func (p *Process) Stop(grace time.Duration) error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); errors.Is(err, os.ErrProcessDone) {
		<-p.ended
		return nil
	}
	select {
	case <-p.ended:
	case <-time.After(grace):
		p.Kill()
		return fmt.Errorf("%s did not stop within %s and was killed", p.name, grace)
	}
	if code := p.ExitCode(); code != 0 {
		return fmt.Errorf("%s ended with exit code %d", p.name, code)
	}
	return nil
}

// Await waits until ready returns true; what is the error's operation. The error reports that the process has
// ended, that limit is over, or the end of ctx.
func (p *Process) Await(ctx context.Context, what string, limit time.Duration, ready func() bool) error {
	late := fmt.Errorf("not within %s; the log is %s", limit, p.log)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, late)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ready() {
		select {
		case <-p.ended:
			return fmt.Errorf("%s: %s ended; its log, %s, ends with:\n%s", what, p.name, p.log, Tail(p.log))
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, context.Cause(ctx))
		case <-tick.C:
		}
	}
	return nil
}

// Tail returns a log's last five lines.
func Tail(file string) string {
	data, err := os.ReadFile(file) //nolint:gosec // the caller's own log
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(lines[max(0, len(lines)-5):], "\n")
}
