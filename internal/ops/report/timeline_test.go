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
		ProfileID: new("p1"), Generation: 2, FirstPublished: after(2), Published: after(62),
		Sequence: new(int64(7)), Finished: after(64),
		Events: []report.Event{
			{ID: "evt_2", Type: purchase.TypeCompleted, Received: *after(65), Disposition: purchase.Duplicate},
			{ID: "evt_1", Type: purchase.TypeCompleted, Received: at, Disposition: purchase.Processed},
		},
		Attempts: []report.Attempt{{
			ID: "a", At: *after(63), TookMS: 20, Class: purchase.ClassRefused, Code: new(40002),
			Message: "Batch.0.event: no", RequestID: "r1",
		}},
	}
	var lines []string
	for _, step := range r.Timeline() {
		lines = append(lines, step.At.Format("04:05 ")+step.What)
	}
	want := `04:04 paid (Stripe's time)
04:05 Stripe's checkout.session.completed (evt_1): processed
04:05 customer provisioned: profile p1
04:07 first published
05:07 published: send round 2, stream sequence 7
05:08 attempt 1 at TikTok: refused after 20ms, code 40002, "Batch.0.event: no", request_id r1
05:09 dead (refused)
05:10 Stripe's checkout.session.completed (evt_2): duplicate`
	if got := strings.Join(lines, "\n"); got != want {
		t.Errorf("timeline:\n%s\nwant:\n%s", got, want)
	}
}

// The claim is some time before the acknowledgement.
func TestRow_TimelineOfOnePublish(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, took := range []time.Duration{0, 3 * time.Millisecond, 29 * time.Second} {
		r := report.Row{ID: "cs_1", Generation: 1, FirstPublished: &at, Published: new(at.Add(took))}
		steps := r.Timeline()
		if len(steps) != 1 || steps[0].What != "published: send round 1" {
			t.Errorf("timeline of a publish that took %s = %+v, want one step", took, steps)
		}
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
