package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
)

// pgbenchRows are the rows that a webhook about a new customer leaves: the event, the profile (an upsert, as ever), the
// purchase with its message. Keys are as long and as random as ours, and so is the rest.
const (
	pgbenchKeys  = "\\set r random(100000000000, 999999999999)\n"
	pgbenchEvent = `
INSERT INTO public.stripe_events (event_id, type, checkout_session_id, livemode, created_at, received_at, disposition)
VALUES ('evt_' || (:r)::text || '000000000000', 'checkout.session.completed', 'cs_live_a1' || (:r)::text || '%[1]s', true, now(), now(), 'processed')
ON CONFLICT (event_id) DO NOTHING`
	pgbenchProfile = `
INSERT INTO public.profiles AS p (livemode, email, stripe_customer_id, stripe_subscription_id,
    last_purchase_at)
VALUES (true, 'buyer.' || (:r)::text || '@example.com', 'cus_' || (:r)::text || '00',
    'sub_' || (:r)::text || '000000000000', now())
ON CONFLICT (livemode, email) DO UPDATE SET stripe_customer_id = excluded.stripe_customer_id,
    stripe_subscription_id = excluded.stripe_subscription_id, last_purchase_at = excluded.last_purchase_at, updated_at = now()
RETURNING id`
	pgbenchPurchase = `
INSERT INTO public.purchases (checkout_session_id, status, profile_id, mode, livemode, amount_minor, currency, purchased_at,
    stripe_customer_id, stripe_subscription_id, envelope, match_keys)
SELECT 'cs_live_a1' || (:r)::text || '%[1]s', 'pending', %[3]s, 'subscription', true, 2999, 'usd', now(), 'cus_' || (:r)::text || '00',
    'sub_' || (:r)::text || '000000000000', '\x%[2]x'::bytea, 127`

	// pgbenchTransaction is how one writes it: each statement is a round trip.
	pgbenchTransaction = pgbenchKeys + "BEGIN;" + pgbenchEvent + ";" + pgbenchProfile + " \\gset" + pgbenchPurchase +
		" ON CONFLICT (checkout_session_id) DO NOTHING;\nCOMMIT;\n"
	// pgbenchStatement is the quickest way to do it one by one: one statement, one round trip.
	pgbenchStatement = pgbenchKeys + "WITH e AS (" + pgbenchEvent + "), p AS (" + pgbenchProfile + ")" + pgbenchPurchase +
		" FROM p ON CONFLICT (checkout_session_id) DO NOTHING;\n"
)

// sampleEnvelope is a message as long as those of order.
func sampleEnvelope(id string) ([]byte, error) {
	amount, c := int64(2999), order()
	return message.EncodeEnvelope(&purchase.Purchase{
		ID: id, Livemode: true, At: time.Now(), AmountMinor: &amount, Currency: "usd",
		Keys: purchase.MatchKeys{
			Email: purchase.HashEmail(*c.Email), Phone: purchase.HashPhone(*c.Phone), ExternalID: purchase.HashExternalID(id),
			TTCLID: c.Metadata["ttclid"], TTP: c.Metadata["ttp"], IP: c.Metadata["client_ip"], UserAgent: c.Metadata["user_agent"],
			PageURL: c.Metadata["page_url"], Referrer: c.Metadata["referrer"],
		},
	})
}

// pgbench is the baseline: Postgres by itself, taking the same rows in one transaction each.
type pgbench struct {
	path, host, database   string
	transaction, statement string // the scripts' files
}

