-- The ledger: every purchase, from the webhook to TikTok's request_id. Tables come in the order of the data
-- flow, followed by indexes, the rollup and storage settings.

-- +goose Up

-- The migration level of the oldest binary that may use this schema. Older ones do not start. A migration
-- that is incompatible with older binaries raises the number.
CREATE TABLE schema_compat (
    only_row      boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    oldest_binary integer NOT NULL
);
INSERT INTO schema_compat (oldest_binary) VALUES (1);

-- Stripe events about purchases, for de-duplication. Kept until `ingest prune`, at least 35 days: Stripe can
-- resend an event for 30.
CREATE TABLE stripe_events (
    event_id            text PRIMARY KEY, -- for a second session: <id>.<session>
    type                text NOT NULL,
    checkout_session_id text COLLATE "C" NOT NULL,
    livemode            boolean NOT NULL,
    created_at          timestamptz,      -- by Stripe's clock
    received_at         timestamptz NOT NULL,
    disposition         text NOT NULL,    -- the webhook's response
    caught_up           boolean NOT NULL DEFAULT false, -- found by a backfill, not received by webhook
    account             text              -- connected account; null: the endpoint's own
);

-- Customers. A test purchase never creates or changes a live profile.
CREATE TABLE profiles (
    id                     uuid PRIMARY KEY DEFAULT gen_random_uuid(), -- random: its hash goes to TikTok
    livemode               boolean NOT NULL,
    email                  text NOT NULL,        -- trimmed, lower case
    stripe_customer_id     text,
    stripe_subscription_id text,
    last_purchase_at       timestamptz NOT NULL, -- time of the purchase that has the Stripe ids
    first_paid_at          timestamptz,          -- time of the first sale; null: only trials and free orders
    created_at             timestamptz NOT NULL DEFAULT now(),
    updated_at             timestamptz NOT NULL DEFAULT now(),
    UNIQUE (livemode, email)
);

CREATE TABLE purchases (
    -- from Stripe
    -- TikTok's event_id; the invoice id of a first payment. Collation C: searches find an id's beginning
    checkout_session_id    text COLLATE "C" PRIMARY KEY,
    status                 text NOT NULL CHECK (status IN ('awaiting_payment', 'payment_failed', 'rejected',
                               'pending', 'published', 'retrying', 'delivered', 'dead', 'skipped')),
    reason                 text NOT NULL DEFAULT '', -- of rejected, dead or skipped
    profile_id             uuid REFERENCES profiles,
    kind                   text NOT NULL DEFAULT 'checkout'
                               CHECK (kind IN ('checkout', 'trial', 'first_payment')),
    trial_session_id       text COLLATE "C",  -- the trial of a first payment
    first_sale             boolean NOT NULL DEFAULT false, -- the profile's earliest sale: a new buyer
    mode                   text NOT NULL,
    livemode               boolean NOT NULL,
    amount_minor           bigint,            -- in Stripe's smallest unit
    currency               text,              -- lower case
    purchased_at           timestamptz,       -- time of the paying event; null while unpaid
    stripe_customer_id     text,
    stripe_subscription_id text,
    stripe_payment_id      text,              -- payment intent, or a subscription's invoice
    -- the message and its publication
    envelope               bytea,             -- the message, encoded once; null if never sent
    match_keys             smallint,          -- bit mask, see below; null if never sent
    generation             integer NOT NULL DEFAULT 1, -- raised by a replay or a sweep
    claimed_until          timestamptz,       -- a relay is publishing the row until then
    first_published_at     timestamptz,       -- reset by a replay, or if nothing was stored
    published_at           timestamptz,
    stream_sequence        bigint,
    swept_at               timestamptz,       -- when the sweeper last checked the stream for the message
    -- TikTok's responses
    attempts               integer NOT NULL DEFAULT 0, -- number of recorded attempts
    last_attempt_at        timestamptz,
    next_attempt_at        timestamptz,       -- while retrying, by the worker's clock; null if unknown
    last_class             text,
    last_code              integer,           -- TikTok's code, else the HTTP status
    last_error             text,
    tiktok_request_id      text,
    sent_minor             bigint,            -- delivered value; null if sent without one (unlisted
                                              -- currency, unknown amount)
    sent_page              text,              -- TIKTOK_PAGE_URL, if that was sent
    attempt_id             text,              -- the only attempt, if it is kept here: see attempts
    attempt_generation     integer,
    attempt_took_ms        bigint,
    finished_at            timestamptz,
    created_at             timestamptz NOT NULL DEFAULT now(),
    updated_at             timestamptz NOT NULL DEFAULT now()
);

