package ledger

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/purchase"
)

// replayBatch is how many purchases one statement makes pending: few enough to leave the recorder room.
const replayBatch = 500

// endedSince returns the ledger's time, and since when the purchases of a selection ended; null: any time.
// Ends are dated by the same clock, whatever that of this process shows.
func (db *DB) endedSince(
	ctx context.Context, s *purchase.Selection,
) (now time.Time, since *time.Time, err error) {
	if err := db.pool.QueryRow(ctx, sqlNow).Scan(&now); err != nil {
		return now, nil, fmt.Errorf("read the ledger's clock: %w", err)
	}
	if s.Within > 0 {
		return now, new(now.Add(-s.Within)), nil
	}
	return now, nullableTime(s.Since), nil
}

const countReplayable = `
SELECT reason, last_code, count(*), count(*) FILTER (WHERE first_published_at < now() - interval '48 hours'),
    count(*) FILTER (WHERE purchased_at < now() - interval '28 days')
FROM public.purchases WHERE `

const sqlCountChosen = countReplayable + chosenReplayable + ` GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2`

const sqlCountMany = countReplayable + manyReplayable + ` GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2`

// CountReplayable says how many purchases a selection would replay, by their reasons and TikTok's last codes.
func (db *DB) CountReplayable(ctx context.Context, s purchase.Selection) ([]purchase.Replayable, error) {
	now, since, err := db.endedSince(ctx, &s)
	if err != nil {
		return nil, err
	}
	statement, args := sqlCountMany, []any{s.Status, s.Reason, code32(s.Code), since, now, s.NoCode}
	if ids := s.Chosen(); ids != nil {
		statement, args = sqlCountChosen, []any{ids}
	}
	rows, err := db.pool.Query(ctx, statement, args...)
	if err != nil {
		return nil, fmt.Errorf("count what can be replayed: %w", err)
	}
	counted, err := Collect(db, "replay", rows, func(row pgx.CollectableRow) (r purchase.Replayable, err error) {
		return r, row.Scan(&r.Reason, &r.Code, &r.Count, &r.Late, &r.Old)
	})
	if err != nil {
		return nil, fmt.Errorf("count what can be replayed: %w", err)
	}
	return counted, nil
}

const sqlSessionState = `SELECT status, reason FROM public.purchases WHERE checkout_session_id = $1`

// A replay is the row made pending again, with a new generation and a new age. Nothing leaves delivered, a trial
// (no_payment) is no sale, and test purchases are replayed by their own ids alone.
const chosenReplayable = `
envelope IS NOT NULL AND checkout_session_id = ANY($1::text[]) AND (status = 'dead' OR status = 'skipped' AND reason IN ('not_configured', 'test_purchase'))`

// $5 keeps a replay of many from running after what dies again meanwhile.
const manyReplayable = `
envelope IS NOT NULL AND status = $1 AND (status = 'dead' OR status = 'skipped' AND reason = 'not_configured')
    AND ($2 = '' OR reason = $2) AND ($3::int IS NULL OR last_code = $3) AND (NOT $6::boolean OR last_code IS NULL) AND ($4::timestamptz IS NULL OR finished_at >= $4)
    AND finished_at <= $5::timestamptz`

const sqlReplayChosen = replay + chosenReplayable + ` ORDER BY checkout_session_id FOR UPDATE)`

const sqlReplayMany = replay + manyReplayable + ` ORDER BY checkout_session_id LIMIT $7 FOR UPDATE)`

// Replay makes purchases pending again and returns how many; progress is called with the count so far. For one id the error
// is purchase.ErrUnknown or purchase.ErrNotReplayable where nothing was done; of some ids those that can be replayed are.
func (db *DB) Replay(ctx context.Context, s purchase.Selection, progress func(done int)) (n int, err error) {
	now, since, err := db.endedSince(ctx, &s)
	if err != nil {
		return 0, err
	}
	statement, args := sqlReplayMany, []any{s.Status, s.Reason, code32(s.Code), since, now, s.NoCode, replayBatch}
	ids := s.Chosen()
	if ids != nil {
		statement, args = sqlReplayChosen, []any{ids}
	}
	for {
		tag, err := db.pool.Exec(ctx, statement, args...)
		if err != nil {
			return n, fmt.Errorf("replay, %d done so far: %w", n, err)
		}
		n += int(tag.RowsAffected())
		progress(n)
		if ids != nil || tag.RowsAffected() < replayBatch {
			break
		}
	}
	if s.ID == "" || n > 0 {
		return n, nil
	}
	var status, reason string
	err = db.pool.QueryRow(ctx, sqlSessionState, s.ID).Scan(&status, &reason)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return 0, fmt.Errorf("replay %s: %w", s.ID, purchase.ErrUnknown)
	case err != nil:
		return 0, fmt.Errorf("replay %s: %w", s.ID, err)
	case reason != "":
		status += " (" + reason + ")"
	}
	return 0, fmt.Errorf("replay %s, which is %s: %w", s.ID, status, purchase.ErrNotReplayable)
}
