package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"purchase-relay/internal/testkit/freeport"
)

// line is the whole way from the webhook to TikTok, every part of it on this machine and in a process of its own.
type line struct {
	b        *bench
	in       *ingest
	worker   *program
	nats     *program
	natsAddr string
	store    string
	tiktok   *simulator
}

// startLine starts everything on a ledger of this name, with more environment for ingest and for the worker.
func (b *bench) startLine(ctx context.Context, name string, ingestEnv, workerEnv []string) (l *line, err error) {
	l = &line{b: b, store: name}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.stop())
		}
	}()
	ledger, err := b.database(ctx, name)
	if err != nil {
		return l, err
	}
	addrs, err := freeport.Addrs(1)
	if err != nil {
		return l, err
	}
	l.natsAddr = addrs[0]
	if err := l.startNATS(ctx); err != nil {
		return l, err
	}
	if l.tiktok, err = b.startSimulator(ctx, b.latency); err != nil {
		return l, err
	}
	if l.in, err = b.startIngest(ctx, ledger, l.natsAddr, ingestEnv...); err != nil {
		return l, err
	}
	l.worker, err = b.startWorker(l.natsAddr, l.tiktok, workerEnv...)
	return l, err
}

func (l *line) startNATS(ctx context.Context) (err error) {
	l.nats, err = l.b.startNATS(ctx, l.natsAddr, l.store)
	return err
}

func (l *line) stop() error {
	if l.worker != nil {
		l.worker.stop()
	}
	if l.in != nil {
		l.in.stop()
	}
	if l.tiktok != nil {
		l.tiktok.stop()
	}
	if l.nats != nil {
		l.nats.stop()
	}
	return os.RemoveAll(filepath.Join(l.b.dir, l.store))
}

const sqlOnTheWay = "SELECT count(*) FROM public.purchases WHERE status IN ('pending', 'published', 'retrying')"

// arrived waits until every purchase has its outcome on the ledger.
func (l *line) arrived(ctx context.Context) error {
	var last error
	err := l.in.await(ctx, "every purchase to be delivered", func() bool {
		onTheWay, err := query[int](ctx, l.in.ledger, sqlOnTheWay)
		last = err
		return err == nil && onTheWay == 0
	})
	return errors.Join(err, last)
}

// check compares the ledger with what TikTok got: everything, once.
func (l *line) check(ctx context.Context) error {
	delivered, err := query[int](ctx, l.in.ledger, "SELECT count(*) FROM public.purchases WHERE status = 'delivered'")
	if err != nil {
		return err
	}
	all, err := query[int](ctx, l.in.ledger, "SELECT count(*) FROM public.purchases")
	if err != nil {
		return err
	}
	stats, err := l.tiktok.stats(ctx)
	if err == nil && (all != delivered || all != stats.Accepted) {
		err = fmt.Errorf("of %d purchases %d are delivered, and TikTok accepted %d", all, delivered, stats.Accepted)
	}
	return err
}

// usage is what one process used of the processor, per purchase and round by round, and of the memory.
type usage struct {
	name     string
	now      func() float64 // seconds so far
	pid      int            // 0: its memory is of no interest
	before   float64
	per      series // microseconds
	resident series
}

func usageOf(name string, pid int) *usage {
	return &usage{name: name, pid: pid, now: func() float64 { return processor(pid) }}
}

func (u *usage) begin() { u.before = u.now() }

func (u *usage) end(purchases float64) { u.per = append(u.per, (u.now()-u.before)*1e6/purchases) }

func (l *line) usages() []*usage {
	postgres := usageOf("Postgres", l.b.pg.Pid())
	postgres.pid = 0 // shared pages would count once a process
	return []*usage{
		usageOf("ingest", l.in.PID()), usageOf("tiktok-worker", l.worker.PID()), postgres, usageOf("nats-server", l.nats.PID()),
		usageOf("TikTok simulator", l.tiktok.PID()),
		{name: "load generator", now: ownProcessor},
	}
}

