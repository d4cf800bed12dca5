package dashboard_test

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"go.uber.org/zap"

	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/dashboard"
	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/testkit/axe"
	"purchase-relay/internal/testkit/chromium"
	"purchase-relay/internal/testkit/ledgergen"
	"purchase-relay/internal/testkit/ledgertest"
	"purchase-relay/internal/testkit/wait"
	"purchase-relay/internal/tiktok"
)

// tab is a browser on the dashboard of a made-up ledger.
type tab struct {
	*ledgertest.Ledger

	ctx context.Context
	url string

	mu       sync.Mutex
	messages []string // the console's warnings and errors
}

// openTab fills a ledger, serves its dashboard and starts a browser. Where none can be installed the test is
// skipped.
func openTab(t *testing.T) *tab {
	t.Helper()
	path, err := chromium.Ensure(t.Context(), os.Stderr)
	switch {
	case errors.Is(err, chromium.ErrMissing):
		t.Skip(err)
	case err != nil:
		t.Fatal(err)
	}
	p := &tab{Ledger: ledgertest.New(t)}
	if err := ledgergen.FillSpan(t.Context(), p.Conn, 1500, 31*24*time.Hour); err != nil {
		t.Fatal(err)
	}
	p.addExtremes()
	h := dashboard.New(dashboard.Config{
		Reports: p.Reader, Replays: p.Jobs, Health: extremeHealth, Problems: extremeProblems, Wake: func() {},
		Body:    tiktok.Preview,
		Version: "v1.0.0", Zone: time.UTC, Now: time.Now, Log: zap.NewNop(),
	})
	server := httptest.NewServer(dashboard.NewAccess(nil, h, (&tally{}).add, zap.NewNop()))
	t.Cleanup(server.Close)
	p.url = server.URL
	ctx, cancel := chromium.Start(context.Background(), path, t.TempDir())
	t.Cleanup(cancel)
	p.ctx = ctx
	console := chromedp.Console(ctx)
	go func() {
		for message, err := range console {
			if err != nil {
				return // the browser has ended
			}
			if message.IsException() || message.Type == chromedp.ConsoleError ||
				message.Type == chromedp.ConsoleWarning || message.Source == "security" {
				p.mu.Lock()
				p.messages = append(p.messages, message.String())
				p.mu.Unlock()
			}
		}
	}()
	return p
}

// The purchases with the longest texts that are possible.
var (
	longID  = "cs_live_" + strings.Repeat("W", 247)
	retried = "cs_live_a1retried"
)

// addExtremes adds the longest ids and texts, many attempts, many differences.
func (p *tab) addExtremes() {
	p.Buy(longID)
	dead := ledgertest.Outcome(longID, 1, purchase.StatusDead, "a", time.Now())
	dead.Attempt.Message, dead.Attempt.RequestID = strings.Repeat("M", 1000), strings.Repeat("R", 200)
	p.MustSettle(dead)
	p.Buy(retried)
	for i := range 40 {
		o := ledgertest.Outcome(retried, 1, purchase.StatusRetrying, fmt.Sprintf("a%d", i),
			time.Now().Add(time.Duration(i-40)*time.Minute))
		o.Next = time.Now().Add(10 * time.Minute)
		p.MustSettle(o)
	}
	p.Exec(`UPDATE stripe_events SET account = 'acct_1Connected', caught_up = true
		WHERE checkout_session_id = $1`, retried)
	p.Exec(`UPDATE purchases SET stripe_payment_id = 'in_1Payment' WHERE checkout_session_id = $1`, retried)
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
	if err := p.PutReconciliation(p.T.Context(), r); err != nil {
		p.T.Fatal(err)
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

// pages returns the path of each page, and of one purchase in each state.
func (p *tab) pages() (main, states []string) {
	main = []string{
		"/?range=7d", "/purchases", "/purchases/" + retried, "/dead", "/attention", "/reconciliation",
		"/purchases?code=abc", "/missing",
	}
	states = []string{
		"/?range=24h&mode=test", "/purchases?q=nothing-there", "/purchases?status=dead&code=40002",
		"/purchases/" + longID, "/purchases?q=" + longID, "/dead?status=dead&reason=refused&code=40002",
	}
	ids := ledgertest.Ask[[]string](p.Ledger, `SELECT array_agg(id ORDER BY id) FROM (
		SELECT max(checkout_session_id) AS id FROM purchases GROUP BY status, reason) each`)
	for _, id := range ids {
		states = append(states, "/purchases/"+id)
	}
	return main, states
}

func (p *tab) do(steps ...chromedp.Action[chromedp.Void]) {
	p.T.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, time.Minute)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		p.T.Fatalf("browser: %v", err)
	}
}

