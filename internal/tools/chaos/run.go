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
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/testkit/faultproxy"
	"purchase-relay/internal/testkit/launch"
	"purchase-relay/internal/testkit/process"
	"purchase-relay/internal/testkit/stripegen"
)

// config is the flags.
type config struct {
	seed     uint64        // the same one draws the same purchases and faults
	duration time.Duration // of the purchases and of the faults
	mode     string
	rate     float64       // purchases per second
	gap      time.Duration // between two faults, on average
	only     string        // kinds of faults, comma-separated; empty: all of the mode
	waiting  int           // purchases in the queue, in modeWiped
	binaries string        // folder of ingest, tiktok-worker and nats-server
	dir      string        // data and logs; every user may enter it
	isolated bool          // in namespaces that end with this process
	out      io.Writer
}

const (
	modeAll   = "all"   // every kind of fault
	modeKept  = "kept"  // only faults that keep the queue's data; without a sweeper a lost message stays lost
	modeWiped = "wiped" // no random faults: the queue's store is wiped once, with many purchases waiting
)

// isolatedVariable is set in the child that runs in its own namespaces.
const isolatedVariable = "PURCHASE_RELAY_CHAOS_APART"

func run(ctx context.Context, args []string, getenv func(string) string, out io.Writer) (err error) {
	c := config{out: out}
	flags := flag.NewFlagSet("chaos", flag.ContinueOnError)
	flags.SetOutput(out)
	flags.Uint64Var(&c.seed, "seed", 0, "repeats the run that printed it; 0: a new one")
	flags.DurationVar(&c.duration, "duration", time.Minute, "of the faults; settling takes up to a minute more")
	flags.StringVar(&c.mode, "mode", modeAll,
		"all, kept or wiped: every fault; those that keep the queue's data, without a sweeper; one wiped store")
	flags.Float64Var(&c.rate, "rate", 30, "purchases per second")
	flags.DurationVar(&c.gap, "gap", 700*time.Millisecond, "between two faults, on average")
	flags.StringVar(&c.only, "only", "", "kinds of faults, comma-separated; empty: all of the mode")
	flags.IntVar(&c.waiting, "waiting", 10_000, "purchases in the queue when the mode wiped wipes it")
	flags.StringVar(&c.binaries, "binaries", "", "folder of the programs; empty: build them")
	keep := flags.Bool("keep", false, "keep the logs of a good run")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	switch {
	case c.mode != modeAll && c.mode != modeKept && c.mode != modeWiped:
		return fmt.Errorf("-mode = %s, want %s, %s or %s", c.mode, modeAll, modeKept, modeWiped)
	case c.duration < time.Second || c.gap < 10*time.Millisecond:
		return errors.New("-duration is at least 1s, -gap at least 10ms")
	case !(c.rate >= 1 && c.rate <= 1000) || c.waiting < 1:
		return errors.New("-rate is from 1 to 1000, -waiting at least 1")
	}
	if c.isolated = getenv(isolatedVariable) != ""; !c.isolated {
		if done, err := runIsolated(ctx, args, out); done || err != nil {
			return err
		}
	}
	for c.seed == 0 {
		c.seed = rand.Uint64() >> 32 //nolint:gosec // no secret
	}
	if c.dir, err = os.MkdirTemp("/var/tmp", "chaos"); err != nil {
		return err
	}
	if err := os.Chmod(c.dir, 0o711); err != nil { //nolint:gosec // Postgres' user goes through it
		return err
	}
	if c.binaries == "" {
		c.binaries = filepath.Join(c.dir, "bin")
		_, _ = fmt.Fprintln(out, "Building ingest and tiktok-worker with the race detector, and nats-server …")
		err := errors.Join(
			launch.Build(ctx, c.binaries, "-race", "purchase-relay/cmd/ingest", "purchase-relay/cmd/tiktok-worker"),
			launch.Build(ctx, c.binaries, "github.com/nats-io/nats-server/v2"),
		)
		if err != nil {
			return err
		}
	}
	if err := runExperiment(ctx, c); err != nil || *keep {
		return err
	}
	return os.RemoveAll(c.dir)
}

// runIsolated runs this program again in its own process and mount namespaces. When it ends, the kernel ends
// everything that it started and unmounts its disks. False means that this machine does not permit
// namespaces.
func runIsolated(ctx context.Context, args []string, out io.Writer) (done bool, err error) {
	isolate := []string{"--fork", "--pid", "--mount-proc", "--kill-child"}
	probe := exec.CommandContext(ctx, "unshare", append(isolate, "true")...) //nolint:gosec // fixed arguments
	if probe.Run() != nil {
		return false, ctx.Err()
	}
	self, err := os.Executable()
	if err != nil {
		return false, err
	}
	p, err := process.Start(process.Command{
		Path: "unshare", Args: slices.Concat(isolate, []string{self}, args),
		Env: append(os.Environ(), isolatedVariable+"=1"), Output: out,
	})
	if err != nil {
		return false, err
	}
	defer context.AfterFunc(ctx, p.Kill)()
	<-p.Ended()
	if code := p.ExitCode(); code != 0 {
		return true, fmt.Errorf("exit code %d", code)
	}
	return true, nil
}

