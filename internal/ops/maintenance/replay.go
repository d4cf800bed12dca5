package maintenance

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/ledger"
	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
)

// Selection selects the purchases of a replay: by ID, by IDs, or by the other fields.
//
// Dead and skipped (not_configured) purchases can be replayed; skipped (test_purchase) ones only by id; the
// other skipped ones and delivered ones never.
type Selection struct {
	ID     string
	IDs    []string        // up to MaxIDs
	Status purchase.Status // dead or skipped
	Reason purchase.Reason // "": any
	Code   *int            // TikTok's last code; nil: any
	NoCode bool            // only purchases without a code
	Since  time.Time       // earliest end; zero: any

	Within time.Duration // greatest age of the end, by the ledger's clock; 0: any
}

// SetSince sets the earliest end: a duration (30m, 72h, 7d) before the replay, by the ledger's clock, or an
// RFC 3339 time. "": any.
func (s *Selection) SetSince(text string) (err error) {
	if age, ok := parseAge(text); ok {
		s.Within = age
		return nil
	}
	s.Since, err = ParseSince(text, time.Time{})
	return err
}

// ErrNotReplayable reports that a purchase's status and reason do not allow a replay.
var ErrNotReplayable = errors.New("only dead purchases and skipped ones (not_configured, test_purchase) " +
	"can be replayed")

// Replayable counts the replayable purchases of one reason and code.
type Replayable struct {
	Reason purchase.Reason
	Code   *int // TikTok's last; nil: none
	Count  int
	Late   int // of Count, possibly accepted more than 48 h ago: TikTok may count them twice
	Old    int // of Count, paid longer than MaxMatchAge ago
}

// MaxMatchAge is the age up to which TikTok matches and shows an event. Source: Amperity's documentation of
// its TikTok destination; TikTok's own names no age.
const MaxMatchAge = 28 * 24 * time.Hour

// Sum returns the totals of Count and Late.
func Sum(counts []Replayable) (n, late int) {
	for _, c := range counts {
		n += c.Count
		late += c.Late
	}
	return n, late
}

// Old returns the total of Old.
func Old(counts []Replayable) (n int) {
	for _, c := range counts {
		n += c.Old
	}
	return n
}

// MaxIDs limits Selection.IDs.
const MaxIDs = 200

// Check validates a selection.
func (s *Selection) Check() error {
	switch {
	case len(s.IDs) > 0 && s.ID != "", (s.ID != "" || len(s.IDs) > 0) &&
		(s.Status != "" || s.Reason != "" || s.Code != nil || s.NoCode || !s.Since.IsZero() || s.Within > 0):
		return errors.New("select purchases by id, or by status, reason, code and time, not both")
	case slices.ContainsFunc(s.SelectedIDs(), func(id string) bool { return !purchase.ValidID(id) }):
		return errors.New("invalid id")
	case len(s.IDs) > MaxIDs:
		return fmt.Errorf("too many ids: %d, limit %d", len(s.IDs), MaxIDs)
	case s.ID == "" && len(s.IDs) == 0 && s.Status != purchase.StatusDead && s.Status != purchase.StatusSkipped:
		return errors.New("status must be dead or skipped")
	case s.Reason != "" && purchase.LogSafe(string(s.Reason)) != string(s.Reason):
		return errors.New("invalid reason")
	}
	return nil
}

// SelectedIDs returns the ids of a selection; nil if it selects by status.
func (s *Selection) SelectedIDs() []string {
	if s.ID != "" {
		return []string{s.ID}
	}
	return s.IDs
}

// replayBatch is the number of purchases per statement, small enough not to block the recorder.
const replayBatch = 500

const sqlNow = `SELECT now()`

// endedSince returns the ledger's time and the selection's earliest end; nil: any. Both are of the ledger's
// clock, which also sets finished_at.
func (j *Jobs) endedSince(ctx context.Context, s *Selection) (now time.Time, since *time.Time, err error) {
	if err := j.db.Pool().QueryRow(ctx, sqlNow).Scan(&now); err != nil {
		return now, nil, fmt.Errorf("read ledger's clock: %w", err)
	}
	if s.Within > 0 {
		return now, new(now.Add(-s.Within)), nil
	}
	if s.Since.IsZero() {
		return now, nil, nil
	}
	return now, &s.Since, nil
}

