package report_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/maintenance"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/testkit/ledgertest"
	"purchase-relay/internal/testkit/pglocal/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Run(m)) }

var base = ledgertest.Base()

// A backfilled event says nothing about the endpoint: counting it would hide a disabled one.
func TestReader_LastWebhookIgnoresBackfill(t *testing.T) {
	t.Parallel()
	l := ledgertest.New(t)
	if at, err := l.LastWebhook(t.Context()); err != nil || !at.IsZero() {
		t.Errorf("last webhook of an empty ledger = %s, %v, want zero", at, err)
	}
	for i := range 3 {
		r := ledgertest.Receipt(fmt.Sprintf("evt_%d", i), fmt.Sprintf("cs_%d", i), purchase.StatusPending, "")
		r.Received = base.Add(time.Duration(i) * time.Hour)
		if i == 2 {
			r.Source = purchase.SourceBackfill
		}
		l.MustRecord(r)
	}
	want := base.Add(time.Hour)
	if at, err := l.LastWebhook(t.Context()); err != nil || !at.Equal(want) {
		t.Errorf("last webhook = %s, %v, want %s", at, err, want)
	}
	if s, err := l.Summary(t.Context(), ledgertest.Since(base), nil); err != nil || !s.LastEvent.Equal(want) {
		t.Errorf("summary's last event = %s, %v, want %s", s.LastEvent, err, want)
	}
}

func TestReader_DeadLettersGroupsByReason(t *testing.T) {
	t.Parallel()
	l := ledgertest.New(t)
	before := time.Now().Add(-time.Minute)
	for i := range 7 {
		id := fmt.Sprintf("cs_%d", i)
		l.MustRecord(ledgertest.Receipt("evt_"+id, id, purchase.StatusPending, ""))
		o := ledgertest.Outcome(id, 1, purchase.StatusDead, "a1", base)
		if o.Reason = purchase.ReasonRefused; i == 6 {
			o.Reason = purchase.ReasonCrash
		}
		if _, err := l.Settle(t.Context(), []message.Outcome{o}); err != nil {
			t.Fatal(err)
		}
	}
	letters, err := l.DeadLetters(t.Context(), before)
	if err != nil || len(letters) != 2 {
		t.Fatalf("dead letters = %+v, %v, want two groups", letters, err)
	}
	crash, refused := letters[0], letters[1]
	if crash.Reason != purchase.ReasonCrash || crash.Count != 1 {
		t.Errorf("first group = %+v, want one crash", crash)
	}
	want := []string{"cs_5", "cs_4", "cs_3", "cs_2", "cs_1"}
	if refused.Count != 6 || !slices.Equal(refused.IDs, want) {
		t.Errorf("second group = %+v, want 6 with the ids %v", refused, want)
	}
	if !refused.First.Before(refused.Latest) || refused.First.Before(before) {
		t.Errorf("second group from %s to %s, want both after %s", refused.First, refused.Latest, before)
	}
	all := maintenance.Selection{Status: purchase.StatusDead}
	if _, err := l.Replay(t.Context(), all, func(int) {}); err != nil {
		t.Fatal(err)
	}
	if letters, err := l.DeadLetters(t.Context(), before); err != nil || len(letters) != 0 {
		t.Errorf("after the replay: dead letters = %+v, %v, want none", letters, err)
	}
}

func TestReader_BackfilledCountsPaidPurchasesOnce(t *testing.T) {
	t.Parallel()
	l := ledgertest.New(t)
	const pending = purchase.StatusPending
	for i, tc := range []struct {
		id     string
		status purchase.Status
		reason purchase.Reason
	}{
		{"cs_webhook", pending, ""},
		{"cs_backfilled", pending, ""},
		{"cs_backfilled", pending, ""}, // a second event
		{"cs_unpaid", purchase.StatusAwaitingPayment, ""},
		{"cs_trial", purchase.StatusSkipped, purchase.ReasonNoPayment},
		{"cs_test", pending, ""},
		{"cs_old", pending, ""},
		{"cs_sent_trial", pending, ""},
		{"cs_rejected_trial", purchase.StatusRejected, purchase.ReasonInvalidEmail},
	} {
		r := ledgertest.Receipt(fmt.Sprintf("evt_%d", i), tc.id, tc.status, tc.reason)
		if strings.HasSuffix(tc.id, "_trial") {
			r.Purchase.Kind = purchase.KindTrial
		}
		if tc.id != "cs_webhook" {
			r.Source = purchase.SourceBackfill
		}
		r.Purchase.Livemode = tc.id != "cs_test"
		if tc.id == "cs_old" {
			r.Purchase.At = base.AddDate(0, -2, 0)
		}
		l.MustRecord(r)
	}
	for _, tc := range []struct {
		since    time.Time
		livemode *bool
		want     int
	}{
		{base, nil, 2},
		{base, new(true), 1},
		{base, new(false), 1},
		{base.Add(time.Minute), nil, 0},
		{base.AddDate(-1, 0, 0), nil, 3},
	} {
		n, last, err := l.Backfilled(t.Context(), tc.since, base.AddDate(1, 0, 0), tc.livemode)
		if err != nil || n != tc.want || (n > 0) != last.Equal(base.Add(time.Second)) {
			t.Errorf("backfilled since %s = %d, last %s, %v, want %d", tc.since, n, last, err, tc.want)
		}
	}
}

func TestReader_BackfilledCountsHeldFirstPayments(t *testing.T) {
	t.Parallel()
	l := ledgertest.New(t)
	for _, r := range []purchase.Receipt{ledgertest.Invoice(1, 1), ledgertest.Invoice(2, 1)} {
		r.Source = purchase.SourceBackfill
		if d := l.MustRecord(r).Disposition; d != purchase.Held {
			t.Fatalf("%s: disposition = %s, want held", r.Purchase.ID, d)
		}
	}
	l.MustRecord(ledgertest.Trial(1)) // the second invoice never gets a trial
	n, _, err := l.Backfilled(t.Context(), base.AddDate(0, 0, -1), base.AddDate(1, 0, 0), nil)
	if err != nil || n != 1 {
		t.Errorf("backfilled = %d, %v, want 1", n, err)
	}
}
