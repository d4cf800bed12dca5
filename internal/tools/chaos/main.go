// Command chaos breaks everything around the product and counts afterwards. It builds two ingests and three
// workers and runs them as processes beside a real Postgres, a real nats-server and the simulator of TikTok.
// Purchases arrive as Stripe sends them, each until it is accepted. Faults drawn from a seed kill, freeze,
// wipe, fill, cut and silence the parts, often several at the same time. After the last fault everything must
// finish without an operator:
//
//   - every webhook that was answered 200 is on the ledger, with its profile and the right status;
//   - every paid purchase has ended, and every delivered one is at TikTok;
//   - TikTok holds nothing unpaid, and one body for each event_id, however often it was repeated;
//   - no outcome was counted twice, nothing panicked or raced, no program exited on its own;
//   - each replica works alone.
package main

import (
	"context"
	"errors"
	"expvar"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"

	"purchase-relay/internal/testkit/faultproxy"
	"purchase-relay/internal/testkit/launch"
	"purchase-relay/internal/testkit/pglocal"
	"purchase-relay/internal/testkit/process"
	"purchase-relay/internal/testkit/stripegen"
	"purchase-relay/internal/testkit/tiktoksim"
	"purchase-relay/internal/testkit/try"
)

func main() {
	try.Main("chaos", func(ctx context.Context) error { return run(ctx, os.Args[1:], os.Stdout) })
}

