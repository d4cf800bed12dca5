-- Trials and what follows them, and match keys that are worth counting by the day.

-- +goose Up

-- A trial (a checkout without money) is no sale, also where it is sent as an event of its own. The first invoice with money after
-- one is: its row is keyed by the invoice's id, and trial_session_id names the trial's row.
ALTER TABLE purchases
    ADD COLUMN kind text NOT NULL DEFAULT 'checkout' CHECK (kind IN ('checkout', 'trial', 'first_payment')),
    ADD COLUMN trial_session_id text;
-- What TikTok got of a delivered purchase, as the worker reports it: the value, null where the event had none
-- (a currency that TikTok does not list, an unknown amount), and the worker's default page, where that was
-- sent. match_keys are then those that were sent.
ALTER TABLE purchases ADD COLUMN sent_minor bigint, ADD COLUMN sent_page text;
CREATE INDEX purchases_trial ON purchases (trial_session_id) WHERE trial_session_id IS NOT NULL;

-- One row a subscription: its trial, where its checkout has come, and the earliest invoice with money, where that has. Whichever
-- comes first waits here for the other.
CREATE TABLE trials (
    subscription_id     text PRIMARY KEY,
    livemode            boolean NOT NULL,
    checkout_session_id text,        -- null: not heard of
    started_at          timestamptz,
    reason              text NOT NULL DEFAULT '', -- why its first payment is not sent: no_consent, internal
    profile_id          uuid,        -- the trial's customer
    envelope            bytea,       -- the trial's own, whose match keys the first payment gets; null where nothing may be sent (any more), and afterwards
    click_expires_at    timestamptz, -- when the click id becomes older than CLICK_WINDOW
    invoice_id          text,
    invoice_at          timestamptz, -- when it was paid
    amount_minor        bigint,
    currency            text,
    period_start        timestamptz, -- of the time that it looks back on
    stripe_customer_id  text,
    held_at             timestamptz, -- since when the invoice waits
    purchase_id         text         -- the first payment's, once it is on the ledger
);
CREATE INDEX trials_held ON trials (held_at) WHERE purchase_id IS NULL AND invoice_id IS NOT NULL AND checkout_session_id IS NOT NULL;

-- Match keys get the bits 128 name, 256 an address finer than a country, and 512 a click id older than
-- CLICK_WINDOW at the purchase. strong is a ttclid or an e-mail address. trials are those of n that are no sale.
-- sent_minor is the value that TikTok accepted, no_value counts the accepted sales that were sent without
-- one.
ALTER TABLE rollup_changes
    ADD COLUMN key_name bigint NOT NULL DEFAULT 0, ADD COLUMN key_address bigint NOT NULL DEFAULT 0, ADD COLUMN key_late bigint NOT NULL DEFAULT 0,
    ADD COLUMN key_strong bigint NOT NULL DEFAULT 0, ADD COLUMN trials bigint NOT NULL DEFAULT 0,
    ADD COLUMN sent_minor numeric NOT NULL DEFAULT 0, ADD COLUMN no_value bigint NOT NULL DEFAULT 0;
ALTER TABLE rollup_totals
    ADD COLUMN key_name bigint NOT NULL DEFAULT 0, ADD COLUMN key_address bigint NOT NULL DEFAULT 0, ADD COLUMN key_late bigint NOT NULL DEFAULT 0,
    ADD COLUMN key_strong bigint NOT NULL DEFAULT 0, ADD COLUMN trials bigint NOT NULL DEFAULT 0,
    ADD COLUMN sent_minor numeric NOT NULL DEFAULT 0, ADD COLUMN no_value bigint NOT NULL DEFAULT 0;
-- A binary from before these columns would fold them away: its folding fails instead, and is done by a newer one. It reads on.
ALTER TABLE rollup_totals
    ALTER COLUMN key_name DROP DEFAULT, ALTER COLUMN key_address DROP DEFAULT, ALTER COLUMN key_late DROP DEFAULT,
    ALTER COLUMN key_strong DROP DEFAULT, ALTER COLUMN trials DROP DEFAULT,
    ALTER COLUMN sent_minor DROP DEFAULT, ALTER COLUMN no_value DROP DEFAULT;

