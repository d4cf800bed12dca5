package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

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
		if sleep(ctx, time.Until(began.Add(f.at))); ctx.Err() != nil {
			return
		}
		active.Go(func() {
			note := fmt.Sprintf("%6.1fs  %s %s", f.at.Seconds(), f.kind.name, f.target)
			switch err := f.kind.inject(ctx, f); {
			case errors.Is(err, errSkipped):
				x.skipped.Add(f.kind.name, 1)
				x.say("%s: %v", note, err)
			case err != nil && ctx.Err() == nil:
				x.find("inject %s into %s: %v", f.kind.name, f.target, err)
			default:
				x.injected.Add(f.kind.name, 1)
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

// catalogue lists the kinds of faults that the run allows and this machine can do. Of faults that overlap on
// one link the latest counts, and the first end ends both.
func (x *experiment) catalogue() []*kind {
	onPart := func(inject func(context.Context, *part, fault) error) injection {
		return func(ctx context.Context, f fault) error {
			p := x.parts[f.target]
			if !p.TryLock() {
				return errSkipped
			}
			defer p.Unlock()
			return inject(ctx, p, f)
		}
	}
	restart := func(signal syscall.Signal) injection {
		return onPart(func(ctx context.Context, p *part, f fault) error {
			x.end(p, cmp.Or(signal, p.stopSignal))
			sleep(ctx, f.lasts)
			return p.start(ctx)
		})
	}
	onLink := func(breakage faultproxy.Fault) injection {
		return func(ctx context.Context, f fault) error {
			mine := breakage
			mine.Delay = time.Duration(f.pick * float64(mine.Delay))
			x.links[f.target].Set(mine)
			sleep(ctx, f.lasts)
			x.links[f.target].Set(faultproxy.Fault{})
			return nil
		}
	}
	onQueue := func(change func(ctx context.Context, target string) error) injection {
		return func(ctx context.Context, f fault) error {
			if !x.js.Conn().IsConnected() || change(ctx, f.target) != nil {
				return errSkipped // the server is down
			}
			return nil
		}
	}
	all, links := slices.Sorted(maps.Keys(x.parts)), slices.Sorted(maps.Keys(x.links))
	both := faultproxy.Fault{DropRequests: true, DropResponses: true}
	streams := []string{"PURCHASES", "OUTCOMES", "PURCHASES_DEAD"}
	consumers := []string{"PURCHASES worker", "OUTCOMES recorder"}
	kinds := []*kind{
		{"kill", 14, all, 3 * time.Second, restart(syscall.SIGKILL)},
		{"terminate", 8, all, 3 * time.Second, restart(0)},
		{"freeze", 10, all, 12 * time.Second, onPart(freeze)},
		{"kill-backend", 3, []string{"postgres"}, time.Second, onPart(x.killBackend)},
		{"delete-consumer", 3, consumers, time.Second, onQueue(x.deleteConsumer)},
		{"close-stream", 5, streams, time.Second, onQueue(x.closeStream)},
		{"cut", 10, links, time.Second, func(_ context.Context, f fault) error {
			x.links[f.target].Cut()
			return nil
		}},
		{"delay", 6, links, 8 * time.Second, onLink(faultproxy.Fault{Delay: 320 * time.Millisecond})},
		{"pause", 6, links, 12 * time.Second, onLink(faultproxy.Fault{Paused: true})},
		{"half-open", 6, links, 12 * time.Second, onLink(both)},
		{"drop-responses", 6, links, 6 * time.Second, onLink(faultproxy.Fault{DropResponses: true})},
		{"drop-requests", 4, links, 6 * time.Second, onLink(faultproxy.Fault{DropRequests: true})},
		{"tiktok", 14, slices.Sorted(maps.Keys(tiktokFaults())), 5 * time.Second, x.injectTikTok},
	}
	if x.keepQueue {
		return kinds
	}
	kinds = append(kinds,
		&kind{"wipe", 4, []string{"nats"}, 2 * time.Second, onPart(x.wipe)},
		&kind{"remove-store", 2, []string{"nats"}, 4 * time.Second, onPart(x.removeStore)},
		&kind{"delete-stream", 3, streams, time.Second, onQueue(x.js.DeleteStream)},
	)
	if x.noDisks == nil {
		disks := []string{"nats", "postgres"}
		kinds = append(kinds, &kind{"disk-full", 4, disks, 5 * time.Second, onPart(x.fillDisk)})
	}
	return kinds
}

// freeze stops a part and its children for a time. A process of its own continues them, even if this one is
// killed.
func freeze(ctx context.Context, p *part, f fault) error {
	const script = `pids="$0 $(pgrep -P "$0")"; kill -STOP $pids; sleep "$1"; kill -CONT $pids; true`
	args := []string{"-c", script, strconv.Itoa(p.PID()), fmt.Sprintf("%.2f", f.lasts.Seconds())}
	return exec.CommandContext(context.WithoutCancel(ctx), "/bin/sh", args...).Run() //nolint:gosec // numbers
}

// killBackend kills the process of one connection: Postgres then ends all others and recovers.
func (x *experiment) killBackend(ctx context.Context, _ *part, f fault) error {
	const sqlBackends = `SELECT pid FROM pg_stat_activity WHERE datname = 'chaos'`
	pids, err := query(ctx, x, pgx.RowTo[int], sqlBackends)
	if err != nil || syscall.Kill(pids[int(f.pick*float64(len(pids)))], syscall.SIGKILL) != nil {
		return errSkipped
	}
	return nil
}

// signal leaves the way to end a part to the fault.
func (f fault) signal(p *part) syscall.Signal {
	if f.pick < 0.5 {
		return syscall.SIGKILL
	}
	return p.stopSignal
}

// wipe empties the queue's store while the server is down.
func (x *experiment) wipe(ctx context.Context, p *part, f fault) error {
	x.end(p, f.signal(p))
	err := os.RemoveAll(x.store())
	sleep(ctx, f.lasts)
	return errors.Join(err, p.start(ctx))
}

// removeStore removes the store of the running server, which does not notice before its restart.
func (x *experiment) removeStore(ctx context.Context, p *part, f fault) error {
	err := os.RemoveAll(x.store())
	for errors.Is(err, syscall.ENOTEMPTY) { // the server writes into the folder meanwhile
		err = os.RemoveAll(x.store())
	}
	sleep(ctx, f.lasts)
	x.end(p, syscall.SIGKILL)
	return errors.Join(err, os.RemoveAll(x.store()), p.start(ctx))
}

func (x *experiment) deleteConsumer(ctx context.Context, target string) error {
	stream, durable, _ := strings.Cut(target, " ")
	return x.js.DeleteConsumer(ctx, stream, durable)
}

// closeStream makes a stream reject every message. Those that it holds stay. Ingest restores its
// configuration.
func (x *experiment) closeStream(ctx context.Context, name string) error {
	stream, err := x.js.Stream(ctx, name)
	if err != nil {
		return err
	}
	config := stream.CachedInfo().Config
	config.MaxMsgSize = 1
	_, err = x.js.UpdateStream(ctx, config)
	return err
}

// fillDisk leaves a store no byte for a while. Postgres may exit because of that. JetStream stays disabled
// until an operator restarts the server.
func (x *experiment) fillDisk(ctx context.Context, p *part, f fault) error {
	ballast, err := os.Create(filepath.Join(x.dir, p.name, "ballast"))
	if err != nil {
		return err
	}
	for err == nil {
		_, err = ballast.Write(make([]byte, 1<<20))
	}
	sleep(ctx, f.lasts)
	cleared := errors.Join(ballast.Close(), os.Remove(ballast.Name()))
	if !errors.Is(err, syscall.ENOSPC) || cleared != nil {
		return errors.Join(err, cleared)
	}
	if p == x.nats {
		x.end(p, f.signal(p))
	}
	select {
	case <-p.Ended():
		return p.start(ctx)
	default:
		return nil
	}
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
		"cut after storing":        {CutAfter: true},
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
func (x *experiment) injectTikTok(ctx context.Context, f fault) error {
	failure := tiktokFaults()[f.target]
	failure.For = f.lasts
	if f.pick < 0.5 && failure.Count == 0 {
		failure.Rate = 0.5
	}
	if f.target == refusedOnce {
		x.refused.Store(true)
	}
	x.tiktok.Inject(failure)
	sleep(ctx, f.lasts)
	return nil
}