-- match_keys is the mask of the match keys in the envelope or, once delivered, of those that TikTok received:
--      1 e-mail        8 ttp             64 page
--      2 phone        16 ip             128 name
--      4 ttclid       32 user agent     256 address finer than a country
-- 512 marks a click id that was older than CLICK_WINDOW at the purchase. E-mail and ttclid are strong keys.

-- One row per subscription that began without a payment: its trial and its earliest invoice with money. The
-- first to arrive is held until the other arrives. Together they make the first payment.
CREATE TABLE trials (
    subscription_id     text PRIMARY KEY,
    livemode            boolean NOT NULL,
    -- the trial's checkout
    checkout_session_id text COLLATE "C",         -- null: not received yet
    started_at          timestamptz,
    reason              text NOT NULL DEFAULT '', -- why the first payment is not sent: no_consent, internal
    profile_id          uuid,
    envelope            bytea,                    -- with the first payment's match keys; null if never sent,
                                                  -- and after the first payment
    click_expires_at    timestamptz,              -- when the click id exceeds CLICK_WINDOW
    -- the invoice
    invoice_id          text,
    invoice_at          timestamptz,              -- when it was paid
    amount_minor        bigint,
    currency            text,
    period_start        timestamptz,              -- of the usage period before the invoice
    stripe_customer_id  text,
    held_at             timestamptz,
    -- the result
    purchase_id         text COLLATE "C"          -- the first payment
);

-- One row per request to TikTok about a purchase. A purchase that TikTok accepted on the first request has
-- none: its only attempt is in the purchase's own columns, which spares a row and two index entries. With a
-- second attempt both are rows.
CREATE TABLE attempts (
    checkout_session_id text COLLATE "C" NOT NULL,
    attempt_id          text NOT NULL,
    generation          integer NOT NULL,
    at                  timestamptz NOT NULL,
    took_ms             bigint NOT NULL,
    class               text NOT NULL,
    code                integer,
    message             text NOT NULL,
    request_id          text NOT NULL,
    PRIMARY KEY (checkout_session_id, attempt_id)
);

-- Every attempt, wherever it is kept.
CREATE VIEW purchase_attempts AS
SELECT checkout_session_id, attempt_id, generation, at, took_ms, class, code, message, request_id
FROM attempts
UNION ALL
SELECT checkout_session_id, attempt_id, attempt_generation, last_attempt_at, attempt_took_ms, last_class,
    last_code, 'OK', COALESCE(tiktok_request_id, '')
FROM purchases WHERE attempt_id IS NOT NULL;

-- Progress through Stripe's event list, from newest to oldest. One row per origin: the command and the
-- periodic check.
CREATE TABLE backfills (
    origin      text PRIMARY KEY,
    since       timestamptz NOT NULL,
    until       timestamptz NOT NULL,
    cursor      text        NOT NULL, -- the last processed event
    reached     timestamptz,          -- that event's time
    known       integer     NOT NULL,
    fresh       integer     NOT NULL,
    ignored     integer     NOT NULL,
    rejected    integer     NOT NULL,
    malformed   integer     NOT NULL,
    updated_at  timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz           -- null: interrupted, will be resumed
);

