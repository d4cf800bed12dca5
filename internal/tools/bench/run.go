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

// section is one part of the table. Its run starts what it measures, calls bench.turns, and adds rows to
// bench.report.
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
		{"outage", "200 webhooks a second, evenly, while a neighbour is down", outage},
		{"drain", "a backlog to TikTok, answering after 5 ms, 4 slots, no rate limit", drain},
		{"million", "64 connections, on a ledger of years", million},
		{"growth", "a year is written, settled, pruned to 35 days, and written again; 64 connections", growth},
		{"dashboard", "complete responses on the ledger of years", dashboard},
		{"neighbours", "limits of NATS and of TikTok's simulator", neighbours},
		{"peer", "the same job in Go with River on Postgres alone, 64 connections; TikTok takes 50 ms", peer},
		{"node", "the usual Node handler (express, stripe, pg; TikTok is awaited), 64 connections", node},
		{"size", "the binaries", size},
	}
}

// bench is one run.
type bench struct {
	try.Scope // of the run, of a section, or of a measurement

	root     string // of the checkout
	dir      string // of everything that the run writes; removed at the end
	rounds   int
	duration time.Duration // of one measurement
	latency  time.Duration // of TikTok's simulator
	million  int           // purchases on the large ledger
	backlog  int           // purchases queued for the worker
	single   int           // the same, for a worker that sends one event a request

	sections []section
	json     string // file of the figures
	svg      string // file of the picture
	profiles string // folder of profiles: nothing is measured then

	report   *report
	progress io.Writer
	pg       *pglocal.Server
	large    string // URL of the large ledger, once it is filled
	pictures []bar
}

func run(ctx context.Context, args []string, out, progress io.Writer) error {
	b, err := parse(args, out)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	b.progress = progress
	return b.Scoped(func() {
		b.prepare(ctx)
		if b.profiles != "" {
			b.writeProfiles(ctx)
		} else {
			b.measure(ctx)
		}
	})
}

func parse(args []string, out io.Writer) (*bench, error) {
	var names []string
	for _, s := range sections() {
		names = append(names, s.name)
	}
	b := &bench{report: &report{When: time.Now().UTC().Truncate(time.Second), out: out}}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(out)
	only := flags.String("only", strings.Join(names, ","), "sections to run, comma-separated")
	short := flags.Bool("short", false, "a quick look: one round of half a second each and small ledgers, "+
		"unless other flags say otherwise; the figures mean little")
	flags.StringVar(&b.json, "json", "", "also write the figures to this file")
	flags.StringVar(&b.svg, "svg", "", "draw where the time goes (sections one and whole) into this file")
	flags.StringVar(&b.profiles, "profiles", "", "only write both binaries' profiles under load to this folder")
	flags.IntVar(&b.rounds, "rounds", 5, "how often each measurement is made, in turns with its baseline")
	flags.DurationVar(&b.duration, "for", 3*time.Second, "duration of one measurement")
	flags.DurationVar(&b.latency, "latency", 20*time.Millisecond, "latency of the simulated TikTok, ± 50 %")
	flags.IntVar(&b.million, "million", 1_000_000, "purchases on the large ledger")
	flags.IntVar(&b.backlog, "backlog", 100_000, "purchases queued for the worker")
	flags.IntVar(&b.single, "single", 3_000, "purchases queued for the worker that sends one a request")
	err := flags.Parse(args)
	if err == nil && *short {
		b.rounds, b.duration, b.million, b.backlog, b.single = 1, 500*time.Millisecond, 5000, 3000, 300
		err = flags.Parse(args) // the other flags win
	}
	if err != nil {
		return nil, err
	}
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if b.rounds < 1 || b.duration <= 0 || b.million < 1 || b.backlog < 1 || b.single < 1 {
		return nil, errors.New("-rounds, -for, -million, -backlog and -single must be greater than 0")
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
	b.announce("building")
	// Static and without the race detector, as `make build` does.
	args := []string{
		"build", "-trimpath", "-ldflags", "-s -w", "-o", b.dir + "/",
		"./cmd/ingest", "./cmd/tiktok-worker", "./internal/tools/tiktoksim", "github.com/nats-io/nats-server/v2",
	}
	if b.profiles != "" {
		args = slices.Insert(args, 1, "-overlay", b.profilerOverlay())
	}
	build := exec.CommandContext(ctx, "go", args...) //nolint:gosec // our own sources
	build.Dir, build.Env = b.root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		try.Check(fmt.Errorf("go build: %w\n%s", err, out))
	}
	try.Check(pglocal.Ensure(ctx, b.progress))
	b.startPostgres(ctx)
}

// measure runs the sections and writes the report.
func (b *bench) measure(ctx context.Context) {
	describe := exec.CommandContext(ctx, "git", "describe", "--tags", "--always", "--dirty")
	describe.Dir = b.root
	version, _ := describe.Output() // empty without git
	b.report.Version = strings.TrimSpace(string(version))
	b.report.Machine = append([]fact{
		{"cores", fmt.Sprint(runtime.NumCPU())},
		{"system", runtime.GOOS + "/" + runtime.GOARCH},
		{"Go", runtime.Version()},
		{"load before", loadAverage()},
	}, b.report.Machine...)
	b.report.Settings = []fact{
		{"rounds", fmt.Sprint(b.rounds)},
		{"one measurement", b.duration.String()},
		{"TikTok's latency", b.latency.String()},
	}
	b.report.printHead()
	for _, s := range b.sections {
		b.report.begin(s)
		if err := b.Scoped(func() { s.run(ctx, b) }); err != nil {
			try.Check(fmt.Errorf("%s: %w", s.name, err))
		}
		b.report.endSection()
	}
	b.report.printTargets()
	if b.json != "" {
		b.report.save(b.json)
	}
	if b.svg != "" {
		draw(b.svg, b.pictures)
	}
}

// measurement runs once a round and appends to its series. What it starts is stopped at its end.
type measurement struct {
	name string
	run  func(ctx context.Context)
}

// turns runs measurements in turns, A B C A B C: a disturbance of the machine affects all of them.
func (b *bench) turns(ctx context.Context, measurements ...measurement) {
	for round := range b.rounds {
		for _, m := range measurements {
			b.announce("round %d of %d: %s", round+1, b.rounds, m.name)
			// Each measurement begins without dirty pages of the one before.
			execute(ctx, b.pg.URL("postgres"), "CHECKPOINT")
			if err := b.Scoped(func() { m.run(ctx) }); err != nil {
				try.Check(fmt.Errorf("%s: %w", m.name, err))
			}
		}
	}
}

func (b *bench) announce(format string, args ...any) {
	_, _ = fmt.Fprintf(b.progress, "  … "+format+"\n", args...)
}
