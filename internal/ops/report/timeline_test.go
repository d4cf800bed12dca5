package report_test

import (
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
)

func TestRow_TimelineIsInOrder(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	after := func(seconds int) *time.Time { return new(at.Add(time.Duration(seconds) * time.Second)) }
	r := report.Row{
		ID: "cs_1", Status: purchase.StatusDead, Reason: purchase.ReasonRefused, PurchasedAt: after(-1),
		ProfileID: new("p1"), Generation: 2, FirstPublished: after(2), Published: after(3), Sequence: new(int64(7)),
		Finished: after(5),
		Events: []report.Event{
			{ID: "evt_2", Type: purchase.TypeCompleted, Received: *after(6), Disposition: purchase.Duplicate},
			{ID: "evt_1", Type: purchase.TypeCompleted, Received: at, Disposition: purchase.Processed},
		},
		Attempts: []report.Attempt{{
			ID: "a", At: *after(4), TookMS: 20, Class: purchase.ClassRefused, Code: new(40002), Message: "Batch.0.event: no",
			RequestID: "r1",
		}},
	}
	var lines []string
	for _, step := range r.Timeline() {
		lines = append(lines, step.At.Format("05 ")+step.What)
	}
	want := `04 paid, by Stripe's time
05 Stripe's checkout.session.completed (evt_1): processed
05 customer provisioned: profile p1
07 handed to the queue
08 taken by the queue as generation 2, sequence 7
09 attempt 1 at TikTok: refused after 20ms, code 40002, "Batch.0.event: no", request_id r1
10 dead (refused)
11 Stripe's checkout.session.completed (evt_2): duplicate`
	if got := strings.Join(lines, "\n"); got != want {
		t.Errorf("timeline:\n%s\nwant:\n%s", got, want)
	}
}

// Where a person must do something, the remedy says what; where nothing can be done, no replay is offered.
func TestRow_Remedy(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := report.Row{
			ID:     "cs_1",
			Status: rapid.SampledFrom(purchase.Statuses()).Draw(t, "status"),
			Reason: rapid.SampledFrom([]purchase.Reason{
				"", purchase.ReasonNoPayment, purchase.ReasonNotConfigured, purchase.ReasonTestPurchase, purchase.ReasonRefused, purchase.ReasonExpired,
			}).Draw(t, "reason"),
		}
		offered := strings.Contains(r.Remedy(), "ingest replay --session cs_1")
		allowed := r.Status == purchase.StatusDead ||
			r.Status == purchase.StatusSkipped && (r.Reason == purchase.ReasonNotConfigured || r.Reason == purchase.ReasonTestPurchase)
		if offered != allowed {
			t.Fatalf("%s: %q", r.State(), r.Remedy())
		}
		if r.Remedy() == "" && r.Status != purchase.StatusDelivered && r.Status != purchase.StatusSkipped {
			t.Fatalf("%s has no remedy", r.State())
		}
	})
}

// A checkout without money says so, whatever its kind: it was not paid.
func TestRow_TimelineWithoutMoney(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, tc := range map[string]struct {
		kind   purchase.Kind
		reason purchase.Reason
		want   string
	}{
		"trial":         {purchase.KindTrial, purchase.ReasonNoPayment, "checked out without a payment"},
		"trial sent":    {purchase.KindTrial, "", "checked out without a payment"},
		"full discount": {purchase.KindCheckout, purchase.ReasonNoPayment, "checked out without a payment"},
		"sale":          {purchase.KindCheckout, "", "paid"},
		"staff's":       {purchase.KindCheckout, purchase.ReasonInternal, "paid"},
	} {
		r := report.Row{ID: "cs_1", Kind: tc.kind, Status: purchase.StatusSkipped, Reason: tc.reason, PurchasedAt: &at}
		if got := r.Timeline()[0].What; got != tc.want+", by Stripe's time" {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}