func run(ctx context.Context, args []string, out io.Writer) error {
	x := &experiment{out: out, parts: make(map[string]*part), links: make(map[string]*faultproxy.Proxy)}
	flags := flag.NewFlagSet("chaos", flag.ContinueOnError)
	flags.SetOutput(out)
	flags.Uint64Var(&x.seed, "seed", 0, "repeats the run that printed it; 0: a new one")
	flags.DurationVar(&x.duration, "duration", time.Minute, "of the faults; settling takes up to a minute more")
	flags.BoolVar(&x.keepQueue, "keep-queue", false,
		"only faults that keep the queue's data, and no sweeper: a lost message stays lost")
	flags.Float64Var(&x.rate, "rate", 30, "purchases per second")
	flags.DurationVar(&x.gap, "gap", 700*time.Millisecond, "between two faults, on average")
	flags.StringVar(&x.only, "only", "", "kinds of faults, comma-separated; empty: all")
	flags.StringVar(&x.binaries, "binaries", "", "folder of the programs; empty: build them")
	if err := flags.Parse(args); err != nil {
		return err
	}
	switch {
	case x.duration < time.Second || x.gap < 10*time.Millisecond:
		return errors.New("-duration is at least 1s, -gap at least 10ms")
	case !(x.rate >= 1 && x.rate <= 1000):
		return errors.New("-rate is from 1 to 1000")
	}
	if os.Getpid() != 1 { // 1: the child in its own namespaces
		if done, err := runIsolated(ctx, args, out); done || err != nil {
			return err
		}
		x.noDisks = errors.New("a small file system would outlive this process: namespaces are not permitted")
	}
	for x.seed == 0 {
		x.seed = rand.Uint64() >> 32 //nolint:gosec // no secret
	}
	return x.Scoped(func() { x.run(ctx) })
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
		Path: "unshare", Args: slices.Concat(isolate, []string{self}, args), Env: os.Environ(), Output: out,
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

// experiment is one run of the product under load and faults.
type experiment struct {
	// The flags, see run. Empty binaries are built.
	seed           uint64
	duration, gap  time.Duration
	keepQueue      bool
	only, binaries string
	rate           float64

	try.Scope
	out      io.Writer
	dir      string // data and logs; every user may enter it
	noDisks  error  // why the stores have no small disks
	began    time.Time
	parts    map[string]*part // all of them, by name
	postgres *part
	nats     *part
	ingests  []*part
	workers  []*part
	tiktok   *tiktoksim.Simulator
	links    map[string]*faultproxy.Proxy // "from→to"; from stripe to each ingest, too
	database *pglocal.Server

	// The experiment's own connections, past the proxies.
	pool *pgxpool.Pool
	js   jetstream.JetStream

	sales    []*sale           // in the order of their creation
	accepted map[string]string // body of the answer 2xx, by event
	answers  expvar.Map        // webhooks by status
	injected expvar.Map        // faults by kind
	skipped  expvar.Map
	refused  atomic.Bool // a fault refusedOnce was injected
	broken   expvar.Map  // promises, by the format of their finding
}

func (x *experiment) say(format string, args ...any) { _, _ = fmt.Fprintf(x.out, format+"\n", args...) }

// find reports a broken promise, and of each format the first few.
func (x *experiment) find(format string, args ...any) {
	x.broken.Add(format, 1)
	if count, ok := x.broken.Get(format).(*expvar.Int); ok && count.Value() <= 5 {
		x.say("BROKEN: "+format, args...)
	}
}

// run fails after a broken promise, and after a failure of the experiment itself.
func (x *experiment) run(ctx context.Context) {
	x.say("%s", x.repeat())
	x.dir = try.Must(os.MkdirTemp("/var/tmp", "chaos"))
	good := false
	x.OnEnd(func() error {
		if !good {
			x.say("Logs: %s", x.dir)
			return nil
		}
		return os.RemoveAll(x.dir)
	})
	try.Check(os.Chmod(x.dir, 0o711)) //nolint:gosec // Postgres' user goes through it
	if x.binaries == "" {
		x.binaries = filepath.Join(x.dir, "bin")
		x.say("Building ingest and tiktok-worker with the race detector, and nats-server …")
		try.Check(launch.Build(ctx, x.binaries, "-race", "purchase-relay/cmd/..."))
		try.Check(launch.Build(ctx, x.binaries, "github.com/nats-io/nats-server/v2"))
	}
	x.start(ctx)
	x.began = time.Now()
	x.breakRandomly(ctx)
	x.settle(ctx)
	x.say("The last purchase had ended after %.0f s", time.Since(x.began).Seconds())
	x.verify(ctx)
	x.say("\nFaults injected:      %s", &x.injected)
	x.say("Skipped, target busy: %s", &x.skipped)
	x.say("Webhooks by status:   %s", &x.answers)
	if found := x.broken.String(); found != "{}" {
		x.say("\nBROKEN: %s\nRepeat it: %s", found, x.repeat())
		try.Check(errors.New("a promise was broken")) // the report names it
	}
	x.say("\nNothing was lost, nothing doubled, nothing is left. Repeat it: %s", x.repeat())
	good = true
}

// repeat returns the command that repeats a run.
func (x *experiment) repeat() string {
	return fmt.Sprintf("make chaos SEED=%d DURATION=%s KEEP_QUEUE=%t RATE=%g GAP=%s ONLY=%s",
		x.seed, x.duration, x.keepQueue, x.rate, x.gap, x.only)
}

// breakRandomly sends purchases and injects the planned faults meanwhile. It returns when all webhooks are
// answered.
func (x *experiment) breakRandomly(ctx context.Context) {
	kinds := x.catalogue()
	if x.only != "" {
		only := strings.Split(x.only, ",")
		kinds = slices.DeleteFunc(kinds, func(k *kind) bool { return !slices.Contains(only, k.name) })
	}
	if len(kinds) == 0 {
		try.Check(fmt.Errorf("-only %s: this run has no such fault on this machine", x.only))
	}
	if x.noDisks != nil {
		x.say("disk-full is left out: %v", x.noDisks)
	}
	delay := min(2*time.Second, x.duration/5)
	x.sales = newSales(x.seed, int(x.rate*(x.duration-delay).Seconds()))
	disorder := stripegen.Disorder{
		Seed: x.seed, Every: time.Duration(float64(time.Second) / x.rate), Delay: delay,
		Reorder: 0.1, Duplicates: 0.2,
	}
	answered := make(chan error, 1)
	go func() { answered <- x.send(ctx, disorder) }()
	x.injectAll(ctx, kinds)
	for _, link := range x.links {
		link.Set(faultproxy.Fault{}) // half-open connections stay so: the product must detect them
	}
	x.tiktok.Clear()
	x.say("\nThe faults ended after %.0f s, with %d purchases at TikTok",
		time.Since(x.began).Seconds(), len(x.tiktok.Received()))
	try.Check(<-answered)
	x.say("The last webhook was answered after %.0f s", time.Since(x.began).Seconds())
}
