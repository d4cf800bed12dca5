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
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/testkit/stripegen"
)

// config is a rehearsal's flags.
type config struct {
	seed     uint64        // the same one draws the same purchases and the same faults
	duration time.Duration // of the purchases and of the faults
	mode     string
	rate     float64       // purchases a second
	gap      time.Duration // from one fault to the next, on average
	only     []string      // kinds of faults; empty: all of the mode
	waiting  int           // in modeWiped: purchases that wait
	binaries string        // the folder of ingest, tiktok-worker and nats-server
	dir      string        // for data and logs; every user may enter it
	out      io.Writer
}

// The modes.
const (
	modeAll   = "all"   // every fault there is
	modeKept  = "kept"  // only faults by which the queue loses nothing, and no sweeper: what is queued must not get lost on its way
	modeWiped = "wiped" // no random faults: the queue's store is wiped once, with many purchases waiting
)

func modes() []string { return []string{modeAll, modeKept, modeWiped} }

// apartVariable is set in the child that runs in namespaces of its own.
const apartVariable = "PURCHASE_RELAY_CHAOS_APART"

func run(ctx context.Context, args []string, getenv func(string) string, out io.Writer) (err error) {
	c := config{out: out}
	flags := flag.NewFlagSet("chaos", flag.ContinueOnError)
	flags.SetOutput(out)
	flags.Uint64Var(&c.seed, "seed", 0, "repeats the faults and the purchases of a run that told this one; 0: new ones")
	flags.DurationVar(&c.duration, "duration", time.Minute, "how long things are broken; coming to rest takes up to a minute more")
	flags.StringVar(&c.mode, "mode", modeAll, strings.Join(modes(), ", ")+": every fault; only those by which the queue loses nothing, without a sweeper; one wiped store")
	flags.Float64Var(&c.rate, "rate", 30, "purchases a second")
	flags.DurationVar(&c.gap, "gap", 700*time.Millisecond, "from one fault to the next, on average")
	flags.IntVar(&c.waiting, "waiting", 10_000, "purchases that wait when the store is wiped, in the mode wiped")
	flags.StringVar(&c.binaries, "binaries", "", "a folder with ingest, tiktok-worker and nats-server; empty: built with the race detector")
	only := flags.String("only", "", "kinds of faults, comma-separated, as the report names them; empty: all of the mode")
	keep := flags.Bool("keep", false, "keep the logs of a good run, too")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	switch {
	case !slices.Contains(modes(), c.mode):
		return fmt.Errorf("-mode is one of %s", strings.Join(modes(), ", "))
	case c.duration < time.Second || !(c.rate >= 1 && c.rate <= 1000) || c.gap < 10*time.Millisecond || c.waiting < 1:
		return errors.New("-duration is at least 1s, -rate from 1 to 1000, -gap at least 10ms, -waiting at least 1")
	}
	if *only != "" {
		c.only = strings.Split(*only, ",")
	}
	if getenv(apartVariable) == "" {
		if err := goApart(ctx, args, out); !errors.Is(err, syscall.EPERM) && !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
	} else if err := mountProc(); err != nil {
		return fmt.Errorf("show our own processes under /proc: %w", err)
	}
	for c.seed == 0 {
		c.seed = rand.Uint64() >> 32 //nolint:gosec // a seed to play with, no secret
	}
	if c.dir, err = os.MkdirTemp("/var/tmp", "chaos"); err != nil {
		return err
	}
	if err := os.Chmod(c.dir, 0o711); err != nil { //nolint:gosec // Postgres' user goes through it
		return err
	}
	if c.binaries == "" {
		c.binaries = filepath.Join(c.dir, "bin")
		if err := build(ctx, c.binaries, out); err != nil {
			return err
		}
	}
	if err := rehearse(ctx, c); err != nil || *keep {
		return err
	}
	return os.RemoveAll(c.dir)
}

