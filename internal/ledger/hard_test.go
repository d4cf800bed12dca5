package ledger_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/ledger"
	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/maintenance"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/relay"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/testkit/faultproxy"
)

// published records a purchase and hands it to the queue.
func (l *testLedger) published(id string) {
	l.t.Helper()
	l.record(receipt("evt_"+id, id, purchase.StatusPending, ""))
	claims, err := l.Claim(l.t.Context(), 1)
	if err != nil || len(claims) != 1 || claims[0].ID != id {
		l.t.Fatalf("%+v, %v", claims, err)
	}
	if err := l.MarkPublished(l.t.Context(), []relay.Mark{{ID: id, Generation: 1, Sequence: 1}}); err != nil {
		l.t.Fatal(err)
	}
}

// A replica is frozen between its look at a purchase that is too old and its word about it. Meanwhile another one gave the purchase
// up, and an operator replayed it: that one must not be buried with the old one.
func TestExpireIsOfOneGeneration(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.published("cs_1")
	old := []relay.Mark{{ID: "cs_1", Generation: 1}}
	if _, err := l.Expire(t.Context(), old, 0); err != nil {
		t.Fatal(err)
	}
	if n, err := l.Replay(t.Context(), maintenance.Selection{ID: "cs_1"}, func(int) {}); n != 1 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	if _, err := l.Claim(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if err := l.MarkPublished(t.Context(), []relay.Mark{{ID: "cs_1", Generation: 2, Sequence: 2}}); err != nil {
		t.Fatal(err)
	}
	if got, err := l.Expire(t.Context(), old, 0); err != nil || len(got) > 0 {
		t.Fatalf("expired %v, %v, want none", got, err)
	}
	if got := ask[string](l, `SELECT status || ' ' || generation FROM purchases`); got != "published 2" {
		t.Errorf("the replayed purchase is %s", got)
	}
}

// A worker whose clock is a day ahead tells of an attempt, and dies with the queue: the purchase is asked for after the grace, not
// after a day. The same for an outcome that brought no attempt's time at all, before the mark of the publish.
func TestOverdueByTheLedgersOwnClock(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.published("cs_ahead")
	l.record(receipt("evt_unmarked", "cs_unmarked", purchase.StatusPending, ""))
	if _, err := l.Claim(t.Context(), 1); err != nil { // its mark never comes
		t.Fatal(err)
	}
	bare := outcome("cs_unmarked", 1, purchase.StatusRetrying, "", base)
	bare.Attempt = nil
	if _, err := l.Settle(t.Context(), []message.Outcome{bare, outcome("cs_ahead", 1, purchase.StatusRetrying, "a1", time.Now().Add(24*time.Hour))}); err != nil {
		t.Fatal(err)
	}
	if ids := l.overdueIDs(time.Minute); len(ids) > 0 {
		t.Errorf("overdue at once: %v", ids)
	}
	if _, err := l.conn.Exec(t.Context(), `UPDATE purchases SET updated_at = now() - interval '2 minutes', published_at = published_at - interval '2 minutes', claimed_until = NULL`); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"cs_ahead:1", "cs_unmarked:1"}, sorted(l.overdueIDs(time.Minute))); diff != "" {
		t.Error(diff)
	}
}

// through opens the ledger through a proxy.
func (l *testLedger) through() (*faultproxy.Proxy, *ledger.DB) {
	l.t.Helper()
	config, err := pgx.ParseConfig(l.url)
	if err != nil {
		l.t.Fatal(err)
	}
	proxy := faultproxy.ForTest(l.t, fmt.Sprintf("%s/.s.PGSQL.%d", config.Host, config.Port))
	db, err := ledger.Open(l.t.Context(), secret.String(fmt.Sprintf("postgres://%s@%s/%s?sslmode=disable", config.User, proxy.Addr(), config.Database)))
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(db.Close)
	return proxy, db
}

// The route to Postgres swallowed everything for a while and told nobody (a firewall that forgot its connections): a webhook that
// comes afterwards is taken within its time, and not told to come again until each dead connection has been paid for.
func TestDeadConnectionsAreFoundOut(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	proxy, db := l.through()
	if err := db.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	open := func() int {
		return ask[int](l, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'purchase-relay' AND state = 'idle'`)
	}
	for open() < 4 { // two of the other pool, two of this one
		if t.Context().Err() != nil {
			t.Fatal("the pool is not warm")
		}
	}
	idle := time.NewTimer(1100 * time.Millisecond) // a connection that was used a moment ago is not asked whether it lives
	<-idle.C
	proxy.Drop(true, true)
	proxy.Drop(false, false)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second) // a webhook's time
	defer cancel()
	if _, err := db.Record(ctx, receipt("evt_1", "cs_1", purchase.StatusPending, "")); err != nil {
		t.Error(err)
	}
}

// An ingest vanishes (its machine loses its power) in the middle of a transaction, and Postgres is not told: what it had locked is
// free again soon, and not when the system's keepalive ends two hours later.
func TestVanishedClientHoldsNothing(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.published("cs_1")
	proxy, db := l.through()
	held := proxy.HoldAnswersAfter([]byte("cs_1")) // locked, and the answer never comes
	vanishing, vanish := context.WithCancel(t.Context())
	defer vanish()
	gone := make(chan error, 1)
	go func() {
		_, err := db.Settle(vanishing, []message.Outcome{outcome("cs_1", 1, purchase.StatusRetrying, "a1", base)})
		gone <- err
	}()
	<-held
	for ask[int](l, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'`) == 0 {
		if t.Context().Err() != nil {
			t.Fatal("nothing is locked")
		}
	}
	proxy.Drop(true, true)
	vanish()
	if err := <-gone; err == nil {
		t.Fatal("it was heard")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := l.Settle(ctx, []message.Outcome{outcome("cs_1", 1, purchase.StatusDelivered, "a2", base)}); err != nil {
		t.Errorf("a minute later: %v", err)
	}
}

// A connection that takes no leave (pgx waits fifteen seconds for one that is dead) kept a program from stopping in its time: exit
// status 1 with nothing lost. Here it takes none at all.
func TestCloseLeavesAStuckConnection(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	db, err := ledger.Open(t.Context(), secret.String(l.url))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := db.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	db.Close()
	conn.Release()
	db.Close() // and once more
}
