package guide_test

import (
	"os"
	"strings"
	"testing"

	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/guide"
	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
)

// A status that needs the operator has a remedy, and only replayable purchases have a replay command.
func TestPurchase_ExplainsEveryState(t *testing.T) {
	reasons := []purchase.Reason{
		"", purchase.ReasonNoPayment, purchase.ReasonNotConfigured, purchase.ReasonTestPurchase,
		purchase.ReasonNoConsent, purchase.ReasonInternal, purchase.ReasonForgotten, purchase.ReasonInvalidEmail,
		purchase.ReasonRefused, purchase.ReasonExpired, purchase.ReasonCrash, "newer",
	}
	for _, status := range purchase.Statuses() {
		for _, reason := range reasons {
			a := guide.Purchase(status, reason)
			if a.Meaning == "" || strings.HasSuffix(a.Meaning, ".") {
				t.Errorf("%s (%s): meaning = %q, want a sentence without full stop", status, reason, a.Meaning)
			}
			if a.Remedy == "" && status != purchase.StatusDelivered && status != purchase.StatusSkipped {
				t.Errorf("%s (%s): remedy is empty", status, reason)
			}
			replayable := (report.Group{Status: status, Reason: reason}).Replayable() ||
				status == purchase.StatusSkipped && reason == purchase.ReasonTestPurchase
			if (a.Replay != "") != replayable || replayable && a.Remedy == "" {
				t.Errorf("%s (%s): advice = %+v, want a replay: %t", status, reason, a, replayable)
			}
		}
	}
}

func TestStats_ExplainsEveryKind(t *testing.T) {
	scope := guide.Stats(string(purchase.ClassAccess))
	if !strings.Contains(scope.Meaning, "measurement scope") ||
		!strings.Contains(scope.Remedy, "TIKTOK_STATS_TOKEN") {
		t.Errorf("access: advice = %+v, want the missing scope", scope)
	}
	for _, kind := range []string{
		string(purchase.ClassRetry), string(purchase.ClassRate), string(purchase.ClassRefused),
		string(purchase.ClassBlocked), message.StatsQueue, "newer",
	} {
		a := guide.Stats(kind)
		if a.Meaning == "" || a.Remedy == "" || a == scope || strings.HasSuffix(a.Meaning, ".") {
			t.Errorf("%s: advice = %+v, want a meaning and a remedy of its own", kind, a)
		}
	}
}

func TestGroup_ExplainsTheCodeOfRefusedEvents(t *testing.T) {
	for name, tc := range map[string]struct {
		status          purchase.Status
		reason          purchase.Reason
		code            *int
		meaning, remedy string
	}{
		"refused": {
			purchase.StatusDead, purchase.ReasonRefused, new(40002),
			"A field of the event is not valid", "Compare the message",
		},
		"refused, no code": {
			purchase.StatusDead, purchase.ReasonRefused, nil, "TikTok refuses the event", "Fix what TikTok",
		},
		"expired": {
			purchase.StatusDead, purchase.ReasonExpired, new(503),
			"Not accepted until RETRY_MAX_AGE: a later send could count twice. Last: TikTok, or a gateway",
			"See why no worker",
		},
		"retrying": {purchase.StatusRetrying, "", new(429), "Too many requests", "Workers slow down"},
		"known":    {purchase.StatusRetrying, "", new(40050), "TikTok already had", "The worker retries"},
	} {
		got := guide.Group(tc.status, tc.reason, tc.code)
		if !strings.HasPrefix(got.Meaning, tc.meaning) || !strings.HasPrefix(got.Remedy, tc.remedy) {
			t.Errorf("%s: advice = %+v, want %q and %q", name, got, tc.meaning, tc.remedy)
		}
	}
}

func TestCode_ExplainsTikTokAndHTTP(t *testing.T) {
	for code, want := range map[int]string{
		0: "accepted", 40050: "already", 40002: "not valid", 40007: "content", 40105: "access", 401: "firewall",
		403: "firewall", 413: "firewall", 404: "access", 429: "Too many", 40100: "Too many",
		503: "no usable answer", 51234: "no usable answer", 12345: "does not list", 20001: "Partly",
	} {
		a := guide.Code(code)
		if !strings.Contains(a.Meaning, want) {
			t.Errorf("%d: meaning = %q, want %q", code, a.Meaning, want)
		}
		if accepted := code == 0 || code == 40050; accepted != (a.Remedy == "") {
			t.Errorf("%d: remedy = %q, want one: %t", code, a.Remedy, !accepted)
		}
	}
}

