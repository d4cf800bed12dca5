package e2e

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"purchase-relay/internal/testkit/stripegen"
)

// promised are the names and labels that dashboards and alerts elsewhere may rely on.
var promised = map[string]string{
	"purchase_relay_webhooks_total": "result type", "purchase_relay_webhook_duration_seconds": "result",
	"purchase_relay_purchases":      "status",
	"purchase_relay_outbox_pending": "", "purchase_relay_outbox_oldest_age_seconds": "", "purchase_relay_publishes_total": "result",
	"purchase_relay_consumer_pending": "", "purchase_relay_consumer_ack_pending": "", "purchase_relay_attempts_total": "class code",
	"purchase_relay_attempt_duration_seconds": "", "purchase_relay_batch_size": "", "purchase_relay_acceptance_delay_seconds": "",
	"purchase_relay_retries_total": "reason", "purchase_relay_dead_letters_total": "reason", "purchase_relay_circuit_state": "",
	"purchase_relay_paused": "reason", "purchase_relay_swept_total": "result", "purchase_relay_permission_violations_total": "",
	"purchase_relay_build_info": "goversion revision version",
}

// family is one metric as a process exports it.
type family struct {
	kind   string
	labels map[string]map[string]bool // the values seen, by label
}

// scrape reads a process' own metrics.
func scrape(t *testing.T, url string) map[string]family {
	t.Helper()
	_, text := get(url + "/metrics")
	parser := expfmt.NewTextParser(model.LegacyValidation)
	all, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	own := map[string]family{}
	for name, f := range all {
		if !strings.HasPrefix(name, "purchase_relay_") {
			continue
		}
		if f.GetHelp() == "" {
			t.Errorf("%s has no help text", name)
		}
		labels := map[string]map[string]bool{}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if labels[l.GetName()] == nil {
					labels[l.GetName()] = map[string]bool{}
				}
				labels[l.GetName()][l.GetValue()] = true
			}
		}
		own[name] = family{kind: strings.ToLower(f.GetType().String()), labels: labels}
	}
	return own
}

// exported is what both processes export after a purchase went through, and after what makes the lazier series appear.
func exported(t *testing.T) map[string]family {
	t.Helper()
	s := newStack(t)
	c := stripegen.NewCheckout().Live()
	s.send(c)
	s.awaitStatus(c.SessionID, "delivered")
	if status := status(s.admin + "/metrics"); status != 200 {
		t.Fatalf("metrics: %d", status)
	}
	var all map[string]family
	s.await("the queue's figures", func() bool {
		all = scrape(t, s.admin)
		return len(all["purchase_relay_consumer_pending"].kind) > 0
	})
	maps.Copy(all, scrape(t, s.worker.admin))
	return all
}

// documented reads the table of docs/metrics.md.
func documented(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string][]string{}
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if name := strings.Trim(cells[0], " `"); len(cells) == 5 && strings.HasPrefix(strings.TrimSpace(cells[0]), "`") {
			rows["purchase_relay_"+name] = cells
		}
	}
	return rows
}

var (
	labelName = regexp.MustCompile("`([a-z]+)`(?::|;|$| *$)")
	number    = regexp.MustCompile(`^\d+$`)
)

// The names, types and labels of docs/metrics.md are those that the binaries export, no more and no less.
func TestMetricsAreAsDocumented(t *testing.T) {
	t.Parallel()
	all, rows := exported(t), documented(t)
	for name, want := range promised {
		if got := strings.Join(slices.Sorted(maps.Keys(all[name].labels)), " "); all[name].kind == "" || got != want {
			// A vector without a series yet exports nothing: those are named in its row alone.
			t.Errorf("%s has the labels %q, want %q", name, got, want)
		}
	}
	for name, f := range all {
		row, ok := rows[name]
		if !ok {
			t.Errorf("%s is not in docs/metrics.md", name)
			continue
		}
		if kind := strings.TrimSpace(row[1]); kind != f.kind {
			t.Errorf("%s is a %s, docs/metrics.md says %s", name, f.kind, kind)
		}
		var labels []string
		for part := range strings.SplitSeq(row[2], ";") {
			if m := labelName.FindStringSubmatch(strings.TrimSpace(part)); m != nil {
				labels = append(labels, m[1])
			}
		}
		slices.Sort(labels)
		if got := slices.Sorted(maps.Keys(f.labels)); !slices.Equal(got, labels) {
			t.Errorf("%s has the labels %v, docs/metrics.md says %v", name, got, labels)
		}
		for label, values := range f.labels {
			for value := range values {
				if name != "purchase_relay_build_info" && !number.MatchString(value) && !strings.Contains(row[2], "`"+value+"`") && !strings.Contains(row[2], "as above") {
					t.Errorf("%s: docs/metrics.md does not name %s=%q", name, label, value)
				}
			}
		}
	}
	for name := range rows {
		if _, ok := all[name]; !ok {
			t.Errorf("docs/metrics.md names %s, which nobody exports", name)
		}
	}
}
