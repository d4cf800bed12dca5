package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"

	"purchase-relay/internal/testkit/try"
)

// webhooks measures ingest alone, without NATS: nothing is delivered.
func webhooks(ctx context.Context, b *bench) {
	pg := b.newPgbench(ctx, "baseline")
	in := b.startIngestAlone(ctx, "webhooks")
	null := b.startNull()

	var transaction, single, statement, known, duplicates, forged, ceiling loadSeries
	ofIngest := newUsage("ingest", in.PID())
	ofPostgres, ofBaseline := newUsage("Postgres", b.pg.Pid()), newUsage("Postgres", b.pg.Pid())
	measurements := []measurement{
		pg.measurement(b, "pgbench, 64 clients", pg.transaction, 64, &transaction, ofBaseline),
		pg.measurement(b, "pgbench, one client", pg.transaction, 1, &single),
		pg.measurement(b, "pgbench, 64 clients, one statement", pg.statement, 64, &statement),
	}
	connections := []int{1, 16, 64, 256}
	webhooks := make([]loadSeries, len(connections))
	for i, conns := range connections {
		var usages []*usage
		if conns == 64 {
			usages = []*usage{ofIngest, ofPostgres}
		}
		name := fmt.Sprintf("webhooks, %d connections", conns)
		measurements = append(measurements, webhooks[i].measurement(b, name, in.addr, conns, usages...))
	}
	b.turns(ctx, append(measurements,
		measurement{"duplicates", func(ctx context.Context) {
			events := newEvents(order(), 1000)
			known.run(ctx, events.plan(in.addr, 64))
			duplicates.run(ctx, events.repeated(in.addr, 64, b.duration))
		}},
		measurement{"forged", func(ctx context.Context) {
			events := newEvents(order(), 1000)
			plan := events.repeated(in.addr, 64, b.duration)
			plan.Append, plan.Want = events.forged, http.StatusBadRequest
			forged.run(ctx, plan)
		}},
		measurement{"the load generator's ceiling", func(ctx context.Context) {
			ceiling.run(ctx, newEvents(order(), 1000).repeated(null, 64, b.duration))
		}})...)
	answered := known.answered
	for _, s := range webhooks {
		answered += s.answered
	}
	if recorded := query[int](ctx, in.ledger, sqlCount); recorded != answered {
		try.Check(fmt.Errorf("%d webhooks were answered 200, %d purchases are on the ledger", answered, recorded))
	}

	r := b.report
	r.add("pgbench, the same rows, 64 clients", "/s", transaction.rate).
		note("a transaction each: begin, three statements, commit")
	r.add("pgbench, all rows in one statement, 64 clients", "/s", statement.rate).
		note("the fastest way to commit them one by one")
	for i, conns := range connections {
		row := webhooks[i].report(b, fmt.Sprintf("webhooks, all new, %d connections", conns))
		if conns == 64 {
			row.against("pgbench", transaction.rate).atLeast(2.5)
		}
	}
	r.add("processor of ingest, each webhook", "µs", ofIngest.each).note("64 connections")
	r.add("processor of Postgres, each webhook", "µs", ofPostgres.each).against("for pgbench", ofBaseline.each)
	r.add("pgbench's median, one client", "ms", single.median)
	r.add("a webhook's median, one connection", "ms", webhooks[0].median).
		against("pgbench's", single.median).atMost(3)
	duplicates.report(b, "duplicates, 64 connections")
	forged.report(b, "forged signatures, 64 connections")
	ceiling.report(b, "the load generator's ceiling: net/http without work")
}

// startNull serves a handler that reads a webhook and does nothing.
func (b *bench) startNull() (addr string) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, `{"status":"processed"}`)
	}))
	b.OnEnd(func() error {
		server.Close()
		return nil
	})
	return server.Listener.Addr().String()
}
