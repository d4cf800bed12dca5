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
)

// section is one part of the table. It measures by b.turns and adds its rows to b.report.
type section struct {
	name, about string
	run         func(ctx context.Context, b *bench) error
}

// sections are in the order of the table.
func sections() []section {
	return []section{
		{"webhooks", "answered by the real ingest alone: each 200 follows its commit, fsync on", webhooks},
		{"one", "where the time of a lone purchase goes, step by step; one connection, everything running", one},
		{"whole", "the whole way on this machine: Postgres, ingest, nats-server, worker, TikTok, and what sends the webhooks", whole},
		{"outage", "200 webhooks a second, evenly, while a neighbour is down", outage},
		{"drain", "a backlog to TikTok, answering after 5 ms, 4 slots, no rate limit in the way", drain},
		{"million", "64 connections, on a ledger of years", million},
		{"growth", "a year of purchases is written, ended, pruned to 35 days, and written again; 64 connections", growth},
		{"dashboard", "whole answers on the ledger of years", dashboard},
		{"neighbours", "what NATS and the simulator of TikTok can do by themselves", neighbours},
		{"node", "the usual Node handler (express, stripe, pg; TikTok is awaited), 64 connections", node},
		{"size", "the binaries", size},
	}
}

// bench is one run.
type bench struct {
	root     string // of the checkout
	dir      string // of everything that the run leaves; removed at the end
	rounds   int
	duration time.Duration // of one measurement
	latency  time.Duration // TikTok's, simulated
	million  int           // purchases on the large ledger
	backlog  int           // purchases waiting for the worker
	single   int           // of them, for one event a request

	report *report
	told   io.Writer // what is being done at the moment
	pg     *pglocal.Server
	large  string // the large ledger's URL, once it is filled

	pictures []bar
}

// run measures what is asked for and prints a table.
func run(ctx context.Context, args []string, out, told io.Writer) (err error) {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(out)
	b := bench{report: &report{When: time.Now().UTC().Truncate(time.Second), out: out}, told: told}
	only := flags.String("only", "", "sections to run, comma-separated: "+strings.Join(names(), ", ")+"; empty: all")
	short := flags.Bool("short", false, "a quick look: one round of half a second each, small ledgers, where no flag says otherwise; the figures are worth little")
	file := flags.String("json", "", "write the figures to this file, too")
	folder := flags.String("profiles", "", "measure nothing, but write profiles of ingest and the worker under load into this folder")
	picture := flags.String("svg", "", "draw where the time goes (sections one and whole) into this file")
	flags.IntVar(&b.rounds, "rounds", 5, "how often each measurement is made, in turn with those that it is compared with")
	flags.DurationVar(&b.duration, "for", 3*time.Second, "how long one measurement takes")
	flags.DurationVar(&b.latency, "latency", 20*time.Millisecond, "TikTok's, simulated, give or take half of it")
	flags.IntVar(&b.million, "million", 1_000_000, "purchases on the large ledger")
	flags.IntVar(&b.backlog, "backlog", 100_000, "purchases waiting for the worker")
	flags.IntVar(&b.single, "single", 3_000, "purchases waiting for the worker that sends one a request")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return nil
	case err != nil:
		return err
	case flags.NArg() > 0:
		return fmt.Errorf("%q is no flag", flags.Arg(0))
	}
	if *short {
		if err := setUnset(flags, map[string]string{"rounds": "1", "for": "500ms", "million": "5000", "backlog": "3000", "single": "300"}); err != nil {
			return err
		}
	}
	if b.rounds < 1 || b.duration <= 0 || b.million < 1 || b.backlog < 1 || b.single < 1 {
		return errors.New("there is nothing to measure in no time or with nothing")
	}
	chosen, err := choose(*only)
	if err != nil {
		return err
	}
	if err := b.prepare(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	if *folder != "" {
		return b.profiles(ctx, *folder)
	}
	b.introduce(ctx)
	for _, s := range chosen {
		b.report.begin(s)
		if err := s.run(ctx, &b); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	b.report.end()
	if *file != "" {
		err = b.report.save(*file)
	}
	if *picture != "" {
		err = errors.Join(err, draw(*picture, b.pictures))
	}
	return err
}

// setUnset sets flags that were not given.
func setUnset(flags *flag.FlagSet, values map[string]string) error {
	flags.Visit(func(f *flag.Flag) { delete(values, f.Name) })
	for name, value := range values {
		if err := flags.Set(name, value); err != nil {
			return err
		}
	}
	return nil
}

func names() (list []string) {
	for _, s := range sections() {
		list = append(list, s.name)
	}
	return list
}

func choose(only string) ([]section, error) {
	if only == "" {
		return sections(), nil
	}
	wanted := strings.Split(only, ",")
	for _, name := range wanted {
		if !slices.Contains(names(), name) {
			return nil, fmt.Errorf("there is no section %q, only %s", name, strings.Join(names(), ", "))
		}
	}
	return slices.DeleteFunc(sections(), func(s section) bool { return !slices.Contains(wanted, s.name) }), nil
}

// prepare finds the checkout, builds what is measured, as it is built for production, and starts the one Postgres.
func (b *bench) prepare(ctx context.Context) error {
	mod, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return fmt.Errorf("go env: %w", err)
	}
	b.root = filepath.Dir(strings.TrimSpace(string(mod)))
	if b.dir, err = os.MkdirTemp("", "bench"); err != nil {
		return err
	}
	if err := b.build(ctx, "./cmd/ingest", "./cmd/tiktok-worker", "./internal/tools/tiktoksim", "github.com/nats-io/nats-server/v2"); err != nil {
		return errors.Join(err, b.close())
	}
	if err := pglocal.Ensure(ctx, b.told); err != nil {
		return errors.Join(err, b.close())
	}
	if err := b.startPostgres(ctx); err != nil {
		return errors.Join(err, b.close())
	}
	return nil
}

