package dashboard_test

import (
	"encoding/csv"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"

	"purchase-relay/internal/ops/dashboard"
	"purchase-relay/internal/ops/maintenance"
	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
)

func post(
	t *testing.T, h http.Handler, target string, form url.Values, change func(r *http.Request),
) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, target, strings.NewReader(form.Encode()))
	r.Host = "127.0.0.1:8081"
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	change(r)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestPages_LinkTrialAndFirstPayment(t *testing.T) {
	t.Parallel()
	l := newLedger()
	l.entries[0].Kind, l.entries[0].Status = purchase.KindTrial, purchase.StatusSkipped
	paid := &l.entries[1]
	paid.Kind, paid.ID, paid.TrialSession = purchase.KindFirstPayment, "in_paid", new("cs_new")
	l.details = report.Row{FirstPayment: new("in_paid"), Converted: new(now.Add(time.Hour))}
	h := newAPI(l)
	has := func(target string, parts ...string) {
		t.Helper()
		body := get(t, h, target, plain).Body.String()
		for _, part := range parts {
			if !strings.Contains(body, part) {
				t.Errorf("%s lacks %q:\n%s", target, part, body)
			}
		}
	}
	has("/purchases/cs_new", "<dt>Checked out</dt>", `<a href="/purchases/in_paid">in_paid</a>`,
		"Checked out without a payment", "First payment recorded: in_paid")
	has("/api/v1/purchases/cs_new", `"kind":"trial"`, `"first_payment_id":"in_paid"`)
	l.details = report.Row{}
	has("/purchases/in_paid", "<dt>Paid</dt>", `<a href="/purchases/cs_new">cs_new</a>`,
		"First payment after the trial cs_new")
	has("/api/v1/purchases/in_paid", `"kind":"first_payment","trial_session_id":"cs_new"`,
		`"first_payment_id":null`)
	has("/purchases.csv", "kind,trial_session_id", "first_payment,cs_new")
	has("/purchases/cs_new", `<dt>First payment</dt><dd>none</dd>`)
}

func TestOverview_WarnsOfCoverageDrop(t *testing.T) {
	t.Parallel()
	l := newLedger()
	today := now.Truncate(24 * time.Hour)
	for ago := range 12 {
		c := report.Coverage{Of: 10, Strong: 10}
		c.With[0], c.With[2] = 10, 8
		if ago < 7 {
			c.With[2] = 5
		}
		l.days = append([]report.DayCoverage{{At: today.AddDate(0, 0, -ago), Coverage: c}}, l.days...)
	}
	body := get(t, newAPI(l), "/?range=7d", plain).Body.String()
	for _, part := range []string{
		`data-fall="ttclid">ttclid: on 50 % of purchases in the last 7 days, 80 % in the 7 days before.`,
		"At least one strong key", "Click ids older than CLICK_WINDOW: 1.",
		`<th scope="row">2026-01-02</th><td class="n">10</td><td class="n">100 %</td>` +
			`<td class="n">100 %</td><td class="n">0 %</td><td class="n">50 %</td>`,
	} {
		if !strings.Contains(body, part) {
			t.Errorf("overview lacks %q:\n%s", part, body)
		}
	}
	if n := strings.Count(body, "data-fall"); n != 1 {
		t.Errorf("warnings = %d, want 1", n)
	}
	if strings.Contains(body, "2025-12-25") { // eight days ago
		t.Error("overview has a day before the range")
	}
	for i := range l.days {
		l.days[i].With[2] = 8
	}
	if body := get(t, newAPI(l), "/", plain).Body.String(); strings.Contains(body, "data-fall") {
		t.Error("overview warns without a drop")
	}
}

