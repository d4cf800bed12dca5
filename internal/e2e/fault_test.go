package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/testkit/stripegen"
	"purchase-relay/internal/testkit/tiktoksim"
)

// backlog stops the worker and lets n purchases wait in the queue. change makes one's page address of its
// number.
func (s *stack) backlog(n int, page func(i int) string) {
	s.t.Helper()
	s.worker.kill()
	s.ingest.kill()
	ids, envelopes := make([]string, n), make([]string, n)
	for i := range n {
		ids[i] = fmt.Sprintf("cs_live_seed%06d", i)
		envelopes[i] = fmt.Sprintf(
			`{"version":1,"event_id":%q,"livemode":true,"purchased_at":%d,"amount_minor":2999,"currency":"usd","match_keys":{"email":%q,"page_url":%q}}`,
			ids[i],
			time.Now().Unix(),
			sha(ids[i]),
			page(i),
		)
	}
	s.exec(
		`INSERT INTO purchases (checkout_session_id, status, mode, livemode, amount_minor, currency, purchased_at, envelope)
		SELECT id, 'pending', 'subscription', true, 2999, 'usd', now(), convert_to(envelope, 'UTF8') FROM unnest($1::text[], $2::text[]) AS u (id, envelope)`,
		ids,
		envelopes,
	)
	s.startIngest()
	s.await("all to be in the queue", func() bool { return s.count("pending") == 0 })
}

// count counts the purchases with a status.
func (s *stack) count(status string) int {
	s.t.Helper()
	return query[int](s, `SELECT count(*) FROM purchases WHERE status = $1`, status)
}

func sameShop(int) string { return "https://shop.example/thanks" }

// Many purchases wait while the settings are wrong: at most ten die, readiness gives the reason, and all others
// are delivered afterwards.
func TestSettingsFaultKillsAtMostTen(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		fault  tiktoksim.Fault
		dead   int
		reason string
	}{
		"the same refusal for everything": {tiktoksim.Fault{Code: 40002, Message: "Invalid parameter"}, 10, "Invalid parameter"},
		"no permission under 40002": {tiktoksim.Fault{
			Code:    40002,
			Message: "No permission to operate pixel code: LOCALPIXEL. You must be an admin or operator of this advertiser account.",
		}, 0, "No permission to operate pixel code"},
		"a page for everything": {tiktoksim.Fault{Status: 403, HTML: true}, 0, "HTTP 403"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := dose(500, 2000)
			s := newStack(t)
			s.backlog(n, sameShop)
			s.sim.Inject(tc.fault)
			s.startWorker("RETRY_INITIAL=200ms", "RETRY_MAX=1s")
			s.await("the worker to pause", func() bool { // it is not ready before it is connected, either
				code, body := get(s.worker.admin + "/readyz")
				return code == http.StatusServiceUnavailable && strings.Contains(body, tc.reason)
			})
			paused := s.sim.Stats().Requests
			s.await("some probes", func() bool { return s.sim.Stats().Requests >= paused+8 })
			if code, body := get(s.worker.admin + "/readyz"); code != http.StatusServiceUnavailable ||
				!strings.Contains(body, tc.reason) {
				t.Errorf("readyz: %d %s, want 503 with %q", code, body, tc.reason)
			}
			if dead := s.count("dead"); dead > tc.dead {
				t.Errorf("%d dead, want at most %d", dead, tc.dead)
			}
			s.sim.Clear()
			s.await(
				"all others to be delivered",
				func() bool { return s.count("delivered")+s.count("dead") == n },
			)
			dead := s.count("dead")
			if dead > tc.dead || len(s.sim.Received()) != n-dead {
				t.Errorf("%d dead, want at most %d; TikTok has %d", dead, tc.dead, len(s.sim.Received()))
			}
			s.await(
				"the worker to be ready",
				func() bool { return status(s.worker.admin+"/readyz") == http.StatusOK },
			)
			t.Logf("%d dead, %d requests until it paused, %d in all", dead, paused, s.sim.Stats().Requests)
		})
	}
}

