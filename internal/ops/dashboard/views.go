package dashboard

import (
	"cmp"
	"context"
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
	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
)

// show renders a page with the layout, whose counts are of all purchases.
func (d *Dashboard) show(w http.ResponseWriter, r *http.Request, name string, f frame) error {
	if err := d.countGroups(r.Context(), &f); err != nil {
		return err
	}
	f.Version, f.Now, f.Problems = d.Version, d.Now(), problemViews(d.Problems(r.Context()))
	if err := d.pages.render(w, cmp.Or(f.Status, http.StatusOK), name, f); err != nil {
		d.Log.Error("Page rendering failed", zap.Error(err))
		return &httpError{http.StatusInternalServerError, internalError}
	}
	return nil
}

// countGroups fills the counts of the navigation: those of the pages that it leads to.
func (d *Dashboard) countGroups(ctx context.Context, f *frame) error {
	groups, err := d.Reports.Groups(ctx, nil)
	if err != nil {
		return err
	}
	for _, g := range groups {
		if g.Status == purchase.StatusDead {
			f.Dead += g.Count
		}
		if g.NeedsAttention() {
			f.Attention += g.Count
		}
	}
	return nil
}

// choice is a link of a switch or an option of a select.
type choice struct {
	Value, Name, Link string
	Chosen            bool
}

type overviewPage struct {
	View          view
	Ranges, Modes []choice
	Summary       report.Summary
	Since         time.Time
	Waiting       int
	Median, P95   string
	Oldest        string
	Health        healthView
	Coverage      []keyCoverage
	KeyNames      []string
	KeyDays       []keyDay // newest first
	Drops         []report.CoverageDrop
	Reasons       []reasonView
	Chart         chart
	Empty         bool // no purchase in this range
	Backfilled    int  // purchases whose webhooks were missed
	LastBackfill  time.Time
	Days          []day
}

type healthView struct {
	Health
	Components []component
}

// component is one entry of the health strip.
type component struct{ Name, Text, Severity string }

type keyCoverage struct {
	Name   string
	With   int
	Of     int
	Remedy string
}

type reasonView struct {
	report.Group
	Meaning, Remedy, Link string
}

