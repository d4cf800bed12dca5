package report_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/guide"
	"purchase-relay/internal/ops/maintenance"
	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/relay"
	"purchase-relay/internal/testkit/ledgertest"
)

// observed returns a system without problems: one purchase waits, one worker runs.
func observed() report.Observed {
	fine := report.Condition{Checked: true}
	return report.Observed{
		Postgres: fine, Schema: fine, NATS: fine, Queue: fine,
		Ledger: &report.LedgerProblems{
			Live: 2, Test: 1, Pending: 4, OldestLive: base.Add(-time.Minute), OldestTest: base.Add(-time.Minute),
			OldestPending: base.Add(-time.Minute),
		},
		Workers:      []message.WorkerState{{Instance: "w1", State: message.WorkerRunning, Since: base}},
		WorkersKnown: true, LastWebhook: base.Add(-time.Hour), Silence: 2 * time.Hour,
	}
}

func failing(since time.Time) report.Condition {
	return report.Condition{Checked: true, Failed: true, Since: since}
}

func group(
	status purchase.Status, reason purchase.Reason, code *int, n int, latest time.Time,
) report.FailedGroup {
	return report.FailedGroup{
		Group: report.Group{Status: status, Reason: reason, Code: code, Count: n},
		First: base.Add(-48 * time.Hour), Latest: latest, IDs: []string{"cs_1"},
	}
}

