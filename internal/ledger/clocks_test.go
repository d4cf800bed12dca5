package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/maintenance"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/relay"
)

// newTimedLedger returns a ledger whose clock is set by the test.
func newTimedLedger(t *testing.T) *testLedger {
	t.Helper()
	l := newLedger(t)
	// A function of this name in a schema before pg_catalog is what now() in the statements means.
	l.exec(`
		CREATE SCHEMA history;
		CREATE TABLE history.clock (at timestamptz NOT NULL);
		INSERT INTO history.clock VALUES (now());
		CREATE FUNCTION history.now() RETURNS timestamptz LANGUAGE sql STABLE AS 'SELECT at FROM history.clock';
		ALTER TABLE public.purchases ALTER created_at SET DEFAULT history.now(), ALTER updated_at SET DEFAULT history.now();
		ALTER TABLE public.profiles ALTER created_at SET DEFAULT history.now(), ALTER updated_at SET DEFAULT history.now()`)
	separator := "?"
	if strings.Contains(l.url, "?") {
		separator = "&"
	}
	l.Open(l.url + separator + "search_path=history,pg_catalog,public")
	return l
}

func (l *testLedger) setClock(at time.Time) { l.exec(`UPDATE history.clock SET at = $1`, at) }

// Ends are dated by the ledger: a replay finds them whatever the worker's clock shows, and the ledger's
// beside this process's.
func TestReplay_ComparesOneClock(t *testing.T) {
	t.Parallel()
	l := newTimedLedger(t)
	n := 0
	for _, database := range []time.Duration{0, -3 * time.Minute, 3 * time.Minute, 26 * time.Hour} { // apart from this process
		for _, worker := range []time.Duration{0, -3 * time.Minute, 3 * time.Minute, 26 * time.Hour, -26 * time.Hour} {
			for _, s := range []maintenance.Selection{{Status: purchase.StatusDead}, {Status: purchase.StatusDead, Within: time.Minute}} {
				n++
				id := fmt.Sprintf("cs_%d", n)
				now := time.Now().Add(database)
				l.setClock(now)
				l.record(receipt("evt_"+id, id, purchase.StatusPending, ""))
				if _, err := l.Settle(t.Context(), []message.Outcome{outcome(id, 1, purchase.StatusDead, "a1", now.Add(worker))}); err != nil {
					t.Fatal(err)
				}
				l.setClock(now.Add(30 * time.Second))
				counted, err := l.CountReplayable(t.Context(), s)
				if err != nil {
					t.Fatal(err)
				}
				sum, _ := maintenance.Sum(counted)
				if got, err := l.Replay(t.Context(), s, func(int) {}); err != nil || got != 1 || sum != 1 {
					t.Errorf(
						"database %s, worker %s apart, within %s: counted %d, replayed %d, %v; want 1",
						database,
						worker,
						s.Within,
						sum,
						got,
						err,
					)
				}
				l.setClock(now.Add(2 * time.Minute))
				if _, err := l.Settle(t.Context(), []message.Outcome{outcome(id, 2, purchase.StatusDead, "a2", now)}); err != nil {
					t.Fatal(err)
				}
				l.setClock(now.Add(2 * time.Hour))
				if got, err := l.Replay(t.Context(), maintenance.Selection{Status: purchase.StatusDead, Within: time.Hour}, func(int) {}); err != nil ||
					got != 0 {
					t.Errorf("database %s: ended two hours ago, replayed %d, %v; want 0", database, got, err)
				}
				l.exec(`DELETE FROM purchases`)
			}
		}
	}
}

