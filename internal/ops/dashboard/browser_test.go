package dashboard_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"go.uber.org/zap"

	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/dashboard"
	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/testkit/chromium"
	"purchase-relay/internal/testkit/ledgergen"
	"purchase-relay/internal/testkit/ledgertest"
	"purchase-relay/internal/testkit/wait"
	"purchase-relay/internal/tiktok"
)

// site is the dashboard of a made-up ledger, in a browser.
type site struct {
	*chromium.Tab

	url          string
	main, states []string // the path of each page, and of one purchase in each state
}

// openSite fills a ledger, serves its dashboard and starts a browser. Where none can be installed the test is
// skipped.
func openSite(t *testing.T) *site {
	t.Helper()
	tab := chromium.NewTab(t)
	l := ledgertest.New(t)
	if err := ledgergen.Fill(t.Context(), l.Conn, 1500, 31*24*time.Hour); err != nil {
		t.Fatal(err)
	}
	addExtremes(l)
	h := dashboard.New(dashboard.Config{
		Reports: l.Reader, Replays: l.Jobs, Health: extremeHealth, Problems: extremeProblems, Wake: func() {},
		Body:    tiktok.Preview,
		Version: "v1.0.0", Zone: time.UTC, Now: time.Now, Log: zap.NewNop(),
	})
	server := httptest.NewServer(dashboard.NewAccess(nil, h, (&tally{}).add, zap.NewNop()))
	t.Cleanup(server.Close)
	p := &site{Tab: tab, url: server.URL}
	p.main = []string{
		"/?range=7d", "/purchases", "/purchases/" + retried, "/dead", "/attention", "/reconciliation",
		"/purchases?code=abc", "/missing", "confirm",
	}
	p.states = []string{
		"/?range=24h&mode=test", "/purchases?q=nothing-there", "/purchases?status=dead&code=40002",
		"/purchases/" + longID, "/purchases?q=" + longID, "/dead?status=dead&reason=refused&code=40002",
	}
	ids := ledgertest.Ask[[]string](l, `SELECT array_agg(id ORDER BY id) FROM (
		SELECT max(checkout_session_id) AS id FROM purchases GROUP BY status, reason) each`)
	for _, id := range ids {
		p.states = append(p.states, "/purchases/"+id)
	}
	return p
}

// The purchases with the longest texts that are possible.
var (
	longID  = "cs_live_" + strings.Repeat("W", 247)
	retried = "cs_live_a1retried"
)

// addExtremes adds the longest ids and texts, many attempts, many differences.
func addExtremes(l *ledgertest.Ledger) {
	l.Buy(longID)
	dead := ledgertest.Outcome(longID, 1, purchase.StatusDead, "a", time.Now())
	dead.Attempt.Message, dead.Attempt.RequestID = strings.Repeat("M", 1000), strings.Repeat("R", 200)
	l.MustSettle(dead)
	l.Buy(retried)
	for i := range 40 {
		o := ledgertest.Outcome(retried, 1, purchase.StatusRetrying, fmt.Sprintf("a%d", i),
			time.Now().Add(time.Duration(i-40)*time.Minute))
		o.Next = time.Now().Add(10 * time.Minute)
		l.MustSettle(o)
	}
	l.Exec(`UPDATE stripe_events SET account = 'acct_1Connected', caught_up = true
		WHERE checkout_session_id = $1`, retried)
	l.Exec(`UPDATE purchases SET stripe_payment_id = 'in_1Payment' WHERE checkout_session_id = $1`, retried)
	var r report.Reconciliation
	r.Made, r.Since, r.Until, r.Livemode = time.Now(), time.Now().AddDate(0, 0, -30), time.Now(), true
	for i := range 6 {
		totals := report.Totals{Count: 1_234_567, Minor: 98_765_432_100}
		r.Days = append(r.Days, report.ReconciledDay{
			Day: time.Now().AddDate(0, 0, -i).UTC().Truncate(24 * time.Hour), Currency: "IDR", Paid: totals,
			Ledger: totals, Accepted: totals,
			Differ: map[report.Difference][]string{report.DiffMissing: {longID}, report.DiffWaiting: {retried}},
		})
	}
	if err := l.PutReconciliation(l.T.Context(), r); err != nil {
		l.T.Fatal(err)
	}
}