// goApart runs the program again in namespaces of its own, so that nothing that it started or mounted
// outlives it. The error is EPERM or ErrUnsupported where that is not possible.
func goApart(ctx context.Context, args []string, out io.Writer) error {
	attributes := apart()
	self, err := os.Executable()
	if attributes == nil || err != nil {
		return errors.ErrUnsupported
	}
	cmd := exec.CommandContext(ctx, self, args...) //nolint:gosec // ourselves
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.Env, cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = append(os.Environ(), apartVariable+"=1"), out, os.Stderr, attributes
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

// errBroken is a broken promise; the report says which.
var errBroken = errors.New("a promise was broken")

// rehearsal is one run of a stack under load and faults.
type rehearsal struct {
	config
	stack    *stack
	load     *load
	findings findings
	made     tally // faults, by kind and target
	missed   tally // faults that found their target away
}

func (r *rehearsal) say(format string, args ...any) { _, _ = fmt.Fprintf(r.out, format+"\n", args...) }

// rehearse prints a report. It returns errBroken when a promise was broken, and another error when the
// rehearsal itself failed.
func rehearse(ctx context.Context, c config) (err error) {
	r := &rehearsal{config: c}
	r.say("%s", repeat(c))
	r.stack, err = newStack(ctx, c, &r.findings)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.stack.stop()) }()
	if c.mode == modeWiped {
		return r.wiped(ctx)
	}
	for _, sentence := range r.stack.missing {
		r.say("%s", sentence)
	}
	kinds := catalogue(r.stack, c.mode)
	if len(c.only) > 0 {
		kinds = slices.DeleteFunc(kinds, func(k *kind) bool { return !slices.Contains(c.only, k.name) })
	}
	if len(kinds) == 0 {
		return fmt.Errorf("of %s, no kind of fault is made here in this mode", strings.Join(c.only, ", "))
	}
	r.load = newLoad(c.seed, c.rate, c.duration)
	began := time.Now()
	var group sync.WaitGroup
	loadEnded := make(chan error, 1)
	group.Go(func() { loadEnded <- r.load.play(ctx, r.stack) })
	r.breakThings(ctx, kinds)
	reached := len(r.stack.tiktok.Received())
	r.stack.heal()
	broke := time.Since(began)
	group.Wait()
	if err := <-loadEnded; err != nil {
		return err
	}
	answered := time.Since(began)
	if err := r.settle(ctx); err != nil {
		return err
	}
	settled := time.Since(began)
	if err := r.verify(ctx); err != nil {
		return err
	}
	r.say("\nFaults for %.0f s, and %d purchases at TikTok by then; the last webhook was answered after %.0f s, the last purchase had ended after %.0f s.",
		broke.Seconds(), reached, answered.Seconds(), settled.Seconds())
	return r.report()
}

// repeat returns the command that repeats a rehearsal.
func repeat(c config) string {
	if c.mode == modeWiped {
		return fmt.Sprintf("make chaos MODE=%s WAITING=%d", c.mode, c.waiting)
	}
	command := fmt.Sprintf("make chaos SEED=%d DURATION=%s MODE=%s RATE=%g GAP=%s", c.seed, c.duration, c.mode, c.rate, c.gap)
	if len(c.only) > 0 {
		command += " ONLY=" + strings.Join(c.only, ",")
	}
	return command
}

// breakThings makes the planned faults, each when it is due, and returns after the last one.
func (r *rehearsal) breakThings(ctx context.Context, kinds []*kind) {
	began := time.Now()
	var acting sync.WaitGroup
	defer acting.Wait()
	for _, f := range plan(rand.New(rand.NewPCG(r.seed, 2)), kinds, r.duration, r.gap) { //nolint:gosec // to be repeated, no secret
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Until(began.Add(f.at))):
		}
		acting.Go(func() {
			note := fmt.Sprintf("%6.1fs  %s %s", f.at.Seconds(), f.kind.name, f.target)
			switch err := f.kind.act(ctx, f); {
			case errors.Is(err, errAway):
				r.missed.add(f.kind.name, f.target)
				r.say("%s: %v", note, err)
			case err != nil && ctx.Err() == nil:
				r.findings.add("the harness failed at %s %s: %v", f.kind.name, f.target, err)
			default:
				r.made.add(f.kind.name, f.target)
				r.say("%s, until %.1fs", note, time.Since(began).Seconds())
			}
		})
	}
	select {
	case <-ctx.Done():
	case <-time.After(time.Until(began.Add(r.duration))):
	}
}

// wiped lets many purchases wait for the workers, wipes the queue's store, and counts until all are
// delivered.
func (r *rehearsal) wiped(ctx context.Context) error {
	s := r.stack
	for _, p := range s.workers {
		p.terminate()
	}
	r.load = &load{sales: make(map[string]*sale), events: make(map[string]*sale), seed: r.seed, taken: make(map[string]string)}
	random := rand.New(rand.NewPCG(r.seed, 3)) //nolint:gosec // to be repeated, no secret
	for range r.waiting {
		r.load.add(draw(random.Float64()*0.6, stripegen.NewCheckout().Live()))
	}
	began := time.Now()
	if err := r.load.play(ctx, s); err != nil {
		return err
	}
	if err := r.awaitCount(ctx, "published", r.waiting); err != nil {
		return err
	}
	r.say("%d purchases were taken and published in %.1f s", r.waiting, time.Since(began).Seconds())
	s.queue.kill()
	if err := os.RemoveAll(s.store()); err != nil {
		return err
	}
	began = time.Now()
	if err := s.queue.start(ctx); err != nil {
		return err
	}
	r.say("The queue's store was wiped and the server started anew")
	for _, p := range s.workers {
		if err := p.start(ctx); err != nil {
			return err
		}
	}
	if err := r.awaitCount(ctx, "delivered", r.waiting); err != nil {
		r.findings.add("%v", err)
	}
	r.say("All had been delivered %.1f s later", time.Since(began).Seconds())
	if err := r.settle(ctx); err != nil {
		return err
	}
	if err := r.verify(ctx); err != nil {
		return err
	}
	return r.report()
}

func (r *rehearsal) awaitCount(ctx context.Context, status string, want int) error {
	var n []int
	var err error
	if await(ctx, func() bool {
		n, err = query(ctx, r.stack, pgx.RowTo[int], `SELECT count(*) FROM purchases WHERE status = $1`, status)
		return err == nil && n[0] == want
	}) {
		return nil
	}
	return fmt.Errorf("%v of %d purchases are %s: %w", n, want, status, err)
}
