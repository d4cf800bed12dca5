package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"purchase-relay/internal/testkit/load"
)

// supply is how many requests a second are prepared at first: more than two cores answer, so that a run ends by its time.
const supply = 12_000

// shot is one measurement's figures, round by round.
type shot struct{ rate, median, p99 series }

// take sends events for the time of one measurement, all of which have to be answered as wanted.
func (s *shot) take(ctx context.Context, plan load.Plan) (load.Result, error) {
	result, err := load.Run(ctx, plan)
	if err != nil {
		return result, err
	}
	if result.Odd > 0 || result.Answered == 0 {
		return result, fmt.Errorf("%d answers were not %d, for example: %s", result.Odd, plan.Want, result.FirstOdd)
	}
	s.rate, s.median, s.p99 = append(s.rate, result.PerSecond()), append(s.median, result.Quantile(0.5)), append(s.p99, result.Quantile(0.99))
	return result, nil
}

// fresh makes as many new events as could be answered in one measurement.
func (b *bench) fresh() *events { return newEvents(int(supply*b.duration.Seconds()) + 1000) }

// latencies describes a shot's answers.
func (s *shot) latencies() func(*row) {
	return note(fmt.Sprintf("median %s ms, p99 %s ms", number(s.median.median()), number(s.p99.median())))
}

// webhooks measures ingest alone: NATS is away, nothing is delivered.
func webhooks(ctx context.Context, b *bench) error {
	ledger, err := b.database(ctx, "webhooks")
	if err != nil {
		return err
	}
	baseline, err := b.newPgbench(ctx, "baseline")
	if err != nil {
		return err
	}
	in, err := b.startIngest(ctx, ledger, "")
	if err != nil {
		return err
	}
	defer in.stop()
	null, stop, err := startNull()
	if err != nil {
		return err
	}
	defer stop()

	var pgMany, pgStatement, pgLatency series
	var duplicates, forged, ceiling shot
	counts := []int{1, 16, 64, 256}
	answered := make([]shot, len(counts))
	// The processor's time is told by few other figures, and disturbed by no neighbour.
	ofIngest, ofPostgres, ofBaseline := usageOf("ingest", in.PID()), usageOf("Postgres", b.pg.Pid()), usageOf("Postgres", b.pg.Pid())
	contenders := []contender{
		{"pgbench, 64 clients", func(ctx context.Context) error {
			ofBaseline.begin()
			c, err := baseline.run(ctx, baseline.transaction, 64, b.duration)
			ofBaseline.end(c.transactions)
			pgMany = append(pgMany, c.perSecond)
			return err
		}},
		{"pgbench, one client", func(ctx context.Context) error {
			c, err := baseline.run(ctx, baseline.transaction, 1, b.duration)
			pgLatency = append(pgLatency, c.median)
			return err
		}},
		{"pgbench, 64 clients, one statement", func(ctx context.Context) error {
			c, err := baseline.run(ctx, baseline.statement, 64, b.duration)
			pgStatement = append(pgStatement, c.perSecond)
			return err
		}},
	}
	for i, conns := range counts {
		contenders = append(contenders, contender{"webhooks, " + connections(conns), func(ctx context.Context) error {
			return in.kept(ctx, func() (int, error) {
				plan := b.fresh().plan(in.public, conns, b.duration)
				ofIngest.begin()
				ofPostgres.begin()
				result, err := answered[i].take(ctx, plan)
				if conns == 64 {
					ofIngest.end(float64(result.Answered))
					ofPostgres.end(float64(result.Answered))
				}
				return result.Answered, err
			})
		}})
	}
	contenders = append(contenders,
		contender{"duplicates", func(ctx context.Context) error {
			events := newEvents(1000)
			plan := events.plan(in.public, 64, 0)
			if _, err := load.Run(ctx, plan); err != nil {
				return err
			}
			plan.Requests, plan.For = supply*10*int(b.duration.Seconds()+1), b.duration
			_, err := duplicates.take(ctx, plan)
			return err
		}},
		contender{"forged", func(ctx context.Context) error {
			events := newEvents(1000)
			plan := events.plan(in.public, 64, b.duration)
			plan.Requests, plan.Append, plan.Want = supply*10*int(b.duration.Seconds()+1), events.forged, http.StatusBadRequest
			_, err := forged.take(ctx, plan)
			return err
		}},
		contender{"the load generator's ceiling", func(ctx context.Context) error {
			plan := newEvents(1000).plan(null, 64, b.duration)
			plan.Requests = supply * 10 * int(b.duration.Seconds()+1)
			_, err := ceiling.take(ctx, plan)
			return err
		}})
	if err := b.turns(ctx, contenders...); err != nil {
		return err
	}

	r := b.report
	r.add("pgbench, the same rows, 64 clients", "/s", pgMany, note("a transaction each: begin, three statements, commit"))
	r.add("pgbench, all rows in one statement, 64 clients", "/s", pgStatement, note("the quickest way to commit them one by one"))
	for i, conns := range counts {
		var options []func(*row)
		if conns == 64 {
			options = append(options, against("pgbench", answered[i].rate, pgMany), atLeast(2.5))
		}
		r.add(fmt.Sprintf("webhooks, all new, %s", connections(conns)), "/s", answered[i].rate, append(options, answered[i].latencies())...)
	}
	r.add("processor of ingest, each webhook", "µs", ofIngest.per, note("64 connections"))
	r.add("processor of Postgres, each webhook", "µs", ofPostgres.per, against("for pgbench", ofPostgres.per, ofBaseline.per))
	r.add("pgbench's median, one client", "ms", pgLatency)
	r.add("a webhook's median, one connection", "ms", answered[0].median, against("pgbench's", answered[0].median, pgLatency), atMost(3))
	r.add("duplicates, 64 connections", "/s", duplicates.rate, duplicates.latencies())
	r.add("forged signatures, 64 connections", "/s", forged.rate, forged.latencies())
	r.add("net/http answering without doing anything", "/s", ceiling.rate, ceiling.latencies(), note("what this load generator can show at most"))
	return nil
}

func connections(n int) string {
	if n == 1 {
		return "one connection"
	}
	return fmt.Sprintf("%d connections", n)
}

// kept checks the promise while it is measured: what was answered 200 is on the ledger.
func (i *ingest) kept(ctx context.Context, send func() (answered int, err error)) error {
	const count = "SELECT count(*) FROM public.purchases"
	before, err := query[int](ctx, i.ledger, count)
	if err != nil {
		return err
	}
	answered, err := send()
	if err != nil {
		return err
	}
	after, err := query[int](ctx, i.ledger, count)
	if err == nil && after-before != answered {
		err = fmt.Errorf("%d webhooks were answered 200, %d purchases are on the ledger", answered, after-before)
	}
	return err
}

// startNull serves a handler that reads a webhook and answers it without doing anything.
func startNull() (addr string, stop func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // ends with stop
	if err != nil {
		return "", nil, err
	}
	server := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, `{"status":"processed"}`)
	})}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	return l.Addr().String(), func() { _, _ = server.Close(), <-served }, nil
}
