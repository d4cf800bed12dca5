// Package chaos breaks everything around the product and counts afterwards. Two ingests and three workers, the real binaries, run
// as processes beside a real Postgres, a real nats-server and the strict simulator of TikTok; purchases come in as Stripe sends
// them, each again until it is taken; and faults, drawn from a seed, kill, freeze, wipe, fill, cut and silence one part after the
// other, often several at a time. When all faults have ended, everything must come to its end with no hand laid on:
//
//   - every webhook that was answered 200 is on the ledger, with its profile and the right status;
//   - every paid purchase has ended, and every delivered one is at TikTok;
//   - nothing is at TikTok that was not paid, and each event_id has one body there, however often it was repeated;
//   - no outcome was counted twice, nothing panicked or raced, no program ended by itself, and each replica works alone.
package chaos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"
)

// Config says what to do.
type Config struct {
	Seed     uint64        // the same one draws the same purchases and the same faults
	Duration time.Duration // of the purchases and of the faults; what comes after them takes as long as it takes
	Mode     string        // see Modes
	Rate     float64       // purchases a second
	Gap      time.Duration // from one fault to the next, on average
	Only     []string      // kinds of faults; empty: all of the mode
	Waiting  int           // in the mode ModeWiped: purchases that wait
	Binaries string        // the folder of ingest, tiktok-worker and nats-server
	Dir      string        // for data and logs; it can be entered by everybody
	Out      io.Writer
}

// The modes.
const (
	ModeAll   = "all"   // every fault there is
	ModeKept  = "kept"  // only faults by which the queue loses nothing, and no sweeper: what is queued must not get lost on its way
	ModeWiped = "wiped" // no random faults: the queue's store is wiped once, with many purchases waiting
)

// Modes lists the modes.
func Modes() []string { return []string{ModeAll, ModeKept, ModeWiped} }

// ErrBroken says that a promise was broken; what and where stands in the report.
var ErrBroken = errors.New("a promise was broken")

// run is one run.
type run struct {
	Config
	stack    *stack
	load     *load
	findings findings
	made     tally // faults, by kind and target
	missed   tally // faults that found their target away
}

func (r *run) say(format string, args ...any) { _, _ = fmt.Fprintf(r.Out, format+"\n", args...) }

// Run does one run and prints its report. It returns ErrBroken when a promise was broken, and another error when the run itself
// could not be done.
func Run(ctx context.Context, c Config) (err error) {
	r := &run{Config: c}
	r.say("%s", repeat(c))
	r.stack, err = newStack(ctx, c, &r.findings)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.stack.stop()) }()
	if c.Mode == ModeWiped {
		return r.wiped(ctx)
	}
	for _, sentence := range r.stack.missing {
		r.say("%s", sentence)
	}
	kinds := catalogue(r.stack, c.Mode)
	if len(c.Only) > 0 {
		kinds = slices.DeleteFunc(kinds, func(k *kind) bool { return !slices.Contains(c.Only, k.name) })
	}
	if len(kinds) == 0 {
		return fmt.Errorf("of %s, no kind of fault is made here in this mode", strings.Join(c.Only, ", "))
	}
	r.load = newLoad(c.Seed, c.Rate, c.Duration)
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

// repeat is the command that repeats a run.
func repeat(c Config) string {
	if c.Mode == ModeWiped {
		return fmt.Sprintf("make chaos MODE=%s WAITING=%d", c.Mode, c.Waiting)
	}
	command := fmt.Sprintf("make chaos SEED=%d DURATION=%s MODE=%s RATE=%g GAP=%s", c.Seed, c.Duration, c.Mode, c.Rate, c.Gap)
	if len(c.Only) > 0 {
		command += " ONLY=" + strings.Join(c.Only, ",")
	}
	return command
}

// breakThings makes the planned faults, each when it is due, and returns when the last one has ended.
func (r *run) breakThings(ctx context.Context, kinds []*kind) {
	began := time.Now()
	var acting sync.WaitGroup
	defer acting.Wait()
	for _, f := range plan(rand.New(rand.NewPCG(r.Seed, 2)), kinds, r.Duration, r.Gap) { //nolint:gosec // to be repeated, no secret
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
	case <-time.After(time.Until(began.Add(r.Duration))):
	}
}
