package maintenance_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"purchase-relay/internal/ops/maintenance"
	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/testkit/ledgertest"
)

// twoCustomers records a purchase in every status for ada and bob and returns the traces of each.
func twoCustomers(l *ledgertest.Ledger) (traces map[string][]string) {
	traces = make(map[string][]string)
	for _, name := range []string{"ada", "bob"} {
		email := name + "@example.com"
		for i, status := range purchase.Statuses() {
			id := fmt.Sprintf("cs_%s_%s", name, status)
			r := ledgertest.Receipt("evt_"+id, id, purchase.StatusPending, "")
			r.Purchase.Email, r.Purchase.Customer, r.Purchase.Subscription = email, "cus_"+name, "sub_"+name
			r.Purchase.Keys = purchase.MatchKeys{
				Email: purchase.HashEmail(email), TTCLID: "click-" + name, IP: "203.0.113.7",
				UserAgent: "browser of " + name,
			}
			switch status {
			case purchase.StatusAwaitingPayment, purchase.StatusPaymentFailed, purchase.StatusRejected:
				r.Purchase.Status, r.Purchase.Email, r.Purchase.At = status, "", time.Time{}
				if status == purchase.StatusRejected {
					r.Purchase.Reason = purchase.ReasonInvalidEmail
				}
			default:
			}
			l.MustRecord(r)
			switch status {
			case purchase.StatusDelivered, purchase.StatusDead, purchase.StatusRetrying, purchase.StatusSkipped:
				o := ledgertest.Outcome(id, 1, status, fmt.Sprintf("a_%s_%d", name, i), base)
				o.Attempt.Message, o.Attempt.RequestID = "TikTok's message about "+name, "request-"+name
				if status == purchase.StatusSkipped {
					o.Reason = purchase.ReasonNotConfigured
				}
				l.MustSettle(o)
			case purchase.StatusPublished:
				l.Exec(`UPDATE purchases SET status = 'published', published_at = now() WHERE checkout_session_id = $1`,
					id)
			default:
			}
		}
		traces[name] = []string{
			email, purchase.HashEmail(email), "cus_" + name, "sub_" + name, "click-" + name, "browser of " + name,
			"TikTok's message about " + name, "request-" + name,
			ledgertest.Ask[string](l, `SELECT id::text FROM profiles WHERE email = $1`, email),
			purchase.HashExternalID(ledgertest.Ask[string](l, `SELECT id::text FROM profiles
				WHERE email = $1`, email)),
		}
	}
	return traces
}