// extremeHealth has problems with the longest texts.
func extremeHealth(context.Context) dashboard.Health {
	return dashboard.Health{
		Postgres: "up", NATS: "up", Backlog: &dashboard.Backlog{Waiting: 1_234_567, Taken: 200_000},
		Workers: []message.WorkerState{
			{
				Instance: strings.Repeat("w", 100), Version: strings.Repeat("v", 64), State: message.WorkerPaused,
				Reason: "live: " + strings.Repeat("x", 290), Since: time.Now(), Pixel: strings.Repeat("C", 64),
			},
			{Instance: "w-2", Version: "v1.0.0", State: message.WorkerRunning, Since: time.Now(), Pixel: "C4A1"},
		},
	}
}

func extremeProblems(ctx context.Context) report.Problems {
	return report.NewProblems(report.Observed{
		Postgres: report.Condition{Checked: true}, Workers: extremeHealth(ctx).Workers, WorkersKnown: true,
	}, time.Now())
}

// open opens a page and unfolds everything in it.
func (p *site) open(path string) {
	p.T.Helper()
	if path == "confirm" {
		p.load("/dead")
		p.run(`document.querySelector(".group-head form").submit()`)
		p.Await(`document.querySelector("h1")?.innerText === "Replay" && document.readyState === "complete"`)
	} else {
		p.load(path)
	}
	p.run(`document.querySelectorAll("details").forEach((d) => { d.open = true; })`)
}

// load opens a page, again while the ledger exceeds the dashboard's time limit.
func (p *site) load(path string) {
	p.T.Helper()
	if !wait.Until(p.Context, time.Minute, time.Second, func() bool {
		p.Open(p.url + path)
		return p.Text("h1") != http.StatusText(http.StatusServiceUnavailable)
	}) {
		p.T.Fatalf("%s: the ledger is unavailable", path)
	}
}

// On a busy machine a page's refresh may exceed its own time limit, and the ledger that of the dashboard.
const tooSlow, unavailable = "htmx:error: timeout", "status of 503"

// run runs a script for its effect.
func (p *site) run(script string) {
	p.T.Helper()
	chromium.Evaluate[bool](p.Tab, `(() => { `+script+`; return true; })()`)
}

// tooWide lists what is wider than the window, or than its frame: the header, and the tables that are not
// meant to be scrolled.
const tooWide = `(() => {
	const wide = [], add = (what, e) => {
		if (e && e.scrollWidth > e.clientWidth) wide.push(what + " " + e.scrollWidth + " > " + e.clientWidth);
	};
	add("page", document.documentElement);
	document.querySelectorAll(".top .inner, nav[aria-label=Pages]").forEach((e) => add("header", e));
	document.querySelectorAll(".scroll:has(> .cards)").forEach((e) => {
		if (innerWidth >= 1100 || innerWidth <= 640) add("table", e);
	});
	if (document.querySelector(".brand").offsetHeight > 40) wide.push("the brand has two lines");
	return wide.join(", ");
})()`

