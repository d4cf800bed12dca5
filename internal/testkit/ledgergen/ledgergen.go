// Package ledgergen fills a ledger with made-up purchases as years of business leave them, for measurements,
// tests and pictures: statuses, reasons, currencies, amounts, quiet nights, returning customers, repeated
// events, failed attempts, and an outage of TikTok five days ago. It writes them in a few statements, a
// million in about a minute.
package ledgergen

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
)

// Span is the age of Fill's oldest purchase.
const Span = 365 * 24 * time.Hour

// Fill adds n purchases of a year to an empty, migrated ledger.
func Fill(ctx context.Context, conn *pgx.Conn, n int) error { return FillSpan(ctx, conn, n, Span) }

// FillSpan adds n purchases of span to an empty, migrated ledger, the newest of them paid just now, and
// gathers the planner's statistics. The three newest are being retried. One in a hundred of the newest tenth
// is pending, published or retrying; its message is one that a worker accepts.
func FillSpan(ctx context.Context, conn *pgx.Conn, n int, span time.Duration) error {
	keys := purchase.MatchKeys{
		Email: purchase.HashEmail("buyer@example.com"), ExternalID: purchase.HashExternalID(placeID), IP: "203.0.113.7",
		UserAgent: "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15",
		PageURL:   "https://shop.example/checkout",
		FirstName: purchase.HashExternalID("first"), LastName: purchase.HashExternalID("last"),
	}
	plain, plainMask, err := template(keys)
	if err != nil {
		return err
	}
	keys.Phone, keys.TTCLID = purchase.HashPhone("+12133734253"), "E.C.P.CvQBtqmX5aKjG8yWAg"
	keys.Zip, keys.City, keys.Country = purchase.HashZip("62704"), "springfield", "us"
	keys.TTP, keys.Referrer = "2Yg0kBqZSvyMxOvBWjTFhBLe1sR", "https://www.tiktok.com/"
	keys.PageURL += "?ttclid=" + keys.TTCLID
	clicked, clickedMask, err := template(keys)
	if err != nil {
		return err
	}
	for _, step := range []struct {
		what, sql string
		args      []any
	}{
		// What is lost by a crash is made anew. The connection is the caller's: it gets its settings back.
		{"settings", `SELECT set_config('synchronous_commit', 'off', false), set_config('work_mem', '256MB', false), setseed(0.42)`, nil},
		{"plan", sqlPlan, []any{n, span.Seconds()}},
		{"profiles", sqlProfiles, nil},
		{"purchases", sqlPurchases, []any{plain, plainMask, clicked, clickedMask}},
		{"events", sqlEvents, nil},
		{"attempts", sqlAttempts, nil},
		{"settings", `RESET synchronous_commit`, nil},
		{"settings", `RESET work_mem`, nil},
		{"plan", `DROP TABLE plan`, nil},
		{"statistics", `VACUUM (ANALYZE) public.purchases, public.profiles, public.stripe_events, public.attempts`, nil},
	} {
		if _, err := conn.Exec(ctx, step.sql, step.args...); err != nil {
			return fmt.Errorf("fill the ledger: %s: %w", step.what, err)
		}
	}
	return nil
}

// What differs from purchase to purchase in a message.
const (
	placeID  = "cs_live_PLACE"
	placeAt  = 1_111_111_111
	placeSum = 2_222_222
)

// template returns a message with these keys, and their mask.
func template(keys purchase.MatchKeys) (data string, mask int16, err error) {
	sum := int64(placeSum)
	message, err := message.EncodeEnvelope(&purchase.Purchase{
		ID: placeID, Livemode: true, At: time.Unix(placeAt, 0), AmountMinor: &sum, Currency: "usd", Keys: keys,
	})
	if err != nil {
		return "", 0, err
	}
	data = string(message)
	for _, place := range []string{placeID, fmt.Sprint(placeAt), fmt.Sprint(placeSum)} {
		if strings.Count(data, place) != 1 {
			return "", 0, fmt.Errorf("ledgergen: %d times %q in a message, want 1", strings.Count(data, place), place)
		}
	}
	return data, keys.Mask(), nil
}