// Every page escapes foreign text and has no inline script or style.
func TestPages_ShowTheLedger(t *testing.T) {
	t.Parallel()
	l := newLedger()
	h := newAPI(l)
	for target, wanted := range map[string][]string{
		"/": {
			"Paid at Stripe", "Accepted by TikTok", "87.5 %", ">1,234.56<", ">800<",
			"Worker w1 is paused: TikTok accepts nothing (live: 40105 no such token).",
			"(test purchases wait: 40001 no right).", "NATS is down",
			"A field of the event is not valid",
			"phone_number_collection", "Last webhook", "3.0 s ago", `data-figure="attention">1<`,
			`data-figure="no-value">3<`, "median; p95", `hx-get="/"`,
		},
		"/?range=24h&mode=live": {
			`hx-get="/?range=24h&amp;mode=live"`, `/purchases?mode=live&amp;range=24h&amp;sales=accepted`,
		},
		"/purchases/cs_new": {"Request sent", "Sent without a value"},
		"/purchases": {
			"cs_new", "cs_dead", "cs_old", "29.99 USD", "800 JPY", "invalid_email", "End of list", "unknown",
		},
		"/purchases?status=dead":    {"cs_dead", "/purchases.csv?status=dead", "Clear"},
		"/purchases?status=skipped": {"No matching purchases"},
		"/purchases/cs_dead": {
			"Timeline", "Attempt 1 at TikTok", "r1", "Replay …", "event_source", "&lt;b&gt;=no&lt;/b&gt;",
			"customer", "Paid (Stripe",
		},
		"/purchases/cs_dead?replayed=1": {"1 purchase is pending again"},
		"/dead": {
			"code 40002", "Replay all 1 …", "Replay selected", "=&lt;b&gt;no", "expired",
		},
		"/dead?replayed=3": {"3 purchases are pending again", `hx-get="/dead"`},
		"/dead?status=dead&reason=refused&code=40002": {"All groups", "cs_dead"},
		"/dead?status=dead&reason=expired&code=none":  {"Replay all 1", `hx-get="/dead?code=none&amp;`},
		"/dead?status=dead&reason=crash&code=none":    {"This group is empty now"},
		"/attention": {"rejected", "give access by hand", "refused"},
		"/purchases?day=2026-01-01&mode=all&code=&status=": {`value="2026-01-01"`},
	} {
		w := get(t, h, target, plain)
		body := w.Body.String()
		if w.Code != http.StatusOK || !strings.HasPrefix(w.Header().Get("Content-Type"), "text/html") {
			t.Errorf("%s: status = %d, body %s", target, w.Code, body)
		}
		for _, part := range wanted {
			if !strings.Contains(body, part) {
				t.Errorf("%s lacks %q:\n%s", target, part, body)
			}
		}
		for _, part := range []string{
			"<b>", " style=", "<style", "onclick", "attributed", "ZgotmplZ", "<nil>", "%!",
		} {
			if strings.Contains(body, part) {
				t.Errorf("%s has %q", target, part)
			}
		}
		for _, script := range strings.Split(body, "<script")[1:] {
			if !strings.HasPrefix(script, ` src="/static/`) || !strings.Contains(script, "defer></script>") {
				t.Errorf("%s has an inline script: %.80s", target, script)
			}
		}
	}
	// A delivered purchase has no message any more two days later: its kinds of keys are listed.
	l.details.Envelope, l.details.KeyMask = nil, new(int16(0b1_0001_0101))
	for target, part := range map[string]string{
		"/purchases/cs_new":        "Sent with: E-mail, ttclid, IP, Address.",
		"/purchases/cs_old":        "a purchase without a usable e-mail address is not sent",
		"/api/v1/purchases/cs_new": `"match_keys":["E-mail","ttclid","IP","Address"],"body":null`,
	} {
		if w := get(t, h, target, plain); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), part) {
			t.Errorf("dropped message, %s: status = %d, body %s", target, w.Code, w.Body)
		}
	}
	empty := newAPI(&ledger{})
	for target, part := range map[string]string{
		"/": "point an endpoint", "/purchases": "No purchases yet", "/dead": "No purchases",
		"/attention": "No purchases", "/reconciliation": "No reconciliation yet",
	} {
		if w := get(t, empty, target, plain); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), part) {
			t.Errorf("empty ledger, %s: status = %d, body %s", target, w.Code, w.Body)
		}
	}
}

