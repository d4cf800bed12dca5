package ledger

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/message"
)

// StatsHistory is how long the history of TikTok's counts is kept.
const StatsHistory = 30 * 24 * time.Hour

// One writer: an older answer must not add an event type behind a newer one.
const sqlLockStats = `SELECT pg_advisory_xact_lock(` + lockStats + `)`

// $1 pixel, $2 day, $3 time of asking. An answer older than the recorded one changes nothing. Event types
// that it does not list count 0. The history has only what changed.
const sqlRecordStats = `
WITH answer AS (
    SELECT a.event, a.total, a.browser, a.server, a.attributed
    FROM unnest($4::text[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[])
        AS a (event, total, browser, server, attributed)
    UNION ALL
    SELECT c.event, 0, 0, 0, 0 FROM public.tiktok_counts c
    WHERE c.pixel_id = $1 AND c.day = $2::date AND c.event <> ALL($4)
), latest AS (
    SELECT a.event, a.total, a.browser, a.server, a.attributed FROM answer a
    WHERE NOT EXISTS (SELECT FROM public.tiktok_counts c
        WHERE c.pixel_id = $1 AND c.day = $2 AND c.asked_at > $3::timestamptz)
), changed AS (
    INSERT INTO public.tiktok_count_history (pixel_id, event, day, asked_at, total, browser, server,
        attributed)
    SELECT $1, l.event, $2, $3, l.total, l.browser, l.server, l.attributed
    FROM latest l
    LEFT JOIN public.tiktok_counts c ON c.pixel_id = $1 AND c.day = $2 AND c.event = l.event
    WHERE c.event IS NULL OR (c.total, c.browser, c.server, c.attributed)
        IS DISTINCT FROM (l.total, l.browser, l.server, l.attributed)
    ON CONFLICT (pixel_id, event, day, asked_at) DO NOTHING
)
INSERT INTO public.tiktok_counts AS t (pixel_id, event, day, total, browser, server, attributed, asked_at)
SELECT $1, l.event, $2, l.total, l.browser, l.server, l.attributed, $3 FROM latest l
ON CONFLICT (pixel_id, event, day) DO UPDATE SET
    total = excluded.total, browser = excluded.browser, server = excluded.server,
    attributed = excluded.attributed, asked_at = excluded.asked_at`

const sqlPruneStatsHistory = `
DELETE FROM public.tiktok_count_history WHERE asked_at < now() - make_interval(secs => $1)`

// RecordStats records a day's counts unless a later answer is recorded, and prunes the history. It may be
// repeated.
func (db *DB) RecordStats(ctx context.Context, s message.Stats) error {
	err := pgx.BeginFunc(ctx, db.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, sqlLockStats); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, sqlRecordStats, s.PixelID, s.Day, s.AskedAt,
			column(s.Counts, func(c message.Count) string { return c.Event }),
			column(s.Counts, func(c message.Count) int64 { return c.Total }),
			column(s.Counts, func(c message.Count) int64 { return c.Browser }),
			column(s.Counts, func(c message.Count) int64 { return c.Server }),
			column(s.Counts, func(c message.Count) int64 { return c.Attributed }))
		if err == nil {
			_, err = tx.Exec(ctx, sqlPruneStatsHistory, StatsHistory.Seconds())
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("record counts of %s: %w", s.Day, err)
	}
	return nil
}
