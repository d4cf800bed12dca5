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

// The scripts write the rows that a webhook about a new customer leaves: the event, the profile (an upsert) and the
// purchase with its message. Keys and values are as long and as random as ingest's.
const (
	pgbenchKeys  = "\\set r random(100000000000, 999999999999)\n"
	pgbenchEvent = `
INSERT INTO public.stripe_events
    (event_id, type, checkout_session_id, livemode, created_at, received_at, disposition)
VALUES ('evt_' || (:r)::text || '000000000000', 'checkout.session.completed',
    'cs_live_a1' || (:r)::text || '%[1]s', true, now(), now(), 'processed')
ON CONFLICT (event_id) DO NOTHING`
	pgbenchProfile = `
INSERT INTO public.profiles AS p (livemode, email, stripe_customer_id, stripe_subscription_id, last_purchase_at)
VALUES (true, 'buyer.' || (:r)::text || '@example.com', 'cus_' || (:r)::text || '00',
    'sub_' || (:r)::text || '000000000000', now())
ON CONFLICT (livemode, email) DO UPDATE SET stripe_customer_id = excluded.stripe_customer_id,
    stripe_subscription_id = excluded.stripe_subscription_id, last_purchase_at = excluded.last_purchase_at,
    updated_at = now()
RETURNING id`
	pgbenchPurchase = `
INSERT INTO public.purchases (checkout_session_id, status, profile_id, mode, livemode, amount_minor, currency,
    purchased_at, stripe_customer_id, stripe_subscription_id, envelope, match_keys)
SELECT 'cs_live_a1' || (:r)::text || '%[1]s', 'pending', %[3]s, 'subscription', true, 2999, 'usd',
    now(), 'cus_' || (:r)::text || '00', 'sub_' || (:r)::text || '000000000000', '\x%[2]x'::bytea, 127`
	pgbenchOnce = ` ON CONFLICT (checkout_session_id) DO NOTHING;`

	// pgbenchTransaction is the usual way: each statement is a round trip.
	pgbenchTransaction = pgbenchKeys + "BEGIN;" + pgbenchEvent + ";" + pgbenchProfile + " \\gset" +
		pgbenchPurchase + pgbenchOnce + "\nCOMMIT;\n"
	// pgbenchStatement is the fastest way to write them one by one: one statement, one round trip.
	pgbenchStatement = pgbenchKeys + "WITH e AS (" + pgbenchEvent + "), p AS (" + pgbenchProfile + ")" +
		pgbenchPurchase + " FROM p" + pgbenchOnce + "\n"
)

// samplePurchase has every match key that order has.
func samplePurchase(id string, at time.Time) purchase.Purchase {
	amount, c := int64(2999), order()
	return purchase.Purchase{
		ID: id, Livemode: true, At: at, AmountMinor: &amount, Currency: "usd",
		Keys: purchase.MatchKeys{
			Email: purchase.HashEmail(*c.Email), Phone: purchase.HashPhone(*c.Phone),
			ExternalID: purchase.HashExternalID(id), TTCLID: c.Metadata["ttclid"], TTP: c.Metadata["ttp"],
			IP: c.Metadata["client_ip"], UserAgent: c.Metadata["user_agent"],
			PageURL: c.Metadata["page_url"], Referrer: c.Metadata["referrer"],
		},
	}
}

// sampleEnvelope is a message as long as that of order.
func sampleEnvelope(id string) []byte {
	p := samplePurchase(id, time.Now())
	return must(message.EncodeEnvelope(&p))
}

// pgbench is the baseline: Postgres alone, writing the same rows.
type pgbench struct {
	program, log, host, database string
	transaction, statement       string // files of the scripts
}

func (b *bench) newPgbench(ctx context.Context, database string) *pgbench {
	// The triggers keep the dashboard's figures: a cost of ours, not of the baseline.
	execute(ctx, b.database(ctx, database), "ALTER TABLE public.purchases DISABLE TRIGGER USER")
	script := func(name, format, profile string) (file string) {
		file = filepath.Join(b.dir, database+"-"+name+".sql")
		envelope := sampleEnvelope(padded("cs_live_a1", 44))
		text := fmt.Sprintf(format, strings.Repeat("0", 44), envelope, profile)
		check(os.WriteFile(file, []byte(text), 0o600))
		return file
	}
	return &pgbench{
		program: filepath.Join(b.pg.Programs(), "pgbench"), log: filepath.Join(b.dir, database+"-log"),
		host: b.pg.Dir(), database: database,
		transaction: script("transaction", pgbenchTransaction, ":id"),
		statement:   script("statement", pgbenchStatement, "p.id"),
	}
}

// measurement runs a script for the time of one measurement. usages are measured for each transaction.
func (p *pgbench) measurement(
	b *bench, name, script string, clients int, s *loadSeries, usages ...*usage,
) measurement {
	return measurement{name, func(ctx context.Context) {
		var rate float64
		var latencies series
		// A busy disk can delay the first commit beyond a short measurement.
		for seconds := max(1, int(b.duration.Round(time.Second).Seconds())); len(latencies) == 0; seconds *= 2 {
			if seconds > 60 {
				check(errors.New("pgbench committed nothing"))
			}
			for _, u := range usages {
				u.begin()
			}
			rate, latencies = p.run(ctx, script, clients, seconds)
		}
		for _, u := range usages {
			u.end(len(latencies))
		}
		s.rate, s.median = append(s.rate, rate), append(s.median, latencies.median())
	}}
}

var pgbenchRate = regexp.MustCompile(`(?m)^tps = ([0-9.]+)`)

// run returns the transactions a second and the latency of each transaction in milliseconds.
func (p *pgbench) run(ctx context.Context, script string, clients, seconds int) (rate float64, latencies series) {
	cmd := exec.CommandContext(ctx, p.program, "-n", "-M", "prepared", //nolint:gosec // our own arguments
		"-c", strconv.Itoa(clients), "-j", strconv.Itoa(min(clients, 2)), "-T", strconv.Itoa(seconds),
		"-l", "--log-prefix="+p.log, "-f", script, "-h", p.host, "-U", "postgres", p.database)
	out, err := cmd.CombinedOutput()
	if err != nil {
		check(fmt.Errorf("pgbench: %w\n%.600s", err, out))
	}
	if match := pgbenchRate.FindSubmatch(out); match != nil { // missing without a commit
		rate = must(strconv.ParseFloat(string(match[1]), 64))
	}
	return rate, readLatencies(p.log)
}

// readLatencies reads and removes pgbench's logs, one a thread. The third field of a line is the latency in µs.
func readLatencies(prefix string) (latencies series) {
	for _, log := range must(filepath.Glob(prefix + ".*")) {
		for line := range strings.Lines(string(must(os.ReadFile(log)))) { //nolint:gosec // in our own folder
			var client, transaction int
			var µs float64
			if _, err := fmt.Sscan(line, &client, &transaction, &µs); err != nil { // a failed transaction, too
				check(fmt.Errorf("read pgbench's log: %q: %w", line, err))
			}
			latencies = append(latencies, µs/1000)
		}
		check(os.Remove(log))
	}
	return latencies
}
