package report

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"purchase-relay/internal/ledger"
	"purchase-relay/internal/purchase"
)

// Step is one entry of a purchase's timeline.
type Step struct {
	At       time.Time
	What     string // a sentence without personal data
	Severity Severity

	Event   *Event   // whose receipt the step is; nil: another kind of step
	Attempt *Attempt // which the step is; nil: another kind of step
}

// Severity is how a step ended.
type Severity string

// The severities.
const (
	Neutral Severity = "neutral"
	Good    Severity = "good"
	Wait    Severity = "wait" // to be retried
	Bad     Severity = "bad"
)

func severityOf(s purchase.Status) Severity {
	switch s {
	case purchase.StatusDelivered:
		return Good
	case purchase.StatusRetrying:
		return Wait
	case purchase.StatusDead, purchase.StatusRejected, purchase.StatusPaymentFailed:
		return Bad
	default:
		return Neutral
	}
}

func severityOfAttempt(c purchase.Class) Severity {
	switch c {
	case purchase.ClassDelivered:
		return Good
	case purchase.ClassRefused:
		return Bad
	default:
		return Wait
	}
}

// secondPublish is the time from the first claim, which sets first_published_at, to a publish that must be
// another one. A claim lasts 30 seconds.
const secondPublish = time.Minute

// Timeline returns the purchase's steps in chronological order.
func (r *Row) Timeline() []Step {
	var steps []Step
	add := func(at *time.Time, severity Severity, what string, args ...any) {
		if at != nil {
			steps = append(steps, Step{At: at.UTC(), What: fmt.Sprintf(what, args...), Severity: severity})
		}
	}
	switch {
	case r.Kind == purchase.KindTrial, r.Reason == purchase.ReasonNoPayment:
		add(r.PurchasedAt, Neutral, "checked out without a payment (Stripe's time)")
	case r.Kind == purchase.KindFirstPayment:
		trial := ledger.OrZero(r.TrialSession)
		add(r.PurchasedAt, Neutral, "first payment after the trial %s (Stripe's time)", trial)
	default:
		add(r.PurchasedAt, Neutral, "paid (Stripe's time)")
	}
	add(r.Converted, Good, "first payment recorded: %s", ledger.OrZero(r.FirstPayment))
	for i := range r.Events {
		e := &r.Events[i]
		event, id := purchase.LogSafe(e.Type), purchase.LogSafe(e.ID)
		source := ""
		if e.Backfilled {
			source = ", backfilled: no webhook was received"
		}
		add(&e.Received, Neutral, "Stripe's %s (%s): %s%s", event, id, e.Disposition, source)
		steps[len(steps)-1].Event = e
		if e.Disposition == purchase.Processed && e.Type != purchase.TypeAsyncFailed &&
			e.Type != purchase.TypeInvoicePaid && r.ProfileID != nil {
			add(&e.Received, Good, "customer provisioned: profile %s", *r.ProfileID)
		}
	}
	if r.FirstPublished != nil && r.Published != nil && r.Published.Sub(*r.FirstPublished) >= secondPublish {
		add(r.FirstPublished, Neutral, "first published")
	}
	if sequence := ledger.OrZero(r.Sequence); sequence > 0 {
		add(r.Published, Neutral, "published: send round %d, stream sequence %d", r.Generation, sequence)
	} else {
		add(r.Published, Neutral, "published: send round %d", r.Generation)
	}
	for i := range r.Attempts {
		a := &r.Attempts[i]
		text := fmt.Sprintf("attempt %d at TikTok: %s after %s", i+1, a.Class, a.Took())
		if a.Code != nil {
			text += fmt.Sprintf(", code %d", *a.Code)
		}
		if a.Message != "" {
			text += fmt.Sprintf(", %q", a.Message)
		}
		if a.RequestID != "" {
			text += fmt.Sprintf(", request_id %s", a.RequestID)
		}
		add(&a.At, severityOfAttempt(a.Class), "%s", text)
		steps[len(steps)-1].Attempt = a
	}
	add(r.Finished, severityOf(r.Status), "%s", r.State())
	slices.SortStableFunc(steps, func(a, b Step) int { return cmp.Compare(a.At.UnixNano(), b.At.UnixNano()) })
	return steps
}

// State returns the status with its reason.
func (r *Row) State() string {
	switch {
	case r.Status == purchase.StatusDelivered:
		return "delivered: accepted by TikTok"
	case r.Reason != purchase.ReasonNone:
		return fmt.Sprintf("%s (%s)", r.Status, r.Reason)
	default:
		return string(r.Status)
	}
}