-- The latest reconciliation per mode: ids and sums, no personal data.
CREATE TABLE reconciliations (
    livemode boolean PRIMARY KEY,
    made_at  timestamptz NOT NULL,
    report   jsonb       NOT NULL
);

-- How many events TikTok counts for a pixel, by event type and UTC day: the latest answer. An event type that
-- TikTok no longer lists has counts of 0.
CREATE TABLE tiktok_counts (
    pixel_id   text        NOT NULL,
    event      text        NOT NULL, -- as TikTok lists it
    day        date        NOT NULL,
    total      bigint      NOT NULL,
    browser    bigint      NOT NULL,
    server     bigint      NOT NULL,
    attributed bigint      NOT NULL, -- to the advertiser's ads
    asked_at   timestamptz NOT NULL,
    PRIMARY KEY (pixel_id, event, day)
);

-- The answers that changed a count, for 30 days: how a day's counts settled.
CREATE TABLE tiktok_count_history (
    pixel_id   text        NOT NULL,
    event      text        NOT NULL,
    day        date        NOT NULL,
    asked_at   timestamptz NOT NULL,
    total      bigint      NOT NULL,
    browser    bigint      NOT NULL,
    server     bigint      NOT NULL,
    attributed bigint      NOT NULL,
    PRIMARY KEY (pixel_id, event, day, asked_at)
);

-- Indexes for unfinished work. They stay small, because finished rows leave them.
CREATE INDEX purchases_pending ON purchases (created_at) WHERE status = 'pending';
CREATE INDEX purchases_in_flight ON purchases (published_at) WHERE status IN ('published', 'retrying');
CREATE INDEX purchases_sent ON purchases (finished_at) WHERE status = 'delivered' AND envelope IS NOT NULL;
CREATE INDEX trials_held ON trials (held_at)
    WHERE purchase_id IS NULL AND invoice_id IS NOT NULL AND checkout_session_id IS NOT NULL;

-- Indexes for problems: groups of dead and rejected purchases, and those that the queue lost.
CREATE INDEX purchases_failed ON purchases (status, reason, COALESCE(last_code, -1), finished_at)
    WHERE status IN ('dead', 'rejected');
CREATE INDEX purchases_lost ON purchases (swept_at) WHERE swept_at = published_at;

-- Indexes for lists and their filters, by time within one mode. A list of both modes merges two ranges.
-- Session ids are left out: they are long, and times rarely equal.
CREATE INDEX purchases_mode_time ON purchases (livemode, COALESCE(purchased_at, created_at));
CREATE INDEX purchases_status_time ON purchases (status, livemode, COALESCE(purchased_at, created_at));
CREATE INDEX purchases_code_time ON purchases (last_code, COALESCE(purchased_at, created_at))
    WHERE last_code <> 0;
CREATE INDEX purchases_reason_time ON purchases (reason, COALESCE(purchased_at, created_at))
    WHERE reason <> '';
CREATE INDEX purchases_kind_time ON purchases (kind, COALESCE(purchased_at, created_at))
    WHERE kind <> 'checkout';
CREATE INDEX purchases_customer ON purchases (stripe_customer_id);
CREATE INDEX purchases_profile ON purchases (profile_id);
CREATE INDEX purchases_ending ON purchases (right(checkout_session_id, 6)); -- as pages show it
CREATE INDEX purchases_request ON purchases (tiktok_request_id) WHERE tiktok_request_id IS NOT NULL;
CREATE INDEX attempts_request ON attempts (request_id) WHERE request_id <> '';
CREATE INDEX purchases_trial ON purchases (trial_session_id) WHERE trial_session_id IS NOT NULL;
CREATE INDEX tiktok_counts_day ON tiktok_counts (day);
CREATE INDEX tiktok_count_history_day ON tiktok_count_history (day);
CREATE INDEX tiktok_count_history_asked ON tiktok_count_history (asked_at);
CREATE INDEX stripe_events_session ON stripe_events (checkout_session_id);
CREATE INDEX stripe_events_received ON stripe_events (received_at);
CREATE INDEX stripe_events_caught_up ON stripe_events (received_at) WHERE caught_up;

