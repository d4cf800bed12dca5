package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"purchase-relay/internal/testkit/chromium"
	"purchase-relay/internal/testkit/tiktoksim"
)

type problem struct {
	What, Remedy string
	Since        *time.Time
	Purchases    *int
}

// problems returns the API's list.
func (s *stack) problems() []problem {
	s.t.Helper()
	code, body := httpGet(s.admin + "/api/v1/problems")
	var list struct{ Problems []problem }
	if err := json.Unmarshal([]byte(body), &list); err != nil || code != http.StatusOK || list.Problems == nil {
		s.t.Fatalf("GET /api/v1/problems = %d %s, %v", code, body, err)
	}
	return list.Problems
}

// awaitProblem waits until the API lists a problem that begins with what and counts so many purchases; nil:
// an unknown number. A purchase that was sold just now counts as waiting once the relay has published it.
func (s *stack) awaitProblem(what string, purchases *int) (found problem) {
	s.t.Helper()
	s.await("the problem "+what, func() bool {
		for _, p := range s.problems() {
			if strings.HasPrefix(p.What, what) && reflect.DeepEqual(p.Purchases, purchases) {
				found = p
				return true
			}
		}
		return false
	})
	return found
}

// The API, every page and the command have one list, with real times and numbers.
func TestProblems_OneList(t *testing.T) {
	t.Parallel()
	began := time.Now()
	s := newStack(t)
	s.await("no problem", func() bool { return len(s.problems()) == 0 })
	expect := func(p problem) {
		t.Helper()
		if p.Since == nil || p.Since.Before(began) || p.Since.After(time.Now()) || p.Remedy == "" {
			t.Errorf("problem = %+v, want a time since the test's start and a remedy", p)
		}
		for _, page := range []string{"/", "/purchases", "/attention", "/reconciliation"} {
			s.await(fmt.Sprintf("%s to show the problem %q", page, p.What), func() bool {
				_, body := httpGet(s.admin + page)
				return strings.Contains(body, p.What[:20])
			})
		}
		// The command listens to the workers for six seconds: a delayed report comes too late.
		env := []string{"DATABASE_URL=" + s.runtimeURL(), "NATS_URL=" + natsURL("ingest", s.natsAddr)}
		awaitCommand(t, 3, "ingest", env, []string{"show", "--problems"}, p.What[:20])
	}
	s.sim.Inject(tiktoksim.Fault{Code: 40002, Message: "no"})
	s.awaitStatus(s.sell(1)[0], "dead")
	expect(s.awaitProblem("Purchases are dead (refused, code 40002)", new(1)))
	s.sim.Clear()

	s.sim.SetToken("another")
	s.sell(2)
	expect(s.awaitProblem("Worker ", new(2)))
	s.worker.Kill()
	expect(s.awaitProblem("No worker reports", new(2)))

	s.stopNATS()
	down := s.awaitProblem("NATS is down", new(2))
	for _, p := range s.problems() {
		if strings.HasPrefix(p.What, "No worker") || strings.HasPrefix(p.What, "Worker") {
			t.Errorf("problem without NATS = %q, want none of workers, which are unknown", p.What)
		}
	}
	expect(down)
}

// A page that cannot be refreshed does not show old figures as fresh: neither when ingest answers 503, nor
// when it is gone.
func TestDashboard_ReportsFailedRefresh(t *testing.T) {
	t.Parallel()
	s, restart := newStackWithPostgres(t)
	p := chromium.NewTab(t)
	id := s.sell(1)[0]
	s.awaitStatus(id, "delivered")
	loaded := time.Now()
	p.Open(s.admin + "/")
	p.AwaitText(".lights", "1 running")
	visible := func() bool {
		return chromium.Evaluate[bool](p, `document.getElementById("stale").offsetHeight > 0`)
	}
	const colour = `getComputedStyle(document.querySelector(".light .dot")).backgroundColor`
	// On a busy machine a refresh may fail, or show a slow Postgres as down.
	var good string
	s.await("a fresh page with Postgres up", func() bool {
		good = chromium.Evaluate[string](p, `document.getElementById("stale").hidden &&
			document.querySelector(".light").matches(".good") ? `+colour+` : ""`)
		return good != ""
	})
	expectStale := func(when string, after time.Time) {
		t.Helper()
		s.await("the page to report "+when, visible)
		if text := p.Text("#stale"); !strings.Contains(text, "could not be refreshed since") {
			t.Errorf("%s: bar = %q", when, text)
		}
		first := chromium.Evaluate[string](p, `document.querySelector("main").firstElementChild.id`)
		if first != "stale" {
			t.Errorf("%s: first element of the page = %q, want the bar", when, first)
		}
		shown := chromium.Evaluate[string](p, `document.getElementById("stale-since").dateTime`)
		since, err := time.Parse(time.RFC3339, shown)
		if err != nil || since.Before(after) || since.After(time.Now()) {
			t.Errorf("%s: since = %s, %v, want the last refresh, after %s", when, since, err, after)
		}
		if grey := chromium.Evaluate[string](p, colour); grey == good {
			t.Errorf("%s: lights = %s, want grey", when, grey)
		}
		// It stays while refreshes fail.
		calls := chromium.Evaluate[int](p, `performance.getEntriesByType("resource").length`)
		s.await("two more refreshes", func() bool {
			return chromium.Evaluate[int](p, `performance.getEntriesByType("resource").length`) >= calls+2
		})
		if !visible() {
			t.Errorf("%s: the bar is gone without a refresh", when)
		}
	}
	expectFresh := func(when string) {
		t.Helper()
		s.await("the page to be fresh "+when, func() bool {
			return !visible() && chromium.Evaluate[string](p, colour) == good
		})
	}
	stopped := time.Now()
	if err := s.postgres.Stop(); err != nil {
		t.Fatal(err)
	}
	expectStale("503", loaded)
	down := s.awaitProblem("Postgres does not respond", nil)
	if down.Since == nil || down.Since.Before(stopped.Add(-time.Minute)) {
		t.Errorf("problem = %+v, want the time of the stop", down)
	}
	if code, body := httpGet(s.admin + "/"); code != http.StatusServiceUnavailable ||
		!strings.Contains(body, "Postgres does not respond") {
		t.Errorf("GET / without Postgres = %d, want 503 with the problem", code)
	}
	restart()
	expectFresh("after Postgres is back")

	addr := strings.TrimPrefix(s.admin, "http://")
	s.ingest.Kill()
	expectStale("a dead ingest", loaded)
	s.launchIngest("ADMIN_ADDR=" + addr) // the page's address
	expectFresh("after ingest is back")
	p.CheckConsole("Failed to ", "htmx:error: timeout") // load, and fetch; a slow refresh
}