-- What TikTok got of one purchase. A trial is no sale: it has no value, and lacks none.
-- +goose StatementBegin
CREATE FUNCTION rollup_sent(status text, kind text, value bigint)
RETURNS TABLE (sent_minor numeric, no_value integer)
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN $1 = 'delivered' AND $2 <> 'trial' THEN COALESCE($3, 0) ELSE 0 END::numeric,
        ($1 = 'delivered' AND $2 <> 'trial' AND $3 IS NULL)::integer
$$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE OR REPLACE FUNCTION rollup_note_new() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO public.rollup_changes (hour, livemode, status, reason, code, currency, delay, n, minor, keyed,
        key_email, key_phone, key_ttclid, key_ttp, key_ip, key_user_agent, key_page,
        key_name, key_address, key_late, key_strong, trials, sent_minor, no_value)
    SELECT t.hour, p.livemode, p.status, p.reason, t.code, t.money, t.delay, 1, CASE WHEN p.kind = 'trial' THEN 0 ELSE t.minor END, t.keyed,
        t.keys & 1, t.keys >> 1 & 1, t.keys >> 2 & 1, t.keys >> 3 & 1, t.keys >> 4 & 1, t.keys >> 5 & 1, t.keys >> 6 & 1,
        t.keys >> 7 & 1, t.keys >> 8 & 1, t.keys >> 9 & 1, (t.keys & 5 <> 0)::int, (p.kind = 'trial')::int,
        f.sent_minor, f.no_value
    FROM after_rows p CROSS JOIN LATERAL public.rollup_terms(p.status, p.reason, p.last_code, p.currency, p.amount_minor,
        p.purchased_at, p.created_at, p.finished_at, p.match_keys) t
        CROSS JOIN LATERAL public.rollup_sent(p.status, p.kind, p.sent_minor) f;
    RETURN NULL;
