package e2e

import (
	"context"
	"encoding/csv"
	"iter"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"golang.org/x/text/language"
	"golang.org/x/text/message"

	"purchase-relay/internal/testkit/stripegen"
)

// stripeStack is a stack with a stand-in for Stripe's API.
type stripeStack struct {
	*stack
	api  *stripegen.API
	env  []string // Stripe's variables
	sent []string // ids of the paid checkouts with a webhook
	lost []string // ids of those without one
}

// newStripeStack starts the whole product, which sends test purchases to TikTok.
func newStripeStack(t *testing.T, env ...string) *stripeStack {
	t.Helper()
	s := &stripeStack{api: stripegen.NewAPI()}
	s.env = []string{"STRIPE_API_KEY=rk_test_hunter2", "STRIPE_API_URL=" + listen(t, s.api)}
	all := append([]string{"TIKTOK_TEST_MODE=send", "TIKTOK_TEST_EVENT_CODE=TEST12345"}, s.env...)
	s.stack = newStack(t, append(all, env...)...)
	return s
}

// run runs one of ingest's commands with Stripe's variables, of which env replaces some.
func (s *stripeStack) run(env []string, args ...string) (code int, out string) {
	s.t.Helper()
	all := slices.Concat([]string{"DATABASE_URL=" + s.runtimeURL()}, s.env, env)
	return command(s.t, "ingest", all, args...)
}

// addCheckouts lists n checkouts of the last two days, every fiftieth with a mode that does not count, and
// returns the webhooks of every third.
func (s *stripeStack) addCheckouts(n int) (webhooks [][]byte) {
	s.t.Helper()
	step := 47 * time.Hour / time.Duration(n)
	for i := range n {
		c := stripegen.NewCheckout()
		c.Created = time.Now().Add(time.Duration(i-n) * step).UTC().Truncate(time.Second)
		if i%50 == 0 {
			c.Mode = "setup"
		}
		if i%7 == 0 {
			c.Currency = new("jpy")
		}
		body := c.Event()
		if err := s.api.Add(body); err != nil {
			s.t.Fatal(err)
		}
		sent := i%3 == 0
		if sent {
			webhooks = append(webhooks, body)
		}
		switch {
		case c.Mode == "setup":
		case sent:
			s.sent = append(s.sent, c.SessionID)
		default:
			s.lost = append(s.lost, c.SessionID)
		}
	}
	slices.Sort(s.lost)
	return webhooks
}

// arrivals yields webhooks that are due immediately.
func arrivals(webhooks ...[]byte) iter.Seq[stripegen.Arrival] {
	return func(yield func(stripegen.Arrival) bool) {
		for _, body := range webhooks {
			if !yield(stripegen.Arrival{Body: body}) {
				return
			}
		}
	}
}

