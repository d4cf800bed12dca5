package report_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

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
		l.Must(r, purchase.Held)
	}
	l.MustRecord(ledgertest.Trial(1)) // the second invoice never gets a trial
	n, _, err := l.Backfilled(t.Context(), base.AddDate(0, 0, -1), base.AddDate(1, 0, 0), nil)
	if err != nil || n != 1 {
		t.Errorf("backfilled = %d, %v, want 1", n, err)
	}
}
