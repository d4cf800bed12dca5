package notify

import (
	"fmt"
	"strings"
	"time"

	"purchase-relay/internal/logsafe"
	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/guide"
	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
)

// Problem is the current state of one reason.
type Problem struct {
	Reason   string    // dead:<reason>, paused or silence
	Since    time.Time // when it started
	Latest   time.Time // when it last got worse
	Count    int       // 0: no problem
	IDs      []string  // some, the newest first
	What     string    // a sentence
	Remedy   string
	Resolved string // the sentence for when it is resolved
	Unknown  bool   // it may or may not exist: no message is due
}

const (
	reasonDead    = "dead:"
	reasonPaused  = "paused"
	reasonSilence = "silence"
)

// problems derives the problems from the sources.
func problems(
	deaths []report.DeadLetters, workers []message.WorkerState, lastWebhook time.Time, silence time.Duration,
	now time.Time,
) (list []Problem) {
	for _, d := range deaths {
		advice := guide.Purchase(purchase.StatusDead, d.Reason)
		list = append(list, Problem{
			Reason: reasonDead + string(d.Reason), Since: d.First, Latest: d.Latest, Count: d.Count, IDs: d.IDs,
			What: fmt.Sprintf("%s dead-lettered in the last hour (%s). %s.",
				purchases(d.Count), d.Reason, advice.Meaning),
			Remedy:   fmt.Sprintf("%s `%s`", advice.Remedy, advice.Replay),
			Resolved: fmt.Sprintf("No dead purchase from the last hour (%s).", d.Reason),
		})
	}
	list = append(list, paused(workers))
	if silence > 0 && !lastWebhook.IsZero() && now.Sub(lastWebhook) >= silence {
		list = append(list, Problem{
			Reason: reasonSilence, Since: lastWebhook.Add(silence), Latest: lastWebhook, Count: 1,
			What: fmt.Sprintf("No webhook since %s (NOTIFY_SILENCE is %s).",
				lastWebhook.UTC().Format(time.RFC3339), silence),
			Remedy:   "Check the endpoint and its deliveries in Stripe; then DNS, certificate and load balancer.",
			Resolved: "Webhooks arrive again.",
		})
	}
	return list
}

// paused is unknown while no worker reports: workers are restarting, or NATS is down.
func paused(workers []message.WorkerState) Problem {
	advice := guide.Worker(message.WorkerPaused)
	p := Problem{
		Reason: reasonPaused, Unknown: len(workers) == 0, Remedy: advice.Remedy,
		Resolved: fmt.Sprintf("No worker is paused; %d running.", len(workers)),
	}
	for _, w := range workers {
		if w.State != message.WorkerPaused {
			continue
		}
		if p.Since.IsZero() || w.Since.Before(p.Since) {
			p.Since = w.Since
			p.What = fmt.Sprintf("paused since %s: %s (%s). Purchases wait in the queue.",
				w.Since.UTC().Format(time.RFC3339), advice.Meaning, logsafe.Text(w.Reason, maxReason))
		}
		p.Count++
		p.IDs = append(p.IDs, w.Instance)
	}
	if p.Count > 0 {
		p.What = fmt.Sprintf("%d of %d workers %s", p.Count, len(workers), p.What)
		if len(workers) == 1 {
			p.What = "The worker " + strings.TrimPrefix(p.What, "1 of 1 workers ")
		}
		p.Latest = p.Since
		p.IDs = p.IDs[:min(len(p.IDs), maxIDs)]
	}
	return p
}

const (
	maxIDs    = 5
	maxReason = 200 // characters
)

func purchases(n int) string {
	if n == 1 {
		return "1 purchase"
	}
	return fmt.Sprintf("%d purchases", n)
}

// Message is one notification.
type Message struct {
	Reason string
	State  string // firing or resolved
	Since  time.Time
	Count  int
	IDs    []string
	What   string
	Remedy string // "" when resolved
	latest time.Time
}

// The states of a message.
const (
	StateFiring   = "firing"
	StateResolved = "resolved"
)
