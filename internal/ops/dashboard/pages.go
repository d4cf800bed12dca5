package dashboard

import (
	"bytes"
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

	"purchase-relay/internal/purchase"
)

//go:embed templates/*.html
var templateFiles embed.FS

//go:embed static
var staticFiles embed.FS

// assets serves the pages' own files, under names that change with their content.
type assets struct {
	files http.Handler
	mark  map[string]string
}

func newAssets() *assets {
	a := &assets{mark: make(map[string]string), files: http.FileServerFS(staticFiles)}
	err := fs.WalkDir(staticFiles, "static", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := staticFiles.ReadFile(path)
		sum := sha256.Sum256(data)
		a.mark[strings.TrimPrefix(path, "static/")] = hex.EncodeToString(sum[:6])
		return err
	})
	if err != nil {
		panic(err) // the files are in the binary
	}
	return a
}

// ServeHTTP implements http.Handler.
func (a *assets) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	mark, ok := a.mark[strings.TrimPrefix(r.URL.Path, "/static/")]
	if !ok {
		turnAway(w, r, http.StatusNotFound, "there is no such file")
		return
	}
	w.Header().Set("ETag", `"`+mark+`"`)
	w.Header().Set("Cache-Control", "private, no-cache")
	if r.URL.Query().Get("v") == mark {
		w.Header().Set("Cache-Control", "private, max-age=31536000, immutable")
	}
	a.files.ServeHTTP(w, r)
}

// path is where a file is found.
func (a *assets) path(name string) string { return "/static/" + name + "?v=" + a.mark[name] }

// pages are the templates, each page with the layout around it.
type pages struct{ byName map[string]*template.Template }

func newPages(a *assets) *pages {
	p := &pages{byName: make(map[string]*template.Template)}
	layout := template.Must(template.New("").Funcs(template.FuncMap{
		"asset": a.path, "number": number, "money": money, "amount": amount, "percent": percent, "share": share, "span": span, "ago": ago, "stamp": stamp, "short": short, "deref": deref,
		"statusWord": statusWord, "count": count, "capitalise": capitalise,
	}).ParseFS(templateFiles, "templates/layout.html", "templates/parts.html"))
	for _, name := range []string{"overview", "purchases", "purchase", "groups", "confirm", "problem", "reconciliation"} {
		p.byName[name] = template.Must(template.Must(layout.Clone()).ParseFS(templateFiles, "templates/"+name+".html"))
	}
	return p
}

// frame is what the layout shows around every page.
type frame struct {
	Title     string
	Here      string // the navigation's entry
	Path      string // where the page asks for its fresh self; "": it does not
	Dead      int    // counts in the navigation
	Attention int
	Version   string
	Now       time.Time
	Notice    string // what has just been done
	Page      any
}

// render writes a page whole, or not at all.
func (p *pages) render(w http.ResponseWriter, status int, name string, f frame) error {
	var page bytes.Buffer
	if err := p.byName[name].ExecuteTemplate(&page, "layout", f); err != nil {
		return fmt.Errorf("render %s: %w", name, err)
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = page.WriteTo(w) // the reader is gone
	return nil
}

// problem is the page of an error.
func (p *pages) problem(w http.ResponseWriter, r *http.Request, status int, sentence string) {
	err := p.render(w, status, "problem", frame{Title: http.StatusText(status), Page: struct {
		Status   int
		Title    string
		Sentence string
	}{status, http.StatusText(status), capitalise(sentence)}})
	if err != nil {
		turnAway(w, r, http.StatusInternalServerError, "something is wrong on our side")
	}
}

// number writes a whole number with its thousands apart.
func number(n any) string {
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

// money writes an amount with its currency's own decimals, as Stripe counts them.
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

// amount is money in a table whose rows name the currency.
func amount(minor int64, currency string) string { return number(purchase.Major(minor, currency)) }

// share writes a share from 0 to 1 as whole percents.
func share(of float64) string { return strconv.Itoa(int(100*of+0.5)) + " %" }

// percent never rounds up to a hundred what is less.
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

// span writes a length of time for people, with two figures that matter.
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

// stamp is a time in UTC, which the pages' script turns into the viewer's. Detailed ones have seconds.
func stamp(at any, detailed bool) template.HTML {
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
	t = t.UTC()
	layout, detail := "2006-01-02 15:04", ""
	if detailed {
		layout, detail = "2006-01-02 15:04:05.000", ` data-detailed`
	}
	return template.HTML(fmt.Sprintf(`<time datetime="%s" title="%s UTC"%s>%s UTC</time>`, //nolint:gosec // digits alone
		t.Format("2006-01-02T15:04:05.000Z"), t.Format("2006-01-02 15:04:05.000"), detail, t.Format(layout)))
}

// short is an id that people can tell from others: its ends.
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

func count(counts map[purchase.Status]int, status string) int { return counts[purchase.Status(status)] }

func statusWord(s purchase.Status) string { return strings.ReplaceAll(string(s), "_", " ") }

func capitalise(s string) string {
	r, size := utf8.DecodeRuneInString(s)
	if size == 0 {
		return s
	}
	return string(unicode.ToUpper(r)) + s[size:]
}
