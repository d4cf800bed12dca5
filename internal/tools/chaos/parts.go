package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"purchase-relay/internal/testkit/pglocal"
	"purchase-relay/internal/testkit/process"
)

// stopPatience is how long a program may take to end after SIGTERM: far more than its own grace of 8 s.
const stopPatience = 40 * time.Second

// part is what can be killed, stopped, frozen and started again. One fault at a time acts on it, and holds
// its lock.
type part interface {
	TryLock() bool
	Unlock()
	start(ctx context.Context) error
	kill()
	terminate() (code int)
	pids() []int
}

// program is one of our binaries, or nats-server, started again and again under one name.
type program struct {
	sync.Mutex
	name, path string
	args, env  []string
	log        string
	findings   *findings

	now atomic.Pointer[running]
}

// running is one process of a program.
type running struct {
	*process.Process
	ending atomic.Bool // by kill or terminate
}

func (p *program) start(context.Context) error {
	started, err := process.Start(process.Command{
		Path: p.path, Args: p.args, Log: p.log,
		//nolint:forbidigo // PATH is what a Go program needs
		Env: append([]string{"PATH=" + os.Getenv("PATH"), "GORACE=halt_on_error=1"}, p.env...),
	})
	if err != nil {
		return err
	}
	now := &running{Process: started}
	p.now.Store(now)
	go func() {
		<-now.Ended()
		if !now.ending.Load() {
			p.findings.add("%s ended by itself with exit code %d", p.name, now.ExitCode())
		}
	}()
	return nil
}

func (p *program) pids() []int { return []int{p.now.Load().PID()} }

func (p *program) kill() {
	now := p.now.Load()
	now.ending.Store(true)
	now.Kill()
}

// terminate ends it as an operator does and returns its exit code.
func (p *program) terminate() int {
	now := p.now.Load()
	now.ending.Store(true)
	now.Signal(syscall.SIGTERM)
	select {
	case <-now.Ended():
	case <-time.After(stopPatience):
		p.findings.add("%s did not end within "+stopPatience.String()+" after SIGTERM", p.name)
		p.kill()
	}
	return now.ExitCode()
}

// ledger is Postgres.
type ledger struct {
	sync.Mutex
	options pglocal.Options
	now     atomic.Pointer[pglocal.Server]
}

// start tries again for a while: those that a killed one left behind take a moment to notice.
func (l *ledger) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stopPatience)
	defer cancel()
	for {
		server, err := pglocal.Start(ctx, l.options)
		if err == nil {
			l.now.Store(server)
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("start Postgres: %w", err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// pids are the postmaster's and its children's.
func (l *ledger) pids() []int {
	postmaster := l.now.Load().Pid()
	return append([]int{postmaster}, children(postmaster)...)
}

func (l *ledger) kill() {
	server := l.now.Load()
	_ = syscall.Kill(server.Pid(), syscall.SIGKILL)
	_ = server.Stop() // only waits: there is nothing left to stop
}

// terminate is a fast shutdown: transactions are broken off.
func (l *ledger) terminate() int {
	_ = l.now.Load().Stop()
	return 0
}

// children lists a process' children; Postgres' are in groups of their own.
func children(parent int) (pids []int) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat") // the pattern is good
	for _, file := range stats {
		data, err := os.ReadFile(file) //nolint:gosec // below /proc
		if err != nil {
			continue // it has ended
		}
		// pid (name) state parent …; the name may hold anything.
		_, after, _ := strings.Cut(string(data), ") ")
		if fields := strings.Fields(after); len(fields) < 2 || fields[0] == "Z" || fields[1] != strconv.Itoa(parent) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// freeze stops processes for a time. The thawing is in another process' hands: it comes although ours is
// killed.
func freeze(ctx context.Context, pids []int, lasts time.Duration) error {
	args := []string{"-c", `kill -STOP "$@"; sleep "$0"; kill -CONT "$@"`, strconv.FormatFloat(lasts.Seconds(), 'f', 2, 64)}
	for _, pid := range pids {
		args = append(args, strconv.Itoa(pid))
	}
	err := exec.CommandContext(context.WithoutCancel(ctx), "/bin/sh", args...).Run() //nolint:gosec // our own numbers
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		return nil // one of them has ended meanwhile
	}
	return err
}
