package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"purchase-relay/internal/message"
	"purchase-relay/internal/testkit/freeport"
	"purchase-relay/internal/testkit/launch"
	"purchase-relay/internal/testkit/try"
)

// sources is the folder of the baselines' sources in the checkout.
const sources = "internal/tools/bench"

// pgbench measures Postgres alone, writing the same rows by pgbench.sql. usages are measured for each
// transaction.
func (b *bench) pgbench(name, unit, ledger string, clients int, usages ...*usage) *measurement {
	m := b.measurement(name, unit)
	m.run = func(ctx context.Context) {
		log := filepath.Join(b.dir, "pgbench-log")
		p := samplePurchase()
		envelope := `\x` + hex.EncodeToString(try.Must(message.EncodeEnvelope(&p)))
		var out []byte
		var latencies series
		// A busy disk can delay the first commit beyond a short measurement.
		first := max(1, int(b.duration.Round(time.Second).Seconds()))
		for seconds := first; len(latencies) == 0; seconds *= 2 {
			cmd := exec.CommandContext(ctx, filepath.Join(b.pg.Programs(), "pgbench"), //nolint:gosec // our arguments
				"-n", "-M", "prepared", "-c", fmt.Sprint(clients), "-j", fmt.Sprint(min(clients, 2)),
				"-T", fmt.Sprint(seconds), "-l", "--log-prefix="+log, "-D", "envelope="+envelope,
				"-f", filepath.Join(b.root, sources, "pgbench.sql"), ledger)
			end := meter(usages...)
			var err error
			if out, err = cmd.CombinedOutput(); err != nil || seconds > 32*first {
				try.Check(fmt.Errorf("pgbench, %d s: %v\n%.600s", seconds, err, out)) //nolint:errorlint // may be nil
			}
			if latencies = readLatencies(log); len(latencies) > 0 {
				end(len(latencies))
			}
		}
		if unit == "ms" {
			m.add(latencies.median())
			return
		}
		var rate float64
		_, text, _ := strings.Cut(string(out), "\ntps = ")
		try.Must(fmt.Sscan(text, &rate))
		m.add(rate)
	}
	return m
}

// readLatencies reads and removes pgbench's logs, one a thread. The third field of a line is the latency in
// µs, or says that the transaction failed.
func readLatencies(prefix string) (latencies series) {
	for _, log := range try.Must(filepath.Glob(prefix + ".*")) {
		for line := range strings.Lines(string(try.Must(os.ReadFile(log)))) { //nolint:gosec // in our own folder
			latencies = append(latencies, try.Must(strconv.ParseFloat(strings.Fields(line)[2], 64))/1000)
		}
		try.Check(os.Remove(log))
	}
	return latencies
}

// startBaseline runs another handler of the webhook on a database.
func (b *bench) startBaseline(
	ctx context.Context, ledger string, tiktok *server, env []string, path string, args ...string,
) *system {
	addr := try.Must(freeport.Addr())
	_, port, _ := net.SplitHostPort(addr)
	env = append(env, "ADDR="+addr, "PORT="+port)
	env = append(env, launch.Worker{TikTok: "http://" + tiktok.addr}.Env()...)
	env = append(env, launch.Ingest{Database: ledger}.Env()...)
	return &system{server: b.serve(ctx, addr, env, path, args...), ledger: ledger, tiktok: tiktok}
}

// node measures a usual handler, Node with express, stripe and pg, TikTok awaited inside the request, and
// ingest on the same Postgres. TikTok is called by the handler alone.
func node(ctx context.Context, b *bench) {
	b.announce("installing the Node handler's packages")
	program := try.Must(exec.LookPath("node"))
	dir := filepath.Join(b.dir, "nodehandler")
	try.Check(os.CopyFS(dir, os.DirFS(filepath.Join(b.root, sources, "nodehandler"))))
	install := exec.CommandContext(ctx, "npm", "ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund",
		"--loglevel=error")
	install.Dir = dir
	if out, err := install.CombinedOutput(); err != nil {
		try.Check(fmt.Errorf("npm ci: %w: %.300s", err, out))
	}
	try.Check(b.pg.CreateDatabase(ctx, "node", ""))
	tiktok := b.startSimulator(ctx, usualLatency)
	env := []string{"NODE_ENV=production"}
	handler := b.startBaseline(ctx, b.pg.URL("node"), tiktok, env, program, dir+"/server.js")
	in := b.startIngestAlone(ctx, "beside_node")
	b.warmUp(ctx, handler.addr, in.addr)
	theirs := b.webhooks("webhooks, the usual Node handler", handler.addr)
	ours := b.webhooks("webhooks, ingest", in.addr)
	b.turns(ctx)
	ours.against("the Node handler", theirs.Figure).atLeast(12)
	b.memory("the Node handler", handler.PID())
}

// peer measures the same job written with River, on the same Postgres: webhooks alone, and all the way to the
// recorded outcome.
func peer(ctx context.Context, b *bench) {
	b.build(ctx, filepath.Join(sources, "riverpeer"), ".")
	const latency = 50 * time.Millisecond
	tiktok := b.startSimulator(ctx, latency)
	river := func(name string, workers int) *system {
		env := []string{fmt.Sprintf("WORKERS=%d", workers)}
		return b.startBaseline(ctx, b.baselineDatabase(ctx, name), tiktok, env, b.dir+"/riverpeer")
	}
	// At 50 ms an answer 200 workers could deliver 4,000 a second, more than the peer takes. Other numbers were
	// not measured.
	theirAlone, theirs := river("peer_alone", 0), river("peer_whole", 200)
	alone := b.startIngestAlone(ctx, "beside_peer")
	ours := b.startPipeline(ctx, b.database(ctx, "beside_peer_whole"), latency)
	theirTime := b.usage("the peer and Postgres, each purchase", theirs.PID(), b.pg.Process().PID())
	ourTime := b.usage("ingest, worker, nats-server and Postgres, each purchase",
		ours.PID(), ours.worker.PID(), ours.nats.PID(), b.pg.Process().PID())

	theirWebhooks := b.webhooks("webhooks, the peer with River", theirAlone.addr)
	ourWebhooks := b.webhooks("webhooks, ingest", alone.addr)
	theirLoad, theirWay := b.wholeWay("the peer's whole way", theirs, theirTime)
	ourLoad, ourWay := b.wholeWay("the whole way", ours, ourTime)
	b.turns(ctx)
	theirs.verify(ctx, theirLoad)
	ours.verify(ctx, ourLoad)
	ourWebhooks.against("the peer", theirWebhooks.Figure).atLeast(4.5)
	ourWay.against("the peer", theirWay.Figure).atLeast(10)
	ourTime.against("the peer", theirTime.Figure)
}