// experiment is one run of a stack under load and faults.
type experiment struct {
	config
	stack    *stack
	load     *load
	findings findings
	injected tally // faults, by kind
	skipped  tally
	began    time.Time
}

func (x *experiment) say(format string, args ...any) { _, _ = fmt.Fprintf(x.out, format+"\n", args...) }

// runExperiment prints a report. The error is errBroken after a broken promise, another one after a failure
// of the experiment itself.
func runExperiment(ctx context.Context, c config) (err error) {
	x := &experiment{config: c}
	x.say("%s", c.repeat())
	x.stack = &stack{
		dir: c.dir, binaries: c.binaries, findings: &x.findings, links: make(map[string]*faultproxy.Proxy),
	}
	defer func() { err = errors.Join(err, x.stack.stop()) }()
	if err := x.stack.start(ctx, c); err != nil {
		return err
	}
	x.began = time.Now()
	if c.mode == modeWiped {
		err = x.wipeOnce(ctx)
	} else {
		err = x.breakRandomly(ctx)
	}
	if err != nil {
		return err
	}
	if err := x.settle(ctx); err != nil {
		return err
	}
	x.say("The last purchase had ended after %.0f s", time.Since(x.began).Seconds())
	if err := x.verify(ctx); err != nil {
		return err
	}
	return x.report()
}

// repeat returns the command that repeats a run.
func (c config) repeat() string {
	if c.mode == modeWiped {
		return fmt.Sprintf("make chaos MODE=%s WAITING=%d", c.mode, c.waiting)
	}
	command := fmt.Sprintf("make chaos SEED=%d DURATION=%s MODE=%s RATE=%g GAP=%s",
		c.seed, c.duration, c.mode, c.rate, c.gap)
	if c.only != "" {
		command += " ONLY=" + c.only
	}
	return command
}

// breakRandomly sends purchases and injects the planned faults meanwhile. It returns when all webhooks are
// answered.
func (x *experiment) breakRandomly(ctx context.Context) error {
	s := x.stack
	kinds := catalogue(s, x.mode)
	if x.only != "" {
		only := strings.Split(x.only, ",")
		kinds = slices.DeleteFunc(kinds, func(k *kind) bool { return !slices.Contains(only, k.name) })
	}
	if len(kinds) == 0 {
		return fmt.Errorf("-only %s: the mode %s has no such fault on this machine", x.only, x.mode)
	}
	if s.noDisks != nil {
		x.say("disk-full is left out: %v", s.noDisks)
	}
	x.load = newLoad(x.seed, x.rate, x.duration)
	loadEnded := make(chan error, 1)
	go func() { loadEnded <- x.load.play(ctx, s) }()
	x.injectAll(ctx, kinds)
	s.heal()
	x.say("\nThe faults ended after %.0f s, with %d purchases at TikTok",
		time.Since(x.began).Seconds(), len(s.tiktok.Received()))
	err := <-loadEnded
	x.say("The last webhook was answered after %.0f s", time.Since(x.began).Seconds())
	return err
}

// wipeOnce queues many purchases while the workers are stopped, wipes the queue's store, and waits for all
// deliveries.
func (x *experiment) wipeOnce(ctx context.Context) error {
	s := x.stack
	for _, p := range s.workers {
		p.terminate()
	}
	x.load = newLoad(x.seed, 1, 0)
	for range x.waiting {
		x.load.add(draw(0, stripegen.NewCheckout().Live()))
	}
	if err := x.load.play(ctx, s); err != nil {
		return err
	}
	if err := x.awaitAll(ctx, "published"); err != nil {
		return err
	}
	x.say("%d purchases were published in %.1f s", x.waiting, time.Since(x.began).Seconds())
	s.nats.kill()
	if err := os.RemoveAll(s.store()); err != nil {
		return err
	}
	wiped := time.Now()
	for _, p := range append([]*part{s.nats}, s.workers...) {
		if err := p.start(ctx); err != nil {
			return err
		}
	}
	x.say("The queue's store was wiped and the server restarted")
	if err := x.awaitAll(ctx, "delivered"); err != nil {
		x.findings.add("%v", err)
	}
	x.say("All were delivered %.1f s later", time.Since(wiped).Seconds())
	return nil
}

// awaitAll waits until all purchases of modeWiped have a status.
func (x *experiment) awaitAll(ctx context.Context, status string) error {
	const count = `SELECT count(*) FROM purchases WHERE status = $1`
	var n []int
	var err error
	if await(ctx, func() bool {
		n, err = query(ctx, x.stack, pgx.RowTo[int], count, status)
		return err == nil && n[0] == x.waiting
	}) {
		return nil
	}
	return fmt.Errorf("purchases that are %s = %v, want %d: %w", status, n, x.waiting, err)
}
