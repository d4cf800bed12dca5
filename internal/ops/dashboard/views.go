package dashboard

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/guide"
	"purchase-relay/internal/ops/maintenance"
	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
)

// show renders a page inside the layout. Its counts in the navigation are of all times; where the ledger is
// away the page is one that says so.
func (d *Dashboard) show(w http.ResponseWriter, r *http.Request, name string, f frame) error {
	groups, err := d.Reports.Groups(r.Context(), nil)
	if err != nil {
		return err
	}
	for _, g := range groups {
		switch g.Status {
		case purchase.StatusDead:
			f.Dead += g.Count
			f.Attention += g.Count
		case purchase.StatusRejected:
			f.Attention += g.Count
		default: // needs nobody
		}
	}
	f.Version, f.Now = d.Version, d.Now()
	if err := d.pages.render(w, http.StatusOK, name, f); err != nil {
		d.Log.Error("A page could not be made", zap.Error(err))
		return &refusal{http.StatusInternalServerError, "something is wrong on our side; the log says what"}
	}
	return nil
}

// choice is one of a row of links, or of a select's options.
type choice struct {
	Value, Name, Link string
	Chosen            bool
}

type overviewPage struct {
	View          view
	Ranges, Modes []choice
	S             report.Summary
	Since         time.Time
	Waiting       int
	Median, P95   string
	Oldest        string
	Health        healthView
	Coverage      []coverageLine
	KeyNames      []string
	KeyDays       []keyDay // newest first
	Falls         []report.CoverageDrop
	Reasons       []reasonLine
	Chart         chart
	Empty         bool // the ledger has nothing in this range
	CaughtUp      int  // purchases whose webhooks were missed
	LastCaught    time.Time
	Days          []day
}

type healthView struct {
	Health
	Lights []light
	Alarms []string // what an operator must know first
}

type light struct{ Name, Text, Mood string }

type coverageLine struct {
	Name   string
	With   int
	Of     int
	Remedy string
}

type reasonLine struct {
	report.Group
	What, Remedy, Link string
}

// chart is the two counts by the hour, from the first one on.
type chart struct {
	Start          int64 // Unix seconds
	Paid, Accepted string
	Unit           string // hour, threehours or day: what the script draws
}

type day struct {
	At             time.Time
	Paid, Accepted int
}

func (d *Dashboard) overview(w http.ResponseWriter, r *http.Request) error {
	values, err := query(r, "range", "mode")
	if err != nil {
		return badRequest(err)
	}
	v, err := parseView(values)
	if err != nil {
		return badRequest(err)
	}
	ctx := r.Context()
	now := d.Now()
	since := now.Add(-v.span).UTC().Truncate(time.Hour)
	s, err := d.Reports.Summary(ctx, since, v.livemode)
	if err != nil {
		return err
	}
	p := overviewPage{View: v, S: s, Since: since, Waiting: s.Counts[purchase.StatusPending] + s.Counts[purchase.StatusPublished], Median: "–", P95: "–", Oldest: "–"}
	for _, c := range []choice{{Value: "24h", Name: "24 hours"}, {Value: "7d", Name: "7 days"}, {Value: "30d", Name: "30 days"}} {
		c.Link, c.Chosen = "/?range="+c.Value+"&mode="+v.Mode, c.Value == v.Range
		p.Ranges = append(p.Ranges, c)
	}
	for _, c := range []choice{{Value: "all", Name: "All"}, {Value: "live", Name: "Live"}, {Value: "test", Name: "Test"}} {
		c.Link, c.Chosen = "/?range="+v.Range+"&mode="+c.Value, c.Value == v.Mode
		p.Modes = append(p.Modes, c)
	}
	if median, ok := s.Delays.Quantile(0.5); ok {
		p.Median = span(median)
	}
	if p95, ok := s.Delays.Quantile(0.95); ok {
		p.P95 = span(p95)
	}
	if !s.Oldest.IsZero() {
		p.Oldest = span(now.Sub(s.Oldest))
	}
	if p.CaughtUp, p.LastCaught, err = d.Reports.Backfilled(ctx, since, v.livemode); err != nil {
		return err
	}
	p.Empty = len(s.Groups) == 0
	p.Health = d.healthView(ctx, s, now)
	p.Coverage = coverageOf(s.Coverage)
	days, err := d.Reports.Coverage(ctx, earlier(since, now.AddDate(0, 0, -13)), v.livemode) // two weeks at least, to be compared
	if err != nil {
		return err
	}
	p.KeyNames, p.KeyDays = keyNames(), keyDaysOf(days, since)
	p.Falls = report.CoverageDrops(days, now)
	p.Reasons = reasonsOf(s.Groups, v.Mode)
	p.Chart = chartOf(s.Hours, since, now, v.Range)
	p.Days = daysOf(s.Hours)
	return d.show(w, r, "overview", frame{Title: "Overview", Here: "overview", Path: r.URL.RequestURI(), Page: p})
}

