package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"purchase-relay/internal/testkit/freeport"
)

// overlay is the file that a binary is compiled with for profiles, beside its own: nothing of it is in the product's sources.
const overlay = `package main

import (
	"os"

	"purchase-relay/internal/tools/bench/profiler"
)

func init() {
	if err := profiler.Serve(os.Getenv("PROFILE_ADDR")); err != nil {
		panic(err)
	}
}
`

// profiles measures nothing: it writes the profiles of ingest and the worker, under as many webhooks as this machine takes,
// into a folder.
func (b *bench) profiles(ctx context.Context, folder string) (err error) {
	if err := b.buildProfiled(ctx); err != nil {
		return err
	}
	if err := os.MkdirAll(folder, 0o750); err != nil {
		return err
	}
	addrs, err := freeport.Addrs(2)
	if err != nil {
		return err
	}
	programs := map[string]string{"ingest": addrs[0], "tiktok-worker": addrs[1]}
	l, err := b.startLine(ctx, "profiles", []string{"PROFILE_ADDR=" + addrs[0]}, []string{"PROFILE_ADDR=" + addrs[1]})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.stop()) }()
	for _, addr := range programs {
		if err := l.worker.await(ctx, "the profiler to listen", func() bool { return listens(ctx, addr) }); err != nil {
			return err
		}
	}
	seconds := max(1, int(b.duration.Seconds()))
	var written []chan error
	for name, addr := range programs {
		done := make(chan error, 1)
		written = append(written, done)
		go func() {
			done <- keep(ctx, filepath.Join(folder, name+"-cpu.pprof"), fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", addr, seconds))
		}()
	}
	b.tell("webhooks over 64 connections, for %d s", seconds)
	var s shot
	_, err = s.take(ctx, b.fresh().plan(l.in.public, 64, time.Duration(seconds)*time.Second))
	for _, done := range written {
		err = errors.Join(err, <-done)
	}
	if err != nil {
		return err
	}
	for name, addr := range programs {
		for _, kind := range []string{"heap", "allocs", "block", "mutex", "goroutine"} {
			if err := keep(ctx, filepath.Join(folder, name+"-"+kind+".pprof"), "http://"+addr+"/debug/pprof/"+kind); err != nil {
				return err
			}
		}
	}
	if err := l.arrived(ctx); err != nil {
		return err
	}
	_, _ = fmt.Fprintf(b.report.out, "Profiles under %s webhooks a second are in %s:\n", number(s.rate.median()), folder)
	for _, name := range []string{"ingest", "tiktok-worker"} {
		file := filepath.Join(folder, name+"-cpu.pprof")
		out, err := exec.CommandContext(ctx, "go", "tool", "pprof", "-top", "-cum", "-nodecount=25", file).CombinedOutput() //nolint:gosec // our own file
		if err != nil {
			return fmt.Errorf("go tool pprof: %w\n%s", err, out)
		}
		_, _ = fmt.Fprintf(b.report.out, "\n%s\n%s", name, out)
	}
	_, _ = fmt.Fprintf(b.report.out, "\nOpen one:  go tool pprof -http=127.0.0.1:0 %s\n(cpu, heap, allocs, block, mutex, goroutine; of ingest and tiktok-worker)\n",
		filepath.Join(folder, "ingest-cpu.pprof"))
	return nil
}

// buildProfiled compiles the two binaries with the overlay.
func (b *bench) buildProfiled(ctx context.Context) error {
	file := filepath.Join(b.dir, "profile.go")
	replace := make(map[string]string)
	for _, name := range []string{"ingest", "tiktok-worker"} {
		replace[filepath.Join(b.root, "cmd", name, "zz_profile.go")] = file
	}
	list, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return err
	}
	overlays := filepath.Join(b.dir, "overlay.json")
	if err := errors.Join(os.WriteFile(file, []byte(overlay), 0o600), os.WriteFile(overlays, list, 0o600)); err != nil {
		return err
	}
	return b.build(ctx, "-overlay", overlays, "./cmd/ingest", "./cmd/tiktok-worker")
}

// keep writes an answer into a file.
func keep(ctx context.Context, file, url string) error {
	status, body, err := ask(ctx, http.MethodGet, url, "")
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		return fmt.Errorf("%s: %d %.200s", url, status, body)
	}
	return os.WriteFile(file, body, 0o600)
}
