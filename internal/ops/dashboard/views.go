package dashboard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"time"

	"go.uber.org/zap"

	"purchase-relay/internal/message"
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

type healthView struct {
	Health
	Components []component
}

// component is one entry of the health strip.
type component struct{ Name, Text, Severity string }

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
	workers := component{"Workers", workersText(h.Workers), "good"}
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
		backlog.Text = fmt.Sprintf("%s waiting, %s in progress, live and test", number(b.Waiting), number(b.Taken))
		backlog.Severity = "good"
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

// workersText counts workers by state. Only running ones deliver.
func workersText(workers []message.WorkerState) string {
	counts := make(map[string]int)
	for _, w := range workers {
		counts[w.State]++
	}
	var parts []string
	for _, state := range []struct{ name, text string }{
		{message.WorkerRunning, "running"},
		{message.WorkerPaused, "paused"},
		{message.WorkerOpen, "with an open circuit"},
		{message.WorkerOff, "switched off"},
	} {
		if n := counts[state.name]; n > 0 {
			parts = append(parts, number(n)+" "+state.text)
		}
	}
	return strings.Join(parts, ", ")
}

type purchasesPage struct {
	Query, Status, Mode, Code, Day string
	Statuses, Modes                []choice
	Further                        []choice // filters without a field of the form, with a link that drops each
	Entries                        []report.Row
	Next, Newest, CSV              string
	Filtered, Paged                bool
	Problem                        string // why the filter is not valid; "": it is
}

func (d *Dashboard) purchases(w http.ResponseWriter, r *http.Request) error {
	values, err := query(r, append(filterNames(), "cursor")...)
	if err != nil {
		return badRequest(err)
	}
	f, err := d.parseFilter(values)
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
	kept := filtersIn(values)
	p := purchasesPage{
		Query: f.Query, Status: values.Get("status"), Mode: orDefault(values.Get("mode"), "all"),
		Code: values.Get("code"), Day: values.Get("day"), Entries: entries, Filtered: len(kept) > 0,
		Paged: values.Get("cursor") != "", Newest: link("/purchases", kept), CSV: link("/purchases.csv", kept),
	}
	p.addChoices(kept)
	if next != "" {
		kept.Set("cursor", next)
		p.Next = link("/purchases", kept)
	}
	return d.show(w, r, "purchases", frame{
		Title: "Purchases", Here: "purchases", Path: r.URL.RequestURI(), Page: p,
	})
}

// filtersIn returns the filters among a list's parameters.
func filtersIn(values url.Values) url.Values {
	kept := url.Values{}
	for _, name := range filterNames() {
		if value := values.Get(name); value != "" && (name != "mode" || value != "all") {
			kept.Set(name, value)
		}
	}
	return kept
}

func (p *purchasesPage) addChoices(kept url.Values) {
	p.Statuses = []choice{{Name: "Any status", Chosen: p.Status == ""}}
	for _, s := range purchase.Statuses() {
		c := choice{Value: string(s), Name: capitalise(statusWord(s)), Chosen: string(s) == p.Status}
		p.Statuses = append(p.Statuses, c)
	}
	if strings.Contains(p.Status, ",") { // from a link of the overview
		p.Statuses = append(p.Statuses, choice{Value: p.Status, Name: statusesText(p.Status), Chosen: true})
	}
	p.Further = furtherFilters(kept)
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
	kept := filtersIn(values)
	if q := kept.Get("q"); !strings.Contains(q, "@") {
		p.Query = cut(q, maxQuery)
	}
	kept.Del("q")
	p.addChoices(kept)
	return d.show(w, r, "purchases", frame{
		Status: http.StatusBadRequest, Title: "Purchases", Here: "purchases", Page: p,
	})
}

// furtherFilters returns the filters that the form has no field for.
func furtherFilters(kept url.Values) (list []choice) {
	for _, name := range []string{"range", "from", "to", "sales", "buyer", "reason", "kind"} {
		if value := kept.Get(name); value != "" {
			without := maps.Clone(kept)
			without.Del(name)
			without.Del("cursor")
			list = append(list, choice{Value: value, Name: name, Link: link("/purchases", without)})
		}
	}
	return list
}

// statusesText describes a list of statuses.
func statusesText(list string) string {
	return capitalise(strings.ReplaceAll(strings.ReplaceAll(list, "_", " "), ",", " or "))
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