func upMood(state string) string {
	if state == "up" {
		return "good"
	}
	return "bad"
}

// healthView puts the neighbours' states into lights, and what must be done first into alarms.
func (d *Dashboard) healthView(ctx context.Context, s report.Summary, now time.Time) healthView {
	h := healthView{Health: d.health(ctx)}
	workers := light{"Workers", strconv.Itoa(len(h.Workers)) + " connected", "good"}
	if len(h.Workers) == 0 {
		workers.Text, workers.Mood = "none connected", "bad"
		if h.NATS == "up" {
			h.Alarms = append(h.Alarms, "No worker has reported for 15 seconds; purchases wait in the queue. Start tiktok-worker.")
		} else {
			workers.Text, workers.Mood = "not heard of", "wait"
		}
	}
	for _, worker := range h.Workers {
		alarm := workerAlarm(worker)
		if alarm != "" {
			workers.Mood = "wait"
			h.Alarms = append(h.Alarms, fmt.Sprintf("Worker %s %s Since %s.", worker.Instance, alarm, ago(worker.Since, now)))
		}
	}
	backlog := light{"Backlog", "unknown", "wait"}
	if b := h.Backlog; b != nil {
		backlog.Text, backlog.Mood = fmt.Sprintf("%s waiting, %s under way", number(b.Waiting), number(b.Taken)), "good"
		if b.Waiting+b.Taken > 0 && !s.Oldest.IsZero() {
			backlog.Text += ", oldest " + span(now.Sub(s.Oldest))
		}
		if b.Waiting > 0 && workers.Mood != "good" {
			backlog.Mood = "wait"
		}
	}
	if h.NATS != "up" {
		h.Alarms = append(h.Alarms, "NATS is away: webhooks go on, purchases wait on the ledger and are published when it is back.")
	}
	last := light{"Last webhook", ago(s.LastEvent, now), "good"}
	if s.LastEvent.IsZero() {
		last.Mood = "wait"
	}
	h.Lights = []light{{"Postgres", h.Postgres, upMood(h.Postgres)}, {"NATS", h.NATS, upMood(h.NATS)}, workers, backlog, last}
	return h
}

// workerAlarm is what an operator must know of a worker; "" where there is nothing.
func workerAlarm(w message.WorkerState) string {
	verbs := map[string]string{
		message.WorkerPaused: "is paused", message.WorkerOpen: "waits, its circuit is open", message.WorkerOff: "is switched off",
	}
	if verb, stopped := verbs[w.State]; stopped {
		advice := guide.Worker(w.State)
		return fmt.Sprintf("%s: %s (%s). %s", verb, advice.Meaning, w.Reason, advice.Remedy)
	}
	if w.Reason != "" { // test purchases alone wait
		return "delivers; " + w.Reason + "."
	}
	return ""
}