// controlContrast lists the borders of fields and the chart's bars whose contrast is below 3:1, which
// axe-core does not check.
const controlContrast = `(() => {
	const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
	const luminance = (colour) => {
		canvas.fillStyle = colour;
		canvas.fillRect(0, 0, 1, 1);
		return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).reduce((sum, c, i) => {
			c /= 255;
			return sum + [0.2126, 0.7152, 0.0722][i] * (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
		}, 0);
	};
	const style = getComputedStyle(document.documentElement), low = [];
	for (const [name, against] of [["--edge", "--card"], ["--edge", "--ground"], ["--edge", "--field"],
		["--paid", "--card"], ["--missed", "--card"], ["--accepted", "--card"], ["--focus", "--card"]]) {
		const [a, b] = [name, against].map((n) => luminance(style.getPropertyValue(n).trim()));
		const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
		if (!(contrast >= 3)) low.push(name + " on " + against + ": " + contrast.toFixed(2));
	}
	const edge = (colour) => { canvas.fillStyle = colour; return canvas.fillStyle; };
	const controls = "input:not([type=checkbox], [type=hidden]), select, .copy, .plain";
	for (const e of document.querySelectorAll(controls)) {
		if (edge(getComputedStyle(e).borderTopColor) !== edge(style.getPropertyValue("--edge").trim())) {
			low.push("border of " + e.outerHTML.slice(0, 80));
		}
	}
	return low.join(", ");
})()`

// All checks share one browser and one ledger, and each page is loaded once for its checks: starting browsers
// and loading pages takes most of the processor's time.
func TestPages_InBrowser(t *testing.T) {
	t.Parallel()
	p := openSite(t)
	for _, test := range []struct {
		name string
		run  func(*site)
	}{
		{"pages fit and are accessible", (*site).checkPages},
		{"errors and keys", (*site).checkKeyboardAndErrors},
		{"replay by keyboard", (*site).checkReplay}, // last: it changes the ledger
	} {
		t.Run(test.name, func(t *testing.T) {
			p.T = t
			test.run(p)
		})
	}
}

// checkPages checks that no page is wider than the window at any width, with everything unfolded, and that
// axe-core finds no fault of accessibility: names, roles, structure, contrast.
func (p *site) checkPages() {
	// `make test` installs it where npm can.
	script, err := os.ReadFile("../../tools/testdeps/testdata/axe/node_modules/axe-core/axe.min.js")
	if err != nil {
		p.T.Log("accessibility is not checked:", err)
	}
	faults := func(options string) string {
		if len(script) == 0 {
			return ""
		}
		return chromium.Evaluate[string](p.Tab, `axe.run(document, {resultTypes: ["violations"], `+options+`})
			.then((found) => found.violations.map((v) => v.id + ": " + v.nodes.map((n) => n.html.slice(0, 150) +
				" " + n.failureSummary).join("; ")).join("\n"))`)
	}
	const all, colours = `rules: {"color-contrast-enhanced": {enabled: false}}`, `runOnly: ["color-contrast"]`
	paths := p.main
	if !testing.Short() { // these differ in their texts only
		paths = slices.Concat(p.main, p.states)
	}
	for i, path := range paths {
		p.open(path)
		p.run(string(script))
		check := func(form, fault string) {
			if fault != "" {
				p.T.Errorf("%.60s, %s: %.2000s", path, form, fault)
			}
		}
		for _, width := range []int64{1920, 1400, 1240, 1100, 768, 360, 390} { // the next page is loaded by a phone
			p.Do(chromedp.EmulateViewport(width, 900))
			check(fmt.Sprintf("%d px", width), chromium.Evaluate[string](p.Tab, tooWide))
			first, second := "light", "dark"
			switch width {
			case 390:
				first, second = "dark", "light"
			case 1400:
			default:
				continue
			}
			if width == 390 && i >= len(p.main) {
				continue
			}
			form := fmt.Sprintf("%d px, ", width)
			p.Do(chromium.Scheme(first))
			check(form+first, faults(all))
			check(form+first, chromium.Evaluate[string](p.Tab, controlContrast))
			p.Do(chromium.Scheme(second))
			if !testing.Short() { // the schemes differ in their colours only
				check(form+second, faults(colours))
			}
			check(form+second, chromium.Evaluate[string](p.Tab, controlContrast))
		}
	}
	p.CheckConsole("status of 40", tooSlow, unavailable) // the missing page and the wrong filter
}

