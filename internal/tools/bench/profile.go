package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"purchase-relay/internal/testkit/freeport"
	"purchase-relay/internal/testkit/try"
)

// profilerSource is added to a binary by the compiler's -overlay: the product's sources contain no profiler.
const profilerSource = `package main

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

// profilerOverlay writes the overlay that adds the profiler to the two binaries.
func (b *bench) profilerOverlay() (file string) {
	source, overlay := filepath.Join(b.dir, "profile.go"), filepath.Join(b.dir, "overlay.json")
	list := try.Must(json.Marshal(map[string]map[string]string{"Replace": {
		filepath.Join(b.root, "cmd/ingest/zz_profile.go"):        source,
		filepath.Join(b.root, "cmd/tiktok-worker/zz_profile.go"): source,
	}}))
	try.Check(os.WriteFile(source, []byte(profilerSource), 0o600))
	try.Check(os.WriteFile(overlay, list, 0o600))
	return overlay
}

// writeProfiles writes profiles of ingest and the worker into b.profiles, under as many webhooks as the
// machine takes.
func (b *bench) writeProfiles(ctx context.Context) {
	try.Check(os.MkdirAll(b.profiles, 0o750))
	programs, addrs := []string{"ingest", "tiktok-worker"}, try.Must(freeport.Addrs(2))
	ingestEnv, workerEnv := "PROFILE_ADDR="+addrs[0], "PROFILE_ADDR="+addrs[1]
	p := b.startPipeline(ctx, "profiles", []string{ingestEnv}, []string{workerEnv})
	file := func(program, kind string) string { return filepath.Join(b.profiles, program+"-"+kind+".pprof") }
	save := func(program, addr, kind, query string) error {
		body, err := fetch(ctx, http.MethodGet, "http://"+addr+"/debug/pprof/"+query, "")
		if err != nil {
			return err
		}
		return os.WriteFile(file(program, kind), body, 0o600)
	}
	seconds := max(1, int(b.duration.Seconds())) // pprof takes whole ones
	plan := b.fullSpeed(p.ingest.addr, 64)
	plan.For = time.Duration(seconds) * time.Second
	var group errgroup.Group
	for i, program := range programs {
		query := fmt.Sprintf("profile?seconds=%d", seconds)
		group.Go(func() error { return save(program, addrs[i], "cpu", query) })
	}
	b.announce("webhooks over 64 connections for %s", plan.For)
	var s loadSeries
	s.run(ctx, plan)
	try.Check(group.Wait())
	for i, program := range programs {
		for _, kind := range []string{"heap", "allocs", "block", "mutex", "goroutine"} {
			try.Check(save(program, addrs[i], kind, kind))
		}
	}
	out := b.report.out
	_, _ = fmt.Fprintf(out, "Profiles under %.0f webhooks a second are in %s:\n", s.rate.median(), b.profiles)
	for _, program := range programs {
		args := []string{"tool", "pprof", "-top", "-cum", "-nodecount=25", file(program, "cpu")}
		top, err := exec.CommandContext(ctx, "go", args...).CombinedOutput() //nolint:gosec // our own file
		if err != nil {
			try.Check(fmt.Errorf("go tool pprof: %w\n%s", err, top))
		}
		_, _ = fmt.Fprintf(out, "\n%s\n%s", program, top)
	}
	_, _ = fmt.Fprintf(out, "\nOpen one:  go tool pprof -http=127.0.0.1:0 %s\n"+
		"(cpu, heap, allocs, block, mutex, goroutine; of ingest and tiktok-worker)\n", file("ingest", "cpu"))
}
