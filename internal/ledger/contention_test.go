package ledger_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/maintenance"
	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/relay"
)

// Every statement that writes several rows runs concurrently on the same rows, in random orders, without a
// deadlock. Postgres counts deadlocks.
func TestWrites_NeverDeadlock(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	// New sessions detect a deadlock quickly.
	l.Exec(`DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET deadlock_timeout = 20',
		current_database()); END $$`)
	const n = 120
	all := make([]string, n)
	// The physical order of the rows differs from their key order.
	order := rand.New(rand.NewPCG(1, 2)).Perm(n)
	for _, i := range order {
		all[i] = fmt.Sprintf("cs_%03d", i)
		l.Buy(all[i])
	}
	for i := 1; i <= 20; i++ {
		l.Must(trialOf(1000+i), purchase.Processed)
	}
	shuffled := func(r *rand.Rand) []string {
		ids := slices.Clone(all)
		r.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
		return ids[:n*3/4]
	}
	marks := func(ids []string) (list []relay.Mark) {
		for _, id := range ids {
			list = append(list, relay.Mark{ID: id, Generation: 1 << 20, Sequence: 1})
		}
		return list
	}
	outcomes := func(ids []string, status purchase.Status, round int) (list []message.Outcome) {
		for _, id := range ids {
			list = append(list, outcome(id, 1<<20, status, fmt.Sprintf("a_%d", round), base))
		}
		return list
	}
	ctx := t.Context()
	old := maintenance.Pruning{
		Before:   time.Now().Add(-maintenance.MinPruneAge),
		Attempts: time.Now().Add(-maintenance.MinAttemptAge),
	}
	prune := func(*rand.Rand, int) error {
		_, err := l.Prune(ctx, old, func(maintenance.Pruned) {})
		return err
	}
	writers := map[string]func(r *rand.Rand, round int) error{
		"released":  func(r *rand.Rand, _ int) error { return l.Release(ctx, shuffled(r)) },
		"released2": func(r *rand.Rand, _ int) error { return l.Release(ctx, shuffled(r)) },
		"published": func(r *rand.Rand, _ int) error { return l.MarkPublished(ctx, marks(shuffled(r))) },
		"swept": func(r *rand.Rand, _ int) error {
			ids := shuffled(r)
			return l.RecordSweep(ctx, marks(ids[:20]), ids[20:40], ids[40:])
		},
		"expired": func(r *rand.Rand, _ int) error {
			_, err := l.Expire(ctx, marks(shuffled(r)), 0)
			return err
		},
		"settled": func(r *rand.Rand, round int) error {
			status := []purchase.Status{purchase.StatusRetrying, purchase.StatusDead}[round%2]
			_, err := l.Settle(ctx, outcomes(shuffled(r), status, round))
			return err
		},
		"claimed": func(*rand.Rand, int) error { _, err := l.Claim(ctx, 50); return err },
		"overdue": func(*rand.Rand, int) error { _, err := l.Overdue(ctx, 0, 50); return err },
		"replayed": func(r *rand.Rand, _ int) error {
			_, err := l.Replay(ctx, maintenance.Selection{IDs: shuffled(r)}, func(int) {})
			return err
		},
		"replayed all": func(*rand.Rand, int) error {
			_, err := l.Replay(ctx, maintenance.Selection{Status: purchase.StatusDead}, func(int) {})
			return err
		},
		"recorded": func(r *rand.Rand, round int) error {
			var group sync.WaitGroup
			errs := make([]error, 20)
			for i, id := range shuffled(r)[:len(errs)] {
				group.Go(func() {
					_, errs[i] = l.Record(ctx, paid(fmt.Sprintf("evt_%d_%d", round, i), id))
				})
			}
			group.Wait()
			return errors.Join(errs...)
		},
		"invoices": func(r *rand.Rand, round int) error {
			_, err := l.Record(ctx, invoiceOf(1001+r.IntN(20), 1+round%5))
			return err
		},
		"converted": func(*rand.Rand, int) error { _, err := l.ConvertHeld(ctx, 0); return err },
		"folded":    func(*rand.Rand, int) error { _, err := l.Fold(ctx); return err },
		"dropped":   func(*rand.Rand, int) error { _, err := l.DropEnvelopes(ctx, 0, 50); return err },
		"forgotten": func(r *rand.Rand, _ int) error {
			_, err := l.Forget(ctx, fmt.Sprintf("buyer%d@example.com", 1001+r.IntN(20)))
			return err
		},
		"unlinked": func(r *rand.Rand, _ int) error {
			email := fmt.Sprintf("buyer%d@example.com", 1001+r.IntN(20))
			person, err := l.Forget(ctx, email)
			if err == nil {
				_, _, err = l.Unlink(ctx, email, person)
			}
			if errors.Is(err, report.ErrNotFound) {
				return nil
			}
			return err
		},
		"pruned":  prune,
		"pruned2": prune,
	}
	rounds := 25
	if testing.Short() {
		rounds = 8
	}
	var running sync.WaitGroup
	for name, write := range writers {
		running.Go(func() {
			r := rand.New(rand.NewPCG(uint64(len(name)), uint64(name[0])))
			for round := range rounds {
				err := write(r, round)
				if pgErr := new(pgconn.PgError); errors.As(err, &pgErr) && pgErr.Code == "40P01" {
					t.Errorf("%s: deadlock: %v", name, err)
				} else if err != nil && !errors.Is(err, report.ErrNotFound) {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
	running.Wait()
	l.Close() // sessions report their statistics when they end
	for ask[int](l, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
		AND pid <> pg_backend_pid()`) > 0 {
		if t.Context().Err() != nil {
			t.Fatal("sessions remain")
		}
	}
	l.Exec(`SELECT pg_stat_clear_snapshot()`)
	if deadlocks := ask[int](l, `SELECT deadlocks FROM pg_stat_database
		WHERE datname = current_database()`); deadlocks != 0 {
		t.Errorf("deadlocks = %d, want 0", deadlocks)
	}
}
