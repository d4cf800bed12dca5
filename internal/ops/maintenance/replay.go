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

// Selection says which purchases a replay is about: one by its id, some by theirs, or all that match the
// rest.
//
// Who may be replayed: dead, and skipped (not_configured); skipped (test_purchase) by its own id alone;
// skipped (no_payment) never, because no money is no sale; delivered never.
type Selection struct {
	ID     string
	IDs    []string        // some, at most MaxSome
	Status purchase.Status // dead or skipped
	Reason purchase.Reason // "": any
	Code   *int            // TikTok's last code, nil: any
	NoCode bool            // only those without any code
	Since  time.Time       // ended at or after; zero: any

	Within time.Duration // ended within this span, by the ledger's clock; 0: any
}

// SetSince reads which ends are meant: a span (30m, 72h, 7d) before the replay, by the ledger's clock, or a
// time in RFC 3339. "": all.
func (s *Selection) SetSince(text string) (err error) {
	if span, ok := parseSpan(text); ok {
		s.Within = span
		return nil
	}
	s.Since, err = ParseSince(text, time.Time{})
	return err
}

// ErrNotReplayable reports that the purchase is in no state that a replay may take it from.
var ErrNotReplayable = errors.New("this purchase cannot be replayed: only dead ones, " +
	"and those skipped for want of a token or as a test")

// Replayable counts purchases of one reason and code that a replay would take.
type Replayable struct {
	Reason purchase.Reason
	Code   *int // TikTok's last; nil: none
	Count  int
	Late   int // of these, first sent more than 48 h ago: TikTok may count them twice
	Old    int // of these, paid longer ago than TikTokShows
}

// TikTokShows is how old an event may be: TikTok is said to neither match nor show older ones. Source:
// Amperity's documentation of its TikTok destination; TikTok's own names no age.
const TikTokShows = 28 * 24 * time.Hour

// Sum adds up counts, and how many of them are late.
func Sum(counts []Replayable) (n, late int) {
	for _, c := range counts {
		n += c.Count
		late += c.Late
	}
	return n, late
}

// Old adds up how many purchases are too old to be matched by TikTok.
func Old(counts []Replayable) (n int) {
	for _, c := range counts {
		n += c.Old
	}
	return n
}

// MaxSome is how many purchases may be chosen by their ids at once.
const MaxSome = 200

// Check returns what is wrong with a selection.
func (s *Selection) Check() error {
	switch {
	case len(s.IDs) > 0 && s.ID != "", (s.ID != "" || len(s.IDs) > 0) &&
		(s.Status != "" || s.Reason != "" || s.Code != nil || s.NoCode || !s.Since.IsZero()):
		return errors.New("choose purchases by their ids, or many by status, reason, code and time, not both")
	case slices.ContainsFunc(s.Chosen(), func(id string) bool { return !purchase.ValidID(id) }):
		return errors.New("the id has no usable form")
	case len(s.IDs) > MaxSome:
		return fmt.Errorf("at most %d purchases can be chosen by their ids", MaxSome)
	case s.ID == "" && len(s.IDs) == 0 && s.Status != purchase.StatusDead && s.Status != purchase.StatusSkipped:
		return errors.New("status is dead or skipped")
	case s.Reason != "" && purchase.LogSafe(string(s.Reason)) != string(s.Reason):
		return errors.New("the reason has no usable form")
	}
	return nil
}

// Chosen returns the ids of a selection that names them; nil where it chooses by status.
func (s *Selection) Chosen() []string {
	if s.ID != "" {
		return []string{s.ID}
	}
	return s.IDs
}

// replayBatch is how many purchases one statement makes pending: few enough to leave the recorder room.
const replayBatch = 500

// endedSince returns the ledger's time, and since when the purchases of a selection ended; null: any time.
// Ends are dated by the same clock, whatever that of this process shows.
func (j *Jobs) endedSince(
	ctx context.Context, s *Selection,
) (now time.Time, since *time.Time, err error) {
	if err := j.db.Pool().QueryRow(ctx, sqlNow).Scan(&now); err != nil {
		return now, nil, fmt.Errorf("read the ledger's clock: %w", err)
	}
	if s.Within > 0 {
		return now, new(now.Add(-s.Within)), nil
	}
	if s.Since.IsZero() {
		return now, nil, nil
	}
	return now, &s.Since, nil
}

