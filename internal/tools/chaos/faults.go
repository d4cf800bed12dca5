package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/procfs"

	"purchase-relay/internal/testkit/faultproxy"
	"purchase-relay/internal/testkit/tiktoksim"
)

// kind is a kind of fault.
type kind struct {
	name    string
	weight  int // its share among all kinds
	targets []string
	longest time.Duration
	inject  injection
}

// injection begins a fault, lets it last, and ends it.
type injection func(ctx context.Context, f fault) error

// fault is one planned fault.
type fault struct {
	kind   *kind
	target string
	at     time.Duration
	lasts  time.Duration
	pick   float64 // from 0 up to 1: any further choice
}

// errSkipped reports that another fault keeps the target down or busy.
var errSkipped = errors.New("skipped: the target is down, or another fault acts on it")

// plan draws the faults of an experiment. It is a pure function.
func plan(random *rand.Rand, kinds []*kind, duration, gap time.Duration) (faults []fault) {
	sum := 0
	for _, k := range kinds {
		sum += k.weight
	}
	const shortest = 100 * time.Millisecond
	for at := time.Duration(0); ; {
		at += time.Duration(random.ExpFloat64() * float64(gap))
		if at >= duration {
			return faults
		}
		n := random.IntN(sum)
		k := kinds[slices.IndexFunc(kinds, func(k *kind) bool { n -= k.weight; return n < 0 })]
		faults = append(faults, fault{
			kind: k, target: k.targets[random.IntN(len(k.targets))], at: at, pick: random.Float64(),
			lasts: shortest + time.Duration(random.Int64N(int64(k.longest-shortest))),
		})
	}
}

// injectAll injects the planned faults, each when it is due, and returns after the last one.
func (x *experiment) injectAll(ctx context.Context, kinds []*kind) {
	began := time.Now()
	var active sync.WaitGroup
	defer active.Wait()
	random := rand.New(rand.NewPCG(x.seed, 2)) //nolint:gosec // repeatable, no secret
	for _, f := range plan(random, kinds, x.duration, x.gap) {
		sleep(ctx, time.Until(began.Add(f.at)))
		if ctx.Err() != nil {
			return
		}
		active.Go(func() {
			note := fmt.Sprintf("%6.1fs  %s %s", f.at.Seconds(), f.kind.name, f.target)
			switch err := f.kind.inject(ctx, f); {
			case errors.Is(err, errSkipped):
				x.skipped.add(f.kind.name)
				x.say("%s: %v", note, err)
			case err != nil && ctx.Err() == nil:
				x.findings.add("inject %s into %s: %v", f.kind.name, f.target, err)
			default:
				x.injected.add(f.kind.name)
				x.say("%s, until %.1fs", note, time.Since(began).Seconds())
			}
		})
	}
	sleep(ctx, time.Until(began.Add(x.duration)))
}