// Errors reveal no internals. They are pages, or JSON in the API.
func TestErrors_HaveStatusAndFormat(t *testing.T) {
	t.Parallel()
	l := newLedger()
	h := newAPI(l)
	for target, want := range map[string]int{
		"/?range=1y": 400, "/?foo=1": 400, "/nothing": 404, "/purchases/cs_unknown": 404, "/purchases/cs.%2e": 404,
		"/purchases?status=paid": 400, "/purchases?code=many": 400,
		"/purchases?code=99999999999": 400, "/purchases?day=yesterday": 400, "/purchases?day=2026-02-30": 400,
		"/purchases?cursor=%21": 400, "/purchases?cursor=MTIz": 400,
		"/purchases?limit=10": 400, "/purchases?status=dead&status=skipped": 400,
		"/purchases?q=" + strings.Repeat("x", 400): 400, "/purchases?%zz": 400, "/purchases.csv?cursor=x": 400,
		"/dead?code=x": 400, "/search": 405, "/replay": 405, "/confirm": 405, "/static/nothing.js": 404,
		"/static/":                  404,
		"/api/v1/purchases?limit=0": 400, "/api/v1/purchases?limit=201": 400, "/api/v1/purchases?limit=x": 400,
		"/api/v1/purchases?sort=up": 400, "/api/v1/purchases?cursor=x": 400,
		"/api/v1/purchases?mode=both": 400, "/api/v1/purchases/cs_unknown": 404,
		"/api/v1/purchases/cs_new?x=1": 400, "/api/v1/purchases/": 404, "/api/v1": 404,
	} {
		w := get(t, h, target, plain)
		isJSON := strings.HasPrefix(w.Body.String(), `{"error":"`)
		if w.Code != want || isJSON != strings.HasPrefix(target, "/api/") ||
			strings.Contains(w.Body.String(), "SELECT") || strings.Contains(w.Body.String(), "goroutine") {
			t.Errorf("%s: status = %d, body %s", target, w.Code, w.Body)
		}
		if w.Code == http.StatusMethodNotAllowed && w.Header().Get("Allow") != "POST" {
			t.Errorf("%s: Allow = %q, want POST", target, w.Header().Get("Allow"))
		}
	}
	if w := post(t, h, "/", nil, plain); w.Code != http.StatusMethodNotAllowed ||
		w.Header().Get("Allow") != "GET, HEAD" {
		t.Errorf("POST /: status = %d, Allow = %q, want 405 and GET, HEAD", w.Code, w.Header().Get("Allow"))
	}
	l.err = errors.New(`relation "purchases" does not exist (SELECT …)`)
	for _, target := range []string{
		"/", "/purchases", "/purchases/cs_new", "/dead", "/attention", "/reconciliation",
		"/reconciliation.csv?mode=live", "/purchases.csv", "/api/v1/summary", "/api/v1/purchases",
		"/api/v1/purchases/cs_new",
	} {
		if w := get(t, h, target, plain); w.Code != http.StatusServiceUnavailable ||
			strings.Contains(w.Body.String(), "relation") || w.Header().Get("Retry-After") == "" {
			t.Errorf("ledger unavailable, %s: status = %d, body %s", target, w.Code, w.Body)
		}
	}
}

func TestSearch_KeepsAddressesOutOfURLs(t *testing.T) {
	t.Parallel()
	h := newAPI(newLedger())
	profile := "/purchases?q=5f1d7a4e-0000-4000-8000-000000000001"
	for term, want := range map[string]string{
		" Buyer@Example.com ": profile, "cs_dead": "/purchases/cs_dead", "": "/purchases",
		"cus_unknown": "/purchases?q=cus_unknown",
	} {
		w := post(t, h, "/search", url.Values{"q": {term}}, plain)
		if got := w.Header().Get("Location"); w.Code != http.StatusSeeOther || got != want {
			t.Errorf("search %q: location = %q, status = %d, want %q and 303", term, got, w.Code, want)
		}
	}
	w := post(t, h, "/search", url.Values{"q": {"unknown@example.com"}}, plain)
	if w.Code != http.StatusNotFound || strings.Contains(w.Body.String(), "unknown@") {
		t.Errorf("unknown address: status = %d, body %s, want 404", w.Code, w.Body)
	}
	if w := get(t, h, "/purchases?q=buyer@example.com", plain); w.Header().Get("Location") != profile {
		t.Errorf("address in a URL: status = %d, location %s, want a redirect", w.Code, w.Header().Get("Location"))
	}
	tooLong := url.Values{"q": {strings.Repeat("x", 100<<10)}}
	if w := post(t, h, "/search", tooLong, plain); w.Code != http.StatusBadRequest {
		t.Errorf("body over the limit: status = %d, want 400", w.Code)
	}
}