// Every end bears the ledger's time: by an outcome, at the webhook, and for its age.
func TestLedger_DatesEndsByItsOwnClock(t *testing.T) {
	t.Parallel()
	l := newTimedLedger(t)
	now := time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC)
	l.setClock(now)
	l.record(receipt("evt_trial", "cs_trial", purchase.StatusSkipped, purchase.ReasonNoPayment))
	l.record(receipt("evt_rejected", "cs_rejected", purchase.StatusRejected, purchase.ReasonInvalidEmail))
	for _, id := range []string{"cs_delivered", "cs_dead", "cs_old"} {
		l.record(receipt("evt_"+id, id, purchase.StatusPending, ""))
	}
	claims, err := l.Claim(t.Context(), 10)
	if err != nil {
		t.Fatal(err)
	}
	marks := make([]relay.Mark, len(claims))
	for i, c := range claims {
		marks[i] = relay.Mark{ID: c.ID, Generation: 1, Age: time.Second}
	}
	if err := l.MarkPublished(t.Context(), marks); err != nil {
		t.Fatal(err)
	}
	if got := ask[time.Time](l, `SELECT published_at FROM purchases WHERE checkout_session_id = 'cs_old'`); !got.Equal(
		now.Add(-time.Second),
	) {
		t.Errorf("published at %s, want a second before %s", got, now)
	}
	if _, err := l.Settle(t.Context(), []message.Outcome{
		outcome("cs_delivered", 1, purchase.StatusDelivered, "a1", base), outcome("cs_dead", 1, purchase.StatusDead, "a1", now.Add(time.Hour)),
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Expire(t.Context(), []relay.Mark{{ID: "cs_old", Generation: 1}}, 0); err != nil {
		t.Fatal(err)
	}
	if got := ask[int](l, `SELECT count(*) FROM purchases WHERE finished_at = $1`, now); got != 5 {
		t.Errorf("%d of 5 ended at %s", got, now)
	}
}

// errUnheard may have been stored.
var errUnheard = errors.New("no answer from the stream")

// stream is a queue that refuses, or loses its answers, and notes what it stores.
type stream struct {
	answer relay.PublishResult
	stored []relay.Claim
}

func (s *stream) Publish(_ context.Context, batch []relay.Claim) []relay.PublishResult {
	results := make([]relay.PublishResult, len(batch))
	for i, p := range batch {
		if results[i] = s.answer; s.answer.Err == nil {
			s.stored = append(s.stored, p)
		}
	}
	return results
}

func (s *stream) Connected() bool { return true }

func (s *stream) OutcomeLag(context.Context) (time.Duration, error) { return 0, nil }

// JetStream refuses for more than RETRY_MAX_AGE: the purchase has not been sent, and does not expire when it
// is taken at last. Its age counts from the first publish that may have been stored.
func TestRelay_AgeCountsFromWhatMayBeStored(t *testing.T) {
	t.Parallel()
	refused := relay.PublishResult{Err: relay.ErrStreamFull, NotStored: true}
	lost := relay.PublishResult{Err: errUnheard}
	for name, tc := range map[string]struct {
		hours   [3]relay.PublishResult // twenty hours each
		want    time.Duration
		claimed bool // by the webhook
	}{
		"refused":                         {[3]relay.PublishResult{refused, refused, refused}, 0, false},
		"refused, claimed by the webhook": {[3]relay.PublishResult{refused, refused, refused}, 0, true},
		"lost at first":                   {[3]relay.PublishResult{lost, refused, refused}, 60 * time.Hour, false},
		"lost in between":                 {[3]relay.PublishResult{refused, lost, refused}, 40 * time.Hour, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newTimedLedger(t)
			now := base
			clock := func() time.Time { return now }
			queue := &stream{}
			r := relay.New(l.DB, queue, clock, zap.NewNop(), prometheus.NewRegistry())
			l.setClock(now)
			paid := receipt("evt_1", "cs_1", purchase.StatusPending, "")
			paid.Claim = tc.claimed
			if recorded := l.record(paid); tc.claimed {
				r.Enqueue(purchase.Purchase{ID: "cs_1", Livemode: true}, recorded)
			}
			for hour := range 60 {
				queue.answer = tc.hours[hour/20]
				_, err := r.Pass(t.Context(), true)
				if err == nil {
					t.Fatalf("hour %d: taken", hour)
				}
				now = now.Add(time.Hour)
				l.setClock(now)
			}
			queue.answer = relay.PublishResult{Sequence: 1}
			if _, err := r.Pass(t.Context(), true); err != nil || len(queue.stored) != 1 {
				t.Fatalf("stored %d, %v, want 1", len(queue.stored), err)
			}
			if got := now.Sub(queue.stored[0].FirstPublished); got != tc.want {
				t.Errorf("age = %s, want %s", got, tc.want)
			}
		})
	}
}

// Only the claim that began the age can undo it: not one after a lost answer, nor one that has run out and
// been taken by another replica.
func TestUnsent_KeepsTheAgeOfOthers(t *testing.T) {
	t.Parallel()
	l := newTimedLedger(t)
	now := base
	pass := func(d time.Duration) { now = now.Add(d); l.setClock(now) }
	pass(0)
	l.record(receipt("evt_1", "cs_1", purchase.StatusPending, ""))
	claim := func() {
		t.Helper()
		if claims, err := l.Claim(t.Context(), 1); err != nil || len(claims) != 1 {
			t.Fatalf("claims = %v, %v, want one", claims, err)
		}
	}
	unsent := func() (first *time.Time) {
		t.Helper()
		if err := l.ReleaseUnsent(t.Context(), []string{"cs_1"}); err != nil {
			t.Fatal(err)
		}
		return ask[*time.Time](l, `SELECT first_published_at FROM purchases`)
	}
	claim()
	if first := unsent(); first != nil {
		t.Errorf("first published at %s, want never", first)
	}
	pass(time.Minute)
	claim()
	began := now
	pass(relay.ClaimTimeout + time.Second) // it has run out
	claim()                                // another replica
	if first := unsent(); first == nil || !first.Equal(began) {
		t.Errorf("first published at %v, want %s", first, began)
	}
	if n, err := l.Settle(t.Context(), []message.Outcome{outcome("cs_1", 1, purchase.StatusDead, "", now)}); err != nil ||
		len(n) > 0 {
		t.Fatal(n, err)
	}
	if first := unsent(); first == nil {
		t.Error("the age of a purchase that ended was undone")
	}
	if n, err := l.Replay(t.Context(), maintenance.Selection{ID: "cs_1"}, func(int) {}); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	pass(time.Minute)
	claim()
	if first := unsent(); first != nil {
		t.Errorf("replayed and refused: first published at %s, want never", first)
	}
}
