package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.yaml.in/yaml/v3"

	"purchase-relay/internal/testkit/natslocal"
	"purchase-relay/internal/testkit/pglocal"
	"purchase-relay/internal/testkit/promlocal"
	"purchase-relay/internal/testkit/stripegen"
	"purchase-relay/internal/testkit/tiktoksim"
)

const (
	alertRules = "../../deploy/prometheus/alerts.yml"
	alertTests = "../../deploy/prometheus/alerts_test.yml"
	operations = "../../docs/operations.md"
)

// rule is one alert of alerts.yml.
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
		t.Fatal("alerts.yml holds no alerts")
	}
	return list
}

var (
	metricName = regexp.MustCompile(`\bpurchase_relay_[a-z_]+`)
	buckets    = regexp.MustCompile(`_(bucket|sum|count)$`)
)

// unknownMetrics returns those that a text names and docs/metrics.md does not.
func unknownMetrics(text string, rows map[string][]string) (list []string) {
	for _, name := range metricName.FindAllString(text, -1) {
		if rows[name] == nil && (rows[buckets.ReplaceAllString(name, "")] == nil || strings.TrimSpace(rows[buckets.ReplaceAllString(name, "")][1]) != "histogram") {
			list = append(list, name)
		}
	}
	return list
}

// Each alert says how bad, what, what to do, and has its entry in the runbook; it looks at metrics that exist, and is unit tested.
func TestAlertsAreWhole(t *testing.T) {
	t.Parallel()
	book, err := os.ReadFile(operations)
	if err != nil {
		t.Fatal(err)
	}
	unit, err := os.ReadFile(alertTests)
	if err != nil {
		t.Fatal(err)
	}
	rows := documented(t)
	seen := map[string]bool{}
	for _, r := range rules(t) {
		seen[r.Alert] = true
		if !slices.Contains([]string{"critical", "warning", "info"}, r.Labels["severity"]) {
			t.Errorf("%s: severity %q", r.Alert, r.Labels["severity"])
		}
		if r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
			t.Errorf("%s lacks its summary or description", r.Alert)
		}
		if want := "docs/operations.md#" + strings.ToLower(r.Alert); r.Annotations["runbook"] != want {
			t.Errorf("%s: runbook %q, want %q", r.Alert, r.Annotations["runbook"], want)
		}
		_, entry, found := strings.Cut(string(book), "\n### "+r.Alert+"\n")
		entry, _, _ = strings.Cut(entry, "\n#")
		if !found || !strings.Contains(entry, "**By itself:**") || !strings.Contains(entry, "**Do:**") {
			t.Errorf("docs/operations.md has no whole entry for %s", r.Alert)
		}
		if unknown := unknownMetrics(r.Expr, rows); len(unknown) > 0 || !metricName.MatchString(r.Expr) && !strings.Contains(r.Expr, "up{") {
			t.Errorf("%s looks at %v, which nobody exports", r.Alert, unknown)
		}
		if !strings.Contains(string(unit), "name: "+r.Alert+"\n") && !strings.Contains(string(unit), "name: "+r.Alert+" ") {
			t.Errorf("%s has no unit test", r.Alert)
		}
	}
	for _, m := range regexp.MustCompile(`(?m)^### (PurchaseRelay\w+)$`).FindAllStringSubmatch(string(book), -1) {
		if !seen[m[1]] {
			t.Errorf("docs/operations.md has an entry for %s, which is no alert", m[1])
		}
	}
}

