package ledger_test

import (
	"bytes"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"purchase-relay/internal/ledger"
	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/relay"
)

// skips collects the rows that are left out.
type skips struct {
	mu   sync.Mutex
	rows []string
}

func (s *skips) report(r ledger.Skipped) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rows = append(s.rows, r.Where+" "+r.ID)
}

// take returns what was left out since the last time, each once, in order.
func (s *skips) take() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	slices.Sort(s.rows)
	list := slices.Compact(s.rows)
	s.rows = nil
	return list
}

func newSkippingLedger(t *testing.T) (*testLedger, *skips) {
	t.Helper()
	l, s := newLedger(t), &skips{}
	l.OnSkip(s.report)
	return l, s
}

func (l *testLedger) buy(id string) {
	l.t.Helper()
	l.must(receipt("evt_"+id, id, purchase.StatusPending, ""), purchase.Processed)
}

func sortedIDs(claims []relay.Claim) (ids []string) {
	for _, c := range claims {
		ids = append(ids, c.ID)
	}
	slices.Sort(ids)
	return ids
}

// An outcome may reach a replayed purchase before the relay's claim does: then it has no first publish. Its
// age counts from the stream's time of the message, else from when the outcome was recorded.
func TestOverdue_TakesRowWithoutFirstPublish(t *testing.T) {
	t.Parallel()
	l, skipped := newSkippingLedger(t)
	taken := time.Now().Add(-3 * time.Hour).UTC().Truncate(time.Microsecond)
	for _, id := range []string{"cs_taken", "cs_untold", "cs_usual"} {
		l.buy(id)
		l.settle(id, purchase.StatusDead)
	}
	if n, err := l.Replay(t.Context(), purchase.Selection{Status: purchase.StatusDead},
		func(int) {}); err != nil || n != 3 {
		t.Fatalf("replay = %d, %v, want 3", n, err)
	}
	late := func(id string, at time.Time) message.Outcome { // of the generation that the replay began
		o := outcome(id, 2, purchase.StatusRetrying, "b_"+id, time.Now())
		o.Taken, o.Sequence = at, 7
		return o
	}
	if _, err := l.Settle(t.Context(), []message.Outcome{late("cs_taken", taken), late("cs_untold",
		time.Time{})}); err != nil {
		t.Fatal(err)
	}
	l.exec(`UPDATE purchases SET status = 'published', first_published_at = now() - interval '1 hour'
		WHERE checkout_session_id = 'cs_usual'`)
	l.exec(`UPDATE purchases SET updated_at = now() - interval '20 minutes'`)
	if n := ask[int](l, `SELECT count(*) FROM purchases WHERE first_published_at IS NULL
		AND status = 'retrying'`); n != 2 {
		t.Fatalf("%d retrying rows without a first publish, want 2", n)
	}
	claims, err := l.Overdue(t.Context(), 10*time.Minute, 100)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := sortedIDs(claims), []string{"cs_taken", "cs_untold", "cs_usual"}; !slices.Equal(got, want) {
		t.Errorf("overdue = %v, want %v", got, want)
	}
	for _, c := range claims {
		age := time.Since(c.FirstPublished).Round(time.Minute)
		if want := map[string]time.Duration{
			"cs_taken": 3 * time.Hour, "cs_untold": 20 * time.Minute,
			"cs_usual": time.Hour,
		}[c.ID]; age != want {
			t.Errorf("age of %s = %s, want %s", c.ID, age, want)
		}
	}
	// The age is kept: a sweep does not make it younger.
	if n := ask[int](l, `SELECT count(*) FROM purchases WHERE first_published_at IS NULL`); n != 0 {
		t.Errorf("%d rows without a first publish after the sweep, want 0", n)
	}
	if got := skipped.take(); len(got) > 0 {
		t.Errorf("skipped %v, want none", got)
	}
}

