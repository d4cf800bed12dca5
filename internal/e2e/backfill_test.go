package e2e

import (
	"context"
	"encoding/csv"
	"fmt"
	"iter"
	"maps"
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

// shop is a stand-in for Stripe's API with events in its list, of which webhooks brought some.
type shop struct {
	*stack
	list    *stripegen.API
	env     []string
	brought []string // sessions of paid checkouts, whose webhooks came
	lost    []string // and did not come
}

const testCode = "TEST12345"

// newShop starts everything, with test purchases on their way to TikTok.
func newShop(t *testing.T, env ...string) *shop {
	t.Helper()
	s := &shop{list: stripegen.NewAPI()}
	url := listen(t, s.list)
	s.env = []string{"STRIPE_API_KEY=rk_test_hunter2", "STRIPE_API_URL=" + url}
	all := append([]string{"TIKTOK_TEST_MODE=send", "TIKTOK_TEST_EVENT_CODE=" + testCode}, s.env...)
	s.stack = newStack(t, append(all, env...)...)
	return s
}

// run runs one of the two commands.
func (s *shop) run(args ...string) (code int, out string) {
	s.t.Helper()
	return command(s.t, "ingest", append([]string{"DATABASE_URL=" + s.runtime()}, s.env...), args...)
}

// fill lists n checkouts over the last two days, of which every third one's webhook is to come; every fiftieth is of a mode that does
// not count. It returns the bodies of those that come.
func (s *shop) fill(n int) (bodies [][]byte) {
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
		if err := s.list.Add(body); err != nil {
			s.t.Fatal(err)
		}
		comes := i%3 == 0
		if comes {
			bodies = append(bodies, body)
		}
		switch {
		case c.Mode == "setup":
		case comes:
			s.brought = append(s.brought, c.SessionID)
		default:
			s.lost = append(s.lost, c.SessionID)
		}
	}
	slices.Sort(s.lost)
	return bodies
}

