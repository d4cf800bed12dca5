package dashboard_test

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	diff "github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"

	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/dashboard"
	"purchase-relay/internal/ops/maintenance"
	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// ledger is an in-memory fake of Reports, Replays and Outbox.
type ledger struct {
	periods    []report.Period
	livemode   *bool
	err        error
	summary    report.Summary
	groups     []report.Group
	entries    []report.Row
	days       []report.DayCoverage
	details    report.Row // of every entry
	selected   []maintenance.Selection
	woken      int
	backfilled int

	reconciliations map[bool]report.Reconciliation
	counts          report.Counts
	names           report.EventNames
	refused         *message.StatsProblem // of worker w2
}

func (l *ledger) Counts(_ context.Context, names report.EventNames, _ time.Time) (report.Counts, error) {
	l.names = names
	return l.counts, l.err
}

func (l *ledger) Backfilled(context.Context, time.Time, time.Time, *bool) (int, time.Time, error) {
	return l.backfilled, now.Add(-time.Hour), l.err
}

func (l *ledger) Reconciliation(_ context.Context, livemode bool) (report.Reconciliation, error) {
	return l.reconciliations[livemode], l.err
}

// Summary returns the same for each period. All sales are in the step that has begun last.
func (l *ledger) Summary(_ context.Context, p report.Period, livemode *bool) (report.Summary, error) {
	l.periods, l.livemode = append(l.periods, p), livemode
	s := l.summary
	s.Steps = make([]report.Sales, len(p.Steps))
	for i, at := range p.Steps {
		if !at.After(now) && (i+1 == len(p.Steps) || p.Steps[i+1].After(now)) {
			s.Steps[i] = s.Sales
		}
	}
	return s, l.err
}

func (l *ledger) Groups(context.Context, *bool) ([]report.Group, error) { return l.groups, l.err }

func (l *ledger) List(_ context.Context, f report.Filter) ([]report.Row, error) {
	var matching []report.Row
	for _, e := range l.entries {
		if !f.After.At.IsZero() && (e.At().After(f.After.At) || e.At().Equal(f.After.At) && e.ID >= f.After.ID) ||
			f.Query != "" && e.ID != f.Query || f.Statuses != nil && !slices.Contains(f.Statuses, e.Status) {
			continue
		}
		matching = append(matching, e)
	}
	return matching[:min(len(matching), f.Limit)], l.err
}

func (l *ledger) Coverage(
	_ context.Context, p report.Period, _ *bool,
) (days []report.DayCoverage, err error) {
	for _, d := range l.days {
		if !d.At.Before(p.From) && d.At.Before(p.Until) {
			days = append(days, d)
		}
	}
	return days, l.err
}

func (l *ledger) Get(_ context.Context, id string) (report.Row, error) {
	for _, e := range l.entries {
		if e.ID == id && l.err == nil {
			e.Envelope, e.KeyMask, e.Events = l.details.Envelope, l.details.KeyMask, l.details.Events
			e.Attempts, e.FirstPayment, e.Converted = l.details.Attempts, l.details.FirstPayment, l.details.Converted
			return e, nil
		}
	}
	return report.Row{}, cmp.Or(l.err, fmt.Errorf("entry: %w", report.ErrNotFound))
}

func (l *ledger) ProfileByEmail(_ context.Context, email string) (string, error) {
	if purchase.NormaliseEmail(email) == "buyer@example.com" {
		return "5f1d7a4e-0000-4000-8000-000000000001", l.err
	}
	return "", l.err
}

func (l *ledger) CountReplayable(
	_ context.Context, s maintenance.Selection,
) (counts []maintenance.Replayable, err error) {
	refused := maintenance.Replayable{Reason: purchase.ReasonRefused, Code: new(40002), Count: 2}
	if ids := s.SelectedIDs(); ids != nil {
		refused.Count = len(ids)
		return append(counts, refused), l.err
	}
	expired := maintenance.Replayable{Reason: purchase.ReasonExpired, Count: 1, Late: 1, Old: 1}
	return append(counts, refused, expired), l.err
}

func (l *ledger) Replay(_ context.Context, s maintenance.Selection, progress func(int)) (int, error) {
	l.selected = append(l.selected, s)
	switch {
	case l.err != nil:
		return 1, l.err
	case s.ID == "cs_unknown":
		return 0, fmt.Errorf("replay: %w", report.ErrNotFound)
	case s.ID == "cs_trial":
		return 0, fmt.Errorf("replay: %w", maintenance.ErrNotReplayable)
	}
	progress(3)
	return 3, nil
}