// One row that cannot be read, or has nothing to be sent, is left out and reported. The others of its batch
// are taken.
func TestClaim_SkipsUnreadableRow(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]string{
		"time beyond all":   `first_published_at = 'infinity'`,
		"time before all":   `first_published_at = '-infinity'`,
		"no envelope":       `envelope = NULL`,
		"an empty envelope": `envelope = ''`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, skipped := newSkippingLedger(t)
			for i := range 5 {
				l.buy(fmt.Sprintf("cs_%d", i))
			}
			l.exec(`UPDATE purchases SET ` + damage + `, created_at = created_at - interval '1 day'
				WHERE checkout_session_id IN ('cs_0', 'cs_1')`)
			// Also where it fills the batch: the ones behind it are found.
			for want := 2; want < 5; want++ {
				claims, err := l.Claim(t.Context(), 1)
				if err != nil || len(claims) != 1 {
					t.Fatalf("claim = %+v, %v, want one", claims, err)
				}
				if slices.Contains([]string{"cs_0", "cs_1"}, claims[0].ID) {
					t.Errorf("claimed %s", claims[0].ID)
				}
			}
			if got, want := skipped.take(), []string{"relay cs_0", "relay cs_1"}; !slices.Equal(got, want) {
				t.Errorf("skipped = %v, want %v", got, want)
			}
			l.exec(`UPDATE purchases SET status = 'published', published_at = now(),
				updated_at = now() - interval '1 hour', claimed_until = NULL,
				first_published_at = COALESCE(first_published_at, now())`)
			claims, err := l.Overdue(t.Context(), time.Minute, 100)
			got, want := sortedIDs(claims), []string{"cs_2", "cs_3", "cs_4"}
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("overdue = %v, %v, want %v", got, err, want)
			}
			if got, want := skipped.take(), []string{"sweeper cs_0", "sweeper cs_1"}; !slices.Equal(got, want) {
				t.Errorf("skipped = %v, want %v", got, want)
			}
		})
	}
}

// A trial's envelope that cannot be read, now or by this version, stops no other trial's invoice; the invoice
// is kept, and converted once it can be.
func TestConvertHeld_SkipsUnreadableEnvelope(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string][]byte{
		"newer version": []byte(`{"version":99,"event_id":{}}`),
		"corrupt":       []byte(`{"version":1,"event_i`),
		"no JSON":       {0, 1, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, skipped := newSkippingLedger(t)
			for n := 1; n <= 3; n++ {
				l.must(trialOf(n), purchase.Processed)
				l.must(invoiceOf(n, 2), purchase.Held) // a later one, which waits for an earlier one
			}
			good := ask[[]byte](l, `SELECT envelope FROM trials WHERE subscription_id = 'sub_1'`)
			l.exec(`UPDATE trials SET envelope = $1, held_at = held_at - interval '1 hour'
				WHERE subscription_id = 'sub_1'`, damage)
			if n, err := l.ConvertHeld(t.Context(), 0); err != nil || n != 2 {
				t.Errorf("converted %d, %v, want 2", n, err)
			}
			if got, want := skipped.take(), []string{"trials sub_1"}; !slices.Equal(got, want) {
				t.Errorf("skipped = %v, want %v", got, want)
			}
			// Its own first invoice is not lost either: it is held, Stripe is answered, and it needs no
			// waiting.
			l.must(invoiceOf(1, 1), purchase.Held)
			if n, err := l.ConvertHeld(t.Context(), purchase.HeldFor); err != nil || n != 0 {
				t.Errorf("converted %d, %v, want 0", n, err)
			}
			if got, want := skipped.take(), []string{"trials sub_1"}; !slices.Equal(got, want) {
				t.Errorf("skipped = %v, want %v", got, want)
			}
			l.exec(`UPDATE trials SET envelope = $1 WHERE subscription_id = 'sub_1'`, good)
			if n, err := l.ConvertHeld(t.Context(), purchase.HeldFor); err != nil || n != 1 {
				t.Errorf("converted %d, %v, want 1", n, err)
			}
			l.firstPaymentIs(1, "in_1_1")
		})
	}
}

// What one webhook is about cannot be read: the webhooks that are written together with it are.
func TestRecord_UnreadableRowFailsItsOwnWebhookAlone(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.must(trialOf(1), purchase.Processed)
	l.exec(`UPDATE trials SET started_at = 'infinity'`)
	var all sync.WaitGroup
	failed := make([]error, 40)
	for i := range failed {
		all.Go(func() {
			r := receipt(fmt.Sprintf("evt_%d", i), fmt.Sprintf("cs_%d", 100+i), purchase.StatusPending, "")
			if i%10 == 0 {
				r = invoiceOf(1, 1+i/10)
			}
			_, failed[i] = l.Record(t.Context(), r)
		})
	}
	all.Wait()
	for i, err := range failed {
		if want := i%10 == 0; (err != nil) != want {
			t.Errorf("webhook %d: %v, want an error: %t", i, err, want)
		}
	}
}

