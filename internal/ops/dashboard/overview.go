package dashboard

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"purchase-relay/internal/ops/guide"
	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
)

type overviewPage struct {
	View          view
	Ranges, Modes []choice
	Sentences     [][]clause
	Summary       report.Summary
	Before        report.Summary
	From, Until   time.Time // of the period
	BeforeFrom    time.Time
	BeforeUntil   time.Time
	Lead, Figures []figure
	Values        []valueView
	Oldest        string
	OldestEver    string // if older than the period
	Health        healthView
	Coverage      []keyCoverage
	KeyNames      []string
	KeyDays       []keyDay // newest first
	Drops         []report.CoverageDrop
	Reasons       []reasonView
	Chart         chart
	Empty         bool // no purchase in this period and mode
	Backfilled    int  // purchases whose webhooks were missed
	LastBackfill  time.Time
	Days          []dayView // newest first
	Today         string    // the last day of the form
}

// figure is a tile: a number, the same of the period before, and a link to what it counts.
type figure struct {
	Name, Label, Class, Link string
	Value, Before            string
	Note                     string
	Part, Whole              int // of a progress bar; Whole 0: none
}

// clause is a part of a sentence: a text with a linked number between two others.
type clause struct{ Text, Linked, Link, Rest string }

// valueView is an amount of one currency in both periods.
type valueView struct {
	report.Value
	Before report.Value
}

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

// chart holds the sales of the steps, separated by commas, and their names, separated by bars.
type chart struct{ Labels, Titles, Accepted, Waiting, NotAccepted string }

// dayView is a row of the table of days.
type dayView struct {
	At time.Time
	report.Sales
	Since string // the time at which a day that is not whole begins; "": whole
	Links map[string]string
}

func (d *Dashboard) overview(w http.ResponseWriter, r *http.Request) error {
	values, err := query(r, "range", "from", "to", "mode")
	if err != nil {
		return badRequest(err)
	}
	now := d.Now()
	v, err := parseView(values, "live", now, d.days)
	if err != nil {
		return badRequest(err)
	}
	ctx := r.Context()
	p := overviewPage{
		View: v, From: v.period.From, Until: v.period.Until, BeforeFrom: v.before.From, BeforeUntil: v.before.Until,
		Today: now.In(d.days.Zone).Format(time.DateOnly),
	}
	if p.Summary, err = d.Reports.Summary(ctx, v.period, v.livemode); err != nil {
		return err
	}
	if p.Before, err = d.Reports.Summary(ctx, v.before, v.livemode); err != nil {
		return err
	}
	if p.Sentences, err = d.sentences(ctx, &v, &p.Summary, now); err != nil {
		return err
	}
	p.setChoices()
	p.Lead, p.Figures = figures(&v, &p.Summary, &p.Before)
	p.Values = valuesOf(p.Summary.Values, p.Before.Values)
	if s := &p.Summary; !s.OldestNow.IsZero() {
		p.Oldest = span(now.Sub(s.OldestNow))
	}
	if s := &p.Summary; s.Oldest.Before(v.period.From) && !s.Oldest.IsZero() {
		p.OldestEver = span(now.Sub(s.Oldest))
	}
	if p.Backfilled, p.LastBackfill, err = d.Reports.Backfilled(
		ctx, v.period.From, v.period.Until, v.livemode,
	); err != nil {
		return err
	}
	p.Empty = len(p.Summary.Groups) == 0
	p.Health = d.healthView(ctx, p.Summary, now)
	if err := d.setCoverage(ctx, &p, now); err != nil {
		return err
	}
	p.Reasons = reasonsOf(p.Summary.Groups, &v)
	p.Chart = chartOf(&v, p.Summary.Steps, d.days.Zone)
	if p.Summary.Paid > 0 {
		p.Days = d.daysOf(&v, p.Summary.Steps)
	}
	return d.show(w, r, "overview", frame{
		Title: "Overview", Here: "overview", Path: r.URL.RequestURI(), Page: p,
	})
}

func (p *overviewPage) setChoices() {
	v := p.View
	p.Modes = modeChoices(v.Mode, "Both")
	for i := range p.Modes {
		values := v.values()
		values.Set("mode", p.Modes[i].Value)
		p.Modes[i].Link = link("/", values)
	}
	p.Ranges = ranges()
	for i := range p.Ranges {
		c := &p.Ranges[i]
		c.Link, c.Chosen = "/?range="+c.Value+"&mode="+v.Mode, c.Value == v.Range
	}
}

// sentences returns what happened yesterday and in the view's period.
func (d *Dashboard) sentences(
	ctx context.Context, v *view, s *report.Summary, now time.Time,
) (list [][]clause, err error) {
	if v.Range != "yesterday" {
		yesterday, err := parseView(map[string][]string{"range": {"yesterday"}}, v.Mode, now, d.days)
		if err != nil {
			return nil, err
		}
		then, err := d.Reports.Summary(ctx, yesterday.period, v.livemode)
		if err != nil {
			return nil, err
		}
		list = append(list, sentenceOf(&yesterday, &then))
	}
	return append(list, sentenceOf(v, s)), nil
}