func (l *ledger) OutboxState(context.Context) (int, time.Time, error) {
	return 3, now.Add(-time.Minute), l.err
}

// slowReplays replays until its time is over.
type slowReplays struct{ *ledger }

func (slowReplays) Replay(ctx context.Context, _ maintenance.Selection, _ func(int)) (int, error) {
	<-ctx.Done()
	return 1500, fmt.Errorf("replay after 1500 purchases: %w", ctx.Err())
}

// newLedger returns a ledger with a delivered, a dead and a rejected purchase.
func newLedger() *ledger {
	l := &ledger{
		summary: report.Summary{
			Counts: map[purchase.Status]int{purchase.StatusDelivered: 7, purchase.StatusDead: 1},
			Sales: report.Sales{
				Paid: 8, Accepted: 7, NoValue: 3, NewBuyers: 5, Returning: 3, FirstPayments: 2, Values: []report.Value{
					{Currency: "JPY", PaidMinor: 800}, {Currency: "USD", PaidMinor: 123456, AcceptedMinor: 200},
				},
			},
			Attention: 1, Oldest: now.Add(-90 * time.Second), OldestNow: now.Add(-90 * time.Second),
			LastEvent: now.Add(-3 * time.Second),
			Groups: []report.Group{
				{Status: purchase.StatusDelivered, Count: 7},
				{Status: purchase.StatusDead, Reason: purchase.ReasonRefused, Code: new(40002), Count: 1},
			},
			Coverage: report.Coverage{
				Of: 8, With: [purchase.MatchKeyKinds]int{8, 4, 2, 0, 8, 8, 7}, Strong: 8, Late: 1,
			},
			Delays: report.Delays{16: 6, 30: 1},
		},
		groups: []report.Group{
			{Status: purchase.StatusDelivered, Count: 7},
			{Status: purchase.StatusDead, Reason: purchase.ReasonRefused, Code: new(40002), Count: 1},
			{Status: purchase.StatusDead, Reason: purchase.ReasonExpired, Count: 1},
			{Status: purchase.StatusRejected, Reason: purchase.ReasonInvalidEmail, Count: 1},
		},
		details: report.Row{
			Envelope: []byte("{}"),
			Events: []report.Event{{
				ID: "evt_1", Type: purchase.TypeCompleted, Created: &now, Received: now, Disposition: purchase.Processed,
			}},
			Attempts: []report.Attempt{{
				ID: "a1", Generation: 1, At: now, TookMS: 20, Class: purchase.ClassRefused, Code: new(40002),
				Message: "<b>=no</b>", RequestID: "r1",
			}},
		},
	}
	for i, e := range []report.Row{
		{
			ID: "cs_new", Status: purchase.StatusDelivered, Livemode: true, AmountMinor: new(int64(2999)),
			Currency: new("usd"), LastCode: new(0), AttemptCount: 2, Finished: &now,
		},
		{
			ID: "cs_dead", Status: purchase.StatusDead, Reason: purchase.ReasonRefused,
			AmountMinor: new(int64(800)), Currency: new("jpy"), LastCode: new(40002),
			LastError: new("=<b>no</b>"), AttemptCount: 1,
		},
		{ID: "cs_old", Status: purchase.StatusRejected, Reason: purchase.ReasonInvalidEmail, Mode: "subscription"},
	} {
		e.Kind = cmp.Or(e.Kind, purchase.KindCheckout)
		e.Created, e.Updated, e.PurchasedAt = now, now, new(now.Add(-time.Duration(i)*time.Hour))
		l.entries = append(l.entries, e)
	}
	return l
}

func newAPI(l *ledger) http.Handler { return dashboard.New(config(l)) }

// problems makes the ledger's list of problems. NATS went down when two workers reported trouble.
func (l *ledger) problems(context.Context) report.Problems {
	up := report.Condition{Checked: true}
	o := report.Observed{
		Postgres: up, Schema: up, Queue: up, Workers: l.workers(), WorkersKnown: true,
		NATS: report.Condition{Checked: true, Failed: true, Since: now.Add(-time.Minute)},
	}
	if l.err != nil {
		o.Postgres = report.Condition{Checked: true, Failed: true, Since: now}
		return report.NewProblems(o, now)
	}
	o.Ledger = &report.LedgerProblems{Live: 1234}
	for _, g := range l.groups {
		if g.Status == purchase.StatusDead || g.Status == purchase.StatusRejected {
			failed := report.FailedGroup{Group: g, First: now.Add(-time.Hour), Latest: now}
			o.Ledger.Failed = append(o.Ledger.Failed, failed)
		}
	}
	return report.NewProblems(o, now)
}