// sleep returns early when ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// catalogue lists the kinds of faults of a mode that are possible on this machine.
func catalogue(s *stack, mode string) []*kind {
	parts := make(map[string]*part)
	for _, p := range s.parts {
		parts[p.name] = p
	}
	all, links := slices.Sorted(maps.Keys(parts)), slices.Sorted(maps.Keys(s.links))
	streams := []string{"PURCHASES", "OUTCOMES", "PURCHASES_DEAD"}
	consumers := []string{"PURCHASES worker", "OUTCOMES recorder"}
	onPart := func(inject func(context.Context, *part, fault) error) injection {
		return func(ctx context.Context, f fault) error {
			p := parts[f.target]
			if !p.TryLock() {
				return errSkipped
			}
			defer p.Unlock()
			return inject(ctx, p, f)
		}
	}
	onLink := func(begin, end func(*faultproxy.Proxy, fault)) injection {
		return func(ctx context.Context, f fault) error {
			begin(s.links[f.target], f)
			sleep(ctx, f.lasts)
			end(s.links[f.target], f)
			return nil
		}
	}
	onQueue := func(change func(ctx context.Context, target string) error) injection {
		return func(ctx context.Context, f fault) error {
			if !s.conn.IsConnected() || change(ctx, f.target) != nil {
				return errSkipped // the server is down
			}
			return nil
		}
	}
	drop := func(requests, responses bool) injection {
		return onLink(
			func(p *faultproxy.Proxy, _ fault) { p.Drop(requests, responses) },
			func(p *faultproxy.Proxy, _ fault) { p.Drop(false, false) },
		)
	}
	kinds := []*kind{
		{"kill", 14, all, 3 * time.Second, onPart(kill)},
		{"terminate", 8, all, 3 * time.Second, onPart(terminate)},
		{"freeze", 10, all, 12 * time.Second, onPart(freeze)},
		{"kill-backend", 3, []string{"postgres"}, time.Second, onPart(killBackend)},
		{"delete-consumer", 3, consumers, time.Second, onQueue(s.deleteConsumer)},
		{"close-stream", 5, streams, time.Second, onQueue(s.closeStream)},
		{"cut", 10, links, time.Second, onLink(
			func(p *faultproxy.Proxy, _ fault) { p.Cut() },
			func(*faultproxy.Proxy, fault) {},
		)},
		{"delay", 6, links, 8 * time.Second, onLink(
			func(p *faultproxy.Proxy, f fault) { p.Delay(time.Duration(20+f.pick*300) * time.Millisecond) },
			func(p *faultproxy.Proxy, _ fault) { p.Delay(0) },
		)},
		{"pause", 6, links, 12 * time.Second, onLink(
			func(p *faultproxy.Proxy, _ fault) { p.Pause() },
			func(p *faultproxy.Proxy, _ fault) { p.Resume() },
		)},
		{"half-open", 6, links, 12 * time.Second, drop(true, true)},
		{"unheard", 6, links, 6 * time.Second, drop(false, true)},
		{"unsaid", 4, links, 6 * time.Second, drop(true, false)},
		{"tiktok", 14, slices.Sorted(maps.Keys(tiktokFaults())), 5 * time.Second, s.injectTikTok},
	}
	if mode == modeKept {
		return kinds
	}
	kinds = append(kinds,
		&kind{"wipe", 4, []string{"nats"}, 2 * time.Second, onPart(s.wipe)},
		&kind{"remove-store", 2, []string{"nats"}, 4 * time.Second, onPart(s.removeStore)},
		&kind{"delete-stream", 3, streams, time.Second, onQueue(s.js.DeleteStream)},
	)
	if s.noDisks == nil {
		disks := []string{"nats", "postgres"}
		kinds = append(kinds, &kind{"disk-full", 4, disks, 5 * time.Second, onPart(s.fillDisk)})
	}
	return kinds
}

func kill(ctx context.Context, p *part, f fault) error {
	p.kill()
	sleep(ctx, f.lasts)
	return p.start(ctx)
}

func terminate(ctx context.Context, p *part, f fault) error {
	p.terminate()
	sleep(ctx, f.lasts)
	return p.start(ctx)
}

// killOrTerminate leaves the way to stop a part to the fault.
func killOrTerminate(p *part, f fault) {
	if f.pick < 0.5 {
		p.kill()
	} else {
		p.terminate()
	}
}

// killBackend kills the process of one connection: Postgres then ends all others and recovers.
func killBackend(_ context.Context, p *part, f fault) error {
	pids := slices.DeleteFunc(children(p.running.pid), func(pid int) bool {
		process, err := procfs.NewProc(pid)
		if err != nil {
			return true
		}
		words, err := process.CmdLine()
		return err != nil || !strings.Contains(strings.Join(words, " "), " chaos ")
	})
	if len(pids) == 0 || syscall.Kill(pids[int(f.pick*float64(len(pids)))], syscall.SIGKILL) != nil {
		return errSkipped
	}
	return nil
}

// wipe empties the queue's store while the server is down.
func (s *stack) wipe(ctx context.Context, p *part, f fault) error {
	killOrTerminate(p, f)
	if err := os.RemoveAll(s.store()); err != nil {
		return err
	}
	sleep(ctx, f.lasts)
	return p.start(ctx)
}