// build compiles static binaries without the race detector, as `make build` does; what are flags and packages.
func (b *bench) build(ctx context.Context, what ...string) error {
	b.tell("building")
	args := append([]string{"build", "-trimpath", "-ldflags", "-s -w", "-o", b.dir + string(filepath.Separator)}, what...)
	cmd := exec.CommandContext(ctx, "go", args...) //nolint:gosec // our own sources
	cmd.Dir, cmd.Env = b.root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	return nil
}

func (b *bench) close() (err error) {
	if b.pg != nil {
		err = b.pg.Stop()
	}
	return errors.Join(err, os.RemoveAll(b.dir))
}

// introduce prints what a reader of the figures has to know.
func (b *bench) introduce(ctx context.Context) {
	if out, err := exec.CommandContext(ctx, "git", "-C", b.root, "describe", "--tags", "--always", "--dirty").Output(); err == nil { //nolint:gosec // our own folder
		b.report.Version = strings.TrimSpace(string(out))
	}
	b.report.Machine = append([]fact{
		{"cores", fmt.Sprint(runtime.NumCPU())},
		{"system", runtime.GOOS + "/" + runtime.GOARCH},
		{"Go", runtime.Version()},
		{"load before", loadAverage()},
	}, b.report.Machine...)
	b.report.Settings = append(b.report.Settings, fact{"rounds", fmt.Sprint(b.rounds)}, fact{"one measurement", b.duration.String()},
		fact{"TikTok answers after", b.latency.String()})
	_, _ = fmt.Fprintf(b.report.out, "purchase-relay %s, %s\n", b.report.Version, b.report.When.Format(time.RFC3339))
	for _, facts := range [][]fact{b.report.Machine, b.report.Settings} {
		for i, f := range facts {
			separator := " · "
			if i == 0 {
				separator = "  "
			}
			_, _ = fmt.Fprintf(b.report.out, "%s%s %s", separator, f.Name, f.Value)
		}
		_, _ = fmt.Fprintln(b.report.out)
	}
	_, _ = fmt.Fprintf(b.report.out, "Medians, lowest … highest of the rounds; ratios are taken round by round; [target: met or not].\n")
}

// turns measures contenders in turn, round after round, A B C A B C: what disturbs the machine for a while disturbs all of
// them.
func (b *bench) turns(ctx context.Context, contenders ...contender) error {
	for round := range b.rounds {
		for _, c := range contenders {
			b.tell("round %d of %d: %s", round+1, b.rounds, c.name)
			if err := b.settle(ctx); err != nil {
				return err
			}
			if err := c.measure(ctx); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
		}
	}
	return nil
}

// contender is measured once a round; measure appends to its series.
type contender struct {
	name    string
	measure func(ctx context.Context) error
}

func (b *bench) tell(format string, args ...any) {
	_, _ = fmt.Fprintf(b.told, "  … "+format+"\n", args...)
}