func noProblems(context.Context) report.Problems { return report.NewProblems(report.Observed{}, now) }

func (l *ledger) workers() []message.WorkerState {
	return []message.WorkerState{
		{
			Instance: "w1", Version: "v1", State: "paused", Reason: "live: 40105 no such token",
			Since: now, Seen: now,
		},
		{
			Instance: "w2", Version: "v1", State: "running", Reason: "test purchases wait: 40001 no right",
			Since: now, Seen: now, Stats: l.refused,
		},
	}
}

func config(l *ledger) dashboard.Config {
	return dashboard.Config{
		Reports: l, Replays: l, Problems: l.problems, Health: func(context.Context) dashboard.Health {
			return dashboard.Health{Postgres: "up", NATS: "down", Workers: l.workers()}
		},
		CountNames: report.EventNames{Sent: "CompletePayment"},

		Wake: func() { l.woken++ },
		Body: func([]byte, *purchase.Sent) ([]byte, error) { return []byte(`{"event_source":"web"}`), nil },
		Now:  func() time.Time { return now }, Log: zap.NewNop(),
	}
}

func get(
	t *testing.T, h http.Handler, target string, change func(r *http.Request),
) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, target, http.NoBody)
	r.Host = "127.0.0.1:8081"
	change(r)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func plain(*http.Request) {}

func TestAPI_Summary(t *testing.T) {
	t.Parallel()
	l := newLedger()
	w := get(t, newAPI(l), "/api/v1/summary", plain)
	const value = `[{"currency":"JPY","paid_minor":800,"accepted_minor":0},` +
		`{"currency":"USD","paid_minor":123456,"accepted_minor":200}]`
	want := `{"range":"30d","mode":"all","from":"2025-12-04T00:00:00Z","until":"2026-01-03T00:00:00Z",` +
		`"timezone":"UTC","purchases":{"awaiting_payment":0,"dead":1,"delivered":7,` +
		`"payment_failed":0,"pending":0,"published":0,"rejected":0,"retrying":0,"skipped":0},"attention":1,` +
		`"oldest_waiting_seconds":90,"value":` + value + `,"accepted_without_value":3,"days":[` +
		emptyDays("2025-12-04", 29) +
		`{"date":"2026-01-02","paid":8,"accepted":7,"waiting":0,"not_accepted":1,"left_out":0,"new_buyers":5,` +
		`"returning_buyers":3,"trials_converted":2,"value":` + value + `}],` +
		`"health":{"postgres":"up","nats":"down","workers":[{"instance":"w1","version":"v1","state":"paused",` +
		`"reason":"live: 40105 no such token","since":"2026-01-02T03:04:05Z","seen":"2026-01-02T03:04:05Z"},` +
		`{"instance":"w2","version":"v1","state":"running","reason":"test purchases wait: 40001 no right",` +
		`"since":"2026-01-02T03:04:05Z","seen":"2026-01-02T03:04:05Z"}]}}` + "\n"
	if w.Code != http.StatusOK || w.Body.String() != want {
		t.Errorf("status = %d, body %s\nwant %s", w.Code, w.Body, want)
	}
	if len(l.periods) != 1 || l.livemode != nil {
		t.Errorf("queried %v, livemode %v, want one period of both modes", l.periods, l.livemode)
	}
	get(t, newAPI(l), "/api/v1/summary?range=24h&mode=test", plain)
	if p := l.periods[1]; !p.From.Equal(now.Add(-24*time.Hour).Truncate(time.Hour)) || *l.livemode {
		t.Errorf("queried from %s, livemode %v, want 24 full hours in test mode", p.From, *l.livemode)
	}
	for target, want := range map[string]int{
		"/api/v1/summary?range=1y": 400, "/api/v1/summary?mode=both": 400, "/api/v1/summary?since=1y": 400,
		"/api/v1/summary?range=7d&from=2026-01-01": 400, "/api/v1/summary?from=2026-01-01&to=2025-12-31": 400,
		"/api/v1/summary?from=2025-02-30": 400, "/api/v1/summary?to=2026-01-01": 400,
		"/api/v1/summary?from=0001-01-01&to=9999-12-31": 400, "/api/v1/summary?from=2025-01-01&to=2025-04-03": 400,
		"/api/v1/summary?from=2025-01-01&to=2025-04-02": 200,
		"/api/v1/summary?mode=live&mode=test":           400, "/api/v1/nothing": 404,
		"/api/v1/replay": 405,
	} {
		w := get(t, newAPI(l), target, plain)
		var body struct{ Error string }
		err := json.Unmarshal(w.Body.Bytes(), &body)
		if w.Code != want || err != nil || (body.Error == "") != (want == http.StatusOK) {
			t.Errorf("%s: status = %d, want %d; body %s", target, w.Code, want, w.Body)
		}
	}
}

