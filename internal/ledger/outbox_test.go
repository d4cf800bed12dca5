package ledger_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/maintenance"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/relay"
)

// mark marks a purchase published.
func (l *testLedger) mark(m relay.Mark) {
	l.T.Helper()
	if err := l.MarkPublished(l.T.Context(), []relay.Mark{m}); err != nil {
		l.T.Fatal(err)
	}
}

// published records, claims and marks a purchase.
func (l *testLedger) published(id string) {
	l.T.Helper()
	l.Buy(id)
	claims, err := l.Claim(l.T.Context(), 1)
	if err != nil || len(claims) != 1 || claims[0].ID != id {
		l.T.Fatalf("Claim = %+v, %v, want %s", claims, err, id)
	}
	l.mark(relay.Mark{ID: id, Generation: 1, Sequence: 1})
}

// replay replays a selection of purchases and checks their number.
func (l *testLedger) replay(s maintenance.Selection, want int) {
	l.T.Helper()
	if n, err := l.Replay(l.T.Context(), s, func(int) {}); err != nil || n != want {
		l.T.Fatalf("Replay = %d, %v, want %d", n, err, want)
	}
}

// overdue claims the overdue purchases and returns them as sorted id:generation.
func (l *testLedger) overdue(grace time.Duration) (ids []string) {
	l.T.Helper()
	claims, err := l.Overdue(l.T.Context(), grace, 100)
	if err != nil {
		l.T.Fatal(err)
	}
	for _, c := range claims {
		ids = append(ids, fmt.Sprintf("%s:%d", c.ID, c.Generation))
		if c.FirstPublished.IsZero() || len(c.Envelope) == 0 {
			l.T.Errorf("claim = %+v, want a first publish and an envelope", c)
		}
	}
	slices.Sort(ids)
	return ids
}

// claimEachOnce makes claims of five purchases concurrently: they get all thirty, each once.
func (l *testLedger) claimEachOnce(claim func() ([]relay.Claim, error)) {
	l.T.Helper()
	var group sync.WaitGroup
	var mu sync.Mutex
	seen := map[string]int{}
	for range 6 {
		group.Go(func() {
			claims, err := claim()
			if err != nil {
				l.T.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, c := range claims {
				seen[c.ID]++
				if c.Generation != 1 || c.FirstPublished.IsZero() || len(c.Envelope) == 0 {
					l.T.Errorf("claim = %+v, want generation 1, a first publish and an envelope", c)
				}
			}
		})
	}
	group.Wait()
	if len(seen) != 30 {
		l.T.Errorf("claimed %d purchases, want 30", len(seen))
	}
	for id, n := range seen {
		if n != 1 {
			l.T.Errorf("%s was claimed %d times, want once", id, n)
		}
	}
}

func TestClaim_IsExclusive(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	for i := range 30 {
		l.Buy(fmt.Sprintf("cs_%02d", i))
	}
	l.MustRecord(receipt("evt_unpaid", "cs_unpaid", purchase.StatusAwaitingPayment, ""))
	l.claimEachOnce(func() ([]relay.Claim, error) { return l.Claim(t.Context(), 5) })
	if err := l.Release(t.Context(), []string{"cs_03", "cs_04"}); err != nil {
		t.Fatal(err)
	}
	claims, err := l.Claim(t.Context(), 100)
	if err != nil || len(claims) != 2 {
		t.Fatalf("Claim after Release = %d, %v, want 2", len(claims), err)
	}
	first := claims[0].FirstPublished
	l.Exec(`UPDATE purchases SET claimed_until = now() - interval '1 s'
		WHERE checkout_session_id = $1`, claims[0].ID)
	again, err := l.Claim(t.Context(), 100)
	if err != nil || len(again) != 1 || !again[0].FirstPublished.Equal(first) {
		t.Errorf("Claim after expiry = %+v, %v, want one, first published at %s", again, err, first)
	}
}

// The stream rejects what two sweepers publish, so the end-to-end tests do not notice a double claim.
func TestOverdue_IsExclusive(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	for i := range 30 {
		l.published(fmt.Sprintf("cs_%02d", i))
	}
	l.Exec(`UPDATE purchases SET updated_at = now() - interval '20 minutes'`)
	l.claimEachOnce(func() ([]relay.Claim, error) { return l.Overdue(t.Context(), 10*time.Minute, 5) })
}

// Rows that cannot be read or have no message are skipped and reported. The other rows are claimed, even if
// the skipped ones fill a batch.
func TestClaim_SkipsUnreadableRow(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]string{
		"infinite time":          `first_published_at = 'infinity'`,
		"negative infinite time": `first_published_at = '-infinity'`,
		"no envelope":            `envelope = NULL`,
		"empty envelope":         `envelope = ''`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLedger(t)
			skips := l.Skips()
			for i := range 5 {
				l.Buy(fmt.Sprintf("cs_%d", i))
			}
			l.Exec(`UPDATE purchases SET ` + damage + `, created_at = created_at - interval '1 day'
				WHERE checkout_session_id IN ('cs_0', 'cs_1')`)
			for range 3 {
				claims, err := l.Claim(t.Context(), 1)
				if err != nil || len(claims) != 1 || claims[0].ID < "cs_2" {
					t.Fatalf("Claim = %+v, %v, want an undamaged one", claims, err)
				}
			}
			if got, want := skips(), []string{"relay cs_0", "relay cs_1"}; !slices.Equal(got, want) {
				t.Errorf("skipped = %v, want %v", got, want)
			}
			l.Exec(`UPDATE purchases SET status = 'published', published_at = now(),
				updated_at = now() - interval '1 hour', claimed_until = NULL,
				first_published_at = COALESCE(first_published_at, now())`)
			if got, want := l.overdue(time.Minute), []string{"cs_2:1", "cs_3:1", "cs_4:1"}; !slices.Equal(got, want) {
				t.Errorf("overdue = %v, want %v", got, want)
			}
			if got, want := skips(), []string{"sweeper cs_0", "sweeper cs_1"}; !slices.Equal(got, want) {
				t.Errorf("skipped = %v, want %v", got, want)
			}
		})
	}
}