// The README's pictures have the navigation of the pages: `make screenshots` writes it beside them.
func TestPictures_HaveTheNavigation(t *testing.T) {
	t.Parallel()
	pictured, err := os.ReadFile("../../../docs/images/navigation.txt")
	if err != nil {
		t.Fatal(err)
	}
	var links strings.Builder
	_, nav, _ := strings.Cut(get(t, newAPI(newLedger()), "/", plain).Body.String(), `<nav aria-label="Pages">`)
	nav, _, _ = strings.Cut(nav, "</nav>")
	for _, link := range regexp.MustCompile(`<a href="([^"]+)"[^>]*>([^<]+)`).FindAllStringSubmatch(nav, -1) {
		links.WriteString(link[1] + " " + strings.TrimSpace(link[2]) + "\n")
	}
	if got := links.String(); got == "" || got != string(pictured) {
		t.Errorf("navigation = %q, in the pictures %q; run make screenshots", got, pictured)
	}
}

func TestReplay_ConfirmsAndLogs(t *testing.T) {
	t.Parallel()
	l := newLedger()
	h, logs := logged(t, tokens(t, adminToken, ""), l)
	send := func(target string, form url.Values) *httptest.ResponseRecorder {
		t.Helper()
		return post(t, h, target, form, func(r *http.Request) {
			r.Header.Set("Sec-Fetch-Site", "same-origin")
			r.SetBasicAuth("anna", adminToken)
		})
	}
	all := url.Values{
		"all": {"1"}, "status": {"dead"}, "reason": {"refused"}, "code": {"40002"}, "back": {"/attention"},
	}
	if w := send("/confirm", all); w.Code != http.StatusOK ||
		!strings.Contains(w.Body.String(), "Send 3 purchases to TikTok again?") ||
		!strings.Contains(w.Body.String(), "1 of them may have reached TikTok more than 48 hours ago") {
		t.Errorf("confirm: status = %d, body %s", w.Code, w.Body)
	}
	if len(l.selected) > 0 {
		t.Errorf("confirm replayed %v, want nothing", l.selected)
	}
	if w := send("/replay", all); w.Code != http.StatusSeeOther ||
		w.Header().Get("Location") != "/attention?replayed=3" {
		t.Errorf("replay: status = %d, location %s", w.Code, w.Header().Get("Location"))
	}
	some := url.Values{"id": {"cs_dead", "cs_old"}, "back": {"https://evil.example/"}}
	if w := send("/confirm", some); w.Code != http.StatusOK || strings.Count(w.Body.String(), `name="id"`) != 2 {
		t.Errorf("confirm by id: status = %d, body %s", w.Code, w.Body)
	}
	if w := send("/replay", some); w.Code != http.StatusSeeOther ||
		w.Header().Get("Location") != "/dead?replayed=3" {
		t.Errorf("replay by id: status = %d, location %s", w.Code, w.Header().Get("Location"))
	}
	without := url.Values{"all": {"1"}, "status": {"dead"}, "reason": {"expired"}, "code": {"none"}}
	send("/replay", without)
	for i, want := range []maintenance.Selection{
		{Status: purchase.StatusDead, Reason: purchase.ReasonRefused, Code: new(40002)},
		{IDs: []string{"cs_dead", "cs_old"}},
		{Status: purchase.StatusDead, Reason: purchase.ReasonExpired, NoCode: true},
	} {
		if len(l.selected) <= i || !cmp.Equal(l.selected[i], want) {
			t.Errorf("%d: selected %+v, want %+v", i, l.selected, want)
		}
	}
	entries := logs.FilterMessage("Replay").All()
	if len(entries) != 3 || entries[1].ContextMap()["by"] != "admin" ||
		entries[1].ContextMap()["remote"] == "" || entries[1].ContextMap()["replayed"] != int64(3) {
		t.Errorf("audit log = %+v, want three entries by admin", entries)
	}
	for i, entry := range entries {
		if got, want := entry.ContextMap()["no_code"], i == 2; got != want {
			t.Errorf("%d: no_code = %v, want %t", i, got, want)
		}
	}
	for name, form := range map[string]url.Values{
		"nothing ticked": {}, "delivered": {"all": {"1"}, "status": {"delivered"}}, "junk": {"id": {"cs.1"}},
		"code": {"all": {"1"}, "status": {"dead"}, "code": {"x"}},
	} {
		if w := send("/replay", form); w.Code != http.StatusBadRequest ||
			!strings.Contains(w.Body.String(), "<h1>Bad Request") {
			t.Errorf("%s: status = %d, body %s", name, w.Code, w.Body)
		}
	}
	if l.woken != 3 {
		t.Errorf("wake-ups = %d, want 3", l.woken)
	}
}