-- The rollup: totals that cost the same for ten purchases and ten million. Triggers append the difference of
-- every change of a purchase to rollup_changes in the same transaction. The differences are folded into the
-- totals every few seconds. In every snapshot, totals plus changes equal the purchases.
--
-- The totals are by quarter of an hour: the days of every time zone, 45 minutes off included, begin and end
-- with one.
CREATE TABLE rollup_changes (
    at             timestamptz NOT NULL, -- start of the quarter hour of the payment
    livemode       boolean  NOT NULL,
    status         text     NOT NULL,
    reason         text     NOT NULL,
    code           text     NOT NULL, -- TikTok's last code, if dead or retrying; '': none
    currency       text     NOT NULL, -- lower case; '': unknown
    delay          smallint NOT NULL, -- until acceptance, in steps of 2^(1/4) above 0.1 s; -1: not delivered
    n              bigint   NOT NULL,
    minor          numeric  NOT NULL, -- 0 for a trial
    keyed          bigint   NOT NULL, -- purchases with known match keys; of these, those with …
    key_email      bigint   NOT NULL,
    key_phone      bigint   NOT NULL,
    key_ttclid     bigint   NOT NULL,
    key_ttp        bigint   NOT NULL,
    key_ip         bigint   NOT NULL,
    key_user_agent bigint   NOT NULL,
    key_page       bigint   NOT NULL,
    key_name       bigint   NOT NULL DEFAULT 0,
    key_address    bigint   NOT NULL DEFAULT 0,
    key_late       bigint   NOT NULL DEFAULT 0,
    key_strong     bigint   NOT NULL DEFAULT 0,
    trials         bigint   NOT NULL DEFAULT 0, -- of n
    first_sales    bigint   NOT NULL DEFAULT 0, -- of n
    first_payments bigint   NOT NULL DEFAULT 0, -- of n: converted trials
    sent_minor     numeric  NOT NULL DEFAULT 0, -- the value that TikTok accepted
    no_value       bigint   NOT NULL DEFAULT 0  -- sales that TikTok accepted without a value
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000); -- always few rows

-- Totals per quarter hour and per UTC day, so that a long range reads few rows.
CREATE TABLE rollup_totals (
    daily    boolean     NOT NULL,
    at       timestamptz NOT NULL, -- start of the quarter hour or day
    livemode boolean     NOT NULL,
    status   text        NOT NULL,
    reason   text        NOT NULL,
    code     text        NOT NULL,
    n        bigint      NOT NULL,
    PRIMARY KEY (daily, at, livemode, status, reason, code)
);

-- Sales per quarter hour, for the days of any time zone, and per UTC day.
CREATE TABLE rollup_sales (
    daily          boolean     NOT NULL,
    at             timestamptz NOT NULL,
    livemode       boolean     NOT NULL,
    currency       text        NOT NULL,
    paid           bigint      NOT NULL, -- of these …
    accepted       bigint      NOT NULL,
    waiting        bigint      NOT NULL,
    left_out       bigint      NOT NULL, -- the others are not accepted
    new_buyers     bigint      NOT NULL,
    old_buyers     bigint      NOT NULL, -- a rejected sale has no known buyer
    first_payments bigint      NOT NULL,
    no_value       bigint      NOT NULL,
    minor          numeric     NOT NULL,
    sent_minor     numeric     NOT NULL,
    PRIMARY KEY (daily, at, livemode, currency)
);

