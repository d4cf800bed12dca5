package ledger_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/ledger"
	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/testkit/faultproxy"
)

// openThroughProxy opens the ledger through a fault proxy.
func (l *testLedger) openThroughProxy() (*faultproxy.Proxy, *ledger.DB) {
	l.T.Helper()
	config, err := pgx.ParseConfig(l.URL)
	if err != nil {
		l.T.Fatal(err)
	}
	proxy := faultproxy.ForTest(l.T, fmt.Sprintf("%s/.s.PGSQL.%d", config.Host, config.Port))
	url := fmt.Sprintf("postgres://%s@%s/%s?sslmode=disable", config.User, proxy.Addr(), config.Database)
	db, err := ledger.Open(l.T.Context(), secret.String(url))
	if err != nil {
		l.T.Fatal(err)
	}
	l.T.Cleanup(db.Close)
	return proxy, db
}

// A firewall silently drops the pool's idle connections. The next webhook is recorded within its time,
// although all connections are half-open.
func TestRecord_SurvivesHalfOpenConnections(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	proxy, db := l.openThroughProxy()
	// The rest may take longer than a webhook's 5 s on a busy machine, so the pings' share is checked apart.
	config := db.Pool().Config()
	if pings := time.Duration(config.MinConns) * config.PingTimeout; pings <= 0 || pings > 2*time.Second {
		t.Errorf("pings of idle connections may take %s, want at most 2s", pings)
	}
	db.AllowSlowWrites()
	if err := db.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	for idle := int32(0); ; {
		stat := db.Pool().Stat()
		if stat.IdleConns() >= config.MinConns && stat.IdleConns() == idle && stat.TotalConns() == idle {
			break
		}
		idle = stat.IdleConns()
		<-time.After(1100 * time.Millisecond) // pgxpool pings connections that were idle for more than a second
	}
	proxy.Set(faultproxy.Fault{DropRequests: true, DropResponses: true})
	proxy.Set(faultproxy.Fault{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := db.Record(ctx, paid("evt_1", "cs_1")); err != nil {
		t.Errorf("Record = %v, want success", err)
	}
}

// The machine of an ingest loses power during a transaction. Postgres frees the locks soon, not only when the
// system's keepalive ends after two hours.
func TestSettle_AfterVanishedClient(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.published("cs_1")
	proxy, db := l.openThroughProxy()
	held := proxy.HoldAnswersAfter([]byte("cs_1")) // the row is locked, the response never arrives
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := db.Settle(ctx, []message.Outcome{outcome("cs_1", 1, purchase.StatusRetrying, "a1", base)})
		ended <- err
	}()
	<-held
	for ask[int](l, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
		AND state = 'idle in transaction'`) == 0 {
		if t.Context().Err() != nil {
			t.Fatal("no transaction holds the lock")
		}
	}
	proxy.Set(faultproxy.Fault{DropRequests: true, DropResponses: true})
	cancel()
	if err := <-ended; err == nil {
		t.Fatal("Settle of the vanished client succeeded, want an error")
	}
	ctx, cancel = context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := l.Settle(ctx, []message.Outcome{delivered("cs_1")}); err != nil {
		t.Errorf("Settle = %v, want success within a minute", err)
	}
}

// The leader's connection is half-open. Hold returns, although its caller sets no deadline, and takes the
// lead again once Postgres has ended the old connection.
func TestLeadership_HalfOpenConnection(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	proxy, db := l.openThroughProxy()
	leader := db.NotifierLeadership()
	t.Cleanup(leader.Release)
	hold(t, leader, true, connectTimeout)
	proxy.Set(faultproxy.Fault{DropRequests: true, DropResponses: true})
	proxy.Set(faultproxy.Fault{})
	terminateLeader(l)
	const pingTimeout = 5 * time.Second // of the half-open connection
	hold(t, leader, true, pingTimeout+connectTimeout)
}