// Every list, page, report and recording goes on without the row, and says so. Histories and pages keep their
// length.
func TestReads_SkipUnreadableRow(t *testing.T) {
	t.Parallel()
	l, skipped := newSkippingLedger(t)
	for i := range 6 {
		id := fmt.Sprintf("cs_%d", i)
		l.buy(id)
		l.settle(id, purchase.StatusDead)
	}
	l.exec(`UPDATE purchases SET finished_at = 'infinity' WHERE checkout_session_id = 'cs_3'`)
	want := []string{"cs_0", "cs_1", "cs_2", "cs_4", "cs_5"}

	var entries []string
	var after purchase.Position
	for range 10 {
		list, err := l.Entries(t.Context(), purchase.Filter{Limit: 2, After: after})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			entries = append(entries, e.ID)
		}
		if len(list) < 2 {
			break
		}
		after = list[len(list)-1].Position()
	}
	if slices.Sort(entries); !slices.Equal(entries, want) {
		t.Errorf("entries = %v, want %v", entries, want)
	}
	if got := skipped.take(); !slices.Equal(got, []string{"entries cs_3"}) {
		t.Errorf("skipped = %v, want entries cs_3", got)
	}

	histories, err := l.Histories(t.Context(), "buyer@example.com", 10)
	if err != nil || len(histories) != len(want) {
		t.Errorf("%d histories, %v, want %d", len(histories), err, len(want))
	}
	if got := skipped.take(); !slices.Equal(got, []string{"history cs_3"}) {
		t.Errorf("skipped = %v, want history cs_3", got)
	}
	l.exec(`UPDATE attempts SET at = 'infinity' WHERE checkout_session_id = 'cs_1'`)
	l.exec(`UPDATE stripe_events SET received_at = 'infinity' WHERE checkout_session_id = 'cs_1'`)
	if histories, err = l.Histories(t.Context(), "cs_1", 10); err != nil || len(histories) != 1 ||
		len(histories[0].Attempts) != 0 {
		t.Errorf("histories = %+v, %v, want one without attempts", histories, err)
	}
	skipped.take()

	outcomes := make([]message.Outcome, 6)
	for i := range outcomes {
		outcomes[i] = outcome(fmt.Sprintf("cs_%d", i), 1, purchase.StatusDelivered, "second", time.Now())
	}
	unknown, err := l.Settle(t.Context(), outcomes)
	if err != nil || !slices.Equal(unknown, []string{"cs_3"}) {
		t.Errorf("settle: unknown %v, %v, want cs_3", unknown, err)
	}
	if n := ask[int](l, `SELECT count(*) FROM purchases WHERE status = 'delivered'`); n != 5 {
		t.Errorf("%d delivered, want 5", n)
	}
	if got := skipped.take(); !slices.Equal(got, []string{"outcomes cs_3"}) {
		t.Errorf("skipped = %v, want outcomes cs_3", got)
	}

	l.exec(`UPDATE purchases SET purchased_at = 'infinity', status = 'skipped'
		WHERE checkout_session_id = 'cs_4'`)
	scope := purchase.Scope{
		Since: base.Add(-time.Hour), Until: time.Now().AddDate(10, 0, 0), Livemode: true,
		Modes: []string{"subscription"},
	}
	standings, err := l.Standings(t.Context(), scope, []string{"cs_4"})
	if err != nil || len(standings) != 5 {
		t.Errorf("%d standings, %v, want 5", len(standings), err)
	}
	skipped.take()
	l.exec(`UPDATE purchases SET status = 'dead', reason = 'refused', updated_at = 'infinity'
		WHERE checkout_session_id = 'cs_4'`)
	l.exec(`UPDATE purchases SET status = 'dead', reason = 'expired', updated_at = now()
		WHERE checkout_session_id = 'cs_5'`)
	if deaths, err := l.Deaths(t.Context(), base); err != nil || len(deaths) != 1 ||
		deaths[0].Reason != purchase.ReasonExpired {
		t.Errorf("deaths = %+v, %v, want the expired one", deaths, err)
	}
}

// The rollup's rows are read, and folded, beside one that cannot be.
func TestSummary_SkipsUnreadableRow(t *testing.T) {
	t.Parallel()
	l, skipped := newSkippingLedger(t)
	l.buy("cs_1")
	l.exec(`INSERT INTO rollup_changes (hour, livemode, status, reason, code, currency, delay, n, minor, keyed,
		key_email, key_phone, key_ttclid, key_ttp, key_ip, key_user_agent, key_page)
		VALUES ('infinity', true, 'dead', 'refused', 'no number', 'usd', -1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0)`)
	s, err := l.Summary(t.Context(), base, nil)
	if err != nil || s.Counts[purchase.StatusPending] != 1 {
		t.Errorf("summary = %+v, %v, want one pending", s.Counts, err)
	}
	if hours, err := l.Fold(t.Context()); err != nil || hours != 1 {
		t.Errorf("fold = %d hours, %v, want 1", hours, err)
	}
	if groups, err := l.Groups(t.Context(), nil); err != nil || len(groups) != 1 {
		t.Errorf("groups = %+v, %v, want one", groups, err)
	}
	for _, row := range skipped.take() {
		if !bytes.HasPrefix([]byte(row), []byte("rollup ")) {
			t.Errorf("skipped %q, want rows of the rollup alone", row)
		}
	}
}
