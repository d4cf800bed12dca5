package dashboard

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
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

// show renders a page with the layout, whose counts are of all purchases.
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
		default: // needs no attention
		}
	}
	f.Version, f.Now, f.Problems = d.Version, d.Now(), problemViews(d.Problems(r.Context()))
	if err := d.pages.render(w, http.StatusOK, name, f); err != nil {
		d.Log.Error("Page rendering failed", zap.Error(err))
		return &httpError{http.StatusInternalServerError, internalError}
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
}

func (d *Dashboard) purchases(w http.ResponseWriter, r *http.Request) error {
	values, err := query(r, append(filterNames(), "cursor")...)
	if err != nil {
		return badRequest(err)
	}
	f, err := d.parseFilter(values)
	if err != nil {
		return badRequest(err)
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
	for _, name := range filterNames() {
		if value := values.Get(name); value != "" && (name != "mode" || value != "all") {
			kept.Set(name, value)
		}
	}
	p := purchasesPage{
		Query: f.Query, Status: values.Get("status"), Mode: orDefault(values.Get("mode"), "all"),
		Code: values.Get("code"), Day: values.Get("day"), Entries: entries, Filtered: len(kept) > 0,
		Paged: values.Get("cursor") != "", Newest: link("/purchases", kept), CSV: link("/purchases.csv", kept),
	}
	if next != "" {
		kept.Set("cursor", next)
		p.Next = link("/purchases", kept)
	}
	p.Statuses = []choice{{Name: "Any status", Chosen: p.Status == ""}}
	for _, s := range purchase.Statuses() {
		c := choice{Value: string(s), Name: capitalise(statusWord(s)), Chosen: string(s) == p.Status}
		p.Statuses = append(p.Statuses, c)
	}
	if len(f.Statuses) > 1 { // from a link of the overview
		p.Statuses = append(p.Statuses, choice{Value: p.Status, Name: statusesText(p.Status), Chosen: true})
	}
	p.Further = furtherFilters(kept)
	p.Modes = modeChoices(p.Mode, "Live and test")
	return d.show(w, r, "purchases", frame{
		Title: "Purchases", Here: "purchases", Path: r.URL.RequestURI(), Page: p,
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

type purchasePage struct {
	report.Row
	Steps        []report.Step
	Attempts     []attemptView
	What, Remedy string
	Body         string
	Keys         string // match keys of the message
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
		return &httpError{
			http.StatusNotFound,
			"purchase not found; if Stripe shows it as paid, check the endpoint's deliveries and CHECKOUT_MODES",
		}
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
	testPurchase := row.Status == purchase.StatusSkipped && row.Reason == purchase.ReasonTestPurchase
	p.Replayable = group.Replayable() || testPurchase
	var pretty bytes.Buffer
	if body := d.body(&row); body != nil && json.Indent(&pretty, body, "", "  ") == nil {
		p.Body = pretty.String()
	}
	if row.KeyMask != nil {
		p.Keys = strings.Join(purchase.KeyNames(*row.KeyMask), ", ")
	}
	return d.show(w, r, "purchase", frame{
		Title: "Purchase " + short(row.ID), Here: "purchases", Path: "/purchases/" + row.ID,
		Notice: noticeOf(values), Page: p,
	})
}

// noticeOf returns the result of a replay after its redirect; "": none.
func noticeOf(values url.Values) string {
	n, err := strconv.ParseUint(values.Get("replayed"), 10, 32)
	switch {
	case err != nil:
		return ""
	case n == 1:
		return "1 purchase is pending again and is sent now."
	default:
		return number(n) + " purchases are pending again and are sent now."
	}
}

// groupsPage lists purchases by status, reason and code: dead letters, or what needs attention.
type groupsPage struct {
	Lead   string
	Groups []groupView
	Only   bool // a single group with pages
	Next   string
	Back   string
}

type groupView struct {
	report.Group
	What, Remedy string
	CodeText     string // the code in forms and links
	Entries      []report.Row
	Link         string // to the single group
}

// groupLimit limits the listed purchases of each group.
const groupLimit = 8

func (d *Dashboard) dead(w http.ResponseWriter, r *http.Request) error {
	p := groupsPage{
		Back: "/dead",
		Lead: "Purchases that TikTok refused for their content, that expired, or that crashed the worker.",
	}
	return d.groups(w, r, "Dead letters", p, func(g report.Group) bool {
		return g.Status == purchase.StatusDead
	})
}

func (d *Dashboard) attention(w http.ResponseWriter, r *http.Request) error {
	p := groupsPage{
		Back: "/attention",
		Lead: "Paid purchases without a usable address, dead letters, and purchases skipped without a token.",
	}
	return d.groups(w, r, "Needs attention", p, func(g report.Group) bool {
		return g.Status == purchase.StatusRejected || g.Replayable()
	})
}

// groups shows the groups that belong to a page, or the single one that the query names.
func (d *Dashboard) groups(
	w http.ResponseWriter, r *http.Request, title string, p groupsPage, belongs func(report.Group) bool,
) error {
	values, err := query(r, "status", "reason", "code", "cursor", "replayed")
	if err != nil {
		return badRequest(err)
	}
	code := values.Get("code")
	f, err := d.parseFilter(values)
	if err != nil {
		return badRequest(err)
	}
	ctx := r.Context()
	groups, err := d.Reports.Groups(ctx, nil)
	if err != nil {
		return err
	}
	p.Only = len(f.Statuses) > 0
	for _, g := range groups {
		named := string(g.Status) == values.Get("status") && string(g.Reason) == values.Get("reason") &&
			groupCode(g) == code
		if !belongs(g) || p.Only && !named {
			continue
		}
		advice := guide.Group(g.Status, g.Reason, g.Code)
		v := groupView{
			Group: g, What: advice.Meaning, Remedy: advice.Remedy, CodeText: groupCode(g),
			Link: link(p.Back, groupValues(g)),
		}
		filter := report.Filter{
			Statuses: []purchase.Status{g.Status}, Code: g.Code, NoCode: v.CodeText == noCode, Limit: groupLimit,
		}
		if g.Reason != "" {
			filter.Reasons = []purchase.Reason{g.Reason}
		}
		if p.Only {
			filter.Limit, filter.After = defaultLimit, f.After
		}
		var next string
		if v.Entries, next, err = d.page(ctx, filter); err != nil {
			return err
		}
		if p.Only && next != "" {
			more := groupValues(g)
			more.Set("cursor", next)
			p.Next = link(p.Back, more)
		}
		p.Groups = append(p.Groups, v)
	}
	values.Del("replayed")
	return d.show(w, r, "groups", frame{
		Title: title, Here: strings.TrimPrefix(p.Back, "/"), Path: link(p.Back, values),
		Notice: noticeOf(r.URL.Query()), Page: p,
	})
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

// noCode is the code of dead purchases without an answer from TikTok.
const noCode = "none"

// groupCode returns a group's code in forms and links; "": any.
func groupCode(g report.Group) string {
	if g.Code == nil && g.Status == purchase.StatusDead {
		return noCode
	}
	return codeText(g.Code)
}

// confirmPage asks for confirmation of a replay.
type confirmPage struct {
	Counts        []maintenance.Replayable
	Count, Late   int
	Old           int // of Count, paid more than 28 days ago
	IDs           []string
	Status        string
	Reason        string
	Code          string
	Back          string
	NotReplayable int // of IDs
}

// formSelection parses a form's selection: the ticked purchases, or all of a group.
func formSelection(w http.ResponseWriter, r *http.Request) (maintenance.Selection, url.Values, error) {
	form, err := formOf(w, r)
	if err != nil {
		return maintenance.Selection{}, nil, err
	}
	if form.Get("all") == "" {
		s := maintenance.Selection{IDs: form["id"]}
		if len(s.IDs) == 0 {
			return s, form, errors.New("no purchase selected")
		}
		return s, form, s.Check()
	}
	withoutCode := form.Get("code") == noCode
	if withoutCode {
		form.Del("code")
	}
	s, err := parseSelection(form)
	if err != nil {
		return s, form, err
	}
	s.NoCode = withoutCode
	return s, form, s.Check()
}

func (d *Dashboard) confirm(w http.ResponseWriter, r *http.Request) error {
	s, form, err := formSelection(w, r)
	if err != nil {
		return badRequest(err)
	}
	ctx := r.Context()
	p := confirmPage{
		IDs: s.IDs, Status: string(s.Status), Reason: string(s.Reason), Code: codeText(s.Code), Back: backOf(form),
	}
	if s.NoCode {
		p.Code = noCode
	}
	if p.Counts, err = d.Replays.CountReplayable(ctx, s); err != nil {
		return err
	}
	p.Count, p.Late = maintenance.Sum(p.Counts)
	p.Old = maintenance.Old(p.Counts)
	if len(s.IDs) > 0 {
		p.NotReplayable = len(s.IDs) - p.Count
	}
	return d.show(w, r, "confirm", frame{Title: "Replay", Page: p})
}

// backOf returns the path of the page that a form was sent from.
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
	s, form, err := formSelection(w, r)
	if err != nil {
		return badRequest(err)
	}
	n, err := d.replay(r, s)
	if err != nil {
		return err
	}
	to := backOf(form) + "?replayed=" + strconv.Itoa(n)
	http.Redirect(w, r, to, http.StatusSeeOther) //nolint:gosec // backOf returns only paths of the dashboard
	return nil
}