// If the outcome is recorded first, it sets the time and sequence of the publish, and the mark writes
// nothing.
func TestMarkPublished_AfterOutcomeWritesNothing(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.Buy("cs_1")
	o := delivered("cs_1")
	o.Sequence, o.Taken = 42, base.Add(-time.Second)
	l.MustSettle(o)
	row := func() string {
		return ask[string](l, `SELECT concat_ws(' ', status, stream_sequence,
			extract(epoch FROM published_at)::bigint, xmin) FROM purchases`)
	}
	before := row()
	if want := fmt.Sprintf("delivered 42 %d ", o.Taken.Unix()); !strings.HasPrefix(before, want) {
		t.Errorf("row = %s, want %s", before, want)
	}
	l.mark(relay.Mark{ID: "cs_1", Generation: 1, Sequence: 42})
	if after := row(); after != before {
		t.Errorf("row after the mark = %s, want %s", after, before)
	}
}

func TestMarkPublished_KeepsOutcome(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.Buy("cs_1")
	l.MustSettle(delivered("cs_1"))
	l.mark(relay.Mark{ID: "cs_1", Generation: 1, Sequence: 7})
	got := ask[string](l, `SELECT concat_ws(' ', status, stream_sequence, tiktok_request_id) FROM purchases`)
	if want := "delivered 7 req-a1"; got != want {
		t.Errorf("row = %s, want %s", got, want)
	}
}

// A mark of a purchase that was recorded before the ledger was emptied does not affect its new row.
func TestMarkPublished_IgnoresRecreatedRow(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	r := paid("evt_1", "cs_1")
	r.Claim = true
	before := l.MustRecord(r).Claimed
	l.Exec(`TRUNCATE purchases, profiles, stripe_events`)
	after := l.MustRecord(r).Claimed
	for _, tc := range []struct {
		first time.Time
		want  string
	}{{before, "pending"}, {after, "published"}} {
		l.mark(relay.Mark{ID: "cs_1", Generation: 1, Sequence: 1, FirstPublished: tc.first})
		if got := ask[string](l, `SELECT status FROM purchases`); got != tc.want {
			t.Errorf("status = %s, want %s", got, tc.want)
		}
	}
}

