package ledger

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
)

// Settle applies outcomes in one transaction: each attempt is stored once, and statuses change as
// purchase.Settle decides. Repeated or reordered outcomes lead to the same rows. unknown lists the ids
// without a purchase.
func (db *DB) Settle(ctx context.Context, outcomes []message.Outcome) (unknown []string, err error) {
	err = pgx.BeginFunc(ctx, db.pool, func(tx pgx.Tx) error {
		unknown = nil
		var now time.Time
		if err := tx.QueryRow(ctx, sqlStart).Scan(&now); err != nil {
			return fmt.Errorf("read clock: %w", err)
		}
		states, err := db.lockPurchases(ctx, tx, outcomes)
		if err != nil {
			return err
		}
		known := outcomes[:0:0]
		for _, o := range outcomes {
			state := states[o.EventID]
			if state == nil {
				unknown = append(unknown, o.EventID)
				continue
			}
			// A replay raises the row's generation before the publish, a sweep by one after the publish. An
			// outcome further ahead is forged, or the ledger was restored from a backup. The outcome must not
			// use up the numbers that replays need.
			if o.Generation > state.generation+1 {
				o.Generation = state.generation
			}
			known = append(known, o)
		}
		if err := recordAttempts(ctx, tx, known, states); err != nil {
			return err
		}
		for _, o := range known {
			states[o.EventID].apply(o, now)
		}
		return updatePurchases(ctx, tx, states)
	})
	if err != nil {
		return nil, fmt.Errorf("record %d outcomes: %w", len(outcomes), err)
	}
	return unknown, nil
}

// purchaseState is a locked purchase with the outcomes of a batch applied.
type purchaseState struct {
	id         string
	status     purchase.Status
	reason     purchase.Reason
	generation int
	finished   *time.Time
	attempts   int          // recorded before
	attempted  *time.Time   // the latest of them
	only       *onlyAttempt // nil: attempts are rows of their own

	changed     bool             // whether status, reason, generation or finished changed
	newAttempts int              // attempts not recorded before
	lastAttempt *message.Attempt // latest of the batch by its own time
	accepted    *string          // request id of the attempt that TikTok accepted
	published   *time.Time       // when the stream stored the message of this generation
	sequence    *int64           // stream sequence of that message
	sent        *purchase.Sent   // what TikTok received, from the outcome that delivered the purchase
	next        *time.Time       // when the queue redelivers the purchase after lastAttempt; nil: unknown
}

// onlyAttempt is a purchase's only attempt, if it is kept in the purchase's row. The row's last_* columns are
// the attempt's other ones.
type onlyAttempt struct {
	id         string
	generation int
	tookMS     int64
}

// apply changes the state by an outcome. The end is dated by Postgres' clock, as replays compare it with that
// clock; a worker's may differ by minutes.
func (s *purchaseState) apply(o message.Outcome, now time.Time) {
	if o.Generation >= s.generation && !o.Taken.IsZero() {
		s.published, s.sequence = new(o.Taken), new(int64(o.Sequence)) //nolint:gosec // counts messages
	}
	next, changed := purchase.Settle(s.status, s.generation, o.Result, o.Generation)
	if changed {
		s.status, s.reason, s.changed, s.finished = next, o.Reason, true, nil
		if next != purchase.StatusRetrying {
			s.finished = &now
		}
		s.sent = o.Sent
	}
	if s.generation < o.Generation {
		s.generation, s.changed = o.Generation, true
	}
	if a := o.Attempt; a != nil {
		if s.lastAttempt == nil || a.At.After(s.lastAttempt.At) {
			s.lastAttempt, s.next = a, NullTime(o.Next)
		}
		if a.Class == purchase.ClassDelivered {
			s.accepted = nullable(a.RequestID)
		}
	}
}

// Rows are locked in key order, as in every statement, so that writers never deadlock.
const sqlLockPurchases = `
SELECT checkout_session_id, status, reason, generation, finished_at, attempts, last_attempt_at, attempt_id,
    attempt_generation, attempt_took_ms
FROM public.purchases WHERE checkout_session_id = ANY($1) ORDER BY checkout_session_id FOR UPDATE`

