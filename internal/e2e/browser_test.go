package e2e

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"purchase-relay/internal/testkit/chromium"
	"purchase-relay/internal/testkit/stripegen"
	"purchase-relay/internal/testkit/tiktoksim"
)

// The figures are the ledger's, a purchase is found by e-mail address, its timeline shows every attempt, and
// the page of a replayed purchase is updated without a reload.
func TestDashboard_InBrowser(t *testing.T) {
	t.Parallel()
	const token = "correct horse battery"
	s := newStack(t, "ADMIN_TOKEN="+token)
	p := chromium.NewTab(t)
	login := func(user, password string) string {
		return strings.Replace(s.admin, "http://", "http://"+user+":"+url.PathEscape(password)+"@", 1) + "/"
	}

	retried, dead := stripegen.NewCheckout().Live(), stripegen.NewCheckout().Live()
	s.sim.Inject(tiktoksim.Fault{Code: 50002, Message: "busy", MatchText: retried.SessionID, Count: 2})
	s.send(retried)
	s.awaitStatus(retried.SessionID, "delivered")
	s.sim.Inject(tiktoksim.Fault{Code: 40002, Message: "no good", MatchText: dead.SessionID})
	s.send(dead)
	s.awaitStatus(dead.SessionID, "dead")

	err := chromedp.Do(p.Context, chromedp.Navigate(login("anna", "wrong")))
	if err == nil || !strings.Contains(err.Error(), "ERR_INVALID_AUTH_CREDENTIALS") {
		t.Errorf("a wrong token shows %q, %v", p.Text("body"), err)
	}
	code, body := httpGet(login("anna", "wrong"))
	if code != http.StatusUnauthorized || strings.Contains(body, "Paid at Stripe") {
		t.Errorf("a wrong token gets %d, want 401: %s", code, body)
	}
	// A page is opened again if ingest answered 503 because the ledger was slow.
	open := func(address, heading string) {
		t.Helper()
		s.await(heading+" to be shown", func() bool {
			p.Open(address)
			return strings.Contains(p.Text("h1"), heading)
		})
	}
	open(login("anna", token), "Overview")
	open(s.admin+"/?range=24h&mode=live", "Overview")

	// The overview follows the ledger without a reload.
	mark := func() { chromium.Evaluate[bool](p, `window.notReloaded = true`) }
	reloaded := func() bool { return chromium.Evaluate[bool](p, `window.notReloaded !== true`) }
	mark()
	awaitFigures := func(want string) {
		t.Helper()
		s.await("the figures to be "+want, func() bool {
			return want == chromium.Evaluate[string](p, `
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
	p.AwaitText(".lights", "1 running")
	p.AwaitText(".answer", "Last 24 hours: 3 sales")
	if !chromium.Evaluate[bool](p, `document.querySelector("#plot canvas") !== null`) {
		t.Error("the overview has no chart")
	}
	if text := p.Text(".asof time"); !strings.Contains(text, "UTC") {
		t.Errorf("time = %s, want the zone of DISPLAY_TIMEZONE", text)
	}

	// A search by e-mail address leads to the purchase. The address is not in the URL.
	p.Do(chromedp.SendKeys(chromedp.CSS("#q"), strings.ToUpper(*retried.Email)))
	p.Click(".search button")
	at := chromium.Evaluate[string](p, `location.href`)
	if !strings.HasSuffix(at, "/purchases/"+retried.SessionID) || strings.Contains(at, "%40") {
		t.Errorf("the search leads to %s, want the purchase without the address", at)
	}
	timeline := p.Text(".timeline")
	for _, step := range []string{
		"Paid (Stripe's time)", retried.EventID, "Customer provisioned", "Published: send round",
		"Attempt 1 at TikTok: retry", "Attempt 2 at TikTok: retry", `"busy"`,
		fmt.Sprintf("Attempt %d at TikTok: delivered", 3+s.unanswered(retried.SessionID)), "accepted by TikTok",
	} {
		if !strings.Contains(timeline, step) {
			t.Errorf("the timeline lacks %q:\n%s", step, timeline)
		}
	}
	if body := p.Text("pre.body"); !strings.Contains(body, `"event_id": "`+retried.SessionID) {
		t.Errorf("the page lacks the event's body: %s", body)
	}
	if strings.Contains(p.Text("body"), strings.ToLower(*retried.Email)) {
		t.Error("the page contains the e-mail address")
	}

	// A replay asks for a confirmation. The page shows the delivery without a reload.
	s.sim.Clear()
	s.sim.Inject(tiktoksim.Fault{Code: 50002, Message: "wait", MatchText: dead.SessionID})
	open(s.admin+"/dead", "Dead letters")
	p.Click("#live a.id")
	p.AwaitText(".verdict", "dead")
	p.Click(".verdict button")
	p.AwaitText(".confirm", "Send 1 purchase to TikTok again?")
	p.Click(".confirm button")
	p.AwaitText(".notice", "1 purchase is pending again")
	mark()
	p.AwaitText(".verdict", "retrying")
	s.sim.Clear()
	p.AwaitText(".verdict", "delivered")
	if reloaded() {
		t.Error("the purchase's page was reloaded")
	}
	s.checkDelivered(dead.SessionID)
	s.checkLogged(s.ingest, "Replay", 1)
	if !strings.Contains(s.ingest.log(), `"by":"admin"`) {
		t.Error("the log does not name who replayed")
	}
	p.CheckConsole("status of 401", "status of 503", "htmx:error: timeout") // the wrong token; slow refreshes
}