// The other customer, the totals and the purchases' ids stay.
func TestForget_RemovesOneCustomer(t *testing.T) {
	t.Parallel()
	l := ledgertest.New(t)
	traces := twoCustomers(l)
	before := l.Dump()
	for name, list := range traces {
		for _, trace := range list {
			if !ledgertest.Holds(before, trace) {
				t.Errorf("before: the ledger lacks %s's %q", name, trace)
			}
		}
	}
	if _, err := l.Forget(t.Context(), "unknown@example.com"); !errors.Is(err, report.ErrNotFound) ||
		strings.Contains(err.Error(), "unknown@") {
		t.Errorf("unknown address: error = %v, want ErrNotFound without the address", err)
	}

	person, err := l.Forget(t.Context(), " Ada@Example.com")
	if err != nil || len(person.Purchases) != len(purchase.Statuses()) || len(person.Sent()) != 1 ||
		person.Sent()[0] != "cs_ada_delivered" {
		t.Errorf("person = %+v, %v", person, err)
	}
	again, err := l.Forget(t.Context(), "ada@example.com")
	if err != nil || len(again.Purchases) != len(person.Purchases) {
		t.Errorf("repeated: person = %+v, %v", again, err)
	}
	if _, done, err := l.Unlink(t.Context(), "ada@example.com", maintenance.Person{
		Profiles:  person.Profiles,
		Purchases: person.Purchases[1:],
	}); err != nil || done {
		t.Errorf("unlink with an unseen purchase = %t, %v, want false", done, err)
	}
	if _, done, err := l.Unlink(t.Context(), "ada@example.com", person); err != nil || !done {
		t.Fatalf("unlink = %t, %v, want true", done, err)
	}
	checkNoTraces(l, traces["ada"]...)
	after := l.Dump()
	for _, trace := range traces["bob"] {
		if !ledgertest.Holds(after, trace) {
			t.Errorf("the ledger lacks the other customer's %q", trace)
		}
	}
	l.CheckRollup(t, nil, ledgertest.Since(time.Time{}))
	states := ledgertest.Ask[string](l,
		`SELECT string_agg(status || COALESCE(NULLIF(' ' || reason, ' '), ''), ', ' ORDER BY checkout_session_id)
			FROM purchases WHERE checkout_session_id LIKE 'cs_ada_%'`)
	const want = "awaiting_payment, skipped forgotten, delivered, payment_failed, skipped forgotten, " +
		"skipped forgotten, rejected invalid_email, skipped forgotten, skipped forgotten"
	if states != want {
		t.Errorf("states = %s\nwant %s", states, want)
	}
	// Nothing can be sent again, and repeated events are duplicates.
	if claims, err := l.Claim(t.Context(), 100); err != nil || len(claims) != 1 ||
		claims[0].ID != "cs_bob_pending" {
		t.Errorf("claims = %+v, %v, want cs_bob_pending", claims, err)
	}
	byID := maintenance.Selection{IDs: []string{"cs_ada_dead", "cs_ada_skipped"}}
	if n, err := l.Replay(t.Context(), byID, func(int) {}); err != nil || n != 0 {
		t.Errorf("replayed = %d, %v, want 0", n, err)
	}
	for _, event := range []string{"evt_cs_ada_dead", "evt_new"} {
		r := ledgertest.Receipt(event, "cs_ada_dead", purchase.StatusPending, "")
		r.Purchase.Email = "ada@example.com"
		if got := l.MustRecord(r); got.Disposition != purchase.Duplicate {
			t.Errorf("%s: disposition = %s, want duplicate", event, got.Disposition)
		}
	}
	// TikTok may accept an in-flight purchase.
	l.MustSettle(ledgertest.Outcome("cs_ada_published", 1, purchase.StatusDelivered, "late", base))
	if status := ledgertest.Ask[string](l, `SELECT status FROM purchases
		WHERE checkout_session_id = 'cs_ada_published'`); status != "delivered" {
		t.Errorf("status after a late acceptance = %s, want delivered", status)
	}
	if _, err := l.Forget(t.Context(), "ada@example.com"); !errors.Is(err, report.ErrNotFound) {
		t.Errorf("forget again: error = %v, want ErrNotFound", err)
	}
	// The same address is a new customer.
	r := ledgertest.Receipt("evt_back", "cs_back", purchase.StatusPending, "")
	r.Purchase.Email = "ada@example.com"
	if got := l.MustRecord(r); !got.ProfileCreated || slices.Contains(person.Profiles, got.ProfileID) {
		t.Errorf("recorded = %+v, want a new profile", got)
	}
}

// A new column may hold personal data: decide whether forget.go must erase it, then add it here.
func TestForget_CoversEveryColumn(t *testing.T) {
	t.Parallel()
	l := ledgertest.New(t)
	got := ledgertest.Ask[string](l, `SELECT string_agg(c.relname || '.' || a.attname, ' '
		ORDER BY c.relname, a.attname) FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
		WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped
		AND a.atttypid IN ('text'::regtype, 'bytea'::regtype, 'uuid'::regtype, 'jsonb'::regtype)
		AND c.relname NOT LIKE 'rollup\_%' AND c.relname <> 'goose_db_version'`)
	const want = "attempts.attempt_id attempts.checkout_session_id attempts.class attempts.message " +
		"attempts.request_id backfills.cursor backfills.origin profiles.email profiles.id " +
		"profiles.stripe_customer_id profiles.stripe_subscription_id purchases.attempt_id " +
		"purchases.checkout_session_id purchases.currency purchases.envelope purchases.kind " +
		"purchases.last_class purchases.last_error " +
		"purchases.mode purchases.profile_id purchases.reason purchases.sent_page purchases.status " +
		"purchases.stripe_customer_id purchases.stripe_payment_id purchases.stripe_subscription_id " +
		"purchases.tiktok_request_id purchases.trial_session_id reconciliations.report " +
		"stripe_events.account stripe_events.checkout_session_id " +
		"stripe_events.disposition stripe_events.event_id stripe_events.type tiktok_count_history.event " +
		"tiktok_count_history.pixel_id tiktok_counts.event tiktok_counts.pixel_id trials.checkout_session_id " +
		"trials.currency trials.envelope trials.invoice_id trials.profile_id trials.purchase_id " +
		"trials.reason trials.stripe_customer_id trials.subscription_id"
	if got != want {
		t.Errorf("text columns = %s\nwant %s", got, want)
	}
}

