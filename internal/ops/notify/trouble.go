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

// Trouble is the present state of one reason.
type Trouble struct {
	Reason  string    // dead:<reason>, paused or silence: at most one message in ten minutes for each
	Since   time.Time // when it began
	Latest  time.Time // the newest of it; later than the last message's: it got worse
	Count   int       // 0: there is none
	IDs     []string  // some, the newest first
	What    string    // a sentence
	Remedy  string
	Over    string // the sentence for when it is over
	Unknown bool   // neither its presence nor its end is known: no message is due
}

const (
	reasonDead    = "dead:"
	reasonPaused  = "paused"
	reasonSilence = "silence"
)

// troubles lists the troubles among what was read. It is a pure function.
func troubles(
	deaths []report.DeadLetters, workers []message.WorkerState, lastWebhook time.Time, silence time.Duration,
	now time.Time,
) (list []Trouble) {
	for _, d := range deaths {
		advice := guide.Purchase(purchase.StatusDead, d.Reason)
		list = append(list, Trouble{
			Reason: reasonDead + string(d.Reason), Since: d.First, Latest: d.Latest, Count: d.Count, IDs: d.IDs,
			What:   fmt.Sprintf("%s died in the last hour (%s). %s.", purchases(d.Count), d.Reason, advice.Meaning),
			Remedy: fmt.Sprintf("%s `%s`", advice.Remedy, advice.Replay),
			Over:   fmt.Sprintf("No purchase of the last hour is dead (%s): replayed, or none died since.", d.Reason),
		})
	}
	list = append(list, paused(workers))
	if silence > 0 && !lastWebhook.IsZero() && now.Sub(lastWebhook) >= silence {
		list = append(list, Trouble{
			Reason: reasonSilence, Since: lastWebhook.Add(silence), Latest: lastWebhook, Count: 1,
			What: fmt.Sprintf("No webhook since %s (NOTIFY_SILENCE is %s).",
				lastWebhook.UTC().Format(time.RFC3339), silence),
			Remedy: "Check in Stripe whether the endpoint is enabled and its deliveries succeed; " +
				"then DNS, certificate and load balancer.",
			Over: "Webhooks arrive again.",
		})
	}
	return list
}

// paused is the trouble of paused workers; unknown without any report: workers restart, or NATS is away.
func paused(workers []message.WorkerState) Trouble {
	advice := guide.Worker(message.WorkerPaused)
	t := Trouble{
		Reason: reasonPaused, Unknown: len(workers) == 0, Remedy: advice.Remedy,
		Over: fmt.Sprintf("No worker is paused any more; %d running.", len(workers)),
	}
	for _, w := range workers {
		if w.State != message.WorkerPaused {
			continue
		}
		if t.Since.IsZero() || w.Since.Before(t.Since) {
			t.Since = w.Since
			t.What = fmt.Sprintf("paused since %s: %s (%s). Purchases wait in the queue.",
				w.Since.UTC().Format(time.RFC3339), advice.Meaning, logsafe.Text(w.Reason, maxReason))
		}
		t.Count++
		t.IDs = append(t.IDs, w.Instance)
	}
	if t.Count > 0 {
		t.What = fmt.Sprintf("%d of %d workers %s", t.Count, len(workers), t.What)
		if len(workers) == 1 {
			t.What = "The worker " + strings.TrimPrefix(t.What, "1 of 1 workers ")
		}
		t.Latest = t.Since
		t.IDs = t.IDs[:min(len(t.IDs), maxIDs)]
	}
	return t
}

// Bounds of a message.
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
	Remedy string // "" when it is over
	latest time.Time
}

// The states of a message.
const (
	StateFiring   = "firing"
	StateResolved = "resolved"
)
