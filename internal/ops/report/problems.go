package report

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/ledger"
	"purchase-relay/internal/logsafe"
	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/guide"
	"purchase-relay/internal/purchase"
)

// Problem is something that is wrong now. Pages, the API, NOTIFY_URL and `ingest show --problems` have the
// same list of them.
type Problem struct {
	Kind      string     `json:"-"`         // see guide.ProblemKinds; dead:<reason>
	What      string     `json:"what"`      // a sentence without full stop
	Since     *time.Time `json:"since"`     // UTC; null: unknown
	Purchases *int       `json:"purchases"` // that wait for it or need the operator; null: unknown
	Remedy    string     `json:"remedy"`

	Latest time.Time `json:"-"` // when it last got worse; zero: it has not
	IDs    []string  `json:"-"` // up to five purchases or workers, latest first
	Group  *Group    `json:"-"` // of dead or rejected purchases; else nil
}

// Problems are all problems of a moment.
type Problems struct {
	List    []Problem // the most urgent first; never nil
	unknown func(kind string) bool
}

// Unknown reports whether a kind is missing in the list because its sources could not be read, or because
// another problem covers it.
func (p Problems) Unknown(kind string) bool { return p.unknown != nil && p.unknown(kind) }

// Only returns the problems of one kind; all others are unknown.
func (p Problems) Only(kind string) Problems {
	list := slices.DeleteFunc(slices.Clone(p.List), func(other Problem) bool { return other.Kind != kind })
	return Problems{List: list, unknown: func(other string) bool { return other != kind || p.Unknown(kind) }}
}

// Condition is the state of something that works or fails. The zero Condition is unknown.
type Condition struct {
	Checked bool
	Failed  bool
	Since   time.Time // of a failure; zero: unknown
}

// Observed is what the list of problems is made of. Its zero fields are unknown.
type Observed struct {
	Postgres, Schema Condition
	NATS             Condition
	Queue            Condition       // the streams and the workers' consumer
	Ledger           *LedgerProblems // nil: unreadable

	Workers      []message.WorkerState // that reported lately
	WorkersKnown bool                  // no workers means that none reports
	LastWorker   time.Time             // without workers: when the last one reported, or could have

	LastWebhook time.Time
	Silence     time.Duration // without webhooks that is a problem; 0: none
	Thin        ThinEvents    // rejected lately
}

// ThinEvents counts rejected thin events.
type ThinEvents struct {
	Count int
	First time.Time
}

// LedgerProblems is what the ledger knows of problems.
type LedgerProblems struct {
	Failed        []FailedGroup
	Pending       int // of both modes
	Live, Test    int // published or retrying
	NotConfigured int // skipped by a worker without token

	OldestPending, OldestLive, OldestTest time.Time // since when they wait; zero: none does

	Lost                int // published again in the last hour
	FirstLost, LastLost time.Time
	LastWebhook         time.Time // zero: never
}

// FailedGroup is a group of dead or rejected purchases.
type FailedGroup struct {
	Group
	First, Latest time.Time // when the first and the last one ended; zero: unknown
	IDs           []string  // up to five, latest first
}

// The ages from which waiting purchases are a problem, as in the alert rules. The guide's texts name them.
const (
	maxPendingAge = 5 * time.Minute
	maxWaitingAge = 30 * time.Minute
)

const (
	maxProblemIDs    = 5
	maxProblemReason = 200 // characters
)

// NewProblems returns the problems of a moment.
func NewProblems(o Observed, now time.Time) Problems {
	l := problemList{list: []Problem{}}
	l.addConditions(o)
	l.addWorkers(o)
	if o.Thin.Count > 0 { // Stripe repeats an event: their number is not that of purchases
		l.add(guide.ProblemThinEvents, "", o.Thin.First, nil)
	}
	l.addFailed(o)
	l.addSilence(o, now)
	l.addWaiting(o, now)
	l.addCounts(o)
	return Problems{List: l.list, unknown: func(kind string) bool {
		if slices.Contains(l.covered, kind) {
			return true
		}
		switch kind {
		case guide.ProblemPostgres:
			return !o.Postgres.Checked
		case guide.ProblemSchema:
			return !o.Schema.Checked
		case guide.ProblemNATS:
			return !o.NATS.Checked
		case guide.ProblemQueue:
			return !o.Queue.Checked || o.NATS.Failed
		case guide.ProblemPaused, guide.ProblemCircuitOpen, guide.ProblemOff, guide.ProblemTestPaused,
			guide.ProblemCounts:
			return len(o.Workers) == 0 // restarting, or NATS is down
		case guide.ProblemWorkerMissing:
			return len(o.Workers) == 0 && !o.WorkersKnown || o.Ledger == nil
		case guide.ProblemThinEvents:
			return false
		}
		return o.Ledger == nil
	}}
}