// chart holds the counts by hour, comma-separated.
type chart struct {
	Start          int64 // Unix seconds
	Paid, Accepted string
	Unit           string // width of a bar: hour, threehours or day
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
	p := overviewPage{View: v, Summary: s, Since: since, Median: "–", P95: "–", Oldest: "–"}
	p.Waiting = s.Counts[purchase.StatusPending] + s.Counts[purchase.StatusPublished]
	for _, c := range []choice{
		{Value: "24h", Name: "24 hours"}, {Value: "7d", Name: "7 days"}, {Value: "30d", Name: "30 days"},
	} {
		c.Link, c.Chosen = "/?range="+c.Value+"&mode="+v.Mode, c.Value == v.Range
		p.Ranges = append(p.Ranges, c)
	}
	p.Modes = modeChoices(v.Mode, "All")
	for i := range p.Modes {
		p.Modes[i].Link = "/?range=" + v.Range + "&mode=" + p.Modes[i].Value
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
	if p.Backfilled, p.LastBackfill, err = d.Reports.Backfilled(ctx, since, v.livemode); err != nil {
		return err
	}
	p.Empty = len(s.Groups) == 0
	p.Health = d.healthView(ctx, s, now)
	p.Coverage = coverageOf(s.Coverage)
	coverageSince := since
	if twoWeeks := now.AddDate(0, 0, -13); twoWeeks.Before(since) { // CoverageDrops compares two weeks
		coverageSince = twoWeeks
	}
	days, err := d.Reports.Coverage(ctx, coverageSince, v.livemode)
	if err != nil {
		return err
	}
	for _, c := range p.Coverage {
		p.KeyNames = append(p.KeyNames, c.Name)
	}
	p.KeyDays = keyDaysOf(days, since)
	p.Drops = report.CoverageDrops(days, now)
	p.Reasons = reasonsOf(s.Groups, v.Mode)
	p.Chart = chartOf(s.Hours, since, now, v.Range)
	p.Days = daysOf(s.Hours)
	return d.show(w, r, "overview", frame{
		Title: "Overview", Here: "overview", Path: r.URL.RequestURI(), Page: p,
	})
}

// modeChoices returns the choices of a mode.
func modeChoices(chosen, all string) []choice {
	return []choice{
		{Value: "all", Name: all, Chosen: chosen == "all"},
		{Value: "live", Name: "Live", Chosen: chosen == "live"},
		{Value: "test", Name: "Test", Chosen: chosen == "test"},
	}
}

// healthView returns the health strip.
func (d *Dashboard) healthView(ctx context.Context, s report.Summary, now time.Time) healthView {
	h := healthView{Health: d.health(ctx)}
	workers := component{"Workers", strconv.Itoa(len(h.Workers)) + " connected", "good"}
	if len(h.Workers) == 0 {
		workers.Text, workers.Severity = "none connected", "bad"
		if h.NATS != "up" {
			workers.Text, workers.Severity = "unknown", "wait"
		}
	}
	for _, worker := range h.Workers {
		if worker.State != message.WorkerRunning || worker.Reason != "" { // its reason: test purchases wait
			workers.Severity = "wait"
		}
	}
	backlog := component{"Backlog", "unknown", "wait"}
	if b := h.Backlog; b != nil {
		backlog.Text = fmt.Sprintf("%s waiting, %s in progress", number(b.Waiting), number(b.Taken))
		backlog.Severity = "good"
		if b.Waiting+b.Taken > 0 && !s.Oldest.IsZero() {
			backlog.Text += ", oldest " + span(now.Sub(s.Oldest))
		}
		if b.Waiting > 0 && workers.Severity != "good" {
			backlog.Severity = "wait"
		}
	}
	last := component{"Last webhook", ago(s.LastEvent, now), "good"}
	if s.LastEvent.IsZero() {
		last.Severity = "wait"
	}
	severity := map[bool]string{true: "good", false: "bad"}
	h.Components = []component{
		{"Postgres", h.Postgres, severity[h.Postgres == "up"]},
		{"NATS", h.NATS, severity[h.NATS == "up"]},
		workers, backlog, last,
	}
	return h
}

// keyDay is one day's coverage: a share for each of KeyNames.
type keyDay struct {
	At     time.Time
	Of     int
	Shares []string
}

// keyDaysOf returns the days of a range, newest first.
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

func coverageOf(c report.Coverage) []keyCoverage {
	remedies := guide.MatchKeys()
	list := []keyCoverage{{
		"At least one strong key", c.Strong, c.Of,
		"A click id or an e-mail address: without either, a purchase is hardly ever matched.",
	}}
	for i, name := range purchase.MatchKeyNames() {
		list = append(list, keyCoverage{name, c.With[i], c.Of, remedies[i]})
	}
	return list
}

// reasonsOf explains the groups that TikTok has not accepted.
func reasonsOf(groups []report.Group, mode string) (reasons []reasonView) {
	for _, g := range groups {
		switch g.Status {
		case purchase.StatusDead, purchase.StatusRejected, purchase.StatusRetrying, purchase.StatusSkipped,
			purchase.StatusPaymentFailed:
		default:
			continue
		}
		advice := guide.Group(g.Status, g.Reason, g.Code)
		filter := url.Values{"status": {string(g.Status)}}
		if g.Code != nil {
			filter.Set("code", strconv.Itoa(*g.Code))
		}
		if mode != "all" {
			filter.Set("mode", mode)
		}
		reasons = append(reasons, reasonView{g, advice.Meaning, advice.Remedy, link("/purchases", filter)})
	}
	return reasons
}

func chartOf(hours []report.Hour, since, now time.Time, span string) chart {
	units := map[string]string{"24h": "hour", "7d": "threehours", "30d": "day"}
	c := chart{Start: since.Unix(), Unit: units[span]}
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

// daysOf returns the chart's counts by UTC day, newest first.
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
	Problem                        string // why the filter is not valid; "": it is
}

func (d *Dashboard) purchases(w http.ResponseWriter, r *http.Request) error {
	values, err := query(r, "q", "status", "mode", "code", "day", "cursor")
	if err != nil {
		return badRequest(err)
	}
	f, err := parseFilter(values)
	if err != nil {
		return d.invalidFilter(w, r, values, err)
	}
	if strings.Contains(f.Query, "@") { // keep e-mail addresses out of URLs
		return d.find(w, r, f.Query)
	}
	f.Limit = defaultLimit
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
		Query: f.Query, Status: string(f.Status), Mode: orDefault(values.Get("mode"), "all"),
		Code: values.Get("code"), Day: values.Get("day"), Entries: entries, Filtered: len(kept) > 0,
		Paged: values.Get("cursor") != "", Newest: link("/purchases", kept), CSV: link("/purchases.csv", kept),
	}
	if next != "" {
		kept.Set("cursor", next)
		p.Next = link("/purchases", kept)
	}
	p.addChoices()
	return d.show(w, r, "purchases", frame{
		Title: "Purchases", Here: "purchases", Path: r.URL.RequestURI(), Page: p,
	})
}