const sqlNow = `SELECT now()`

const countReplayable = `
SELECT reason, last_code, count(*), count(*) FILTER (WHERE first_published_at < now() - interval '48 hours'),
    count(*) FILTER (WHERE purchased_at < now() - interval '28 days')
FROM public.purchases WHERE `

const sqlCountChosen = countReplayable + chosenReplayable + ` GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2`

const sqlCountMany = countReplayable + manyReplayable + ` GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2`

// CountReplayable counts the purchases that a selection would replay, by their reasons and TikTok's last codes.
func (j *Jobs) CountReplayable(ctx context.Context, s Selection) ([]Replayable, error) {
	now, since, err := j.endedSince(ctx, &s)
	if err != nil {
		return nil, err
	}
	statement, args := sqlCountMany, []any{s.Status, s.Reason, s.Code, since, now, s.NoCode}
	if ids := s.Chosen(); ids != nil {
		statement, args = sqlCountChosen, []any{ids}
	}
	rows, err := j.db.Pool().Query(ctx, statement, args...)
	if err != nil {
		return nil, fmt.Errorf("count what can be replayed: %w", err)
	}
	counted, err := ledger.Collect(j.db, "replay", rows, func(row pgx.CollectableRow) (r Replayable, err error) {
		err = row.Scan(&r.Reason, &r.Code, &r.Count, &r.Late, &r.Old)
		return r, err
	})
	if err != nil {
		return nil, fmt.Errorf("count what can be replayed: %w", err)
	}
	return counted, nil
}

const sqlSessionState = `SELECT status, reason FROM public.purchases WHERE checkout_session_id = $1`

// A replay is the row made pending again, with a new generation and a new age. Nothing leaves delivered, a
// trial (no_payment) is no sale, and test purchases are replayed by their own ids alone.
const chosenReplayable = `
envelope IS NOT NULL AND checkout_session_id = ANY($1::text[])
    AND (status = 'dead' OR status = 'skipped' AND reason IN ('not_configured', 'test_purchase'))`

// $5 keeps a replay of many from running after what dies again meanwhile.
const manyReplayable = `
envelope IS NOT NULL AND status = $1 AND (status = 'dead' OR status = 'skipped' AND reason = 'not_configured')
    AND ($2 = '' OR reason = $2) AND ($3::int IS NULL OR last_code = $3) AND (NOT $6::boolean OR last_code IS NULL)
    AND ($4::timestamptz IS NULL OR finished_at >= $4)
    AND finished_at <= $5::timestamptz`

const makePending = `
UPDATE public.purchases SET status = 'pending', reason = '', generation = generation + 1, first_published_at = NULL,
    published_at = NULL, stream_sequence = NULL, swept_at = NULL, claimed_until = NULL, finished_at = NULL,
    updated_at = now()
WHERE checkout_session_id IN (
    SELECT checkout_session_id FROM public.purchases WHERE `

const sqlReplayChosen = makePending + chosenReplayable + ` ORDER BY checkout_session_id FOR UPDATE)`

const sqlReplayMany = makePending + manyReplayable + ` ORDER BY checkout_session_id LIMIT $7 FOR UPDATE)`

// Replay makes purchases pending again and returns how many; progress is called with the count so far. For
// one id the error is report.ErrNotFound or ErrNotReplayable where nothing was done; of some ids those that
// can be replayed are.
func (j *Jobs) Replay(ctx context.Context, s Selection, progress func(done int)) (n int, err error) {
	now, since, err := j.endedSince(ctx, &s)
	if err != nil {
		return 0, err
	}
	statement, args := sqlReplayMany, []any{s.Status, s.Reason, s.Code, since, now, s.NoCode, replayBatch}
	ids := s.Chosen()
	if ids != nil {
		statement, args = sqlReplayChosen, []any{ids}
	}
	for {
		tag, err := j.db.Pool().Exec(ctx, statement, args...)
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
	err = j.db.Pool().QueryRow(ctx, sqlSessionState, s.ID).Scan(&status, &reason)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return 0, fmt.Errorf("replay %s: %w", s.ID, report.ErrNotFound)
	case err != nil:
		return 0, fmt.Errorf("replay %s: %w", s.ID, err)
	case reason != "":
		status += " (" + reason + ")"
	}
	return 0, fmt.Errorf("replay %s, which is %s: %w", s.ID, status, ErrNotReplayable)
}
