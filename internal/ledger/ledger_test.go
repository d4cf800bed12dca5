package ledger_test

import (
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"purchase-relay/internal/ledger"
	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/testkit/ledgertest"
	"purchase-relay/internal/testkit/pglocal/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Run(m)) }

// testLedger adds this package's helpers to a migrated, empty ledger.
type testLedger struct{ *ledgertest.Ledger }

func newLedger(t *testing.T) *testLedger {
	t.Helper()
	l := &testLedger{ledgertest.New(t)}
	l.AllowSlowWrites()
	return l
}

func ask[T any](l *testLedger, sql string, args ...any) (value T) {
	l.T.Helper()
	return ledgertest.Ask[T](l.Ledger, sql, args...)
}

var (
	base      = ledgertest.Base()
	receipt   = ledgertest.Receipt
	trialOf   = ledgertest.Trial
	invoiceOf = ledgertest.Invoice
	outcome   = ledgertest.Outcome
)

// paid returns the receipt of a paid checkout.
func paid(event, session string) purchase.Receipt {
	return receipt(event, session, purchase.StatusPending, "")
}

// delivered returns the outcome of the first generation's delivery.
func delivered(id string) message.Outcome {
	return outcome(id, 1, purchase.StatusDelivered, "a1", base)
}

func TestOpen_ErrorHasNoPassword(t *testing.T) {
	t.Parallel()
	_, err := ledger.Open(t.Context(), "postgres://user:hunter2@host:notaport/db")
	if !errors.Is(err, ledger.ErrURL) || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("Open = %v, want ErrURL", err)
	}
}

func TestCheckURL(t *testing.T) {
	t.Parallel()
	for url, valid := range map[secret.String]bool{
		"postgres://user:hunter2@host:5432/db?sslmode=disable": true,
		"postgresql://host/db?pool_max_conns=20":               true,
		"host=/run/postgresql dbname=db":                       true,
		"host=h password=a://b":                                true,
		"postgres://host/db?pool_max_conns=many":               false,
		"postgres://host:port/db":                              false,
		"mysql://user:hunter2@host/db":                         false,
		"mysql://user:hunter2@host/db?charset=utf8":            false,
		"http://host/db?a=b":                                   false,
		"localhost":                                            false,
	} {
		err := ledger.CheckURL(url)
		if (err == nil) != valid || err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("CheckURL(%s) = %v, want valid %t", url.Reveal(), err, valid)
		}
	}
}

// pgx waits 15 s for a connection that does not close, longer than the shutdown may take.
func TestClose_AbandonsConnectionInUse(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	conn, err := l.Pool().Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	conn.Release()
	l.Close() // idempotent
}

func TestMigrate_ConcurrentlyAndRepeatedly(t *testing.T) {
	t.Parallel()
	url := secret.String(pgtest.Database(t))
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			if _, err := ledger.Migrate(t.Context(), url); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if n, err := ledger.Migrate(t.Context(), url); err != nil || n != 0 {
		t.Errorf("Migrate again = %d, %v, want 0", n, err)
	}
}

// An older binary can use a newer schema, unless schema_compat requires a newer binary.
func TestCheckSchema_NewerSchema(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.Exec(`INSERT INTO goose_db_version (version_id, is_applied) VALUES (900, true)`)
	if n, err := ledger.Migrate(t.Context(), secret.String(l.URL)); err != nil || n != 0 {
		t.Errorf("Migrate = %d, %v, want 0", n, err)
	}
	if err := l.CheckSchema(t.Context()); err != nil {
		t.Errorf("CheckSchema = %v, want none", err)
	}
	l.Exec(`UPDATE schema_compat SET oldest_binary = 900`)
	if err := l.CheckSchema(t.Context()); !errors.Is(err, ledger.ErrTooOld) {
		t.Errorf("CheckSchema = %v, want ErrTooOld", err)
	}
}

func TestCheckSchema_EmptyDatabase(t *testing.T) {
	t.Parallel()
	db, err := ledger.Open(t.Context(), secret.String(pgtest.Database(t)))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.CheckSchema(t.Context()); err == nil || errors.Is(err, ledger.ErrTooOld) {
		t.Errorf("CheckSchema = %v, want an error other than ErrTooOld", err)
	}
}

// There is one leader. Another process becomes the leader when it releases the lock or loses its connection.
func TestLeadership_HasOneHolder(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	other, err := ledger.Open(t.Context(), secret.String(l.URL))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(other.Close)
	first, second := l.NotifierLeadership(), other.NotifierLeadership()
	t.Cleanup(first.Release)
	t.Cleanup(second.Release)
	check := func(leader *ledger.Leadership, want bool) {
		t.Helper()
		hold(t, leader, want, connectTimeout)
	}
	check(first, true)
	check(first, true)
	check(second, false)
	began := time.Now()
	first.Release()
	if time.Since(began) < time.Second {
		check(second, true)
	} else { // the unlock timed out, so the lock ends a moment after the connection
		hold(t, second, true, 0)
	}
	check(first, false)
	terminateLeader(l)
	check(first, true)
	if got, err := second.Hold(t.Context()); err == nil || got {
		t.Errorf("Hold of the former leader = %t, %v, want false and an error", got, err)
	}
	check(second, false)
	terminateLeader(l)
	check(first, true) // at once: a restart of Postgres must not cost an interval
	check(second, false)
}

// connectTimeout is the shortest of the timeouts in Hold.
const connectTimeout = 3 * time.Second

// hold checks the result of Hold. It repeats a call that took timeout or longer, as the callers do: on a busy
// machine each query may exceed its own timeout.
func hold(t *testing.T, leader *ledger.Leadership, want bool, timeout time.Duration) {
	t.Helper()
	for {
		began := time.Now()
		got, err := leader.Hold(t.Context())
		if err == nil && got == want {
			return
		}
		if took := time.Since(began); took < timeout {
			t.Fatalf("Hold = %t, %v after %s, want %t", got, err, took, want)
		}
	}
}

// terminateLeader ends the connection of the notifier's leader.
func terminateLeader(l *testLedger) {
	l.T.Helper()
	if n := ask[int](l, `SELECT count(pg_terminate_backend(pid, 60000))
		FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE datname = current_database()
		AND locktype = 'advisory' AND objid = 7103 AND granted`); n != 1 {
		l.T.Fatalf("terminated %d holders, want 1", n)
	}
}
