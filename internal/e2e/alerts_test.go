package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"purchase-relay/internal/testkit/aptget"
	"purchase-relay/internal/testkit/promlocal"
)

const (
	alertRules = "../../deploy/prometheus/alerts.yml"
	alertTests = "../../deploy/prometheus/alerts_test.yml"
	slowTests  = "../../deploy/prometheus/alerts_slow_test.yml"
	operations = "../../docs/operations.md"
)

// rule is an alert of alerts.yml.
type rule struct {
	Alert       string            `yaml:"alert"`
	Expr        string            `yaml:"expr"`
	For         string            `yaml:"for"`
	Labels      map[string]string `yaml:"labels"`
	Annotations map[string]string `yaml:"annotations"`
}

func rules(t *testing.T) (list []rule) {
	t.Helper()
	text, err := os.ReadFile(alertRules)
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct {
			Rules []rule `yaml:"rules"`
		} `yaml:"groups"`
	}
	if err := yaml.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	for _, g := range file.Groups {
		list = append(list, g.Rules...)
	}
	if len(list) == 0 {
		t.Fatal("alerts.yml has no alerts")
	}
	return list
}

var (
	metricName = regexp.MustCompile(`\bpurchase_relay_[a-z_]+`)
	buckets    = regexp.MustCompile(`_(bucket|sum|count)$`)
)

// unknownMetrics returns the metrics in text that docs/metrics.md lacks.
func unknownMetrics(text string, rows map[string][]string) (list []string) {
	for _, name := range metricName.FindAllString(text, -1) {
		histogram := rows[buckets.ReplaceAllString(name, "")]
		if rows[name] == nil && (histogram == nil || strings.TrimSpace(histogram[1]) != "histogram") {
			list = append(list, name)
		}
	}
	return list
}

// Each alert has a severity, texts, an entry in the runbook, known metrics and a unit test.
func TestAlerts_AreDocumentedAndTested(t *testing.T) {
	t.Parallel()
	runbook, err := os.ReadFile(operations)
	if err != nil {
		t.Fatal(err)
	}
	unit, err1 := os.ReadFile(alertTests)
	slow, err2 := os.ReadFile(slowTests)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	unit = append(unit, slow...)
	rows := documented(t)
	seen := map[string]bool{}
	for _, r := range rules(t) {
		seen[r.Alert] = true
		if !slices.Contains([]string{"critical", "warning", "info"}, r.Labels["severity"]) {
			t.Errorf("%s: severity = %q, want critical, warning or info", r.Alert, r.Labels["severity"])
		}
		if r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
			t.Errorf("%s has no summary or description", r.Alert)
		}
		if want := "docs/operations.md#" + strings.ToLower(r.Alert); r.Annotations["runbook"] != want {
			t.Errorf("%s: runbook = %q, want %q", r.Alert, r.Annotations["runbook"], want)
		}
		_, entry, found := strings.Cut(string(runbook), "\n### "+r.Alert+"\n")
		entry, _, _ = strings.Cut(entry, "\n#")
		for _, mark := range []string{"**What:**", "**Why:**", "**Do:**"} {
			if !found || !strings.Contains(entry, mark) {
				t.Errorf("docs/operations.md: the entry of %s has no %s", r.Alert, mark)
			}
		}
		if unknown := unknownMetrics(r.Expr, rows); len(unknown) > 0 {
			t.Errorf("%s uses metrics that docs/metrics.md lacks: %v", r.Alert, unknown)
		}
		if !metricName.MatchString(r.Expr) && !strings.Contains(r.Expr, "up{") {
			t.Errorf("%s uses no metric of the product: %s", r.Alert, r.Expr)
		}
		if !regexp.MustCompile("name: " + r.Alert + `[\n ]`).Match(unit) {
			t.Errorf("%s has no unit test", r.Alert)
		}
	}
	for _, heading := range regexp.MustCompile(`(?m)^### PurchaseRelay\w+$`).FindAllString(string(runbook), -1) {
		if name := strings.TrimPrefix(heading, "### "); !seen[name] {
			t.Errorf("docs/operations.md describes %s, which is no alert", name)
		}
	}
}

