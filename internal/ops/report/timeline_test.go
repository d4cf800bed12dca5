package report_test

import (
	"strings"
	"testing"
	"time"

	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
)

func TestRow_TimelineIsChronological(t *testing.T) {
	t.Parallel()
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
			ID: "a", At: *after(4), TookMS: 20, Class: purchase.ClassRefused, Code: new(40002),
			Message: "Batch.0.event: no", RequestID: "r1",
		}},
	}
	var lines []string
	for _, step := range r.Timeline() {
		lines = append(lines, step.At.Format("05 ")+step.What)
	}
	want := `04 paid (Stripe's time)
05 Stripe's checkout.session.completed (evt_1): processed
05 customer provisioned: profile p1
07 first published
08 published: send round 2, stream sequence 7
09 attempt 1 at TikTok: refused after 20ms, code 40002, "Batch.0.event: no", request_id r1
10 dead (refused)
11 Stripe's checkout.session.completed (evt_2): duplicate`
	if got := strings.Join(lines, "\n"); got != want {
		t.Errorf("timeline:\n%s\nwant:\n%s", got, want)
	}
}

func TestRow_TimelineOfUnpaidCheckoutIsNotPaid(t *testing.T) {
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
		r := report.Row{
			ID: "cs_1", Kind: tc.kind, Status: purchase.StatusSkipped, Reason: tc.reason, PurchasedAt: &at,
		}
		if got := r.Timeline()[0].What; got != tc.want+" (Stripe's time)" {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}
