package dashboard

import (
	"context"
	"encoding/csv"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/guide"
	"purchase-relay/internal/ops/report"
)

// Counts compares the ledger with what TikTok counts.
type Counts interface {
	Counts(ctx context.Context, names report.EventNames, now time.Time) (report.Counts, error)
}

// countsView is the section of TikTok's counts; nil: TikTok was never asked.
type countsView struct {
	report.Counts
	Mode     string
	Problem  string // why there are no new counts; "": there are
	Findings []findingView
	Newest   []report.CountedDay
	Others   []report.TypeCount // event types other than the purchases'
}

type findingView struct {
	report.Finding
	Days       string
	Difference bool
}

// countsView reads the comparison.
func (d *Dashboard) countsView(ctx context.Context) (*countsView, error) {
	c, err := d.Reports.Counts(ctx, d.CountNames, d.Now())
	if err != nil {
		return nil, err
	}
	v := &countsView{Counts: c, Mode: "test purchases"}
	if c.Livemode {
		v.Mode = "live purchases"
	}
	for _, w := range d.health(ctx).Workers {
		if w.Stats != nil {
			v.Problem = statsProblem(w, d.Now())
		}
	}
	if len(c.Days) == 0 && v.Problem == "" {
		return nil, nil
	}
	for _, f := range c.Findings {
		v.Findings = append(v.Findings, findingView{f, dayList(f.Days), f.Difference()})
	}
	v.Newest = slices.Clone(c.Days)
	slices.Reverse(v.Newest)
	v.Others = slices.DeleteFunc(slices.Clone(c.Types), func(t report.TypeCount) bool {
		return c.Event != "" && t.Event == c.Event
	})
	return v, nil
}

// statsProblem returns why a worker cannot read TikTok's counts: what, since when, what to do.
func statsProblem(w message.WorkerState, now time.Time) string {
	advice := guide.Stats(w.Stats.Kind)
	return fmt.Sprintf("No counts from TikTok for %s: %s (%s). %s Deliveries continue.",
		span(now.Sub(w.Stats.Since)), guide.LowerFirst(advice.Meaning), w.Stats.Reason, advice.Remedy)
}

// dayList lists up to seven days, else their number; "": none.
func dayList(days []time.Time) string {
	if len(days) > 7 {
		return fmt.Sprintf("on %d days", len(days))
	}
	var list []string
	for _, day := range days {
		list = append(list, day.Format(time.DateOnly))
	}
	if len(list) == 0 {
		return ""
	}
	return "on " + strings.Join(list, ", ")
}

// countsCSV serves the comparison by day.
func (d *Dashboard) countsCSV(w http.ResponseWriter, r *http.Request) error {
	values, err := query(r)
	if err != nil {
		return badRequest(err)
	}
	c, err := d.Reports.Counts(r.Context(), d.CountNames, d.Now())
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/csv; charset=utf-8")
	w.Header().Set("Content-Disposition", `attachment; filename="counts.csv"`)
	rows := c.CSV()
	err = csv.NewWriter(w).WriteAll(rows) // an error: the client is gone
	d.logExport(r, values, len(rows)-1, err == nil)
	return nil
}

// counts is the body of GET /api/v1/counts.
type counts struct {
	report.Counts
	Zone    string                `json:"timezone"` // of the days: TikTok's API has UTC days
	Problem *message.StatsProblem `json:"problem"`  // why there are no new counts; null: there are
}

func (d *Dashboard) apiCounts(w http.ResponseWriter, r *http.Request) error {
	if _, err := query(r); err != nil {
		return badRequest(err)
	}
	ctx := r.Context()
	c, err := d.Reports.Counts(ctx, d.CountNames, d.Now())
	if err != nil {
		return err
	}
	body := counts{Counts: c, Zone: "UTC"}
	for _, worker := range d.health(ctx).Workers {
		if worker.Stats != nil {
			body.Problem = worker.Stats
		}
	}
	writeJSON(w, http.StatusOK, body)
	return nil
}

// countsMetrics queries the comparison at each scrape.
type countsMetrics struct {
	reports            Counts
	names              report.EventNames
	now                func() time.Time
	counts, unexpected *prometheus.Desc
}

// NewCountsMetrics returns a collector of TikTok's counts beside the ledger's. It is missing while the ledger
// is unavailable.
func NewCountsMetrics(reports Counts, names report.EventNames, now func() time.Time) prometheus.Collector {
	return &countsMetrics{
		reports: reports, names: names, now: now,
		counts: prometheus.NewDesc("purchase_relay_tiktok_counts",
			"Purchases of the last seven whole UTC days.",
			[]string{"source"}, nil),
		unexpected: prometheus.NewDesc("purchase_relay_tiktok_count_differences",
			"1 while TikTok's counts differ from the ledger.", []string{"kind"}, nil),
	}
}

// Describe implements prometheus.Collector.
func (m *countsMetrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- m.counts
	ch <- m.unexpected
}

// Collect implements prometheus.Collector.
func (m *countsMetrics) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	now := m.now()
	c, err := m.reports.Counts(ctx, m.names, now)
	if err != nil {
		return
	}
	today := now.UTC().Truncate(24 * time.Hour)
	var ledger, accepted, server, browser, attributed int
	for i := range c.Days {
		d := &c.Days[i]
		if !d.Day.Before(today) || d.Day.Before(today.AddDate(0, 0, -7)) {
			continue
		}
		ledger, accepted = ledger+d.Ledger, accepted+d.Accepted
		server, browser, attributed = server+d.Server, browser+d.Browser, attributed+d.Attributed
	}
	for source, n := range map[string]int{
		"ledger": ledger, "accepted": accepted, "server": server, "browser": browser, "attributed": attributed,
	} {
		ch <- prometheus.MustNewConstMetric(m.counts, prometheus.GaugeValue, float64(n), source)
	}
	for _, kind := range report.FindingKinds() {
		if kind == report.CountAttributed {
			continue
		}
		found := 0.0
		if slices.ContainsFunc(c.Findings, func(f report.Finding) bool { return f.Kind == kind }) {
			found = 1
		}
		ch <- prometheus.MustNewConstMetric(m.unexpected, prometheus.GaugeValue, found, string(kind))
	}
}
