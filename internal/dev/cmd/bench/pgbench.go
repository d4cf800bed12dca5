package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"purchase-relay/internal/contract"
	"purchase-relay/internal/purchase"
)

// pgbenchScript writes the rows that a webhook about a new customer leaves, in one transaction and one round trip, which is
// the quickest way to do it one by one: the event, the profile (an upsert, as ever), the purchase with its message. Keys are
// as long and as random as ours, and so is the rest.
const pgbenchScript = `\set r random(1, 9000000000000000000)
WITH k AS MATERIALIZED (SELECT substr(md5(:r::text), 1, 12) AS k),
e AS (
    INSERT INTO public.stripe_events (event_id, type, checkout_session_id, livemode, created_at, received_at, disposition)
    SELECT 'evt_' || k || '000000000000', 'checkout.session.completed', 'cs_live_a1' || k || '%[1]s', true, now(), now(), 'processed' FROM k
), p AS (
    INSERT INTO public.profiles AS p (email, stripe_customer_id, stripe_subscription_id, last_purchase_at)
    SELECT 'buyer.' || k || '@example.com', 'cus_' || k || '00', 'sub_' || k || '000000000000', now() FROM k
    ON CONFLICT (email) DO UPDATE SET stripe_customer_id = excluded.stripe_customer_id,
        stripe_subscription_id = excluded.stripe_subscription_id, last_purchase_at = excluded.last_purchase_at, updated_at = now()
    RETURNING id
)
INSERT INTO public.purchases (checkout_session_id, status, profile_id, mode, livemode, amount_minor, currency, purchased_at,
    stripe_customer_id, stripe_subscription_id, envelope)
SELECT 'cs_live_a1' || k || '%[1]s', 'pending', p.id, 'subscription', true, 2999, 'usd', now(), 'cus_' || k || '00', 'sub_' || k || '000000000000',
    '\x%[2]x'::bytea
FROM k, p;
`

// sampleEnvelope is a message as long as those of order.
func sampleEnvelope(id string) ([]byte, error) {
	amount, c := int64(2999), order(mark)
	return contract.EncodeEnvelope(&purchase.Purchase{
		ID: id, Livemode: true, At: time.Now(), AmountMinor: &amount, Currency: "usd",
		Keys: purchase.MatchKeys{
			Email: purchase.HashEmail(*c.Email), Phone: purchase.HashPhone(*c.Phone), ExternalID: purchase.HashExternalID(id),
			TTCLID: c.Metadata["ttclid"], TTP: c.Metadata["ttp"], IP: c.Metadata["client_ip"], UserAgent: c.Metadata["user_agent"],
			PageURL: c.Metadata["page_url"], Referrer: c.Metadata["referrer"],
		},
	})
}

// pgbench is the baseline: Postgres by itself, taking the same rows from so many clients.
type pgbench struct {
	path, script, host, database string
}

func (b *bench) newPgbench(ctx context.Context, database string) (*pgbench, error) {
	path, err := b.pg.Tool("pgbench")
	if err != nil {
		return nil, err
	}
	if _, err := b.database(ctx, database); err != nil {
		return nil, err
	}
	message, err := sampleEnvelope("cs_live_a1" + mark + strings.Repeat("0", 44))
	if err != nil {
		return nil, err
	}
	script := filepath.Join(b.dir, database+".sql")
	text := fmt.Sprintf(pgbenchScript, strings.Repeat("0", 44), message)
	if err := os.WriteFile(script, []byte(text), 0o600); err != nil {
		return nil, err
	}
	return &pgbench{path: path, script: script, host: b.pg.Dir(), database: database}, nil
}

var (
	pgbenchRate    = regexp.MustCompile(`(?m)^tps = ([0-9.]+)`)
	pgbenchLatency = regexp.MustCompile(`(?m)^latency average = ([0-9.]+) ms`)
	pgbenchFailed  = regexp.MustCompile(`(?m)^number of failed transactions: 0 `)
)

// run returns transactions per second and the mean latency in milliseconds.
func (p *pgbench) run(ctx context.Context, clients int, duration time.Duration) (perSecond, latency float64, err error) {
	threads := min(clients, 2)
	cmd := exec.CommandContext(ctx, p.path, "-n", "-M", "prepared", "-c", strconv.Itoa(clients), "-j", strconv.Itoa(threads), //nolint:gosec // our own arguments
		"-T", strconv.Itoa(max(1, int(duration.Round(time.Second).Seconds()))), "-f", p.script, "-h", p.host, "-U", "postgres", p.database)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return 0, 0, fmt.Errorf("pgbench: %w\n%.600s", err, out)
	}
	rate, mean := pgbenchRate.FindSubmatch(out), pgbenchLatency.FindSubmatch(out)
	if rate == nil || mean == nil || !pgbenchFailed.Match(out) {
		return 0, 0, fmt.Errorf("pgbench says:\n%s", out)
	}
	if perSecond, err = strconv.ParseFloat(string(rate[1]), 64); err != nil {
		return 0, 0, err
	}
	latency, err = strconv.ParseFloat(string(mean[1]), 64)
	return perSecond, latency, err
}
