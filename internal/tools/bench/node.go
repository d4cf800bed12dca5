package main

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"purchase-relay/internal/testkit/freeport"
)

// handlerSources is the webhook handler that a shop usually writes: Node with express, stripe and pg; TikTok is
// awaited inside the request.
//
//go:embed nodehandler
var handlerSources embed.FS

// node measures the usual handler beside ours, on the same Postgres: TikTok is awaited there, and waits here.
func node(ctx context.Context, b *bench) error {
	b.tell("installing the Node handler's packages")
	command, version, err := installHandler(ctx, filepath.Join(b.dir, "node"))
	if errors.Is(err, errNoNode) {
		b.report.skip(err.Error())
		return nil
	}
	if err != nil {
		return err
	}
	if err := b.pg.CreateDatabase(ctx, "node", ""); err != nil {
		return err
	}
	tiktok, err := b.startSimulator(ctx, b.latency)
	if err != nil {
		return err
	}
	defer tiktok.stop()
	addrs, err := freeport.Addrs(1)
	if err != nil {
		return err
	}
	_, port, err := net.SplitHostPort(addrs[0])
	if err != nil {
		return err
	}
	handler, err := b.start([]string{
		"NODE_ENV=production", "PORT=" + port, "DATABASE_URL=" + b.pg.URL("node"), "STRIPE_WEBHOOK_SECRET=" + signingSecret, "TIKTOK_API_URL=" + tiktok.url(),
		"TIKTOK_ACCESS_TOKEN=local-token", "TIKTOK_PIXEL_ID=LOCALPIXEL",
	}, command[0], command[1:]...)
	if err != nil {
		return err
	}
	defer handler.stop()
	if err := handler.await(ctx, "the Node handler to listen", func() bool { return listens(ctx, addrs[0]) }); err != nil {
		return err
	}
	ledger, err := b.database(ctx, "beside_node")
	if err != nil {
		return err
	}
	in, err := b.startIngest(ctx, ledger, "")
	if err != nil {
		return err
	}
	defer in.stop()
	var warm, theirs, ours shot
	for _, addr := range []string{addrs[0], in.public} { // a just-in-time compiler needs its time
		b.tell("warming")
		if _, err := warm.take(ctx, b.fresh().plan(addr, 64, b.duration)); err != nil {
			return err
		}
	}
	err = b.turns(ctx,
		contender{"the Node handler", func(ctx context.Context) error {
			_, err := theirs.take(ctx, b.fresh().plan(addrs[0], 64, b.duration))
			return err
		}},
		contender{"ingest", func(ctx context.Context) error {
			_, err := ours.take(ctx, b.fresh().plan(in.public, 64, b.duration))
			return err
		}},
	)
	if err != nil {
		return err
	}
	_, peak := memory(handler.PID())
	b.report.add("webhooks, the usual Node handler", "/s", theirs.rate, theirs.latencies())
	b.report.add("webhooks, ingest", "/s", ours.rate, against("the Node handler", ours.rate, theirs.rate), atLeast(15), ours.latencies())
	if peak > 0 {
		b.report.add("resident memory of the Node handler, peak", "MiB", series{peak}, note(fmt.Sprintf("Node %s, one process", version)))
	}
	return nil
}

// errNoNode is the lack of node, npm or a package on this machine.
var errNoNode = errors.New("the Node handler cannot be had here")

// installHandler puts the handler and its locked packages into a folder. It returns the command that runs it there,
// and Node's version. The error is errNoNode where something is missing.
func installHandler(ctx context.Context, dir string) (command []string, version string, err error) {
	node, err := exec.LookPath("node")
	if err != nil {
		return nil, "", fmt.Errorf("%w: there is no node", errNoNode)
	}
	npm, err := exec.LookPath("npm")
	if err != nil {
		return nil, "", fmt.Errorf("%w: there is no npm", errNoNode)
	}
	sources, err := fs.Sub(handlerSources, "nodehandler")
	if err != nil {
		return nil, "", err
	}
	if err := os.CopyFS(dir, sources); err != nil {
		return nil, "", err
	}
	install := exec.CommandContext(ctx, npm, "ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error") //nolint:gosec // from the search path
	install.Dir = dir
	if out, err := install.CombinedOutput(); err != nil {
		if ctx.Err() != nil {
			return nil, "", ctx.Err()
		}
		return nil, "", fmt.Errorf("%w: npm ci: %w: %.300s", errNoNode, err, out)
	}
	out, err := exec.CommandContext(ctx, node, "--version").Output() //nolint:gosec // from the search path
	if err != nil {
		return nil, "", fmt.Errorf("node --version: %w", err)
	}
	return []string{node, filepath.Join(dir, "server.js")}, strings.TrimSpace(string(out)), nil
}
