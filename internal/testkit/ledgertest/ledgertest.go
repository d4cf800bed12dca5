// Package ledgertest provides a migrated, empty ledger for tests, with its reports and maintenance jobs, and
// receipts and outcomes to fill it. A package that uses it needs pgtest's TestMain.
package ledgertest

import (
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/ledger"
	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/maintenance"
	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/testkit/pglocal/pgtest"
	"purchase-relay/internal/testkit/wait"
)

// Ledger is a ledger with a plain connection to its database. Its methods fail the test on an error.
type Ledger struct {
	*ledger.DB
	*report.Reader
	*maintenance.Jobs

	T    *testing.T
	URL  string
	Conn *pgx.Conn
}

// New returns a migrated, empty ledger.
func New(t *testing.T) *Ledger {
	t.Helper()
	url := pgtest.Migrated(t, func(url string) error {
		_, err := ledger.Migrate(t.Context(), secret.String(url))
		return err
	})
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	l := &Ledger{T: t, URL: url, Conn: conn}
	l.Open(url)
	return l
}

// Open opens the ledger again at a URL with other settings. It waits for a connection: on a busy machine that
// may take longer than the product waits.
func (l *Ledger) Open(url string) {
	l.T.Helper()
	db, err := ledger.Open(l.T.Context(), secret.String(url))
	if err != nil {
		l.T.Fatal(err)
	}
	l.T.Cleanup(db.Close)
	connected := func() bool { return db.Ping(l.T.Context()) == nil }
	if !wait.Until(l.T.Context(), time.Minute, 10*time.Millisecond, connected) {
		l.T.Fatal("timed out waiting for a connection to the ledger")
	}
	l.DB, l.Reader, l.Jobs = db, report.New(db), maintenance.New(db)
}

// Ask returns the one value that a query selects.
func Ask[T any](l *Ledger, sql string, args ...any) (value T) {
	l.T.Helper()
	if err := l.Conn.QueryRow(l.T.Context(), sql, args...).Scan(&value); err != nil {
		l.T.Fatalf("%s: %v", sql, err)
	}
	return value
}

// Exec runs a statement.
func (l *Ledger) Exec(sql string, args ...any) {
	l.T.Helper()
	if _, err := l.Conn.Exec(l.T.Context(), sql, args...); err != nil {
		l.T.Fatalf("%s: %v", sql, err)
	}
}

// Base returns the time of Receipt's purchases.
func Base() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }

// Receipt returns what intake records of a checkout's event.
func Receipt(event, session string, status purchase.Status, reason purchase.Reason) purchase.Receipt {
	amount := int64(2999)
	r := purchase.Receipt{
		Event:    purchase.Event{ID: event, Type: purchase.TypeCompleted, Created: Base(), Livemode: true},
		Received: Base().Add(time.Second),
		Purchase: purchase.Purchase{
			ID: session, Status: status, Reason: reason, Mode: "subscription", Livemode: true, AmountMinor: &amount,
			Currency: "usd", Customer: "cus_1", Subscription: "sub_1",
		},
	}
	if status == purchase.StatusPending || status == purchase.StatusSkipped {
		r.Purchase.At, r.Purchase.Email = Base(), "buyer@example.com"
		r.Purchase.Keys = purchase.MatchKeys{Email: purchase.HashEmail("buyer@example.com")}
	}
	return r
}

const oneDay = 24 * time.Hour

// Trial returns the receipt of the checkout of the trial sub_n.
func Trial(n int) purchase.Receipt {
	session := fmt.Sprintf("cs_%d", n)
	r := Receipt(fmt.Sprintf("evt_trial_%d", n), session, purchase.StatusSkipped, purchase.ReasonNoPayment)
	p := &r.Purchase
	p.Kind, p.Trial, p.Subscription = purchase.KindTrial, true, fmt.Sprintf("sub_%d", n)
	p.AmountMinor, p.Email = new(int64(0)), fmt.Sprintf("buyer%d@example.com", n)
	p.Keys = purchase.MatchKeys{Email: purchase.HashEmail(p.Email), TTCLID: "E.C.P.abc"}
	p.ClickExpires, p.PeriodStart = Base().Add(7*oneDay), p.At
	return r
}

