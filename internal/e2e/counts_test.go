package e2e

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"purchase-relay/internal/testkit/tiktoksim"
)

// One of two workers asks TikTok for its counts. Refusals, a broken answer, its death and a wiped queue delay
// the counts, and no purchase. Afterwards the figures are right.
func TestCounts_NeverTouchDeliveries(t *testing.T) {
	t.Parallel()
	asking := []string{"TIKTOK_ADVERTISER_ID=" + tiktoksim.AdvertiserID, "TIKTOK_STATS_INTERVAL=1s"}
	s := newStack(t, asking...)
	first := s.worker
	s.startWorker(asking...)
	second := s.worker
	s.sim.SetCounting(tiktoksim.Counting{Browser: 2, Attributed: 0.5})
	sold := 0
	sell := func(when string) {
		t.Helper()
		sold += 5
		s.checkDelivered(s.sell(5)...)
		if n := s.count("delivered"); n != sold {
			t.Errorf("%s: %d purchases delivered, want %d", when, n, sold)
		}
	}
	counted := func(when string) {
		t.Helper()
		s.await("the counts "+when, func() bool {
			return s.rows(`tiktok_counts WHERE event = 'SHOPPING' AND day = (now() AT TIME ZONE 'UTC')::date
				AND server = $1 AND browser = $2 AND total = $3`, sold, 2*sold, 3*sold) == 1
		})
	}
	problem := func() string {
		var answer struct{ Problem struct{ Kind string } }
		_, body := httpGet(s.admin + "/api/v1/counts")
		_ = json.Unmarshal([]byte(body), &answer) // another kind is awaited then
		return answer.Problem.Kind
	}
	sell("at the start")
	counted("at the start")
	s.await("a week", func() bool { return s.rows("tiktok_counts WHERE pixel_id = 'LOCALPIXEL'") >= 8 })

	const asked = `purchase_relay_stats_requests_total{class="delivered"}`
	holder, other := first, second
	if s.metric(second.admin, asked) > 0 {
		holder, other = second, first
	}
	// After a slow request for the lease, another worker may take it.
	const failed = "TikTok's counts not read; deliveries continue"
	if n := s.metric(other.admin, asked); n != 0 && first.logged(failed)+second.logged(failed) == 0 {
		t.Errorf("the other worker asked %v times, want one of them to ask", n)
	}
	for _, fault := range []struct {
		kind    string
		fault   tiktoksim.Fault
		remedy  string
		noScope bool
	}{
		{kind: "retry", fault: tiktoksim.Fault{HTML: true, Status: 200}, remedy: "TIKTOK_STATS_URL"},
		{kind: "rate", fault: tiktoksim.Fault{Status: 429, RetryAfter: "1"}, remedy: "TIKTOK_STATS_INTERVAL"},
		{kind: "access", noScope: true, remedy: "measurement scope"},
	} {
		if fault.fault.Stats = true; fault.noScope {
			s.sim.SetCounting(tiktoksim.Counting{NoScope: true, Browser: 2})
		} else {
			s.sim.Inject(fault.fault)
		}
		s.await("the problem "+fault.kind, func() bool { return problem() == fault.kind })
		for _, page := range []string{"/", "/reconciliation"} {
			s.await(page+" to show the remedy "+fault.remedy, func() bool {
				_, body := httpGet(s.admin + page)
				return strings.Contains(body, fault.remedy)
			})
		}
		sell("during " + fault.kind)
		for _, w := range []*program{first, second} {
			s.awaitReadiness(w.admin, http.StatusOK)
		}
		s.await("stats_failing during "+fault.kind, func() bool {
			failing := func(w *program) bool { return s.metric(w.admin, "purchase_relay_stats_failing") == 1 }
			return failing(first) || failing(second)
		})
		s.sim.Clear()
		s.sim.SetCounting(tiktoksim.Counting{Browser: 2, Attributed: 0.5})
		counted("after " + fault.kind)
		s.await("no problem", func() bool { return problem() == "" })
	}

	holder.Kill()
	s.worker = other
	sell("after the asking worker's death")
	counted("after the asking worker's death")
	s.wipeNATS()
	sell("after the queue was wiped")
	counted("after the queue was wiped")
	if n := s.metric(other.admin, `purchase_relay_paused{reason="access"}`); n != 0 {
		t.Errorf("paused = %v, want 0", n)
	}
	_, body := httpGet(s.admin + "/reconciliation")
	if !strings.Contains(body, "as SHOPPING, beside the ledger") {
		t.Errorf("the page lacks the counts:\n%s", body)
	}
}
