package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"purchase-relay/internal/testkit/faultproxy"
	"purchase-relay/internal/testkit/tiktoksim"
)

// kind is a way to break something.
type kind struct {
	name    string
	weight  int // how often it is drawn, against the others
	targets []string
	longest time.Duration
	// act makes the fault, lets it last, and ends it.
	act func(ctx context.Context, f fault) error
}

// fault is one planned fault.
type fault struct {
	kind   *kind
	target string
	at     time.Duration
	lasts  time.Duration
	pick   float64 // from 0 up to 1: what else there is to choose
}

// errAway says that there is nothing to break: another fault was quicker.
var errAway = errors.New("its target was away, or is being broken already")

// plan draws faults for a time. It is a pure function: the same source of chance draws the same ones.
func plan(random *rand.Rand, kinds []*kind, duration, gap time.Duration) (faults []fault) {
	sum := 0
	for _, k := range kinds {
		sum += k.weight
	}
	const shortest = 100 * time.Millisecond
	for at := time.Duration(0); ; {
		at += time.Duration(random.ExpFloat64() * float64(gap))
		n := random.IntN(sum)
		i := slices.IndexFunc(kinds, func(k *kind) bool { n -= k.weight; return n < 0 })
		k := kinds[i]
		f := fault{
			kind: k, target: k.targets[random.IntN(len(k.targets))], at: at, pick: random.Float64(),
			lasts: shortest + time.Duration(random.Int64N(int64(k.longest-shortest))),
		}
		if at >= duration {
			return faults
		}
		faults = append(faults, f)
	}
}

// catalogue lists what can be broken in a mode, here.
func catalogue(s *stack, mode string) []*kind {
	parts := map[string]part{"nats": s.queue, "postgres": s.database}
	for p := range s.admins {
		parts[p.name] = p
	}
	all := slices.Sorted(maps.Keys(parts))
	links := slices.Sorted(maps.Keys(s.links))
	onPart := func(act func(context.Context, part, fault) error) func(context.Context, fault) error {
		return func(ctx context.Context, f fault) error {
			p := parts[f.target]
			if !p.TryLock() {
				return errAway
			}
			defer p.Unlock()
			return act(ctx, p, f)
		}
	}
	onLink := func(begin, end func(*faultproxy.Proxy)) func(context.Context, fault) error {
		return func(ctx context.Context, f fault) error {
			begin(s.links[f.target])
			lasting(ctx, f.lasts)
			end(s.links[f.target])
			return nil
		}
	}
	nothing := func(*faultproxy.Proxy) {}
	kinds := []*kind{
		{"kill", 14, all, 3 * time.Second, onPart(func(ctx context.Context, p part, f fault) error {
			p.kill()
			lasting(ctx, f.lasts)
			return p.start(ctx)
		})},
		{"terminate", 8, all, 3 * time.Second, onPart(func(ctx context.Context, p part, f fault) error {
			p.terminate()
			lasting(ctx, f.lasts)
			return p.start(ctx)
		})},
		{"freeze", 10, all, 12 * time.Second, onPart(func(ctx context.Context, p part, f fault) error {
			return freeze(ctx, p.pids(), f.lasts)
		})},
		{"kill-backend", 3, []string{"postgres"}, time.Second, onPart(s.killBackend)},
		{"delete-consumer", 3, []string{"PURCHASES worker", "OUTCOMES recorder"}, time.Second, s.deleteConsumer},
		{"close-stream", 5, []string{"PURCHASES", "OUTCOMES", "PURCHASES_DEAD"}, time.Second, s.closeStream},
		{"cut", 10, links, time.Second, onLink((*faultproxy.Proxy).Cut, nothing)},
		{"delay", 6, links, 8 * time.Second, func(ctx context.Context, f fault) error {
			s.links[f.target].Delay(time.Duration(20+f.pick*300) * time.Millisecond)
			lasting(ctx, f.lasts)
			s.links[f.target].Delay(0)
			return nil
		}},
		{"pause", 6, links, 12 * time.Second, onLink((*faultproxy.Proxy).Pause, (*faultproxy.Proxy).Resume)},
		{"half-open", 6, links, 12 * time.Second, onLink((*faultproxy.Proxy).Deafen, (*faultproxy.Proxy).Hear)},
		{"unheard", 6, links, 6 * time.Second, onLink((*faultproxy.Proxy).DeafenClient, (*faultproxy.Proxy).Hear)},
		{"unsaid", 4, links, 6 * time.Second, onLink((*faultproxy.Proxy).DeafenServer, (*faultproxy.Proxy).Hear)},
		{"tiktok", 14, slices.Sorted(maps.Keys(badDays())), 5 * time.Second, s.badDay},
	}
	if mode == modeKept {
		return kinds
	}
	kinds = append(
		kinds,
		&kind{"wipe", 4, []string{"nats"}, 2 * time.Second, onPart(s.wipe)},
		&kind{"remove-store", 2, []string{"nats"}, 4 * time.Second, onPart(s.removeStore)},
		&kind{"delete-stream", 3, []string{"PURCHASES", "OUTCOMES", "PURCHASES_DEAD"}, time.Second, s.deleteStream},
	)
	if s.small("nats") {
		kinds = append(kinds, &kind{"disk-full", 2, []string{"nats"}, 5 * time.Second, onPart(s.fillQueue)})
	}
	if s.small("postgres") {
		kinds = append(kinds, &kind{"disk-full", 2, []string{"postgres"}, 5 * time.Second, onPart(s.fillLedger)})
	}
	return kinds
}

