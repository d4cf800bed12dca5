-- What webhooks missed: how far the catching up with Stripe's list has come, what came by it, and what the last reconciliation found.

-- +goose Up

-- True where no webhook had brought the event before it was found in Stripe's list.
ALTER TABLE stripe_events ADD COLUMN caught_up boolean NOT NULL DEFAULT false;
CREATE INDEX stripe_events_caught_up ON stripe_events (received_at) WHERE caught_up;

-- One row for each that catches up: the command, and ingest's own check.
CREATE TABLE backfills (
    origin      text PRIMARY KEY,
    since       timestamptz NOT NULL,
    until       timestamptz NOT NULL,
    cursor      text        NOT NULL, -- the last event that is done; the list is walked from the newest to the oldest
    reached     timestamptz,          -- that event's time
    known       integer     NOT NULL,
    fresh       integer     NOT NULL,
    ignored     integer     NOT NULL,
    rejected    integer     NOT NULL,
    malformed   integer     NOT NULL,
    updated_at  timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz           -- null: it was broken off, and is gone on with
);

-- The latest of each mode, as it was found: ids and sums, nothing of the buyers.
CREATE TABLE reconciliations (
    livemode boolean PRIMARY KEY,
    made_at  timestamptz NOT NULL,
    report   jsonb       NOT NULL
);