// One event among many meets a firewall's page: the others are delivered without delay, that one is
// dead with the page's status.
func TestOneEventsPageStopsNobody(t *testing.T) {
	t.Parallel()
	for _, httpStatus := range []int{403, 413} {
		t.Run(fmt.Sprint(httpStatus), func(t *testing.T) {
			t.Parallel()
			n, bad := dose(400, 1000), 213
			s := newStack(t)
			s.backlog(n, func(i int) string {
				if i == bad {
					return "https://shop.example/a/../thanks"
				}
				return sameShop(i)
			})
			s.sim.Inject(tiktoksim.Fault{Status: httpStatus, HTML: true, MatchText: "/../"})
			started := time.Now()
			s.startWorker()
			s.await("all to end", func() bool { return s.count("delivered")+s.count("dead") == n })
			id := fmt.Sprintf("cs_live_seed%06d", bad)
			if code := query[int](s, `SELECT last_code FROM purchases WHERE status = 'dead' AND reason = 'refused' AND checkout_session_id = $1`, id); code != httpStatus {
				t.Errorf("its code = %d, want %d", code, httpStatus)
			}
			received := s.sim.Received()
			delays := make([]time.Duration, len(received))
			for i, e := range received {
				delays[i] = e.FirstAt.Sub(started)
			}
			slices.Sort(delays)
			if pauses := s.worker.said("Delivery paused"); len(received) != n-1 || pauses != 0 {
				t.Errorf("TikTok has %d of %d, %d pauses", len(received), n-1, pauses)
			}
			if text := strings.Join(s.worker.lines(), "\n"); strings.Contains(text, "access token") ||
				strings.Contains(text, "denies access") {
				t.Error("the log blames the token")
			}
			t.Logf(
				"the other %d after the worker's start: median %s, last %s; %d requests",
				len(delays),
				delays[len(delays)/2],
				delays[len(delays)-1],
				s.sim.Stats().Requests,
			)
		})
	}
}

// The same, while purchases come one by one: each is delivered as if the bad one were not there.
func TestOneEventsPageAmongNewPurchases(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	s.sim.Inject(tiktoksim.Fault{Status: 406, HTML: true, MatchText: "/../"})
	bad := stripegen.NewCheckout().Live()
	bad.Metadata = map[string]string{"page_url": "https://shop.example/x", "user_agent": "Mozilla/5.0 (/../)"}
	s.send(bad)
	var ids []string
	for range 100 {
		c := stripegen.NewCheckout().Live()
		ids = append(ids, c.SessionID)
		s.send(c)
	}
	if r := s.awaitStatus(bad.SessionID, "dead"); r.Reason != "refused" {
		t.Errorf("%+v, want refused", r)
	}
	s.await("the others", func() bool { return s.count("delivered") == len(ids) })
	var median float64
	s.ledger(func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, `SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM finished_at - created_at)) FROM purchases WHERE status = 'delivered'`).
			Scan(&median)
	})
	t.Logf("median from receipt to delivery: %.3f s", median)
}

// TikTok answers a batch with 40050: each of its events gets an answer of its own, and all count as
// delivered.
func TestDuplicateInABatch(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	s.backlog(64, sameShop)
	s.sim.Inject(tiktoksim.Fault{Code: 40050, Message: "Duplicated request", MinEvents: 2})
	s.startWorker()
	s.await("all to be delivered", func() bool { return s.count("delivered") == 64 })
	if got := len(s.sim.Received()); got != 64 {
		t.Errorf("TikTok has %d events, want 64", got)
	}
}

// A passing fault under 40002 is retried, and kills nothing.
func TestPassingFaultUnder40002(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	s.sim.Inject(tiktoksim.Fault{Code: 40002, Message: "could not acquire ip", Count: 2})
	c := stripegen.NewCheckout().Live()
	s.send(c)
	if r := s.awaitStatus(c.SessionID, "delivered"); r.Attempts != 3 {
		t.Errorf("%d attempts, want 3", r.Attempts)
	}
}

// Settings that no request can carry end the start with exit code 2, all named; what copying adds is trimmed.
func TestUnusableSettings(t *testing.T) {
	t.Parallel()
	code, out := command(
		t,
		"tiktok-worker",
		[]string{"TIKTOK_ACCESS_TOKEN=two words", "TIKTOK_PIXEL_ID=C-1", "TIKTOK_TEST_EVENT_CODE=a b"},
	)
	if code != 2 || !strings.Contains(out, "TIKTOK_ACCESS_TOKEN must") ||
		!strings.Contains(out, "TIKTOK_PIXEL_ID must") ||
		!strings.Contains(out, "TIKTOK_TEST_EVENT_CODE must") ||
		strings.Contains(out, "two words") {
		t.Errorf("exit code %d: %s", code, out)
	}
	s := newStack(t, "TIKTOK_ACCESS_TOKEN=\ufeff local-token\r\n", "TIKTOK_PIXEL_ID= LOCALPIXEL ")
	c := stripegen.NewCheckout().Live()
	s.send(c)
	s.awaitStatus(c.SessionID, "delivered")
	var event struct {
		Pixel string `json:"pixel"`
	}
	if data, err := json.Marshal(s.event(c.SessionID)); err != nil || json.Unmarshal(data, &event) != nil ||
		event.Pixel != "LOCALPIXEL" {
		t.Errorf("pixel = %q, want LOCALPIXEL (%v)", event.Pixel, err)
	}
}
