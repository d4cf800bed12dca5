package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/chromedp"

	"purchase-relay/internal/testkit/chromium"
	"purchase-relay/internal/testkit/stripegen"
	"purchase-relay/internal/testkit/tiktoksim"
)

// tab is a real browser.
type tab struct {
	*stack
	ctx context.Context

	mu       sync.Mutex
	messages []string // the console's warnings and errors
}

// openTab starts a browser. The test is skipped where none can be installed.
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

// checkConsole fails on each message of the console that does not contain ignored.
func (p *tab) checkConsole(ignored string) {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, message := range p.messages {
		if ignored == "" || !strings.Contains(message, ignored) {
			p.t.Errorf("console: %s", message)
		}
	}
}

func (p *tab) do(steps ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, timeout)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		p.t.Fatalf("browser: %v\npage:\n%s", err, p.text("body"))
	}
}

// click clicks and waits for the next page.
func (p *tab) click(selector string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, timeout)
	defer cancel()
	if _, err := chromedp.RunResponse(ctx, chromedp.Click(chromedp.CSS(selector))); err != nil {
		p.t.Fatalf("click %s: %v\npage:\n%s", selector, err, p.text("body"))
	}
}

func (p *tab) open(address string) {
	p.t.Helper()
	p.do(chromedp.Navigate(address))
}

func evaluate[T any](p *tab, script string) T {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, timeout)
	defer cancel()
	value, err := chromedp.Run(ctx, chromedp.Evaluate[T](script))
	if err != nil {
		p.t.Fatalf("%s: %v", script, err)
	}
	return value
}

// text returns an element's visible text.
func (p *tab) text(selector string) string {
	p.t.Helper()
	return evaluate[string](p, `document.querySelector("`+selector+`")?.innerText ?? ""`)
}

func (p *tab) awaitText(selector, part string) {
	p.t.Helper()
	p.await(selector+" to contain "+part, func() bool { return strings.Contains(p.text(selector), part) })
}

// The figures are the ledger's, a purchase is found by e-mail address, its timeline shows every attempt, and
// the page of a replayed purchase is updated without a reload.
func TestDashboard_InBrowser(t *testing.T) {
	t.Parallel()
	const token = "correct horse battery"
	s := newStack(t, "ADMIN_TOKEN="+token)
	p := s.openTab()
	login := func(user, password string) string {
		return strings.Replace(s.admin, "http://", "http://"+user+":"+url.PathEscape(password)+"@", 1) + "/"
	}

	retried, dead := stripegen.NewCheckout().Live(), stripegen.NewCheckout().Live()
	s.sim.Inject(tiktoksim.Fault{Code: 50002, Message: "busy", MatchEvent: retried.SessionID, Count: 2})
	s.send(retried)
	s.awaitStatus(retried.SessionID, "delivered")
	s.sim.Inject(tiktoksim.Fault{Code: 40002, Message: "no good", MatchEvent: dead.SessionID})
	s.send(dead)
	s.awaitStatus(dead.SessionID, "dead")

	unauthorized := s.openTab() // its console has errors
	err := chromedp.Do(unauthorized.ctx, chromedp.Navigate(login("anna", "wrong")))
	if err == nil || !strings.Contains(err.Error(), "ERR_INVALID_AUTH_CREDENTIALS") {
		t.Errorf("a wrong token shows %q, %v", unauthorized.text("body"), err)
	}
	code, body := httpGet(login("anna", "wrong"))
	if code != http.StatusUnauthorized || strings.Contains(body, "Paid at Stripe") {
		t.Errorf("a wrong token gets %d, want 401: %s", code, body)
	}
	p.open(login("anna", token))
	p.awaitText("h1", "Overview")
	p.open(s.admin + "/?range=24h&mode=live")

	// The overview follows the ledger without a reload.
	mark := func() { evaluate[bool](p, `window.notReloaded = true`) }
	reloaded := func() bool { return evaluate[bool](p, `window.notReloaded !== true`) }
	mark()
	awaitFigures := func(want string) {
		t.Helper()
		p.await("the figures to be "+want, func() bool {
			return want == evaluate[string](p, `
				["paid", "accepted", "waiting", "retrying", "dead", "skipped", "attention"].map(
					(f) => document.querySelector("[data-figure=" + f + "]").innerText).join(" ")`)
		})
	}
	awaitFigures("2 1 0 0 1 0 1")
	s.sell(1)
	s.awaitCount("delivered", 2)
	awaitFigures("3 2 0 0 1 0 1")
	if got := fmt.Sprint(s.rows("purchases"), s.count("delivered"), s.count("dead")); got != "3 2 1" {
		t.Errorf("paid, delivered and dead on the ledger = %s, want 3 2 1", got)
	}
	if reloaded() {
		t.Error("the overview was reloaded")
	}
	p.awaitText(".lights", "1 running")
	p.awaitText(".answer", "Last 24 hours: 3 sales")
	if !evaluate[bool](p, `document.querySelector("#plot canvas") !== null`) {
		t.Error("the overview has no chart")
	}
	if text := p.text(".asof time"); !strings.Contains(text, "UTC") {
		t.Errorf("time = %s, want the zone of DISPLAY_TIMEZONE", text)
	}

	// A search by e-mail address leads to the purchase. The address is not in the URL.
	p.do(chromedp.SendKeys(chromedp.CSS("#q"), strings.ToUpper(*retried.Email)))
	p.click(".search button")
	at := evaluate[string](p, `location.href`)
	if !strings.HasSuffix(at, "/purchases/"+retried.SessionID) || strings.Contains(at, "%40") {
		t.Errorf("the search leads to %s, want the purchase without the address", at)
	}
	timeline := p.text(".timeline")
	for _, step := range []string{
		"Paid (Stripe's time)", retried.EventID, "Customer provisioned", "Published: send round",
		"Attempt 1 at TikTok: retry", "Attempt 2 at TikTok: retry", `"busy"`,
		"Attempt 3 at TikTok: delivered", "accepted by TikTok",
	} {
		if !strings.Contains(timeline, step) {
			t.Errorf("the timeline lacks %q:\n%s", step, timeline)
		}
	}
	if body := p.text("pre.body"); !strings.Contains(body, `"event_id": "`+retried.SessionID) {
		t.Errorf("the page lacks the event's body: %s", body)
	}
	if strings.Contains(p.text("body"), strings.ToLower(*retried.Email)) {
		t.Error("the page contains the e-mail address")
	}

	// A replay asks for a confirmation. The page shows the delivery without a reload.
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
	if reloaded() {
		t.Error("the purchase's page was reloaded")
	}
	s.checkDelivered(dead.SessionID)
	if s.ingest.logged("Replay") != 1 || !strings.Contains(s.ingest.log(), `"by":"admin"`) {
		t.Error("the log does not name who replayed")
	}
	p.checkConsole("")
}
