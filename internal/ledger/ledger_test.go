package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"purchase-relay/internal/ledger"
	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/maintenance"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/relay"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/testkit/ledgertest"
	"purchase-relay/internal/testkit/pglocal/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Run(m)) }

// testLedger is a migrated, empty ledger, and a plain connection to look into it.
type testLedger struct {
	*ledgertest.Ledger

	t    *testing.T
	url  string
	conn *pgx.Conn
}

func newLedger(t *testing.T) *testLedger {
	t.Helper()
	l := ledgertest.New(t)
	return &testLedger{Ledger: l, t: t, url: l.URL, conn: l.Conn}
}

func ask[T any](l *testLedger, sql string, args ...any) (value T) {
	l.t.Helper()
	return ledgertest.Ask[T](l.Ledger, sql, args...)
}

func (l *testLedger) exec(sql string, args ...any) {
	l.t.Helper()
	l.Exec(sql, args...)
}

var base = ledgertest.Base()

func receipt(event, session string, status purchase.Status, reason purchase.Reason) purchase.Receipt {
	return ledgertest.Receipt(event, session, status, reason)
}

func trialOf(n int) purchase.Receipt { return ledgertest.Trial(n) }

func invoiceOf(trial, n int) purchase.Receipt { return ledgertest.Invoice(trial, n) }

func outcome(id string, generation int, result purchase.Status, attempt string, at time.Time) message.Outcome {
	return ledgertest.Outcome(id, generation, result, attempt, at)
}

func (l *testLedger) record(r purchase.Receipt) purchase.Recorded {
	l.t.Helper()
	return l.MustRecord(r)
}

func (l *testLedger) must(r purchase.Receipt, want purchase.Disposition) purchase.Recorded {
	l.t.Helper()
	return l.Must(r, want)
}

func (l *testLedger) settle(id string, status purchase.Status) {
	l.t.Helper()
	l.End(id, status)
}

func TestRecordProvisionsOnce(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	first := l.record(receipt("evt_1", "cs_1", purchase.StatusPending, ""))
	if first.Disposition != purchase.Processed || !first.ProfileCreated || first.ProfileID == "" {
		t.Errorf("first: %+v", first)
	}
	for _, again := range []string{"evt_1", "evt_2"} { // the same event, and another one about the same thing
		if got := l.record(receipt(again, "cs_1", purchase.StatusPending, "")); got.Disposition != purchase.Duplicate || got.ProfileID != "" {
			t.Errorf("%s again: %+v", again, got)
		}
	}
	other := l.record(receipt("evt_3", "cs_2", purchase.StatusPending, ""))
	if other.ProfileCreated || other.ProfileID != first.ProfileID {
		t.Errorf("a second session of the same customer: %+v", other)
	}
	envelope, err := message.DecodeEnvelope(ask[[]byte](l, `SELECT envelope FROM purchases WHERE checkout_session_id = 'cs_1'`))
	if err != nil || envelope.Keys.ExternalID != purchase.HashExternalID(first.ProfileID) || envelope.PurchasedAt != base.Unix() {
		t.Errorf("envelope: %+v, %v", envelope, err)
	}
	got := ask[string](l, `SELECT string_agg(event_id || ' ' || disposition, ', ' ORDER BY event_id) FROM stripe_events`)
	if got != "evt_1 processed, evt_2 duplicate, evt_3 processed" {
		t.Errorf("events: %s", got)
	}
}

