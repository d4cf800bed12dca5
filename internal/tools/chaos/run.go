package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"purchase-relay/internal/testkit/chaos"
)

// apart is the variable that tells the program that it runs in a world of its own.
const apart = "PURCHASE_RELAY_CHAOS_APART"

func run(ctx context.Context, args []string, getenv func(string) string, out io.Writer) (err error) {
	c := chaos.Config{Out: out}
	flags := flag.NewFlagSet("chaos", flag.ContinueOnError)
	flags.SetOutput(out)
	flags.Uint64Var(&c.Seed, "seed", 0, "repeats the faults and the purchases of a run that told this one; 0: new ones")
	flags.DurationVar(&c.Duration, "duration", time.Minute, "how long things are broken; coming to rest takes up to a minute more")
	flags.StringVar(&c.Mode, "mode", chaos.ModeAll, strings.Join(chaos.Modes(), ", ")+": every fault; only those by which the queue loses nothing, without a sweeper; one wiped store")
	flags.Float64Var(&c.Rate, "rate", 30, "purchases a second")
	flags.DurationVar(&c.Gap, "gap", 700*time.Millisecond, "from one fault to the next, on average")
	flags.IntVar(&c.Waiting, "waiting", 10_000, "purchases that wait when the store is wiped, in the mode wiped")
	flags.StringVar(&c.Binaries, "binaries", "", "a folder with ingest, tiktok-worker and nats-server; empty: built with the race detector")
	only := flags.String("only", "", "kinds of faults, comma-separated, as the report names them; empty: all of the mode")
	keep := flags.Bool("keep", false, "keep the logs of a good run, too")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	switch {
	case !slices.Contains(chaos.Modes(), c.Mode):
		return fmt.Errorf("-mode is one of %s", strings.Join(chaos.Modes(), ", "))
	case c.Duration < time.Second || !(c.Rate >= 1 && c.Rate <= 1000) || c.Gap < 10*time.Millisecond || c.Waiting < 1:
		return errors.New("-duration is at least 1s, -rate from 1 to 1000, -gap at least 10ms, -waiting at least 1")
	}
	if *only != "" {
		c.Only = strings.Split(*only, ",")
	}
	if getenv(apart) == "" {
		if err := goApart(ctx, args, out); !errors.Is(err, syscall.EPERM) && !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
	} else if err := chaos.Settle(); err != nil {
		return fmt.Errorf("show our own processes under /proc: %w", err)
	}
	for c.Seed == 0 {
		c.Seed = rand.Uint64() >> 32 //nolint:gosec // a seed to play with, no secret
	}
	if c.Dir, err = os.MkdirTemp("/var/tmp", "chaos"); err != nil {
		return err
	}
	if err := os.Chmod(c.Dir, 0o711); err != nil { //nolint:gosec // Postgres' user goes through it
		return err
	}
	if c.Binaries == "" {
		c.Binaries = filepath.Join(c.Dir, "bin")
		if err := build(ctx, c.Binaries, out); err != nil {
			return err
		}
	}
	if err := chaos.Run(ctx, c); err != nil || *keep {
		return err
	}
	return os.RemoveAll(c.Dir)
}

// goApart runs the program again in a world of its own, so that whatever becomes of it, nothing it started and nothing it mounted is
// left. Where that is not permitted, the error says so and nothing was done.
func goApart(ctx context.Context, args []string, out io.Writer) error {
	attributes := chaos.Apart()
	self, err := os.Executable()
	if attributes == nil || err != nil {
		return errors.ErrUnsupported
	}
	cmd := exec.CommandContext(ctx, self, args...) //nolint:gosec // ourselves
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.Env, cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = append(os.Environ(), apart+"=1"), out, os.Stderr, attributes
	runtime.LockOSThread() // the child is ended when the thread that started it is
	defer runtime.UnlockOSThread()
	return cmd.Run()
}

// build compiles what is broken, from this checkout.
func build(ctx context.Context, dir string, out io.Writer) error {
	_, _ = fmt.Fprintln(out, "Building ingest and tiktok-worker with the race detector, and nats-server …")
	for _, args := range [][]string{
		{"build", "-race", "-o", dir + "/", "./cmd/ingest", "./cmd/tiktok-worker"},
		{"build", "-o", dir + "/", "github.com/nats-io/nats-server/v2"},
	} {
		if text, err := exec.CommandContext(ctx, "go", args...).CombinedOutput(); err != nil { //nolint:gosec // fixed arguments
			return fmt.Errorf("go build: %w\n%s", err, text)
		}
	}
	return nil
}
