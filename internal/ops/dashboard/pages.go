package dashboard

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"html/template"
	"io/fs"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
)

//go:embed templates/*.html
var templateFiles embed.FS

//go:embed static
var staticFiles embed.FS

// assets serves the static files. Their URLs contain a version, a hash of the content.
type assets struct {
	files   http.Handler
	version map[string]string // by file name
}

func newAssets() *assets {
	a := &assets{version: make(map[string]string), files: http.FileServerFS(staticFiles)}
	err := fs.WalkDir(staticFiles, "static", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := staticFiles.ReadFile(path)
		sum := sha256.Sum256(data)
		a.version[strings.TrimPrefix(path, "static/")] = hex.EncodeToString(sum[:6])
		return err
	})
	if err != nil {
		panic(err) // cannot happen: the files are embedded
	}
	return a
}

// ServeHTTP implements http.Handler.
func (a *assets) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	version, ok := a.version[strings.TrimPrefix(r.URL.Path, "/static/")]
	if !ok {
		writePlainError(w, r, http.StatusNotFound, "file not found")
		return
	}
	w.Header().Set("ETag", `"`+version+`"`)
	w.Header().Set("Cache-Control", "private, no-cache")
	if r.URL.Query().Get("v") == version {
		w.Header().Set("Cache-Control", "private, max-age=31536000, immutable")
	}
	a.files.ServeHTTP(w, r)
}

// path returns the versioned URL of a file.
func (a *assets) path(name string) string { return "/static/" + name + "?v=" + a.version[name] }

// pages holds the templates of the pages, each with the layout.
type pages struct {
	zone   *time.Location // of the times
	byName map[string]*template.Template
}

func newPages(a *assets, zone *time.Location) *pages {
	p := &pages{zone: zone, byName: make(map[string]*template.Template)}
	layout := template.Must(template.New("").Funcs(template.FuncMap{
		"asset": a.path, "number": number, "money": money, "amount": amount, "percent": percent, "share": share,
		"span": span, "ago": ago, "stamp": p.stamp,
		"date": p.date, "short": short, "deref": deref, "statusWord": statusWord,
		"statusText": statusesText, "linked": func(n int, link string) cell { return cell{n, link} },
		"count": count, "capitalise": capitalise, "code": code,
	}).ParseFS(templateFiles, "templates/layout.html", "templates/parts.html"))
	for _, name := range []string{
		"overview", "purchases", "purchase", "groups", "confirm", "problem", "reconciliation",
	} {
		page := template.Must(layout.Clone())
		p.byName[name] = template.Must(page.ParseFS(templateFiles, "templates/"+name+".html"))
	}
	return p
}

// cell is a number of a table with a link to what it counts.
type cell struct {
	N    int
	Link string
}

// frame is the layout's data.
type frame struct {
	Status    int // of the response; 0: 200
	Title     string
	Here      string // the current entry of the navigation
	Path      string // the URL to refresh from; "": no refresh
	Dead      int    // counts in the navigation
	Attention int
	Version   string
	Zone      string // of the times
	Now       time.Time
	Notice    string // the result of an action
	Search    string // the content of the search field
	Problems  []problemView
	Page      any
}

// problemView is one line of the bar above every page.
type problemView struct {
	What   string
	Since  *time.Time // nil: unknown
	Count  string     // of purchases; "": unknown or none
	Remedy string
	Link   string // to its purchases; "": none
}

func problemViews(problems report.Problems) (views []problemView) {
	for _, p := range problems.List {
		v := problemView{What: p.What, Since: p.Since, Remedy: p.Remedy}
		switch {
		case p.Purchases == nil || *p.Purchases == 0:
		case *p.Purchases == 1:
			v.Count = "1 purchase"
		default:
			v.Count = number(*p.Purchases) + " purchases"
		}
		if p.Group != nil {
			v.Link = link("/attention", groupValues(*p.Group))
		}
		views = append(views, v)
	}
	return views
}

