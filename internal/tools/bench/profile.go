package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"purchase-relay/internal/testkit/freeport"
	"purchase-relay/internal/testkit/try"
)

// profilerSource is added to a binary by the compiler's -overlay: the product's sources contain no profiler.
// It serves the profiles of blocking from 10 µs and of one in five contended locks, too.
const profilerSource = `package main

import (
	"net"
	"net/http"
	_ "net/http/pprof"
	"os"
	"runtime"
)

func init() {
	addr := os.Getenv("PROFILE_ADDR")
	if addr == "" {
		return
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		panic(err)
	}
	runtime.SetBlockProfileRate(10_000)
	runtime.SetMutexProfileFraction(5)
	go http.Serve(l, nil)
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
	addrs := try.Must(freeport.Addrs(2))
	nats, tiktok := b.startNATS(ctx), b.startSimulator(ctx, usualLatency)
	in := b.startIngest(ctx, b.database(ctx, "profiles"), nats, "PROFILE_ADDR="+addrs[0])
	b.startWorker(ctx, nats, tiktok, "PROFILE_ADDR="+addrs[1])
	seconds := max(1, int(b.duration.Seconds())) // pprof takes whole ones
	l := b.fullSpeed(in.addr, 64)
	l.duration = time.Duration(seconds) * time.Second
	b.announce("webhooks over 64 connections for %s", l.duration)
	var group errgroup.Group
	for i, program := range []string{"ingest", "tiktok-worker"} {
		group.Go(func() error {
			for _, kind := range []string{"cpu", "heap", "allocs", "block", "mutex", "goroutine"} {
				path := kind
				if kind == "cpu" {
					path = fmt.Sprintf("profile?seconds=%d", seconds)
				}
				body, err := fetch(ctx, http.MethodGet, "http://"+addrs[i]+"/debug/pprof/"+path, "")
				if err != nil {
					return err
				}
				file := filepath.Join(b.profiles, program+"-"+kind+".pprof")
				if err := os.WriteFile(file, body, 0o600); err != nil {
					return err
				}
			}
			return nil
		})
	}
	r := send(ctx, l)
	try.Check(group.Wait())
	_, _ = fmt.Fprintf(b.out, "Profiles under %.0f webhooks a second are in %s. Open one:\n"+
		"  go tool pprof -http=127.0.0.1:0 %s\n",
		r.perSecond(), b.profiles, filepath.Join(b.profiles, "ingest-cpu.pprof"))
}
