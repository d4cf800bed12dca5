// Package guide explains what an operator meets: statuses and reasons, TikTok's answers and codes, the
// workers' states and the match keys. Pages, commands and notifications read its tables, and a test compares
// the alerts and the documents with them. Path packages do not import it: their log lines hold remedies of
// their own.
package guide

import (
	"fmt"

	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/tiktok"
)

// Advice is what something means and what to do about it.
type Advice struct {
	Meaning string // a sentence without its full stop
	Remedy  string // sentences; "" where there is nothing to do
	Replay  string // the command that replays such purchases, "" where none may; <id> stands for one's id
}

type state struct {
	status purchase.Status
	reason purchase.Reason
}

// states lists each status without a reason as well: for a reason of a newer version.
var states = map[state]Advice{ //nolint:gochecknoglobals // a table, never written
	{purchase.StatusAwaitingPayment, ""}: {
		Meaning: "Checked out with a delayed method, not paid yet",
		Remedy:  "Stripe reports success or failure; that may take days.",
	},
	{purchase.StatusPaymentFailed, ""}: {
		Meaning: "The delayed payment failed",
		Remedy:  "Nothing is sent. A later success would still be delivered.",
	},
	{purchase.StatusRejected, ""}: {
		Meaning: "Paid, without a usable e-mail address: nobody to give access to",
		Remedy:  "Find the customer in Stripe and give access by hand.",
	},
	{purchase.StatusPending, ""}: {
		Meaning: "Committed, waiting for the queue",
		Remedy:  "If it stays so, check whether NATS is up (GET /readyz of ingest).",
	},
	{purchase.StatusPublished, ""}: {
		Meaning: "In the queue, waiting for a worker",
		Remedy:  "If it stays so, check whether a worker runs and is not paused (GET /readyz of tiktok-worker).",
	},
	{purchase.StatusRetrying, ""}: {
		Meaning: "Not accepted by TikTok yet",
		Remedy:  "The worker retries automatically; the last attempt says why.",
	},
	{purchase.StatusDelivered, ""}: {Meaning: "Accepted by TikTok"},

	{purchase.StatusDead, ""}: {
		Meaning: "Not delivered, and not retried", Remedy: "Fix what TikTok names, then replay.",
		Replay: "ingest replay --session <id>",
	},
	{purchase.StatusDead, purchase.ReasonRefused}: {
		Meaning: "TikTok refuses the event for its content", Remedy: "Fix what TikTok names, then replay.",
		Replay: "ingest replay --status dead --reason refused",
	},
	{purchase.StatusDead, purchase.ReasonExpired}: {
		Meaning: "Not accepted until RETRY_MAX_AGE: a later send could count twice",
		Remedy:  "See why no worker delivered for so long. Replay only what TikTok never received.",
		Replay:  "ingest replay --session <id>",
	},
	{purchase.StatusDead, purchase.ReasonCrash}: {
		Meaning: "It crashed the worker twice",
		Remedy:  "Report it with the worker's log (stack), then replay with a fixed version.",
		Replay:  "ingest replay --session <id>",
	},

	{purchase.StatusSkipped, ""}: {Meaning: "Not sent, on purpose"},
	{purchase.StatusSkipped, purchase.ReasonNotConfigured}: {
		Meaning: "The worker had no TIKTOK_ACCESS_TOKEN", Remedy: "Set the token, then replay.",
		Replay: "ingest replay --status skipped --reason not_configured",
	},
	{purchase.StatusSkipped, purchase.ReasonTestPurchase}: {
		Meaning: "A test purchase: it must not count as a sale",
		Remedy:  "Nothing, unless you test: TIKTOK_TEST_MODE=send sends them with a test code.",
		Replay:  "ingest replay --session <id>",
	},
	{purchase.StatusSkipped, purchase.ReasonNoPayment}: {
		Meaning: "A trial, a full discount or a free order: no money, no sale",
	},
	{purchase.StatusSkipped, purchase.ReasonNoConsent}: {
		Meaning: "The buyer did not consent: no match key is stored, and nothing is ever sent",
	},
	{purchase.StatusSkipped, purchase.ReasonInternal}: {
		Meaning: "Bought by the merchant's own staff (SKIP_EMAIL_DOMAINS)",
	},
	{purchase.StatusSkipped, purchase.ReasonForgotten}: {
		Meaning: "The customer's data were removed before it was delivered",
	},
}

// Purchase explains a purchase's status and reason.
func Purchase(status purchase.Status, reason purchase.Reason) Advice {
	if a, known := states[state{status, reason}]; known {
		return a
	}
	return states[state{status: status}]
}

// Group explains purchases with one status, reason and last code of TikTok's (nil: none): by the code where it
// says more than the reason.
func Group(status purchase.Status, reason purchase.Reason, last *int) Advice {
	a := Purchase(status, reason)
	if last == nil {
		return a
	}
	code := Code(*last)
	if status == purchase.StatusRetrying || status == purchase.StatusDead && reason == purchase.ReasonRefused {
		a.Meaning = code.Meaning
		if code.Remedy != "" {
			a.Remedy = code.Remedy
		}
		return a
	}
	a.Meaning += ". Last: " + code.Meaning
	return a
}

