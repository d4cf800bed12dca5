package e2e

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"purchase-relay/internal/testkit/tiktoksim"
)

// seeded is a purchase that seed writes.
type seeded struct {
	at   time.Time
	page string
}

// seed writes n pending purchases to the ledger. change may edit each of them; nil leaves them as they are.
func (s *stack) seed(n int, change func(i int, p *seeded)) {
	s.t.Helper()
	ids, envelopes := make([]string, n), make([]string, n)
	for i := range n {
		ids[i] = seedID(i)
		p := seeded{at: time.Now(), page: "https://shop.example/thanks"}
		if change != nil {
			change(i, &p)
		}
		envelopes[i] = fmt.Sprintf(`{"version":1,"event_id":%q,"livemode":true,"purchased_at":%d,`+
			`"amount_minor":2999,"currency":"usd","match_keys":{"email":%q,"page_url":%q}}`,
			ids[i], p.at.Unix(), sha(ids[i]), p.page)
	}
	s.exec(`INSERT INTO purchases (checkout_session_id, status, mode, livemode, amount_minor, currency,
			purchased_at, envelope)
		SELECT id, 'pending', 'subscription', true, 2999, 'usd', now(), convert_to(envelope, 'UTF8')
		FROM unnest($1::text[], $2::text[]) AS u (id, envelope)`, ids, envelopes)
}

func seedID(i int) string { return fmt.Sprintf("cs_live_seed%06d", i) }

// backlog kills the worker and fills the queue with seeded purchases.
func (s *stack) backlog(n int, change func(i int, p *seeded)) {
	s.t.Helper()
	s.worker.Kill()
	s.ingest.Kill()
	s.seed(n, change)
	s.startIngest()
	s.awaitCount("pending", 0)
}

// With wrong settings at most ten of many purchases are dead-lettered, readiness gives the reason, and all
// others are delivered afterwards.
func TestWorker_SettingsFaultDeadLettersAtMostTen(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		fault  tiktoksim.Fault
		dead   int
		reason string
	}{
		"the same refusal for everything": {
			tiktoksim.Fault{Code: 40002, Message: "Invalid parameter"}, 10, "Invalid parameter",
		},
		"no permission under 40002": {tiktoksim.Fault{
			Code: 40002, Message: "No permission to operate pixel code: LOCALPIXEL. " +
				"You must be an admin or operator of this advertiser account.",
		}, 0, "No permission to operate pixel code"},
		"an HTML page for everything": {tiktoksim.Fault{Status: 403, HTML: true}, 0, "HTTP 403"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := scale(200, 2000)
			s := newStack(t)
			s.backlog(n, nil)
			s.sim.Inject(tc.fault)
			s.startWorker("RETRY_INITIAL=200ms", "RETRY_MAX=1s")
			paused := func() bool { // before the worker is connected, /readyz is 503 without the reason
				code, body := httpGet(s.worker.admin + "/readyz")
				return code == http.StatusServiceUnavailable && strings.Contains(body, tc.reason)
			}
			s.await("the worker to pause", paused)
			requests := s.sim.Stats().Requests
			s.await("some probes", func() bool { return s.sim.Stats().Requests >= requests+8 })
			if !paused() {
				t.Errorf("/readyz after some probes is not 503 with %q", tc.reason)
			}
			s.sim.Clear()
			s.awaitNone(`purchases WHERE status NOT IN ('delivered', 'dead')`)
			dead, received := s.count("dead"), len(s.sim.Received())
			if dead > tc.dead || received != n-dead {
				t.Errorf("dead = %d, want at most %d; TikTok has %d events, want %d", dead, tc.dead, received, n-dead)
			}
			s.awaitReadiness(s.worker.admin, http.StatusOK)
			t.Logf("%d dead, %d requests before the pause, %d in total", dead, requests, s.sim.Stats().Requests)
		})
	}
}

// A firewall blocks one event among many: the others are delivered without delay, that one is dead with the
// status of the firewall's page.
func TestWorker_BlockedEventStopsNoOther(t *testing.T) {
	t.Parallel()
	for _, httpStatus := range []int{403, 413} {
		t.Run(fmt.Sprint(httpStatus), func(t *testing.T) {
			t.Parallel()
			n, blocked := scale(250, 1000), 213
			s := newStack(t)
			s.backlog(n, func(i int, p *seeded) {
				if i == blocked {
					p.page = "https://shop.example/a/../thanks"
				}
			})
			s.sim.Inject(tiktoksim.Fault{Status: httpStatus, HTML: true, MatchText: "/../"})
			started := time.Now()
			s.startWorker()
			s.awaitNone(`purchases WHERE status NOT IN ('delivered', 'dead')`)
			s.checkPurchase(seedID(blocked), "dead", "refused")
			if code := query[int](s, `SELECT last_code FROM purchases WHERE status = 'dead'`); code != httpStatus {
				t.Errorf("last_code = %d, want %d", code, httpStatus)
			}
			received := s.sim.Received()
			delays := make([]time.Duration, len(received))
			for i, e := range received {
				delays[i] = e.FirstAt.Sub(started)
			}
			slices.Sort(delays)
			pauses := s.worker.logged("Delivery paused")
			if len(received) != n-1 || pauses != 0 {
				t.Errorf("TikTok has %d events after %d pauses, want %d and none", len(received), pauses, n-1)
			}
			if text := s.worker.log(); strings.Contains(text, "access token") ||
				strings.Contains(text, "denies access") {
				t.Error("the log blames the token")
			}
			t.Logf("median delay of the others %s, last %s; %d requests",
				delays[len(delays)/2], delays[len(delays)-1], s.sim.Stats().Requests)
		})
	}
}