// sentenceOf says in words what became of a period's sales. Each number links to its purchases.
func sentenceOf(v *view, s *report.Summary) (clauses []clause) {
	if s.Paid == 0 {
		clauses = append(clauses, clause{Text: v.Name + ": no sales."})
	} else {
		rest := "."
		if len(s.Values) > 0 {
			var amounts []string
			for _, value := range s.Values {
				amounts = append(amounts, money(value.PaidMinor, value.Currency))
			}
			rest = ", " + enumerate(amounts) + "."
		}
		clauses = append(clauses,
			clause{v.Name + ": ", quantity(s.Paid, "sale", "sales"), v.list("sales", "all"), rest},
			clause{"TikTok accepted ", number(s.Accepted), v.list("sales", "accepted"), "."})
	}
	off := 0
	for _, g := range s.Groups {
		if g.Status == purchase.StatusSkipped && g.Reason == purchase.ReasonNotConfigured {
			off += g.Count
		}
	}
	for _, c := range []struct {
		n         int
		one, many string
		filter    []string
	}{
		{s.Waiting, "is waiting", "are waiting", []string{"sales", "waiting"}},
		{s.Attention, "needs you", "need you", []string{"status", "dead,rejected"}},
		{off, "skipped without a token", "skipped without a token", []string{"reason", "not_configured"}},
		{s.LeftOut, "left out on purpose", "left out on purpose", []string{"sales", "left_out"}},
	} {
		if c.n > 0 {
			clauses = append(clauses, clause{"", quantity(c.n, c.one, c.many), v.list(c.filter...), "."})
		}
	}
	return clauses
}

func quantity(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return number(n) + " " + many
}

func enumerate(list []string) string {
	if n := len(list); n > 1 {
		return strings.Join(list[:n-1], ", ") + " and " + list[n-1]
	}
	return strings.Join(list, "")
}

// figures returns the two large tiles and the others.
func figures(v *view, s, before *report.Summary) (lead, others []figure) {
	lead = []figure{
		{
			Name: "paid", Label: "Paid at Stripe", Link: v.list("sales", "all"), Value: number(s.Paid),
			Before: number(before.Paid),
		},
		{
			Name: "accepted", Label: "Accepted by TikTok", Class: "good", Link: v.list("sales", "accepted"),
			Value: number(s.Accepted), Before: number(before.Accepted), Part: s.Accepted, Whole: s.Intended(),
			Note: percent(s.Accepted, s.Intended()),
		},
	}
	status := func(name, label, class string, statuses ...purchase.Status) {
		var names []string
		n, earlier := 0, 0
		for _, status := range statuses {
			names = append(names, string(status))
			n, earlier = n+s.Counts[status], earlier+before.Counts[status]
		}
		if n == 0 {
			class = ""
		}
		others = append(others, figure{
			Name: name, Label: label, Class: class, Link: v.list("status", strings.Join(names, ",")),
			Value: number(n), Before: number(earlier),
		})
	}
	status("waiting", "Waiting", "", purchase.StatusPending, purchase.StatusPublished, purchase.StatusRetrying)
	status("retrying", "Retrying", "", purchase.StatusRetrying)
	status("dead", "Dead", "bad", purchase.StatusDead)
	status("skipped", "Skipped", "", purchase.StatusSkipped)
	status("attention", "Needs attention", "bad", purchase.StatusDead, purchase.StatusRejected)
	others[1].Note = "of waiting"
	others[4].Note = "dead or rejected"
	return lead, others
}

// quantiles returns the median and the 95th percentile.
func quantiles(d report.Delays) (median, p95 string) {
	median, p95 = "–", "–"
	if at, ok := d.Quantile(0.5); ok {
		median = span(at)
	}
	if at, ok := d.Quantile(0.95); ok {
		p95 = span(at)
	}
	return median, p95
}

// Median and the others are used by the template.
func (p overviewPage) Median() string       { m, _ := quantiles(p.Summary.Delays); return m }
func (p overviewPage) P95() string          { _, q := quantiles(p.Summary.Delays); return q }
func (p overviewPage) TestLink() string     { return p.Modes[2].Link }
func (p overviewPage) MedianBefore() string { m, _ := quantiles(p.Before.Delays); return m }

// valuesOf returns the currencies of both periods, in alphabetical order.
func valuesOf(now, before []report.Value) (list []valueView) {
	for _, v := range now {
		list = append(list, valueView{Value: v, Before: report.Value{Currency: v.Currency}})
	}
	for _, v := range before {
		at, found := slices.BinarySearchFunc(list, v, func(a valueView, b report.Value) int {
			return strings.Compare(a.Currency, b.Currency)
		})
		if !found {
			list = slices.Insert(list, at, valueView{Value: report.Value{Currency: v.Currency}})
		}
		list[at].Before = v
	}
	return list
}

