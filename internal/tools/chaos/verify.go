package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/testkit/stripegen"
)

// row is a purchase on the ledger, as far as it is looked at.
type row struct {
	ID, Status, Reason, Email string
	Generation, Attempts      int
	Recorded, Accepted, Calls int // attempts in their own table, those among them that TikTok accepted, and at how many moments
}

const sqlRows = `
SELECT p.checkout_session_id, p.status, p.reason, COALESCE(f.email, ''), p.generation, p.attempts, count(a.attempt_id), count(*) FILTER (WHERE a.class = 'delivered'), count(DISTINCT a.at)
FROM purchases p LEFT JOIN profiles f ON f.id = p.profile_id LEFT JOIN attempts a USING (checkout_session_id)
GROUP BY p.checkout_session_id, f.email`

const sqlOpen = `SELECT checkout_session_id || ' (' || status || ')' FROM purchases WHERE status IN ('pending', 'published', 'retrying') ORDER BY 1`

// settle waits until nothing is on its way any more. What never ends is a finding.
func (r *rehearsal) settle(ctx context.Context) error {
	var left []string
	var err error
	quiet := await(ctx, func() bool {
		if left, err = query(ctx, r.stack, pgx.RowTo[string], sqlOpen); err != nil || len(left) > 0 {
			return false
		}
		err = r.stack.drained(ctx)
		return err == nil
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if quiet {
		return nil
	}
	for _, purchase := range left {
		r.findings.add("%s never ended", purchase)
	}
	if len(left) == 0 {
		r.findings.add("%v never ended", err)
	}
	return nil
}

// drained says whether the queue holds nothing any more.
func (s *stack) drained(ctx context.Context) error {
	for stream, durable := range map[string]string{"PURCHASES": "worker", "OUTCOMES": "recorder"} {
		consumer, err := s.js.Consumer(ctx, stream, durable)
		if err != nil {
			return err
		}
		if info := consumer.CachedInfo(); info.NumPending > 0 || info.NumAckPending > 0 {
			return fmt.Errorf("%d waiting and %d unacknowledged messages of %s", info.NumPending, info.NumAckPending, stream)
		}
	}
	return nil
}

// verify counts everything.
func (r *rehearsal) verify(ctx context.Context) error {
	list, err := query(ctx, r.stack, pgx.RowToStructByPos[row], sqlRows)
	if err != nil {
		return err
	}
	ledger := make(map[string]row, len(list))
	for _, purchase := range list {
		ledger[purchase.ID] = purchase
	}
	if err := r.verifyEvents(ctx); err != nil {
		return err
	}
	for id, s := range r.load.sales {
		r.verifySale(id, s, ledger)
	}
	for id := range ledger {
		if r.load.sales[id] == nil {
			r.findings.add("%s is on the ledger, and nobody bought it", id)
		}
	}
	r.verifyTikTok(ledger)
	r.eachAlone(ctx)
	return r.readLogs()
}

// verifyEvents looks for each event that was answered 200.
func (r *rehearsal) verifyEvents(ctx context.Context) error {
	known, err := query(ctx, r.stack, pgx.RowTo[string], `SELECT event_id FROM stripe_events`)
	if err != nil {
		return err
	}
	for id, s := range r.load.events {
		switch body, taken := r.load.taken[id]; {
		case !taken:
			r.findings.add("%s was never answered 200", id)
		case s.end == ignored:
			if body != `{"status":"ignored"}` {
				r.findings.add("%s is not ours and was answered %s", id, body)
			}
		case !slices.Contains(known, id):
			r.findings.add("%s was answered 200 %s, and the ledger does not know it", id, body)
		}
	}
	return nil
}

// verifySale compares where a session stands with where it must.
func (r *rehearsal) verifySale(id string, s *sale, ledger map[string]row) {
	got, known := ledger[id]
	if s.end == ignored {
		if known {
			r.findings.add("%s is not ours, and on the ledger as %s", id, got.Status)
		}
		return
	}
	refusals := r.made.counts["tiktok"][refusedOnce]
	switch {
	case !known:
		r.findings.add("%s (%s) is not on the ledger", id, s.end)
		return
	case s.end != paid && got.Status != string(s.end):
		r.findings.add("%s is %s on the ledger, not %s", id, got.Status, s.end)
	case s.end == paid && got.Status == "dead" && (got.Reason != "refused" || refusals == 0):
		r.findings.add("%s is dead (%s), and nothing was wrong with it", id, got.Reason)
	case s.end == paid && got.Status != "dead" && got.Status != "delivered":
		r.findings.add("%s is paid, and %s (%s)", id, got.Status, got.Reason)
	}
	email := ""
	if s.end == paid || s.end == trial {
		email = strings.ToLower(*s.checkout.Email)
	}
	if got.Email != email {
		r.findings.add("%s has the profile %q, not %q", id, got.Email, email)
	}
	if got.Attempts != got.Recorded {
		r.findings.add("%s counts %d attempts, and %d are recorded: an outcome was applied twice", id, got.Attempts, got.Recorded)
	}
	if got.Recorded != got.Calls {
		r.findings.add("%s has %d attempts of %d calls: an outcome was applied twice", id, got.Recorded, got.Calls)
	}
	// The relay publishes again, too, where an acknowledgement was lost and the outcome is long in coming: each generation was tried then.
	if r.mode == modeKept && got.Generation > max(1, got.Recorded) {
		r.findings.add("%s has the generation %d after %d attempts, without a sweeper: the queue has lost it, or its outcome", id, got.Generation, got.Recorded)
	}
}

// verifyTikTok compares what TikTok holds with what was paid.
func (r *rehearsal) verifyTikTok(ledger map[string]row) {
	repeats, held := 0, make(map[string]bool)
	for _, e := range r.stack.tiktok.Received() {
		held[e.EventID] = true
		repeats += e.Copies - 1
		s := r.load.sales[e.EventID]
		if s == nil || s.end != paid {
			r.findings.add("TikTok holds %s, and nobody paid for it", e.EventID)
			continue
		}
		if e.Variants != 1 {
			r.findings.add("%s was sent in %d bodies", e.EventID, e.Variants)
		}
		paidThen := func(c stripegen.Checkout) bool {
			clamped := s.future && e.EventTime <= time.Now().Unix()
			return c.PaymentStatus == "paid" && (clamped || c.Created.Unix() == e.EventTime)
		}
		if !slices.ContainsFunc(s.events, paidThen) {
			r.findings.add("%s was paid at another time than %s", e.EventID, time.Unix(e.EventTime, 0).UTC())
		}
		if want := map[bool]string{true: "", false: testCode}[s.checkout.Livemode]; e.TestEventCode != want {
			r.findings.add("%s (livemode %t) has the test event code %q", e.EventID, s.checkout.Livemode, e.TestEventCode)
		}
		if got := ledger[e.EventID]; got.Accepted > e.Copies {
			r.findings.add("%s was accepted %d times on the ledger, and %d times at TikTok", e.EventID, got.Accepted, e.Copies)
		}
	}
	statuses, swept := make(map[string]int), 0
	for id, purchase := range ledger {
		statuses[purchase.Status]++
		if purchase.Generation > 1 {
			swept++
		}
		if purchase.Status == "delivered" && !held[id] {
			r.findings.add("%s is delivered on the ledger, and TikTok does not have it", id)
		}
	}
	r.say("\nLoad: %d checkout sessions in %d events, and their copies. On the ledger:", len(r.load.sales), len(r.load.bodies))
	for _, status := range slices.Sorted(maps.Keys(statuses)) {
		r.say("%5d  %s", statuses[status], status)
	}
	r.say("At TikTok: %d events, %d arrivals of them were repeats. %d purchases were published again.", len(held), repeats, swept)
}

// eachAlone sends one purchase through each ingest and each worker while all others are stopped: what one of them lost in the
// storm, a connection or a loop, the others would hide.
func (r *rehearsal) eachAlone(ctx context.Context) {
	s := r.stack
	for i := range max(ingests, workers) {
		ingest, worker := s.ingests[i%ingests], s.workers[i%workers]
		var others []*program
		for p := range s.admins {
			if p != ingest && p != worker {
				others = append(others, p)
			}
		}
		for _, p := range others {
			if code := p.terminate(); code != 0 {
				r.findings.add("%s ended with exit code %d after SIGTERM, with all neighbours there", p.name, code)
			}
		}
		c := stripegen.NewCheckout().Live()
		sender := stripegen.Sender{URL: "http://" + s.webhooks[i%ingests].Addr() + "/webhooks/stripe", Secret: signingSecret}
		_, err := sender.Deliver(ctx, c.Event(), 20, 100*time.Millisecond)
		status := []string{"not on the ledger"}
		if err != nil || !await(ctx, func() bool {
			status, err = query(ctx, s, pgx.RowTo[string], `SELECT status FROM purchases WHERE checkout_session_id = $1`, c.SessionID)
			return err == nil && slices.Equal(status, []string{"delivered"})
		}) {
			r.findings.add("%s and %s do not work alone any more: a purchase is %v (%v)", ingest.name, worker.name, status, err)
		}
		for _, p := range others {
			if err := errors.Join(p.start(ctx), s.awaitReady(ctx, p)); err != nil {
				r.findings.add("%v", err)
			}
		}
	}
}

// alarms are what no program may ever say.
func alarms() []string {
	return []string{"panic", "DATA RACE", "fatal error:", `"level":"fatal"`, "stack\":"}
}

// readLogs looks for alarms.
func (r *rehearsal) readLogs() error {
	for p := range r.stack.admins {
		file, err := os.Open(p.log)
		if err != nil {
			return err
		}
		lines := bufio.NewScanner(file)
		lines.Buffer(nil, 4<<20)
		for lines.Scan() {
			for _, alarm := range alarms() {
				if strings.Contains(lines.Text(), alarm) {
					r.findings.add("%s said: %.300s", p.name, lines.Text())
				}
			}
		}
		if err := errors.Join(lines.Err(), file.Close()); err != nil {
			return err
		}
	}
	return nil
}
