package main

import (
	"context"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/testkit/freeport"
	"purchase-relay/internal/testkit/try"
)

//go:embed pgbench/*.sql
var pgbenchScripts embed.FS

// samplePurchase has every match key that order has.
func samplePurchase(id string, at time.Time) purchase.Purchase {
	amount, c := int64(2999), order()
	return purchase.Purchase{
		ID: id, Livemode: true, At: at, AmountMinor: &amount, Currency: "usd",
		Keys: purchase.MatchKeys{
			Email: purchase.HashEmail(*c.Email), Phone: purchase.HashPhone(*c.Phone),
			ExternalID: purchase.HashExternalID(id), TTCLID: c.Metadata["ttclid"], TTP: c.Metadata["ttp"],
			IP: c.Metadata["client_ip"], UserAgent: c.Metadata["user_agent"],
			PageURL: c.Metadata["page_url"], Referrer: c.Metadata["referrer"],
		},
	}
}

// sampleEnvelope is a message as long as that of order.
func sampleEnvelope(id string) []byte {
	p := samplePurchase(id, time.Now())
	return try.Must(message.EncodeEnvelope(&p))
}

// pgbench is the baseline: Postgres alone, writing the same rows.
type pgbench struct {
	program, log, host, database string
	transaction, statement       string // files of the scripts
}

func (b *bench) newPgbench(ctx context.Context, database string) *pgbench {
	// The triggers keep the dashboard's figures: a cost of the product, not of the baseline.
	execute(ctx, b.database(ctx, database), "ALTER TABLE public.purchases DISABLE TRIGGER USER")
	envelope := hex.EncodeToString(sampleEnvelope(padded("cs_live_a1", 44)))
	values := strings.NewReplacer("{zeros}", strings.Repeat("0", 44), "{envelope}", envelope)
	script := func(name string) (file string) {
		text := try.Must(pgbenchScripts.ReadFile("pgbench/" + name))
		file = filepath.Join(b.dir, name)
		try.Check(os.WriteFile(file, []byte(values.Replace(string(text))), 0o600))
		return file
	}
	return &pgbench{
		program: filepath.Join(b.pg.Programs(), "pgbench"), log: filepath.Join(b.dir, "pgbench-log"),
		host: b.pg.Dir(), database: database,
		transaction: script("transaction.sql"), statement: script("statement.sql"),
	}
}

// measurement runs a script for the time of one measurement. usages are measured for each transaction.
func (p *pgbench) measurement(
	b *bench, name, script string, clients int, s *loadSeries, usages ...*usage,
) measurement {
	return measurement{name, func(ctx context.Context) {
		var rate float64
		var latencies series
		// A busy disk can delay the first commit beyond a short measurement.
		for seconds := max(1, int(b.duration.Round(time.Second).Seconds())); len(latencies) == 0; seconds *= 2 {
			if seconds > 60 {
				try.Check(errors.New("pgbench committed nothing"))
			}
			end := meter(usages...)
			rate, latencies = p.run(ctx, script, clients, seconds)
			if len(latencies) > 0 {
				end(len(latencies))
			}
		}
		s.rate, s.median = append(s.rate, rate), append(s.median, latencies.median())
	}}
}

var pgbenchRate = regexp.MustCompile(`(?m)^tps = ([0-9.]+)`)

// run returns the transactions a second and the latency of each transaction in milliseconds.
func (p *pgbench) run(ctx context.Context, script string, clients, seconds int) (float64, series) {
	cmd := exec.CommandContext(ctx, p.program, "-n", "-M", "prepared", //nolint:gosec // our own arguments
		"-c", strconv.Itoa(clients), "-j", strconv.Itoa(min(clients, 2)), "-T", strconv.Itoa(seconds),
		"-l", "--log-prefix="+p.log, "-f", script, "-h", p.host, "-U", "postgres", p.database)
	out, err := cmd.CombinedOutput()
	if err != nil {
		try.Check(fmt.Errorf("pgbench: %w\n%.600s", err, out))
	}
	rate := 0.0
	if match := pgbenchRate.FindSubmatch(out); match != nil { // missing without a commit
		rate = try.Must(strconv.ParseFloat(string(match[1]), 64))
	}
	return rate, readLatencies(p.log)
}