var classes = map[purchase.Class]Advice{ //nolint:gochecknoglobals // a table, never written
	purchase.ClassDelivered: {Meaning: "TikTok accepted the event"},
	purchase.ClassRetry: {
		Meaning: "TikTok, or a gateway before it, gives no usable answer",
		Remedy: "Workers retry automatically. If it lasts, check TikTok's status page, TIKTOK_API_URL " +
			"and this host's way out (DNS, proxy, firewall).",
	},
	purchase.ClassRate: {
		Meaning: "Too many requests",
		Remedy: "Workers slow down automatically. If it lasts, lower TIKTOK_MAX_RPS, " +
			"or see who else uses the same TikTok app.",
	},
	purchase.ClassRefused: {
		Meaning: "TikTok refuses the event for its content",
		Remedy: "Compare the message with the body that was sent. Often: TIKTOK_EVENT_NAME, the pixel's id, " +
			"a currency, the page's address. Then replay what is dead.",
	},
	purchase.ClassAccess: {
		Meaning: "TikTok refuses access: token, permission, account or address",
		Remedy: "Check the access token, its permission for the pixel (event:write) and TIKTOK_API_URL. " +
			"Workers wait, lose nothing and resume automatically.",
	},
	purchase.ClassBlocked: {
		Meaning: "A page in place of TikTok's answer: a firewall or proxy refuses the event, or every event",
		Remedy: "Compare the event's page address and user agent with the firewall's rules, then replay. " +
			"If every event is refused, check TIKTOK_API_URL, the proxy and the token.",
	},
}

// Class explains a class of TikTok's answers.
func Class(c purchase.Class) Advice { return classes[c] }

// codes are those that mean more than their class.
var codes = map[int]Advice{ //nolint:gochecknoglobals // a table, never written
	20001: {
		Meaning: "Partly accepted: TikTok did not say which event it refused",
		Remedy:  "Replay it; a second acceptance under the same event_id counts once.",
	},
	40002: {
		Meaning: "A field of the event is not valid; the message names it",
		Remedy:  classes[purchase.ClassRefused].Remedy,
	},
	40050: {Meaning: "TikTok had this event already"},
}

// Code explains a code of the ledger: TikTok's own, else an HTTP status.
func Code(code int) Advice {
	if a, known := codes[code]; known {
		return a
	}
	class, known := tiktok.Classify(200, &code, "")
	if code >= 100 && code < 600 { // an HTTP status: TikTok's own codes are 0 or greater
		class, known = tiktok.Classify(code, nil, "")
	}
	if !known {
		return Advice{
			Meaning: "A code that TikTok's documentation does not list",
			Remedy:  "It is retried. If it lasts, ask TikTok's support with the request_id.",
		}
	}
	return Class(class)
}

// Answer explains an answer of TikTok's; its meaning ends with the answer's own words in brackets.
func Answer(a purchase.Answer) Advice {
	advice := Class(a.Class)
	said := "no answer"
	if a.Code != nil {
		said = fmt.Sprintf("code %d", *a.Code)
	}
	if a.Message != "" {
		said += fmt.Sprintf(", %q", a.Message)
	}
	if a.RequestID != "" {
		said += ", request_id " + a.RequestID
	}
	advice.Meaning += " (" + said + ")"
	return advice
}

// workers does not list "running": there is nothing to explain.
var workers = map[string]Advice{ //nolint:gochecknoglobals // a table, never written
	message.WorkerPaused: {
		Meaning: "TikTok accepts nothing",
		Remedy: "Fix what the reason names: the access token, its permission for the pixel, another setting, " +
			"TIKTOK_API_URL, or the firewall on the way. Delivery resumes within 5 minutes.",
	},
	message.WorkerOpen: {
		Meaning: "TikTok gives no usable answers, purchases wait in the queue",
		Remedy:  classes[purchase.ClassRetry].Remedy,
	},
	message.WorkerOff: {
		Meaning: "TikTok gets nothing, every purchase ends skipped",
		Remedy:  "If that is not on purpose, set the token and restart the worker, then replay.",
		Replay:  "ingest replay --status skipped --reason not_configured",
	},
}

// Worker explains a worker's state.
func Worker(state string) Advice { return workers[state] }

// MatchKeys returns how to raise the coverage of each match key, in the order of purchase.MatchKeyNames.
func MatchKeys() [purchase.MatchKeyKinds]string {
	return [purchase.MatchKeyKinds]string{
		"Stripe Checkout asks for it automatically.",
		"Set phone_number_collection on the checkout session.",
		"Keep the landing page's ttclid until the checkout (docs/snippets) and put it into the metadata.",
		"Put the cookie _ttp into the checkout's metadata as ttp.",
		"Put the buyer's address into the checkout's metadata as client_ip.",
		"Put the browser's into the checkout's metadata as user_agent.",
		"Put the page's address into the metadata as page_url, or set TIKTOK_PAGE_URL.",
		"Stripe Checkout asks for it with a card; other payment methods may not.",
		"Set billing_address_collection on the checkout session to required.",
	}
}