func TestNewProblems(t *testing.T) {
	t.Parallel()
	since := base.Add(-10 * time.Minute)
	workers := func(o *report.Observed, states ...message.WorkerState) { o.Workers = states }
	for name, tc := range map[string]struct {
		change func(o *report.Observed)
		want   []string // kind since purchases: …
		what   string   // of the first
	}{
		"nothing is wrong":      {func(*report.Observed) {}, nil, ""},
		"nothing is known":      {func(o *report.Observed) { *o = report.Observed{} }, nil, ""},
		"the ledger is unknown": {func(o *report.Observed) { o.Ledger = nil }, nil, ""},
		"Postgres is down": {
			func(o *report.Observed) { o.Ledger, o.Postgres = nil, failing(since) },
			[]string{"postgres 10m0s null"},
			"Postgres does not respond",
		},
		"the schema is behind": {
			func(o *report.Observed) { o.Ledger, o.Schema = nil, failing(since) },
			[]string{"schema 10m0s null"},
			"The ledger's schema is behind",
		},
		"NATS is down, nothing else is named for it": {
			func(o *report.Observed) {
				o.NATS, o.Queue, o.Workers, o.WorkersKnown = failing(since), failing(since), nil, false
				o.Ledger.OldestLive, o.Ledger.OldestPending = base.Add(-time.Hour), base.Add(-time.Hour)
			},
			[]string{"nats 10m0s 7"},
			"NATS is down",
		},
		"NATS is down, the ledger, too": {
			func(o *report.Observed) { o.NATS, o.Ledger = failing(time.Time{}), nil },
			[]string{"nats unknown null"},
			"",
		},
		"the streams are missing": {
			func(o *report.Observed) { o.Queue = failing(since) }, []string{"queue 10m0s 7"}, "",
		},
		"no worker": {
			func(o *report.Observed) { o.Workers, o.LastWorker = nil, since },
			[]string{"worker_missing 10m0s 3"},
			"No worker reports",
		},
		"no worker, and nothing waits": {
			func(o *report.Observed) { o.Workers, o.Ledger.Live, o.Ledger.Test = nil, 0, 0 }, nil, "",
		},
		"no worker, unknown": {
			func(o *report.Observed) { o.Workers, o.WorkersKnown = nil, false }, nil, "",
		},
		"one of two workers is paused": {
			func(o *report.Observed) {
				workers(o, message.WorkerState{Instance: "w1", State: message.WorkerRunning},
					message.WorkerState{Instance: "w2", State: "paused", Since: since, Reason: "live: 40105\x1b no"})
			},
			[]string{"paused 10m0s 2"},
			"Worker w2 is paused: TikTok accepts nothing (live: 40105",
		},
		"the circuits are open": {
			func(o *report.Observed) {
				workers(o, message.WorkerState{Instance: "w1", State: "open", Since: base.Add(-time.Minute)},
					message.WorkerState{Instance: "w2", State: "open", Since: since})
				o.Ledger.OldestLive = base.Add(-time.Hour)
			},
			[]string{"circuit_open 10m0s 2"},
			"2 of 2 workers are stopped: TikTok gives no usable answers; purchases wait in the queue",
		},
		"delivery is off": {
			func(o *report.Observed) {
				workers(o, message.WorkerState{Instance: "w1", State: "off", Since: since})
				o.Ledger.NotConfigured = 5
			},
			[]string{"off 10m0s 5"},
			"Worker w1 is off: delivery is off; every purchase ends skipped",
		},
		"test purchases wait, live ones do not": {
			func(o *report.Observed) {
				workers(o, message.WorkerState{Instance: "w1", State: "running", Since: since, Reason: "test: 40001"})
				o.Ledger.OldestTest = base.Add(-time.Hour)
			},
			[]string{"test_paused 10m0s 1"},
			"Worker w1 is running: TikTok refuses the test destination",
		},
		"thin events": {
			func(o *report.Observed) {
				o.Thin = report.ThinEvents{Count: 9, First: base.Add(-24 * time.Hour)}
			},
			[]string{"thin_events 24h0m0s null"},
			"Thin events are rejected",
		},
		"dead and rejected, the latest first": {
			func(o *report.Observed) {
				o.Ledger.Failed = []report.FailedGroup{
					group(purchase.StatusRejected, purchase.ReasonInvalidEmail, nil, 1, base.Add(-time.Hour)),
					group(purchase.StatusDead, purchase.ReasonExpired, nil, 9, base.Add(-2*time.Hour)),
					group(purchase.StatusDead, purchase.ReasonRefused, new(40002), 3, base),
				}
			},
			[]string{"dead:refused 48h0m0s 3", "rejected 48h0m0s 1", "dead:expired 48h0m0s 9"},
			"Purchases are dead (refused, code 40002): a field of the event is not valid",
		},
		"no webhooks": {
			func(o *report.Observed) { o.LastWebhook = base.Add(-3 * time.Hour) },
			[]string{"silence 1h0m0s null"},
			"No webhook for longer than NOTIFY_SILENCE (the last at ",
		},
		"no webhook ever": {func(o *report.Observed) { o.LastWebhook = time.Time{} }, nil, ""},
		"no NOTIFY_SILENCE": {
			func(o *report.Observed) { o.LastWebhook, o.Silence = base.Add(-99*time.Hour), 0 }, nil, "",
		},
		"the outbox does not drain": {
			func(o *report.Observed) { o.Ledger.OldestPending = since }, []string{"outbox 10m0s 4"}, "",
		},
		"a purchase waits for TikTok": {
			func(o *report.Observed) { o.Ledger.OldestLive = base.Add(-31 * time.Minute) },
			[]string{"waiting 31m0s 2"},
			"",
		},
		"a test purchase waits for TikTok": {
			func(o *report.Observed) { o.Ledger.OldestTest = base.Add(-31 * time.Minute) },
			[]string{"waiting 31m0s 3"},
			"",
		},
		"lost purchases": {
			func(o *report.Observed) { o.Ledger.Lost, o.Ledger.FirstLost, o.Ledger.LastLost = 2, since, base },
			[]string{"lost 10m0s 2"},
			"The queue lost purchases",
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := observed()
			tc.change(&o)
			problems := report.NewProblems(o, base)
			var got []string
			for _, p := range problems.List {
				since, purchases := "unknown", "null"
				if p.Since != nil {
					since = base.Sub(*p.Since).String()
				}
				if p.Purchases != nil {
					purchases = fmt.Sprint(*p.Purchases)
				}
				got = append(got, p.Kind+" "+since+" "+purchases)
				if p.What == "" || p.Remedy == "" || strings.ContainsRune(p.What, '\x1b') || problems.Unknown(p.Kind) {
					t.Errorf("problem = %+v, want a known one with what and remedy", p)
				}
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("problems = %q, want %q", got, tc.want)
			}
			if len(got) > 0 && !strings.HasPrefix(problems.List[0].What, tc.what) {
				t.Errorf("what = %q, want %q", problems.List[0].What, tc.what)
			}
		})
	}
}