// deliver sends webhooks, some at a time.
func (s *shop) deliver(bodies [][]byte) {
	s.t.Helper()
	arrivals := iter.Seq[stripegen.Arrival](func(yield func(stripegen.Arrival) bool) {
		for _, b := range bodies {
			if !yield(stripegen.Arrival{Body: b}) {
				return
			}
		}
	})
	err := s.sender.Play(s.t.Context(), arrivals, stripegen.Pace{Concurrency: 16, Attempts: 5, Wait: 100 * time.Millisecond}, func(_ stripegen.Arrival, a stripegen.Answer) {
		if a.Status != http.StatusOK {
			s.t.Errorf("a webhook was answered %d %s", a.Status, a.Body)
		}
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

// differences reads the ids of each difference from the CSV that reconcile writes.
func (s *shop) differences(wantCode int) map[string][]string {
	s.t.Helper()
	file := filepath.Join(s.t.TempDir(), "books.csv")
	if code, out := s.run("reconcile", "--since", "3d", "--csv", file); code != wantCode {
		s.t.Fatalf("reconcile: exit code %d\n%s", code, out)
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

// settled waits until nothing is on its way.
func (s *shop) settled(n int) {
	s.t.Helper()
	s.await(fmt.Sprintf("%d purchases to be delivered", n), func() bool {
		return query[int](s.stack, `SELECT count(*) FROM purchases WHERE status = 'delivered'`) == n
	})
}

// Two thirds of 5,000 webhooks are lost. Reconciliation names exactly these; the backfill, over a list that limits the rate and fails in
// the middle, is killed and goes on where it was; then everything is there once, at TikTok too, and the books agree.
func TestBackfill(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	n := dose(1000, 5000)
	s.deliver(s.fill(n))
	s.settled(len(s.brought))
	if diff := cmp.Diff(map[string][]string{"missing": s.lost}, s.differences(3)); diff != "" {
		t.Fatalf("after the loss: %s", diff)
	}
	if code, out := s.run("backfill", "--since", "1h", "--dry-run"); code != 3 || !strings.Contains(out, "missing") {
		t.Errorf("dry run: %d\n%s", code, out)
	}
	if got := query[int](s.stack, `SELECT count(*) FROM purchases`); got != len(s.brought) {
		t.Errorf("a dry run left %d purchases, of %d", got, len(s.brought))
	}

	s.list.Limit(0.3) // slower than the client, even on a busy machine
	s.list.FailLater(1, 2, http.StatusInternalServerError)
	killed := start(t, "ingest backfill", append([]string{"DATABASE_URL=" + s.runtime()}, s.env...)...)
	s.await("a tenth of the list, after a limit and two failures", func() bool {
		stats := s.list.Stats()
		return stats.Limited > 0 && stats.Failed == 2 && query[int](s.stack, `SELECT COALESCE(max(known + fresh + ignored), 0) FROM backfills WHERE origin = 'command'`) >= n/10
	})
	killed.kill()
	before := query[int](s.stack, `SELECT known + fresh + ignored FROM backfills WHERE origin = 'command' AND finished_at IS NULL`)
	if before >= n {
		t.Fatal("it was done before it was killed")
	}

	s.list.Limit(0)
	s.list.FailLater(3, 1, stripegen.Cut)
	asked := s.list.Stats().Requests
	code, out := s.run("backfill")
	if code != 0 || !strings.Contains(out, "retrying in") {
		t.Errorf("the second run: exit code %d\n%s", code, out)
	}
	if got, most := s.list.Stats().Requests-asked, (n-before)/100+5; got > most {
		t.Errorf("it asked %d times for the rest, at most %d are needed: it began anew", got, most)
	}
	if stats := s.list.Stats(); stats.Limited == 0 || stats.Impatient > 0 || stats.Failed != 3 {
		t.Errorf("the list says %+v", stats)
	}

	s.settled(len(s.brought) + len(s.lost))
	if diff := cmp.Diff(map[string][]string{}, s.differences(0)); diff != "" {
		t.Errorf("after the backfill: %s", diff)
	}
	s.onceEach()
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
		t.Errorf("what is marked as caught up: %s", diff)
	}
	for _, page := range []string{"/", "/reconciliation", "/reconciliation.csv?mode=test"} {
		if status, text := get(s.admin + page); status != http.StatusOK || strings.Contains(text, "hunter2") {
			t.Errorf("%s: %d", page, status)
		}
	}
	told := message.NewPrinter(language.English).Sprintf("<strong>%d</strong> purchases backfilled", len(s.lost))
	if _, text := get(s.admin + "/"); !strings.Contains(text, told) {
		t.Errorf("the overview does not say: %s", told)
	}
}

// onceEach holds what TikTok received against what was paid: each once, under one body.
func (s *shop) onceEach() {
	s.t.Helper()
	wanted := map[string]bool{}
	for _, id := range append(slices.Clone(s.brought), s.lost...) {
		wanted[id] = true
	}
	for _, e := range s.sim.Received() {
		if !wanted[e.EventID] || e.Copies != 1 {
			s.t.Errorf("TikTok has %s, wanted %v, %d copies", e.EventID, wanted[e.EventID], e.Copies)
		}
		delete(wanted, e.EventID)
	}
	if len(wanted) > 0 {
		s.t.Errorf("TikTok lacks %d: %v …", len(wanted), slices.Collect(maps.Keys(wanted))[0])
	}
}

// A disabled endpoint: ingest's own check finds what no webhook brought, delivers it and counts it.
func TestCheckCatchesUp(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.deliver(s.fill(30))
	s.ingest.stop()
	s.startIngest(append(s.env, "BACKFILL_INTERVAL=1s")...)
	s.settled(len(s.brought) + len(s.lost))
	s.onceEach()
	series := func(result string) float64 {
		return s.ingestFigure(`purchase_relay_backfill_events_total{result="` + result + `"}`)
	}
	s.await("the check's figures", func() bool { return series("new") == float64(len(s.lost)) && series("known") >= 1 })
	if s.ingest.said("Missed webhooks backfilled") == 0 {
		t.Error("the log does not tell of it")
	}
	s.await("the reconciliation", func() bool {
		_, text := get(s.admin + "/reconciliation")
		return strings.Contains(text, "Test mode")
	})
}

// What cannot be done is said once and clearly, with the exit status that belongs to it, and never with the key.
func TestBackfillRefused(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	for _, tc := range []struct {
		env  []string
		args []string
		code int
		says string
	}{
		{[]string{"STRIPE_API_KEY="}, []string{"backfill"}, 2, "STRIPE_API_KEY is required"},
		{[]string{"STRIPE_API_KEY=whsec_hunter2"}, []string{"reconcile"}, 2, "does not look like rk_live_"},
		{[]string{"STRIPE_API_KEY=rk_live_hunter2"}, []string{"backfill"}, 2, "not https"},
		{nil, []string{"backfill", "--since", "soon"}, 2, "--since"},
		{[]string{"STRIPE_API_KEY=sk_test_hunter2"}, []string{"backfill"}, 0, "a restricted one"},
		{nil, []string{"reconcile"}, 0, "No difference"},
	} {
		env := append(append([]string{"DATABASE_URL=" + s.runtime()}, s.env...), tc.env...)
		code, out := command(t, "ingest", env, tc.args...)
		if code != tc.code || !strings.Contains(out, tc.says) || strings.Contains(out, "hunter2") {
			t.Errorf("%v %v: exit code %d\n%s", tc.env, tc.args, code, out)
		}
	}
	refusing := listen(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, `{"error":{"type":"invalid_request_error","message":"hunter2"}}`, http.StatusForbidden)
	}))
	code, out := command(t, "ingest", append([]string{"DATABASE_URL=" + s.runtime()}, s.env[0], "STRIPE_API_URL="+refusing), "backfill")
	if code != 1 || !strings.Contains(out, "lacks read permission") || strings.Contains(out, "hunter2") {
		t.Errorf("a key without the right: exit code %d\n%s", code, out)
	}
}