END $$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE OR REPLACE FUNCTION rollup_note_changed() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM after_rows) THEN -- the half of an INSERT … ON CONFLICT that did nothing
        RETURN NULL;
    END IF;
    INSERT INTO public.rollup_changes (hour, livemode, status, reason, code, currency, delay, n, minor, keyed,
        key_email, key_phone, key_ttclid, key_ttp, key_ip, key_user_agent, key_page,
        key_name, key_address, key_late, key_strong, trials, sent_minor, no_value)
    SELECT d.hour, d.livemode, d.status, d.reason, d.code, d.money, d.delay, d.n, d.minor, d.keyed, d.b0, d.b1, d.b2, d.b3, d.b4, d.b5, d.b6, d.b7, d.b8, d.b9, d.strong, d.trials,
        d.sent_minor, d.no_value
    FROM (
        SELECT t.hour, p.livemode, p.status, p.reason, t.code, t.money, t.delay, sum(p.sign) AS n, sum(p.sign * CASE WHEN p.kind = 'trial' THEN 0 ELSE t.minor END) AS minor, sum(p.sign * t.keyed) AS keyed,
            sum(p.sign * (t.keys & 1)) AS b0, sum(p.sign * (t.keys >> 1 & 1)) AS b1, sum(p.sign * (t.keys >> 2 & 1)) AS b2,
            sum(p.sign * (t.keys >> 3 & 1)) AS b3, sum(p.sign * (t.keys >> 4 & 1)) AS b4, sum(p.sign * (t.keys >> 5 & 1)) AS b5, sum(p.sign * (t.keys >> 6 & 1)) AS b6,
            sum(p.sign * (t.keys >> 7 & 1)) AS b7, sum(p.sign * (t.keys >> 8 & 1)) AS b8, sum(p.sign * (t.keys >> 9 & 1)) AS b9,
            sum(p.sign * (t.keys & 5 <> 0)::int) AS strong, sum(p.sign * (p.kind = 'trial')::int) AS trials,
            sum(p.sign * f.sent_minor) AS sent_minor, sum(p.sign * f.no_value) AS no_value
        FROM (
            SELECT 1 AS sign, livemode, status, reason, last_code, currency, amount_minor, purchased_at, created_at, finished_at, match_keys, kind,
                sent_minor FROM after_rows
            UNION ALL
            SELECT -1, livemode, status, reason, last_code, currency, amount_minor, purchased_at, created_at, finished_at, match_keys, kind,
                sent_minor FROM before_rows
        ) p CROSS JOIN LATERAL public.rollup_terms(p.status, p.reason, p.last_code, p.currency, p.amount_minor,
            p.purchased_at, p.created_at, p.finished_at, p.match_keys) t
            CROSS JOIN LATERAL public.rollup_sent(p.status, p.kind, p.sent_minor) f
        GROUP BY 1, 2, 3, 4, 5, 6, 7
    ) d -- most updates change nothing that is counted
    WHERE (d.n, d.minor, d.keyed, d.b0, d.b1, d.b2, d.b3, d.b4, d.b5, d.b6, d.b7, d.b8, d.b9, d.strong, d.trials,
        d.sent_minor, d.no_value)
        <> (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    RETURN NULL;
END $$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE OR REPLACE FUNCTION rollup_note_gone() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO public.rollup_changes (hour, livemode, status, reason, code, currency, delay, n, minor, keyed,
        key_email, key_phone, key_ttclid, key_ttp, key_ip, key_user_agent, key_page,
        key_name, key_address, key_late, key_strong, trials, sent_minor, no_value)
    SELECT t.hour, p.livemode, p.status, p.reason, t.code, t.money, t.delay, -count(*), -sum(CASE WHEN p.kind = 'trial' THEN 0 ELSE t.minor END), -sum(t.keyed),
        -sum(t.keys & 1), -sum(t.keys >> 1 & 1), -sum(t.keys >> 2 & 1), -sum(t.keys >> 3 & 1), -sum(t.keys >> 4 & 1), -sum(t.keys >> 5 & 1), -sum(t.keys >> 6 & 1),
        -sum(t.keys >> 7 & 1), -sum(t.keys >> 8 & 1), -sum(t.keys >> 9 & 1), -sum((t.keys & 5 <> 0)::int), -sum((p.kind = 'trial')::int),
        -sum(f.sent_minor), -sum(f.no_value)
    FROM before_rows p CROSS JOIN LATERAL public.rollup_terms(p.status, p.reason, p.last_code, p.currency, p.amount_minor,
        p.purchased_at, p.created_at, p.finished_at, p.match_keys) t
        CROSS JOIN LATERAL public.rollup_sent(p.status, p.kind, p.sent_minor) f
    GROUP BY 1, 2, 3, 4, 5, 6, 7;
    RETURN NULL;
END $$;
-- +goose StatementEnd

-- What is there already: the trials and the values (the trigger counts them), and the strong keys.
UPDATE purchases SET kind = 'trial' WHERE status = 'skipped' AND reason = 'no_payment';
UPDATE purchases SET sent_minor = amount_minor WHERE status = 'delivered' AND currency IS NOT NULL;
INSERT INTO rollup_changes (hour, livemode, status, reason, code, currency, delay, n, minor, keyed,
    key_email, key_phone, key_ttclid, key_ttp, key_ip, key_user_agent, key_page, key_name, key_address, key_late, key_strong, trials)
SELECT t.hour, p.livemode, p.status, p.reason, t.code, t.money, t.delay, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, count(*), 0
FROM purchases p CROSS JOIN LATERAL rollup_terms(p.status, p.reason, p.last_code, p.currency, p.amount_minor,
    p.purchased_at, p.created_at, p.finished_at, p.match_keys) t
WHERE t.keys & 5 <> 0
GROUP BY 1, 2, 3, 4, 5, 6, 7;