// keyDay is one day's coverage: a share for each of KeyNames.
type keyDay struct {
	At     time.Time
	Of     int
	Shares []string
}

// setCoverage sets the match keys of the period and of its days, and warns if the last week has far fewer
// than the week before.
func (d *Dashboard) setCoverage(ctx context.Context, p *overviewPage, now time.Time) error {
	v := &p.View
	p.Coverage = coverageOf(p.Summary.Coverage)
	for _, c := range p.Coverage {
		p.KeyNames = append(p.KeyNames, c.Name)
	}
	read := func(from, until time.Time) ([]report.DayCoverage, error) {
		steps := d.days.Between(from, until)
		return d.Reports.Coverage(ctx, report.Period{From: steps[0], Until: until, Steps: steps}, v.livemode)
	}
	days, err := read(v.period.From, v.period.Until)
	if err != nil {
		return err
	}
	twoWeeks, tomorrow, recent := d.days.Of(now, -13), d.days.Of(now, 1), days
	if v.period.From.After(twoWeeks) || v.period.Until.Before(tomorrow) {
		if recent, err = read(twoWeeks, tomorrow); err != nil {
			return err
		}
	}
	p.Drops = report.CoverageDrops(recent, d.days.Of(now, 0))
	for _, day := range slices.Backward(days) {
		line := keyDay{At: day.At, Of: day.Of}
		for _, c := range coverageOf(day.Coverage) {
			line.Shares = append(line.Shares, percent(c.With, c.Of))
		}
		p.KeyDays = append(p.KeyDays, line)
	}
	return nil
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
func reasonsOf(groups []report.Group, v *view) (reasons []reasonView) {
	for _, g := range groups {
		switch g.Status {
		case purchase.StatusDead, purchase.StatusRejected, purchase.StatusRetrying, purchase.StatusSkipped,
			purchase.StatusPaymentFailed:
		default:
			continue
		}
		filter := []string{"status", string(g.Status)}
		if g.Reason != "" {
			filter = append(filter, "reason", string(g.Reason))
		}
		switch {
		case g.Code != nil:
			filter = append(filter, "code", strconv.Itoa(*g.Code))
		case g.Status == purchase.StatusDead || g.Status == purchase.StatusRetrying:
			filter = append(filter, "code", noCode)
		}
		advice := guide.Group(g.Status, g.Reason, g.Code)
		reasons = append(reasons, reasonView{g, advice.Meaning, advice.Remedy, v.list(filter...)})
	}
	return reasons
}

// chartOf returns the chart's series. Sales that are left out on purpose are not in it.
func chartOf(v *view, steps []report.Sales, zone *time.Location) chart {
	label, title := "2 Jan", "Mon, 2 Jan 2006"
	if v.ByHour {
		label, title = "15:04", "Mon, 2 Jan 2006 15:04 MST"
	}
	var labels, titles, accepted, waiting, rest []string
	for i, at := range v.period.Steps {
		var s report.Sales
		if i < len(steps) {
			s = steps[i]
		}
		labels = append(labels, at.In(zone).Format(label))
		titles = append(titles, at.In(zone).Format(title))
		accepted = append(accepted, strconv.Itoa(s.Accepted))
		waiting = append(waiting, strconv.Itoa(s.Waiting))
		rest = append(rest, strconv.Itoa(s.NotAccepted()))
	}
	return chart{
		strings.Join(labels, "|"), strings.Join(titles, "|"), strings.Join(accepted, ","),
		strings.Join(waiting, ","), strings.Join(rest, ","),
	}
}

// daysOf returns the rows of the table of days, newest first.
func (d *Dashboard) daysOf(v *view, steps []report.Sales) (list []dayView) {
	for _, day := range slices.Backward(v.byDay(steps, d.days)) {
		line := dayView{At: day.At, Sales: report.SumSales(day.Steps), Links: make(map[string]string)}
		if day.At.Before(v.period.From) {
			line.Since = v.period.From.In(d.days.Zone).Format("15:04")
		}
		for name, filter := range map[string][2]string{
			"paid": {"sales", "all"}, "accepted": {"sales", "accepted"}, "waiting": {"sales", "waiting"},
			"not_accepted": {"sales", "not_accepted"}, "left_out": {"sales", "left_out"}, "new": {"buyer", "new"},
			"returning": {"buyer", "returning"}, "converted": {"kind", string(purchase.KindFirstPayment)},
		} {
			values := v.values()
			if line.Since == "" { // a whole day
				for _, name := range []string{"range", "from", "to"} {
					values.Del(name)
				}
			}
			values.Set("day", day.At.In(d.days.Zone).Format(time.DateOnly))
			values.Set(filter[0], filter[1])
			line.Links[name] = link("/purchases", values)
		}
		list = append(list, line)
	}
	return list
}