// Invoice returns the receipt of the n-th paid invoice of a trial, from 1 on, one a month.
func Invoice(trial, n int) purchase.Receipt {
	start := Base()
	if n > 1 {
		start = Base().Add(7*oneDay).AddDate(0, n-2, 0)
	}
	paid := Base().Add(7*oneDay+time.Hour).AddDate(0, n-1, 0)
	event := fmt.Sprintf("evt_invoice_%d_%d", trial, n)
	return purchase.Receipt{
		Event:    purchase.Event{ID: event, Type: purchase.TypeInvoicePaid, Created: paid, Livemode: true},
		Received: paid,
		Purchase: purchase.Purchase{
			ID: fmt.Sprintf("in_%d_%d", trial, n), Kind: purchase.KindFirstPayment, Status: purchase.StatusPending,
			Mode: "subscription", Livemode: true, At: paid, Subscription: fmt.Sprintf("sub_%d", trial),
			AmountMinor: new(int64(2999)), Currency: "usd", PeriodStart: start,
		},
	}
}

// MustRecord records a receipt.
func (l *Ledger) MustRecord(r purchase.Receipt) purchase.Recorded {
	l.T.Helper()
	recorded, err := l.Record(l.T.Context(), r)
	if err != nil {
		l.T.Fatal(err)
	}
	return recorded
}

// Must records a receipt and checks its disposition.
func (l *Ledger) Must(r purchase.Receipt, want purchase.Disposition) purchase.Recorded {
	l.T.Helper()
	recorded := l.MustRecord(r)
	if recorded.Disposition != want {
		l.T.Fatalf("%s: %s, want %s", r.Event.ID, recorded.Disposition, want)
	}
	return recorded
}

// Buy records a paid checkout.
func (l *Ledger) Buy(id string) {
	l.T.Helper()
	l.Must(Receipt("evt_"+id, id, purchase.StatusPending, ""), purchase.Processed)
}

// Outcome returns what a worker reports about a purchase; attempt is "" without a request to TikTok.
func Outcome(
	id string, generation int, result purchase.Status, attempt string, at time.Time,
) message.Outcome {
	o := message.Outcome{EventID: id, Generation: generation, Result: result, At: at}
	if attempt != "" {
		code := map[purchase.Status]int{
			purchase.StatusDelivered: 0, purchase.StatusRetrying: 50000, purchase.StatusDead: 40002,
		}[result]
		o.Attempt = &message.Attempt{
			ID: attempt, At: at, Class: purchase.ClassRetry, Code: &code, Message: "said " + attempt,
			RequestID: "req-" + attempt,
		}
		if result == purchase.StatusDelivered {
			o.Attempt.Class, o.Attempt.Message = purchase.ClassDelivered, "OK"
		}
	}
	if result == purchase.StatusDead {
		o.Reason = purchase.ReasonRefused
	}
	return o
}

// MustSettle records outcomes.
func (l *Ledger) MustSettle(outcomes ...message.Outcome) {
	l.T.Helper()
	if _, err := l.Settle(l.T.Context(), outcomes); err != nil {
		l.T.Fatal(err)
	}
}

// End records the outcome of a purchase's first generation.
func (l *Ledger) End(id string, status purchase.Status) {
	l.T.Helper()
	l.MustSettle(Outcome(id, 1, status, "a_"+id, Base()))
}

// Dump returns every row of every table as text.
func (l *Ledger) Dump() string {
	l.T.Helper()
	const tables = `SELECT array_agg(relname::text ORDER BY relname) FROM pg_class
		WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')`
	var text strings.Builder
	for _, table := range Ask[[]string](l, tables) {
		text.WriteString(Ask[string](l, `SELECT COALESCE(string_agg(t::text, E'\n'), '') FROM public.`+table+` t`))
	}
	return text.String()
}

// Holds reports whether a dump contains a text, in plain or, as in messages, in hexadecimal.
func Holds(dump, text string) bool {
	return strings.Contains(dump, text) || strings.Contains(dump, hex.EncodeToString([]byte(text)))
}

// Skips returns a function that returns the rows that the ledger skipped as unreadable since the last call,
// as "operation id", sorted, each once.
func (l *Ledger) Skips() (take func() []string) {
	var mu sync.Mutex
	var rows []string
	l.OnSkip(func(r ledger.Skipped) {
		mu.Lock()
		defer mu.Unlock()
		rows = append(rows, r.Where+" "+r.ID)
	})
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		slices.Sort(rows)
		list := slices.Compact(rows)
		rows = nil
		return list
	}
}
