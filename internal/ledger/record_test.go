package ledger_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/testkit/ledgertest"
)

func TestRecord_ProvisionsOnce(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	first := l.Must(paid("evt_1", "cs_1"), purchase.Processed)
	if !first.ProfileCreated || first.ProfileID == "" {
		t.Errorf("first session = %+v, want a new profile", first)
	}
	for _, event := range []string{"evt_1", "evt_2"} { // the same event, and another one for the same session
		if got := l.Must(paid(event, "cs_1"), purchase.Duplicate); got.ProfileID != "" {
			t.Errorf("%s again = %+v, want no profile", event, got)
		}
	}
	other := l.Must(paid("evt_3", "cs_2"), purchase.Processed)
	if other.ProfileCreated || other.ProfileID != first.ProfileID {
		t.Errorf("second session = %+v, want the profile %s", other, first.ProfileID)
	}
	data := ask[[]byte](l, `SELECT envelope FROM purchases WHERE checkout_session_id = 'cs_1'`)
	envelope, err := message.DecodeEnvelope(data)
	if err != nil || envelope.Keys.ExternalID != purchase.HashExternalID(first.ProfileID) ||
		envelope.PurchasedAt != base.Unix() {
		t.Errorf("envelope = %+v, %v", envelope, err)
	}
	got := ask[string](l, `
		SELECT string_agg(event_id || ' ' || disposition, ', ' ORDER BY event_id) FROM stripe_events`)
	if want := "evt_1 processed, evt_2 duplicate, evt_3 processed"; got != want {
		t.Errorf("events = %s, want %s", got, want)
	}
}

// The payment's id stays when a later event has none; each event keeps its account.
func TestRecord_KeepsPaymentAndAccount(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	waiting := ledgertest.Receipt("evt_1", "cs_1", purchase.StatusAwaitingPayment, "")
	paid := paid("evt_2", "cs_1")
	waiting.Purchase.Payment, waiting.Event.Account = "pi_1", "acct_1"
	l.Must(waiting, purchase.AwaitingPayment)
	paid.Source = purchase.SourceBackfill
	l.Must(paid, purchase.Processed)
	row, err := l.Get(t.Context(), "cs_1")
	if err != nil {
		t.Fatal(err)
	}
	if row.Payment == nil || *row.Payment != "pi_1" {
		t.Errorf("payment = %v, want pi_1", row.Payment)
	}
	if e := row.Events; len(e) != 2 || e[0].Account == nil || *e[0].Account != "acct_1" || e[0].Backfilled ||
		e[1].Account != nil || !e[1].Backfilled {
		t.Errorf("events = %+v, want acct_1's and a backfilled one", e)
	}
}

func TestRecord_ConcurrentDuplicates(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	var group sync.WaitGroup
	var mu sync.Mutex
	dispositions := map[purchase.Disposition]int{}
	for i := range 40 {
		group.Go(func() {
			recorded, err := l.Record(t.Context(), paid(fmt.Sprintf("evt_%d", i%4), "cs_1"))
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			dispositions[recorded.Disposition]++
		})
	}
	group.Wait()
	if dispositions[purchase.Processed] != 1 || dispositions[purchase.Duplicate] != 39 {
		t.Errorf("dispositions = %v, want 1 processed and 39 duplicates", dispositions)
	}
	got := ask[string](l, `
		SELECT (SELECT count(*) FROM profiles) || ' ' || (SELECT count(*) FROM purchases)`)
	if got != "1 1" {
		t.Errorf("profiles and purchases = %s, want 1 1", got)
	}
}

