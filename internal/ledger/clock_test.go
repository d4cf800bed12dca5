package ledger_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"purchase-relay/internal/ops/maintenance"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/relay"
)

// newTimedLedger returns a ledger whose clock is set by the test.
func newTimedLedger(t *testing.T) *testLedger {
	t.Helper()
	l := newLedger(t)
	// The schema precedes pg_catalog in the search path, so its now() replaces Postgres' own.
	l.Exec(`
		CREATE SCHEMA history;
		CREATE TABLE history.clock (at timestamptz NOT NULL);
		INSERT INTO history.clock VALUES (now());
		CREATE FUNCTION history.now() RETURNS timestamptz LANGUAGE sql STABLE AS 'SELECT at FROM history.clock';
		ALTER TABLE public.purchases
			ALTER created_at SET DEFAULT history.now(), ALTER updated_at SET DEFAULT history.now();
		ALTER TABLE public.profiles
			ALTER created_at SET DEFAULT history.now(), ALTER updated_at SET DEFAULT history.now()`)
	l.Open(l.URL + "&search_path=history,pg_catalog,public")
	l.AllowSlowWrites()
	return l
}

func (l *testLedger) setClock(at time.Time) { l.Exec(`UPDATE history.clock SET at = $1`, at) }

// Postgres dates the end of a purchase, so that a replay finds it whatever the clocks of the worker and this
// process show.
func TestReplay_UsesPostgresClock(t *testing.T) {
	t.Parallel()
	l := newTimedLedger(t)
	dead := func(within time.Duration) maintenance.Selection {
		return maintenance.Selection{Status: purchase.StatusDead, Within: within}
	}
	run := func(postgres, worker, within time.Duration) { // offsets from this process' clock
		now := time.Now().Add(postgres)
		l.setClock(now)
		l.Buy("cs_1")
		l.MustSettle(outcome("cs_1", 1, purchase.StatusDead, "a1", now.Add(worker)))
		l.setClock(now.Add(30 * time.Second))
		counted, err := l.CountReplayable(t.Context(), dead(within))
		if sum, _ := maintenance.Sum(counted); err != nil || sum != 1 {
			t.Errorf("Postgres %s, worker %s, within %s: counted %d, %v, want 1", postgres, worker, within, sum, err)
		}
		if n, err := l.Replay(t.Context(), dead(within), func(int) {}); err != nil || n != 1 {
			t.Errorf("Postgres %s, worker %s, within %s: replayed %d, %v, want 1", postgres, worker, within, n, err)
		}
		l.setClock(now.Add(2 * time.Minute))
		l.MustSettle(outcome("cs_1", 2, purchase.StatusDead, "a2", now))
		l.setClock(now.Add(2 * time.Hour))
		if n, err := l.Replay(t.Context(), dead(time.Hour), func(int) {}); err != nil || n != 0 {
			t.Errorf("Postgres %s: replayed %d that ended two hours ago, %v, want 0", postgres, n, err)
		}
		l.Exec(`DELETE FROM attempts; DELETE FROM purchases; DELETE FROM stripe_events`)
	}
	const minutes, day = 3 * time.Minute, 26 * time.Hour
	for _, postgres := range []time.Duration{0, -minutes, minutes, day} {
		for _, worker := range []time.Duration{0, -minutes, minutes, day, -day} {
			run(postgres, worker, 0)
			run(postgres, worker, time.Minute)
		}
	}
}

// Postgres dates every end: by an outcome, by a webhook and by expiry.
func TestLedger_DatesEndsByPostgresClock(t *testing.T) {
	t.Parallel()
	l := newTimedLedger(t)
	now := time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC)
	l.setClock(now)
	l.MustRecord(receipt("evt_trial", "cs_trial", purchase.StatusSkipped, purchase.ReasonNoPayment))
	l.MustRecord(receipt("evt_rejected", "cs_rejected", purchase.StatusRejected, purchase.ReasonInvalidEmail))
	for _, id := range []string{"cs_delivered", "cs_dead", "cs_old"} {
		l.published(id)
	}
	l.Exec(`UPDATE purchases SET published_at = NULL WHERE checkout_session_id = 'cs_old'`)
	l.mark(relay.Mark{ID: "cs_old", Generation: 1, Age: time.Second})
	published := ask[time.Time](l, `SELECT published_at FROM purchases WHERE checkout_session_id = 'cs_old'`)
	if want := now.Add(-time.Second); !published.Equal(want) {
		t.Errorf("published_at = %s, want %s", published, want)
	}
	l.MustSettle(delivered("cs_delivered"), outcome("cs_dead", 1, purchase.StatusDead, "a1", now.Add(time.Hour)))
	if _, err := l.Expire(t.Context(), []relay.Mark{{ID: "cs_old", Generation: 1}}, 0); err != nil {
		t.Fatal(err)
	}
	if n := ask[int](l, `SELECT count(*) FROM purchases WHERE finished_at = $1`, now); n != 5 {
		t.Errorf("purchases finished at %s = %d, want 5", now, n)
	}
}