// whole measures webhooks with and without everything behind them on the same two cores.
func whole(ctx context.Context, b *bench) (err error) {
	ledger, err := b.database(ctx, "alone")
	if err != nil {
		return err
	}
	alone, err := b.startIngest(ctx, ledger, "")
	if err != nil {
		return err
	}
	defer alone.stop()
	baseline, err := b.newPgbench(ctx, "whole_baseline")
	if err != nil {
		return err
	}
	l, err := b.startLine(ctx, "whole", nil, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.stop()) }()

	var pg, sustained, meanwhile series
	var without, with shot
	usages := l.usages()
	err = b.turns(ctx,
		contender{"pgbench, 64 clients", func(ctx context.Context) error {
			c, err := baseline.run(ctx, baseline.transaction, 64, b.duration)
			pg = append(pg, c.perSecond)
			return err
		}},
		contender{"webhooks alone", func(ctx context.Context) error {
			_, err := without.take(ctx, b.fresh().plan(alone.public, 64, b.duration))
			return err
		}},
		contender{"the whole way", func(ctx context.Context) error {
			events := b.fresh()
			for _, u := range usages {
				u.begin()
			}
			began := time.Now()
			result, err := with.take(ctx, events.plan(l.in.public, 64, b.duration))
			if err != nil {
				return err
			}
			onTheWay, err := query[int](ctx, l.in.ledger, sqlOnTheWay)
			if err != nil {
				return err
			}
			for _, u := range usages {
				if u.pid != 0 {
					resident, _ := memory(u.pid)
					u.resident = append(u.resident, resident)
				}
			}
			if err := l.arrived(ctx); err != nil {
				return err
			}
			sustained = append(sustained, float64(result.Answered)/time.Since(began).Seconds())
			meanwhile = append(meanwhile, 100*float64(result.Answered-onTheWay)/float64(result.Answered))
			for _, u := range usages {
				u.end(float64(result.Answered))
			}
			return nil
		}},
	)
	if err != nil {
		return err
	}
	if err := l.check(ctx); err != nil {
		return err
	}
	r := b.report
	r.add("pgbench, the same rows, 64 clients", "/s", pg)
	r.add("webhooks alone, 64 connections", "/s", without.rate, without.latencies())
	r.add("webhooks, the whole way running", "/s", with.rate, against("pgbench", with.rate, pg), atLeast(1), with.latencies())
	r.add("the whole way, sustained", "/s", sustained, against("webhooks alone", sustained, without.rate), atLeast(0.6),
		note(fmt.Sprintf("from the first webhook to the last outcome on the ledger; %.0f %% were delivered when the webhooks ended", meanwhile.median())))
	picture := bar{title: "The processor's time for one purchase, all parts on one machine", unit: "µs"}
	for _, u := range usages {
		if u.per.median() > 0 {
			r.add("processor of "+u.name+", each purchase", "µs", u.per)
			picture.parts = append(picture.parts, partOf(u.name, u.per))
		}
	}
	b.pictures = append(b.pictures, picture)
	for _, u := range usages {
		if u.pid == 0 {
			continue
		}
		_, peak := memory(u.pid)
		var options []func(*row)
		if u.name == "ingest" || u.name == "tiktok-worker" {
			options = append(options, atMost(64))
		}
		if peak > 0 {
			r.add("resident memory of "+u.name+", peak", "MiB", series{peak}, append(options, note(fmt.Sprintf("%.0f MiB at the end of a round", u.resident.median())))...)
		}
	}
	return nil
}

// outage measures the webhook's median at an even pace, while TikTok or NATS is down and while both are up.
func outage(ctx context.Context, b *bench) (err error) {
	// Retries soon, so that a round begins with nothing left of the one before.
	l, err := b.startLine(ctx, "outage", nil, []string{"RETRY_INITIAL=100ms", "RETRY_MAX=1s"})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.stop()) }()
	const pace = 5 * time.Millisecond
	var up, tiktok, nats shot
	take := func(ctx context.Context, s *shot) error {
		plan := newEvents(int(b.duration/pace)+1).plan(l.in.public, 8, 0)
		plan.Every = pace
		_, err := s.take(ctx, plan)
		return err
	}
	faults := "http://" + l.tiktok.addr + "/faults"
	err = b.turns(ctx,
		contender{"both up", func(ctx context.Context) error {
			return errors.Join(take(ctx, &up), l.arrived(ctx))
		}},
		contender{"TikTok down", func(ctx context.Context) error {
			if status, body, err := ask(ctx, http.MethodPost, faults, `{"status":503}`); err != nil || status != http.StatusOK {
				return fmt.Errorf("let the simulator fail: %d %s %w", status, body, err)
			}
			err := take(ctx, &tiktok)
			if _, _, clear := ask(ctx, http.MethodDelete, faults, ""); clear != nil {
				return errors.Join(err, clear)
			}
			return errors.Join(err, l.arrived(ctx))
		}},
		contender{"NATS down", func(ctx context.Context) error {
			l.nats.stop()
			err := take(ctx, &nats)
			if again := l.startNATS(ctx); again != nil {
				return errors.Join(err, again)
			}
			return errors.Join(err, l.arrived(ctx))
		}},
	)
	if err != nil {
		return err
	}
	if err := l.check(ctx); err != nil {
		return err
	}
	p99 := func(s *shot) func(*row) { return note("p99 " + number(s.p99.median()) + " ms") }
	b.report.add("a webhook's median, both up", "ms", up.median, p99(&up))
	b.report.add("a webhook's median, TikTok down", "ms", tiktok.median, against("up", tiktok.median, up.median), atMost(1.1), p99(&tiktok))
	b.report.add("a webhook's median, NATS down", "ms", nats.median, against("up", nats.median, up.median), atMost(1.1), p99(&nats))
	return nil
}