func TestAPI_Problems(t *testing.T) {
	t.Parallel()
	l := newLedger()
	w := get(t, newAPI(l), "/api/v1/problems", plain)
	var got struct{ Problems []map[string]any }
	err := json.Unmarshal(w.Body.Bytes(), &got)
	if err != nil || w.Code != http.StatusOK || len(got.Problems) != 6 {
		t.Fatalf("status = %d, %v, want 6 problems: %s", w.Code, err, w.Body)
	}
	first := got.Problems[0]
	if first["since"] != "2026-01-02T03:03:05Z" || first["purchases"] != 1234.0 || len(first) != 4 ||
		!strings.HasPrefix(fmt.Sprint(first["what"]), "NATS is down") || first["remedy"] == "" {
		t.Errorf("first problem = %v, want NATS with since, purchases, remedy", first)
	}
	l.err = errors.New("connection refused")
	w = get(t, newAPI(l), "/api/v1/problems", plain)
	body := w.Body.String()
	if w.Code != http.StatusOK || !strings.Contains(body, "Postgres does not respond") ||
		!strings.Contains(body, `"purchases":null`) {
		t.Errorf("ledger unavailable: status = %d, body %s, want 200 with Postgres", w.Code, body)
	}
	none := config(newLedger())
	none.Problems = noProblems
	if w := get(t, dashboard.New(none), "/api/v1/problems", plain); w.Body.String() != `{"problems":[]}`+"\n" {
		t.Errorf("without problems: body %s, want an empty list", w.Body)
	}
}

// The bar is above every page, also above the one that reports an unavailable ledger.
func TestPages_ShowProblems(t *testing.T) {
	t.Parallel()
	l := newLedger()
	for _, target := range []string{
		"/", "/purchases", "/purchases/cs_dead", "/dead", "/attention", "/reconciliation",
	} {
		body := get(t, newAPI(l), target, plain).Body.String()
		bar, _, _ := strings.Cut(body[strings.Index(body, `id="problems"`):], `id="live"`)
		for _, want := range []string{
			"NATS is down", "2026-01-02 03:03 UTC", "1,234 purchases.", "Worker w1 is paused: TikTok accepts nothing",
			"live: 40105 no such token", "Fix what the reason names", "Purchases are dead (refused, code 40002)",
			"1 purchase.", "/attention?code=40002&amp;reason=refused&amp;status=dead", "Purchases are rejected",
		} {
			if !strings.Contains(bar, want) {
				t.Errorf("the bar of %s lacks %q:\n%s", target, want, bar)
			}
		}
		if strings.Contains(bar, "0 purchases") {
			t.Errorf("the bar of %s shows an unknown number as 0", target)
		}
	}
	l.err = errors.New("connection refused")
	w := get(t, newAPI(l), "/", plain)
	if w.Code != http.StatusServiceUnavailable ||
		!strings.Contains(w.Body.String(), "Postgres does not respond") {
		t.Errorf("unavailable: status = %d, body %s, want 503 with the problem", w.Code, w.Body)
	}
	none := config(newLedger())
	none.Problems = noProblems
	body := get(t, dashboard.New(none), "/", plain).Body.String()
	if !strings.Contains(body, `<div id="problems" role="status"></div>`) {
		t.Errorf("the page has no empty bar:\n%s", body)
	}
}

// emptyDays returns n days without sales as the summary's answer has them.
func emptyDays(from string, n int) (days string) {
	at, err := time.Parse(time.DateOnly, from)
	if err != nil {
		panic(err)
	}
	for i := range n {
		days += fmt.Sprintf(`{"date":%q,"paid":0,"accepted":0,"waiting":0,"not_accepted":0,"left_out":0,`+
			`"new_buyers":0,"returning_buyers":0,"trials_converted":0,"value":[]},`,
			at.AddDate(0, 0, i).Format(time.DateOnly))
	}
	return days
}

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

func TestAPI_ReplayStopsAtItsTimeLimit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLedger()
		c := config(l)
		c.Replays = slowReplays{l}
		post := func(r *http.Request) { r.Method = http.MethodPost }
		w := get(t, dashboard.New(c), "/api/v1/replay?status=dead", post)
		const want = `{"error":"stopped after 25s with 1500 replayed purchases; repeat for the rest"}`
		if w.Code != http.StatusServiceUnavailable || strings.TrimSpace(w.Body.String()) != want || l.woken != 1 {
			t.Errorf("replay = %d, %s, woken %d, want 503, %s, 1", w.Code, w.Body, l.woken, want)
		}
	})
}

