// Command bench measures the product on this machine. Each figure is measured in turns with its baseline, in
// the same run: machines differ, ratios less so. The binaries run as processes of their own, with a private
// Postgres that syncs to disk, a real nats-server and the simulator of TikTok.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"purchase-relay/internal/testkit/pglocal"
	"purchase-relay/internal/testkit/try"
)

func main() {
	try.Main("bench", func(ctx context.Context) error { return run(ctx, os.Args[1:], os.Stdout, os.Stderr) })
}

// section is one part of the table. Its run starts what it measures, declares rows, and takes turns.
type section struct {
	name, about string
	run         func(ctx context.Context, b *bench)
}

// sections are in the order of the table.
func sections() []section {
	return []section{
		{"webhooks", "answered by ingest alone: each 200 follows its commit, fsync on", webhooks},
		{"one", "the time of a single purchase, step by step; one connection, everything running", one},
		{"whole", "everything on this machine: Postgres, ingest, nats-server, worker, TikTok, sender", whole},
		{"memory", "256 connections; a backlog, delivered beside new webhooks", memory},
		{"outage", "200 webhooks a second, evenly, while a neighbour is down", outage},
		{"drain", "a backlog to NATS, then to TikTok, answering after 5 ms, 4 slots, no rate limit", drain},
		{"million", "64 connections, on a ledger of years", million},
		{"growth", "a year is written, settled, pruned to 35 days, and written again; 64 connections", growth},
		{"dashboard", "complete responses on the ledger of years", dashboard},
		{"peer", "the same job in Go with River on Postgres alone, 64 connections; TikTok takes 50 ms", peer},
		{"node", "the usual Node handler (express, stripe, pg; TikTok is awaited), 64 connections", node},
		{"size", "the binaries", size},
	}
}

// bench is one run.
type bench struct {
	try.Scope // of the run, of a section, or of a measurement
	report

	root     string // of the checkout
	dir      string // of everything that the run writes; removed at the end
	rounds   int
	duration time.Duration // of one measurement
	million  int           // purchases on the large ledger; a tenth is the worker's backlog, a fifth a year's

	sections []section
	json     string // file of the figures
	profiles string // folder of profiles: nothing is measured then

	progress io.Writer
	declared []*measurement
	pg       *pglocal.Server
	large    string // URL of the large ledger, once it is filled
}

func run(ctx context.Context, args []string, out, progress io.Writer) error {
	b, err := parse(args, out, progress)
	if err != nil {
		return err
	}
	return b.Scoped(func() {
		b.prepare(ctx)
		if b.profiles != "" {
			b.writeProfiles(ctx)
		} else {
			b.measure(ctx)
		}
	})
}

func parse(args []string, out, progress io.Writer) (*bench, error) {
	var names []string
	for _, s := range sections() {
		names = append(names, s.name)
	}
	b := &bench{report: report{When: time.Now().UTC().Truncate(time.Second), out: out}, progress: progress}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(out)
	only := flags.String("only", strings.Join(names, ","), "sections to run, comma-separated")
	short := flags.Bool("short", false, "a quick look: one round of half a second each and small ledgers, "+
		"unless other flags say otherwise; the figures mean little")
	flags.StringVar(&b.json, "json", "", "also write the figures to this file")
	flags.StringVar(&b.profiles, "profiles", "", "only write both binaries' profiles under load to this folder")
	flags.IntVar(&b.rounds, "rounds", 5, "how often each measurement is made, in turns with its baseline")
	flags.DurationVar(&b.duration, "for", 3*time.Second, "duration of one measurement")
	flags.IntVar(&b.million, "million", 1_000_000,
		"purchases on the large ledger; a tenth of them is queued, a fifth is a year's")
	err := flags.Parse(args)
	if err == nil && *short {
		b.rounds, b.duration, b.million = 1, 500*time.Millisecond, 10_000
		err = flags.Parse(args) // the other flags win
	}
	if err != nil {
		return nil, err
	}
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if b.rounds < 1 || b.duration <= 0 || b.million < 1 {
		return nil, errors.New("-rounds, -for and -million must be greater than 0")
	}
	wanted := strings.Split(*only, ",")
	for _, name := range wanted {
		if !slices.Contains(names, name) {
			return nil, fmt.Errorf("unknown section %q; known are %s", name, strings.Join(names, ", "))
		}
	}
	b.sections = slices.DeleteFunc(sections(), func(s section) bool { return !slices.Contains(wanted, s.name) })
	return b, nil
}