func TestHeaders_AreOnEveryResponse(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := dashboard.NewAccess(tokens(t, "token", ""), newAPI(newLedger()), (&tally{}).add, zap.NewNop())
		for name, change := range map[string]func(r *http.Request){
			"no token": plain, "wrong token": func(r *http.Request) { r.SetBasicAuth("x", "guess") },
			"right token": func(r *http.Request) { r.SetBasicAuth("x", "token") },
			"another origin": func(r *http.Request) {
				r.Method = http.MethodPost
				r.Header.Set("Sec-Fetch-Site", "cross-site")
			},
		} {
			for _, target := range []string{"/", "/api/v1/summary", "/static/app.css"} {
				w := get(t, h, target, change)
				for header, part := range map[string]string{
					"Content-Security-Policy": "default-src 'none'", "X-Frame-Options": "DENY",
					"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-",
				} {
					if !strings.Contains(w.Header().Get(header), part) {
						t.Errorf("%s, %s: %s = %q", name, target, header, w.Header().Get(header))
					}
				}
				if policy := w.Header().Get("Content-Security-Policy"); strings.Contains(policy, "unsafe") ||
					!strings.Contains(policy, "frame-ancestors 'none'") {
					t.Errorf("content policy = %q", policy)
				}
				if isJSON := strings.HasPrefix(w.Body.String(), `{"error"`); w.Code >= 400 &&
					isJSON != strings.HasPrefix(target, "/api/") {
					t.Errorf("%s, %s: %s", name, target, w.Body)
				}
			}
		}
	})
}

func TestCSV_HoldsEveryRow(t *testing.T) {
	t.Parallel()
	l := newLedger()
	for i := range 2500 {
		l.entries = append(l.entries, report.Row{
			ID: "cs_bulk" + string(rune('a'+i%26)), Created: now.Add(-time.Duration(i+4) * time.Hour),
			LastError: new("\x00\uff20SUM(1)\r\n=1+1"),
		})
	}
	w := get(t, newAPI(l), "/purchases.csv", plain)
	rows, err := csv.NewReader(w.Body).ReadAll()
	if err != nil || len(rows) != 2504 || rows[0][0] != "checkout_session_id" || rows[1][6] != "29.99" ||
		rows[2][14] != "'=<b>no</b>" ||
		rows[2503][14] != "'\uff20SUM(1)  =1+1" {
		t.Fatalf("rows = %d, %v, want 2504: %q", len(rows), err, rows[:3])
	}
	if !strings.Contains(w.Header().Get("Content-Disposition"), "purchases.csv") {
		t.Error("Content-Disposition lacks the file name")
	}
}