// A refused purchase was not accepted, unless an earlier attempt had no answer, or TikTok accepted a part of
// its request (20001). An expired one, or one that crashed the worker, may have been sent without a record.
const countReplayable = `
SELECT reason, last_code, count(*), count(*) FILTER (WHERE
        status = 'dead' AND reason <> 'refused' AND first_published_at < now() - interval '48 hours'
        OR EXISTS (SELECT FROM public.purchase_attempts a
            WHERE a.checkout_session_id = purchases.checkout_session_id AND a.at < now() - interval '48 hours'
            AND (a.class NOT IN ('refused', 'access', 'rate', 'blocked') OR a.code = 20001))),
    count(*) FILTER (WHERE purchased_at < now() - interval '28 days')
FROM public.purchases WHERE `

const sqlCountByID = countReplayable + replayableByID + ` GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2`

const sqlCountByStatus = countReplayable + replayableByStatus + ` GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2`

// CountReplayable counts the purchases that a replay would make pending, by reason and TikTok's last code.
func (j *Jobs) CountReplayable(ctx context.Context, s Selection) ([]Replayable, error) {
	now, since, err := j.endedSince(ctx, &s)
	if err != nil {
		return nil, err
	}
	statement, args := sqlCountByStatus, []any{s.Status, s.Reason, s.Code, since, now, s.NoCode}
	if ids := s.SelectedIDs(); ids != nil {
		statement, args = sqlCountByID, []any{ids}
	}
	rows, err := j.db.Pool().Query(ctx, statement, args...)
	if err != nil {
		return nil, fmt.Errorf("count replayable purchases: %w", err)
	}
	counted, err := ledger.Collect(j.db, "replay", rows, func(row pgx.CollectableRow) (r Replayable, err error) {
		err = row.Scan(&r.Reason, &r.Code, &r.Count, &r.Late, &r.Old)
		return r, err
	})
	if err != nil {
		return nil, fmt.Errorf("count replayable purchases: %w", err)
	}
	return counted, nil
}

const sqlSessionState = `SELECT status, reason FROM public.purchases WHERE checkout_session_id = $1`

const replayableByID = `
envelope IS NOT NULL AND checkout_session_id = ANY($1::text[])
    AND (status = 'dead' OR status = 'skipped' AND reason IN ('not_configured', 'test_purchase'))`

// $5, the start of the replay, excludes purchases that die again meanwhile.
const replayableByStatus = `
envelope IS NOT NULL AND status = $1 AND (status = 'dead' OR status = 'skipped' AND reason = 'not_configured')
    AND ($2 = '' OR reason = $2) AND ($3::int IS NULL OR last_code = $3)
    AND (NOT $6::boolean OR last_code IS NULL)
    AND ($4::timestamptz IS NULL OR finished_at >= $4) AND finished_at <= $5::timestamptz`

const makePending = `
UPDATE public.purchases SET status = 'pending', reason = '', generation = generation + 1,
    first_published_at = NULL, published_at = NULL, stream_sequence = NULL, swept_at = NULL,
    claimed_until = NULL, finished_at = NULL, next_attempt_at = NULL, updated_at = now()
WHERE checkout_session_id IN (
    SELECT checkout_session_id FROM public.purchases WHERE `

const sqlReplayByID = makePending + replayableByID + ` ORDER BY checkout_session_id FOR UPDATE)`

const sqlReplayByStatus = makePending + replayableByStatus +
	` ORDER BY checkout_session_id LIMIT $7 FOR UPDATE)`

// Replay makes purchases pending again, with a new generation and age, and returns how many; progress is
// called with the count so far. With ID the error is report.ErrNotFound or ErrNotReplayable if none was
// replayed; with IDs those that cannot be replayed are left out.
func (j *Jobs) Replay(ctx context.Context, s Selection, progress func(done int)) (n int, err error) {
	now, since, err := j.endedSince(ctx, &s)
	if err != nil {
		return 0, err
	}
	statement, args := sqlReplayByStatus, []any{s.Status, s.Reason, s.Code, since, now, s.NoCode, replayBatch}
	ids := s.SelectedIDs()
	if ids != nil {
		statement, args = sqlReplayByID, []any{ids}
	}
	for {
		tag, err := j.db.Pool().Exec(ctx, statement, args...)
		if err != nil {
			return n, fmt.Errorf("replay after %d purchases: %w", n, err)
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
	err = j.db.Pool().QueryRow(ctx, sqlSessionState, s.ID).Scan(&status, &reason)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return 0, fmt.Errorf("replay %s: %w", s.ID, report.ErrNotFound)
	case err != nil:
		return 0, fmt.Errorf("replay %s: %w", s.ID, err)
	case reason != "":
		status += " (" + reason + ")"
	}
	return 0, fmt.Errorf("replay %s: status is %s: %w", s.ID, status, ErrNotReplayable)
}