// checkNoTraces fails for each trace that the ledger still has.
func checkNoTraces(l *ledgertest.Ledger, traces ...string) {
	l.T.Helper()
	after := l.Dump()
	for _, trace := range traces {
		if ledgertest.Holds(after, trace) {
			l.T.Errorf("the ledger still holds %q", trace)
		}
	}
}

// forget runs what `ingest forget` runs on the ledger.
func forget(l *ledgertest.Ledger, email string) maintenance.Person {
	l.T.Helper()
	person, err := l.ForgetCustomer(l.T.Context(), email, func(context.Context, []string) error { return nil })
	if err != nil {
		l.T.Fatal(err)
	}
	return person
}

// TikTok may accept a purchase while the queue is erased.
func TestForgetCustomer_ReturnsLateAcceptance(t *testing.T) {
	t.Parallel()
	l := ledgertest.New(t)
	r := ledgertest.Receipt("evt_1", "cs_1", purchase.StatusPending, "")
	r.Purchase.Email = "ada@example.com"
	l.MustRecord(r)
	l.Exec(`UPDATE purchases SET status = 'published', published_at = now()`)
	person, err := l.ForgetCustomer(t.Context(), "ada@example.com", func(context.Context, []string) error {
		l.MustSettle(ledgertest.Outcome("cs_1", 1, purchase.StatusDelivered, "a1", base))
		return nil
	})
	if sent := person.Sent(); err != nil || !slices.Equal(sent, []string{"cs_1"}) {
		t.Errorf("sent = %q, %v, want cs_1", sent, err)
	}
}