// press sends keys to the element with the focus.
func (p *site) press(keys string) {
	p.T.Helper()
	p.Do(chromedp.KeyEvent(keys))
}

// focus focuses an element. It fails if the keyboard cannot reach it.
func (p *site) focus(selector string) {
	p.T.Helper()
	if !chromium.Evaluate[bool](p.Tab, `(() => { const e = document.querySelector("`+selector+`");
		e?.focus(); return e !== null && document.activeElement === e && e.tabIndex >= 0; })()`) {
		p.T.Fatalf("%s cannot be focused", selector)
	}
}

// A replay needs a selection; selecting, confirming and replaying work with the keyboard, and ticks survive
// the page's refresh.
func (p *site) checkReplay() {
	p.Do(chromedp.EmulateViewport(1400, 900))
	p.load("/dead")
	const form = "form[data-select]"
	expect := func(button string) {
		p.T.Helper()
		p.Await(`(() => { const b = document.querySelector("` + form + ` button");
			return b && b.innerText + (b.disabled ? ", disabled" : ""); })() === "` + button + `"`)
	}
	expect("Replay selected …, disabled")
	p.focus(form + " input[name=id]")
	p.press(" ")
	expect("Replay 1 selected …")
	p.focus(form + " input[data-all]")
	p.press(" ")
	expect("Replay 8 selected …")
	p.run(`window.swapped = false;
		document.addEventListener("htmx:after:swap", () => { window.swapped = true; })`)
	p.Await(`window.swapped`)
	expect("Replay 8 selected …")
	p.press(" ") // the focus survives, too
	expect("Replay selected …, disabled")
	p.focus(form + " input[name=id]")
	p.press(" ")
	p.focus(form + " button")
	p.press("\r")
	p.AwaitText(".confirm", "Send 1 purchase to TikTok")
	p.focus(".confirm button")
	p.press("\r")
	p.AwaitText(".notice", "1 purchase is pending again")
	p.CheckConsole(tooSlow, unavailable)
}

// An e-mail address without a purchase stays in the field, not in a page; a copy button reports its success;
// a phone's filters unfold.
func (p *site) checkKeyboardAndErrors() {
	p.Do(chromedp.EmulateViewport(1400, 900))
	p.load("/purchases")
	p.focus("#q")
	p.press("nobody@example.com\r")
	p.AwaitText("main .card [role=alert]", "No purchase")
	got := chromium.Evaluate[string](p.Tab, `document.querySelector("#q").value + " " + location.pathname`)
	if got != "nobody@example.com /purchases" {
		p.T.Errorf("search field and path = %q, want the address and the same page", got)
	}
	if strings.Contains(p.Text("body"), "nobody@") {
		p.T.Error("the page contains the e-mail address")
	}
	p.focus("#q")
	p.run(`document.querySelector("#q").select()`)
	p.press(retried + "\r")
	p.Await(`location.pathname.endsWith("` + retried + `") && document.readyState === "complete"`)
	p.focus(".copy")
	p.press("\r")
	p.Await(`document.querySelector("#copied").innerText === "Copied: ` + retried + `"`)

	p.Do(chromedp.EmulateViewport(390, 844))
	p.load("/purchases?" + url.Values{"status": {"dead"}}.Encode())
	if height := chromium.Evaluate[int](p.Tab, `document.querySelector(".fold").offsetHeight`); height > 100 {
		p.T.Errorf("folded filters are %d px high, want at most 100", height)
	}
	p.focus(".fold > summary")
	p.press("\r")
	p.Await(`document.querySelector(".fold select").checkVisibility({contentVisibilityAuto: true})`)
	p.Do(chromedp.EmulateViewport(1400, 900))
	p.load("/purchases")
	if !chromium.Evaluate[bool](p.Tab, `document.querySelector(".fold select").offsetHeight > 0`) {
		p.T.Error("a wide window hides the filters")
	}
	p.CheckConsole("status of 404", tooSlow, unavailable) // of the search
}
