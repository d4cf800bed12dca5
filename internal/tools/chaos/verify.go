package main

import (
	"context"
	"errors"
	"expvar"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/testkit/launch"
	"purchase-relay/internal/testkit/stripegen"
	"purchase-relay/internal/testkit/tiktoksim"
	"purchase-relay/internal/testkit/try"
)

// settle waits until no purchase is in flight. Where one remains, that is a finding.
func (x *experiment) settle(ctx context.Context) {
	const sqlOpen = `
SELECT checkout_session_id || ' (' || status || ')' FROM purchases
WHERE status IN ('pending', 'published', 'retrying') ORDER BY 1 LIMIT 5`
	var open []string
	var err error
	if !await(ctx, func() bool {
		open, err = query(ctx, x, pgx.RowTo[string], sqlOpen)
		err = errors.Join(err, x.drained(ctx))
		return err == nil && len(open) == 0
	}) {
		try.Check(ctx.Err())
		x.find("after %s these are in flight: %v (%v)", patience, open, err)
	}
}

// drained returns an error while the queue holds messages.
func (x *experiment) drained(ctx context.Context) error {
	for stream, durable := range map[string]string{"PURCHASES": "worker", "OUTCOMES": "recorder"} {
		consumer, err := x.js.Consumer(ctx, stream, durable)
		if err != nil {
			return err
		}
		if info := consumer.CachedInfo(); info.NumPending > 0 || info.NumAckPending > 0 {
			return fmt.Errorf("%s: %d pending, %d unacknowledged", stream, info.NumPending, info.NumAckPending)
		}
	}
	return nil
}

// row is a purchase on the ledger.
type row struct {
	ID, Status, Reason, Email string
	Generation, Attempts      int

	// Attempts on the ledger: all, accepted by TikTok, and distinct times.
	Recorded, Accepted, Calls int
}

const sqlRows = `
SELECT p.checkout_session_id, p.status, p.reason, COALESCE(f.email, ''), p.generation, p.attempts,
    count(a.attempt_id), count(*) FILTER (WHERE a.class = 'delivered'), count(DISTINCT a.at)
FROM purchases p LEFT JOIN profiles f ON f.id = p.profile_id
    LEFT JOIN purchase_attempts a USING (checkout_session_id)
GROUP BY p.checkout_session_id, f.email`

// verify compares what Stripe sent with the ledger and with TikTok.
func (x *experiment) verify(ctx context.Context) {
	ledger, statuses, republished := make(map[string]row), expvar.Map{}, 0
	for _, r := range try.Must(query(ctx, x, pgx.RowToStructByPos[row], sqlRows)) {
		ledger[r.ID] = r
		statuses.Add(r.Status, 1)
		if r.Generation > 1 {
			republished++
		}
	}
	recorded := make(map[string]bool)
	for _, id := range try.Must(query(ctx, x, pgx.RowTo[string], `SELECT event_id FROM stripe_events`)) {
		recorded[id] = true
	}
	received, repeats := make(map[string]tiktoksim.Event), 0
	for _, e := range x.tiktok.Received() {
		received[e.EventID] = e
		repeats += e.Copies - 1
	}
	x.say("\nSent:      %d checkout sessions, their events and copies", len(x.sales))
	x.say("Ledger:    %s; published again %d", &statuses, republished)
	x.say("At TikTok: %d events, repeated %d times", len(received), repeats)
	for _, s := range x.sales {
		r, e := ledger[s.id()], received[s.id()]
		if got, want := x.result(s, r, e, recorded), x.wanted(s, r, e); got != want {
			x.find("a session that ends %s became %+v, want %+v; on the ledger %+v", s.end, got, want, r)
		}
		// The relay also publishes again after a lost acknowledgement without an outcome. Each generation was
		// then tried.
		if x.keepQueue && r.Generation > max(1, r.Recorded) {
			x.find("%s has the generation %d after %d attempts without a sweeper: the queue lost a message",
				r.ID, r.Generation, r.Recorded)
		}
		delete(ledger, s.id())
		delete(received, s.id())
	}
	for id := range ledger {
		x.find("%s is on the ledger without a checkout", id)
	}
	for id := range received {
		x.find("%s is at TikTok without a checkout", id)
	}
	x.verifyReplicas(ctx)
	x.verifyEnd()
}