func TestAssets_AreVersioned(t *testing.T) {
	t.Parallel()
	h := newAPI(newLedger())
	page := get(t, h, "/", plain).Body.String()
	for _, name := range []string{
		"app.css", "app.js", "htmx-4.0.1.min.js", "uplot-1.6.32.min.js", "uplot-1.6.32.min.css", "icon.svg",
	} {
		_, rest, ok := strings.Cut(page, `"/static/`+name)
		mark, _, _ := strings.Cut(rest, `"`)
		if !ok {
			t.Errorf("no page uses %s", name)
			continue
		}
		w := get(t, h, "/static/"+name+mark, plain)
		if w.Code != http.StatusOK || !strings.Contains(w.Header().Get("Cache-Control"), "immutable") ||
			w.Body.Len() == 0 {
			t.Errorf("%s%s: status = %d, Cache-Control = %q", name, mark, w.Code, w.Header().Get("Cache-Control"))
		}
		w = get(t, h, "/static/"+name+"?v=old", plain)
		if strings.Contains(w.Header().Get("Cache-Control"), "immutable") {
			t.Errorf("%s with an old version is immutable", name)
		}
	}
	for _, licence := range []string{"htmx.LICENSE.txt", "uplot.LICENSE.txt"} {
		if w := get(t, h, "/static/"+licence, plain); w.Code != http.StatusOK {
			t.Errorf("%s: status = %d, want 200", licence, w.Code)
		}
	}
}

// reconciliations returns one of live mode.
func reconciliations() map[bool]report.Reconciliation {
	day := now.Truncate(24 * time.Hour)
	var many []string
	for i := range 120 {
		many = append(many, fmt.Sprintf("cs_gone_%03d", i))
	}
	return map[bool]report.Reconciliation{true: {
		Made: now, Since: now.AddDate(0, 0, -30), Until: now, Livemode: true, Days: []report.ReconciledDay{{
			Day: day, Currency: "USD", Paid: report.Totals{Count: 1122, Minor: 123456},
			Ledger: report.Totals{Count: 2, Minor: 5998}, Accepted: report.Totals{Count: 1, Minor: 2999},
			Differ: map[report.Difference][]string{report.DiffMissing: many, report.DiffWaiting: {"cs_new"}},
		}},
	}}
}

func TestReconciliation_ShowsDifferences(t *testing.T) {
	t.Parallel()
	l := newLedger()
	l.reconciliations = reconciliations()
	body := get(t, newAPI(l), "/reconciliation", plain).Body.String()
	for _, part := range []string{
		"Live mode", `data-figure="open">120<`, "120 missing", "1 waiting", "cs_gone_099", "First 100",
		"<code>ingest backfill</code>",
		`<a href="/purchases/cs_new">`, ">1,122 <", ">1,234.56<", ">59.98<", ">29.99<",
	} {
		if !strings.Contains(body, part) {
			t.Errorf("page lacks %q", part)
		}
	}
	for _, part := range []string{"Test mode", "cs_gone_100", "/purchases/cs_gone_000"} {
		if strings.Contains(body, part) {
			t.Errorf("page has %q", part)
		}
	}
	rows, err := csv.NewReader(get(t, newAPI(l), "/reconciliation.csv?mode=live", plain).Body).ReadAll()
	if err != nil || len(rows) != 2 || rows[0][8] != "missing" || len(strings.Fields(rows[1][8])) != 120 ||
		rows[1][14] != "cs_new" || rows[1][3] != "1234.56" {
		t.Errorf("CSV = %v, %v", rows, err)
	}
	for target, code := range map[string]int{
		"/reconciliation?x=1": 400, "/reconciliation.csv": 400, "/reconciliation.csv?mode=all": 400,
		"/reconciliation.csv?mode=test": 404,
	} {
		if w := get(t, newAPI(l), target, plain); w.Code != code {
			t.Errorf("%s: status = %d, want %d", target, w.Code, code)
		}
	}
}

func TestOverview_ShowsBackfilledPurchases(t *testing.T) {
	t.Parallel()
	l := newLedger()
	for n, part := range map[int]string{
		0: "", 1: "<strong>1</strong> purchase backfilled", 1234: "<strong>1,234</strong> purchases backfilled",
	} {
		l.backfilled = n
		body := get(t, newAPI(l), "/", plain).Body.String()
		if strings.Contains(body, "backfilled after") != (n > 0) || !strings.Contains(body, part) {
			t.Errorf("%d backfilled: the overview lacks %q or has too much", n, part)
		}
	}
}