func TestRecordConcurrentlyMakesOneOfEach(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	var group sync.WaitGroup
	var mu sync.Mutex
	dispositions := map[purchase.Disposition]int{}
	for i := range 40 {
		group.Go(func() {
			recorded, err := l.Record(t.Context(), receipt(fmt.Sprintf("evt_%d", i%4), "cs_1", purchase.StatusPending, ""))
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
		t.Errorf("dispositions: %v", dispositions)
	}
	if n := ask[int](l, `SELECT (SELECT count(*) FROM profiles) * 10 + (SELECT count(*) FROM purchases)`); n != 11 {
		t.Errorf("profiles and purchases: %d", n)
	}
}

// Many customers and sessions at once, written together in any grouping: each session is provisioned once, and each profile
// holds the ids of its latest purchase, and one of an earlier where the latest had none.
func TestRecordTogether(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	random := rand.New(rand.NewPCG(7, 7))
	var group sync.WaitGroup
	want := map[string]string{}
	const sessions = 400
	for _, i := range random.Perm(sessions) {
		r := receipt(fmt.Sprintf("evt_%d", i), fmt.Sprintf("cs_%d", i), purchase.StatusPending, "")
		p := &r.Purchase
		p.Email = fmt.Sprintf("buyer%d@example.com", i%20)
		p.At = base.Add(time.Duration(i) * time.Second)
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
	for i := range sessions {
		want[fmt.Sprintf("buyer%d@example.com", i%20)] = fmt.Sprintf("cus_%d", i)
	}
	if n := ask[int](l, `SELECT count(*) FROM purchases p JOIN profiles f ON f.id = p.profile_id JOIN stripe_events e USING (checkout_session_id) WHERE e.disposition = 'processed'`); n != sessions {
		t.Errorf("%d purchases with profile and event", n)
	}
	for email, customer := range want {
		if got := ask[string](l, `SELECT stripe_customer_id FROM profiles WHERE email = $1 AND stripe_subscription_id IS NOT NULL`, email); got != customer {
			t.Errorf("%s is %s, want %s", email, got, customer)
		}
	}
}

// A purchase that is claimed where it is recorded is nobody else's for a while, and its age begins there; an event that moves nothing,
// and what is never sent, is not claimed.
func TestRecordClaims(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	claimed := func(r purchase.Receipt) purchase.Recorded {
		t.Helper()
		r.Claim = true
		return l.record(r)
	}
	got := claimed(receipt("evt_1", "cs_1", purchase.StatusPending, ""))
	if string(got.Message) != ask[string](l, `SELECT convert_from(envelope, 'UTF8') FROM purchases`) || !got.Claimed.Equal(ask[time.Time](l, `SELECT first_published_at FROM purchases`)) {
		t.Errorf("recorded: %+v", got)
	}
	for name, r := range map[string]purchase.Receipt{
		"known": receipt("evt_1", "cs_1", purchase.StatusPending, ""), "a trial": receipt("evt_2", "cs_2", purchase.StatusSkipped, purchase.ReasonNoPayment),
		"unpaid": receipt("evt_3", "cs_3", purchase.StatusAwaitingPayment, ""),
	} {
		if got := claimed(r); !got.Claimed.IsZero() || got.Message != nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if claims, err := l.Claim(t.Context(), 10); err != nil || len(claims) > 0 {
		t.Errorf("claimed twice: %+v, %v", claims, err)
	}
	if paid := claimed(receipt("evt_4", "cs_3", purchase.StatusPending, "")); paid.Claimed.IsZero() {
		t.Errorf("paid later: %+v", paid)
	}
	if _, err := l.conn.Exec(t.Context(), `UPDATE purchases SET claimed_until = claimed_until - interval '1 hour'`); err != nil { // whoever had them died
		t.Fatal(err)
	}
	if claims, err := l.Claim(t.Context(), 10); err != nil || len(claims) != 2 {
		t.Errorf("claims that have run out: %+v, %v", claims, err)
	}
}

// An outcome tells when the stream took the purchase: a mark that comes later writes nothing.
func TestOutcomeMakesTheMarkNeedless(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.record(receipt("evt_1", "cs_1", purchase.StatusPending, ""))
	o := outcome("cs_1", 1, purchase.StatusDelivered, "a1", base)
	o.Sequence, o.Taken = 42, base.Add(-time.Second)
	if _, err := l.Settle(t.Context(), []message.Outcome{o}); err != nil {
		t.Fatal(err)
	}
	row := func() string {
		return ask[string](l, `SELECT status || ' ' || stream_sequence || ' ' || extract(epoch FROM published_at)::bigint || ' ' || xmin FROM purchases`)
	}
	before := row()
	if want := fmt.Sprintf("delivered 42 %d ", o.Taken.Unix()); !strings.HasPrefix(before, want) {
		t.Errorf("row: %s, want %s", before, want)
	}
	if err := l.MarkPublished(t.Context(), []relay.Mark{{ID: "cs_1", Generation: 1, Sequence: 42}}); err != nil {
		t.Fatal(err)
	}
	if after := row(); after != before {
		t.Errorf("the mark wrote: %s, before it %s", after, before)
	}
}

// A mark that was late is of another life's row, where the ledger was emptied meanwhile and heard of the purchase again.
func TestMarkOfAnotherLife(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	r := receipt("evt_1", "cs_1", purchase.StatusPending, "")
	r.Claim = true
	first := l.record(r).Claimed
	if _, err := l.conn.Exec(t.Context(), `TRUNCATE purchases, profiles, stripe_events`); err != nil {
		t.Fatal(err)
	}
	second := l.record(r).Claimed
	for _, tc := range []struct {
		first time.Time
		want  string
	}{{first, "pending"}, {second, "published"}} {
		if err := l.MarkPublished(t.Context(), []relay.Mark{{ID: "cs_1", Generation: 1, Sequence: 1, FirstPublished: tc.first}}); err != nil {
			t.Fatal(err)
		}
		if got := ask[string](l, `SELECT status FROM purchases`); got != tc.want {
			t.Errorf("%s, want %s", got, tc.want)
		}
	}
}

// What the ledger refuses harms only itself, whatever it was written together with.
func TestRecordIsolatesTheBadOne(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	var group sync.WaitGroup
	for i := range 60 {
		r := receipt(fmt.Sprintf("evt_%d", i), fmt.Sprintf("cs_%d", i), purchase.StatusPending, "")
		switch i {
		case 20:
			r.Purchase.Status = "nonsense" // the table's check refuses it
		case 40:
			r.Purchase.At = time.Time{} // it has no message
		}
		group.Go(func() {
			if _, err := l.Record(t.Context(), r); (err != nil) != (i == 20 || i == 40) {
				t.Errorf("%d: %v", i, err)
			}
		})
	}
	group.Wait()
	if n := ask[int](l, `SELECT count(*) FROM purchases`); n != 58 {
		t.Errorf("%d purchases", n)
	}
}

// A profile that somebody without our locks wrote between our reading and our writing (an older ingest during an upgrade) is not
// overwritten: the whole is done again.
func TestRecordBesideAStranger(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	for _, sql := range []string{ // a trigger stands in for the stranger, once; a sequence remembers over a rollback
		`CREATE SEQUENCE visits`,
		`CREATE FUNCTION stranger() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		    IF nextval('visits') = 1 THEN
		        INSERT INTO profiles (livemode, email, last_purchase_at) VALUES (true, 'buyer@example.com', now());
		    END IF; RETURN NEW; END $$`,
		`CREATE TRIGGER stranger BEFORE INSERT ON stripe_events FOR EACH ROW EXECUTE FUNCTION stranger()`,
	} {
		if _, err := l.conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	got := l.record(receipt("evt_1", "cs_1", purchase.StatusPending, ""))
	if visits := ask[int](l, `SELECT last_value FROM visits`); visits != 2 || got.Disposition != purchase.Processed {
		t.Errorf("%+v after %d visits", got, visits)
	}
	if n := ask[int](l, `SELECT count(*) FROM profiles f JOIN purchases p ON p.profile_id = f.id WHERE f.id = $1::uuid`, got.ProfileID); n != 1 {
		t.Errorf("%d rows", n)
	}
}

// Every order of a session's events ends in the highest state that was among them, and only paid ones make a profile.
func TestRecordInEveryOrder(t *testing.T) {
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
				rt.Fatalf("%v: event %d was %s, want %s", order, i, got.Disposition, want)
			}
		}
		var status, reason string
		var profile, envelope bool
		if err := l.conn.QueryRow(t.Context(), `SELECT status, reason, profile_id IS NOT NULL, envelope IS NOT NULL FROM purchases WHERE checkout_session_id = $1`, id).
			Scan(&status, &reason, &profile, &envelope); err != nil {
			rt.Fatal(err)
		}
		if status != string(states[highest].status) || reason != string(states[highest].reason) || profile != (highest >= 3) || envelope != (highest == 4) {
			rt.Fatalf("%v: %s %s, profile %v, envelope %v", order, status, reason, profile, envelope)
		}
	})
}

func TestProfileKeepsItsLatestPurchase(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	newer, older, bare := receipt("evt_1", "cs_1", purchase.StatusPending, ""), receipt("evt_2", "cs_2", purchase.StatusPending, ""), receipt("evt_3", "cs_3", purchase.StatusPending, "")
	newer.Purchase.Subscription = "sub_new"
	older.Purchase.Subscription, older.Purchase.At = "sub_old", base.Add(-time.Hour)
	bare.Purchase.Subscription, bare.Purchase.Customer, bare.Purchase.At = "", "", base.Add(time.Hour)
	l.record(newer)
	l.record(older)
	l.record(bare)
	if got := ask[string](l, `SELECT stripe_customer_id || ' ' || stripe_subscription_id FROM profiles`); got != "cus_1 sub_new" {
		t.Errorf("profile: %s", got)
	}
}

func TestHostileTextsAreData(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	for i, evil := range []string{"evt_\x00", "evt_'; DROP TABLE purchases; --", "\xff\xfe", strings.Repeat("e", 100_000)} {
		r := receipt(evil, fmt.Sprintf("cs_%d", i), purchase.StatusPending, "")
		if got := l.record(r); got.Disposition != purchase.Processed {
			t.Errorf("%.20q: %+v", evil, got)
		}
		if got := l.record(r); got.Disposition != purchase.Duplicate {
			t.Errorf("%.20q again: %+v", evil, got)
		}
	}
}

func TestRecordErrsAndLeavesNothingWhenPostgresIsSlow(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	tx, err := l.conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `LOCK TABLE purchases IN ACCESS EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := l.Record(ctx, receipt("evt_1", "cs_1", purchase.StatusPending, "")); err == nil || !strings.Contains(err.Error(), "cs_1") {
		t.Errorf("error: %v", err)
	} else if strings.Contains(err.Error(), "buyer@") {
		t.Errorf("an address in an error: %v", err)
	}
	for ask[int](l, `SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)
		WHERE NOT granted AND datname = current_database()`) > 0 { // the server was told to give up
		if t.Context().Err() != nil {
			t.Fatal(t.Context().Err())
		}
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := ask[int](l, `SELECT count(*) FROM stripe_events`); n != 0 {
		t.Errorf("%d events were left behind", n)
	}
	if got := l.record(receipt("evt_1", "cs_1", purchase.StatusPending, "")); got.Disposition != purchase.Processed {
		t.Errorf("the repeat: %+v", got)
	}
}

func TestClaimsAreExclusive(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	for i := range 30 {
		l.record(receipt(fmt.Sprintf("evt_%d", i), fmt.Sprintf("cs_%02d", i), purchase.StatusPending, ""))
	}
	l.record(receipt("evt_x", "cs_x", purchase.StatusAwaitingPayment, ""))
	var group sync.WaitGroup
	var mu sync.Mutex
	seen := map[string]int{}
	for range 6 {
		group.Go(func() {
			claims, err := l.Claim(t.Context(), 5)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, c := range claims {
				seen[c.ID]++
				if c.Generation != 1 || c.FirstPublished.IsZero() || len(c.Envelope) == 0 {
					t.Errorf("claim: %+v", c)
				}
			}
		})
	}
	group.Wait()
	if len(seen) != 30 {
		t.Errorf("%d of 30 were claimed", len(seen))
	}
	for id, n := range seen {
		if n != 1 {
			t.Errorf("%s was claimed %d times", id, n)
		}
	}
	if err := l.Release(t.Context(), []string{"cs_03", "cs_04"}); err != nil {
		t.Fatal(err)
	}
	claims, err := l.Claim(t.Context(), 100)
	if err != nil || len(claims) != 2 {
		t.Fatalf("after a release %d claims, %v", len(claims), err)
	}
	first := claims[0].FirstPublished
	if _, err := l.conn.Exec(t.Context(), `UPDATE purchases SET claimed_until = now() - interval '1 s' WHERE checkout_session_id = $1`, claims[0].ID); err != nil {
		t.Fatal(err)
	}
	if again, err := l.Claim(t.Context(), 100); err != nil || len(again) != 1 || !again[0].FirstPublished.Equal(first) {
		t.Errorf("a claim that ran out: %+v, %v; first publish was %s", again, err, first)
	}
}

// An outcome may overtake the relay's mark.
func TestPublishedNeverTakesAnOutcomeBack(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.record(receipt("evt_1", "cs_1", purchase.StatusPending, ""))
	if _, err := l.Settle(t.Context(), []message.Outcome{outcome("cs_1", 1, purchase.StatusDelivered, "a1", base)}); err != nil {
		t.Fatal(err)
	}
	if err := l.MarkPublished(t.Context(), []relay.Mark{{ID: "cs_1", Generation: 1, Sequence: 7}}); err != nil {
		t.Fatal(err)
	}
	if got := ask[string](l, `SELECT status || ' ' || stream_sequence || ' ' || tiktok_request_id FROM purchases`); got != "delivered 7 req-a1" {
		t.Errorf("row: %s", got)
	}
}

// A mark may bring a higher generation: the stream knew the first one's message id, and took the second. A lower one is over.
func TestPublishedUnderAHigherGeneration(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.record(receipt("evt_1", "cs_1", purchase.StatusPending, ""))
	for _, m := range []relay.Mark{{ID: "cs_1", Generation: 2, Sequence: 7}, {ID: "cs_1", Generation: 1, Sequence: 6}} {
		if err := l.MarkPublished(t.Context(), []relay.Mark{m}); err != nil {
			t.Fatal(err)
		}
		if got := ask[string](l, `SELECT status || ' ' || generation || ' ' || stream_sequence FROM purchases`); got != "published 2 7" {
			t.Errorf("after %+v: %s", m, got)
		}
	}
}

// Outcomes in any order, in batches of any size, any number of times, lead to the same row.
func TestSettleInAnyOrder(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	session := 0
	rapid.Check(t, func(rt *rapid.T) {
		session++
		id := fmt.Sprintf("cs_%d", session)
		if _, err := l.Record(t.Context(), receipt(id, id, purchase.StatusPending, "")); err != nil {
			rt.Fatal(err)
		}
		outcomes := []message.Outcome{
			outcome(id, 1, purchase.StatusRetrying, "a1", base),
			outcome(id, 1, purchase.StatusRetrying, "a2", base.Add(time.Second)),
			outcome(id, 1, purchase.StatusDelivered, "a3", base.Add(2*time.Second)),
		}
		order := rapid.Permutation(append(outcomes, outcomes...)).Draw(rt, "order")
		for len(order) > 0 {
			n := rapid.IntRange(1, len(order)).Draw(rt, "batch")
			if unknown, err := l.Settle(t.Context(), order[:n]); err != nil || len(unknown) > 0 {
				rt.Fatal(unknown, err)
			}
			order = order[n:]
		}
		var got string
		if err := l.conn.QueryRow(t.Context(), `SELECT concat_ws(' ', status, attempts, last_code, last_error, tiktok_request_id, finished_at IS NOT NULL,
			(SELECT count(*) FROM attempts a WHERE a.checkout_session_id = $1)) FROM purchases WHERE checkout_session_id = $1`, id).Scan(&got); err != nil {
			rt.Fatal(err)
		}
		if want := "delivered 3 0 req-a3 t 3"; got != want {
			rt.Fatalf("row %q, want %q", got, want)
		}
	})
}

// A generation that was made up uses up no numbers that replays need: "2147483647" in one outcome stopped
// every bulk replay.
func TestSettle_BoundsTheGeneration(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	for _, tc := range []struct {
		generation, want int
		result           purchase.Status
	}{
		{message.MaxGeneration, 1, purchase.StatusDead},
		{3, 1, purchase.StatusRetrying},
		{1 << 19, 1, purchase.StatusDelivered},
		{2, 2, purchase.StatusRetrying}, // of a sweep whose mark comes later
	} {
		id := fmt.Sprintf("cs_%d", tc.generation)
		l.record(receipt("evt_"+id, id, purchase.StatusPending, ""))
		o := outcome(id, tc.generation, tc.result, "a1", base)
		for range 3 { // and again: it rises no further
			if _, err := l.Settle(t.Context(), []message.Outcome{o, o}); err != nil {
				t.Fatal(err)
			}
		}
		got := ask[string](l, `SELECT concat_ws(' ', status, generation, attempts) FROM purchases WHERE checkout_session_id = '`+id+`'`)
		if want := fmt.Sprintf("%s %d 1", tc.result, tc.want); got != want {
			t.Errorf("after generation %d: %q, want %q", tc.generation, got, want)
		}
	}
	n, err := l.Replay(t.Context(), maintenance.Selection{Status: purchase.StatusDead}, func(int) {})
	if err != nil || n != 1 {
		t.Errorf("Replay = %d, %v, want 1", n, err)
	}
}

func TestSettleTellsOfStrangers(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.record(receipt("evt_1", "cs_1", purchase.StatusPending, ""))
	unknown, err := l.Settle(t.Context(), []message.Outcome{
		outcome("cs_stranger", 1, purchase.StatusDelivered, "a1", base), outcome("cs_1", 1, purchase.StatusDead, "a1", base),
	})
	if err != nil || !cmp.Equal(unknown, []string{"cs_stranger"}) {
		t.Errorf("unknown %v, %v", unknown, err)
	}
	if got := ask[string](l, `SELECT concat_ws(' ', status, reason, last_code, last_error) FROM purchases`); got != "dead refused 40002 said a1" {
		t.Errorf("row: %s", got)
	}
}

// One leads; the next does when it gives the role back, or when its connection is gone.
func TestLead(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	other, err := ledger.Open(t.Context(), secret.String(l.url))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(other.Close)
	first, second := l.LeadAlarm(), other.LeadAlarm()
	t.Cleanup(first.Release)
	t.Cleanup(second.Release)
	check := func(lead *ledger.Lead, want bool) {
		t.Helper()
		if got, err := lead.Hold(t.Context()); err != nil || got != want {
			t.Errorf("%t, %v; want %t", got, err, want)
		}
	}
	check(first, true)
	check(first, true)
	check(second, false)
	first.Release()
	check(second, true)
	check(first, false)
	if n := ask[int](l, `SELECT count(pg_terminate_backend(pid, 60000)) FROM pg_locks JOIN pg_stat_activity USING (pid)
		WHERE datname = current_database() AND locktype = 'advisory' AND objid = 7103 AND granted`); n != 1 {
		t.Fatalf("%d hold the lock", n)
	}
	if got, err := second.Hold(t.Context()); err == nil || got {
		t.Errorf("without its connection: %t, %v", got, err)
	}
	check(first, true)
	check(second, false)
}

func TestMigrateTogether(t *testing.T) {
	t.Parallel()
	url := secret.String(pgtest.Database(t))
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			if _, err := ledger.Migrate(t.Context(), url); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if n, err := ledger.Migrate(t.Context(), url); err != nil || n != 0 {
		t.Errorf("once more: %d, %v", n, err)
	}
}

// A newer binary may have moved the schema on: an older one goes on with it, unless the schema says that it must not.
func TestOlderBinaries(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	if err := l.CheckSchema(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := l.conn.Exec(t.Context(), `INSERT INTO goose_db_version (version_id, is_applied) VALUES (900, true)`); err != nil {
		t.Fatal(err)
	}
	if n, err := ledger.Migrate(t.Context(), secret.String(l.url)); err != nil || n != 0 {
		t.Errorf("a schema ahead of the binary: %d, %v", n, err)
	}
	if err := l.CheckSchema(t.Context()); err != nil {
		t.Errorf("a schema ahead of the binary: %v", err)
	}
	if _, err := l.conn.Exec(t.Context(), `UPDATE schema_compat SET oldest_binary = 900`); err != nil {
		t.Fatal(err)
	}
	if err := l.CheckSchema(t.Context()); !errors.Is(err, ledger.ErrTooOld) {
		t.Errorf("a schema that asks for a newer binary: %v", err)
	}
}

func TestCheckSchemaBeforeAnyMigration(t *testing.T) {
	t.Parallel()
	db, err := ledger.Open(t.Context(), secret.String(pgtest.Database(t)))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.CheckSchema(t.Context()); err == nil || errors.Is(err, ledger.ErrTooOld) {
		t.Errorf("error: %v", err)
	}
}

func TestOpenNeverPrintsThePassword(t *testing.T) {
	t.Parallel()
	_, err := ledger.Open(t.Context(), "postgres://user:hunter2@host:notaport/db")
	if err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("error: %v", err)
	}
}

// overdueIDs claims what the sweeper would ask the queue for.
func (l *testLedger) overdueIDs(grace time.Duration) (ids []string) {
	l.t.Helper()
	claims, err := l.Overdue(l.t.Context(), grace, 100)
	if err != nil {
		l.t.Fatal(err)
	}
	for _, c := range claims {
		ids = append(ids, fmt.Sprintf("%s:%d", c.ID, c.Generation))
		if c.FirstPublished.IsZero() || len(c.Envelope) == 0 {
			l.t.Errorf("claim: %+v", c)
		}
	}
	return ids
}

func TestSweep(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	for _, id := range []string{"cs_done", "cs_lost", "cs_queued", "cs_silent", "cs_young"} {
		l.record(receipt("evt_"+id, id, purchase.StatusPending, ""))
	}
	claims, err := l.Claim(t.Context(), 100)
	if err != nil {
		t.Fatal(err)
	}
	var marks []relay.Mark
	for i, c := range claims {
		marks = append(marks, relay.Mark{ID: c.ID, Generation: c.Generation, Sequence: uint64(i + 1)})
	}
	if err := l.MarkPublished(t.Context(), marks); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Settle(t.Context(), []message.Outcome{outcome("cs_done", 1, purchase.StatusDelivered, "a1", base)}); err != nil {
		t.Fatal(err)
	}
	if ids := l.overdueIDs(time.Minute); len(ids) > 0 {
		t.Errorf("overdue at once: %v", ids)
	}
	if _, err := l.conn.Exec(t.Context(), `UPDATE purchases SET published_at = now() - interval '1 hour', updated_at = now() - interval '1 hour' WHERE checkout_session_id <> 'cs_young'`); err != nil {
		t.Fatal(err)
	}
	ids := l.overdueIDs(time.Minute)
	if diff := cmp.Diff([]string{"cs_lost:1", "cs_queued:1", "cs_silent:1"}, sorted(ids)); diff != "" {
		t.Fatal(diff)
	}
	if again := l.overdueIDs(time.Minute); len(again) > 0 {
		t.Errorf("claimed twice: %v", again)
	}
	first := ask[time.Time](l, `SELECT first_published_at FROM purchases WHERE checkout_session_id = 'cs_lost'`)
	if err := l.RecordSweep(t.Context(), []relay.Mark{{ID: "cs_lost", Generation: 2, Sequence: 99}}, []string{"cs_queued"}, []string{"cs_silent"}); err != nil {
		t.Fatal(err)
	}
	if got := ask[string](l, `SELECT concat_ws(' ', status, generation, stream_sequence) FROM purchases WHERE checkout_session_id = 'cs_lost'`); got != "published 2 99" {
		t.Errorf("cs_lost: %s", got)
	}
	if now := ask[time.Time](l, `SELECT first_published_at FROM purchases WHERE checkout_session_id = 'cs_lost'`); !now.Equal(first) {
		t.Error("a sweep made the purchase younger")
	}
	if ids := l.overdueIDs(time.Minute); !cmp.Equal(ids, []string{"cs_silent:1"}) {
		t.Errorf("overdue afterwards: %v", ids)
	}
	// An outcome of the swept generation may be quicker than the mark.
	if _, err := l.Settle(t.Context(), []message.Outcome{outcome("cs_silent", 2, purchase.StatusDelivered, "a1", base)}); err != nil {
		t.Fatal(err)
	}
	if err := l.RecordSweep(t.Context(), []relay.Mark{{ID: "cs_silent", Generation: 2, Sequence: 100}}, nil, nil); err != nil {
		t.Fatal(err)
	}
	looked := []relay.Mark{{ID: "cs_silent", Generation: 2}, {ID: "cs_queued", Generation: 1}}
	for _, tc := range []struct {
		age  time.Duration
		want []string
	}{{47 * time.Hour, nil}, {0, []string{"cs_queued"}}} {
		if got, err := l.Expire(t.Context(), looked, tc.age); err != nil || !slices.Equal(got, tc.want) {
			t.Errorf("older than %s: %v, %v, want %v", tc.age, got, err, tc.want)
		}
	}
	if got := ask[string](l, `SELECT string_agg(concat_ws(' ', checkout_session_id, status, NULLIF(reason, '')), ', ' ORDER BY checkout_session_id)
		FROM purchases WHERE checkout_session_id IN ('cs_silent', 'cs_queued')`); got != "cs_queued dead expired, cs_silent delivered" {
		t.Errorf("after the end: %s", got)
	}
}

func sorted(s []string) []string {
	slices.Sort(s)
	return s
}
