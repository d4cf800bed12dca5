-- What people look at: figures that cost the same with ten purchases and ten million, and an index for each filter.

-- +goose Up

-- Which match keys the envelope carries: 1 e-mail, 2 phone, 4 ttclid, 8 ttp, 16 ip, 32 user agent, 64 page. Null where nothing is ever
-- sent, or where a binary before this column wrote the row.
ALTER TABLE purchases ADD COLUMN match_keys smallint;
UPDATE purchases SET match_keys =
      (k ? 'email')::int + (k ? 'phone')::int * 2 + (k ? 'ttclid')::int * 4 + (k ? 'ttp')::int * 8
    + (k ? 'ip')::int * 16 + (k ? 'user_agent')::int * 32 + (k ? 'page_url')::int * 64
FROM (SELECT checkout_session_id AS id, convert_from(envelope, 'UTF8')::jsonb -> 'match_keys' AS k FROM purchases WHERE envelope IS NOT NULL) e
WHERE checkout_session_id = e.id;

-- Newest first, for one mode; both modes are two of these, merged. Session ids are left out: times differ, and ids are long.
DROP INDEX purchases_time;
CREATE INDEX purchases_mode_time ON purchases (livemode, COALESCE(purchased_at, created_at));
CREATE INDEX purchases_status_time ON purchases (status, livemode, COALESCE(purchased_at, created_at));
CREATE INDEX purchases_code_time ON purchases (last_code, COALESCE(purchased_at, created_at)) WHERE last_code <> 0;
CREATE INDEX purchases_customer ON purchases (stripe_customer_id);
CREATE INDEX stripe_events_received ON stripe_events (received_at);

-- The rollup. A change of a purchase leaves its differences in rollup_changes, in the same transaction, whatever statement
-- made it. Now and then they are folded into the totals. Totals and changes together equal the ledger in every snapshot.
CREATE TABLE rollup_changes (
    hour           timestamptz NOT NULL, -- of the payment
    livemode       boolean  NOT NULL,
    status         text     NOT NULL,
    reason         text     NOT NULL,
    code           text     NOT NULL, -- TikTok's last, of dead and retrying purchases; '' for none
    currency       text     NOT NULL, -- lower case; '' unknown
    delay          smallint NOT NULL, -- from payment to acceptance, in steps of 2^(1/4) above 0.1 s; -1 unless delivered
    n              bigint   NOT NULL,
    minor          numeric  NOT NULL,
    keyed          bigint   NOT NULL, -- purchases whose match keys are known; of these, with an e-mail and so on:
    key_email      bigint   NOT NULL,
    key_phone      bigint   NOT NULL,
    key_ttclid     bigint   NOT NULL,
    key_ttp        bigint   NOT NULL,
    key_ip         bigint   NOT NULL,
    key_user_agent bigint   NOT NULL,
    key_page       bigint   NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000); -- rows come and go: it stays small

-- The totals, by the hour and once more by the day of UTC: a long range reads few rows.
CREATE TABLE rollup_totals (
    daily          boolean NOT NULL,
    at             timestamptz NOT NULL, -- the hour's or the day's beginning
    livemode       boolean NOT NULL,
    status         text    NOT NULL,
    reason         text    NOT NULL,
    code           text    NOT NULL,
    currency       text    NOT NULL,
    n              bigint  NOT NULL,
    minor          numeric NOT NULL,
    keyed          bigint  NOT NULL,
    key_email      bigint  NOT NULL,
    key_phone      bigint  NOT NULL,
    key_ttclid     bigint  NOT NULL,
    key_ttp        bigint  NOT NULL,
    key_ip         bigint  NOT NULL,
    key_user_agent bigint  NOT NULL,
    key_page       bigint  NOT NULL,
    PRIMARY KEY (daily, at, livemode, status, reason, code, currency)
);

CREATE TABLE rollup_delays (
    daily    boolean     NOT NULL,
    at       timestamptz NOT NULL,
    livemode boolean     NOT NULL,
    delay    smallint    NOT NULL,
    n        bigint      NOT NULL,
    PRIMARY KEY (daily, at, livemode, delay)
);