func TestAnswer_QuotesTikTok(t *testing.T) {
	seen := map[string]bool{}
	for _, class := range []purchase.Class{
		purchase.ClassDelivered, purchase.ClassRetry, purchase.ClassRate, purchase.ClassRefused,
		purchase.ClassAccess, purchase.ClassBlocked,
	} {
		a := guide.Answer(purchase.Answer{Class: class, Code: new(7), Message: "m", RequestID: "r"})
		meaning, quote, _ := strings.Cut(a.Meaning, " (")
		if meaning == "" || seen[meaning] || quote != `code 7, "m", request_id r)` {
			t.Errorf("%s: meaning = %q, want its own with a quotation", class, a.Meaning)
		}
		if (a.Remedy == "") != (class == purchase.ClassDelivered) {
			t.Errorf("%s: remedy = %q", class, a.Remedy)
		}
		seen[meaning] = true
	}
	none := guide.Answer(purchase.Answer{Class: purchase.ClassRetry})
	if !strings.HasSuffix(none.Meaning, "(no answer)") {
		t.Errorf("meaning = %q, want (no answer) at its end", none.Meaning)
	}
}

func TestWorker_ExplainsEveryStateButRunning(t *testing.T) {
	for _, state := range []string{message.WorkerPaused, message.WorkerOpen, message.WorkerOff} {
		if a := guide.Worker(state); a.Meaning == "" || a.Remedy == "" {
			t.Errorf("%s: advice = %+v, want meaning and remedy", state, a)
		}
	}
	if a := guide.Worker(message.WorkerRunning); a != (guide.Advice{}) {
		t.Errorf("running: advice = %+v, want none", a)
	}
}

// Each kind of problem is explained, and named where docs/operations.md lists the messages about them.
func TestProblem_ExplainsEveryKind(t *testing.T) {
	table := between(t, read(t, "../../../docs/operations.md"), "\n## NOTIFY_URL", "\n## ")
	for _, kind := range append(guide.ProblemKinds(), "dead:refused", "dead:expired", "dead:crash") {
		a := guide.Problem(kind)
		if a.Meaning == "" || strings.HasSuffix(a.Meaning, ".") || a.Remedy == "" ||
			!strings.HasSuffix(a.Resolved, ".") {
			t.Errorf("%s: advice = %+v, want meaning, remedy and a sentence for when it is over", kind, a)
		}
		if !strings.Contains(table, "`"+kind+"`") {
			t.Errorf("docs/operations.md does not list %s", kind)
		}
	}
}

// Alerts and their runbook entries have the remedies of pages and notifications.
func TestAlerts_HaveRemedies(t *testing.T) {
	alerts, runbook := read(t, "../../../deploy/prometheus/alerts.yml"), read(t, "../../../docs/operations.md")
	for name, advice := range map[string]guide.Advice{
		"PurchaseRelayWorkerPaused":      guide.Worker(message.WorkerPaused),
		"PurchaseRelayCircuitOpen":       guide.Worker(message.WorkerOpen),
		"PurchaseRelayDeliveryOff":       guide.Worker(message.WorkerOff),
		"PurchaseRelayRateLimited":       guide.Class(purchase.ClassRate),
		"PurchaseRelayRejectedPurchases": guide.Purchase(purchase.StatusRejected, purchase.ReasonInvalidEmail),
		"PurchaseRelayDeadLetters":       guide.Purchase(purchase.StatusDead, purchase.ReasonRefused),
		"PurchaseRelayLostForGood":       guide.Purchase(purchase.StatusDead, purchase.ReasonExpired),
	} {
		for file, entry := range map[string]string{
			"deploy/prometheus/alerts.yml": between(t, alerts, "- alert: "+name+"\n", "- alert: "),
			"docs/operations.md":           between(t, runbook, "\n### "+name+"\n", "\n#"),
		} {
			entry = strings.Join(strings.Fields(strings.ReplaceAll(entry, "`", "")), " ")
			if !strings.Contains(entry, advice.Remedy) || !strings.Contains(entry, advice.Replay) {
				t.Errorf("%s: %s = %q, want %q and %q in it", file, name, entry, advice.Remedy, advice.Replay)
			}
		}
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// between returns the text from start to end.
func between(t *testing.T, text, start, end string) string {
	t.Helper()
	_, after, found := strings.Cut(text, start)
	if !found {
		t.Fatalf("%q is missing", start)
	}
	entry, _, _ := strings.Cut(after, end)
	return entry
}