// keyDay is one day's coverage: a share for each of KeyNames.
type keyDay struct {
	At     time.Time
	Of     int
	Shares []string
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// keyDaysOf lists the days of a range, the newest first.
func keyDaysOf(days []report.DayCoverage, since time.Time) (list []keyDay) {
	for _, d := range slices.Backward(days) {
		if d.At.Before(since.Truncate(24 * time.Hour)) {
			break
		}
		line := keyDay{At: d.At, Of: d.Of}
		for _, c := range coverageOf(d.Coverage) {
			line.Shares = append(line.Shares, percent(c.With, c.Of))
		}
		list = append(list, line)
	}
	return list
}

// keyNames are the names of coverageOf's lines.
func keyNames() (names []string) {
	for _, c := range coverageOf(report.Coverage{}) {
		names = append(names, c.Name)
	}
	return names
}

func coverageOf(c report.Coverage) []coverageLine {
	remedies := guide.MatchKeys()
	lines := []coverageLine{{"At least one strong key", c.Strong, c.Of, "A click id or an e-mail address: without either, a purchase is hardly ever matched."}}
	for i, name := range purchase.MatchKeyNames() {
		lines = append(lines, coverageLine{name, c.With[i], c.Of, remedies[i]})
	}
	return lines
}

// reasons explains what did not reach TikTok, or not yet.
func reasonsOf(groups []report.Group, mode string) (lines []reasonLine) {
	for _, g := range groups {
		switch g.Status {
		case purchase.StatusDead, purchase.StatusRejected, purchase.StatusRetrying, purchase.StatusSkipped, purchase.StatusPaymentFailed:
		default:
			continue
		}
		advice := guide.Group(g.Status, g.Reason, g.Code)
		line := reasonLine{Group: g, What: advice.Meaning, Remedy: advice.Remedy}
		link := url.Values{"status": {string(g.Status)}}
		if g.Code != nil {
			link.Set("code", strconv.Itoa(*g.Code))
		}
		if mode != "all" {
			link.Set("mode", mode)
		}
		line.Link = "/purchases?" + link.Encode()
		lines = append(lines, line)
	}
	return lines
}

func chartOf(hours []report.Hour, since, now time.Time, span string) chart {
	c := chart{Start: since.Unix(), Unit: map[string]string{"24h": "hour", "7d": "threehours", "30d": "day"}[span]}
	n := int(now.Sub(since)/time.Hour) + 1
	paid, accepted := make([]string, n), make([]string, n)
	for i := range n {
		paid[i], accepted[i] = "0", "0"
	}
	for _, h := range hours {
		if i := int(h.At.Sub(since) / time.Hour); i >= 0 && i < n {
			paid[i], accepted[i] = strconv.Itoa(h.Paid), strconv.Itoa(h.Accepted)
		}
	}
	c.Paid, c.Accepted = strings.Join(paid, ","), strings.Join(accepted, ",")
	return c
}

// daysOf is the chart as a table: whole days of UTC, the newest first.
func daysOf(hours []report.Hour) (days []day) {
	for _, h := range slices.Backward(hours) {
		at := h.At.Truncate(24 * time.Hour)
		if n := len(days); n == 0 || !days[n-1].At.Equal(at) {
			days = append(days, day{At: at})
		}
		last := &days[len(days)-1]
		last.Paid += h.Paid
		last.Accepted += h.Accepted
	}
	return days
}

type purchasesPage struct {
	Query, Status, Mode, Code, Day string
	Statuses, Modes                []choice
	Entries                        []report.Row
	Next, Newest, CSV              string
	Filtered, Paged                bool
	Label                          string // what the search was for
}

func (d *Dashboard) purchases(w http.ResponseWriter, r *http.Request) error {
	values, err := query(r, "q", "status", "mode", "code", "day", "cursor")
	if err != nil {
		return badRequest(err)
	}
	f, err := parseFilter(values)
	if err != nil {
		return badRequest(err)
	}
	if strings.Contains(f.Query, "@") { // an address does not stay in an address line
		return d.find(w, r, f.Query)
	}
	f.Limit = usualLimit
	entries, next, err := d.page(r.Context(), f)
	if err != nil {
		return err
	}
	kept := url.Values{}
	for _, name := range []string{"q", "status", "mode", "code", "day"} {
		if value := values.Get(name); value != "" && (name != "mode" || value != "all") {
			kept.Set(name, value)
		}
	}
	p := purchasesPage{
		Query: f.Query, Status: string(f.Status), Mode: orDefault(values.Get("mode"), "all"), Code: values.Get("code"), Day: values.Get("day"), Entries: entries,
		Filtered: len(kept) > 0, Paged: values.Get("cursor") != "", Newest: link("/purchases", kept), CSV: link("/purchases.csv", kept),
	}
	if next != "" {
		kept.Set("cursor", next)
		p.Next = link("/purchases", kept)
	}
	p.Statuses = []choice{{Name: "Any status", Chosen: f.Status == ""}}
	for _, status := range purchase.Statuses() {
		p.Statuses = append(p.Statuses, choice{Value: string(status), Name: capitalise(statusWord(status)), Chosen: status == f.Status})
	}
	for _, c := range []choice{{Value: "all", Name: "Live and test"}, {Value: "live", Name: "Live"}, {Value: "test", Name: "Test"}} {
		c.Chosen = c.Value == p.Mode
		p.Modes = append(p.Modes, c)
	}
	return d.show(w, r, "purchases", frame{Title: "Purchases", Here: "purchases", Path: r.URL.RequestURI(), Page: p})
}

func link(path string, values url.Values) string {
	if len(values) == 0 {
		return path
	}
	return path + "?" + values.Encode()
}

// search takes what was typed in a form's body: an e-mail address must not enter an address line, nor a
// history, nor a log.
func (d *Dashboard) search(w http.ResponseWriter, r *http.Request) error {
	form, err := formOf(w, r)
	if err != nil {
		return badRequest(err)
	}
	return d.find(w, r, strings.TrimSpace(form.Get("q")))
}

// find leads to what was searched for: the one purchase, or the list of them.
func (d *Dashboard) find(w http.ResponseWriter, r *http.Request, term string) error {
	if len(term) > maxQuery {
		return &refusal{http.StatusBadRequest, "this is too long to be an id or an e-mail address"}
	}
	ctx := r.Context()
	if strings.Contains(term, "@") {
		profile, err := d.Reports.ProfileByEmail(ctx, term)
		switch {
		case err != nil:
			return err
		case profile == "":
			return &refusal{http.StatusNotFound, "no purchase was made under this e-mail address; if Stripe shows one, look at the endpoint's deliveries there"}
		}
		term = profile
	}
	to := link("/purchases", url.Values{"q": {term}})
	if term == "" {
		to = "/purchases"
	} else {
		found, err := d.Reports.List(ctx, report.Filter{Query: term, Limit: 2})
		if err != nil {
			return err
		}
		if len(found) == 1 {
			to = "/purchases/" + found[0].ID
		}
	}
	http.Redirect(w, r, to, http.StatusSeeOther)
	return nil
}

// maxForm bounds a form's body: 200 ids of 255 letters and some more.
const maxForm = 64 << 10

func formOf(w http.ResponseWriter, r *http.Request) (url.Values, error) {
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		return nil, errors.New("the form cannot be read")
	}
	return r.PostForm, nil
}

