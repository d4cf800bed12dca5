package postgres

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

// CountReplayable says how many purchases a selection would replay, and how many of those were first sent more than 48 h
// ago: TikTok may count them twice.
func (db *DB) CountReplayable(ctx context.Context, s purchase.Selection) (n, late int, err error) {
	err = db.pool.QueryRow(ctx, sqlCountReplayable, s.ID, s.Status, s.Reason, code32(s.Code), nullableTime(s.Since), time.Now()).Scan(&n, &late)
	if err != nil {
		return 0, 0, fmt.Errorf("count what can be replayed: %w", err)
	}
	return n, late, nil
}

// Replay makes purchases pending again and returns how many; progress is called with the count so far. For one id the error
// is purchase.ErrUnknown or purchase.ErrNotReplayable where nothing was done.
func (db *DB) Replay(ctx context.Context, s purchase.Selection, progress func(done int)) (n int, err error) {
	until := time.Now()
	for {
		tag, err := db.pool.Exec(ctx, sqlReplay, s.ID, s.Status, s.Reason, code32(s.Code), nullableTime(s.Since), until, replayBatch)
		if err != nil {
			return n, fmt.Errorf("replay, %d done so far: %w", n, err)
		}
		n += int(tag.RowsAffected())
		progress(n)
		if s.ID != "" || tag.RowsAffected() < replayBatch {
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