-- What the chart draws.
CREATE TABLE rollup_hours (
    hour     timestamptz NOT NULL,
    livemode boolean     NOT NULL,
    paid     bigint      NOT NULL,
    accepted bigint      NOT NULL,
    PRIMARY KEY (hour, livemode)
);

-- Of all times, for the gauge and the lists of what needs attention.
CREATE TABLE rollup_statuses (
    livemode boolean NOT NULL,
    status   text    NOT NULL,
    reason   text    NOT NULL,
    code     text    NOT NULL,
    n        bigint  NOT NULL,
    PRIMARY KEY (livemode, status, reason, code)
);

-- One purchase in the rollup's terms. It is inlined into the statements that use it.
-- +goose StatementBegin
CREATE FUNCTION rollup_terms(status text, reason text, last_code integer, currency text, amount_minor bigint,
    purchased_at timestamptz, created_at timestamptz, finished_at timestamptz, match_keys smallint)
RETURNS TABLE (hour timestamptz, code text, money text, delay smallint, minor numeric, keyed integer, keys integer)
LANGUAGE sql STABLE AS $$
    SELECT date_trunc('hour', COALESCE($6, $7), 'UTC'),
        CASE WHEN $1 IN ('dead', 'retrying') THEN COALESCE($3::text, '') ELSE '' END,
        COALESCE($4, ''),
        CASE WHEN $1 = 'delivered' AND $6 IS NOT NULL AND $8 IS NOT NULL
            THEN floor(4 * ln(GREATEST(extract(epoch FROM $8 - $6)::float8, 0.1) * 10) / ln(2::float8))::smallint ELSE -1::smallint END,
        CASE WHEN $4 IS NULL THEN 0 ELSE COALESCE($5, 0) END::numeric,
        CASE WHEN $9 IS NULL THEN 0 ELSE 1 END,
        COALESCE($9, 0)::integer
$$;
-- +goose StatementEnd

-- They run with the owner's rights: whoever may change a purchase needs none on the rollup, also while an older binary runs beside a newer one.

-- A new purchase is on the webhook's way: no sum, one note each.
-- +goose StatementBegin
CREATE FUNCTION rollup_note_new() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO public.rollup_changes (hour, livemode, status, reason, code, currency, delay, n, minor, keyed,
        key_email, key_phone, key_ttclid, key_ttp, key_ip, key_user_agent, key_page)
    SELECT t.hour, p.livemode, p.status, p.reason, t.code, t.money, t.delay, 1, t.minor, t.keyed,
        t.keys & 1, t.keys >> 1 & 1, t.keys >> 2 & 1, t.keys >> 3 & 1, t.keys >> 4 & 1, t.keys >> 5 & 1, t.keys >> 6 & 1
    FROM after_rows p CROSS JOIN LATERAL public.rollup_terms(p.status, p.reason, p.last_code, p.currency, p.amount_minor,
        p.purchased_at, p.created_at, p.finished_at, p.match_keys) t;
    RETURN NULL;