// After an ambiguous publish a mark has a higher generation than the row. A lower one is obsolete.
func TestMarkPublished_RaisesGeneration(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.Buy("cs_1")
	for _, m := range []relay.Mark{{Generation: 2, Sequence: 7}, {Generation: 1, Sequence: 6}} {
		m.ID = "cs_1"
		l.mark(m)
		got := ask[string](l, `SELECT concat_ws(' ', status, generation, stream_sequence) FROM purchases`)
		if want := "published 2 7"; got != want {
			t.Errorf("row after %+v = %s, want %s", m, got, want)
		}
	}
}

func TestSweep_RecordsEachResult(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	for _, id := range []string{"cs_done", "cs_lost", "cs_queued", "cs_unknown", "cs_young"} {
		l.published(id)
	}
	l.MustSettle(delivered("cs_done"))
	if ids := l.overdue(time.Minute); len(ids) > 0 {
		t.Errorf("overdue after the publish = %v, want none", ids)
	}
	l.Exec(`UPDATE purchases SET published_at = now() - interval '1 hour', updated_at = now() - interval '1 hour'
		WHERE checkout_session_id <> 'cs_young'`)
	want := []string{"cs_lost:1", "cs_queued:1", "cs_unknown:1"}
	if got := l.overdue(time.Minute); !slices.Equal(got, want) {
		t.Fatalf("overdue = %v, want %v", got, want)
	}
	if ids := l.overdue(time.Minute); len(ids) > 0 {
		t.Errorf("overdue while claimed = %v, want none", ids)
	}
	sweep := func(published relay.Mark, queued, unknown []string) {
		t.Helper()
		if err := l.RecordSweep(t.Context(), []relay.Mark{published}, queued, unknown); err != nil {
			t.Fatal(err)
		}
	}
	lost := func() string {
		return ask[string](l, `SELECT concat_ws(' ', status, generation, stream_sequence, first_published_at)
			FROM purchases WHERE checkout_session_id = 'cs_lost'`)
	}
	age := strings.TrimPrefix(lost(), "published 1 1 ")
	sweep(relay.Mark{ID: "cs_lost", Generation: 2, Sequence: 99}, []string{"cs_queued"}, []string{"cs_unknown"})
	if got, want := lost(), "published 2 99 "+age; got != want {
		t.Errorf("cs_lost = %s, want %s", got, want)
	}
	if got, want := l.overdue(time.Minute), []string{"cs_unknown:1"}; !slices.Equal(got, want) {
		t.Errorf("overdue after the sweep = %v, want %v", got, want)
	}
	// The outcome of the swept generation is recorded before the sweep.
	l.MustSettle(outcome("cs_unknown", 2, purchase.StatusDelivered, "a1", base))
	sweep(relay.Mark{ID: "cs_unknown", Generation: 2, Sequence: 100}, nil, nil)
	marks := []relay.Mark{{ID: "cs_unknown", Generation: 2}, {ID: "cs_queued", Generation: 1}}
	for _, tc := range []struct {
		maxAge time.Duration
		want   []string
	}{{47 * time.Hour, nil}, {0, []string{"cs_queued"}}} {
		if got, err := l.Expire(t.Context(), marks, tc.maxAge); err != nil || !slices.Equal(got, tc.want) {
			t.Errorf("Expire(%s) = %v, %v, want %v", tc.maxAge, got, err, tc.want)
		}
	}
	got := ask[string](l, `
		SELECT string_agg(concat_ws(' ', checkout_session_id, status, NULLIF(reason, '')), ', '
			ORDER BY checkout_session_id)
		FROM purchases WHERE checkout_session_id IN ('cs_unknown', 'cs_queued')`)
	if want := "cs_queued dead expired, cs_unknown delivered"; got != want {
		t.Errorf("rows = %s, want %s", got, want)
	}
}

