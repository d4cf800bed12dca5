-- The ledger: every purchase from the webhook to TikTok's request_id.

-- +goose Up

-- What the schema asks of the binaries: one older than this refuses to start, every newer one runs.
-- A migration that an older binary could not live with raises the number.
CREATE TABLE schema_compat (
    only_row      boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    oldest_binary integer NOT NULL
);
INSERT INTO schema_compat (oldest_binary) VALUES (1);

CREATE TABLE profiles (
    id                     uuid PRIMARY KEY DEFAULT gen_random_uuid(), -- random: its hash goes to TikTok and must not be guessable
    livemode               boolean NOT NULL,                           -- a test purchase never creates or touches a live profile
    email                  text NOT NULL,                              -- trimmed, lower case
    stripe_customer_id     text,
    stripe_subscription_id text,
    last_purchase_at       timestamptz NOT NULL,                       -- the ids above are those of this purchase
    created_at             timestamptz NOT NULL DEFAULT now(),
    updated_at             timestamptz NOT NULL DEFAULT now(),
    UNIQUE (livemode, email)
);

-- Every event that moved something, or could have: its id is remembered for good (Stripe may send it again
-- for 30 days and more).
CREATE TABLE stripe_events (
    event_id            text PRIMARY KEY, -- of an id that came with a second session: <id>.<session>
    type                text NOT NULL,
    checkout_session_id text NOT NULL,
    livemode            boolean NOT NULL,
    created_at          timestamptz, -- Stripe's own time
    received_at         timestamptz NOT NULL,
    disposition         text NOT NULL
);
CREATE INDEX stripe_events_session ON stripe_events (checkout_session_id);

CREATE TABLE purchases (
    checkout_session_id    text PRIMARY KEY, -- TikTok's event_id
    status                 text NOT NULL CHECK (status IN ('awaiting_payment', 'payment_failed', 'rejected', 'pending',
                               'published', 'retrying', 'delivered', 'dead', 'skipped')),
    reason                 text NOT NULL DEFAULT '', -- of rejected, dead, skipped
    profile_id             uuid REFERENCES profiles,
    mode                   text NOT NULL,
    livemode               boolean NOT NULL,
    amount_minor           bigint,           -- smallest unit, as Stripe counts it
    currency               text,             -- lower case
    purchased_at           timestamptz,      -- the paying event's own time; null while unpaid
    stripe_customer_id     text,
    stripe_subscription_id text,
    envelope               bytea,            -- the message, encoded once; null where nothing is ever sent
    generation             integer NOT NULL DEFAULT 1, -- raised by a replay or a sweep
    claimed_until          timestamptz,      -- a relay is publishing it
    first_published_at     timestamptz,      -- renewed by a replay alone
    published_at           timestamptz,
    stream_sequence        bigint,
    swept_at               timestamptz,      -- the sweeper asked the queue for it
    attempts               integer NOT NULL DEFAULT 0, -- those that were recorded
    last_attempt_at        timestamptz,
    last_class             text,
    last_code              integer,          -- TikTok's code, else the HTTP status
    last_error             text,
    tiktok_request_id      text,
    finished_at            timestamptz,
    created_at             timestamptz NOT NULL DEFAULT now(),
    updated_at             timestamptz NOT NULL DEFAULT now()
);
-- Small whatever the ledger's size: what is finished is in neither.
CREATE INDEX purchases_pending ON purchases (created_at) WHERE status = 'pending';
CREATE INDEX purchases_in_flight ON purchases (published_at) WHERE status IN ('published', 'retrying');
-- Those whose message is to be dropped: of the last two days.
CREATE INDEX purchases_sent ON purchases (finished_at) WHERE status = 'delivered' AND envelope IS NOT NULL;
CREATE INDEX purchases_time ON purchases (COALESCE(purchased_at, created_at));
CREATE INDEX purchases_profile ON purchases (profile_id);

-- One row a call to TikTok.
CREATE TABLE attempts (
    checkout_session_id text NOT NULL,
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