// problemList collects problems in the order of their urgency.
type problemList struct {
	list    []Problem
	covered []string // kinds that are left out because a problem of the list explains them
}

// add adds a problem with the guide's texts. detail explains what; "": nothing.
func (l *problemList) add(kind, detail string, since time.Time, purchases *int) *Problem {
	advice := guide.Problem(kind)
	p := Problem{Kind: kind, What: advice.Meaning, Purchases: purchases, Remedy: advice.Remedy}
	if detail != "" {
		p.What += " (" + detail + ")"
	}
	if !since.IsZero() {
		p.Since = new(since.UTC())
	}
	l.list = append(l.list, p)
	return &l.list[len(l.list)-1]
}

func (l *problemList) has(kinds ...string) bool {
	return slices.ContainsFunc(l.list, func(p Problem) bool { return slices.Contains(kinds, p.Kind) })
}

// waiting returns the number of purchases that wait in the ledger and in the queue; nil: unknown.
func (o *Observed) waiting() *int {
	if o.Ledger == nil {
		return nil
	}
	return new(o.Ledger.Pending + o.Ledger.Live + o.Ledger.Test)
}

func (l *problemList) addConditions(o Observed) {
	if o.Postgres.Failed {
		l.add(guide.ProblemPostgres, "", o.Postgres.Since, nil)
	}
	if o.Schema.Failed {
		l.add(guide.ProblemSchema, "", o.Schema.Since, nil)
	}
	switch {
	case o.NATS.Failed:
		l.add(guide.ProblemNATS, "", o.NATS.Since, o.waiting())
	case o.Queue.Failed:
		l.add(guide.ProblemQueue, "", o.Queue.Since, o.waiting())
	}
}

// addWorkers adds one problem for all workers in the same state.
func (l *problemList) addWorkers(o Observed) {
	var live, test, off *int
	if o.Ledger != nil {
		live, test, off = new(o.Ledger.Live), new(o.Ledger.Test), new(o.Ledger.NotConfigured)
		if queued := o.Ledger.Live + o.Ledger.Test; len(o.Workers) == 0 && o.WorkersKnown && queued > 0 {
			l.add(guide.ProblemWorkerMissing, "", o.LastWorker, new(queued))
		}
	}
	for _, group := range []struct {
		kind, state, word string
		purchases         *int
	}{
		{guide.ProblemPaused, message.WorkerPaused, "paused", live},
		{guide.ProblemCircuitOpen, message.WorkerOpen, "stopped", live},
		{guide.ProblemOff, message.WorkerOff, "off", off},
		{guide.ProblemTestPaused, message.WorkerRunning, "running", test}, // its reason is that test purchases wait
	} {
		workers := slices.DeleteFunc(slices.Clone(o.Workers), func(w message.WorkerState) bool {
			return w.State != group.state || w.State == message.WorkerRunning && w.Reason == ""
		})
		if len(workers) == 0 {
			continue
		}
		slices.SortFunc(workers, func(a, b message.WorkerState) int { return a.Since.Compare(b.Since) })
		first := workers[0]
		p := l.add(group.kind, logsafe.Text(first.Reason, maxProblemReason), first.Since, group.purchases)
		who := fmt.Sprintf("%d of %d workers are ", len(workers), len(o.Workers))
		if len(workers) == 1 {
			who = "Worker " + first.Instance + " is "
		}
		p.What = who + group.word + ": " + guide.LowerFirst(p.What)
		for _, w := range workers[:min(len(workers), maxProblemIDs)] {
			p.IDs = append(p.IDs, w.Instance)
		}
	}
}

