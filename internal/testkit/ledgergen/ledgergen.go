// Package ledgergen fills a ledger with the purchases of years, for measurements, tests and screenshots: all
// statuses, reasons and currencies, quiet nights, returning customers, repeated events, failed attempts, and
// an outage of TikTok five days ago. It writes them in a few statements, a million in about a minute.
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

// Year is the usual span.
const Year = 365 * 24 * time.Hour

// Fill adds n purchases of span to an empty, migrated ledger, the newest paid just now, and updates the
// planner's statistics. The three newest are being retried. One in a hundred of the newest tenth is pending,
// published or retrying, with a message that a worker accepts.
func Fill(ctx context.Context, conn *pgx.Conn, n int, span time.Duration) error {
	keys := purchase.MatchKeys{
		Email: purchase.HashEmail("buyer@example.com"), ExternalID: purchase.HashExternalID(idPlaceholder),
		UserAgent: "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15",
		PageURL:   "https://shop.example/checkout", IP: "203.0.113.7",
		FirstName: purchase.HashExternalID("first"), LastName: purchase.HashExternalID("last"),
	}
	plain, err := template(keys)
	if err != nil {
		return err
	}
	plainMask := keys.Mask()
	keys.Phone, keys.TTCLID = purchase.HashPhone("+12133734253"), "E.C.P.CvQBtqmX5aKjG8yWAg"
	keys.Zip, keys.City, keys.Country = purchase.HashZip("62704"), "springfield", "us"
	keys.TTP, keys.Referrer = "2Yg0kBqZSvyMxOvBWjTFhBLe1sR", "https://www.tiktok.com/"
	keys.PageURL += "?ttclid=" + keys.TTCLID
	clicked, err := template(keys)
	if err != nil {
		return err
	}
	for _, step := range []struct {
		name, sql string
		args      []any
	}{
		{"settings", sqlSettings, nil},
		{"plan", sqlPlan, []any{n, span.Seconds()}},
		{"profiles", sqlProfiles, nil},
		{"purchases", sqlPurchases, []any{plain, plainMask, clicked, keys.Mask()}},
		{"events", sqlEvents, nil},
		{"attempts", sqlAttempts, nil},
		{"settings", `RESET synchronous_commit`, nil}, // the connection is the caller's
		{"settings", `RESET work_mem`, nil},
		{"plan", `DROP TABLE plan`, nil},
		{"statistics", `VACUUM (ANALYZE) purchases, profiles, stripe_events, attempts`, nil},
	} {
		if _, err := conn.Exec(ctx, step.sql, step.args...); err != nil {
			return fmt.Errorf("fill ledger: %s: %w", step.name, err)
		}
	}
	return nil
}

// The values that sqlPurchases replaces in a message.
const (
	idPlaceholder     = "cs_live_PLACE"
	timePlaceholder   = 1_111_111_111
	amountPlaceholder = 2_222_222
)

// template returns a message with match keys and the placeholders.
func template(keys purchase.MatchKeys) (string, error) {
	encoded, err := message.EncodeEnvelope(&purchase.Purchase{
		ID: idPlaceholder, Livemode: true, At: time.Unix(timePlaceholder, 0),
		AmountMinor: new(int64(amountPlaceholder)), Currency: "usd", Keys: keys,
	})
	if err != nil {
		return "", err
	}
	text := string(encoded)
	for _, value := range []string{idPlaceholder, fmt.Sprint(timePlaceholder), fmt.Sprint(amountPlaceholder)} {
		if n := strings.Count(text, value); n != 1 {
			return "", fmt.Errorf("message has %q %d times, want once", value, n)
		}
	}
	return text, nil
}