// removeStore removes the store of the running server, which does not notice before its restart.
func (s *stack) removeStore(ctx context.Context, p *part, f fault) error {
	// The server writes into the folder meanwhile.
	for {
		err := os.RemoveAll(s.store())
		if err == nil {
			break
		}
		if !errors.Is(err, syscall.ENOTEMPTY) {
			return err
		}
	}
	sleep(ctx, f.lasts)
	p.kill()
	if err := os.RemoveAll(s.store()); err != nil {
		return err
	}
	return p.start(ctx)
}

func (s *stack) deleteConsumer(ctx context.Context, target string) error {
	stream, durable, _ := strings.Cut(target, " ")
	return s.js.DeleteConsumer(ctx, stream, durable)
}

// closeStream makes a stream reject every message. Those that it holds stay. Ingest restores its
// configuration.
func (s *stack) closeStream(ctx context.Context, name string) error {
	stream, err := s.js.Stream(ctx, name)
	if err != nil {
		return err
	}
	config := stream.CachedInfo().Config
	config.MaxMsgSize = 1
	_, err = s.js.UpdateStream(ctx, config)
	return err
}

// fillDisk leaves a store no byte for a while. Postgres may exit because of that. JetStream stays disabled
// until an operator restarts the server.
func (s *stack) fillDisk(ctx context.Context, p *part, f fault) error {
	ballast := filepath.Join(s.dir, p.name, "ballast")
	if err := fill(ballast); err != nil {
		return errors.Join(err, os.Remove(ballast))
	}
	sleep(ctx, f.lasts)
	if err := os.Remove(ballast); err != nil {
		return err
	}
	if p == s.nats {
		killOrTerminate(p, f)
	}
	select {
	case <-p.running.ended:
		return p.start(ctx)
	default:
		return nil
	}
}

// fill writes a file until the disk is full.
func fill(name string) error {
	file, err := os.Create(name) //nolint:gosec // in the experiment's folder
	if err != nil {
		return err
	}
	for err == nil {
		_, err = file.Write(make([]byte, 1<<20))
	}
	_ = file.Close() // every byte that counts is written
	if !errors.Is(err, syscall.ENOSPC) {
		return err
	}
	return nil
}

// refusedOnce lets a valid event end as dead.
const refusedOnce = "refused once"

// tiktokFaults are TikTok's, by name.
func tiktokFaults() map[string]tiktoksim.Fault {
	return map[string]tiktoksim.Fault{
		"a gateway's page":         {HTML: true},
		"503":                      {Status: http.StatusServiceUnavailable},
		"429":                      {Status: http.StatusTooManyRequests, RetryAfter: "1"},
		"40100 rate":               {Code: 40100, Message: "Too many requests"},
		"40105 token":              {Code: 40105, Message: "Access token is incorrect"},
		"40001 permission":         {Code: 40001, Message: "No permission"},
		"50000":                    {Code: 50000, Message: "System error"},
		"99999 unknown":            {Code: 99999, Message: "Something new"},
		"20001 once":               {Code: 20001, Message: "Partial success", Count: 1},
		refusedOnce:                {Code: 40002, Message: "Batch.0.event: Not a valid string", Count: 1},
		"hangs":                    {Hang: true},
		"cut":                      {Cut: true},
		"cut after it was taken":   {CutAfter: true},
		"a truncated answer":       {LyingLength: true},
		"an endless answer":        {Endless: true, Count: 3},
		"a slow drip":              {Drip: true},
		"slow":                     {Latency: 800 * time.Millisecond},
		"too slow":                 {Latency: 3 * time.Second},
		"no code":                  {Body: `{"message":"OK","request_id":"r"}`},
		"no JSON":                  {Body: "OK"},
		"a redirect":               {Redirect: "http://127.0.0.1:1/"},
		"a wrong path":             {Status: http.StatusNotFound, Body: "404 page not found"},
		"40050 for what was known": {DuplicateCode: 40050},
	}
}

// injectTikTok makes all requests to TikTok fail, or half of them.
func (s *stack) injectTikTok(ctx context.Context, f fault) error {
	failure := tiktokFaults()[f.target]
	failure.For = f.lasts
	if f.pick < 0.5 && failure.Count == 0 {
		failure.Rate = 0.5
	}
	if f.target == refusedOnce {
		s.refusals.Add(1)
	}
	s.tiktok.Inject(failure)
	sleep(ctx, f.lasts)
	return nil
}
