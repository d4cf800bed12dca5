package e2e

import (
	"context"
	"errors"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/chromedp"

	"purchase-relay/internal/testkit/chromium"
	"purchase-relay/internal/testkit/stripegen"
	"purchase-relay/internal/testkit/tiktoksim"
)

// tab is a real browser on the dashboard.
type tab struct {
	*stack
	ctx context.Context

	mu       sync.Mutex
	messages []string // what the console said in anger
}

// openTab starts a browser and listens to its console. Where there is none and none may be installed, the test is skipped.
func (s *stack) openTab() *tab {
	s.t.Helper()
	path, err := chromium.Ensure(s.t.Context(), os.Stderr)
	switch {
	case errors.Is(err, chromium.ErrMissing):
		s.t.Skip(err)
	case err != nil:
		s.t.Fatal(err)
	}
	ctx, cancel := chromium.Start(context.Background(), path, s.t.TempDir())
	s.t.Cleanup(cancel)
	p := &tab{stack: s, ctx: ctx}
	console := chromedp.Console(ctx)
	go func() {
		for message, err := range console {
			if err != nil {
				return // the browser ends
			}
			if message.IsException() || message.Type == chromedp.ConsoleError || message.Type == chromedp.ConsoleWarning || message.Source == "security" {
				p.mu.Lock()
				p.messages = append(p.messages, message.String())
				p.mu.Unlock()
			}
		}
	}()
	return p
}

func (p *tab) do(steps ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		p.t.Fatalf("in the browser: %v\nthe page says:\n%s", err, p.text("body"))
	}
}

// click follows what it clicks until the next page is there.
func (p *tab) click(selector string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	if _, err := chromedp.RunResponse(ctx, chromedp.Click(chromedp.CSS(selector))); err != nil {
		p.t.Fatalf("click %s: %v\nthe page says:\n%s", selector, err, p.text("body"))
	}
}

func (p *tab) open(url string) {
	p.t.Helper()
	p.do(chromedp.Navigate(url))
}

func ask[T any](p *tab, script string) T {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	value, err := chromedp.Run(ctx, chromedp.Evaluate[T](script))
	if err != nil {
		p.t.Fatalf("%s: %v", script, err)
	}
	return value
}

// text is what people read in an element.
func (p *tab) text(selector string) string {
	p.t.Helper()
	return ask[string](p, `document.querySelector("`+selector+`")?.innerText ?? ""`)
}

func (p *tab) awaitText(selector, part string) {
	p.t.Helper()
	p.await(selector+" to say "+part, func() bool { return strings.Contains(p.text(selector), part) })
}