const (
	// A crash loses nothing that the next start does not generate again.
	sqlSettings = `
SELECT set_config('synchronous_commit', 'off', false), set_config('work_mem', '256MB', false), setseed(0.42)`

	// The random choices of each purchase; n is its rank by age, the oldest first. Three quarters of the
	// purchases between 0 and 7 o'clock move ten hours back. The outage ends five days ago at 17 o'clock.
	sqlPlan = `
CREATE TEMPORARY TABLE plan AS
WITH dice AS (
    SELECT n, substr(md5(n::text || random()), 1, 24) AS k, random() AS fate, random() AS coin,
        random() AS taste, random() AS price, random() AS speed, random() AS click, random() AS sleep,
        now() - make_interval(secs => ($1::int - n) * ($2::float8 / $1) + 3600 * (random() - 0.5) + 1800)
            AS moment
    FROM generate_series(1, $1::int) AS n
), days AS (
    SELECT dice.*, date_trunc('day', now()) - interval '5 days' + interval '17 hours' AS healed,
        CASE WHEN n > $1 - 3 THEN now() - make_interval(secs => 40 + 50 * ($1 - n))
            WHEN extract(hour FROM moment) < 7 AND sleep < 0.75 THEN moment - interval '10 hours'
            ELSE moment END AS paid
    FROM dice
), statuses AS (
    SELECT days.*, paid BETWEEN healed - interval '4 hours' AND healed AS outage,
        CASE WHEN n > $1 - 3 THEN 'retrying'
            WHEN n > 0.9 * $1 AND fate > 0.99 AND coin < 0.3 THEN 'pending'
            WHEN n > 0.9 * $1 AND fate > 0.99 AND coin < 0.7 THEN 'published'
            WHEN n > 0.9 * $1 AND fate > 0.99 THEN 'retrying'
            WHEN fate < 0.95 THEN 'delivered'
            WHEN fate < 0.965 THEN 'skipped'
            WHEN fate < 0.975 THEN 'dead'
            WHEN fate < 0.978 THEN 'rejected'
            WHEN fate < 0.988 THEN 'payment_failed'
            WHEN n > 0.95 * $1 THEN 'awaiting_payment'
            ELSE 'delivered' END AS status
    FROM days
), reasons AS (
    SELECT statuses.*, CASE status
        WHEN 'skipped' THEN
            CASE WHEN coin < 0.7 THEN 'no_payment' WHEN coin < 0.9 THEN 'not_configured'
                ELSE 'test_purchase' END
        WHEN 'dead' THEN
            CASE WHEN coin < 0.8 THEN 'refused' WHEN coin < 0.97 THEN 'expired' ELSE 'crash' END
        WHEN 'rejected' THEN 'invalid_email'
        ELSE '' END AS reason
    FROM statuses
)
SELECT n, k, paid, speed, coin, click < 0.58 AS clicked, CASE WHEN outage THEN healed END AS healed,
    CASE WHEN reason = 'no_payment' AND sleep < 0.8 THEN 'trial'
        WHEN reason <> 'no_payment' AND sleep < 0.03
            AND status NOT IN ('rejected', 'awaiting_payment', 'payment_failed') THEN 'first_payment'
        ELSE 'checkout' END AS kind,
    'cs_live_a1' || k || substr(md5(k), 1, 32) AS id, status, reason, reason <> 'test_purchase' AS livemode,
    status NOT IN ('rejected', 'awaiting_payment', 'payment_failed') AS has_profile,
    status IN ('pending', 'published', 'retrying', 'delivered', 'dead')
        OR reason IN ('not_configured', 'test_purchase') AS has_message,
    -- four of five customers come once
    CASE WHEN taste < 0.2 THEN 1 + (price * $1 / 5)::int ELSE $1 / 5 + n END AS customer,
    CASE WHEN taste < 0.6 THEN 'usd' WHEN taste < 0.8 THEN 'eur' WHEN taste < 0.9 THEN 'gbp'
        WHEN taste < 0.94 THEN 'jpy' WHEN taste < 0.97 THEN 'brl' WHEN taste < 0.99 THEN 'cad'
        ELSE 'aud' END AS currency,
    (ARRAY[999, 1999, 2999, 4999, 9900, 29900])[1 + floor(price * price * 6)::int] AS amount,
    CASE WHEN status = 'dead' THEN 2
        WHEN status = 'delivered' AND outage THEN 3 + (coin * 4)::int
        WHEN status = 'delivered' AND coin > 0.97 THEN 2
        WHEN status IN ('delivered', 'retrying') THEN 1
        ELSE 0 END AS attempts
FROM reasons`

	sqlProfiles = `
INSERT INTO profiles (livemode, email, stripe_customer_id, stripe_subscription_id, last_purchase_at,
    first_paid_at, created_at, updated_at)
SELECT livemode, 'buyer.' || customer || '@example.com', 'cus_' || substr(md5(customer::text), 1, 14),
    max('sub_' || k), max(paid), date_trunc('second', min(paid) FILTER (WHERE reason <> 'no_payment')),
    min(paid), max(paid)
FROM plan WHERE has_profile GROUP BY livemode, customer ORDER BY min(n)`

	sqlPurchases = `
INSERT INTO purchases (checkout_session_id, status, reason, profile_id, mode, livemode, amount_minor,
    currency, purchased_at, stripe_customer_id, stripe_subscription_id, envelope, match_keys,
    first_published_at, published_at, stream_sequence, attempts, last_attempt_at, last_class, last_code,
    last_error, tiktok_request_id, finished_at, created_at, updated_at, sent_minor, kind, first_sale,
    attempt_id, attempt_generation, attempt_took_ms)
SELECT p.id, p.status, p.reason, f.id, 'subscription', p.livemode, p.amount, p.currency,
    CASE WHEN p.has_profile OR p.status = 'rejected' THEN date_trunc('second', p.paid) END,
    'cus_' || substr(md5(p.customer::text), 1, 14), 'sub_' || p.k,
    CASE WHEN p.has_message THEN convert_to(replace(replace(replace(
        CASE WHEN p.clicked THEN $3 ELSE $1 END, 'cs_live_PLACE', p.id),
        '1111111111', extract(epoch FROM p.paid)::bigint::text), '2222222', p.amount::text), 'UTF8') END,
    CASE WHEN p.has_message AND p.clicked THEN $4::smallint WHEN p.has_message THEN $2::smallint END,
    t.published, t.published, CASE WHEN t.published IS NOT NULL THEN p.n END, p.attempts, t.attempted,
    CASE WHEN p.status = 'delivered' THEN 'delivered' WHEN p.reason = 'refused' THEN 'refused'
        WHEN p.status IN ('dead', 'retrying') THEN 'retry' END,
    CASE WHEN p.status = 'delivered' THEN 0 WHEN p.reason = 'refused' THEN 40002
        WHEN p.status = 'dead' THEN 50000 WHEN p.status = 'retrying' THEN 503 END,
    CASE WHEN p.reason = 'refused' THEN 'user.ip: Not a valid string'
        WHEN p.status = 'dead' THEN 'Internal service error'
        WHEN p.status = 'retrying' THEN 'Service Unavailable' END,
    CASE WHEN p.status = 'delivered' THEN to_char(p.paid, 'YYYYMMDDHH24MISS') || upper(p.k) END,
    CASE WHEN p.status IN ('delivered', 'dead') THEN t.attempted + interval '60 ms'
        WHEN p.status IN ('skipped', 'rejected') THEN p.paid + interval '20 ms' END,
    p.paid, COALESCE(t.attempted, p.paid), CASE WHEN p.status = 'delivered' THEN p.amount END, p.kind,
    p.has_profile AND p.reason <> 'no_payment' AND 1 = row_number() OVER (
        PARTITION BY p.livemode, p.customer, p.has_profile AND p.reason <> 'no_payment' ORDER BY p.paid, p.n),
    CASE WHEN only_attempt THEN substr(md5(p.id), 1, 20) END, CASE WHEN only_attempt THEN 1 END,
    CASE WHEN only_attempt THEN 40 + (200 * p.speed)::int END
FROM plan p
LEFT JOIN profiles f
    ON p.has_profile AND f.livemode = p.livemode AND f.email = 'buyer.' || p.customer || '@example.com'
CROSS JOIN LATERAL (SELECT
    CASE WHEN p.status IN ('published', 'retrying', 'delivered', 'dead') THEN p.paid + interval '5 ms' END
        AS published,
    CASE WHEN p.attempts > 2 THEN p.healed + make_interval(secs => 90 * p.speed)
        WHEN p.attempts > 0 THEN p.paid + interval '40 ms'
            + make_interval(secs => CASE WHEN p.coin > 0.97 THEN 900 ELSE 0.3 END * p.speed) END
        AS attempted, p.status = 'delivered' AND p.attempts = 1 AS only_attempt) t
ORDER BY p.n`

	// Some events are followed by another one about the same change, as Stripe may create two.
	sqlEvents = `
INSERT INTO stripe_events (event_id, type, checkout_session_id, livemode, created_at, received_at,
    disposition)
SELECT 'evt_' || k, CASE status WHEN 'payment_failed' THEN 'checkout.session.async_payment_failed'
    ELSE 'checkout.session.completed' END, id, livemode, date_trunc('second', paid), paid,
    CASE WHEN status IN ('rejected', 'awaiting_payment') THEN status ELSE 'processed' END
FROM plan
UNION ALL
SELECT 'evt_' || substr(md5(k || 'again'), 1, 24), 'checkout.session.completed', id, true,
    date_trunc('second', paid), paid + interval '90 s', 'duplicate'
FROM plan WHERE speed < 0.02`

	sqlAttempts = `
INSERT INTO attempts (checkout_session_id, attempt_id, generation, at, took_ms, class, code, message,
    request_id)
SELECT p.checkout_session_id, substr(md5(p.checkout_session_id || a), 1, 20), 1,
    p.last_attempt_at - (p.attempts - a) * (p.last_attempt_at - p.published_at) / p.attempts,
    40 + (random() * 200)::int,
    CASE WHEN a = p.attempts THEN p.last_class ELSE 'retry' END,
    CASE WHEN a = p.attempts THEN p.last_code ELSE 50000 END,
    CASE WHEN a < p.attempts THEN 'Internal service error' WHEN p.status = 'delivered' THEN 'OK'
        ELSE p.last_error END,
    to_char(p.last_attempt_at, 'YYYYMMDDHH24MISS') || upper(substr(md5(p.checkout_session_id || a), 1, 24))
FROM purchases p CROSS JOIN LATERAL generate_series(1, p.attempts) AS a
WHERE p.attempt_id IS NULL
ORDER BY p.created_at`
)
