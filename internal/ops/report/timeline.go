package report

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"purchase-relay/internal/ledger"
	"purchase-relay/internal/purchase"
)

// Step is one line of a purchase's timeline.
type Step struct {
	At       time.Time
	What     string // a sentence without personal data
	Severity Severity
}

// Severity says how a step went.
type Severity string

// The severities.
const (
	Neutral Severity = "neutral"
	Good    Severity = "good"
	Wait    Severity = "wait" // it will be tried again
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

// Timeline lists what happened, in the order in which it happened.
func (r *Row) Timeline() []Step {
	var steps []Step
	add := func(at *time.Time, severity Severity, what string, args ...any) {
		if at != nil {
			steps = append(steps, Step{at.UTC(), fmt.Sprintf(what, args...), severity})
		}
	}
	switch {
	case r.Kind == purchase.KindTrial, r.Reason == purchase.ReasonNoPayment:
		add(r.PurchasedAt, Neutral, "checked out without a payment, by Stripe's time")
	case r.Kind == purchase.KindFirstPayment:
		add(r.PurchasedAt, Neutral, "first payment after the trial %s, by Stripe's time", ledger.OrZero(r.TrialSession))
	default:
		add(r.PurchasedAt, Neutral, "paid, by Stripe's time")
	}
	add(r.Converted, Good, "first payment after it: %s", ledger.OrZero(r.FirstPayment))
	for i := range r.Events {
		e := &r.Events[i]
		add(&e.Received, Neutral, "Stripe's %s (%s): %s",
			purchase.LogSafe(e.Type), purchase.LogSafe(e.ID), e.Disposition)
		if e.Disposition == purchase.Processed && e.Type != purchase.TypeAsyncFailed &&
			e.Type != purchase.TypeInvoicePaid && r.ProfileID != nil {
			add(&e.Received, Good, "customer provisioned: profile %s", *r.ProfileID)
		}
	}
	if r.FirstPublished != nil && r.Published != nil && r.FirstPublished.Before(*r.Published) {
		add(r.FirstPublished, Neutral, "handed to the queue")
	}
	if sequence := ledger.OrZero(r.Sequence); sequence > 0 {
		add(r.Published, Neutral, "taken by the queue as generation %d, sequence %d", r.Generation, sequence)
	} else {
		add(r.Published, Neutral, "taken by the queue as generation %d", r.Generation)
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
	}
	add(r.Finished, severityOf(r.Status), "%s", r.State())
	slices.SortStableFunc(steps, func(a, b Step) int { return cmp.Compare(a.At.UnixNano(), b.At.UnixNano()) })
	return steps
}

// State is the status with its reason, for people.
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

// Remedy says what an operator can do about a purchase that stands like this; "" where nothing needs to be
// done.
func (r *Row) Remedy() string {
	switch r.Status {
	case purchase.StatusAwaitingPayment:
		return "Stripe tells when the delayed payment succeeds or fails; it may take days."
	case purchase.StatusPaymentFailed:
		return "No money came: nothing is sent. A later success would still be taken."
	case purchase.StatusRejected:
		return "It is paid, but there is no usable e-mail address: find the customer in Stripe and give access by hand."
	case purchase.StatusPending:
		return "It waits for the queue: if it stays so, look whether NATS is up (GET /readyz of ingest)."
	case purchase.StatusPublished:
		return "It waits for a worker: if it stays so, look whether one is running and not paused (GET /readyz of tiktok-worker)."
	case purchase.StatusRetrying:
		return "The worker tries again by itself; the last attempt says why."
	case purchase.StatusDead:
		if r.Reason == purchase.ReasonExpired {
			return "It is too old to be sent again without a risk of counting twice. If you know that TikTok never took it: ingest replay --session " + r.ID
		}
		return "Mend what TikTok names, then: ingest replay --session " + r.ID
	case purchase.StatusSkipped:
		switch r.Reason {
		case purchase.ReasonNotConfigured:
			return "The worker had no TIKTOK_ACCESS_TOKEN. With one: ingest replay --session " + r.ID
		case purchase.ReasonTestPurchase:
			return "A test purchase. With TIKTOK_TEST_MODE=send: ingest replay --session " + r.ID
		case purchase.ReasonForgotten:
			return "Its customer's data were removed: there is nothing left to send."
		default: // a trial: no money, no sale, no replay
		}
	default: // delivered
	}
	return ""
}
