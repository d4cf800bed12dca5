package ledger

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
)

// standing is one purchase while a batch of outcomes is applied to it.
type standing struct {
	status     purchase.Status
	reason     purchase.Reason
	generation int
	finished   *time.Time
	moved      bool
	recorded   int32            // attempts that were new
	last       *message.Attempt // the latest of the batch by its own time
	accepted   *string          // the request id of the one that TikTok accepted
	taken      *time.Time       // when the stream took it, by an outcome of its generation
	sequence   *int64           // and where
	sent       *purchase.Sent   // what TikTok got, by the outcome that made it delivered
}

// Settle applies outcomes to the ledger in one transaction: attempts are kept once each, statuses move by
// purchase.Settle. Applying the same outcomes again, or in another order, leads to the same ledger. unknown lists
// ids without a purchase.
func (db *DB) Settle(ctx context.Context, outcomes []message.Outcome) (unknown []string, err error) {
	err = pgx.BeginFunc(ctx, db.pool, func(tx pgx.Tx) error {
		unknown = nil
		ledger, err := db.lockPurchases(ctx, tx, outcomes)
		if err != nil {
			return err
		}
		known := outcomes[:0:0]
		for _, o := range outcomes {
			if ledger[o.EventID] == nil {
				unknown = append(unknown, o.EventID)
				continue
			}
			// A replay raises the generation on the ledger first, a sweep by one and afterwards: what is
			// further ahead is made up, or the ledger was restored from a backup. It must not use up the
			// numbers that replays need.
			if own := ledger[o.EventID].generation; o.Generation > own+1 {
				o.Generation = own
			}
			known = append(known, o)
		}
		if err := insertAttempts(ctx, tx, known, ledger); err != nil {
			return err
		}
		var now time.Time
		if err := tx.QueryRow(ctx, sqlNow).Scan(&now); err != nil {
			return fmt.Errorf("read the ledger's clock: %w", err)
		}
		for _, o := range known {
			ledger[o.EventID].apply(o, now)
		}
		return writeStandings(ctx, tx, ledger)
	})
	if err != nil {
		return nil, fmt.Errorf("record %d outcomes: %w", len(outcomes), err)
	}
	return unknown, nil
}

// apply moves a purchase by an outcome. An end is dated by the ledger: a replay compares it with the same
// clock, and a worker's may be minutes apart.
func (s *standing) apply(o message.Outcome, now time.Time) {
	if o.Generation >= s.generation && !o.Taken.IsZero() {
		s.taken, s.sequence = new(o.Taken), new(int64(o.Sequence)) //nolint:gosec // counts messages
	}
	next, changed := purchase.Settle(s.status, s.generation, o.Result, o.Generation)
	if changed {
		s.status, s.reason, s.moved, s.finished = next, o.Reason, true, nil
		if next != purchase.StatusRetrying {
			s.finished = &now
		}
		s.sent = o.Sent
	}
	if s.generation < o.Generation {
		s.generation, s.moved = o.Generation, true
	}
	if a := o.Attempt; a != nil {
		if s.last == nil || a.At.After(s.last.At) {
			s.last = a
		}
		if a.Class == purchase.ClassDelivered {
			s.accepted = nullable(a.RequestID)
		}
	}
}

// Rows are locked in key order, here and everywhere: two recorders never wait for each other in a circle.
const sqlLockPurchases = `
SELECT checkout_session_id, status, reason, generation, finished_at FROM public.purchases
WHERE checkout_session_id = ANY($1) ORDER BY checkout_session_id FOR UPDATE`