func (p *tab) open(path string) {
	p.T.Helper()
	p.do(chromedp.Navigate(p.url + path))
}

func ask[T any](p *tab, script string) T {
	p.T.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, time.Minute)
	defer cancel()
	value, err := chromedp.Run(ctx, chromedp.Evaluate[T](script, chromedp.EvalAwaitPromise))
	if err != nil {
		p.T.Fatalf("%.200s: %v", script, err)
	}
	return value
}

func (p *tab) await(script string) {
	p.T.Helper()
	done := func() bool { return ask[bool](p, script) }
	if !wait.Until(p.T.Context(), time.Minute, 50*time.Millisecond, done) {
		p.T.Fatalf("timeout: %s", script)
	}
}

// show emulates a window of a width and a colour scheme.
func (p *tab) show(width int64, scheme string) {
	p.T.Helper()
	p.do(chromedp.EmulateViewport(width, 900))
	features := []*emulation.MediaFeature{
		{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: "reduce"},
	}
	media := emulation.SetEmulatedMediaParams{Features: features}
	_, err := chromedp.Call(p.ctx, emulation.SetEmulatedMedia, media)
	if err != nil {
		p.T.Fatal(err)
	}
}

// checkConsole fails on each message of the console that does not contain ignored.
func (p *tab) checkConsole(ignored string) {
	p.T.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, message := range p.messages {
		if ignored == "" || !strings.Contains(message, ignored) {
			p.T.Errorf("console: %s", message)
		}
	}
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

// No page is wider than the window, at any width, with everything unfolded.
func TestPages_FitEveryWidth(t *testing.T) {
	t.Parallel()
	p := openTab(t)
	main, states := p.pages()
	if testing.Short() { // they differ from the others in their texts only
		states = nil
	}
	for _, path := range append(main, states...) {
		p.open(path)
		ask[bool](p, `(document.querySelectorAll("details").forEach((d) => { d.open = true; }), true)`)
		for _, width := range []int64{360, 390, 768, 1100, 1240, 1400, 1920} {
			p.do(chromedp.EmulateViewport(width, 900))
			if wide := ask[string](p, tooWide); wide != "" {
				t.Errorf("%.60s at %d px: %.300s", path, width, wide)
			}
		}
	}
	p.checkConsole("status of 40") // of the missing page and the wrong filter
}

// axe-core finds no fault of accessibility: names, roles, structure, contrast.
func TestPages_AreAccessible(t *testing.T) {
	t.Parallel()
	script, err := axe.Source(t.Context(), "../../../.local/axe")
	switch {
	case errors.Is(err, axe.ErrMissing):
		t.Skip(err)
	case err != nil:
		t.Fatal(err)
	}
	p := openTab(t)
	main, states := p.pages()
	confirm := func() {
		p.open("/dead")
		ask[bool](p, `(document.querySelector(".group-head form").submit(), true)`)
		p.await(`document.querySelector("h1")?.innerText === "Replay"`)
	}
	check := func(path string) {
		t.Helper()
		faults := ask[string](p, `axe.run(document, {
			resultTypes: ["violations"], rules: {"color-contrast-enhanced": {enabled: false}},
		}).then((found) => found.violations.map((v) => v.id + ": " + v.nodes.map((n) => n.html.slice(0, 150) +
			" " + n.failureSummary).join("; ")).join("\n"))`)
		if faults != "" {
			t.Errorf("%.60s: %.2000s", path, faults)
		}
	}
	forms := []struct {
		width  int64
		scheme string
	}{{1400, "light"}, {390, "dark"}, {1400, "dark"}, {390, "light"}}
	if testing.Short() {
		states, forms = nil, forms[:2]
	}
	for i, path := range append(append(main, "confirm"), states...) {
		if path == "confirm" {
			confirm()
		} else {
			p.open(path)
		}
		ask[bool](p, `(document.querySelectorAll("details").forEach((d) => { d.open = true; }), true)`)
		ask[bool](p, `(() => { `+script+`; return true; })()`)
		for _, form := range forms {
			p.show(form.width, form.scheme)
			check(fmt.Sprintf("%s at %d px, %s", path, form.width, form.scheme))
			if i > len(main) {
				break
			}
		}
	}
	p.checkConsole("status of 40")
}

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

func TestPages_ControlsHaveContrast(t *testing.T) {
	t.Parallel()
	p := openTab(t)
	for _, path := range []string{"/?range=7d", "/purchases", "/purchases/" + retried, "/dead"} {
		p.open(path)
		for _, scheme := range []string{"light", "dark"} {
			p.show(1400, scheme)
			if low := ask[string](p, controlContrast); low != "" {
				t.Errorf("%s, %s: %.500s", path, scheme, low)
			}
		}
	}
}

// press sends keys to the element with the focus.
func (p *tab) press(keys string) {
	p.T.Helper()
	p.do(chromedp.KeyEvent(keys))
}

// focus focuses an element. It fails if the keyboard cannot reach it.
func (p *tab) focus(selector string) {
	p.T.Helper()
	if !ask[bool](p, `(() => { const e = document.querySelector("`+selector+`");
		e?.focus(); return e !== null && document.activeElement === e && e.tabIndex >= 0; })()`) {
		p.T.Fatalf("%s cannot be focused", selector)
	}
}

// A replay needs a selection; selecting, confirming and replaying work with the keyboard, and ticks survive
// the page's refresh.
func TestDeadLetters_ReplaySelectedByKeyboard(t *testing.T) {
	t.Parallel()
	p := openTab(t)
	p.open("/dead")
	const form = "form[data-select]"
	button := func() string {
		return ask[string](p, `(() => { const b = document.querySelector("`+form+` button");
			return b.innerText + (b.disabled ? ", disabled" : ""); })()`)
	}
	expect := func(want string) {
		t.Helper()
		if got := button(); got != want {
			t.Errorf("button = %q, want %q", got, want)
		}
	}
	expect("Replay selected …, disabled")
	p.focus(form + " input[name=id]")
	p.press(" ")
	expect("Replay 1 selected …")
	p.focus(form + " input[data-all]")
	p.press(" ")
	expect("Replay 8 selected …")
	ask[bool](p, `(window.swapped = false,
		document.addEventListener("htmx:after:swap", () => { window.swapped = true; }), true)`)
	p.await(`window.swapped`)
	expect("Replay 8 selected …")
	p.press(" ") // the focus survives, too
	expect("Replay selected …, disabled")
	p.focus(form + " input[name=id]")
	p.press(" ")
	p.focus(form + " button")
	p.press("\r")
	p.await(`document.querySelector(".confirm")?.innerText.includes("Send 1 purchase to TikTok") ?? false`)
	p.focus(".confirm button")
	p.press("\r")
	p.await(`document.querySelector(".notice")?.innerText.includes("1 purchase is pending again") ?? false`)
	p.checkConsole("")
}

// An e-mail address without a purchase stays in the field, not in a page; a copy button reports its success;
// a phone's filters unfold.
func TestPages_KeyboardAndErrors(t *testing.T) {
	t.Parallel()
	p := openTab(t)
	p.open("/purchases")
	p.focus("#q")
	p.press("nobody@example.com\r")
	p.await(`document.querySelector("main .card [role=alert]")?.innerText.includes("No purchase") ?? false`)
	if got := ask[string](p, `document.querySelector("#q").value + " " + location.pathname`); got !=
		"nobody@example.com /purchases" {
		t.Errorf("search field and path = %q, want the address and the same page", got)
	}
	if text := ask[string](p, `document.body.innerText`); strings.Contains(text, "nobody@") {
		t.Error("the page contains the e-mail address")
	}
	p.focus("#q")
	ask[bool](p, `(document.querySelector("#q").select(), true)`)
	p.press(retried + "\r")
	p.await(`location.pathname.endsWith("` + retried + `") && document.readyState === "complete"`)
	p.focus(".copy")
	p.press("\r")
	p.await(`document.querySelector("#copied").innerText === "Copied: ` + retried + `"`)

	p.do(chromedp.EmulateViewport(390, 844))
	p.open("/purchases?" + url.Values{"status": {"dead"}}.Encode())
	if height := ask[int](p, `document.querySelector(".fold").offsetHeight`); height > 100 {
		t.Errorf("folded filters are %d px high, want at most 100", height)
	}
	p.focus(".fold > summary")
	p.press("\r")
	p.await(`document.querySelector(".fold select").checkVisibility({contentVisibilityAuto: true})`)
	p.do(chromedp.EmulateViewport(1400, 900))
	p.open("/purchases")
	if !ask[bool](p, `document.querySelector(".fold select").offsetHeight > 0`) {
		t.Error("a wide window hides the filters")
	}
	p.checkConsole("status of 404") // of the search
}