// deliver sends webhooks, 16 concurrently, until each is answered 200, and counts the bodies of the answers.
func (s *stack) deliver(webhooks iter.Seq[stripegen.Arrival]) (answers map[string]int) {
	s.t.Helper()
	answers = map[string]int{}
	pace := stripegen.Pace{Concurrency: 16, Attempts: 50, Wait: 20 * time.Millisecond}
	err := s.sender.Play(s.t.Context(), webhooks, pace, func(_ stripegen.Arrival, a stripegen.Answer) {
		if answers[a.Body]++; a.Status != http.StatusOK {
			s.t.Errorf("answer = %d %s, want 200", a.Status, a.Body)
		}
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return answers
}

// differences returns the ids of each kind of difference from the CSV that reconcile writes.
func (s *stripeStack) differences(wantCode int) map[string][]string {
	s.t.Helper()
	file := filepath.Join(s.t.TempDir(), "differences.csv")
	if code, out := s.run(nil, "reconcile", "--since", "3d", "--csv", file); code != wantCode {
		s.t.Fatalf("reconcile: exit code %d, want %d\n%s", code, wantCode, out)
	}
	f, err := os.Open(file)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	rows, err := csv.NewReader(f).ReadAll()
	if err != nil {
		s.t.Fatal(err)
	}
	found := map[string][]string{}
	for _, row := range rows[1:] {
		for i, kind := range rows[0][8:] {
			if ids := strings.Fields(row[8+i]); len(ids) > 0 {
				found[kind] = append(found[kind], ids...)
			}
		}
	}
	for _, ids := range found {
		slices.Sort(ids)
	}
	return found
}

// Two thirds of the webhooks are lost. Reconcile reports exactly these. The backfill is rate limited, meets
// errors, is killed, and resumes where it was. Then each purchase is recorded and at TikTok once.
func TestBackfill_RecordsLostWebhooksOnce(t *testing.T) {
	t.Parallel()
	s := newStripeStack(t)
	n := scale(400, 5000)
	s.deliver(arrivals(s.addCheckouts(n)...))
	s.awaitCount("delivered", len(s.sent))
	if diff := cmp.Diff(map[string][]string{"missing": s.lost}, s.differences(3)); diff != "" {
		t.Fatalf("differences after the loss (-want +got):\n%s", diff)
	}
	code, out := s.run(nil, "backfill", "--since", "1h", "--dry-run")
	if code != 3 || !strings.Contains(out, "missing") {
		t.Errorf("dry run: exit code %d, want 3\n%s", code, out)
	}
	if got := s.rows("purchases"); got != len(s.sent) {
		t.Errorf("purchases after the dry run = %d, want %d", got, len(s.sent))
	}

	s.api.Limit(0.3) // per second: slower than the client, even on a busy machine
	// After a page, or a tenth of the events, every request fails: the backfill cannot end before it is killed.
	s.api.FailLater(max(1, n/1000), math.MaxInt, http.StatusInternalServerError)
	killed := start(t, "ingest backfill", append([]string{"DATABASE_URL=" + s.runtimeURL()}, s.env...)...)
	const done = `SELECT COALESCE(max(known + fresh + ignored), 0) FROM backfills
		WHERE origin = 'command' AND finished_at IS NULL`
	s.await("a limited request, two failures and a tenth of the events", func() bool {
		stats := s.api.Stats()
		return stats.Limited > 0 && stats.Failed >= 2 && query[int](s.stack, done) >= n/10
	})
	killed.Kill()
	s.await("Postgres to end the killed backfill's session", func() bool {
		return s.locks(lockBackfillCommand) == 0
	})
	before := query[int](s.stack, done)
	if before == 0 || before >= n {
		t.Fatalf("the killed backfill processed %d events, want a part of %d", before, n)
	}

	s.api.Limit(0)
	s.api.FailLater(3, 1, stripegen.Cut)
	first := s.api.Stats()
	if code, out := s.run(nil, "backfill"); code != 0 || !strings.Contains(out, "retrying in") {
		t.Errorf("second backfill: exit code %d, want 0 after a retry\n%s", code, out)
	}
	if got, limit := s.api.Stats().Requests-first.Requests, (n-before)/100+5; got > limit {
		t.Errorf("the second backfill sent %d requests, want at most %d for the rest", got, limit)
	}
	if stats := s.api.Stats(); stats.Impatient > 0 || stats.Failed != first.Failed+1 {
		t.Errorf("API's stats = %+v, want no impatient requests and %d failed", stats, first.Failed+1)
	}

	s.awaitCount("delivered", len(s.sent)+len(s.lost))
	if diff := cmp.Diff(map[string][]string{}, s.differences(0)); diff != "" {
		t.Errorf("differences after the backfill (-want +got):\n%s", diff)
	}
	s.checkOnlyDelivered(slices.Concat(s.sent, s.lost)...)
	var caughtUp []string
	s.ledger(func(ctx context.Context, conn *pgx.Conn) (err error) {
		rows, err := conn.Query(ctx, `SELECT checkout_session_id FROM stripe_events WHERE caught_up`)
		if err != nil {
			return err
		}
		caughtUp, err = pgx.CollectRows(rows, pgx.RowTo[string])
		return err
	})
	slices.Sort(caughtUp)
	if diff := cmp.Diff(s.lost, caughtUp); diff != "" {
		t.Errorf("sessions marked as caught up (-want +got):\n%s", diff)
	}
	for _, page := range []string{"/", "/reconciliation", "/reconciliation.csv?mode=test"} {
		if status, text := httpGet(s.admin + page); status != http.StatusOK || strings.Contains(text, "hunter2") {
			t.Errorf("%s: status %d, want 200 without the key", page, status)
		}
	}
	want := message.NewPrinter(language.English).
		Sprintf("<strong>%d</strong> purchases backfilled", len(s.lost))
	if _, text := httpGet(s.admin + "/?mode=all"); !strings.Contains(text, want) {
		t.Errorf("the overview lacks %q", want)
	}
}

// The endpoint was disabled: ingest's periodic backfill finds, delivers and counts the missed events.
func TestBackfill_RunsPeriodically(t *testing.T) {
	t.Parallel()
	s := newStripeStack(t)
	s.deliver(arrivals(s.addCheckouts(30)...))
	s.ingest.stop()
	s.startIngest(append(s.env, "BACKFILL_INTERVAL=1s")...)
	s.awaitCount("delivered", len(s.sent)+len(s.lost))
	s.checkOnlyDelivered(slices.Concat(s.sent, s.lost)...)
	series := func(result string) float64 {
		return s.metric(s.admin, `purchase_relay_backfill_events_total{result="`+result+`"}`)
	}
	s.await("the events to be counted", func() bool {
		return series("new") == float64(len(s.lost)) && series("known") >= 1
	})
	s.await("the backfill to be logged", func() bool {
		return s.ingest.logged("Missed webhooks backfilled") > 0
	})
	s.await("the reconciliation's page", func() bool {
		_, text := httpGet(s.admin + "/reconciliation")
		return strings.Contains(text, "Test mode")
	})
}
