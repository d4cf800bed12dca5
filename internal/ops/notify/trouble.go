package notify

import (
	"fmt"
	"strings"
	"time"

	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
)

// Trouble is what stands now, for one reason.
type Trouble struct {
	Reason string    // dead:<reason>, paused or silence: at most one message in ten minutes for each
	Since  time.Time // when it began
	Latest time.Time // the newest of it; later than what was told of: it got worse
	Count  int       // 0: it does not stand
	IDs    []string  // some, the newest first
	What   string    // a sentence
	Remedy string
	Over   string // the sentence for when it is over
	// Unknown says that nobody knows whether it stands: nothing is told until somebody does.
	Unknown bool
}

const (
	reasonDead    = "dead:"
	reasonPaused  = "paused"
	reasonSilence = "silence"
)

// troubles makes of what was seen what is to be told. It is a pure function.
func troubles(deaths []report.Deaths, workers []Worker, lastWebhook time.Time, silence time.Duration, now time.Time) (list []Trouble) {
	for _, d := range deaths {
		list = append(list, Trouble{
			Reason: reasonDead + string(d.Reason), Since: d.First, Latest: d.Latest, Count: d.Count, IDs: d.IDs,
			What:   fmt.Sprintf("%s given up on in the last hour: %s.", purchases(d.Count), meaning(d.Reason)),
			Remedy: remedy(d.Reason), Over: "No purchase of the last hour is dead (" + string(d.Reason) + ") any more: replayed, or none died since.",
		})
	}
	list = append(list, paused(workers))
	if silence > 0 && !lastWebhook.IsZero() && now.Sub(lastWebhook) >= silence {
		list = append(list, Trouble{
			Reason: reasonSilence, Since: lastWebhook.Add(silence), Latest: lastWebhook, Count: 1,
			What:   fmt.Sprintf("No webhook of Stripe since %s (NOTIFY_SILENCE is %s).", lastWebhook.UTC().Format(time.RFC3339), silence),
			Remedy: "See in Stripe whether the endpoint is enabled and its deliveries succeed; then DNS, certificate and load balancer.",
			Over:   "Webhooks of Stripe come again.",
		})
	}
	return list
}

// paused is the trouble of workers that stop and wait. Where none is heard of, nobody knows: they may be restarting, or NATS is away.
func paused(workers []Worker) Trouble {
	t := Trouble{Reason: reasonPaused, Unknown: len(workers) == 0, Over: fmt.Sprintf("No worker is paused any more; %d running.", len(workers))}
	for _, w := range workers {
		if !w.Paused {
			continue
		}
		if t.Since.IsZero() || w.Since.Before(t.Since) {
			t.Since = w.Since
			t.What = fmt.Sprintf("paused since %s: TikTok accepts nothing (%s). Purchases wait in the queue.", w.Since.UTC().Format(time.RFC3339), bounded(w.Reason))
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
		t.IDs = t.IDs[:min(len(t.IDs), mostIDs)]
		t.Remedy = "Check the access token, its permission for the pixel, the event's settings and TIKTOK_API_URL, or the firewall on the way; delivery resumes automatically."
	}
	return t
}

// mostIDs is how many ids a message names.
const mostIDs = 5

func purchases(n int) string {
	if n == 1 {
		return "1 purchase was"
	}
	return fmt.Sprintf("%d purchases were", n)
}

func meaning(r purchase.Reason) string {
	switch r {
	case purchase.ReasonRefused:
		return "TikTok refuses the event for its content"
	case purchase.ReasonExpired:
		return "older than RETRY_MAX_AGE without being accepted"
	case purchase.ReasonCrash:
		return "the worker panicked over it, twice"
	default:
		return string(r)
	}
}

func remedy(r purchase.Reason) string {
	switch r {
	case purchase.ReasonRefused:
		return "See TikTok's words with `ingest show <id>`, mend the cause, then `ingest replay --status dead --reason refused`."
	case purchase.ReasonExpired:
		return "See why nothing was accepted for two days; replay what TikTok does not know: `ingest replay --session <id>`."
	default:
		return "See the worker's log (its `stack`), then `ingest replay --session <id>` with a newer version."
	}
}

// bounded keeps a foreign text short and on one line.
func bounded(s string) string {
	s = strings.Join(strings.FieldsFunc(strings.ToValidUTF8(s, "?"), func(r rune) bool { return r <= ' ' || r == 0x7f }), " ")
	if runes := []rune(s); len(runes) > 200 {
		s = string(runes[:200]) + "…"
	}
	return s
}

// Message is one thing to tell.
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
