package ledger_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/maintenance"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/relay"
	"purchase-relay/internal/testkit/ledgertest"
)

func newSkippingLedger(t *testing.T) (*testLedger, *ledgertest.Skips) {
	t.Helper()
	l := newLedger(t)
	return l, l.Skips()
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
		l.Buy(id)
		l.settle(id, purchase.StatusDead)
	}
	if n, err := l.Replay(t.Context(), maintenance.Selection{Status: purchase.StatusDead},
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
	if got := skipped.Take(); len(got) > 0 {
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
				l.Buy(fmt.Sprintf("cs_%d", i))
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
			if got, want := skipped.Take(), []string{"relay cs_0", "relay cs_1"}; !slices.Equal(got, want) {
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
			if got, want := skipped.Take(), []string{"sweeper cs_0", "sweeper cs_1"}; !slices.Equal(got, want) {
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
			if got, want := skipped.Take(), []string{"trials sub_1"}; !slices.Equal(got, want) {
				t.Errorf("skipped = %v, want %v", got, want)
			}
			// Its own first invoice is not lost either: it is held, Stripe is answered, and it needs no
			// waiting.
			l.must(invoiceOf(1, 1), purchase.Held)
			if n, err := l.ConvertHeld(t.Context(), purchase.InvoiceHoldTime); err != nil || n != 0 {
				t.Errorf("converted %d, %v, want 0", n, err)
			}
			if got, want := skipped.Take(), []string{"trials sub_1"}; !slices.Equal(got, want) {
				t.Errorf("skipped = %v, want %v", got, want)
			}
			l.exec(`UPDATE trials SET envelope = $1 WHERE subscription_id = 'sub_1'`, good)
			if n, err := l.ConvertHeld(t.Context(), purchase.InvoiceHoldTime); err != nil || n != 1 {
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