// errNoAck is an ambiguous failure: the message may have been stored.
var errNoAck = errors.New("timeout waiting for acknowledgement")

// stream is a Queue that returns one result for every publish and keeps what it stored.
type stream struct {
	result relay.PublishResult
	stored []relay.Claim
}

func (s *stream) Publish(_ context.Context, batch []relay.Claim) []relay.PublishResult {
	results := make([]relay.PublishResult, len(batch))
	for i, p := range batch {
		if results[i] = s.result; s.result.Err == nil {
			s.stored = append(s.stored, p)
		}
	}
	return results
}

func (s *stream) Connected() bool { return true }

func (s *stream) OutcomeLag(context.Context) (time.Duration, error) { return 0, nil }

// A purchase's age starts with the first publish that may have been stored. Publishes that the stream
// rejected, even for longer than RETRY_MAX_AGE, do not count.
func TestRelay_AgeStartsWithPossiblyStoredPublish(t *testing.T) {
	t.Parallel()
	full := relay.PublishResult{Err: relay.ErrStreamFull, NotStored: true}
	ambiguous := relay.PublishResult{Err: errNoAck}
	for name, tc := range map[string]struct {
		results [3]relay.PublishResult // for twenty hours each
		want    time.Duration
		claimed bool // by the webhook
	}{
		"full":                 {[3]relay.PublishResult{full, full, full}, 0, false},
		"full, claimed":        {[3]relay.PublishResult{full, full, full}, 0, true},
		"ambiguous at first":   {[3]relay.PublishResult{ambiguous, full, full}, 60 * time.Hour, false},
		"ambiguous in between": {[3]relay.PublishResult{full, ambiguous, full}, 40 * time.Hour, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newTimedLedger(t)
			now := base
			queue := &stream{}
			r := relay.New(l.DB, queue, func() time.Time { return now }, zap.NewNop(), prometheus.NewRegistry())
			l.setClock(now)
			checkout := paid("evt_1", "cs_1")
			checkout.Claim = tc.claimed
			if recorded := l.MustRecord(checkout); tc.claimed {
				r.Enqueue(purchase.Purchase{ID: "cs_1", Livemode: true}, recorded)
			}
			for hour := range 60 {
				queue.result = tc.results[hour/20]
				if _, err := r.Pass(t.Context(), true); err == nil {
					t.Fatalf("hour %d: Pass succeeded, want an error", hour)
				}
				now = now.Add(time.Hour)
				l.setClock(now)
			}
			queue.result = relay.PublishResult{Sequence: 1}
			if _, err := r.Pass(t.Context(), true); err != nil || len(queue.stored) != 1 {
				t.Fatalf("stored = %d, %v, want 1", len(queue.stored), err)
			}
			if got := now.Sub(queue.stored[0].FirstPublished); got != tc.want {
				t.Errorf("age = %s, want %s", got, tc.want)
			}
		})
	}
}

// Only the claim that started the age resets it: neither a claim after an ambiguous publish nor one that
// expired and was taken by another replica.
func TestReleaseUnsent_KeepsAgeOfEarlierClaim(t *testing.T) {
	t.Parallel()
	l := newTimedLedger(t)
	now := base
	advance := func(d time.Duration) { now = now.Add(d); l.setClock(now) }
	claim := func() {
		t.Helper()
		if claims, err := l.Claim(t.Context(), 1); err != nil || len(claims) != 1 {
			t.Fatalf("Claim = %v, %v, want one", claims, err)
		}
	}
	check := func(want *time.Time) { // first publish after ReleaseUnsent
		t.Helper()
		if err := l.ReleaseUnsent(t.Context(), []string{"cs_1"}); err != nil {
			t.Fatal(err)
		}
		got := ask[*time.Time](l, `SELECT first_published_at FROM purchases`)
		if (got == nil) != (want == nil) || got != nil && !got.Equal(*want) {
			t.Errorf("first_published_at = %v, want %v", got, want)
		}
	}
	advance(0)
	l.Buy("cs_1")
	claim()
	check(nil)
	advance(time.Minute)
	claim()
	first := now
	advance(relay.ClaimTimeout + time.Second)
	claim() // another replica, after the claim expired
	check(&first)
	l.End("cs_1", purchase.StatusDead)
	check(&first)
	l.replay(maintenance.Selection{ID: "cs_1"}, 1)
	advance(time.Minute)
	claim()
	check(nil)
}