func (db *DB) lockPurchases(
	ctx context.Context, tx pgx.Tx, outcomes []message.Outcome,
) (map[string]*standing, error) {
	ids := make([]string, len(outcomes))
	for i, o := range outcomes {
		ids[i] = o.EventID
	}
	rows, err := tx.Query(ctx, sqlLockPurchases, ids)
	if err != nil {
		return nil, fmt.Errorf("lock the purchases: %w", err)
	}
	ledger := make(map[string]*standing, len(outcomes))
	var id string
	s := standing{}
	fields := []any{&id, &s.status, &s.reason, &s.generation, &s.finished}
	err = db.ForEach("outcomes", rows, fields, func() error {
		row := s
		ledger[id] = &row
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("lock the purchases: %w", err)
	}
	return ledger, nil
}

const sqlInsertAttempts = `
INSERT INTO public.attempts (checkout_session_id, attempt_id, generation, at, took_ms, class, code, message, request_id)
SELECT a.id, a.attempt, a.generation, a.at, a.took, a.class, a.code, a.message, a.request
FROM unnest($1::text[], $2::text[], $3::int[], $4::timestamptz[], $5::bigint[], $6::text[], $7::int[], $8::text[], $9::text[])
    AS a (id, attempt, generation, at, took, class, code, message, request)
ON CONFLICT (checkout_session_id, attempt_id) DO NOTHING
RETURNING checkout_session_id`

func insertAttempts(ctx context.Context, tx pgx.Tx, outcomes []message.Outcome, ledger map[string]*standing) error {
	var ids, attempts, classes, messages, requests []string
	var generations []int32
	var ats []time.Time
	var took []int64
	var codes []*int32
	for _, o := range outcomes {
		a := o.Attempt
		if a == nil {
			continue
		}
		ids, attempts, classes = append(ids, o.EventID), append(attempts, a.ID), append(classes, string(a.Class))
		messages, requests = append(messages, a.Message), append(requests, a.RequestID)
		generations, ats, took = append(generations, int32(o.Generation)), append(ats, a.At), append(took, a.TookMS) //nolint:gosec // counted up from 1
		codes = append(codes, code32(a.Code))
	}
	if len(ids) == 0 {
		return nil
	}
	rows, err := tx.Query(ctx, sqlInsertAttempts, ids, attempts, generations, ats, took, classes, codes, messages, requests)
	if err != nil {
		return fmt.Errorf("record attempts: %w", err)
	}
	var id string
	if _, err := pgx.ForEachRow(rows, []any{&id}, func() error {
		ledger[id].recorded++
		return nil
	}); err != nil {
		return fmt.Errorf("record attempts: %w", err)
	}
	return nil
}

// The last_* columns are those of the latest attempt by its own time, in whatever order attempts are recorded; the
// request id is the accepting one's, once there is one.
const sqlSettle = `
UPDATE public.purchases p SET
    status = s.status, reason = s.reason, generation = GREATEST(p.generation, s.generation),
    finished_at = s.finished, attempts = p.attempts + s.attempts,
    last_attempt_at   = CASE WHEN s.newer THEN s.at ELSE p.last_attempt_at END,
    last_class        = CASE WHEN s.newer THEN s.class ELSE p.last_class END,
    last_code         = CASE WHEN s.newer THEN s.code ELSE p.last_code END,
    last_error        = CASE WHEN s.newer THEN s.error ELSE p.last_error END,
    tiktok_request_id = COALESCE(s.accepted, CASE WHEN s.newer AND p.status <> 'delivered' THEN s.request END, p.tiktok_request_id),
    published_at = COALESCE(p.published_at, s.taken), stream_sequence = COALESCE(p.stream_sequence, s.sequence),
    -- what TikTok got takes the place of what was offered; how late the click was is known here alone
    match_keys = COALESCE(
        s.keys | CASE WHEN s.keys & 4 <> 0 THEN COALESCE(p.match_keys, 0) & 512 ELSE 0 END, p.match_keys),
    sent_minor = COALESCE(s.minor, p.sent_minor), sent_page = COALESCE(s.page, p.sent_page),
    claimed_until = CASE WHEN s.status = 'pending' THEN p.claimed_until END, updated_at = now()
FROM (
    SELECT u.*, u.at IS NOT NULL AND (q.last_attempt_at IS NULL OR u.at >= q.last_attempt_at) AS newer
    FROM unnest($1::text[], $2::text[], $3::text[], $4::int[], $5::timestamptz[], $6::int[], $7::timestamptz[], $8::text[], $9::int[], $10::text[], $11::text[], $12::text[],
        $13::timestamptz[], $14::bigint[], $15::smallint[], $16::bigint[], $17::text[])
        AS u (id, status, reason, generation, finished, attempts, at, class, code, error, request, accepted, taken,
            sequence, keys, minor, page)
    JOIN public.purchases q ON q.checkout_session_id = u.id
) s
WHERE p.checkout_session_id = s.id`

func writeStandings(ctx context.Context, tx pgx.Tx, ledger map[string]*standing) error {
	ids := make([]string, 0, len(ledger))
	for id, s := range ledger {
		if s.moved || s.recorded > 0 {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	slices.Sort(ids)
	n := len(ids)
	statuses, reasons := make([]string, n), make([]string, n)
	generations, recorded := make([]int32, n), make([]int32, n)
	finished, ats := make([]*time.Time, n), make([]*time.Time, n)
	classes, messages := make([]*string, n), make([]*string, n)
	requests, accepted := make([]*string, n), make([]*string, n)
	codes := make([]*int32, n)
	taken, sequences := make([]*time.Time, n), make([]*int64, n)
	keys, minors, pages := make([]*int16, n), make([]*int64, n), make([]*string, n)
	for i, id := range ids {
		s := ledger[id]
		taken[i], sequences[i] = s.taken, s.sequence
		statuses[i], reasons[i], recorded[i], finished[i] = string(s.status), string(s.reason), s.recorded, s.finished
		generations[i] = int32(s.generation) //nolint:gosec // counted up from 1
		if s.status == purchase.StatusDelivered && s.sent != nil {
			keys[i], minors[i], pages[i] = &s.sent.Keys, s.sent.Minor, nullable(s.sent.Page)
		}
		if a := s.last; a != nil && s.recorded > 0 {
			class := string(a.Class)
			ats[i], classes[i], codes[i] = &a.At, &class, code32(a.Code)
			requests[i], accepted[i] = nullable(a.RequestID), s.accepted
			if a.Class != purchase.ClassDelivered {
				messages[i] = &a.Message
			}
		}
	}
	_, err := tx.Exec(ctx, sqlSettle, ids, statuses, reasons, generations, finished, recorded, ats, classes, codes,
		messages, requests, accepted, taken, sequences, keys, minors, pages)
	if err != nil {
		return fmt.Errorf("write the outcomes: %w", err)
	}
	return nil
}

func code32(code *int) *int32 {
	if code == nil {
		return nil
	}
	c := int32(*code) //nolint:gosec // contract.DecodeOutcomes has checked the range
	return &c
}
