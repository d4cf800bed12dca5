package report

import "purchase-relay/internal/purchase"

// Meaning says in words why the purchases of a group stand where they do.
func (g Group) Meaning() string {
	switch g.Status {
	case purchase.StatusDead:
		switch g.Reason {
		case purchase.ReasonRefused:
			return "TikTok refuses the event for its content"
		case purchase.ReasonExpired:
			return "Not accepted until RETRY_MAX_AGE: a later send could count twice"
		case purchase.ReasonCrash:
			return "The worker stumbled over it, twice"
		default:
			return "Given up on"
		}
	case purchase.StatusSkipped:
		switch g.Reason {
		case purchase.ReasonNotConfigured:
			return "The worker had no TIKTOK_ACCESS_TOKEN"
		case purchase.ReasonTestPurchase:
			return "A test purchase: it must not count as a sale"
		case purchase.ReasonNoPayment:
			return "A trial, a full discount or a free order: no money, no sale"
		case purchase.ReasonNoConsent:
			return "The buyer did not consent: no match key is stored, and nothing is ever sent"
		case purchase.ReasonInternal:
			return "Bought by the merchant's own staff (SKIP_EMAIL_DOMAINS)"
		case purchase.ReasonForgotten:
			return "The customer's data were removed before it was delivered"
		default:
			return "Not sent, on purpose"
		}
	case purchase.StatusRejected:
		return "Paid, without a usable e-mail address: nobody to give access to"
	case purchase.StatusRetrying:
		return "TikTok did not take it yet"
	case purchase.StatusAwaitingPayment:
		return "Checked out with a delayed method, not paid yet"
	case purchase.StatusPaymentFailed:
		return "The delayed payment failed"
	case purchase.StatusPending:
		return "Committed; it waits for the queue"
	case purchase.StatusPublished:
		return "In the queue; it waits for a worker"
	default:
		return "Accepted by TikTok"
	}
}

// Remedy says what an operator can do about the purchases of a group; "" where nothing needs to be done.
func (g Group) Remedy() string {
	switch g.Status {
	case purchase.StatusDead:
		switch g.Reason {
		case purchase.ReasonExpired:
			return "See why no worker delivered for so long. Replay them only if TikTok never took them."
		case purchase.ReasonCrash:
			return "Report it with the worker's log; with a mended worker, replay."
		default:
			return "Mend what TikTok names, then replay."
		}
	case purchase.StatusSkipped:
		switch g.Reason {
		case purchase.ReasonNotConfigured:
			return "Set the token, then replay."
		case purchase.ReasonTestPurchase:
			return "Nothing, unless you test: TIKTOK_TEST_MODE=send sends them with a test code."
		default: // wanted
		}
	case purchase.StatusRejected:
		return "Find the customer in Stripe and give access by hand."
	case purchase.StatusRetrying:
		return "The worker tries again by itself."
	case purchase.StatusPending:
		return "If it stays so, look whether NATS is up."
	case purchase.StatusPublished:
		return "If it stays so, look whether a worker runs and is not paused."
	default: // nothing to do
	}
	return ""
}