// tools returns the folder of Prometheus' programs, or skips the test where they cannot be installed.
func tools(t *testing.T) (bin string) {
	t.Helper()
	bin, err := promlocal.Ensure(t.Context(), os.Stderr)
	if errors.Is(err, aptget.ErrMissing) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return bin
}

func TestAlerts_PassPromtool(t *testing.T) {
	t.Parallel()
	promtool := filepath.Join(tools(t), "promtool")
	for _, args := range [][]string{
		{"check", "rules", alertRules},
		{"test", "rules", alertTests, slowTests},
		{"check", "config", "../../deploy/prometheus/prometheus.yml"},
	} {
		for _, file := range args[2:] {
			if _, err := os.ReadFile(file); err != nil { // for the test cache
				t.Fatal(err)
			}
		}
		if out, err := exec.Command(promtool, args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// A real Prometheus scrapes the real binaries with the shipped rules: every rule evaluates without an error,
// every query of Grafana's dashboard returns, and PurchaseRelayWorkerPaused fires while TikTok rejects the
// token and clears afterwards. promtool tests the other alerts' expressions on synthetic series.
func TestAlerts_FireAndClearInPrometheus(t *testing.T) {
	t.Parallel()
	bin := tools(t)
	s := newStack(t)
	prometheus := s.startPrometheus(bin)
	s.sell(1)
	query := func(expr string) string {
		t.Helper()
		code, body := httpGet(prometheus + "/query?query=" + url.QueryEscape(expr))
		if code != http.StatusOK {
			t.Errorf("query %s: HTTP %d: %s", expr, code, body)
		}
		return body
	}
	firing := func() bool {
		const alert = `ALERTS{alertname="PurchaseRelayWorkerPaused", alertstate="firing"}`
		return strings.Contains(query(alert), "PurchaseRelayWorkerPaused")
	}
	s.sim.SetToken("another")
	id := s.sell(1)[0]
	s.await("the alert to fire", firing)
	s.sim.SetToken("local-token")
	s.awaitStatus(id, "delivered")
	s.await("the alert to clear", func() bool { return !firing() })

	code, rules := httpGet(prometheus + "/rules")
	healthy := strings.Contains(rules, `"health":"ok"`) && !strings.Contains(rules, `"health":"err"`)
	if code != http.StatusOK || !healthy {
		t.Errorf("rules = HTTP %d, want none with an error: %s", code, rules)
	}
	for _, panel := range grafanaPanels(t) {
		for _, q := range panel.Targets {
			query(strings.ReplaceAll(q.Expr, "$__rate_interval", "10m"))
		}
	}
}

// startPrometheus scrapes both binaries twice per second and evaluates the shipped rules without their "for"
// durations, so that an alert fires at its first evaluation. promtool tests the durations. It returns the
// address of Prometheus' API.
func (s *stack) startPrometheus(bin string) (api string) {
	s.t.Helper()
	rules, err := os.ReadFile(alertRules)
	if err != nil {
		s.t.Fatal(err)
	}
	rules = regexp.MustCompile(`(?m)^ +for: .*\n`).ReplaceAll(rules, nil)
	config := fmt.Appendf(nil, `
global: {scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 250ms}
rule_files: [rules.yml]
scrape_configs:
  - {job_name: ingest, static_configs: [{targets: [%q]}]}
  - {job_name: tiktok-worker, static_configs: [{targets: [%q]}]}
`, strings.TrimPrefix(s.admin, "http://"), strings.TrimPrefix(s.worker.admin, "http://"))
	dir := s.t.TempDir()
	for name, text := range map[string][]byte{"prometheus.yml": config, "rules.yml": rules} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
	addr := freeAddr(s.t)
	server, err := promlocal.Start(bin, filepath.Join(dir, "prometheus.yml"), addr, dir)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = server.Stop(20 * time.Second)
		if log, err := os.ReadFile(filepath.Join(dir, "prometheus.log")); err == nil && s.t.Failed() {
			s.t.Logf("Prometheus' log:\n%s", log)
		}
	})
	ready := "http://" + addr + "/-/ready"
	s.await("Prometheus to be ready", func() bool { return statusCode(ready) == http.StatusOK })
	return "http://" + addr + "/api/v1"
}