// tools returns Prometheus' programs, or skips where they are not to be had.
func tools(t *testing.T) promlocal.Tools {
	t.Helper()
	p, err := promlocal.Ensure(t.Context(), os.Stderr)
	if errors.Is(err, promlocal.ErrMissing) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPromtool(t *testing.T) {
	t.Parallel()
	p := tools(t)
	for _, args := range [][]string{{"check", "rules", alertRules}, {"test", "rules", alertTests}, {"check", "config", "../../deploy/prometheus/prometheus.yml"}} {
		if _, err := os.ReadFile(args[2]); err != nil { // seen by the test cache, too
			t.Fatal(err)
		}
		if out, err := exec.Command(p.Promtool, args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// quick are the rules with their patience taken away, so that a test need not wait for hours: the windows are seconds, the
// thresholds of ages and amounts small. The durations as they are, are promtool's to test.
func quick(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(alertRules)
	if err != nil {
		t.Fatal(err)
	}
	s := regexp.MustCompile(`\[\d+[mhd]\]`).ReplaceAllString(string(text), "["+window+"]")
	s = regexp.MustCompile(`(?m)^ +for: .*\n`).ReplaceAllString(s, "")
	for from, to := range map[string]string{"> 86400": "> 5", "> 300": "> 2", "> 1000": "> 20"} {
		if !strings.Contains(s, from) {
			t.Fatalf("no rule has the threshold %q", from)
		}
		s = strings.ReplaceAll(s, from, to)
	}
	return s
}

const window = "6s"

// watched is a stack that Prometheus scrapes.
type watched struct {
	*stack
	prometheus *promlocal.Server
	targets    string // the file that names them
	caused     map[string]bool
	env        []string
}

func (w *watched) startPrometheus(p promlocal.Tools) {
	w.t.Helper()
	dir := w.t.TempDir()
	w.targets = filepath.Join(dir, "targets.json")
	w.watch()
	config := fmt.Sprintf(`
global: {scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 250ms}
rule_files: [rules.yml]
scrape_configs:
  - job_name: all
    file_sd_configs: [{files: [%q], refresh_interval: 500ms}]
`, w.targets)
	for name, text := range map[string]string{"prometheus.yml": config, "rules.yml": quick(w.t)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			w.t.Fatal(err)
		}
	}
	server, err := p.Start(filepath.Join(dir, "prometheus.yml"), freeAddr(w.t), dir)
	if err != nil {
		w.t.Fatal(err)
	}
	w.prometheus = server
	w.t.Cleanup(func() {
		_ = server.Stop()
		if log, err := os.ReadFile(filepath.Join(dir, "prometheus.log")); err == nil && w.t.Failed() {
			w.t.Logf("Prometheus' log:\n%s", log)
		}
	})
}

// watch tells Prometheus where the two processes are now.
func (w *watched) watch() {
	w.t.Helper()
	type group struct {
		Targets []string          `json:"targets"`
		Labels  map[string]string `json:"labels"`
	}
	text, err := json.Marshal([]group{
		{[]string{strings.TrimPrefix(w.admin, "http://")}, map[string]string{"job": "ingest"}},
		{[]string{strings.TrimPrefix(w.worker.admin, "http://")}, map[string]string{"job": "tiktok-worker"}},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(w.targets+".new", text, 0o600); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Rename(w.targets+".new", w.targets); err != nil {
		w.t.Fatal(err)
	}
}

// scraped waits until Prometheus scrapes the two processes that run now: what happened before its first look at a counter is no increase.
func (w *watched) scraped() {
	w.t.Helper()
	w.await("Prometheus to see both", func() bool {
		for _, admin := range []string{w.admin, w.worker.admin} {
			if n, err := w.prometheus.Count(w.t.Context(), fmt.Sprintf("up{instance=%q} == 1", strings.TrimPrefix(admin, "http://"))); err != nil || n != 1 {
				return false
			}
		}
		return true
	})
}

func (w *watched) restartWorker(env ...string) {
	w.t.Helper()
	w.worker.kill()
	w.startWorker(append(slices.Clone(w.env), env...)...)
	w.watch()
	w.scraped()
}

// firing says which alerts fire now.
func (w *watched) firing() map[string]bool {
	w.t.Helper()
	alerts, err := w.prometheus.Alerts(w.t.Context())
	if err != nil {
		return nil // it is starting
	}
	names := map[string]bool{}
	for _, a := range alerts {
		if a.State == "firing" {
			names[a.Labels["alertname"]] = true
		}
	}
	return names
}

// fires waits until each of the alerts has fired since its fault was caused.
func (w *watched) fires(names ...string) {
	w.t.Helper()
	missing := slices.Clone(names)
	defer func() {
		if len(missing) > 0 {
			w.t.Logf("%v did not; %v do", missing, slices.Collect(maps.Keys(w.firing())))
		}
	}()
	w.await(fmt.Sprintf("%v to fire", names), func() bool {
		now := w.firing()
		missing = slices.DeleteFunc(missing, func(name string) bool { return now[name] })
		return len(missing) == 0
	})
	for _, name := range names {
		w.caused[name] = true
	}
}

// clears waits until none of the alerts fires.
func (w *watched) clears(names ...string) {
	w.t.Helper()
	w.await(fmt.Sprintf("%v to clear", names), func() bool {
		now := w.firing()
		return now != nil && !slices.ContainsFunc(names, func(name string) bool { return now[name] })
	})
}

func (w *watched) live() stripegen.Checkout {
	w.t.Helper()
	c := stripegen.NewCheckout().Live()
	if answer, err := w.sender.Deliver(w.t.Context(), c.Event(), 50, 50*time.Millisecond); err != nil || answer.Status != http.StatusOK { // as Stripe does: a connection to a Postgres that was restarted may be dead
		w.t.Fatalf("a webhook was answered %+v", answer)
	}
	return c
}

// Each alert of alerts.yml is made to fire by its own fault, and clears when that is mended: real binaries, a real Postgres, a
// real NATS, the simulator, and a real Prometheus that scrapes and evaluates.
func TestEachAlertFiresAndClears(t *testing.T) {
	t.Parallel() // it waits most of its time
	p := tools(t)
	options := pglocal.Options{Dir: filepath.Join(t.TempDir(), "postgres"), Addr: freeAddr(t)}
	if err := pglocal.Ensure(t.Context(), os.Stderr); err != nil {
		t.Fatal(err)
	}
	startPostgres := func() *pglocal.Server {
		t.Helper()
		server, err := pglocal.Start(t.Context(), options)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = server.Stop()
			_ = os.RemoveAll(server.Dir()) // it may be outside of the test's own folder
		})
		return server
	}
	postgres := startPostgres()
	missed := stripegen.NewAPI()
	who := &receiver{t: t, seen: map[string]int{}, how: "500"}
	w := &watched{
		stack: &stack{
			t: t, database: postgres.URL("postgres"), natsDir: t.TempDir(), natsAddr: freeAddr(t),
			sim: tiktoksim.New(tiktoksim.Config{TestToken: "test-token", TestPixel: "TESTPIXEL"}),
		},
		caused: map[string]bool{},
		env: []string{
			"ADMIN_TOKEN=admin-0123456789abcdef", "SWEEP_INTERVAL=200ms", "SWEEP_GRACE=2s", "TIKTOK_TEST_MODE=send", "TIKTOK_TEST_ACCESS_TOKEN=test-token",
			"TIKTOK_TEST_PIXEL_ID=TESTPIXEL", "NOTIFY_URL=" + listen(t, who), "RETRY_INITIAL=300ms", "RETRY_MAX=1s", "TIKTOK_MAX_RPS=500",
			"STRIPE_API_KEY=rk_test_x", "STRIPE_API_URL=" + listen(t, missed), "BACKFILL_INTERVAL=1s",
		},
	}
	w.startNATS()
	w.simURL = listen(t, w.sim)
	w.startIngest(w.env...)
	w.startWorker(w.env...)
	w.startPrometheus(p)
	w.awaitStatus(w.live().SessionID, "delivered")
	w.scraped()
	w.clears("PurchaseRelayIngestDown", "PurchaseRelayWorkerGone", "PurchaseRelayPostgresAway", "PurchaseRelayQueueNotReady")

	t.Run("strangers and odd purchases", func(t *testing.T) {
		forged := stripegen.NewCheckout().Event()
		for range 10 {
			if _, err := w.sender.Post(t.Context(), forged, stripegen.Sign(forged, "whsec_forged", time.Now())); err != nil {
				t.Fatal(err)
			}
		}
		var guesses sync.WaitGroup
		for range 30 {
			guesses.Go(func() {
				req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.admin+"/api/v1/summary", http.NoBody)
				if err != nil {
					t.Error(err)
					return
				}
				req.Header.Set("Authorization", "Bearer guess")
				if resp, err := (&http.Client{}).Do(req); err == nil {
					_ = resp.Body.Close()
				}
			})
		}
		nobody := stripegen.NewCheckout().Live()
		nobody.Email, nobody.CustomerEmail = nil, nil
		if answer := w.send(nobody); answer.Body != `{"status":"rejected"}` {
			t.Errorf("without an address: %+v", answer)
		}
		if answer, err := w.sender.Send(t.Context(), stripegen.NewCheckout().Thin()); err != nil || answer.Status != http.StatusServiceUnavailable { // Stripe's API does not know it
			t.Errorf("a thin event: %+v, %v", answer, err)
		}
		conn, err := nats.Connect("nats://" + w.natsAddr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Request("purchases.live.junk", []byte("junk"), 10*time.Second); err != nil {
			t.Fatal(err)
		}
		w.sim.Inject(tiktoksim.Fault{Code: 40002, Message: "no", Count: 1})
		w.awaitStatus(w.live().SessionID, "dead")
		late := stripegen.NewCheckout().Live()
		late.Created = time.Now().Add(-2 * time.Hour).UTC().Truncate(time.Second)
		w.send(late)
		w.fires("PurchaseRelayInvalidSignatures", "PurchaseRelayThinEvents", "PurchaseRelayWrongAdminTokens", "PurchaseRelayRejectedPurchases", "PurchaseRelayJunk",
			"PurchaseRelayDeadLetters", "PurchaseRelayAcceptanceSlow")
		guesses.Wait()
		w.clears("PurchaseRelayInvalidSignatures", "PurchaseRelayThinEvents", "PurchaseRelayWrongAdminTokens", "PurchaseRelayRejectedPurchases", "PurchaseRelayJunk",
			"PurchaseRelayDeadLetters", "PurchaseRelayAcceptanceSlow")
		w.fires("PurchaseRelayNotifyFailing") // of the death
		who.answer("taken")
		w.clears("PurchaseRelayNotifyFailing")
		lost := stripegen.NewCheckout()
		lost.Created = time.Now().Add(-time.Minute).UTC().Truncate(time.Second)
		if err := missed.Add(lost.Event()); err != nil {
			t.Fatal(err)
		}
		w.fires("PurchaseRelayWebhooksMissed")
		w.clears("PurchaseRelayWebhooksMissed")
	})
	t.Run("TikTok", func(t *testing.T) {
		w.fires("PurchaseRelayNoWebhooks") // nothing was sold for so long
		w.sim.Inject(tiktoksim.Fault{Code: 40105, Message: "Access token is incorrect", OnlyPixel: "TESTPIXEL"})
		w.send(stripegen.NewCheckout())
		w.clears("PurchaseRelayNoWebhooks")
		w.fires("PurchaseRelayTestPurchasesPaused")
		w.sim.Clear()
		w.clears("PurchaseRelayTestPurchasesPaused")

		w.sim.SetToken("another")
		c := w.live()
		w.fires("PurchaseRelayWorkerPaused", "PurchaseRelayNothingAccepted")
		w.sim.SetToken("local-token")
		w.awaitStatus(c.SessionID, "delivered")
		w.clears("PurchaseRelayWorkerPaused", "PurchaseRelayNothingAccepted")

		w.sim.Inject(tiktoksim.Fault{Status: http.StatusTooManyRequests, RetryAfter: "3", Count: 1})
		w.live()
		w.fires("PurchaseRelayRateLimited")
		w.clears("PurchaseRelayRateLimited")

		w.sim.Inject(tiktoksim.Fault{Status: http.StatusServiceUnavailable})
		w.live()
		w.fires("PurchaseRelayCircuitOpen")
		w.sim.Clear()
		w.clears("PurchaseRelayCircuitOpen")
	})
	t.Run("workers", func(t *testing.T) {
		w.worker.kill()
		expired := w.live()
		w.awaitStatus(expired.SessionID, "published")
		w.exec(`UPDATE purchases SET first_published_at = now() - interval '3 days' WHERE checkout_session_id = $1`, expired.SessionID)
		w.seed(500, func(int) bool { return false })
		w.fires("PurchaseRelayWorkerGone", "PurchaseRelayBacklogGrowing", "PurchaseRelayLostForGood")
		w.restartWorker()
		w.clears("PurchaseRelayWorkerGone", "PurchaseRelayBacklogGrowing", "PurchaseRelayLostForGood")

		w.restartWorker("TIKTOK_ACCESS_TOKEN=")
		w.awaitStatus(w.live().SessionID, "skipped")
		w.fires("PurchaseRelayDeliveryOff")
		w.restartWorker()
		w.clears("PurchaseRelayDeliveryOff")
	})
	t.Run("Postgres", func(t *testing.T) {
		unlocked := make(chan struct{})
		go func() {
			w.exec(`DO $$ BEGIN LOCK TABLE purchases IN ACCESS EXCLUSIVE MODE; PERFORM pg_sleep(4); END $$`)
			close(unlocked)
		}()
		w.await("the lock", func() bool {
			return query[int](w.stack, `SELECT count(*) FROM pg_locks WHERE relation = 'purchases'::regclass AND mode = 'AccessExclusiveLock' AND granted`) > 0
		})
		w.live()
		<-unlocked
		w.fires("PurchaseRelayWebhooksSlow")
		w.clears("PurchaseRelayWebhooksSlow")

		if err := postgres.Stop(); err != nil {
			t.Fatal(err)
		}
		w.fires("PurchaseRelayPostgresAway")
		c := stripegen.NewCheckout().Live()
		if answer := w.send(c); answer.Status != http.StatusServiceUnavailable {
			t.Errorf("Postgres away: %+v", answer)
		}
		w.fires("PurchaseRelayWebhooksUnavailable")
		postgres = startPostgres()
		w.clears("PurchaseRelayPostgresAway", "PurchaseRelayWebhooksUnavailable")
		if _, err := w.sender.Deliver(t.Context(), c.Event(), 50, 50*time.Millisecond); err != nil {
			t.Fatal(err)
		}
		w.awaitStatus(c.SessionID, "delivered")
	})
	t.Run("the queue", func(t *testing.T) {
		if err := w.nats.Stop(); err != nil {
			t.Fatal(err)
		}
		c := w.live()
		w.fires("PurchaseRelayNATSAway", "PurchaseRelayOutboxNotDraining")
		w.startNATS()
		w.awaitStatus(c.SessionID, "delivered")
		w.clears("PurchaseRelayNATSAway", "PurchaseRelayOutboxNotDraining")

		// A stream with room for one purchase or two, and nobody who takes them out.
		w.provision("2KiB")
		w.worker.kill()
		w.live()
		w.live()
		w.live()
		w.fires("PurchaseRelayPublishFailing")
		w.restartWorker()
		w.clears("PurchaseRelayPublishFailing")
		w.provision("1GiB")

		// The store is lost with a purchase in it, and the new server has no room for its streams.
		w.worker.kill()
		lost := w.live()
		w.awaitStatus(lost.SessionID, "published")
		if err := w.nats.Stop(); err != nil {
			t.Fatal(err)
		}
		w.natsDir = t.TempDir()
		w.startServer(natslocal.Options{Addr: w.natsAddr, MaxFileStore: 1 << 20})
		w.fires("PurchaseRelayQueueNotReady")
		if err := w.nats.Stop(); err != nil {
			t.Fatal(err)
		}
		w.startNATS()
		w.fires("PurchaseRelayQueueLostPurchases")
		w.restartWorker()
		w.awaitStatus(lost.SessionID, "delivered")
		w.clears("PurchaseRelayQueueNotReady", "PurchaseRelayQueueLostPurchases")

		// A server that denies a right.
		if err := w.nats.Stop(); err != nil {
			t.Fatal(err)
		}
		w.guardNATS()
		w.fires("PurchaseRelayPermissionViolations")
		w.clears("PurchaseRelayPermissionViolations")
	})
	t.Run("ingest", func(*testing.T) {
		w.ingest.kill()
		w.fires("PurchaseRelayIngestDown")
		w.startIngest(w.env...)
		w.watch()
		w.clears("PurchaseRelayIngestDown")
	})
	t.Run("Grafana's queries", func(t *testing.T) {
		for _, panel := range grafanaPanels(t) {
			for _, q := range panel.Targets {
				w.await("something to show in "+panel.Title, func() bool {
					n, err := w.prometheus.Count(t.Context(), strings.ReplaceAll(strings.TrimSuffix(q.Expr, " > 0"), "$__rate_interval", "10m")) // what is hidden while it is 0
					if err != nil {
						t.Fatalf("%s: %v", q.Expr, err)
					}
					return n > 0
				})
			}
		}
	})
	for _, r := range rules(t) {
		if !w.caused[r.Alert] {
			t.Errorf("nothing here makes %s fire", r.Alert)
		}
	}
}

// guardNATS starts the server again, with a user that must not listen to the workers.
func (w *watched) guardNATS() {
	w.t.Helper()
	file := filepath.Join(w.t.TempDir(), "nats.conf")
	conf := `
accounts { APP { jetstream: enabled, users: [
  {user: ingest, password: ` + ingestPassword + `, permissions: {subscribe: {deny: ["workers.>"]}}}
  {user: worker, password: ` + workerPassword + `}
] } }
`
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		w.t.Fatal(err)
	}
	w.startServer(natslocal.Options{Addr: w.natsAddr, ConfigFile: file})
}

// startServer starts NATS in another way than usual.
func (w *watched) startServer(o natslocal.Options) {
	w.t.Helper()
	server, err := natslocal.Start(o)
	if err != nil {
		w.t.Fatal(err)
	}
	w.nats = server
	w.t.Cleanup(func() { _ = server.Stop() })
}