// prepare finds the checkout, builds what is measured, and starts Postgres.
func (b *bench) prepare(ctx context.Context) {
	mod := try.Must(exec.CommandContext(ctx, "go", "env", "GOMOD").Output())
	b.root = filepath.Dir(strings.TrimSpace(string(mod)))
	b.dir = try.Must(os.MkdirTemp("", "bench"))
	b.OnEnd(func() error { return os.RemoveAll(b.dir) })
	var overlay []string
	if b.profiles != "" {
		overlay = []string{"-overlay", b.profilerOverlay()}
	}
	b.build(ctx, ".", append(overlay, "./cmd/ingest", "./cmd/tiktok-worker", "./internal/tools/tiktoksim",
		"github.com/nats-io/nats-server/v2")...)
	try.Check(pglocal.Ensure(ctx, b.progress))
	b.startPostgres(ctx)
}

// build compiles programs of the module in a folder of the checkout, static as by `make build`.
func (b *bench) build(ctx context.Context, folder string, args ...string) {
	b.announce("building")
	args = append([]string{"build", "-trimpath", "-ldflags", "-s -w", "-o", b.dir + "/"}, args...)
	build := exec.CommandContext(ctx, "go", args...) //nolint:gosec // our own sources
	build.Dir, build.Env = filepath.Join(b.root, folder), append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		try.Check(fmt.Errorf("go build: %w\n%.2000s", err, out))
	}
}

// measure runs the sections and writes the report. The failure of one section does not cost the others'
// figures.
func (b *bench) measure(ctx context.Context) {
	describe := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty")
	describe.Dir = b.root
	version, _ := describe.Output() // empty without git
	b.Conditions = append([]string{
		"version " + strings.TrimSpace(string(version)),
		fmt.Sprintf("%d cores", runtime.NumCPU()), runtime.GOOS + "/" + runtime.GOARCH, runtime.Version(),
		fmt.Sprintf("%d rounds of %s", b.rounds, b.duration),
	}, b.Conditions...)
	_, _ = fmt.Fprintf(b.out, "purchase-relay, %s\n  %s\nMedians, lowest … highest of the rounds; "+
		"ratios are taken round by round; [target: met or not].\n",
		b.When.Format(time.RFC3339), strings.Join(b.Conditions, " · "))
	var errs []error
	for _, s := range b.sections {
		b.section, b.declared = s.name, nil
		_, _ = fmt.Fprintf(b.out, "\n%s: %s\n", s.name, s.about)
		err := b.Scoped(func() { s.run(ctx, b) })
		b.printRows(func(r *row) bool { return r.Section == s.name })
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", s.name, err))
			_, _ = fmt.Fprintf(b.out, "  failed: %v\n", err)
		}
		if ctx.Err() != nil {
			break
		}
	}
	_, _ = fmt.Fprintln(b.out, "\nTargets")
	targets, met := b.printRows(func(r *row) bool { return r.Target != "" })
	_, _ = fmt.Fprintf(b.out, "  %d of %d met\n", met, targets)
	if b.json != "" {
		b.save(b.json)
	}
	try.Check(errors.Join(errs...))
}

// measurement runs once a round. Its row gets the rate of what it measures, or a time in ms.
type measurement struct {
	*row
	run func(ctx context.Context) // what it starts is stopped at its end

	answered int // responses in all rounds
}

// measurement declares a measurement for the next call of turns.
func (b *bench) measurement(name, unit string) *measurement {
	m := &measurement{row: b.row(name, unit)}
	b.declared = append(b.declared, m)
	return m
}

// turns runs what was declared in turns, A B C A B C: a disturbance of the machine affects all of them.
func (b *bench) turns(ctx context.Context) {
	for round := range b.rounds {
		for _, m := range b.declared {
			b.announce("round %d of %d: %s", round+1, b.rounds, m.Name)
			// Each measurement begins without dirty pages of the one before.
			execute(ctx, b.pg.URL("postgres"), "CHECKPOINT")
			if err := b.Scoped(func() { m.run(ctx) }); err != nil {
				try.Check(fmt.Errorf("%s: %w", m.Name, err))
			}
		}
	}
	b.declared = nil
}

func (b *bench) announce(format string, args ...any) {
	_, _ = fmt.Fprintf(b.progress, "  … "+format+"\n", args...)
}
