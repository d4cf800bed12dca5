package e2e

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"purchase-relay/internal/testkit/wait"
)

// promised are the labels, by name, that others' dashboards and alerts may use.
var promised = map[string]string{
	"webhooks_total": "result type", "webhook_duration_seconds": "result", "purchases": "status",
	"outbox_pending": "", "outbox_oldest_age_seconds": "", "publishes_total": "result",
	"consumer_pending": "", "consumer_ack_pending": "", "attempts_total": "class code",
	"attempt_duration_seconds": "", "batch_size": "", "acceptance_delay_seconds": "", "retries_total": "reason",
	"dead_letters_total": "reason", "circuit_state": "", "paused": "reason", "swept_total": "result",
	"permission_violations_total": "", "build_info": "goversion revision version",
}

// family is a metric of a process.
type family struct {
	kind   string
	labels map[string]map[string]bool // values by label
}

// scrape returns a process' metrics without those of the libraries.
func scrape(t *testing.T, url string) map[string]family {
	t.Helper()
	_, text := httpGet(url + "/metrics")
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

// exported returns the metrics of both processes after a delivery. A scrape omits what Postgres or NATS does
// not return within 2 s, so it is repeated until it has every metric that is wanted.
func exported(t *testing.T, wanted map[string][]string) (all map[string]family) {
	t.Helper()
	s := newStack(t)
	s.checkDelivered(s.sell(1)...)
	wait.Until(t.Context(), timeout, 100*time.Millisecond, func() bool {
		all = scrape(t, s.admin)
		maps.Copy(all, scrape(t, s.worker.admin))
		for name := range wanted {
			if all[name].kind == "" {
				return false
			}
		}
		return true
	})
	return all
}

// documented returns the cells of docs/metrics.md by metric.
func documented(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string][]string{}
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		name := strings.TrimSpace(cells[0])
		if len(cells) == 5 && strings.HasPrefix(name, "`") {
			rows["purchase_relay_"+strings.Trim(name, "`")] = cells
		}
	}
	return rows
}

var (
	labelName = regexp.MustCompile("`([a-z]+)`(?::|;|$| *$)")
	number    = regexp.MustCompile(`^\d+$`)
)

// The binaries export exactly the names, types and labels of docs/metrics.md.
func TestMetrics_MatchDocumentation(t *testing.T) {
	t.Parallel()
	rows := documented(t)
	all := exported(t, rows)
	for name, want := range promised {
		f := all["purchase_relay_"+name]
		if got := strings.Join(slices.Sorted(maps.Keys(f.labels)), " "); f.kind == "" || got != want {
			t.Errorf("%s: labels = %q, want %q", name, got, want)
		}
	}
	for name, f := range all {
		row, ok := rows[name]
		if !ok {
			t.Errorf("docs/metrics.md lacks %s", name)
			continue
		}
		if kind := strings.TrimSpace(row[1]); kind != f.kind {
			t.Errorf("%s: type = %s, docs/metrics.md has %s", name, f.kind, kind)
		}
		var labels []string
		for part := range strings.SplitSeq(row[2], ";") {
			if m := labelName.FindStringSubmatch(strings.TrimSpace(part)); m != nil {
				labels = append(labels, m[1])
			}
		}
		slices.Sort(labels)
		if got := slices.Sorted(maps.Keys(f.labels)); !slices.Equal(got, labels) {
			t.Errorf("%s: labels = %v, docs/metrics.md has %v", name, got, labels)
		}
		if name == "purchase_relay_build_info" || strings.Contains(row[2], "as above") {
			continue
		}
		for label, values := range f.labels {
			for value := range values {
				if !number.MatchString(value) && !strings.Contains(row[2], "`"+value+"`") {
					t.Errorf("docs/metrics.md lacks %s=%q of %s", label, value, name)
				}
			}
		}
	}
	for name := range rows {
		if _, ok := all[name]; !ok {
			t.Errorf("docs/metrics.md has %s, which is not exported", name)
		}
	}
}