-- Match keys per quarter hour and per UTC day.
CREATE TABLE rollup_keys (
    daily          boolean NOT NULL,
    at             timestamptz NOT NULL,
    livemode       boolean NOT NULL,
    keyed          bigint  NOT NULL,
    key_email      bigint  NOT NULL,
    key_phone      bigint  NOT NULL,
    key_ttclid     bigint  NOT NULL,
    key_ttp        bigint  NOT NULL,
    key_ip         bigint  NOT NULL,
    key_user_agent bigint  NOT NULL,
    key_page       bigint  NOT NULL,
    key_name       bigint  NOT NULL,
    key_address    bigint  NOT NULL,
    key_late       bigint  NOT NULL,
    key_strong     bigint  NOT NULL,
    PRIMARY KEY (daily, at, livemode)
);

CREATE TABLE rollup_delays (
    daily    boolean     NOT NULL,
    at       timestamptz NOT NULL,
    livemode boolean     NOT NULL,
    delay    smallint    NOT NULL,
    n        bigint      NOT NULL,
    PRIMARY KEY (daily, at, livemode, delay)
);

-- All-time totals, for the gauge and the attention list.
CREATE TABLE rollup_statuses (
    livemode boolean NOT NULL,
    status   text    NOT NULL,
    reason   text    NOT NULL,
    code     text    NOT NULL,
    n        bigint  NOT NULL,
    PRIMARY KEY (livemode, status, reason, code)
);

-- rollup_terms returns a purchase's dimensions and sums. Postgres inlines it into the calling statement.
-- +goose StatementBegin
CREATE FUNCTION rollup_terms(status text, reason text, last_code integer, currency text, amount_minor bigint,
    purchased_at timestamptz, created_at timestamptz, finished_at timestamptz, match_keys smallint)
RETURNS TABLE (at timestamptz, code text, money text, delay smallint, minor numeric, keyed integer,
    keys integer)
LANGUAGE sql STABLE AS $$
    SELECT date_bin('15 minutes', COALESCE($6, $7), '2000-01-01Z'),
        CASE WHEN $1 IN ('dead', 'retrying') THEN COALESCE($3::text, '') ELSE '' END,
        COALESCE($4, ''),
        CASE WHEN $1 = 'delivered' AND $6 IS NOT NULL AND $8 IS NOT NULL
            THEN floor(4 * ln(GREATEST(extract(epoch FROM $8 - $6)::float8, 0.1) * 10)
                / ln(2::float8))::smallint
            ELSE -1::smallint END,
        CASE WHEN $4 IS NULL THEN 0 ELSE COALESCE($5, 0) END::numeric,
        CASE WHEN $9 IS NULL THEN 0 ELSE 1 END,
        COALESCE($9, 0)::integer
$$;
-- +goose StatementEnd

-- rollup_sent returns the value that TikTok received. A trial has none and does not count as a missing value.
-- +goose StatementBegin
CREATE FUNCTION rollup_sent(status text, kind text, value bigint)
RETURNS TABLE (sent_minor numeric, no_value integer)
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN $1 = 'delivered' AND $2 <> 'trial' THEN COALESCE($3, 0) ELSE 0 END::numeric,
        ($1 = 'delivered' AND $2 <> 'trial' AND $3 IS NULL)::integer
$$;
-- +goose StatementEnd

-- The trigger functions run with the owner's rights: a role that may change purchases needs no rights on the
-- rollup, even during a rolling upgrade.

-- Inserts are on the webhook's path, so they are not aggregated: one row per purchase.
-- +goose StatementBegin
CREATE FUNCTION rollup_note_new() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO public.rollup_changes (at, livemode, status, reason, code, currency, delay, n, minor, keyed,
        key_email, key_phone, key_ttclid, key_ttp, key_ip, key_user_agent, key_page,
        key_name, key_address, key_late, key_strong, trials, first_sales, first_payments, sent_minor,
        no_value)
    SELECT t.at, p.livemode, p.status, p.reason, t.code, t.money, t.delay, 1,
        CASE WHEN p.kind = 'trial' THEN 0 ELSE t.minor END, t.keyed,
        t.keys & 1, t.keys >> 1 & 1, t.keys >> 2 & 1, t.keys >> 3 & 1, t.keys >> 4 & 1, t.keys >> 5 & 1,
        t.keys >> 6 & 1, t.keys >> 7 & 1, t.keys >> 8 & 1, t.keys >> 9 & 1, (t.keys & 5 <> 0)::int,
        (p.kind = 'trial')::int, (p.first_sale AND p.kind <> 'trial')::int, (p.kind = 'first_payment')::int,
        f.sent_minor, f.no_value
    FROM after_rows p CROSS JOIN LATERAL public.rollup_terms(p.status, p.reason, p.last_code, p.currency,
            p.amount_minor, p.purchased_at, p.created_at, p.finished_at, p.match_keys) t
        CROSS JOIN LATERAL public.rollup_sent(p.status, p.kind, p.sent_minor) f;
    RETURN NULL;