// Trials and held invoices are found by profile, customer or subscription after their purchases were pruned.
func TestForget_FindsTrialsAfterPrune(t *testing.T) {
	t.Parallel()
	const ada = "buyer1@example.com"
	for name, held := range map[string]func(l *ledgertest.Ledger) (traces []string){
		"trial": func(l *ledgertest.Ledger) []string {
			r := ledgertest.Trial(1)
			r.Purchase.Customer = "cus_trial"
			l.Must(r, purchase.Processed)
			return []string{"sub_1", "cus_trial"}
		},
		"trial whose first payment was made": func(l *ledgertest.Ledger) []string {
			l.Must(ledgertest.Trial(1), purchase.Processed)
			i := ledgertest.Invoice(1, 1)
			i.Purchase.Customer = "cus_invoice"
			l.Must(i, purchase.Processed)
			l.End("in_1_1", purchase.StatusDelivered)
			l.Exec(`UPDATE trials SET invoice_at = now()`) // else it is pruned with the purchase
			return []string{"sub_1", "cus_invoice"}
		},
		"invoice without a trial, by customer": func(l *ledgertest.Ledger) []string {
			i := ledgertest.Invoice(7, 1)
			i.Purchase.Customer = "cus_1" // that of the profile
			l.Must(i, purchase.Held)
			return []string{"sub_7"}
		},
		"invoice without a trial, by subscription": func(l *ledgertest.Ledger) []string {
			i := ledgertest.Invoice(1, 2)
			i.Purchase.Subscription, i.Purchase.Customer = "sub_1", "cus_other"
			l.Must(i, purchase.Held)
			return []string{"cus_other"}
		},
		"trial with a later invoice": func(l *ledgertest.Ledger) []string {
			l.Must(ledgertest.Trial(1), purchase.Processed)
			i := ledgertest.Invoice(1, 3)
			i.Purchase.Customer = "cus_held"
			l.Must(i, purchase.Held)
			return []string{"cus_held", "sub_1"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := ledgertest.New(t)
			traces := held(l)
			// the profile's latest ids: cus_1 and sub_1
			bought := ledgertest.Receipt("evt_bought", "cs_bought", purchase.StatusPending, "")
			bought.Purchase.Email, bought.Purchase.At = ada, base.Add(time.Hour)
			l.Must(bought, purchase.Processed)
			l.End("cs_bought", purchase.StatusDelivered)
			other := ledgertest.Trial(2)
			other.Purchase.Customer = "cus_2"
			l.Must(other, purchase.Processed)
			l.Exec(`UPDATE purchases SET finished_at = $1 WHERE finished_at IS NOT NULL`, base) // long ago
			prune(l, maintenance.Pruning{Before: time.Now().Add(-maintenance.MinPruneAge)})
			if n := ledgertest.Ask[int](l, `SELECT count(*) FROM purchases WHERE profile_id IN (SELECT id FROM profiles
				WHERE email = $1)`, ada); n != 0 {
				t.Fatalf("%d purchases left after the pruning, want 0", n)
			}
			if n := ledgertest.Ask[int](l, `SELECT count(*) FROM trials`); n == 0 {
				t.Fatal("no trial is left to be found")
			}
			profile := ledgertest.Ask[string](l, `SELECT id::text FROM profiles WHERE email = $1`, ada)
			person := forget(l, ada)
			checkNoTraces(l, append(traces, ada, purchase.HashEmail(ada), "cus_1", profile,
				purchase.HashExternalID(profile))...)
			if n := ledgertest.Ask[int](l, `SELECT count(*) FROM trials WHERE subscription_id <> 'sub_2'`); n != 0 {
				t.Errorf("%d trials left, want 0", n)
			}
			if ids := person.Queued(); name == "trial" && !slices.Contains(ids, "cs_1") {
				t.Errorf("ids to erase from the queue: %v, want cs_1 among them", ids)
			}
			// The first invoice comes: nothing is sent to TikTok.
			if _, err := l.Record(t.Context(), ledgertest.Invoice(1, 1)); err != nil {
				t.Fatal(err)
			}
			if _, err := l.ConvertHeld(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
			if claims, err := l.Claim(t.Context(), 10); err != nil || len(claims) != 0 {
				t.Errorf("claims = %+v, %v, want none", claims, err)
			}
			// The other buyer's trial converts.
			l.Must(ledgertest.Invoice(2, 1), purchase.Processed)
			if claims, err := l.Claim(t.Context(), 10); err != nil || len(claims) != 1 || claims[0].ID != "in_2_1" {
				t.Errorf("claims = %+v, %v, want in_2_1", claims, err)
			}
		})
	}
}

// The invoice becomes a skipped purchase, and Unlink requires another round.
func TestForget_InvoiceBetweenForgetAndUnlink(t *testing.T) {
	t.Parallel()
	l := ledgertest.New(t)
	const ada = "buyer1@example.com"
	l.Must(ledgertest.Trial(1), purchase.Processed)
	person, err := l.Forget(t.Context(), ada)
	if err != nil {
		t.Fatal(err)
	}
	l.Must(ledgertest.Invoice(1, 1), purchase.Processed)
	if got := ledgertest.Ask[string](l, `SELECT status || ' ' || reason FROM purchases
		WHERE checkout_session_id = 'in_1_1'`); got != "skipped forgotten" {
		t.Errorf("first payment is %s, want skipped forgotten", got)
	}
	if _, done, err := l.Unlink(t.Context(), ada, person); err != nil || done {
		t.Errorf("unlink = %t, %v, want false", done, err)
	}
	forget(l, ada)
	checkNoTraces(l, ada, purchase.HashEmail(ada), "sub_1", "E.C.P.abc")
}

// Unpaid purchases are found by subscription.
func TestForget_RemovesBothModes(t *testing.T) {
	t.Parallel()
	l := ledgertest.New(t)
	for _, mode := range []struct {
		name string
		live bool
	}{{"live", true}, {"test", false}} {
		r := ledgertest.Receipt("evt_"+mode.name, "cs_"+mode.name, purchase.StatusPending, "")
		r.Event.Livemode, r.Purchase.Livemode = mode.live, mode.live
		r.Purchase.Customer, r.Purchase.Subscription = "cus_"+mode.name, "sub_"+mode.name
		l.Must(r, purchase.Processed)
		unpaid := ledgertest.Receipt("evt_unpaid_"+mode.name, "cs_unpaid_"+mode.name,
			purchase.StatusAwaitingPayment, "")
		unpaid.Event.Livemode, unpaid.Purchase.Livemode = mode.live, mode.live
		unpaid.Purchase.Customer, unpaid.Purchase.Subscription = "", "sub_"+mode.name
		l.Must(unpaid, purchase.AwaitingPayment)
	}
	person := forget(l, " Buyer@Example.com ")
	if len(person.Profiles) != 2 || len(person.Purchases) != 4 {
		t.Errorf("person = %+v, want 2 profiles and 4 purchases", person)
	}
	checkNoTraces(l, "buyer@example.com", "cus_live", "cus_test", "sub_live", "sub_test", person.Profiles[0],
		person.Profiles[1])
}