func (b *bench) newPgbench(ctx context.Context, database string) (*pgbench, error) {
	url, err := b.database(ctx, database)
	if err != nil {
		return nil, err
	}
	// The dashboard's figures, which triggers keep, are ours to pay for.
	if err := exec1(ctx, url, "ALTER TABLE public.purchases DISABLE TRIGGER USER"); err != nil {
		return nil, err
	}
	rest := strings.Repeat("0", 44)
	data, err := sampleEnvelope("cs_live_a1" + mark + rest)
	if err != nil {
		return nil, err
	}
	p := &pgbench{
		path: filepath.Join(b.pg.Programs(), "pgbench"), host: b.pg.Dir(), database: database,
		transaction: filepath.Join(b.dir, database+"-transaction.sql"), statement: filepath.Join(b.dir, database+"-statement.sql"),
	}
	return p, errors.Join(os.WriteFile(p.transaction, fmt.Appendf(nil, pgbenchTransaction, rest, data, ":id"), 0o600),
		os.WriteFile(p.statement, fmt.Appendf(nil, pgbenchStatement, rest, data, "p.id"), 0o600))
}

var (
	pgbenchRate   = regexp.MustCompile(`(?m)^tps = ([0-9.]+)`)
	pgbenchNumber = regexp.MustCompile(`(?m)^number of transactions actually processed: (\d+)`)
	pgbenchFailed = regexp.MustCompile(`(?m)^number of failed transactions: 0 `)
)

// committed is what pgbench says: transactions, their rate, and their median in milliseconds.
type committed struct{ transactions, perSecond, median float64 }

// errNothing: the machine stood still for as long as was measured.
var errNothing = errors.New("pgbench committed nothing")

// run measures for a time; where nothing was committed in it, once more, twice as long, up to a minute.
func (p *pgbench) run(ctx context.Context, script string, clients int, duration time.Duration) (c committed, err error) {
	for d := max(duration, time.Second); ; d *= 2 {
		if c, err = p.once(ctx, script, clients, d); !errors.Is(err, errNothing) || d > time.Minute/2 {
			return c, err
		}
	}
}

func (p *pgbench) once(ctx context.Context, script string, clients int, duration time.Duration) (c committed, err error) {
	log := filepath.Join(filepath.Dir(script), "pgbench-log")
	cmd := exec.CommandContext(ctx, p.path, "-n", "-M", "prepared", "-c", strconv.Itoa(clients), "-j", strconv.Itoa(min(clients, 2)), //nolint:gosec // our own arguments
		"-T", strconv.Itoa(int(duration.Round(time.Second).Seconds())), "-l", "--log-prefix="+log, "-f", script, "-h", p.host, "-U", "postgres", p.database)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return c, fmt.Errorf("pgbench: %w\n%.600s", err, out)
	}
	rate, number := pgbenchRate.FindSubmatch(out), pgbenchNumber.FindSubmatch(out)
	if number != nil && string(number[1]) == "0" {
		_, err := logMedian(log) // removes the logs
		return c, errors.Join(errNothing, err)
	}
	if rate == nil || number == nil || !pgbenchFailed.Match(out) {
		return c, fmt.Errorf("pgbench says:\n%s", out)
	}
	if c.perSecond, err = strconv.ParseFloat(string(rate[1]), 64); err != nil {
		return c, err
	}
	if c.transactions, err = strconv.ParseFloat(string(number[1]), 64); err != nil {
		return c, err
	}
	c.median, err = logMedian(log)
	return c, err
}

// logMedian reads and removes pgbench's logs, one a thread; the third field of a line is the transaction's time in microseconds.
func logMedian(prefix string) (milliseconds float64, err error) {
	logs, err := filepath.Glob(prefix + ".*")
	if err != nil {
		return 0, err
	}
	var took series
	for _, log := range logs {
		data, err := os.ReadFile(log) //nolint:gosec // below our own folder
		if err != nil {
			return 0, err
		}
		for line := range strings.Lines(string(data)) {
			fields := strings.Fields(line)
			if len(fields) < 3 {
				return 0, fmt.Errorf("pgbench's log has a line %q", line)
			}
			µs, err := strconv.ParseFloat(fields[2], 64)
			if err != nil {
				return 0, fmt.Errorf("pgbench's log has a line %q", line)
			}
			took = append(took, µs/1000)
		}
		if err := os.Remove(log); err != nil {
			return 0, err
		}
	}
	if len(took) == 0 {
		return 0, errors.New("pgbench kept no log")
	}
	return took.median(), nil
}