func TestNewProblems_TikTokCounts(t *testing.T) {
	t.Parallel()
	o := observed()
	for i, since := range []time.Time{base, base.Add(-time.Hour)} {
		o.Workers = append(o.Workers, message.WorkerState{
			Instance: fmt.Sprintf("asks%d", i), State: message.WorkerRunning,
			Stats: &message.StatsProblem{Kind: "access", Reason: "40001 no scope", Since: since},
		})
	}
	list := report.NewProblems(o, base).List
	got := list[len(list)-1]
	if got.Kind != guide.ProblemCounts || !got.Since.Equal(base.Add(-time.Hour)) || got.Purchases != nil ||
		!strings.Contains(got.What, "(40001 no scope)") || !strings.Contains(got.Remedy, "Deliveries continue") {
		t.Errorf("last problem = %+v, want the counts of the worker that failed first", got)
	}
}

// A kind whose source is unreadable is unknown.
func TestProblems_Unknown(t *testing.T) {
	t.Parallel()
	none := report.NewProblems(report.Observed{}, base)
	all := report.NewProblems(observed(), base)
	noNATS := observed()
	noNATS.NATS, noNATS.Workers, noNATS.WorkersKnown = failing(base), nil, false
	for _, kind := range append(guide.ProblemKinds(), "dead:refused") {
		if thin := kind == guide.ProblemThinEvents; none.Unknown(kind) == thin {
			t.Errorf("%s is unknown = %t without sources", kind, !thin)
		}
		if all.Unknown(kind) {
			t.Errorf("%s is unknown with all sources", kind)
		}
		byNATS := strings.Contains("queue paused circuit_open off test_paused worker_missing tiktok_counts", kind)
		if got := report.NewProblems(noNATS, base).Unknown(kind); got != byNATS {
			t.Errorf("%s is unknown = %t without NATS, want %t", kind, got, byNATS)
		}
	}
}

// A kind that another problem covers is unknown while its purchases wait.
func TestProblems_UnknownIfCovered(t *testing.T) {
	t.Parallel()
	worker := func(state, reason string) []message.WorkerState {
		return []message.WorkerState{{Instance: "w1", State: state, Reason: reason, Since: base}}
	}
	for name, tc := range map[string]struct {
		change        func(o *report.Observed)
		outbox, waits bool // unknown once purchases have waited too long
	}{
		"NATS is down":            {func(o *report.Observed) { o.NATS = failing(base) }, true, true},
		"the streams are missing": {func(o *report.Observed) { o.Queue = failing(base) }, true, true},
		"no worker":               {func(o *report.Observed) { o.Workers = nil }, false, true},
		"paused":                  {func(o *report.Observed) { o.Workers = worker("paused", "no") }, false, true},
		"the circuit is open":     {func(o *report.Observed) { o.Workers = worker("open", "no") }, false, true},
		"delivery is off":         {func(o *report.Observed) { o.Workers = worker("off", "") }, false, false},
		"nothing is wrong":        {func(*report.Observed) {}, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := observed()
			tc.change(&o)
			problems := report.NewProblems(o, base)
			if problems.Unknown(guide.ProblemOutbox) || problems.Unknown(guide.ProblemWaiting) {
				t.Error("a kind is unknown although no purchase waits too long")
			}
			o.Ledger.OldestPending, o.Ledger.OldestLive = base.Add(-time.Hour), base.Add(-time.Hour)
			problems = report.NewProblems(o, base)
			outbox, waits := problems.Unknown(guide.ProblemOutbox), problems.Unknown(guide.ProblemWaiting)
			if outbox != tc.outbox || waits != tc.waits {
				t.Errorf("outbox, waiting are unknown = %t, %t, want %t, %t", outbox, waits, tc.outbox, tc.waits)
			}
		})
	}
	o := observed()
	o.Workers, o.Ledger.OldestTest = worker("running", "test: 40001"), base.Add(-time.Hour)
	if !report.NewProblems(o, base).Unknown(guide.ProblemWaiting) {
		t.Error("waiting is known while the paused test destination covers it, want unknown")
	}
}

func TestProblem_JSON(t *testing.T) {
	t.Parallel()
	p := report.Problem{Kind: "nats", What: "w", Remedy: "r", IDs: []string{"x"}}
	const want = `{"what":"w","since":null,"purchases":null,"remedy":"r"}`
	if got, err := json.Marshal(p); err != nil || string(got) != want {
		t.Errorf("JSON = %s, %v, want %s", got, err, want)
	}
}

