package purchase

// Meaning says in words why the purchases of a group stand where they do.
func (g Group) Meaning() string {
	switch g.Status {
	case StatusDead:
		switch g.Reason {
		case ReasonRefused:
			return "TikTok refuses the event for its content"
		case ReasonExpired:
			return "Not accepted until RETRY_MAX_AGE: a later send could count twice"
		case ReasonCrash:
			return "The worker stumbled over it, twice"
		default:
			return "Given up on"
		}
	case StatusSkipped:
		switch g.Reason {
		case ReasonNotConfigured:
			return "The worker had no TIKTOK_ACCESS_TOKEN"
		case ReasonTestPurchase:
			return "A test purchase: it must not count as a sale"
		case ReasonNoPayment:
			return "A trial, a full discount or a free order: no money, no sale"
		case ReasonNoConsent:
			return "The buyer did not consent: no match key is stored, and nothing is ever sent"
		case ReasonInternal:
			return "Bought by the merchant's own staff (SKIP_EMAIL_DOMAINS)"
		case ReasonForgotten:
			return "The customer's data were removed before it was delivered"
		default:
			return "Not sent, on purpose"
		}
	case StatusRejected:
		return "Paid, without a usable e-mail address: nobody to give access to"
	case StatusRetrying:
		return "TikTok did not take it yet"
	case StatusAwaitingPayment:
		return "Checked out with a delayed method, not paid yet"
	case StatusPaymentFailed:
		return "The delayed payment failed"
	case StatusPending:
		return "Committed; it waits for the queue"
	case StatusPublished:
		return "In the queue; it waits for a worker"
	default:
		return "Accepted by TikTok"
	}
}

// Remedy says what an operator can do about the purchases of a group; "" where nothing needs to be done.
func (g Group) Remedy() string {
	switch g.Status {
	case StatusDead:
		switch g.Reason {
		case ReasonExpired:
			return "See why no worker delivered for so long. Replay them only if TikTok never took them."
		case ReasonCrash:
			return "Report it with the worker's log; with a mended worker, replay."
		default:
			return "Mend what TikTok names, then replay."
		}
	case StatusSkipped:
		switch g.Reason {
		case ReasonNotConfigured:
			return "Set the token, then replay."
		case ReasonTestPurchase:
			return "Nothing, unless you test: TIKTOK_TEST_MODE=send sends them with a test code."
		default: // wanted
		}
	case StatusRejected:
		return "Find the customer in Stripe and give access by hand."
	case StatusRetrying:
		return "The worker tries again by itself."
	case StatusPending:
		return "If it stays so, look whether NATS is up."
	case StatusPublished:
		return "If it stays so, look whether a worker runs and is not paused."
	default: // nothing to do
	}
	return ""
}

// Replayable says whether a replay may take the purchases of a group, all at once.
func (g Group) Replayable() bool {
	return g.Status == StatusDead || g.Status == StatusSkipped && g.Reason == ReasonNotConfigured
}