type purchasePage struct {
	report.Row
	Steps        []report.Step
	Attempts     []attemptView
	What, Remedy string
	Body         string
	Keys         string // the kinds of match keys that were sent
	Replayable   bool
	FirstPayment string // of a trial
}

type attemptView struct {
	report.Attempt
	Meaning string
}

func (d *Dashboard) purchase(w http.ResponseWriter, r *http.Request) error {
	values, err := query(r, "replayed")
	if err != nil {
		return badRequest(err)
	}
	ctx := r.Context()
	row, err := d.Reports.Get(ctx, r.PathValue("id"))
	switch {
	case errors.Is(err, report.ErrNotFound):
		return &refusal{http.StatusNotFound, "the ledger does not know this purchase; if Stripe shows it as paid, look at the endpoint's deliveries there and at CHECKOUT_MODES here"}
	case err != nil:
		return err
	}
	p := purchasePage{Row: row, Steps: row.Timeline(), FirstPayment: deref(row.FirstPayment)}
	for _, a := range row.Attempts {
		v := attemptView{Attempt: a}
		if a.Code != nil {
			v.Meaning = guide.Code(*a.Code).Meaning
		}
		p.Attempts = append(p.Attempts, v)
	}
	group := report.Group{Status: row.Status, Reason: row.Reason}
	if row.Status == purchase.StatusDead || row.Status == purchase.StatusRetrying {
		group.Code = row.LastCode
	}
	advice := guide.Group(group.Status, group.Reason, group.Code)
	p.What, p.Remedy = advice.Meaning, advice.Remedy
	p.Replayable = group.Replayable() || row.Status == purchase.StatusSkipped && row.Reason == purchase.ReasonTestPurchase
	var pretty bytes.Buffer
	if body := d.body(&row); body != nil && json.Indent(&pretty, body, "", "  ") == nil {
		p.Body = pretty.String()
	}
	if row.KeyMask != nil {
		p.Keys = strings.Join(purchase.KeyNames(*row.KeyMask), ", ")
	}
	return d.show(w, r, "purchase", frame{
		Title: "Purchase " + short(row.ID), Here: "purchases", Path: "/purchases/" + row.ID, Notice: noticeOf(values), Page: p,
	})
}