END $$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE FUNCTION rollup_note_changed() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM after_rows) THEN -- the half of an INSERT … ON CONFLICT that did nothing
        RETURN NULL;
    END IF;
    INSERT INTO public.rollup_changes (hour, livemode, status, reason, code, currency, delay, n, minor, keyed,
        key_email, key_phone, key_ttclid, key_ttp, key_ip, key_user_agent, key_page)
    SELECT d.hour, d.livemode, d.status, d.reason, d.code, d.money, d.delay, d.n, d.minor, d.keyed, d.b0, d.b1, d.b2, d.b3, d.b4, d.b5, d.b6
    FROM (
        SELECT t.hour, p.livemode, p.status, p.reason, t.code, t.money, t.delay, sum(p.sign) AS n, sum(p.sign * t.minor) AS minor, sum(p.sign * t.keyed) AS keyed,
            sum(p.sign * (t.keys & 1)) AS b0, sum(p.sign * (t.keys >> 1 & 1)) AS b1, sum(p.sign * (t.keys >> 2 & 1)) AS b2,
            sum(p.sign * (t.keys >> 3 & 1)) AS b3, sum(p.sign * (t.keys >> 4 & 1)) AS b4, sum(p.sign * (t.keys >> 5 & 1)) AS b5, sum(p.sign * (t.keys >> 6 & 1)) AS b6
        FROM (
            SELECT 1 AS sign, livemode, status, reason, last_code, currency, amount_minor, purchased_at, created_at, finished_at, match_keys FROM after_rows
            UNION ALL
            SELECT -1, livemode, status, reason, last_code, currency, amount_minor, purchased_at, created_at, finished_at, match_keys FROM before_rows
        ) p CROSS JOIN LATERAL public.rollup_terms(p.status, p.reason, p.last_code, p.currency, p.amount_minor,
            p.purchased_at, p.created_at, p.finished_at, p.match_keys) t
        GROUP BY 1, 2, 3, 4, 5, 6, 7
    ) d -- most updates change nothing that is counted
    WHERE (d.n, d.minor, d.keyed, d.b0, d.b1, d.b2, d.b3, d.b4, d.b5, d.b6) <> (0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    RETURN NULL;
END $$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE FUNCTION rollup_note_gone() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO public.rollup_changes (hour, livemode, status, reason, code, currency, delay, n, minor, keyed,
        key_email, key_phone, key_ttclid, key_ttp, key_ip, key_user_agent, key_page)
    SELECT t.hour, p.livemode, p.status, p.reason, t.code, t.money, t.delay, -count(*), -sum(t.minor), -sum(t.keyed),
        -sum(t.keys & 1), -sum(t.keys >> 1 & 1), -sum(t.keys >> 2 & 1), -sum(t.keys >> 3 & 1), -sum(t.keys >> 4 & 1), -sum(t.keys >> 5 & 1), -sum(t.keys >> 6 & 1)
    FROM before_rows p CROSS JOIN LATERAL public.rollup_terms(p.status, p.reason, p.last_code, p.currency, p.amount_minor,
        p.purchased_at, p.created_at, p.finished_at, p.match_keys) t
    GROUP BY 1, 2, 3, 4, 5, 6, 7;
    RETURN NULL;
END $$;
-- +goose StatementEnd

CREATE TRIGGER rollup_inserted AFTER INSERT ON purchases REFERENCING NEW TABLE AS after_rows
    FOR EACH STATEMENT EXECUTE FUNCTION rollup_note_new();
CREATE TRIGGER rollup_updated AFTER UPDATE ON purchases REFERENCING OLD TABLE AS before_rows NEW TABLE AS after_rows
    FOR EACH STATEMENT EXECUTE FUNCTION rollup_note_changed();
CREATE TRIGGER rollup_deleted AFTER DELETE ON purchases REFERENCING OLD TABLE AS before_rows
    FOR EACH STATEMENT EXECUTE FUNCTION rollup_note_gone();

-- What is there already.
INSERT INTO rollup_changes (hour, livemode, status, reason, code, currency, delay, n, minor, keyed,
    key_email, key_phone, key_ttclid, key_ttp, key_ip, key_user_agent, key_page)
SELECT t.hour, p.livemode, p.status, p.reason, t.code, t.money, t.delay, count(*), sum(t.minor), sum(t.keyed),
    sum(t.keys & 1), sum(t.keys >> 1 & 1), sum(t.keys >> 2 & 1), sum(t.keys >> 3 & 1), sum(t.keys >> 4 & 1), sum(t.keys >> 5 & 1), sum(t.keys >> 6 & 1)
FROM purchases p CROSS JOIN LATERAL rollup_terms(p.status, p.reason, p.last_code, p.currency, p.amount_minor,
    p.purchased_at, p.created_at, p.finished_at, p.match_keys) t
GROUP BY 1, 2, 3, 4, 5, 6, 7;