// result is what became of a checkout session.
type result struct {
	ID                 string
	Answered, Recorded int    // its events with a right answer 2xx, those on the ledger
	Status, Email      string // on the ledger
	OutcomesDiffer     bool   // from the attempts: one was applied twice, or TikTok accepted less often
	Bodies             int    // at TikTok, 0: not there
	PaidThen           bool   // one of its events is of the time at TikTok
	TestCode           string
}

// result compiles what became of a sale. Its row and its event at TikTok are zero where there is none.
func (x *experiment) result(s *sale, r row, e tiktoksim.Event, recorded map[string]bool) result {
	got := result{
		ID: s.id(), Status: r.Status, Email: r.Email, Bodies: e.Variants, TestCode: e.TestEventCode,
		OutcomesDiffer: r.Attempts != r.Recorded || r.Recorded != r.Calls || r.Accepted > e.Copies,
	}
	for _, c := range s.events {
		body, accepted := x.accepted[c.EventID]
		if accepted && (body == `{"status":"ignored"}`) == (s.end == ignored) {
			got.Answered++
		}
		if recorded[c.EventID] {
			got.Recorded++
		}
		clamped := s.future && e.EventTime <= time.Now().Unix()
		if c.PaymentStatus == "paid" && e.Variants > 0 && (clamped || c.Created.Unix() == e.EventTime) {
			got.PaidThen = true
		}
	}
	return got
}

// wanted returns what must become of a sale. A paid one may be dead after an injected refusal, and TikTok may
// have accepted it before.
func (x *experiment) wanted(s *sale, r row, e tiktoksim.Event) result {
	want := result{ID: s.id(), Answered: len(s.events)}
	if s.end == ignored {
		return want
	}
	want.Recorded, want.Status = len(s.events), string(s.end)
	if s.end == paid || s.end == trial {
		want.Email = strings.ToLower(*s.events[0].Email)
	}
	if s.end != paid {
		return want
	}
	want.Status = "delivered"
	if r.Status == "dead" && r.Reason == "refused" && x.refused.Load() {
		want.Status = "dead"
	}
	if want.Status == "delivered" || e.Variants > 0 {
		want.Bodies, want.PaidThen = 1, true
		if !s.events[0].Livemode {
			want.TestCode = testCode
		}
	}
	return want
}

// verifyReplicas sends one purchase through each ingest and each worker while all others are stopped: these
// would hide a connection or a loop that one of them lost.
func (x *experiment) verifyReplicas(ctx context.Context) {
	for i := range max(ingests, workers) {
		ingest, worker := x.ingests[i%ingests], x.workers[i%workers]
		others := slices.DeleteFunc(x.replicas(), func(p *part) bool { return p == ingest || p == worker })
		for _, p := range others {
			if code := x.end(p, p.stopSignal); code != 0 {
				x.find("%s ended with exit code %d after SIGTERM", p.name, code)
			}
		}
		c := stripegen.NewCheckout().Live()
		url := "http://" + x.links["stripe→"+ingest.name].Addr() + "/webhooks/stripe"
		sender := stripegen.Sender{URL: url, Secret: launch.SigningSecret}
		_, err := sender.Deliver(ctx, c.Event(), 20, 100*time.Millisecond)
		status := []string{"not on the ledger"}
		if err != nil || !await(ctx, func() bool {
			const sqlStatus = `SELECT status FROM purchases WHERE checkout_session_id = $1`
			status, err = query(ctx, x, pgx.RowTo[string], sqlStatus, c.SessionID)
			return err == nil && slices.Equal(status, []string{"delivered"})
		}) {
			x.find("%s and %s do not work alone: a purchase is %v (%v)", ingest.name, worker.name, status, err)
		}
		for _, p := range others {
			if err := errors.Join(p.start(ctx), awaitReady(ctx, p)); err != nil {
				x.find("%v", err)
			}
		}
	}
}

// verifyEnd ends the programs and looks into their logs for lines that none may log.
func (x *experiment) verifyEnd() {
	alarms := []string{"panic", "DATA RACE", "fatal error:", `"level":"fatal"`, "stack\":"}
	for _, p := range append(x.replicas(), x.nats) {
		x.end(p, syscall.SIGKILL)
	}
	for _, p := range x.replicas() {
		for line := range strings.Lines(string(try.Must(os.ReadFile(filepath.Join(x.dir, p.name+".log"))))) {
			if slices.ContainsFunc(alarms, func(alarm string) bool { return strings.Contains(line, alarm) }) {
				x.find("%s logged: %.300s", p.name, line)
			}
		}
	}
}