// noticeOf says what a replay has done, after its redirect.
func noticeOf(values url.Values) string {
	n, err := strconv.ParseUint(values.Get("replayed"), 10, 32)
	switch {
	case err != nil:
		return ""
	case n == 1:
		return "1 purchase is pending again: the relay sends it now."
	default:
		return number(n) + " purchases are pending again: the relay sends them now."
	}
}

// groupsPage is the dead letters, or what needs attention: purchases that stand alike, together.
type groupsPage struct {
	Lead   string
	Groups []groupView
	Only   bool // one group, paged through
	Next   string
	Back   string
}

type groupView struct {
	report.Group
	What, Remedy string
	CodeText     string // as forms and links name it
	Entries      []report.Row
	Link         string // the group alone
}

// fewEntries is how many purchases of each group are listed.
const fewEntries = 8

func (d *Dashboard) dead(w http.ResponseWriter, r *http.Request) error {
	return d.groups(w, r, "/dead", "Dead letters", "dead", "Purchases that TikTok refused for their content, that expired, or that crashed the worker.",
		func(g report.Group) bool { return g.Status == purchase.StatusDead })
}

func (d *Dashboard) attention(w http.ResponseWriter, r *http.Request) error {
	return d.groups(w, r, "/attention", "Needs attention", "attention", "Where a person must decide: paid purchases without a usable address, dead letters, and what was skipped for want of a token.",
		func(g report.Group) bool { return g.Status == purchase.StatusRejected || g.Replayable() })
}

func (d *Dashboard) groups(w http.ResponseWriter, r *http.Request, path, title, here, lead string, belongs func(report.Group) bool) error {
	values, err := query(r, "status", "reason", "code", "cursor", "replayed")
	if err != nil {
		return badRequest(err)
	}
	asked := values.Get("code")
	if asked == noCode {
		values.Del("code") // the list's own filter knows numbers
	}
	f, err := parseFilter(values)
	if err != nil {
		return badRequest(err)
	}
	ctx := r.Context()
	groups, err := d.Reports.Groups(ctx, nil)
	if err != nil {
		return err
	}
	p := groupsPage{Lead: lead, Only: f.Status != "", Back: path}
	for _, g := range groups {
		chosen := !p.Only || g.Status == f.Status && string(g.Reason) == values.Get("reason") && groupCode(g) == asked
		if !belongs(g) || !chosen {
			continue
		}
		advice := guide.Group(g.Status, g.Reason, g.Code)
		v := groupView{
			Group: g, What: advice.Meaning, Remedy: advice.Remedy,
			CodeText: groupCode(g), Link: path + "?" + groupValues(g).Encode(),
		}
		of := report.Filter{Status: g.Status, Reason: g.Reason, Code: g.Code, NoCode: groupCode(g) == noCode, Limit: fewEntries}
		if p.Only {
			of.Limit, of.After = usualLimit, f.After
		}
		var next string
		if v.Entries, next, err = d.page(ctx, of); err != nil {
			return err
		}
		if p.Only && next != "" {
			more := groupValues(g)
			more.Set("cursor", next)
			p.Next = path + "?" + more.Encode()
		}
		p.Groups = append(p.Groups, v)
	}
	values.Del("replayed")
	if asked != "" {
		values.Set("code", asked)
	}
	return d.show(w, r, "groups", frame{Title: title, Here: here, Path: link(path, values), Notice: noticeOf(r.URL.Query()), Page: p})
}

