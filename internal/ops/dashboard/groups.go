package dashboard

import (
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"purchase-relay/internal/ops/guide"
	"purchase-relay/internal/ops/maintenance"
	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
)

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
		Lead: "Paid purchases without a usable e-mail address, and dead letters. Purchases that were skipped " +
			"because the worker had no token are listed, too, but not counted.",
	}
	return d.groups(w, r, "Needs attention", p, func(g report.Group) bool {
		return g.NeedsAttention() || g.Replayable()
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
			return s, form, errors.New("no purchase was selected; tick at least one")
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
