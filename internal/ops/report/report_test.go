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

// What came by catch-up is no sign of life of the endpoint's: the ledger would hide that it is disabled.
func TestLastWebhook(t *testing.T) {
	t.Parallel()
	l := ledgertest.New(t)
	if at, err := l.LastWebhook(t.Context()); err != nil || !at.IsZero() {
		t.Errorf("an empty ledger's last webhook: %s, %v", at, err)
	}
	for i, r := range []purchase.Receipt{
		ledgertest.Receipt("evt_1", "cs_1", purchase.StatusPending, ""), ledgertest.Receipt("evt_2", "cs_2", purchase.StatusPending, ""), ledgertest.Receipt("evt_3", "cs_3", purchase.StatusPending, ""),
	} {
		r.Received = base.Add(time.Duration(i) * time.Hour)
		if i == 2 {
			r.Source = purchase.SourceBackfill
		}
		l.MustRecord(r)
	}
	if at, err := l.LastWebhook(t.Context()); err != nil || !at.Equal(base.Add(time.Hour)) {
		t.Errorf("the last webhook: %s, %v", at, err)
	}
	if s, err := l.Summary(t.Context(), base, nil); err != nil || !s.LastEvent.Equal(base.Add(time.Hour)) {
		t.Errorf("the dashboard's last webhook: %s, %v", s.LastEvent, err)
	}
}

func TestDeaths(t *testing.T) {
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
	deaths, err := l.DeadLetters(t.Context(), before)
	if err != nil || len(deaths) != 2 || deaths[0].Reason != purchase.ReasonCrash || deaths[0].Count != 1 || deaths[1].Count != 6 ||
		!slices.Equal(deaths[1].IDs, []string{"cs_5", "cs_4", "cs_3", "cs_2", "cs_1"}) || !deaths[1].First.Before(deaths[1].Latest) || deaths[1].First.Before(before) {
		t.Fatalf("%+v, %v", deaths, err)
	}
	if _, err := l.Replay(t.Context(), maintenance.Selection{Status: purchase.StatusDead}, func(int) {}); err != nil {
		t.Fatal(err)
	}
	if deaths, err := l.DeadLetters(t.Context(), before); err != nil || len(deaths) != 0 {
		t.Errorf("after the replay: %+v, %v", deaths, err)
	}
}

// Only what was paid counts, once a purchase, in its mode and time; what a webhook brought does not.
func TestCaughtUp(t *testing.T) {
	t.Parallel()
	l := ledgertest.New(t)
	for _, r := range []purchase.Receipt{
		ledgertest.Receipt("evt_1", "cs_webhook", purchase.StatusPending, ""), ledgertest.Receipt("evt_2", "cs_caught", purchase.StatusPending, ""), ledgertest.Receipt("evt_3", "cs_caught", purchase.StatusPending, ""),
		ledgertest.Receipt("evt_4", "cs_unpaid", purchase.StatusAwaitingPayment, ""), ledgertest.Receipt("evt_5", "cs_trial", purchase.StatusSkipped, purchase.ReasonNoPayment), ledgertest.Receipt("evt_6", "cs_test", purchase.StatusPending, ""),
		ledgertest.Receipt("evt_7", "cs_old", purchase.StatusPending, ""), ledgertest.Receipt("evt_8", "cs_sent_trial", purchase.StatusPending, ""),
		ledgertest.Receipt("evt_9", "cs_rejected_trial", purchase.StatusRejected, purchase.ReasonInvalidEmail),
	} {
		if strings.HasSuffix(r.Purchase.ID, "_trial") {
			r.Purchase.Kind = purchase.KindTrial
		}
		if r.Purchase.ID != "cs_webhook" {
			r.Source = purchase.SourceBackfill
		}
		r.Purchase.Livemode = r.Purchase.ID != "cs_test"
		if r.Purchase.ID == "cs_old" {
			r.Purchase.At = base.AddDate(0, -2, 0)
		}
		l.MustRecord(r)
	}
	for _, tc := range []struct {
		since    time.Time
		livemode *bool
		want     int
	}{{base, nil, 2}, {base, new(true), 1}, {base, new(false), 1}, {base.Add(time.Minute), nil, 0}, {base.AddDate(-1, 0, 0), nil, 3}} {
		n, last, err := l.Backfilled(t.Context(), tc.since, tc.livemode)
		if err != nil || n != tc.want || (n > 0) != last.Equal(base.Add(time.Second)) {
			t.Errorf("since %s: %d, last %s, %v", tc.since, n, last, err)
		}
	}
}

// A first payment whose invoice came by catch-up counts, also where it had to wait for its trial.
func TestCaughtUp_CountsHeldFirstPayments(t *testing.T) {
	t.Parallel()
	l := ledgertest.New(t)
	for _, r := range []purchase.Receipt{ledgertest.Invoice(1, 1), ledgertest.Invoice(2, 1)} { // of the second no trial ever comes
		r.Source = purchase.SourceBackfill
		if d := l.MustRecord(r).Disposition; d != purchase.Held {
			t.Fatalf("%s: %s, want held", r.Purchase.ID, d)
		}
	}
	l.MustRecord(ledgertest.Trial(1))
	if n, _, err := l.Backfilled(t.Context(), base.AddDate(0, 0, -1), nil); err != nil || n != 1 {
		t.Errorf("caught up = %d, %v, want 1", n, err)
	}
}