// readLatencies reads and removes pgbench's logs, one a thread. The third field of a line is the latency in
// µs.
func readLatencies(prefix string) (latencies series) {
	for _, log := range try.Must(filepath.Glob(prefix + ".*")) {
		for line := range strings.Lines(string(try.Must(os.ReadFile(log)))) { //nolint:gosec // in our own folder
			var client, transaction int
			var µs float64
			if _, err := fmt.Sscan(line, &client, &transaction, &µs); err != nil { // a failed transaction, too
				try.Check(fmt.Errorf("read pgbench's log: %q: %w", line, err))
			}
			latencies = append(latencies, µs/1000)
		}
		try.Check(os.Remove(log))
	}
	return latencies
}

// handlerSources is a usual webhook handler: Node with express, stripe and pg; TikTok is awaited inside the
// request.
//
//go:embed nodehandler
var handlerSources embed.FS

// node measures the usual handler and ingest on the same Postgres. TikTok is called by the handler alone.
func node(ctx context.Context, b *bench) {
	b.announce("installing the Node handler's packages")
	program, version, err := installHandler(ctx, filepath.Join(b.dir, "node"))
	try.Check(ctx.Err())
	if err != nil {
		b.report.skip("no Node handler here: " + err.Error())
		return
	}
	try.Check(b.pg.CreateDatabase(ctx, "node", ""))
	tiktok := b.startSimulator(ctx, b.latency)
	addr := try.Must(freeport.Addr())
	_, port, _ := net.SplitHostPort(addr)
	handler := b.serve(ctx, addr, []string{
		"NODE_ENV=production", "PORT=" + port, "DATABASE_URL=" + b.pg.URL("node"),
		"STRIPE_WEBHOOK_SECRET=" + signingSecret, "TIKTOK_API_URL=" + tiktok.url(),
		"TIKTOK_ACCESS_TOKEN=local-token", "TIKTOK_PIXEL_ID=LOCALPIXEL",
	}, program, filepath.Join(b.dir, "node", "server.js"))
	in := b.startIngestAlone(ctx, "beside_node")
	for _, addr := range []string{handler.addr, in.addr} { // the just-in-time compiler
		b.announce("warming up")
		new(loadSeries).run(ctx, b.fullSpeed(addr, 64))
	}
	var theirs, ours loadSeries
	b.turns(ctx,
		theirs.measurement(b, "the Node handler", handler.addr, 64),
		ours.measurement(b, "ingest", in.addr, 64))
	theirs.report(b, "webhooks, the usual Node handler")
	ours.report(b, "webhooks, ingest").against("the Node handler", theirs.rate).atLeast(12)
	if _, peak := memory(handler.PID()); peak > 0 {
		b.report.add("resident memory of the Node handler, peak", "MiB", series{peak}).
			note("Node %s, one process", version)
	}
}

// installHandler copies the handler into a folder and installs its locked packages. It returns the path of
// node and its version, or an error where node, npm or a package is missing.
func installHandler(ctx context.Context, dir string) (program, version string, err error) {
	program, err = exec.LookPath("node")
	if err != nil {
		return "", "", err
	}
	if err := os.CopyFS(dir, try.Must(fs.Sub(handlerSources, "nodehandler"))); err != nil {
		return "", "", err
	}
	install := exec.CommandContext(ctx, "npm", "ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund",
		"--loglevel=error")
	install.Dir = dir
	if out, err := install.CombinedOutput(); err != nil {
		return "", "", fmt.Errorf("npm ci: %w: %.300s", err, out)
	}
	out, err := exec.CommandContext(ctx, program, "--version").Output()
	return program, strings.TrimSpace(string(out)), err
}
