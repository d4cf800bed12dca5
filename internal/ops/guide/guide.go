// Package guide explains statuses and reasons, TikTok's answers and codes, workers' states and match keys.
// Pages, commands and notifications use its tables; a test compares alerts and documents with them. The
// packages of the purchase's path do not import it: their log lines have remedies of their own.
package guide

import (
	"fmt"
	"strings"

	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/tiktok"
)

// Advice is a meaning and its remedy.
type Advice struct {
	Meaning string // a sentence without full stop
	Remedy  string // sentences, or ""
	Replay  string // the command that replays such purchases, or ""; <id> is a purchase's id
}

type state struct {
	status purchase.Status
	reason purchase.Reason
}

// states has an entry without reason for each status, for reasons of a newer version.
var states = map[state]Advice{ //nolint:gochecknoglobals // a table, never written
	{purchase.StatusAwaitingPayment, ""}: {
		Meaning: "Checked out with a delayed method, not paid yet",
		Remedy:  "Wait for Stripe to report success or failure, which may take days.",
	},
	{purchase.StatusPaymentFailed, ""}: {
		Meaning: "The delayed payment failed",
		Remedy:  "Nothing to do. If the payment succeeds later, the purchase is delivered.",
	},
	{purchase.StatusRejected, ""}: {
		Meaning: "Paid, without a usable e-mail address",
		Remedy:  "Find the customer in Stripe and give access by hand.",
	},
	{purchase.StatusPending, ""}: {
		Meaning: "Committed, waiting for the queue",
		Remedy:  "If it persists, check NATS (GET /readyz of ingest).",
	},
	{purchase.StatusPublished, ""}: {
		Meaning: "In the queue, waiting for a worker",
		Remedy:  "If it persists, check the workers (GET /readyz of tiktok-worker).",
	},
	{purchase.StatusRetrying, ""}: {
		Meaning: "Not accepted by TikTok yet",
		Remedy:  "The worker retries automatically. See the last attempt for the cause.",
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
		Remedy:  "Report it with the stack from the worker's log, then replay with a fixed version.",
		Replay:  "ingest replay --session <id>",
	},

	{purchase.StatusSkipped, ""}: {Meaning: "Not sent, on purpose"},
	{purchase.StatusSkipped, purchase.ReasonNotConfigured}: {
		Meaning: "The worker had no TIKTOK_ACCESS_TOKEN", Remedy: "Set the token, then replay.",
		Replay: "ingest replay --status skipped --reason not_configured",
	},
	{purchase.StatusSkipped, purchase.ReasonTestPurchase}: {
		Meaning: "A test purchase: it must not count as a sale",
		Remedy:  "To send test purchases, set TIKTOK_TEST_MODE=send and a test event code.",
		Replay:  "ingest replay --session <id>",
	},
	{purchase.StatusSkipped, purchase.ReasonNoPayment}: {
		Meaning: "A trial, a full discount or a free order",
	},
	{purchase.StatusSkipped, purchase.ReasonNoConsent}: {
		Meaning: "The buyer did not consent: no match key is stored",
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

// Group explains purchases with the same status, reason and last TikTok code (nil: none). For rejected events
// the code replaces the reason.
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

// codes lists codes with a more precise meaning than their class.
var codes = map[int]Advice{ //nolint:gochecknoglobals // a table, never written
	20001: {
		Meaning: "Partly accepted: TikTok did not report which event it refused",
		Remedy:  "Replay it: TikTok counts an event_id once.",
	},
	40002: {
		Meaning: "A field of the event is not valid; TikTok's message names it",
		Remedy:  classes[purchase.ClassRefused].Remedy,
	},
	40050: {Meaning: "TikTok already had this event"},
}

// Code explains a TikTok code or an HTTP status.
func Code(code int) Advice {
	if a, known := codes[code]; known {
		return a
	}
	class, known := tiktok.Classify(200, &code, "")
	if code >= 100 && code < 600 { // an HTTP status: TikTok's codes are 0 or above these
		class, known = tiktok.Classify(code, nil, "")
	}
	if !known {
		return Advice{
			Meaning: "A code that TikTok's documentation does not list",
			Remedy:  "Workers retry automatically. If it lasts, contact TikTok's support with the request_id.",
		}
	}
	return Class(class)
}

// Answer explains an answer of TikTok and quotes its code, message and request_id.
func Answer(a purchase.Answer) Advice {
	advice := Class(a.Class)
	advice.Meaning += " (" + Details(a) + ")"
	return advice
}

// Details quotes an answer's code, message and request_id.
func Details(a purchase.Answer) string {
	details := "no answer"
	if a.Code != nil {
		details = fmt.Sprintf("code %d", *a.Code)
	}
	if a.Message != "" {
		details += fmt.Sprintf(", %q", a.Message)
	}
	if a.RequestID != "" {
		details += ", request_id " + a.RequestID
	}
	return details
}

// workers has no entry for running, which needs no explanation.
var workers = map[string]Advice{ //nolint:gochecknoglobals // a table, never written
	message.WorkerPaused: {
		Meaning: "TikTok accepts nothing",
		Remedy: "Fix what the reason names: the access token, its permission for the pixel, another setting, " +
			"TIKTOK_API_URL, or the firewall on the way. Delivery resumes within 5 minutes.",
	},
	message.WorkerOpen: {
		Meaning: "TikTok gives no usable answers; purchases wait in the queue",
		Remedy:  classes[purchase.ClassRetry].Remedy,
	},
	message.WorkerOff: {
		Meaning: "Delivery is off; every purchase ends skipped",
		Remedy:  "If that is not on purpose, set the token and restart the worker, then replay.",
		Replay:  "ingest replay --status skipped --reason not_configured",
	},
}

// Worker explains a worker's state.
func Worker(state string) Advice { return workers[state] }

const statsScope = "Set TIKTOK_STATS_TOKEN to a token whose app has the measurement scope " +
	"(TikTok for Business developers > the app > Scope of permission), authorised for TIKTOK_ADVERTISER_ID; " +
	"a token of the Events API alone does not have it."

// statsProblems explain why TikTok's counts cannot be read, by message.StatsProblem's kind.
var statsProblems = map[string]Advice{ //nolint:gochecknoglobals // a table, never written
	string(purchase.ClassAccess): {
		Meaning: "TikTok refuses its counts: the token lacks the measurement scope, " +
			"or may not read this advertiser",
		Remedy: statsScope,
	},
	string(purchase.ClassRate): {
		Meaning: "TikTok limits the requests for its counts",
		Remedy:  "The request is repeated later. If it lasts, raise TIKTOK_STATS_INTERVAL.",
	},
	string(purchase.ClassRefused): {
		Meaning: "TikTok refuses the request for its counts",
		Remedy:  "Check TIKTOK_ADVERTISER_ID, TIKTOK_PIXEL_ID and TIKTOK_STATS_URL.",
	},
	string(purchase.ClassBlocked): {
		Meaning: "A page in place of TikTok's counts: a firewall or proxy refuses the request",
		Remedy:  "Check TIKTOK_STATS_URL, the proxy and the firewall.",
	},
	string(purchase.ClassRetry): {
		Meaning: "TikTok gives no usable answer about its counts",
		Remedy: "The request is repeated automatically. If it lasts, check TIKTOK_STATS_URL and this host's " +
			"way out (DNS, proxy, firewall).",
	},
	message.StatsQueue: {
		Meaning: "TikTok's counts cannot be passed on through NATS",
		Remedy: "Check NATS, run `ingest provision`, and compare the worker's permissions " +
			"with deploy/nats/nats-server.conf.",
	},
}

// Stats explains why TikTok's counts cannot be read. Deliveries continue.
func Stats(kind string) Advice {
	if a, known := statsProblems[kind]; known {
		return a
	}
	return statsProblems[string(purchase.ClassRetry)]
}

// LowerFirst makes a meaning the second half of a sentence. TikTok's name keeps its capital.
func LowerFirst(meaning string) string {
	if meaning == "" || strings.HasPrefix(meaning, "TikTok") {
		return meaning
	}
	return strings.ToLower(meaning[:1]) + meaning[1:]
}

// MatchKeys returns how to raise the coverage of each match key, in the order of purchase.MatchKeyNames.
func MatchKeys() [purchase.MatchKeyKinds]string {
	return [purchase.MatchKeyKinds]string{
		"Stripe Checkout asks for it automatically.",
		"Set phone_number_collection on the checkout session.",
		"Keep the landing page's ttclid until the checkout (docs/snippets) and put it into the metadata.",
		"Put the cookie _ttp into the checkout's metadata as ttp.",
		"Put the buyer's IP address into the checkout's metadata as client_ip.",
		"Put the browser's user agent into the checkout's metadata as user_agent.",
		"Put the page's URL into the metadata as page_url, or set TIKTOK_PAGE_URL.",
		"Stripe Checkout asks for it with a card; other payment methods may not.",
		"Set billing_address_collection on the checkout session to required.",
	}
}
