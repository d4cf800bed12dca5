package main

import (
	"context"
	"embed"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"purchase-relay/internal/testkit/freeport"
	"purchase-relay/internal/testkit/try"
)

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
	ours.report(b, "webhooks, ingest").against("the Node handler", theirs.rate).atLeast(15)
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
	out, err := exec.CommandContext(ctx, program, "--version").Output() //nolint:gosec // from the search path
	return program, strings.TrimSpace(string(out)), err
}
