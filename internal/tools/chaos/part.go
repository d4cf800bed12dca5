package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/procfs"

	"purchase-relay/internal/testkit/pglocal"
	"purchase-relay/internal/testkit/process"
	"purchase-relay/internal/testkit/wait"
)

// stopTimeout bounds the shutdown after a signal: far more than the binaries' grace period of 8 s.
const stopTimeout = 40 * time.Second

// part is a process that is killed, stopped, frozen and started again. The fault that acts on it holds its
// lock.
type part struct {
	sync.Mutex
	name       string
	addr       string // of Postgres, host:port
	admin      string // of a binary's admin listener, host:port
	log        string
	findings   *findings
	stopSignal syscall.Signal
	launch     func(ctx context.Context) (*instance, error)

	running *instance // nil before the first start
}

// instance is one process of a part.
type instance struct {
	pid      int
	ended    <-chan struct{}
	exitCode func() int
	expected atomic.Bool // the end was caused by the experiment
}

func (p *part) start(ctx context.Context) error {
	started, err := p.launch(ctx)
	if err == nil {
		p.running = started
	}
	return err
}

// signal announces an end that is no finding.
func (p *part) signal(signal syscall.Signal) {
	p.running.expected.Store(true)
	select {
	case <-p.running.ended: // its id may be another process' by now
	default:
		_ = syscall.Kill(p.running.pid, signal) // fails when it has just ended
	}
}

func (p *part) kill() {
	p.signal(syscall.SIGKILL)
	<-p.running.ended
}

// terminate stops the part as an operator does. It returns the exit code.
func (p *part) terminate() int {
	p.signal(p.stopSignal)
	select {
	case <-p.running.ended:
	case <-time.After(stopTimeout):
		p.findings.add("%s did not stop within "+stopTimeout.String(), p.name)
		p.kill()
	}
	return p.running.exitCode()
}

// newProgram returns one of our binaries, or nats-server. An exit on its own is a finding.
func (s *stack) newProgram(name, binary string, env []string, args ...string) *part {
	p := &part{
		name: name, log: filepath.Join(s.dir, name+".log"), findings: s.findings, stopSignal: syscall.SIGTERM,
	}
	command := process.Command{
		Path: filepath.Join(s.binaries, binary), Args: args, Env: append(env, "GORACE=halt_on_error=1"), Log: p.log,
	}
	p.launch = func(context.Context) (*instance, error) {
		started, err := process.Start(command)
		if err != nil {
			return nil, err
		}
		i := &instance{pid: started.PID(), ended: started.Ended(), exitCode: started.ExitCode}
		go func() {
			<-i.ended
			if !i.expected.Load() {
				p.findings.add("%s exited on its own with code %d", name, i.exitCode())
			}
		}()
		return i, nil
	}
	s.parts = append(s.parts, p)
	return p
}

// newPostgres returns Postgres. Its signal breaks transactions off.
func (s *stack) newPostgres(options pglocal.Options) *part {
	p := &part{name: "postgres", addr: options.Addr, findings: s.findings, stopSignal: syscall.SIGINT}
	p.launch = func(ctx context.Context) (*instance, error) {
		var server *pglocal.Server
		var err error
		// The children of a killed server hold its memory and its port for a moment.
		if !wait.Until(ctx, stopTimeout, 200*time.Millisecond, func() bool {
			server, err = pglocal.Start(ctx, options)
			return err == nil
		}) {
			return nil, fmt.Errorf("start Postgres: %w", err)
		}
		s.database = server
		return &instance{pid: server.Pid(), ended: server.Ended(), exitCode: func() int { return 0 }}, nil
	}
	s.parts = append(s.parts, p)
	return p
}

// children lists a process' children.
func children(parent int) (pids []int) {
	all, err := procfs.AllProcs()
	if err != nil {
		return nil // not on Linux
	}
	for _, p := range all {
		if stat, err := p.Stat(); err == nil && stat.PPID == parent && stat.State != "Z" {
			pids = append(pids, p.PID)
		}
	}
	return pids
}

// freeze stops a part's processes for a time. A process of its own continues them, even if this one is
// killed.
func freeze(ctx context.Context, p *part, f fault) error {
	seconds := strconv.FormatFloat(f.lasts.Seconds(), 'f', 2, 64)
	args := []string{"-c", `kill -STOP "$@"; sleep "$0"; kill -CONT "$@"`, seconds}
	for _, pid := range append([]int{p.running.pid}, children(p.running.pid)...) {
		args = append(args, strconv.Itoa(pid))
	}
	err := exec.CommandContext(context.WithoutCancel(ctx), "/bin/sh", args...).Run() //nolint:gosec // numbers
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		return nil // one of them has ended meanwhile
	}
	return err
}