func (db *DB) lockPurchases(
	ctx context.Context, tx pgx.Tx, outcomes []message.Outcome,
) (map[string]*purchaseState, error) {
	ids := column(outcomes, func(o message.Outcome) string { return o.EventID })
	rows, err := tx.Query(ctx, sqlLockPurchases, ids)
	if err != nil {
		return nil, fmt.Errorf("lock purchases: %w", err)
	}
	states := make(map[string]*purchaseState, len(outcomes))
	var s purchaseState
	var attempt *string
	var generation *int
	var tookMS *int64
	fields := []any{
		&s.id, &s.status, &s.reason, &s.generation, &s.finished, &s.attempts, &s.attempted, &attempt, &generation,
		&tookMS,
	}
	err = db.ForEach("outcomes", rows, fields, func() error {
		state := new(s)
		if attempt != nil {
			state.only = &onlyAttempt{*attempt, OrZero(generation), OrZero(tookMS)}
		}
		states[s.id] = state
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("lock purchases: %w", err)
	}
	return states, nil
}

// acceptedText is TikTok's message with an accepted event.
const acceptedText = "OK"

// fitsRow reports whether the view purchase_attempts can rebuild the outcome's attempt from the purchase's
// columns, if it is the only one.
func fitsRow(o *message.Outcome) bool {
	a := o.Attempt
	return o.Result == purchase.StatusDelivered && a.Class == purchase.ClassDelivered && a.Code != nil &&
		*a.Code == 0 && a.Message == acceptedText
}

// recordAttempts records each attempt once: in its purchase's state, which is written later, or in the table
// attempts.
func recordAttempts(
	ctx context.Context, tx pgx.Tx, outcomes []message.Outcome, states map[string]*purchaseState,
) error {
	unrecorded := make(map[string][]message.Outcome)
	for _, o := range outcomes {
		if only := states[o.EventID].only; o.Attempt != nil && (only == nil || only.id != o.Attempt.ID) {
			unrecorded[o.EventID] = append(unrecorded[o.EventID], o)
		}
	}
	var displaced []string
	var rows []message.Outcome
	for _, id := range slices.Sorted(maps.Keys(unrecorded)) {
		s, list := states[id], unrecorded[id]
		first := &list[0]
		another := func(o message.Outcome) bool { return o.Attempt.ID != first.Attempt.ID }
		if s.attempts == 0 && fitsRow(first) && !slices.ContainsFunc(list, another) {
			s.only = &onlyAttempt{first.Attempt.ID, first.Generation, first.Attempt.TookMS}
			s.newAttempts = 1
			continue
		}
		if s.only != nil {
			s.only, displaced = nil, append(displaced, id)
		}
		rows = append(rows, list...)
	}
	if len(displaced) > 0 {
		if _, err := tx.Exec(ctx, sqlDisplaceAttempts, displaced); err != nil {
			return fmt.Errorf("move attempts: %w", err)
		}
	}
	return insertAttempts(ctx, tx, rows, states)
}

// Purchases with an attempt in their row have no others.
const sqlDisplaceAttempts = `
INSERT INTO public.attempts (checkout_session_id, attempt_id, generation, at, took_ms, class, code, message,
    request_id)
SELECT checkout_session_id, attempt_id, generation, at, took_ms, class, code, message, request_id
FROM public.purchase_attempts WHERE checkout_session_id = ANY($1) ORDER BY checkout_session_id
ON CONFLICT (checkout_session_id, attempt_id) DO NOTHING`

const sqlInsertAttempts = `
INSERT INTO public.attempts (checkout_session_id, attempt_id, generation, at, took_ms, class, code, message,
    request_id)
SELECT a.id, a.attempt, a.generation, a.at, a.took, a.class, a.code, a.message, a.request
FROM unnest($1::text[], $2::text[], $3::int[], $4::timestamptz[], $5::bigint[], $6::text[], $7::int[],
    $8::text[], $9::text[]) AS a (id, attempt, generation, at, took, class, code, message, request)
ON CONFLICT (checkout_session_id, attempt_id) DO NOTHING
RETURNING checkout_session_id`

func insertAttempts(
	ctx context.Context, tx pgx.Tx, tried []message.Outcome, states map[string]*purchaseState,
) error {
	if len(tried) == 0 {
		return nil
	}
	rows, err := tx.Query(ctx, sqlInsertAttempts,
		column(tried, func(o message.Outcome) string { return o.EventID }),
		column(tried, func(o message.Outcome) string { return o.Attempt.ID }),
		column(tried, func(o message.Outcome) int { return o.Generation }),
		column(tried, func(o message.Outcome) time.Time { return o.Attempt.At }),
		column(tried, func(o message.Outcome) int64 { return o.Attempt.TookMS }),
		column(tried, func(o message.Outcome) string { return string(o.Attempt.Class) }),
		column(tried, func(o message.Outcome) *int { return o.Attempt.Code }),
		column(tried, func(o message.Outcome) string { return o.Attempt.Message }),
		column(tried, func(o message.Outcome) string { return o.Attempt.RequestID }))
	if err != nil {
		return fmt.Errorf("record attempts: %w", err)
	}
	var id string
	if _, err := pgx.ForEachRow(rows, []any{&id}, func() error {
		states[id].newAttempts++
		return nil
	}); err != nil {
		return fmt.Errorf("record attempts: %w", err)
	}
	return nil
}

// The last_* columns belong to the latest attempt by its own time, in any order of recording. The request id
// is that of the accepted attempt once there is one.
const sqlSettle = `
UPDATE public.purchases p SET
    status = s.status, reason = s.reason, generation = GREATEST(p.generation, s.generation),
    finished_at = s.finished, attempts = p.attempts + s.attempts,
    last_attempt_at   = CASE WHEN s.newer THEN s.at ELSE p.last_attempt_at END,
    last_class        = CASE WHEN s.newer THEN s.class ELSE p.last_class END,
    last_code         = CASE WHEN s.newer THEN s.code ELSE p.last_code END,
    last_error        = CASE WHEN s.newer THEN s.error ELSE p.last_error END,
    next_attempt_at   = CASE WHEN s.status <> 'retrying' THEN NULL WHEN s.newer THEN s.next
        ELSE p.next_attempt_at END,
    tiktok_request_id = COALESCE(s.accepted,
        CASE WHEN s.newer AND p.status <> 'delivered' THEN s.request END, p.tiktok_request_id),
    published_at = COALESCE(p.published_at, s.published),
    stream_sequence = COALESCE(p.stream_sequence, s.sequence),
    -- the keys that TikTok received replace the envelope's; only the ledger records that a click was late
    match_keys = COALESCE(
        s.keys | CASE WHEN s.keys & 4 <> 0 THEN COALESCE(p.match_keys, 0) & 512 ELSE 0 END, p.match_keys),
    sent_minor = COALESCE(s.minor, p.sent_minor), sent_page = COALESCE(s.page, p.sent_page),
    attempt_id = s.attempt, attempt_generation = s.attempt_generation, attempt_took_ms = s.took,
    claimed_until = CASE WHEN s.status = 'pending' THEN p.claimed_until END, updated_at = now()
FROM unnest($1::text[], $2::text[], $3::text[], $4::int[], $5::timestamptz[], $6::int[],
    $7::timestamptz[], $8::text[], $9::int[], $10::text[], $11::text[], $12::text[], $13::timestamptz[],
    $14::bigint[], $15::smallint[], $16::bigint[], $17::text[], $18::timestamptz[], $19::text[], $20::int[],
    $21::bigint[], $22::boolean[])
    AS s (id, status, reason, generation, finished, attempts, at, class, code, error, request, accepted,
        published, sequence, keys, minor, page, next, attempt, attempt_generation, took, newer)
WHERE p.checkout_session_id = s.id`

func updatePurchases(ctx context.Context, tx pgx.Tx, states map[string]*purchaseState) error {
	var rows []*purchaseState
	for _, id := range slices.Sorted(maps.Keys(states)) {
		s := states[id]
		if !s.changed && s.newAttempts == 0 {
			continue
		}
		if s.newAttempts == 0 {
			s.lastAttempt, s.accepted, s.next = nil, nil, nil // recorded before
		}
		if s.status != purchase.StatusDelivered {
			s.sent = nil
		}
		rows = append(rows, s)
	}
	if len(rows) == 0 {
		return nil
	}
	last := func(s *purchaseState) *message.Attempt { return s.lastAttempt }
	sent := func(s *purchaseState) *purchase.Sent { return s.sent }
	only := func(s *purchaseState) *onlyAttempt { return s.only }
	_, err := tx.Exec(ctx, sqlSettle,
		column(rows, func(s *purchaseState) string { return s.id }),
		column(rows, func(s *purchaseState) string { return string(s.status) }),
		column(rows, func(s *purchaseState) string { return string(s.reason) }),
		column(rows, func(s *purchaseState) int { return s.generation }),
		column(rows, func(s *purchaseState) *time.Time { return s.finished }),
		column(rows, func(s *purchaseState) int { return s.newAttempts }),
		column(rows, columnOf(last, func(a *message.Attempt) *time.Time { return &a.At })),
		column(rows, columnOf(last, func(a *message.Attempt) *string { return new(string(a.Class)) })),
		column(rows, columnOf(last, func(a *message.Attempt) *int { return a.Code })),
		column(rows, columnOf(last, func(a *message.Attempt) *string {
			if a.Class == purchase.ClassDelivered {
				return nil
			}
			return &a.Message
		})),
		column(rows, columnOf(last, func(a *message.Attempt) *string { return nullable(a.RequestID) })),
		column(rows, func(s *purchaseState) *string { return s.accepted }),
		column(rows, func(s *purchaseState) *time.Time { return s.published }),
		column(rows, func(s *purchaseState) *int64 { return s.sequence }),
		column(rows, columnOf(sent, func(p *purchase.Sent) *int16 { return &p.Keys })),
		column(rows, columnOf(sent, func(p *purchase.Sent) *int64 { return p.Minor })),
		column(rows, columnOf(sent, func(p *purchase.Sent) *string { return nullable(p.Page) })),
		column(rows, func(s *purchaseState) *time.Time { return s.next }),
		column(rows, columnOf(only, func(a *onlyAttempt) *string { return &a.id })),
		column(rows, columnOf(only, func(a *onlyAttempt) *int { return &a.generation })),
		column(rows, columnOf(only, func(a *onlyAttempt) *int64 { return &a.tookMS })),
		column(rows, (*purchaseState).newer))
	if err != nil {
		return fmt.Errorf("update purchases: %w", err)
	}
	return nil
}

// newer reports whether lastAttempt is the latest of all attempts.
func (s *purchaseState) newer() bool {
	return s.lastAttempt != nil && (s.attempted == nil || !s.lastAttempt.At.Before(*s.attempted))
}

// columnOf returns a column of a part of the state, null for a purchase without that part.
func columnOf[P, T any](part func(*purchaseState) *P, value func(*P) *T) func(*purchaseState) *T {
	return func(s *purchaseState) *T {
		if p := part(s); p != nil {
			return value(p)
		}
		return nil
	}
}
