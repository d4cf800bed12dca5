package guide

import (
	"fmt"
	"strings"
	"time"

	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
)

// The kinds of problems. A dead purchase's kind is ProblemDead and its reason.
const (
	ProblemPostgres      = "postgres"
	ProblemSchema        = "schema"
	ProblemNATS          = "nats"
	ProblemQueue         = "queue"
	ProblemWorkerMissing = "worker_missing"
	ProblemPaused        = "paused"
	ProblemCircuitOpen   = "circuit_open"
	ProblemThinEvents    = "thin_events"
	ProblemRejected      = "rejected"
	ProblemDead          = "dead:"
	ProblemSilence       = "silence"
	ProblemOutbox        = "outbox"
	ProblemWaiting       = "waiting"
	ProblemLost          = "lost"
	ProblemOff           = "off"
	ProblemTestPaused    = "test_paused"
	ProblemCounts        = "tiktok_counts"
)

// ProblemAdvice explains a kind of problem.
type ProblemAdvice struct {
	Advice
	Resolved string        // a sentence for when it is over
	Patience time.Duration // how long it may last before the operator is notified, as in the alert rules
}

const (
	brief = 2 * time.Minute // a restart takes less
	long  = 10 * time.Minute
)

var problems = map[string]ProblemAdvice{ //nolint:gochecknoglobals // a table, never written
	ProblemPostgres: {
		Advice: Advice{
			Meaning: "Postgres does not respond: webhooks are answered 503, and Stripe repeats them for three days",
			Remedy:  "Look at Postgres and at DATABASE_URL.",
		},
		Resolved: "Postgres responds.", Patience: time.Minute,
	},
	ProblemSchema: {
		Advice: Advice{
			Meaning: "The ledger's schema is behind this version: webhooks are answered 503",
			Remedy:  "Run `ingest migrate` with MIGRATE_DATABASE_URL. Ingest's log has the cause.",
		},
		Resolved: "The schema is up to date.", Patience: time.Minute,
	},
	ProblemNATS: {
		Advice: Advice{
			Meaning: "NATS is down: webhooks are accepted, purchases wait in the ledger and the queue",
			Remedy:  "Look at NATS, NATS_URL and the credentials. Delivery resumes automatically.",
		},
		Resolved: "NATS is connected.", Patience: brief,
	},
	ProblemQueue: {
		Advice: Advice{
			Meaning: "NATS is connected, but its streams or the workers' consumer are missing",
			Remedy: "Run `ingest provision`. Often NATS_MAX_BYTES is above the server's limit; " +
				"ingest's log has the cause.",
		},
		Resolved: "The streams are ready.", Patience: brief,
	},
	ProblemWorkerMissing: {
		Advice: Advice{
			Meaning: "No worker reports: purchases wait in the queue",
			Remedy:  "Start tiktok-worker within two days, before purchases expire.",
		},
		Resolved: "A worker reports.", Patience: brief,
	},
	ProblemPaused: {
		Advice: workers[message.WorkerPaused], Resolved: "No worker is paused.",
	},
	ProblemCircuitOpen: {
		Advice: workers[message.WorkerOpen], Resolved: "No worker's circuit is open.", Patience: long,
	},
	ProblemThinEvents: {
		Advice: Advice{
			Meaning: "Thin events are rejected: they contain no checkout, and their purchases are not recorded",
			Remedy: "Choose snapshot payloads in Stripe, or set STRIPE_API_KEY. " +
				"Then record what was missed: `ingest backfill`.",
		},
		Resolved: "No thin event was rejected lately.",
	},
	ProblemRejected: {
		Advice: states[state{purchase.StatusRejected, ""}], Resolved: "No purchase is rejected.",
	},
	ProblemSilence: {
		Advice: Advice{
			Meaning: "No webhook for longer than NOTIFY_SILENCE",
			Remedy:  "Check the endpoint and its deliveries in Stripe; then DNS, certificate and load balancer.",
		},
		Resolved: "Webhooks arrive again.",
	},
	ProblemOutbox: {
		Advice: Advice{
			Meaning: "Purchases have waited for the queue for more than 5 minutes",
			Remedy:  "Ingest's log has the error. Often the stream is full: start workers, or raise NATS_MAX_BYTES.",
		},
		Resolved: "No purchase has waited for the queue for long.",
	},
	ProblemWaiting: {
		Advice: Advice{
			Meaning: "Purchases have waited for TikTok for more than 30 minutes",
			Remedy: "See the last attempts of the oldest. If only the number is large, start more workers " +
				"or raise TIKTOK_MAX_RPS.",
		},
		Resolved: "No purchase has waited for TikTok for long.",
	},
	ProblemLost: {
		Advice: Advice{
			Meaning: "The queue lost purchases in the last hour; they were published again",
			Remedy:  "Check the NATS server's disk and restarts.",
		},
		Resolved: "The queue has lost nothing for an hour.",
	},
	ProblemOff: {
		Advice: workers[message.WorkerOff], Resolved: "Delivery is on.",
	},
	ProblemTestPaused: {
		Advice: Advice{
			Meaning: "TikTok refuses the test destination; live purchases are not affected",
			Remedy:  "Check TIKTOK_TEST_ACCESS_TOKEN and TIKTOK_TEST_PIXEL_ID, or set TIKTOK_TEST_MODE=skip.",
		},
		Resolved: "The test destination accepts events.", Patience: 30 * time.Minute,
	},
	ProblemCounts: {
		Advice:   statsProblems[string(purchase.ClassRetry)], // the list has the one of the failure's kind
		Resolved: "TikTok's counts are read.", Patience: 6 * time.Hour,
	},
}

// Problem explains a kind of problem. A dead purchase's reason does not matter here: see Group.
func Problem(kind string) ProblemAdvice {
	if reason, dead := strings.CutPrefix(kind, ProblemDead); dead {
		return ProblemAdvice{
			Advice:   Purchase(purchase.StatusDead, purchase.Reason(reason)),
			Resolved: fmt.Sprintf("No purchase is dead (%s).", reason),
		}
	}
	return problems[kind]
}

// ProblemKinds returns the kinds that have an entry of their own, without the dead ones.
func ProblemKinds() []string {
	return []string{
		ProblemPostgres, ProblemSchema, ProblemNATS, ProblemQueue, ProblemWorkerMissing, ProblemPaused,
		ProblemCircuitOpen, ProblemThinEvents, ProblemRejected, ProblemSilence, ProblemOutbox, ProblemWaiting,
		ProblemLost, ProblemOff, ProblemTestPaused, ProblemCounts,
	}
}