// addFailed adds the groups with the latest purchase first.
func (l *problemList) addFailed(o Observed) {
	if o.Ledger == nil {
		return
	}
	groups := slices.SortedStableFunc(slices.Values(o.Ledger.Failed), func(a, b FailedGroup) int {
		return cmp.Or(b.Latest.Compare(a.Latest), cmp.Compare(b.Count, a.Count))
	})
	for _, g := range groups {
		kind, prefix := guide.ProblemRejected, "Purchases are rejected"
		if g.Status == purchase.StatusDead {
			kind, prefix = guide.ProblemDead+string(g.Reason), "Purchases are dead"
		}
		details := []string{}
		if g.Reason != "" {
			details = append(details, string(g.Reason))
		}
		if g.Code != nil {
			details = append(details, fmt.Sprintf("code %d", *g.Code))
		}
		if len(details) > 0 {
			prefix += " (" + strings.Join(details, ", ") + ")"
		}
		advice := guide.Group(g.Status, g.Reason, g.Code)
		p := l.add(kind, "", g.First, new(g.Count))
		p.What, p.Remedy = prefix+": "+guide.LowerFirst(advice.Meaning), advice.Remedy
		if advice.Replay != "" {
			p.Remedy += " `" + advice.Replay + "`"
		}
		p.Latest, p.IDs, p.Group = g.Latest, g.IDs, new(g.Group)
	}
}

func (l *problemList) addSilence(o Observed, now time.Time) {
	if o.Silence > 0 && !o.LastWebhook.IsZero() && now.Sub(o.LastWebhook) >= o.Silence {
		last := o.LastWebhook.UTC().Format(time.RFC3339)
		detail := fmt.Sprintf("the last at %s, NOTIFY_SILENCE is %s", last, o.Silence)
		p := l.add(guide.ProblemSilence, detail, o.LastWebhook.Add(o.Silence), nil)
		p.Latest = o.LastWebhook
	}
}

// addWaiting adds waiting purchases that no other problem explains, and lost ones.
func (l *problemList) addWaiting(o Observed, now time.Time) {
	if o.Ledger == nil {
		return
	}
	late := func(since time.Time, limit time.Duration) bool { return !since.IsZero() && now.Sub(since) >= limit }
	switch {
	case !late(o.Ledger.OldestPending, maxPendingAge):
	case l.has(guide.ProblemNATS, guide.ProblemQueue):
		l.covered = append(l.covered, guide.ProblemOutbox)
	default:
		l.add(guide.ProblemOutbox, "", o.Ledger.OldestPending, new(o.Ledger.Pending))
	}
	live, test := late(o.Ledger.OldestLive, maxWaitingAge), late(o.Ledger.OldestTest, maxWaitingAge)
	testPaused := l.has(guide.ProblemTestPaused)
	switch {
	case !live && !test:
	case !live && testPaused, l.has(guide.ProblemNATS, guide.ProblemQueue, guide.ProblemWorkerMissing,
		guide.ProblemPaused, guide.ProblemCircuitOpen):
		l.covered = append(l.covered, guide.ProblemWaiting)
	default:
		oldest, n := o.Ledger.OldestLive, o.Ledger.Live
		if test && !testPaused {
			oldest, n = earlier(oldest, o.Ledger.OldestTest), n+o.Ledger.Test
		}
		l.add(guide.ProblemWaiting, "", oldest, new(n))
	}
	if o.Ledger.Lost > 0 {
		p := l.add(guide.ProblemLost, "", o.Ledger.FirstLost, new(o.Ledger.Lost))
		p.Latest = o.Ledger.LastLost
	}
}

// addCounts adds the worker that has failed longest to read TikTok's counts.
func (l *problemList) addCounts(o Observed) {
	var failing *message.WorkerState
	for i, w := range o.Workers {
		if w.Stats != nil && (failing == nil || w.Stats.Since.Before(failing.Stats.Since)) {
			failing = &o.Workers[i]
		}
	}
	if failing == nil {
		return
	}
	advice := guide.Stats(failing.Stats.Kind)
	p := l.add(guide.ProblemCounts, "", failing.Stats.Since, nil)
	cause := guide.LowerFirst(advice.Meaning)
	p.What = fmt.Sprintf("No counts from TikTok: %s (%s)", cause, failing.Stats.Reason)
	p.Remedy = advice.Remedy + " Deliveries continue."
	p.IDs = []string{failing.Instance}
}