func (p *purchasesPage) addChoices() {
	p.Statuses = []choice{{Name: "Any status", Chosen: p.Status == ""}}
	for _, s := range purchase.Statuses() {
		c := choice{Value: string(s), Name: capitalise(statusWord(s)), Chosen: string(s) == p.Status}
		p.Statuses = append(p.Statuses, c)
	}
	p.Modes = modeChoices(p.Mode, "Live and test")
}

// invalidFilter shows the list's page with the filter as it was entered, for correction. E-mail addresses are
// left out.
func (d *Dashboard) invalidFilter(
	w http.ResponseWriter, r *http.Request, values url.Values, cause error,
) error {
	p := purchasesPage{
		Status: values.Get("status"), Mode: orDefault(values.Get("mode"), "all"), Code: values.Get("code"),
		Day: values.Get("day"), Filtered: true, Problem: capitalise(cause.Error()) + ".",
	}
	if q := values.Get("q"); !strings.Contains(q, "@") {
		p.Query = cut(q, maxQuery)
	}
	p.addChoices()
	return d.show(w, r, "purchases", frame{
		Status: http.StatusBadRequest, Title: "Purchases", Here: "purchases", Page: p,
	})
}

func link(path string, values url.Values) string {
	if len(values) == 0 {
		return path
	}
	return path + "?" + values.Encode()
}

// search reads the term from the body, so that e-mail addresses stay out of URLs, histories and logs.
func (d *Dashboard) search(w http.ResponseWriter, r *http.Request) error {
	form, err := formOf(w, r)
	if err != nil {
		return badRequest(err)
	}
	return d.find(w, r, strings.TrimSpace(form.Get("q")))
}

// find redirects to the purchase that matches a term, or to the list of several.
func (d *Dashboard) find(w http.ResponseWriter, r *http.Request, term string) error {
	if len(term) > maxQuery {
		return &httpError{http.StatusBadRequest, "search term is too long"}
	}
	ctx := r.Context()
	if strings.Contains(term, "@") {
		profile, err := d.Reports.ProfileByEmail(ctx, term)
		switch {
		case err != nil:
			return err
		case profile == "":
			return &httpError{
				http.StatusNotFound,
				"no purchase with this e-mail address; if Stripe shows one, check the endpoint's deliveries in Stripe",
			}
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

// maxForm limits a form's body: 200 ids of 255 characters and the other fields.
const maxForm = 64 << 10

func formOf(w http.ResponseWriter, r *http.Request) (url.Values, error) {
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		return nil, errors.New("invalid form")
	}
	return r.PostForm, nil
}