// render writes a page, or returns an error before the first byte.
func (p *pages) render(w http.ResponseWriter, status int, name string, f frame) error {
	f.Zone = p.zone.String()
	var page bytes.Buffer
	if err := p.byName[name].ExecuteTemplate(&page, "layout", f); err != nil {
		return fmt.Errorf("render %s: %w", name, err)
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = page.WriteTo(w) // the client is gone
	return nil
}

// problemPage is the page of an error.
type problemPage struct{ Title, Message, Back string }

// renderError writes the page of an error, with the navigation, a way back to the form that was sent, and the
// search, unless that is an e-mail address.
func (p *pages) renderError(w http.ResponseWriter, r *http.Request, status int, message string, f frame) {
	f.Title = http.StatusText(status)
	page := problemPage{Title: f.Title, Message: capitalise(message)}
	switch term := cut(r.PostForm.Get("q"), maxQuery); {
	case r.URL.Path == "/search" && !strings.Contains(term, "@"):
		f.Search = term
	case r.URL.Path == "/confirm", r.URL.Path == "/replay":
		page.Back = backOf(r.PostForm)
	}
	f.Here, _, _ = strings.Cut(strings.TrimPrefix(cmp.Or(page.Back, r.URL.Path), "/"), "/")
	f.Page = page
	if err := p.render(w, status, "problem", f); err != nil {
		writePlainError(w, r, http.StatusInternalServerError, internalError)
	}
}

// number formats a number, or what a *int points to, with thousands separators.
func number(n any) string {
	if pointer, ok := n.(*int); ok {
		n = *pointer
	}
	text := fmt.Sprint(n)
	sign := ""
	if strings.HasPrefix(text, "-") {
		sign, text = "-", text[1:]
	}
	whole, rest, _ := strings.Cut(text, ".")
	for i := len(whole) - 3; i > 0; i -= 3 {
		whole = whole[:i] + "," + whole[i:]
	}
	if rest != "" {
		whole += "." + rest
	}
	return sign + whole
}

// money formats an amount in Stripe's smallest unit with the currency's decimals.
func money(minor any, currency string) string {
	var amount int64
	switch m := minor.(type) {
	case int64:
		amount = m
	case *int64:
		if m == nil || currency == "" {
			return "unknown"
		}
		amount = *m
	}
	return number(purchase.Major(amount, currency)) + " " + strings.ToUpper(currency)
}

// amount formats money without its currency.
func amount(minor int64, currency string) string { return number(purchase.Major(minor, currency)) }

// share formats a share from 0 to 1 as a whole percentage.
func share(of float64) string { return strconv.Itoa(int(100*of+0.5)) + " %" }

// percent formats a percentage, rounded down: only a whole is 100 %.
func percent(part, whole int) string {
	if whole == 0 {
		return "–"
	}
	tenths := part * 1000 / whole
	if tenths%10 == 0 {
		return strconv.Itoa(tenths/10) + " %"
	}
	return fmt.Sprintf("%d.%d %%", tenths/10, tenths%10)
}

// span formats a duration with two significant digits.
func span(d time.Duration) string {
	switch {
	case d < 0:
		return "0 s"
	case d < time.Second:
		return strconv.FormatInt(d.Milliseconds(), 10) + " ms"
	case d < 10*time.Second:
		return strconv.FormatFloat(d.Seconds(), 'f', 1, 64) + " s"
	case d < 2*time.Minute:
		return strconv.Itoa(int(d.Seconds())) + " s"
	case d < 2*time.Hour:
		return strconv.Itoa(int(d.Minutes())) + " min"
	case d < 48*time.Hour:
		return strconv.Itoa(int(d.Hours())) + " h"
	default:
		return strconv.Itoa(int(d.Hours()/24)) + " days"
	}
}

func ago(at, now time.Time) string {
	if at.IsZero() {
		return "never"
	}
	if d := now.Sub(at); d >= time.Second {
		return span(d) + " ago"
	}
	return "just now"
}

// date formats the day of a time.
func (p *pages) date(at time.Time) string { return at.In(p.zone).Format(time.DateOnly) }

// stamp formats a time with its zone, and UTC as a tooltip. Detailed ones have milliseconds.
func (p *pages) stamp(at any, detailed bool) template.HTML {
	var t time.Time
	switch a := at.(type) {
	case time.Time:
		t = a
	case *time.Time:
		if a != nil {
			t = *a
		}
	}
	if t.IsZero() {
		return "–"
	}
	layout := "2006-01-02 15:04 MST"
	if detailed {
		layout = "2006-01-02 15:04:05.000 MST"
	}
	exact := t.UTC().Format("2006-01-02 15:04:05.000")
	machine := strings.Replace(exact, " ", "T", 1) + "Z"
	return template.HTML(fmt.Sprintf( //nolint:gosec // digits and a zone's name
		`<time datetime="%s" title="%s UTC">%s</time>`, machine, exact, t.In(p.zone).Format(layout)))
}

// short abbreviates an id to its ends.
func short(id string) string {
	if len(id) <= 22 {
		return id
	}
	return id[:14] + "…" + id[len(id)-6:]
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// code marks what a text has in backticks as code.
func code(text string) template.HTML {
	var marked strings.Builder
	for i, part := range strings.Split(text, "`") {
		part = template.HTMLEscapeString(part)
		if i%2 == 1 {
			part = "<code>" + part + "</code>"
		}
		marked.WriteString(part)
	}
	return template.HTML(marked.String()) //nolint:gosec // escaped above
}

func count(counts map[purchase.Status]int, status string) int { return counts[purchase.Status(status)] }

func statusWord(s purchase.Status) string { return strings.ReplaceAll(string(s), "_", " ") }

func capitalise(s string) string {
	r, size := utf8.DecodeRuneInString(s)
	if size == 0 {
		return s
	}
	return string(unicode.ToUpper(r)) + s[size:]
}