func codeText(code *int) string {
	if code == nil {
		return ""
	}
	return strconv.Itoa(*code)
}

func groupValues(g report.Group) url.Values {
	values := url.Values{"status": {string(g.Status)}, "reason": {string(g.Reason)}}
	if code := groupCode(g); code != "" {
		values.Set("code", code)
	}
	return values
}

// noCode stands for purchases that died without any answer of TikTok's.
const noCode = "none"

// groupCode is the code that belongs to a group's purchases; "" where the group does not look at codes.
func groupCode(g report.Group) string {
	if g.Code == nil && g.Status == purchase.StatusDead {
		return noCode
	}
	return codeText(g.Code)
}

// confirmPage asks before a replay.
type confirmPage struct {
	Counts      []maintenance.Replayable
	Count, Late int
	Old         int // of Count, paid more than 28 days ago
	IDs         []string
	Status      string
	Reason      string
	Code        string
	Back        string
	Unfit       int // chosen ones that no replay may take
}

// formSelection reads which purchases a form is about: those ticked, or all of a group.
func (d *Dashboard) formSelection(w http.ResponseWriter, r *http.Request) (maintenance.Selection, url.Values, error) {
	form, err := formOf(w, r)
	if err != nil {
		return maintenance.Selection{}, nil, err
	}
	if form.Get("all") == "" {
		s := maintenance.Selection{IDs: form["id"]}
		if len(s.IDs) == 0 {
			return s, form, errors.New("tick at least one purchase first")
		}
		return s, form, s.Check()
	}
	without := form.Get("code") == noCode
	if without {
		form.Del("code")
	}
	s, err := parseSelection(form)
	if err != nil {
		return s, form, err
	}
	s.NoCode = without
	return s, form, s.Check()
}

func (d *Dashboard) confirm(w http.ResponseWriter, r *http.Request) error {
	s, form, err := d.formSelection(w, r)
	if err != nil {
		return badRequest(err)
	}
	ctx := r.Context()
	p := confirmPage{IDs: s.IDs, Status: string(s.Status), Reason: string(s.Reason), Code: codeText(s.Code), Back: backOf(form)}
	if s.NoCode {
		p.Code = noCode
	}
	if p.Counts, err = d.Replays.CountReplayable(ctx, s); err != nil {
		return err
	}
	p.Count, p.Late = maintenance.Sum(p.Counts)
	p.Old = maintenance.Old(p.Counts)
	if len(s.IDs) > 0 {
		p.Unfit = len(s.IDs) - p.Count
	}
	return d.show(w, r, "confirm", frame{Title: "Replay", Page: p})
}

// backOf is where a form came from: one of our own pages.
func backOf(form url.Values) string {
	switch back := form.Get("back"); {
	case back == "/dead", back == "/attention":
		return back
	case strings.HasPrefix(back, "/purchases/") && purchase.ValidID(strings.TrimPrefix(back, "/purchases/")):
		return back
	}
	return "/dead"
}

func (d *Dashboard) replayFromPage(w http.ResponseWriter, r *http.Request) error {
	s, form, err := d.formSelection(w, r)
	if err != nil {
		return badRequest(err)
	}
	n, err := d.replay(r, s)
	if err != nil {
		return err
	}
	to := backOf(form) + "?replayed=" + strconv.Itoa(n)
	http.Redirect(w, r, to, http.StatusSeeOther) //nolint:gosec // backOf returns our own paths alone
	return nil
}
