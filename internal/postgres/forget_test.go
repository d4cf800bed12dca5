package postgres_test

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/contract"
	"purchase-relay/internal/purchase"
)

// everything is the ledger as text: each row of each table. Messages stand in it in hexadecimal.
func (l *ledger) everything() string {
	l.t.Helper()
	rows, err := l.conn.Query(l.t.Context(), `SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') ORDER BY 1`)
	if err != nil {
		l.t.Fatal(err)
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(tables) < 8 {
		l.t.Fatalf("tables: %v, %v", tables, err)
	}
	var text strings.Builder
	for _, table := range tables {
		text.WriteString(ask[string](l, `SELECT COALESCE(string_agg(t::text, E'\n'), '') FROM public.`+table+` t`))
	}
	return text.String()
}

// holds says whether the ledger holds a text anywhere.
func holds(everything, text string) bool {
	return strings.Contains(everything, text) || strings.Contains(everything, hex.EncodeToString([]byte(text)))
}

// people are two customers, each with a purchase in every status.
func people(l *ledger) (traces map[string][]string) {
	traces = make(map[string][]string)
	for _, name := range []string{"ada", "bob"} {
		email := name + "@example.com"
		for i, status := range purchase.Statuses() {
			id := fmt.Sprintf("cs_%s_%s", name, status)
			r := receipt("evt_"+id, id, purchase.StatusPending, "")
			r.Purchase.Email, r.Purchase.Customer, r.Purchase.Subscription = email, "cus_"+name, "sub_"+name
			r.Purchase.Keys = purchase.MatchKeys{Email: purchase.HashEmail(email), TTCLID: "click-" + name, IP: "203.0.113.7", UserAgent: "browser of " + name}
			switch status {
			case purchase.StatusAwaitingPayment, purchase.StatusPaymentFailed, purchase.StatusRejected:
				r.Purchase.Status, r.Purchase.Email, r.Purchase.At = status, "", time.Time{}
				if status == purchase.StatusRejected {
					r.Purchase.Reason = purchase.ReasonInvalidEmail
				}
			default:
			}
			l.record(r)
			switch status {
			case purchase.StatusDelivered, purchase.StatusDead, purchase.StatusRetrying, purchase.StatusSkipped:
				o := outcome(id, 1, status, fmt.Sprintf("a_%s_%d", name, i), base)
				o.Attempt.Message, o.Attempt.RequestID = "TikTok's words about "+name, "request-"+name
				if status == purchase.StatusSkipped {
					o.Reason = purchase.ReasonNotConfigured
				}
				if _, err := l.Settle(l.t.Context(), []contract.Outcome{o}); err != nil {
					l.t.Fatal(err)
				}
			case purchase.StatusPublished:
				l.exec(`UPDATE purchases SET status = 'published', published_at = now() WHERE checkout_session_id = $1`, id)
			default:
			}
		}
		traces[name] = []string{
			email, purchase.HashEmail(email), "cus_" + name, "sub_" + name, "click-" + name, "browser of " + name, "TikTok's words about " + name, "request-" + name,
			ask[string](l, `SELECT id::text FROM profiles WHERE email = $1`, email), purchase.HashExternalID(ask[string](l, `SELECT id::text FROM profiles WHERE email = $1`, email)),
		}
	}
	return traces
}

// One person leaves every table; another one, the figures and the memory of what was bought stay.
func TestForget(t *testing.T) {
	l := newLedger(t)
	traces := people(l)
	before := l.everything()
	for name, list := range traces {
		for _, trace := range list {
			if !holds(before, trace) {
				t.Errorf("the search finds nothing of %s's %q", name, trace)
			}
		}
	}
	if _, err := l.Forget(t.Context(), "nobody@example.com"); !errors.Is(err, purchase.ErrUnknown) || strings.Contains(err.Error(), "nobody@") {
		t.Errorf("nobody: %v", err)
	}

	person, err := l.Forget(t.Context(), " Ada@Example.com")
	if err != nil || len(person.Held) != len(purchase.Statuses()) || len(person.Sent()) != 1 || person.Sent()[0] != "cs_ada_delivered" {
		t.Errorf("%+v, %v", person, err)
	}
	again, err := l.Forget(t.Context(), "ada@example.com")
	if err != nil || len(again.Held) != len(person.Held) {
		t.Errorf("broken off and begun again: %+v, %v", again, err)
	}
	if done, err := l.Unlink(t.Context(), "ada@example.com", purchase.Person{ProfileID: person.ProfileID, Held: person.Held[1:]}); err != nil || done {
		t.Errorf("with a purchase that was not seen: %t, %v", done, err)
	}
	if done, err := l.Unlink(t.Context(), "ada@example.com", person); err != nil || !done {
		t.Fatalf("unlink: %t, %v", done, err)
	}
	after := l.everything()
	for _, trace := range traces["ada"] {
		if holds(after, trace) {
			t.Errorf("%q is still there", trace)
		}
	}
	for _, trace := range traces["bob"] {
		if !holds(after, trace) {
			t.Errorf("of the other one %q is gone", trace)
		}
	}
	l.rollupIsTheLedger(t, nil, time.Time{})
	standing := ask[string](l, `SELECT string_agg(status || COALESCE(NULLIF(' ' || reason, ' '), ''), ', ' ORDER BY checkout_session_id) FROM purchases WHERE checkout_session_id LIKE 'cs_ada_%'`)
	if want := "awaiting_payment, skipped forgotten, delivered, payment_failed, skipped forgotten, skipped forgotten, rejected invalid_email, skipped forgotten, skipped forgotten"; standing != want {
		t.Errorf("they stand\n%s, want\n%s", standing, want)
	}
	// Nothing of it is sent again, whoever asks, and what Stripe tells again is known.
	if claims, err := l.Claim(t.Context(), 100); err != nil || len(claims) != 1 || claims[0].ID != "cs_bob_pending" {
		t.Errorf("claimed: %+v, %v", claims, err)
	}
	if n, err := l.Replay(t.Context(), purchase.Selection{IDs: []string{"cs_ada_dead", "cs_ada_skipped"}}, func(int) {}); err != nil || n != 0 {
		t.Errorf("replayed: %d, %v", n, err)
	}
	for _, event := range []string{"evt_cs_ada_dead", "evt_new"} {
		r := receipt(event, "cs_ada_dead", purchase.StatusPending, "")
		r.Purchase.Email = "ada@example.com"
		if got := l.record(r); got.Disposition != purchase.Duplicate {
			t.Errorf("%s: %s", event, got.Disposition)
		}
	}
	// What was on its way to TikTok may have been accepted: then it is so.
	if _, err := l.Settle(t.Context(), []contract.Outcome{outcome("cs_ada_published", 1, purchase.StatusDelivered, "late", base)}); err != nil {
		t.Fatal(err)
	}
	if status := ask[string](l, `SELECT status FROM purchases WHERE checkout_session_id = 'cs_ada_published'`); status != "delivered" {
		t.Errorf("a late acceptance: %s", status)
	}
	if _, err := l.Forget(t.Context(), "ada@example.com"); !errors.Is(err, purchase.ErrUnknown) {
		t.Errorf("once more: %v", err)
	}
	// The same person may come back, as somebody new.
	r := receipt("evt_back", "cs_back", purchase.StatusPending, "")
	r.Purchase.Email = "ada@example.com"
	if got := l.record(r); !got.ProfileCreated || got.ProfileID == person.ProfileID {
		t.Errorf("back again: %+v", got)
	}
}

// A column that a migration adds may hold something of a buyer. Decide whether forget.go has to know it, then name it here.
func TestForgetKnowsEveryColumn(t *testing.T) {
	l := newLedger(t)
	got := ask[string](l, `SELECT string_agg(c.relname || '.' || a.attname, ' ' ORDER BY c.relname, a.attname) FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
		WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped AND a.atttypid IN ('text'::regtype, 'bytea'::regtype, 'uuid'::regtype, 'jsonb'::regtype)
		AND c.relname NOT LIKE 'rollup\_%' AND c.relname <> 'goose_db_version'`)
	const want = "attempts.attempt_id attempts.checkout_session_id attempts.class attempts.message attempts.request_id backfills.cursor backfills.origin " +
		"profiles.email profiles.id profiles.stripe_customer_id profiles.stripe_subscription_id " +
		"purchases.checkout_session_id purchases.currency purchases.envelope purchases.kind purchases.last_class purchases.last_error purchases.mode purchases.profile_id purchases.reason purchases.sent_page purchases.status " +
		"purchases.stripe_customer_id purchases.stripe_subscription_id purchases.tiktok_request_id purchases.trial_session_id " +
		"reconciliations.report " + // session ids and sums
		"stripe_events.checkout_session_id stripe_events.disposition stripe_events.event_id stripe_events.type " +
		"trials.checkout_session_id trials.currency trials.envelope trials.invoice_id trials.profile_id trials.purchase_id trials.reason trials.stripe_customer_id trials.subscription_id"
	if got != want {
		t.Errorf("the ledger's columns of text are\n%s\nwanted\n%s", got, want)
	}
}
