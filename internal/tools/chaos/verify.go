package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/testkit/launch"
	"purchase-relay/internal/testkit/stripegen"
	"purchase-relay/internal/testkit/tiktoksim"
)

// settle waits until no purchase is in flight. One that remains is a finding.
func (x *experiment) settle(ctx context.Context) error {
	const sqlOpen = `
SELECT checkout_session_id || ' (' || status || ')' FROM purchases
WHERE status IN ('pending', 'published', 'retrying') ORDER BY 1`
	var open []string
	var err error
	settled := await(ctx, func() bool {
		if open, err = query(ctx, x.stack, pgx.RowTo[string], sqlOpen); err != nil || len(open) > 0 {
			return false
		}
		err = x.stack.drained(ctx)
		return err == nil
	})
	if settled || ctx.Err() != nil {
		return ctx.Err()
	}
	for _, purchase := range open {
		x.findings.add("%s is still in flight", purchase)
	}
	if len(open) == 0 {
		x.findings.add("the queue is not drained: %v", err)
	}
	return nil
}

// drained returns an error while the queue holds messages.
func (s *stack) drained(ctx context.Context) error {
	for stream, durable := range map[string]string{"PURCHASES": "worker", "OUTCOMES": "recorder"} {
		consumer, err := s.js.Consumer(ctx, stream, durable)
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
func (x *experiment) verify(ctx context.Context) error {
	list, err := query(ctx, x.stack, pgx.RowToStructByPos[row], sqlRows)
	if err != nil {
		return err
	}
	events, err := query(ctx, x.stack, pgx.RowTo[string], `SELECT event_id FROM stripe_events`)
	if err != nil {
		return err
	}
	ledger, statuses, republished := make(map[string]row), tally{}, 0
	for _, r := range list {
		ledger[r.ID] = r
		statuses.add(r.Status)
		if r.Generation > 1 {
			republished++
		}
		if x.load.sales[r.ID] == nil {
			x.findings.add("%s is on the ledger without a checkout", r.ID)
		}
	}
	for id, s := range x.load.events {
		x.verifyEvent(id, s, slices.Contains(events, id))
	}
	for id, s := range x.load.sales {
		r, found := ledger[id]
		x.verifySale(id, s, r, found)
	}
	held, repeats := make(map[string]bool), 0
	for _, e := range x.stack.tiktok.Received() {
		held[e.EventID] = true
		repeats += e.Copies - 1
		x.verifyDelivery(e, ledger[e.EventID])
	}
	for id, r := range ledger {
		if r.Status == "delivered" && !held[id] {
			x.findings.add("%s is delivered on the ledger, but not at TikTok", id)
		}
	}
	x.say("\nSent:      %d checkout sessions in %d events, and copies", len(x.load.sales), len(x.load.bodies))
	x.say("Ledger:    %s; published again %d", &statuses, republished)
	x.say("At TikTok: %d events, repeated %d times", len(held), repeats)
	x.verifyReplicas(ctx)
	return x.verifyLogs()
}

// verifyEvent checks that an event was accepted and recorded.
func (x *experiment) verifyEvent(id string, s *sale, recorded bool) {
	switch body, accepted := x.load.accepted[id]; {
	case !accepted:
		x.findings.add("%s was never answered 200", id)
	case s.end == ignored && body != `{"status":"ignored"}`:
		x.findings.add("%s is foreign and was answered %s", id, body)
	case s.end != ignored && !recorded:
		x.findings.add("%s was answered 200 %s, but is not on the ledger", id, body)
	}
}

// verifySale compares a session's row on the ledger with what must become of it.
func (x *experiment) verifySale(id string, s *sale, got row, found bool) {
	if s.end == ignored {
		if found {
			x.findings.add("%s is foreign, but on the ledger as %s", id, got.Status)
		}
		return
	}
	switch {
	case !found:
		x.findings.add("%s (%s) is not on the ledger", id, s.end)
		return
	case s.end != paid && got.Status != string(s.end):
		x.findings.add("%s is %s on the ledger, not %s", id, got.Status, s.end)
	case s.end == paid && got.Status == "dead" && (got.Reason != "refused" || x.stack.refusals.Load() == 0):
		x.findings.add("%s is dead (%s), although it is valid", id, got.Reason)
	case s.end == paid && got.Status != "dead" && got.Status != "delivered":
		x.findings.add("%s is paid, but %s (%s)", id, got.Status, got.Reason)
	}
	email := ""
	if s.end == paid || s.end == trial {
		email = strings.ToLower(*s.events[0].Email)
	}
	if got.Email != email {
		x.findings.add("%s has the profile %q, not %q", id, got.Email, email)
	}
	if got.Attempts != got.Recorded || got.Recorded != got.Calls {
		x.findings.add("%s counts %d attempts with %d rows at %d times: an outcome was applied twice",
			id, got.Attempts, got.Recorded, got.Calls)
	}
	// The relay also publishes again after a lost acknowledgement without an outcome. Each generation was then
	// tried.
	if x.mode == modeKept && got.Generation > max(1, got.Recorded) {
		x.findings.add("%s has the generation %d after %d attempts without a sweeper: the queue lost a message",
			id, got.Generation, got.Recorded)
	}
}

// verifyDelivery compares an event at TikTok with its checkout and its row on the ledger.
func (x *experiment) verifyDelivery(e tiktoksim.Event, onLedger row) {
	s := x.load.sales[e.EventID]
	if s == nil || s.end != paid {
		x.findings.add("%s is at TikTok, but unpaid", e.EventID)
		return
	}
	if e.Variants != 1 {
		x.findings.add("%s was sent in %d bodies", e.EventID, e.Variants)
	}
	paidThen := func(c stripegen.Checkout) bool {
		clamped := s.future && e.EventTime <= time.Now().Unix()
		return c.PaymentStatus == "paid" && (clamped || c.Created.Unix() == e.EventTime)
	}
	if !slices.ContainsFunc(s.events, paidThen) {
		x.findings.add("%s was not paid at %s", e.EventID, time.Unix(e.EventTime, 0).UTC())
	}
	code := testCode
	if s.events[0].Livemode {
		code = ""
	}
	if e.TestEventCode != code {
		x.findings.add("%s has the test event code %q, not %q", e.EventID, e.TestEventCode, code)
	}
	if onLedger.Accepted > e.Copies {
		x.findings.add("%s was accepted %d times on the ledger, %d times at TikTok",
			e.EventID, onLedger.Accepted, e.Copies)
	}
}

// verifyReplicas sends one purchase through each ingest and each worker while all others are stopped: these
// would hide a connection or a loop that one of them lost.
func (x *experiment) verifyReplicas(ctx context.Context) {
	s := x.stack
	for i := range max(ingests, workers) {
		ingest, worker := s.ingests[i%ingests], s.workers[i%workers]
		others := slices.DeleteFunc(s.replicas(), func(p *part) bool { return p == ingest || p == worker })
		for _, p := range others {
			if code := p.terminate(); code != 0 {
				x.findings.add("%s ended with exit code %d after SIGTERM", p.name, code)
			}
		}
		c := stripegen.NewCheckout().Live()
		url := "http://" + s.webhooks(ingest) + "/webhooks/stripe"
		sender := stripegen.Sender{URL: url, Secret: launch.SigningSecret}
		_, err := sender.Deliver(ctx, c.Event(), 20, 100*time.Millisecond)
		status := []string{"not on the ledger"}
		if err != nil || !await(ctx, func() bool {
			const sqlStatus = `SELECT status FROM purchases WHERE checkout_session_id = $1`
			status, err = query(ctx, s, pgx.RowTo[string], sqlStatus, c.SessionID)
			return err == nil && slices.Equal(status, []string{"delivered"})
		}) {
			x.findings.add("%s and %s do not work alone: a purchase is %v (%v)", ingest.name, worker.name, status, err)
		}
		for _, p := range others {
			if err := errors.Join(p.start(ctx), awaitReady(ctx, p)); err != nil {
				x.findings.add("%v", err)
			}
		}
	}
}

// verifyLogs looks for lines that no program may log.
func (x *experiment) verifyLogs() error {
	alarms := []string{"panic", "DATA RACE", "fatal error:", `"level":"fatal"`, "stack\":"}
	for _, p := range x.stack.replicas() {
		file, err := os.Open(p.log)
		if err != nil {
			return err
		}
		lines := bufio.NewScanner(file)
		lines.Buffer(nil, 4<<20)
		for lines.Scan() {
			if slices.ContainsFunc(alarms, func(alarm string) bool { return strings.Contains(lines.Text(), alarm) }) {
				x.findings.add("%s logged: %.300s", p.name, lines.Text())
			}
		}
		if err := errors.Join(lines.Err(), file.Close()); err != nil {
			return err
		}
	}
	return nil
}