// A replica pauses between claim and Expire. Meanwhile another replica expires the purchase and an operator
// replays it: the replayed purchase does not expire.
func TestExpire_IgnoresReplayedPurchase(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.published("cs_1")
	marks := []relay.Mark{{ID: "cs_1", Generation: 1}}
	if got, err := l.Expire(t.Context(), marks, 0); err != nil || len(got) != 1 {
		t.Fatalf("Expire = %v, %v, want cs_1", got, err)
	}
	l.replay(maintenance.Selection{ID: "cs_1"}, 1)
	if _, err := l.Claim(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	l.mark(relay.Mark{ID: "cs_1", Generation: 2, Sequence: 2})
	if got, err := l.Expire(t.Context(), marks, 0); err != nil || len(got) > 0 {
		t.Errorf("Expire after the replay = %v, %v, want none", got, err)
	}
	if got := ask[string](l, `SELECT status || ' ' || generation FROM purchases`); got != "published 2" {
		t.Errorf("row = %s, want published 2", got)
	}
}

// Overdue compares with Postgres' clock. A worker's clock that is a day ahead, or an outcome without an
// attempt before the mark, does not postpone the sweep.
func TestOverdue_UsesPostgresClock(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.published("cs_ahead")
	l.Buy("cs_unmarked")
	if _, err := l.Claim(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	bare := outcome("cs_unmarked", 1, purchase.StatusRetrying, "", base)
	ahead := outcome("cs_ahead", 1, purchase.StatusRetrying, "a1", time.Now().Add(24*time.Hour))
	l.MustSettle(bare, ahead)
	if ids := l.overdue(time.Minute); len(ids) > 0 {
		t.Errorf("overdue after the outcomes = %v, want none", ids)
	}
	l.Exec(`UPDATE purchases SET updated_at = now() - interval '2 minutes',
		published_at = published_at - interval '2 minutes', claimed_until = NULL`)
	if got, want := l.overdue(time.Minute), []string{"cs_ahead:1", "cs_unmarked:1"}; !slices.Equal(got, want) {
		t.Errorf("overdue = %v, want %v", got, want)
	}
}

// The outcome of a replayed purchase may be recorded before the relay's claim, so that the row has no first
// publish. Its age starts when the stream stored the message or, if unknown, when the outcome was recorded.
func TestOverdue_TakesRowWithoutFirstPublish(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	skips := l.Skips()
	for _, id := range []string{"cs_stored", "cs_unknown", "cs_usual"} {
		l.Buy(id)
		l.End(id, purchase.StatusDead)
	}
	l.replay(maintenance.Selection{Status: purchase.StatusDead}, 3)
	retrying := func(id string, stored time.Time) message.Outcome { // of the replayed generation
		o := outcome(id, 2, purchase.StatusRetrying, "b_"+id, time.Now())
		o.Taken, o.Sequence = stored, 7
		return o
	}
	l.MustSettle(retrying("cs_stored", time.Now().Add(-3*time.Hour)), retrying("cs_unknown", time.Time{}))
	l.Exec(`UPDATE purchases SET status = 'published', first_published_at = now() - interval '1 hour'
		WHERE checkout_session_id = 'cs_usual'`)
	l.Exec(`UPDATE purchases SET updated_at = now() - interval '20 minutes'`)
	const withoutFirst = `SELECT count(*) FROM purchases WHERE first_published_at IS NULL`
	if n := ask[int](l, withoutFirst); n != 2 {
		t.Fatalf("rows without a first publish = %d, want 2", n)
	}
	claims, err := l.Overdue(t.Context(), 10*time.Minute, 100)
	if err != nil || len(claims) != 3 {
		t.Fatalf("Overdue = %+v, %v, want 3", claims, err)
	}
	ages := map[string]time.Duration{
		"cs_stored": 3 * time.Hour, "cs_unknown": 20 * time.Minute, "cs_usual": time.Hour,
	}
	for _, c := range claims {
		if age := time.Since(c.FirstPublished).Round(time.Minute); age != ages[c.ID] {
			t.Errorf("age of %s = %s, want %s", c.ID, age, ages[c.ID])
		}
	}
	if n := ask[int](l, withoutFirst); n != 0 {
		t.Errorf("rows without a first publish after the claim = %d, want 0", n)
	}
	if got := skips(); len(got) > 0 {
		t.Errorf("skipped = %v, want none", got)
	}
}