// What a marketer and an engineer on call do, in a real browser: the numbers are the ledger's, a purchase is found by its e-mail
// address, its timeline shows every attempt, a dead one is sent again and the page shows it without a reload.
func TestDashboardInABrowser(t *testing.T) {
	t.Parallel()
	const token = "correct horse battery"
	s := newStack(t, "ADMIN_TOKEN="+token)
	p := s.openTab()
	addressed := func(user, password string) string {
		return strings.Replace(s.admin, "http://", "http://"+user+":"+strings.ReplaceAll(password, " ", "%20")+"@", 1)
	}

	retried, dead, fine := stripegen.NewCheckout().Live(), stripegen.NewCheckout().Live(), stripegen.NewCheckout().Live()
	s.sim.Inject(tiktoksim.Fault{Code: 50002, Message: "busy", MatchEvent: retried.SessionID, Count: 2})
	s.send(retried)
	s.awaitStatus(retried.SessionID, "delivered")
	s.sim.Inject(tiktoksim.Fault{Code: 40002, Message: "no good", MatchEvent: dead.SessionID})
	s.send(dead)
	s.awaitStatus(dead.SessionID, "dead")

	stranger := s.openTab() // its console complains, as it should
	if err := chromedp.Do(stranger.ctx, chromedp.Navigate(addressed("anna", "wrong")+"/")); err == nil || !strings.Contains(err.Error(), "ERR_INVALID_AUTH_CREDENTIALS") {
		t.Errorf("a wrong token shows %q, %v", stranger.text("body"), err)
	}
	if code, body := get(addressed("anna", "wrong") + "/"); code != http.StatusUnauthorized || strings.Contains(body, "Paid at Stripe") {
		t.Errorf("a wrong token is answered with %d: %s", code, body)
	}
	p.open(addressed("anna", token) + "/")
	p.awaitText("h1", "Overview")
	p.open(s.admin + "/?range=24h&mode=live")

	// The overview, and that it follows the ledger without a reload.
	mark := func() { ask[bool](p, `window.notReloaded = true`) }
	unmarked := func() bool { return ask[bool](p, `window.notReloaded !== true`) }
	mark()
	figures := func(want string) {
		t.Helper()
		p.await("the figures to be "+want, func() bool {
			return want == ask[string](p, `["paid", "accepted", "waiting", "retrying", "dead", "skipped", "attention"].map((f) => document.querySelector("[data-figure=" + f + "]").innerText).join(" ")`)
		})
	}
	figures("2 1 0 0 1 0 1")
	s.send(fine)
	s.awaitStatus(fine.SessionID, "delivered")
	figures("3 2 0 0 1 0 1")
	if ledger := query[string](s, `SELECT count(*) || ' ' || count(*) FILTER (WHERE status = 'delivered') || ' 0 0 ' || count(*) FILTER (WHERE status = 'dead') FROM purchases`); ledger != "3 2 0 0 1" {
		t.Errorf("the ledger says %s", ledger)
	}
	if unmarked() {
		t.Error("the overview was loaded anew")
	}
	p.awaitText(".lights", "1 connected")
	if !ask[bool](p, `document.querySelector("#plot canvas") !== null`) {
		t.Error("there is no chart")
	}
	if text := ask[string](p, `document.querySelector(".asof time").innerText`); strings.Contains(text, "UTC") {
		t.Errorf("times are not the viewer's: %s", text)
	}

	// Search by e-mail address: it leads to the purchase, and stays out of the address line.
	p.do(chromedp.SendKeys(chromedp.CSS("#q"), strings.ToUpper(*retried.Email)))
	p.click(".search button")
	if at := ask[string](p, `location.href`); !strings.HasSuffix(at, "/purchases/"+retried.SessionID) || strings.Contains(at, "%40") {
		t.Errorf("the search leads to %s", at)
	}
	timeline := p.text(".timeline")
	for _, step := range []string{"Paid (Stripe's time)", retried.EventID, "Customer provisioned", "Published: send round", "Attempt 1 at TikTok: retry", "Attempt 2 at TikTok: retry", `"busy"`, "Attempt 3 at TikTok: delivered", "accepted by TikTok"} {
		if !strings.Contains(timeline, step) {
			t.Errorf("the timeline lacks %q:\n%s", step, timeline)
		}
	}
	if body := p.text("pre.body"); !strings.Contains(body, `"event_id": "`+retried.SessionID) || strings.Contains(p.text("body"), strings.ToLower(*retried.Email)) {
		t.Errorf("the body: %s", body)
	}

	// Replay the dead one: asked first, then sent; the page shows its delivery by itself.
	s.sim.Clear()
	s.sim.Inject(tiktoksim.Fault{Code: 50002, Message: "wait", MatchEvent: dead.SessionID})
	p.open(s.admin + "/dead")
	p.click("#live a.id")
	p.awaitText(".verdict", "dead")
	p.click(".verdict button")
	p.awaitText(".confirm", "Send 1 purchase to TikTok again?")
	p.click(".confirm button")
	p.awaitText(".notice", "1 purchase is pending again")
	mark()
	p.awaitText(".verdict", "retrying")
	s.sim.Clear()
	p.awaitText(".verdict", "delivered")
	if unmarked() {
		t.Error("the purchase's page was loaded anew")
	}
	if e := s.event(dead.SessionID); e.Copies != 1 {
		t.Errorf("TikTok has %d copies", e.Copies)
	}
	if s.ingest.said("Replay") != 1 || !strings.Contains(strings.Join(s.ingest.lines(), "\n"), `"by":"admin"`) {
		t.Error("the log does not say who replayed")
	}

	// Every page fits a phone.
	p.do(chromedp.EmulateViewport(390, 844))
	for _, page := range []string{"/", "/purchases", "/purchases/" + retried.SessionID, "/dead", "/attention", "/purchases?status=rejected", "/nothing"} {
		p.open(s.admin + page)
		if wide := ask[int](p, `(document.querySelectorAll('details').forEach(d => d.open = true), document.documentElement.scrollWidth)`); wide > 390 {
			t.Errorf("%s is %d px wide on a phone", page, wide)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, message := range p.messages {
		if !strings.Contains(message, "404") { // of /nothing
			t.Errorf("the console says: %s", message)
		}
	}
}
