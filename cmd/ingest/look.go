package main

import (
	"context"
	"net/http"
	"time"

	"go.uber.org/zap"

	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/dashboard"
	"purchase-relay/internal/ops/maintenance"
	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/queue"
	"purchase-relay/internal/service"
	"purchase-relay/internal/tiktok"
)

// newDashboard gives the dashboard its words and its eyes.
func newDashboard(reports *report.Reader, jobs *maintenance.Jobs, l *lights, wake func(), log *zap.Logger) http.Handler {
	return dashboard.New(dashboard.Config{
		Reports: reports, Replays: jobs, Health: l.health, Wake: wake, Body: renderBody, Explain: tiktok.Meaning, Version: service.Version(), Now: time.Now, Log: log,
	})
}

// renderBody is the dashboard's Renderer. Settings that only the workers have are named in ‹…›.
func renderBody(data []byte, sent *purchase.Sent) ([]byte, error) {
	envelope, err := message.DecodeEnvelope(data)
	if err != nil {
		return nil, err
	}
	pixel, testCode := "‹TIKTOK_PIXEL_ID›", ""
	if !envelope.Livemode {
		pixel, testCode = "‹TIKTOK_TEST_PIXEL_ID, else TIKTOK_PIXEL_ID›", "‹TIKTOK_TEST_EVENT_CODE, where it is set›"
	}
	page := "‹TIKTOK_PAGE_URL, where it is set›"
	if sent != nil {
		page, envelope.Keys, envelope.AmountMinor = sent.Page, envelope.Keys.Only(sent.Keys), sent.Minor
	}
	c := tiktok.Config{Payload: tiktok.PayloadEvents, EventName: "CompletePayment", PageURL: page}
	return tiktok.Body(c, pixel, testCode, []message.Envelope{envelope})
}

// lookTimeout bounds a look at the queue: a page must not hang on a neighbour that does.
const lookTimeout = 500 * time.Millisecond

func (l *lights) health(ctx context.Context) dashboard.Health {
	h := dashboard.Health{Postgres: upDown(l.db.Ping(ctx) == nil), NATS: upDown(l.queue.Connected()), Workers: []dashboard.Worker{}}
	for _, w := range l.workers.List() {
		h.Workers = append(h.Workers, newWorker(w))
	}
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	if waiting, taken, err := l.backlog.Pending(ctx); err == nil {
		h.Backlog = &dashboard.Backlog{Waiting: waiting, Taken: taken}
	}
	return h
}

func newWorker(w queue.Worker) dashboard.Worker {
	return dashboard.Worker{Instance: w.Instance, Version: w.Version, State: w.State, Reason: w.Reason, Since: w.Since, Seen: w.Seen}
}