func TestAPI_Replay(t *testing.T) {
	t.Parallel()
	for target, tc := range map[string]struct {
		status int
		want   maintenance.Selection
	}{
		"/api/v1/purchases/cs_1/replay":       {202, maintenance.Selection{ID: "cs_1"}},
		"/api/v1/purchases/cs_unknown/replay": {404, maintenance.Selection{ID: "cs_unknown"}},
		"/api/v1/purchases/cs_trial/replay":   {409, maintenance.Selection{ID: "cs_trial"}},
		"/api/v1/replay?status=dead":          {202, maintenance.Selection{Status: purchase.StatusDead}},
		"/api/v1/replay?status=dead&reason=refused&code=40002&since=24h": {202, maintenance.Selection{
			Status: purchase.StatusDead, Reason: purchase.ReasonRefused, Code: new(40002), Within: 24 * time.Hour,
		}},
		"/api/v1/replay":                        {400, maintenance.Selection{}},
		"/api/v1/replay?status=delivered":       {400, maintenance.Selection{}},
		"/api/v1/replay?status=dead&code=x":     {400, maintenance.Selection{}},
		"/api/v1/replay?status=dead&since=soon": {400, maintenance.Selection{}},
		"/api/v1/purchases/cs.1/replay":         {400, maintenance.Selection{}},
	} {
		l := newLedger()
		w := get(t, newAPI(l), target, func(r *http.Request) { r.Method = http.MethodPost })
		if w.Code != tc.status {
			t.Errorf("%s: status = %d, want %d; body %s", target, w.Code, tc.status, w.Body)
		}
		if tc.status == http.StatusBadRequest {
			if len(l.selected) > 0 {
				t.Errorf("%s: replayed %v, want nothing", target, l.selected)
			}
			continue
		}
		if diff := diff.Diff([]maintenance.Selection{tc.want}, l.selected); diff != "" {
			t.Errorf("%s: %s", target, diff)
		}
		if tc.status == http.StatusAccepted && (w.Body.String() != `{"replayed":3}`+"\n" || l.woken != 1) {
			t.Errorf("%s: %s, woken %d", target, w.Body, l.woken)
		}
	}
	l := &ledger{err: errors.New("connection refused")}
	w := get(t, newAPI(l), "/api/v1/replay?status=dead", func(r *http.Request) { r.Method = http.MethodPost })
	if w.Code != http.StatusServiceUnavailable || l.woken != 1 {
		t.Errorf("ledger unavailable: status = %d, woken %d, want 503 and 1", w.Code, l.woken)
	}
}

func TestOutboxMetrics_MissingWithoutLedger(t *testing.T) {
	t.Parallel()
	l := &ledger{}
	want := `
# HELP purchase_relay_outbox_oldest_age_seconds Age of the oldest purchase that waits for the relay.
# TYPE purchase_relay_outbox_oldest_age_seconds gauge
purchase_relay_outbox_oldest_age_seconds 60
# HELP purchase_relay_outbox_pending Purchases that wait for the relay.
# TYPE purchase_relay_outbox_pending gauge
purchase_relay_outbox_pending 3
`
	m := dashboard.NewOutboxMetrics(l, func() time.Time { return now })
	if err := testutil.CollectAndCompare(m, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
	l.err = errors.New("connection refused")
	if n := testutil.CollectAndCount(m); n != 0 {
		t.Errorf("metrics without the ledger = %d, want 0", n)
	}
}

func TestPurchasesMetrics_MissingWithoutLedger(t *testing.T) {
	t.Parallel()
	l := newLedger()
	m := dashboard.NewPurchasesMetrics(l)
	want := "# HELP purchase_relay_purchases Purchases by status.\n# TYPE purchase_relay_purchases gauge\n"
	for _, status := range []string{
		"awaiting_payment 0", "dead 2", "delivered 7", "payment_failed 0", "pending 0", "published 0",
		"rejected 1", "retrying 0", "skipped 0",
	} {
		name, n, _ := strings.Cut(status, " ")
		want += fmt.Sprintf("purchase_relay_purchases{status=%q} %s\n", name, n)
	}
	if err := testutil.CollectAndCompare(m, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
	l.err = errors.New("connection refused")
	if n := testutil.CollectAndCount(m); n != 0 {
		t.Errorf("metrics without the ledger = %d, want 0", n)
	}
}