// The ledger's part has the real number, times and ids of each group, until a replay.
func TestReader_Problems(t *testing.T) {
	t.Parallel()
	l := ledgertest.New(t)
	before := time.Now().Add(-time.Minute)
	fail := func(id string, reason purchase.Reason, code *int) {
		t.Helper()
		l.Buy(id)
		o := ledgertest.Outcome(id, 1, purchase.StatusDead, "a1", base)
		o.Reason, o.Attempt.Code = reason, code
		l.MustSettle(o)
	}
	for i := range 6 {
		fail(fmt.Sprintf("cs_%d", i), purchase.ReasonRefused, new(40002))
	}
	fail("cs_other", purchase.ReasonRefused, new(40007))
	fail("cs_crash", purchase.ReasonCrash, nil)
	l.MustRecord(ledgertest.Receipt("evt_r", "cs_r", purchase.StatusRejected, purchase.ReasonInvalidEmail))
	l.Buy("cs_w")
	test := ledgertest.Receipt("evt_t", "cs_t", purchase.StatusPending, "")
	test.Purchase.Livemode = false
	l.MustRecord(test)
	read := func() *report.LedgerProblems {
		t.Helper()
		p, err := l.Problems(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	check := func(p *report.LedgerProblems) {
		t.Helper()
		var got []string
		for _, g := range p.Failed {
			code := "none"
			if g.Code != nil {
				code = fmt.Sprint(*g.Code)
			}
			got = append(got, fmt.Sprintf("%s %s %s %d %d", g.Status, g.Reason, code, g.Count, len(g.IDs)))
			if g.First.Before(before) || g.Latest.Before(g.First) {
				t.Errorf("group from %s to %s, want both after %s", g.First, g.Latest, before)
			}
			if g.Count == 6 && (g.IDs[0] != "cs_5" || !g.First.Before(g.Latest)) {
				t.Errorf("group = %+v, want the latest first", g)
			}
		}
		slices.Sort(got)
		if want := []string{
			"dead crash none 1 1", "dead refused 40002 6 5", "dead refused 40007 1 1",
			"rejected invalid_email none 1 1",
		}; !slices.Equal(got, want) {
			t.Errorf("groups = %q, want %q", got, want)
		}
	}
	p := read()
	check(p)
	if p.Pending != 2 || p.OldestPending.Before(before) || !p.OldestLive.IsZero() || p.Lost != 0 {
		t.Errorf("problems = %+v, want two pending", p)
	}
	if _, err := l.Fold(t.Context()); err != nil {
		t.Fatal(err)
	}
	check(read())

	marks := []relay.Mark{{ID: "cs_w", Generation: 1, Sequence: 1}, {ID: "cs_t", Generation: 1, Sequence: 2}}
	if err := l.MarkPublished(t.Context(), marks); err != nil {
		t.Fatal(err)
	}
	p = read()
	if p.Pending != 0 || p.Live != 1 || p.Test != 1 || p.OldestLive.Before(before) ||
		p.OldestTest.Before(before) {
		t.Errorf("problems = %+v, want one live and one test purchase in the queue", p)
	}
	marks[0].Generation = 2
	if err := l.RecordSweep(t.Context(), marks[:1], []string{"cs_t"}, nil); err != nil {
		t.Fatal(err)
	}
	if p = read(); p.Lost != 1 || p.FirstLost.Before(before) || !p.LastLost.Equal(p.FirstLost) {
		t.Errorf("problems = %+v, want one lost purchase", p)
	}
	// A delivered purchase has been lost nevertheless.
	l.MustSettle(ledgertest.Outcome("cs_w", 2, purchase.StatusDelivered, "a1", base))
	if p = read(); p.Lost != 1 {
		t.Errorf("lost = %d after the delivery, want 1", p.Lost)
	}

	// A replayed purchase has waited since its replay.
	l.Exec(`UPDATE purchases SET created_at = now() - interval '1 day' WHERE status = 'dead'`)
	all := maintenance.Selection{Status: purchase.StatusDead}
	if _, err := l.Replay(t.Context(), all, func(int) {}); err != nil {
		t.Fatal(err)
	}
	p = read()
	if len(p.Failed) != 1 || p.Pending != 8 || p.OldestPending.Before(before) {
		t.Errorf("problems = %+v, want the rejected purchase and 8 pending since their replay", p)
	}
	if n, oldest, err := l.OutboxState(t.Context()); err != nil || n != 8 || !oldest.Equal(p.OldestPending) {
		t.Errorf("outbox = %d since %s, %v, want 8 since %s", n, oldest, err, p.OldestPending)
	}
}