// Concurrent sessions of several customers, in any batches: each session is provisioned once, and each
// profile has the ids of its latest purchase, or of an earlier one if the latest has none.
func TestRecord_ConcurrentCustomers(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	random := rand.New(rand.NewPCG(7, 7))
	var group sync.WaitGroup
	const sessions = 400
	email := func(i int) string { return fmt.Sprintf("buyer%d@example.com", i%20) }
	for _, i := range random.Perm(sessions) {
		r := paid(fmt.Sprintf("evt_%d", i), fmt.Sprintf("cs_%d", i))
		p := &r.Purchase
		p.Email, p.At = email(i), base.Add(time.Duration(i)*time.Second)
		p.Customer, p.Subscription = fmt.Sprintf("cus_%d", i), ""
		if i%3 == 0 {
			p.Subscription = fmt.Sprintf("sub_%d", i)
		}
		group.Go(func() {
			for range 2 {
				if _, err := l.Record(t.Context(), r); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	if n := ask[int](l, `SELECT count(*) FROM purchases p JOIN profiles f ON f.id = p.profile_id
		JOIN stripe_events e USING (checkout_session_id) WHERE e.disposition = 'processed'`); n != sessions {
		t.Errorf("purchases with profile and event = %d, want %d", n, sessions)
	}
	for i := sessions - 20; i < sessions; i++ { // the latest purchase of each customer
		got := ask[string](l, `SELECT stripe_customer_id FROM profiles
			WHERE email = $1 AND stripe_subscription_id IS NOT NULL`, email(i))
		if want := fmt.Sprintf("cus_%d", i); got != want {
			t.Errorf("customer of %s = %s, want %s", email(i), got, want)
		}
	}
}

// A purchase that is claimed while it is recorded cannot be claimed by another replica, and its age starts
// then. Duplicates and purchases that are not sent are not claimed.
func TestRecord_Claims(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	claim := func(r purchase.Receipt) purchase.Recorded {
		t.Helper()
		r.Claim = true
		return l.MustRecord(r)
	}
	got := claim(paid("evt_1", "cs_1"))
	envelope := ask[string](l, `SELECT convert_from(envelope, 'UTF8') FROM purchases`)
	first := ask[time.Time](l, `SELECT first_published_at FROM purchases`)
	if string(got.Message) != envelope || !got.Claimed.Equal(first) {
		t.Errorf("recorded = %+v, want the envelope %s and the claim's time %s", got, envelope, first)
	}
	for name, r := range map[string]purchase.Receipt{
		"duplicate": paid("evt_1", "cs_1"),
		"trial":     receipt("evt_2", "cs_2", purchase.StatusSkipped, purchase.ReasonNoPayment),
		"unpaid":    receipt("evt_3", "cs_3", purchase.StatusAwaitingPayment, ""),
	} {
		if got := claim(r); !got.Claimed.IsZero() || got.Message != nil {
			t.Errorf("%s: recorded = %+v, want no claim", name, got)
		}
	}
	if claims, err := l.Claim(t.Context(), 10); err != nil || len(claims) > 0 {
		t.Errorf("Claim = %+v, %v, want none", claims, err)
	}
	if paidLater := claim(paid("evt_4", "cs_3")); paidLater.Claimed.IsZero() {
		t.Errorf("recorded = %+v, want a claim", paidLater)
	}
	l.Exec(`UPDATE purchases SET claimed_until = claimed_until - interval '1 hour'`) // the claims expired
	if claims, err := l.Claim(t.Context(), 10); err != nil || len(claims) != 2 {
		t.Errorf("Claim after expiry = %+v, %v, want two", claims, err)
	}
}

// A receipt that Postgres rejects, or that has no message, fails alone in its batch.
func TestRecord_IsolatesBadReceipt(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	var group sync.WaitGroup
	for i := range 60 {
		r := paid(fmt.Sprintf("evt_%d", i), fmt.Sprintf("cs_%d", i))
		switch i {
		case 20:
			r.Purchase.Status = "nonsense" // violates the table's check
		case 40:
			r.Purchase.At = time.Time{} // cannot be encoded
		}
		group.Go(func() {
			if _, err := l.Record(t.Context(), r); (err != nil) != (i == 20 || i == 40) {
				t.Errorf("receipt %d: error = %v", i, err)
			}
		})
	}
	group.Wait()
	if n := ask[int](l, `SELECT count(*) FROM purchases`); n != 58 {
		t.Errorf("purchases = %d, want 58", n)
	}
}

// A process without these locks (an older ingest during an upgrade) creates the profile between read and
// write: the profile is not overwritten, and the transaction is retried.
func TestRecord_RetriesAfterForeignProfile(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	// A trigger acts as the other process, once: the sequence survives the rollback.
	l.Exec(`
		CREATE SEQUENCE visits;
		CREATE FUNCTION stranger() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			IF nextval('visits') = 1 THEN
				INSERT INTO profiles (livemode, email, last_purchase_at) VALUES (true, 'buyer@example.com', now());
			END IF; RETURN NEW; END $$;
		CREATE TRIGGER stranger BEFORE INSERT ON stripe_events FOR EACH ROW EXECUTE FUNCTION stranger()`)
	got := l.Must(paid("evt_1", "cs_1"), purchase.Processed)
	if visits := ask[int](l, `SELECT last_value FROM visits`); visits != 2 {
		t.Errorf("attempts = %d, want 2", visits)
	}
	if n := ask[int](l, `SELECT count(*) FROM profiles f JOIN purchases p ON p.profile_id = f.id
		WHERE f.id = $1::uuid`, got.ProfileID); n != 1 {
		t.Errorf("purchases of the profile = %d, want 1", n)
	}
}

// Every order of a session's events ends in the highest state among them. Only paid states create a profile.
func TestRecord_InEveryOrder(t *testing.T) {
	t.Parallel()
	states := []struct {
		status purchase.Status
		reason purchase.Reason
	}{
		{purchase.StatusAwaitingPayment, ""},
		{purchase.StatusPaymentFailed, ""},
		{purchase.StatusRejected, purchase.ReasonInvalidEmail},
		{purchase.StatusSkipped, purchase.ReasonNoPayment},
		{purchase.StatusPending, ""},
	}
	l := newLedger(t)
	session := 0
	rapid.Check(t, func(rt *rapid.T) {
		order := rapid.SliceOfN(rapid.IntRange(0, len(states)-1), 1, 6).Draw(rt, "order")
		session++
		id := fmt.Sprintf("cs_order_%d", session)
		highest := -1
		for i, n := range order {
			r := receipt(fmt.Sprintf("evt_%d_%d", session, i), id, states[n].status, states[n].reason)
			got, err := l.Record(t.Context(), r)
			if err != nil {
				rt.Fatal(err)
			}
			want := purchase.Duplicate
			if n > highest {
				highest, want = n, r.Disposition()
			}
			if got.Disposition != want {
				rt.Fatalf("%v: disposition of event %d = %s, want %s", order, i, got.Disposition, want)
			}
		}
		state := states[highest]
		want := fmt.Sprintf("%s %s %t %t", state.status, state.reason, highest >= 3, highest == 4)
		got := ask[string](l, `SELECT format('%s %s %s %s', status, reason, (profile_id IS NOT NULL)::text,
			(envelope IS NOT NULL)::text) FROM purchases WHERE checkout_session_id = $1`, id)
		if got != want {
			rt.Fatalf("%v: status, reason, profile, envelope = %s, want %s", order, got, want)
		}
	})
}

func TestRecord_ProfileKeepsLatestPurchase(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	newer, older, bare := paid("evt_1", "cs_1"), paid("evt_2", "cs_2"), paid("evt_3", "cs_3")
	newer.Purchase.Subscription = "sub_new"
	older.Purchase.Subscription, older.Purchase.At = "sub_old", base.Add(-time.Hour)
	bare.Purchase.Subscription, bare.Purchase.Customer, bare.Purchase.At = "", "", base.Add(time.Hour)
	for _, r := range []purchase.Receipt{newer, older, bare} {
		l.MustRecord(r)
	}
	got := ask[string](l, `SELECT stripe_customer_id || ' ' || stripe_subscription_id FROM profiles`)
	if got != "cus_1 sub_new" {
		t.Errorf("profile = %s, want cus_1 sub_new", got)
	}
}

// A test purchase has its own profile and does not change the live one. A search by address finds both.
func TestRecord_TestModeHasItsOwnProfile(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	buy := func(id string, live bool, customer string, at time.Time) purchase.Recorded {
		r := paid("evt_"+id, id)
		r.Event.Livemode, r.Purchase.Livemode, r.Purchase.Customer, r.Purchase.At = live, live, customer, at
		return l.Must(r, purchase.Processed)
	}
	test := buy("cs_test_1", false, "cus_test", base)
	live := buy("cs_live_1", true, "cus_live", base)
	if !test.ProfileCreated || !live.ProfileCreated || test.ProfileID == live.ProfileID {
		t.Errorf("test %+v, live %+v, want two profiles", test, live)
	}
	row := func() string {
		return ask[string](l, `SELECT string_agg(p::text, E'\n' ORDER BY livemode) FROM profiles p WHERE livemode`)
	}
	before := row()
	again := buy("cs_test_2", false, "cus_test_2", base.Add(time.Hour))
	if again.ProfileID != test.ProfileID || again.PreviousCustomer != "cus_test" {
		t.Errorf("test again = %+v, want profile %s and the customer before", again, test.ProfileID)
	}
	if after := row(); after != before {
		t.Errorf("live profile = %s\nwant %s", after, before)
	}
	for query, want := range map[string]int{" BUYER@example.com": 3, test.ProfileID: 3, live.ProfileID: 3} {
		entries, err := l.List(t.Context(), report.Filter{Query: query, Limit: 10})
		if err != nil || len(entries) != want {
			t.Errorf("List(%q) = %d entries, %v, want %d", query, len(entries), err, want)
		}
	}
	if found, err := l.Search(t.Context(), "buyer@example.com", 10); err != nil || len(found) != 3 {
		t.Errorf("Search = %d histories, %v, want 3", len(found), err)
	}
	if id, err := l.ProfileByEmail(t.Context(), "buyer@example.com"); err != nil || id != live.ProfileID {
		t.Errorf("ProfileByEmail = %s, %v, want the live one %s", id, err, live.ProfileID)
	}
}

// Another customer id for a known address is reported. The profile keeps the ids of its latest purchase.
func TestRecord_ReportsAnotherCustomer(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	for i, tc := range []struct {
		customer string
		at       time.Duration
		before   string
		want     string
	}{
		{"cus_1", 0, "", "cus_1"},
		{"cus_1", time.Hour, "", "cus_1"},
		{"", 2 * time.Hour, "", "cus_1"}, // a guest
		{"cus_2", 3 * time.Hour, "cus_1", "cus_2"},
		{"cus_3", time.Minute, "cus_2", "cus_2"}, // a delayed older event
		{"cus_2", 4 * time.Hour, "", "cus_2"},
	} {
		r := paid(fmt.Sprintf("evt_%d", i), fmt.Sprintf("cs_%d", i))
		r.Purchase.Customer, r.Purchase.At = tc.customer, base.Add(tc.at)
		if got := l.Must(r, purchase.Processed); got.PreviousCustomer != tc.before {
			t.Errorf("purchase %d: previous customer = %q, want %q", i, got.PreviousCustomer, tc.before)
		}
		if got := ask[string](l, `SELECT stripe_customer_id FROM profiles`); got != tc.want {
			t.Errorf("purchase %d: customer of the profile = %s, want %s", i, got, tc.want)
		}
	}
}

func TestRecord_HostileEventIDs(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	ids := []string{"evt_\x00", "evt_'; DROP TABLE purchases; --", "\xff\xfe", strings.Repeat("e", 100_000)}
	for i, id := range ids {
		r := paid(id, fmt.Sprintf("cs_%d", i))
		l.Must(r, purchase.Processed)
		l.Must(r, purchase.Duplicate)
	}
}

// A write that times out leaves nothing in the ledger and no query on the server. Stripe's retry is recorded.
func TestRecord_TimeoutLeavesNothing(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.Exec(`BEGIN; LOCK TABLE purchases IN ACCESS EXCLUSIVE MODE`)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := l.Record(ctx, paid("evt_1", "cs_1"))
	if err == nil || !strings.Contains(err.Error(), "cs_1") || strings.Contains(err.Error(), "buyer@") {
		t.Errorf("Record = %v, want an error with the session and without the address", err)
	}
	for ask[int](l, `SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)
		WHERE NOT granted AND datname = current_database()`) > 0 { // until the server has cancelled the query
		if t.Context().Err() != nil {
			t.Fatal(t.Context().Err())
		}
	}
	l.Exec(`ROLLBACK`)
	if n := ask[int](l, `SELECT count(*) FROM stripe_events`); n != 0 {
		t.Errorf("events = %d, want 0", n)
	}
	l.Must(paid("evt_1", "cs_1"), purchase.Processed)
}

// A dry run returns what Record would return, and writes nothing.
func TestRecord_DryRun(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.MustRecord(paid("evt_1", "cs_1"))
	for _, tc := range []struct {
		receipt purchase.Receipt
		want    purchase.Disposition
	}{
		{paid("evt_1", "cs_1"), purchase.Duplicate},
		{paid("evt_2", "cs_1"), purchase.Duplicate},
		{receipt("evt_3", "cs_2", purchase.StatusAwaitingPayment, ""), purchase.AwaitingPayment},
		{paid("evt_4", "cs_2"), purchase.Processed},
		{receipt("evt_5", "cs_3", purchase.StatusRejected, purchase.ReasonInvalidEmail), purchase.Rejected},
	} {
		dry, event := tc.receipt, tc.receipt.Event.ID
		dry.DryRun, dry.Claim = true, true
		for range 2 {
			l.Must(dry, tc.want)
		}
		recorded := ask[bool](l, `SELECT EXISTS (SELECT FROM stripe_events WHERE event_id = $1)`, event)
		if want := event == "evt_1"; recorded != want {
			t.Errorf("%s recorded = %t, want %t", event, recorded, want)
		}
		l.Must(tc.receipt, tc.want)
	}
}

// An event id that arrives for a second session loses no sale: the session is recorded under its own row of
// stripe_events. Repeats are duplicates.
func TestRecord_EventIDOfAnotherSession(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	first, second := paid("evt_1", "cs_1"), paid("evt_1", "cs_2")
	second.Purchase.Email = "other@example.com"
	if r := l.Must(first, purchase.Processed); r.Conflict != "" {
		t.Errorf("first session: conflict with %q, want none", r.Conflict)
	}
	if r := l.Must(second, purchase.Processed); r.Conflict != "cs_1" || !r.ProfileCreated {
		t.Errorf("second session: %+v, want a conflict with cs_1 and a profile", r)
	}
	unpaid := receipt("evt_1", "cs_3", purchase.StatusAwaitingPayment, "")
	if r := l.Must(unpaid, purchase.AwaitingPayment); r.Conflict != "cs_1" {
		t.Errorf("third session: %+v, want a conflict with cs_1", r)
	}
	for _, again := range []purchase.Receipt{first, second, unpaid, second} {
		l.Must(again, purchase.Duplicate)
	}
	want := "cs_1 pending, cs_2 pending, cs_3 awaiting_payment"
	got := ask[string](l, `
		SELECT string_agg(checkout_session_id || ' ' || status, ', ' ORDER BY checkout_session_id) FROM purchases`)
	if got != want {
		t.Errorf("purchases = %s, want %s", got, want)
	}
	want = "evt_1 cs_1 processed, evt_1.cs_2 cs_2 processed, evt_1.cs_3 cs_3 awaiting_payment"
	got = ask[string](l, `
		SELECT string_agg(concat_ws(' ', event_id, checkout_session_id, disposition), ', ' ORDER BY event_id)
		FROM stripe_events`)
	if got != want {
		t.Errorf("events = %s, want %s", got, want)
	}
}

// An invoice with the event id of a checkout still becomes the first payment.
func TestRecord_EventIDOfAnotherInvoice(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.Must(trialOf(1), purchase.Processed)
	invoice := invoiceOf(1, 1)
	invoice.Event.ID = trialOf(1).Event.ID
	if r := l.Must(invoice, purchase.Processed); r.Conflict != "cs_1" || r.FirstPayment != "in_1_1" {
		t.Errorf("recorded = %+v, want the first payment in_1_1 and a conflict with cs_1", r)
	}
	l.Must(invoice, purchase.Duplicate)
	l.firstPaymentIs(1, "in_1_1")
}

// A buyer's first sale is the earliest paid one, in whatever order the events arrive, in one transaction or
// several. Trials and unpaid checkouts are none; a trial's first payment is one.
func TestRecord_MarksFirstSales(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	firsts := func(want ...string) {
		t.Helper()
		got := ask[[]string](l, `SELECT COALESCE(array_agg(checkout_session_id ORDER BY checkout_session_id), '{}')
			FROM purchases WHERE first_sale`)
		if !slices.Equal(got, want) {
			t.Errorf("first sales = %v, want %v", got, want)
		}
	}
	buy := func(id string, later time.Duration, change func(p *purchase.Purchase)) purchase.Receipt {
		r := receipt("evt_"+id, id, purchase.StatusPending, "")
		r.Purchase.At = base.Add(later)
		change(&r.Purchase)
		return r
	}
	same := func(*purchase.Purchase) {}
	l.MustRecord(receipt("evt_free", "cs_free", purchase.StatusSkipped, purchase.ReasonNoPayment))
	l.MustRecord(receipt("evt_unpaid", "cs_unpaid", purchase.StatusAwaitingPayment, ""))
	firsts()
	l.MustRecord(buy("cs_b", 2*time.Hour, same))
	l.MustRecord(buy("cs_c", 3*time.Hour, same))
	firsts("cs_b")
	l.MustRecord(buy("cs_a", time.Hour, same)) // backfilled
	firsts("cs_a")
	l.MustRecord(buy("cs_test", 0, func(p *purchase.Purchase) { p.Livemode = false }))
	firsts("cs_a", "cs_test")
	other := func(p *purchase.Purchase) { p.Email = "other@example.com" }
	var group sync.WaitGroup // share a transaction, or not
	for i := range 8 {
		group.Go(func() {
			_, err := l.Record(t.Context(), buy(fmt.Sprintf("cs_o%d", i), time.Duration(8-i)*time.Hour, other))
			if err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	firsts("cs_a", "cs_o7", "cs_test")
	l.MustRecord(trialOf(1))
	firsts("cs_a", "cs_o7", "cs_test")
	l.Must(invoiceOf(1, 1), purchase.Processed)
	firsts("cs_a", "cs_o7", "cs_test", "in_1_1")
	l.MustRecord(buy("cs_after", 24*365*time.Hour, func(p *purchase.Purchase) {
		p.Email = "buyer1@example.com" // the trial's
	}))
	firsts("cs_a", "cs_o7", "cs_test", "in_1_1")
	l.CheckRollup(t, nil, ledgertest.Since(time.Time{}))
}