END $$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE FUNCTION rollup_note_changed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM after_rows) THEN -- INSERT … ON CONFLICT without a conflict
        RETURN NULL;
    END IF;
    INSERT INTO public.rollup_changes (at, livemode, status, reason, code, currency, delay, n, minor, keyed,
        key_email, key_phone, key_ttclid, key_ttp, key_ip, key_user_agent, key_page,
        key_name, key_address, key_late, key_strong, trials, first_sales, first_payments, sent_minor,
        no_value)
    SELECT d.at, d.livemode, d.status, d.reason, d.code, d.money, d.delay, d.n, d.minor, d.keyed,
        d.b0, d.b1, d.b2, d.b3, d.b4, d.b5, d.b6, d.b7, d.b8, d.b9, d.strong, d.trials,
        d.first_sales, d.first_payments, d.sent_minor, d.no_value
    FROM (
        SELECT t.at, p.livemode, p.status, p.reason, t.code, t.money, t.delay, sum(p.sign) AS n,
            sum(p.sign * CASE WHEN p.kind = 'trial' THEN 0 ELSE t.minor END) AS minor,
            sum(p.sign * t.keyed) AS keyed,
            sum(p.sign * (t.keys & 1)) AS b0, sum(p.sign * (t.keys >> 1 & 1)) AS b1,
            sum(p.sign * (t.keys >> 2 & 1)) AS b2, sum(p.sign * (t.keys >> 3 & 1)) AS b3,
            sum(p.sign * (t.keys >> 4 & 1)) AS b4, sum(p.sign * (t.keys >> 5 & 1)) AS b5,
            sum(p.sign * (t.keys >> 6 & 1)) AS b6, sum(p.sign * (t.keys >> 7 & 1)) AS b7,
            sum(p.sign * (t.keys >> 8 & 1)) AS b8, sum(p.sign * (t.keys >> 9 & 1)) AS b9,
            sum(p.sign * (t.keys & 5 <> 0)::int) AS strong, sum(p.sign * (p.kind = 'trial')::int) AS trials,
            sum(p.sign * (p.first_sale AND p.kind <> 'trial')::int) AS first_sales,
            sum(p.sign * (p.kind = 'first_payment')::int) AS first_payments,
            sum(p.sign * f.sent_minor) AS sent_minor, sum(p.sign * f.no_value) AS no_value
        FROM (
            SELECT 1 AS sign, livemode, status, reason, last_code, currency, amount_minor, purchased_at,
                created_at, finished_at, match_keys, kind, first_sale, sent_minor FROM after_rows
            UNION ALL
            SELECT -1, livemode, status, reason, last_code, currency, amount_minor, purchased_at,
                created_at, finished_at, match_keys, kind, first_sale, sent_minor FROM before_rows
        ) p CROSS JOIN LATERAL public.rollup_terms(p.status, p.reason, p.last_code, p.currency,
                p.amount_minor, p.purchased_at, p.created_at, p.finished_at, p.match_keys) t
            CROSS JOIN LATERAL public.rollup_sent(p.status, p.kind, p.sent_minor) f
        GROUP BY 1, 2, 3, 4, 5, 6, 7
    ) d -- most updates change no total
    WHERE (d.n, d.minor, d.keyed, d.b0, d.b1, d.b2, d.b3, d.b4, d.b5, d.b6, d.b7, d.b8, d.b9,
            d.strong, d.trials, d.first_sales, d.first_payments, d.sent_minor, d.no_value)
        <> (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    RETURN NULL;
END $$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE FUNCTION rollup_note_gone() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO public.rollup_changes (at, livemode, status, reason, code, currency, delay, n, minor, keyed,
        key_email, key_phone, key_ttclid, key_ttp, key_ip, key_user_agent, key_page,
        key_name, key_address, key_late, key_strong, trials, first_sales, first_payments, sent_minor,
        no_value)
    SELECT t.at, p.livemode, p.status, p.reason, t.code, t.money, t.delay, -count(*),
        -sum(CASE WHEN p.kind = 'trial' THEN 0 ELSE t.minor END), -sum(t.keyed),
        -sum(t.keys & 1), -sum(t.keys >> 1 & 1), -sum(t.keys >> 2 & 1), -sum(t.keys >> 3 & 1),
        -sum(t.keys >> 4 & 1), -sum(t.keys >> 5 & 1), -sum(t.keys >> 6 & 1),
        -sum(t.keys >> 7 & 1), -sum(t.keys >> 8 & 1), -sum(t.keys >> 9 & 1),
        -sum((t.keys & 5 <> 0)::int), -sum((p.kind = 'trial')::int),
        -sum((p.first_sale AND p.kind <> 'trial')::int), -sum((p.kind = 'first_payment')::int),
        -sum(f.sent_minor), -sum(f.no_value)
    FROM before_rows p CROSS JOIN LATERAL public.rollup_terms(p.status, p.reason, p.last_code, p.currency,
            p.amount_minor, p.purchased_at, p.created_at, p.finished_at, p.match_keys) t
        CROSS JOIN LATERAL public.rollup_sent(p.status, p.kind, p.sent_minor) f
    GROUP BY 1, 2, 3, 4, 5, 6, 7;
    RETURN NULL;
END $$;
-- +goose StatementEnd

CREATE TRIGGER rollup_inserted AFTER INSERT ON purchases REFERENCING NEW TABLE AS after_rows
    FOR EACH STATEMENT EXECUTE FUNCTION rollup_note_new();
CREATE TRIGGER rollup_updated AFTER UPDATE ON purchases
    REFERENCING OLD TABLE AS before_rows NEW TABLE AS after_rows
    FOR EACH STATEMENT EXECUTE FUNCTION rollup_note_changed();
CREATE TRIGGER rollup_deleted AFTER DELETE ON purchases REFERENCING OLD TABLE AS before_rows
    FOR EACH STATEMENT EXECUTE FUNCTION rollup_note_gone();

-- Storage. Growing tables are vacuumed and analysed after a smaller share of changes than the default of 20
-- %: with ten million purchases autovacuum would start after two million changes, and the planner's
-- statistics would be a month old. In insert-only tables vacuum marks pages all-visible, which enables
-- index-only scans and avoids one huge freeze after years.

-- The second write of a purchase changes the indexed status, so a lower fillfactor would save nothing.
ALTER TABLE purchases SET (autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.02);
ALTER TABLE stripe_events SET (autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);
ALTER TABLE attempts SET (autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);

-- A returning customer changes no indexed column. With free space in the page no index is written, in 40 of
-- 100 updates instead of 22.
ALTER TABLE profiles SET (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);

-- The rows of the current quarter hour change every two seconds, older ones during pruning, also in no
-- indexed column: free space in the page saves the index writes.
ALTER TABLE rollup_totals SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_threshold = 500);
ALTER TABLE rollup_sales SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_threshold = 500);
ALTER TABLE rollup_keys SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_threshold = 500);
ALTER TABLE rollup_delays SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_threshold = 500);
ALTER TABLE rollup_statuses SET (autovacuum_vacuum_threshold = 500);