const (
	// The dice of each purchase, thrown once. n is its age's rank, the oldest first. Of what would be paid
	// between 0 and 7 o'clock, three quarters are paid ten hours before. An outage ends five days ago at 17
	// o'clock.
	sqlPlan = `
CREATE TEMPORARY TABLE plan AS
WITH dice AS (
    SELECT n, substr(md5(n::text || random()), 1, 24) AS k, random() AS fate, random() AS coin, random() AS taste,
        random() AS price, random() AS speed, random() AS click, random() AS sleep,
        now() - make_interval(secs => ($1::int - n) * ($2::float8 / $1) + 3600 * (random() - 0.5) + 1800) AS moment
    FROM generate_series(1, $1::int) AS n
), days AS (
    SELECT dice.*, CASE WHEN n > $1 - 3 THEN now() - make_interval(secs => 40 + 50 * ($1 - n))
        WHEN extract(hour FROM moment) < 7 AND sleep < 0.75 THEN moment - interval '10 hours' ELSE moment END AS paid,
        date_trunc('day', now()) - interval '5 days' + interval '17 hours' AS healed
    FROM dice
), fates AS (
    SELECT days.*, paid BETWEEN healed - interval '4 hours' AND healed AS outage, CASE
        WHEN n > $1 - 3 THEN 'retrying'
        WHEN n > 0.9 * $1 AND fate > 0.99 THEN CASE WHEN coin < 0.3 THEN 'pending' WHEN coin < 0.7 THEN 'published' ELSE 'retrying' END
        WHEN fate < 0.95 THEN 'delivered' WHEN fate < 0.965 THEN 'skipped' WHEN fate < 0.975 THEN 'dead' WHEN fate < 0.978 THEN 'rejected'
        WHEN fate < 0.988 THEN 'payment_failed' WHEN n > 0.95 * $1 THEN 'awaiting_payment' ELSE 'delivered' END AS status
    FROM days
)
SELECT n, k, paid, speed, coin, click < 0.58 AS clicked, CASE WHEN outage THEN healed END AS healed,
    'cs_live_a1' || k || substr(md5(k), 1, 32) AS id, status,
    -- four of five customers come once
    CASE WHEN taste < 0.2 THEN 1 + (price * $1 / 5)::int ELSE $1 / 5 + n END AS customer,
    CASE WHEN status = 'skipped' THEN CASE WHEN coin < 0.7 THEN 'no_payment' WHEN coin < 0.9 THEN 'not_configured' ELSE 'test_purchase' END
         WHEN status = 'dead' THEN CASE WHEN coin < 0.8 THEN 'refused' WHEN coin < 0.97 THEN 'expired' ELSE 'crash' END
         WHEN status = 'rejected' THEN 'invalid_email' ELSE '' END AS reason,
    CASE WHEN taste < 0.6 THEN 'usd' WHEN taste < 0.8 THEN 'eur' WHEN taste < 0.9 THEN 'gbp' WHEN taste < 0.94 THEN 'jpy'
         WHEN taste < 0.97 THEN 'brl' WHEN taste < 0.99 THEN 'cad' ELSE 'aud' END AS currency,
    (ARRAY[999, 1999, 2999, 4999, 9900, 29900])[1 + floor(price * price * 6)::int] AS amount,
    CASE WHEN status = 'dead' THEN 2 WHEN status = 'delivered' AND outage THEN 3 + (coin * 4)::int
        WHEN status = 'delivered' AND coin > 0.97 THEN 2 WHEN status IN ('delivered', 'retrying') THEN 1 ELSE 0 END AS attempts
FROM fates`

	sqlProfiles = `
INSERT INTO public.profiles (livemode, email, stripe_customer_id, stripe_subscription_id, last_purchase_at,
    created_at, updated_at)
SELECT reason <> 'test_purchase', 'buyer.' || customer || '@example.com',
    'cus_' || substr(md5(customer::text), 1, 14), max('sub_' || k), max(paid), min(paid), max(paid)
FROM plan WHERE status NOT IN ('rejected', 'awaiting_payment', 'payment_failed') GROUP BY 1, customer
    ORDER BY min(n)`

	sqlPurchases = `
INSERT INTO public.purchases (checkout_session_id, status, reason, profile_id, mode, livemode, amount_minor, currency, purchased_at,
    stripe_customer_id, stripe_subscription_id, envelope, match_keys, first_published_at, published_at, stream_sequence, attempts, last_attempt_at, last_class,
    last_code, last_error, tiktok_request_id, finished_at, created_at, updated_at, sent_minor)
SELECT p.id, p.status, p.reason, f.id, 'subscription', p.reason <> 'test_purchase', p.amount, p.currency,
    CASE WHEN p.status NOT IN ('awaiting_payment', 'payment_failed') THEN date_trunc('second', p.paid) END,
    'cus_' || substr(md5(p.customer::text), 1, 14), 'sub_' || p.k,
    CASE WHEN p.status IN ('pending', 'published', 'retrying', 'delivered', 'dead') OR p.reason IN ('not_configured', 'test_purchase') THEN convert_to(
        replace(replace(replace(CASE WHEN p.clicked THEN $3 ELSE $1 END, 'cs_live_PLACE', p.id),
            '1111111111', extract(epoch FROM p.paid)::bigint::text), '2222222', p.amount::text), 'UTF8') END,
    CASE WHEN p.status IN ('pending', 'published', 'retrying', 'delivered', 'dead') OR p.reason IN ('not_configured', 'test_purchase')
        THEN CASE WHEN p.clicked THEN $4::smallint ELSE $2::smallint END END,
    t.published, t.published, CASE WHEN t.published IS NOT NULL THEN p.n END, p.attempts, t.attempted,
    CASE p.status WHEN 'delivered' THEN 'delivered' WHEN 'dead' THEN CASE p.reason WHEN 'refused' THEN 'refused' ELSE 'retry' END WHEN 'retrying' THEN 'retry' END,
    CASE p.status WHEN 'delivered' THEN 0 WHEN 'dead' THEN CASE p.reason WHEN 'refused' THEN 40002 ELSE 50000 END WHEN 'retrying' THEN 503 END,
    CASE p.status WHEN 'dead' THEN CASE p.reason WHEN 'refused' THEN 'user.ip: Not a valid string' ELSE 'Internal service error' END WHEN 'retrying' THEN 'Service Unavailable' END,
    CASE WHEN p.status = 'delivered' THEN to_char(p.paid, 'YYYYMMDDHH24MISS') || upper(p.k) END,
    CASE WHEN p.status IN ('delivered', 'dead') THEN t.attempted + interval '60 ms' WHEN p.status IN ('skipped', 'rejected') THEN p.paid + interval '20 ms' END,
    p.paid, COALESCE(t.attempted, p.paid), CASE WHEN p.status = 'delivered' THEN p.amount END
FROM plan p
LEFT JOIN public.profiles f ON f.livemode = (p.reason <> 'test_purchase')
    AND f.email = 'buyer.' || p.customer || '@example.com'
    AND p.status NOT IN ('rejected', 'awaiting_payment', 'payment_failed')
CROSS JOIN LATERAL (SELECT
    CASE WHEN p.status IN ('published', 'retrying', 'delivered', 'dead') THEN p.paid + interval '5 ms' END AS published,
    CASE WHEN p.attempts > 2 THEN p.healed + make_interval(secs => 90 * p.speed)
        WHEN p.attempts > 0 THEN p.paid + interval '40 ms'
            + make_interval(secs => CASE WHEN p.coin > 0.97 THEN 900 ELSE 0.3 END * p.speed) END AS attempted) t
ORDER BY p.n`

	// Where the money came later, or Stripe sent an event again under another id, there are two.
	sqlEvents = `
INSERT INTO public.stripe_events (event_id, type, checkout_session_id, livemode, created_at, received_at, disposition)
SELECT 'evt_' || k, CASE status WHEN 'payment_failed' THEN 'checkout.session.async_payment_failed' ELSE 'checkout.session.completed' END, id,
    reason <> 'test_purchase', date_trunc('second', paid), paid,
    CASE status WHEN 'rejected' THEN 'rejected' WHEN 'awaiting_payment' THEN 'awaiting_payment' ELSE 'processed' END
FROM plan
UNION ALL
SELECT 'evt_' || substr(md5(k || 'again'), 1, 24), 'checkout.session.completed', id, true, date_trunc('second', paid), paid + interval '90 s', 'duplicate'
FROM plan WHERE speed < 0.02`

	sqlAttempts = `
INSERT INTO public.attempts (checkout_session_id, attempt_id, generation, at, took_ms, class, code, message, request_id)
SELECT p.checkout_session_id, substr(md5(p.checkout_session_id || a), 1, 20), 1,
    p.last_attempt_at - (p.attempts - a) * CASE WHEN p.attempts > 2
        THEN (p.last_attempt_at - p.created_at) / p.attempts ELSE interval '1 s' END, 40 + (random() * 200)::int,
    CASE WHEN a = p.attempts THEN p.last_class ELSE 'retry' END, CASE WHEN a = p.attempts THEN p.last_code ELSE 50000 END,
    CASE WHEN a < p.attempts THEN 'Internal service error' WHEN p.status = 'delivered' THEN 'OK' ELSE p.last_error END,
    to_char(p.last_attempt_at, 'YYYYMMDDHH24MISS') || upper(substr(md5(p.checkout_session_id || a), 1, 24))
FROM public.purchases p CROSS JOIN LATERAL generate_series(1, p.attempts) AS a
ORDER BY p.created_at`
)