// earlier returns the earlier of two times; zero counts as none.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// The rollup has the numbers. Indexes have the first and the last time of each group.
const sqlProblemGroups = `
WITH groups AS (
    SELECT livemode, status, reason, code, sum(n)::bigint AS n FROM (
        SELECT livemode, status, reason, code, n FROM public.rollup_statuses
        UNION ALL
        SELECT livemode, status, reason, code, n FROM public.rollup_changes
    ) s
    WHERE status IN ('pending', 'published', 'retrying', 'dead', 'rejected')
        OR status = 'skipped' AND reason = 'not_configured'
    GROUP BY 1, 2, 3, 4 HAVING sum(n) > 0
), failed AS (
    SELECT status, reason, code, sum(n)::bigint AS n FROM groups WHERE status IN ('dead', 'rejected')
    GROUP BY 1, 2, 3
)
SELECT false, status, reason, '', n, livemode, NULL::timestamptz, NULL::timestamptz, NULL::text[]
FROM groups WHERE status NOT IN ('dead', 'rejected')
UNION ALL
SELECT true, f.status, f.reason, f.code, f.n, true, CASE WHEN isfinite(p.first) THEN p.first END,
    CASE WHEN isfinite(p.latest) THEN p.latest END, p.ids
FROM failed f CROSS JOIN LATERAL (
    SELECT (
        SELECT min(finished_at) FROM public.purchases
        WHERE status IN ('dead', 'rejected') AND status = f.status AND reason = f.reason
            AND COALESCE(last_code, -1) = CASE f.code WHEN '' THEN -1 ELSE f.code::integer END
    ), (
        SELECT max(finished_at) FROM public.purchases
        WHERE status IN ('dead', 'rejected') AND status = f.status AND reason = f.reason
            AND COALESCE(last_code, -1) = CASE f.code WHEN '' THEN -1 ELSE f.code::integer END
    ), ARRAY(
        SELECT checkout_session_id FROM public.purchases
        WHERE status IN ('dead', 'rejected') AND status = f.status AND reason = f.reason
            AND COALESCE(last_code, -1) = CASE f.code WHEN '' THEN -1 ELSE f.code::integer END
        ORDER BY finished_at DESC LIMIT 5
    )) p (first, latest, ids)`

// published_at is the time of the last publish.
const sqlProblemTimes = `
SELECT ` + oldestPending + `,
    (SELECT published_at FROM public.purchases
        WHERE status IN ('published', 'retrying') AND livemode ORDER BY published_at LIMIT 1),
    (SELECT published_at FROM public.purchases
        WHERE status IN ('published', 'retrying') AND NOT livemode ORDER BY published_at LIMIT 1),
    lost.n, lost.first, lost.latest
FROM (SELECT count(*) AS n, min(swept_at) AS first, max(swept_at) AS latest FROM public.purchases
    WHERE swept_at = published_at AND swept_at > now() - interval '1 hour') lost`

// Problems reads what the ledger knows of problems, in one snapshot. Its cost does not grow with the ledger.
func (r *Reader) Problems(ctx context.Context) (*LedgerProblems, error) {
	var p LedgerProblems
	err := pgx.BeginTxFunc(ctx, r.db.Pool(), snapshot(), func(tx pgx.Tx) error {
		var batch pgx.Batch
		batch.Queue(sqlProblemGroups).Query(func(rows pgx.Rows) error { return r.readProblemGroups(rows, &p) })
		batch.Queue(sqlProblemTimes).QueryRow(func(row pgx.Row) error {
			var pending, live, test, first, latest *time.Time
			err := row.Scan(&pending, &live, &test, &p.Lost, &first, &latest)
			p.OldestPending, p.OldestLive = ledger.OrZero(pending), ledger.OrZero(live)
			p.OldestTest = ledger.OrZero(test)
			p.FirstLost, p.LastLost = ledger.OrZero(first), ledger.OrZero(latest)
			return err
		})
		batch.Queue(sqlLastWebhook).QueryRow(func(row pgx.Row) error { return scanTime(row, &p.LastWebhook) })
		return tx.SendBatch(ctx, &batch).Close()
	})
	if err != nil {
		return nil, fmt.Errorf("read problems: %w", err)
	}
	return &p, nil
}

func (r *Reader) readProblemGroups(rows pgx.Rows, p *LedgerProblems) error {
	var failed, livemode bool
	var g FailedGroup
	var code string
	var first, latest *time.Time
	fields := []any{&failed, &g.Status, &g.Reason, &code, &g.Count, &livemode, &first, &latest, &g.IDs}
	return r.db.ForEach("problems", rows, fields, func() (err error) {
		switch {
		case failed:
			g.First, g.Latest = ledger.OrZero(first), ledger.OrZero(latest)
			if g.Code, err = parseCode(code); err == nil {
				p.Failed = append(p.Failed, g)
			}
		case g.Status == purchase.StatusPending:
			p.Pending += g.Count
		case g.Status == purchase.StatusSkipped:
			p.NotConfigured += g.Count
		case livemode:
			p.Live += g.Count
		default:
			p.Test += g.Count
		}
		g.IDs = nil
		return err
	})
}