// lasting waits; a run that is broken off waits no longer.
func lasting(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// killBackend kills one of Postgres' processes behind a connection: Postgres ends all others and recovers.
func (s *stack) killBackend(_ context.Context, p part, f fault) error {
	var backends []int
	for _, pid := range p.pids()[1:] {
		title, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && strings.Contains(string(title), " chaos ") {
			backends = append(backends, pid)
		}
	}
	if len(backends) == 0 {
		return errAway
	}
	if err := syscall.Kill(backends[int(f.pick*float64(len(backends)))], syscall.SIGKILL); err != nil {
		return errAway
	}
	return nil
}

// wipe empties the queue's store while the server is down.
func (s *stack) wipe(ctx context.Context, p part, f fault) error {
	if f.pick < 0.5 {
		p.kill()
	} else {
		p.terminate()
	}
	if err := os.RemoveAll(s.store()); err != nil {
		return err
	}
	lasting(ctx, f.lasts)
	return p.start(ctx)
}

// removeStore takes the store from under the running server, which does not notice until it is started anew.
func (s *stack) removeStore(ctx context.Context, p part, f fault) error {
	if err := removeAll(s.store()); err != nil {
		return err
	}
	lasting(ctx, f.lasts)
	p.kill()
	if err := removeAll(s.store()); err != nil {
		return err
	}
	return p.start(ctx)
}

// removeAll removes a folder that somebody writes into.
func removeAll(dir string) error {
	for {
		if err := os.RemoveAll(dir); !errors.Is(err, syscall.ENOTEMPTY) {
			return err
		}
	}
}

func (s *stack) deleteConsumer(ctx context.Context, f fault) error {
	stream, durable, _ := strings.Cut(f.target, " ")
	if !s.nats.IsConnected() || s.js.DeleteConsumer(ctx, stream, durable) != nil {
		return errAway
	}
	return nil
}

func (s *stack) deleteStream(ctx context.Context, f fault) error {
	if !s.nats.IsConnected() {
		return errAway
	}
	if err := s.js.DeleteStream(ctx, f.target); err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
		return errAway
	}
	return nil
}

// closeStream changes a stream so that it takes nothing more; what it holds stays. Ingest mends it.
func (s *stack) closeStream(ctx context.Context, f fault) error {
	if !s.nats.IsConnected() {
		return errAway
	}
	stream, err := s.js.Stream(ctx, f.target)
	if err != nil {
		return errAway
	}
	config := stream.CachedInfo().Config
	config.MaxMsgSize = 1
	if _, err := s.js.UpdateStream(ctx, config); err != nil {
		return errAway
	}
	return nil
}

// fillQueue leaves JetStream no byte. Nobody but an operator helps a server whose disk was full: it is started anew.
func (s *stack) fillQueue(ctx context.Context, p part, f fault) error {
	empty, err := fill(filepath.Join(s.dir, "nats"))
	if err != nil {
		return err
	}
	lasting(ctx, f.lasts)
	if err := empty(); err != nil {
		return err
	}
	if f.pick < 0.5 {
		p.kill()
	} else {
		p.terminate()
	}
	return p.start(ctx)
}

// fillLedger leaves Postgres no byte. It may have ended over it: then it is started anew.
func (s *stack) fillLedger(ctx context.Context, p part, f fault) error {
	empty, err := fill(filepath.Join(s.dir, "postgres"))
	if err != nil {
		return err
	}
	lasting(ctx, f.lasts)
	if err := empty(); err != nil {
		return err
	}
	server := s.database.now.Load()
	select {
	case <-server.Ended():
		if err := server.Stop(); err != nil {
			return err
		}
		return p.start(ctx)
	default:
		return nil
	}
}

// fill writes a file until the disk is full; empty removes it.
func fill(dir string) (empty func() error, err error) {
	name := filepath.Join(dir, "ballast")
	file, err := os.Create(name) //nolint:gosec // below our own folder
	if err != nil {
		return nil, err
	}
	for err == nil {
		_, err = file.Write(make([]byte, 1<<20))
	}
	if err := file.Close(); err != nil && !errors.Is(err, fs.ErrClosed) {
		return nil, err
	}
	if !errors.Is(err, syscall.ENOSPC) {
		return nil, errors.Join(err, os.Remove(name))
	}
	return func() error { return os.Remove(name) }, nil
}

// badDays are what TikTok does on one, by name.
func badDays() map[string]tiktoksim.Fault {
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

// refusedOnce lets a good event die.
const refusedOnce = "refused once"

// badDay lets TikTok fail, every time or every other time.
func (s *stack) badDay(ctx context.Context, f fault) error {
	day := badDays()[f.target]
	day.For = f.lasts
	if f.pick < 0.5 && day.Count == 0 {
		day.Rate = 0.5
	}
	s.tiktok.Inject(day)
	lasting(ctx, f.lasts)
	return nil
}
