package e2e

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/google/go-cmp/cmp"

	"purchase-relay/internal/testkit/chromium"
	"purchase-relay/internal/testkit/process"
	"purchase-relay/internal/testkit/stripegen"
)

// examples returns the command of each server in docs/examples.
func examples() map[string]func(port string) []string {
	return map[string]func(port string) []string{
		"node":    func(string) []string { return []string{"node", "checkout.mjs"} },
		"python3": func(string) []string { return []string{"python3", "checkout.py"} },
		"go":      func(string) []string { return []string{"go", "run", "checkout.go"} },
		"php": func(port string) []string {
			return []string{"php", "-d", "log_errors=1", "-S", "127.0.0.1:" + port, "checkout.php"}
		},
	}
}

// startExample starts an example and returns its URL. stripe is the URL of Stripe's API, shop that to which
// buyers return.
func startExample(t *testing.T, language, stripe, shop string, env ...string) (address string) {
	t.Helper()
	if _, err := exec.LookPath(language); err != nil {
		t.Skipf("%s is not installed", language)
	}
	addr := freeAddr(t)
	_, port, _ := strings.Cut(addr, ":")
	args := examples()[language](port)
	if language == "go" { // built, because a child of `go run` outlives it
		program := filepath.Join(t.TempDir(), "checkout")
		build := exec.Command("go", "build", "-o", program, "../../docs/examples/checkout.go")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		args = []string{program}
	}
	var out strings.Builder
	p, err := process.Start(process.Command{
		Path: args[0], Args: args[1:], Dir: "../../docs/examples", Output: &out,
		Env: append(append(os.Environ(), "STRIPE_SECRET_KEY=sk_test_example", "STRIPE_PRICE=price_1",
			"STRIPE_API_URL="+stripe, "SHOP_URL="+shop, "PORT="+port), env...),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("%s's output:\n%s", language, out.String())
		}
	})
	(&stack{t: t}).await(language+" to answer", func() bool { return statusCode("http://"+addr+"/") != 0 })
	return "http://" + addr
}

// Each example creates a session with the metadata that ingest reads, without consent only with the no. No
// cookie prevents a checkout.
func TestExamples_CreateCheckoutSessions(t *testing.T) {
	t.Parallel()
	for language := range examples() {
		t.Run(language, func(t *testing.T) {
			api := stripegen.NewAPI()
			api.PayURL = "https://pay.example/"
			shop := startExample(t, language, listen(t, api), "https://shop.example")
			forwarded := "198.51.100.9, 203.0.113.7" // untrusted: the shop has no proxies
			// Node closes idle connections after 5 s.
			fresh := &http.Transport{DisableKeepAlives: true}
			buy := func(cookies map[string]string, page string) map[string]string {
				t.Helper()
				r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, shop+"/checkout", http.NoBody)
				if err != nil {
					t.Fatal(err)
				}
				for name, value := range cookies {
					r.AddCookie(&http.Cookie{Name: name, Value: value})
				}
				r.Header.Set("User-Agent", "Mozilla/5.0 (Test)")
				r.Header.Set("Referer", page)
				r.Header["X-Forwarded-For"] = strings.Split(forwarded, "; ")
				before := len(api.Sessions())
				resp, err := fresh.RoundTrip(r)
				if err != nil {
					t.Fatal(err)
				}
				_ = resp.Body.Close()
				created := api.Sessions()
				payPage := strings.HasPrefix(resp.Header.Get("Location"), "https://pay.example/cs_test_")
				if resp.StatusCode != http.StatusSeeOther || !payPage || len(created) != before+1 {
					t.Fatalf("answer = %d %v with %d new sessions, want a redirect to one",
						resp.StatusCode, resp.Header, len(created)-before)
				}
				return created[before].Metadata
			}
			cookies := map[string]string{
				"consent": "yes", "ttclid": "E.C.P.ab_c-1", "ttclid_at": "1790000000", "_ttp": "2QkW.tt.1",
			}
			want := map[string]string{
				"consent": "yes", "ttclid": "E.C.P.ab_c-1", "ttclid_at": "1790000000", "ttp": "2QkW.tt.1",
				"client_ip": "127.0.0.1", "user_agent": "Mozilla/5.0 (Test)",
				"page_url": "https://shop.example/pricing?plan=1&x=é",
			}
			got := buy(cookies, want["page_url"])
			got["client_ip"] = strings.TrimPrefix(got["client_ip"], "::ffff:")
			if language == "node" || language == "python3" { // they read bytes; a browser escapes non-ASCII
				want["page_url"], got["page_url"] = "", ""
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("metadata (-want +got):\n%s", diff)
			}
			cookies["consent"] = "no"
			if got := fmt.Sprint(buy(cookies, "https://shop.example/")); got != "map[consent:no]" {
				t.Errorf("metadata without consent = %s, want map[consent:no]", got)
			}
			if got := fmt.Sprint(buy(nil, "")); got != "map[consent:no]" {
				t.Errorf("metadata without cookies = %s, want map[consent:no]", got)
			}
			cookies = map[string]string{
				"consent": "yes", "ttclid": strings.Repeat("a", 501), "strange": "{=}=", "_ttp": "2QkW",
			}
			got = buy(cookies, "https://shop.example/?"+strings.Repeat("x", 500))
			if _, long := got["ttclid"]; long || got["ttp"] != "2QkW" || got["page_url"] != "" {
				t.Errorf("metadata = %v, want ttp without the values that are too long for Stripe", got)
			}

			// With two proxies the second address from the right counts, whatever the visitor sends before it.
			shop = startExample(t, language, listen(t, api), "https://shop.example", "PROXIES=2")
			for header, want := range map[string]string{
				"203.0.113.7, 10.0.0.1": "203.0.113.7", "127.0.0.1, 198.51.100.9,203.0.113.7 , 10.0.0.1": "203.0.113.7",
				"198.51.100.9; 203.0.113.7, 10.0.0.1": "203.0.113.7", "10.0.0.1": "",
			} {
				forwarded = header
				if got := buy(map[string]string{"consent": "yes"}, "")["client_ip"]; got != want {
					t.Errorf("X-Forwarded-For %q: client_ip = %q, want %q", header, got, want)
				}
			}
		})
	}
}

// newShop serves a merchant's site: pages with the snippets, a consent banner, and a form that starts the
// checkout at the example's server.
func newShop(t *testing.T, checkout string) *httptest.Server {
	t.Helper()
	target, err := url.Parse(checkout)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /snippets/", http.FileServer(http.Dir("../../docs")))
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.Transport = &http.Transport{DisableKeepAlives: true} // Node closes idle connections after 5 s
	mux.Handle("POST /checkout", proxy)
	page := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = io.WriteString(w, `<!doctype html><title>shop</title><link rel="icon" href="data:,">
<script src="/snippets/keep-click.js"></script><script src="/snippets/payment-links.js"></script>
<script>
function answer(yes) {
	document.cookie = 'consent=' + (yes ? 'yes' : 'no') + ';path=/'
	keepClick(yes)
	markPaymentLinks()
}
</script>
<h1>`+r.URL.Path+`</h1>
<button id="yes" onclick="answer(true)">Yes</button><button id="no" onclick="answer(false)">No</button>
<a id="next" href="/pricing">Pricing</a><a id="link" href="https://buy.stripe.com/test_1">Pay</a>
<a id="own" href="https://buy.stripe.com/test_2?client_reference_id=order-7">Pay</a>
<form action="/checkout" method="post"><button id="buy">Buy</button></form>
<script>if (/consent=yes/.test(document.cookie)) { keepClick(true); markPaymentLinks() }</script>`)
	}
	for _, path := range []string{"GET /{$}", "GET /landing", "GET /pricing", "GET /thanks"} {
		mux.HandleFunc(path, page)
	}
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server
}

// A click id reaches TikTok from a landing page through a real browser, the snippets, an example's server,
// Stripe's stand-in and both binaries. The browser stores nothing before consent and nothing after a no.
func TestClickID_ReachesTikTok(t *testing.T) {
	t.Parallel()
	s := newStack(t, "CONSENT_KEY=consent", "CONSENT_REQUIRED=true", "TIKTOK_TEST_MODE=send",
		"TIKTOK_TEST_EVENT_CODE=TEST1")
	api := stripegen.NewAPI()
	paid := make(chan string, 10)
	pay := listen(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { // pays immediately
		for _, session := range api.Sessions() {
			if r.URL.Path == "/"+session.SessionID {
				s.post(session.Event(), http.StatusOK, "")
				paid <- session.SessionID
				http.Redirect(w, r, session.SuccessURL, http.StatusSeeOther)
				return
			}
		}
		http.NotFound(w, r)
	}))
	api.PayURL = pay + "/"
	var shop *httptest.Server
	site := listen(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		shop.Config.Handler.ServeHTTP(w, r)
	}))
	shop = newShop(t, startExample(t, "node", listen(t, api), site))

	p := chromium.NewTab(t)
	const click = "E.C.P.CrABcGVyc29u_-.7~x"
	cookies := func() string { return chromium.Evaluate[string](p, `document.cookie`) }
	checkCookies := func(want string) {
		t.Helper()
		if got := cookies(); got != want {
			t.Errorf("cookies = %q, want %q", got, want)
		}
	}
	checkClick := func(want string) {
		t.Helper()
		if got := cookies(); !strings.Contains("; "+got+";", "; ttclid="+want+";") {
			t.Errorf("cookies = %q, want the click id %s", got, want)
		}
	}
	buy := func() (id string) {
		t.Helper()
		p.Click("#buy")
		p.AwaitText("h1", "/thanks")
		return <-paid
	}
	press := func(selector string) {
		t.Helper()
		p.Do(chromedp.Click(chromedp.CSS(selector)))
	}

	// Nothing is stored before the answer, and nothing after a no.
	p.Open(site + "/landing?ttclid=" + click + "&utm_source=tiktok")
	checkCookies("")
	press("#no")
	checkCookies("consent=no")
	p.Click("#next")
	p.AwaitText("h1", "/pricing")
	refused := buy()
	s.awaitStatus(refused, "skipped")
	s.checkPurchase(refused, "skipped", "no_consent")
	if got := fmt.Sprint(api.Sessions()[0].Metadata); got != "map[consent:no]" {
		t.Errorf("metadata after a no = %s, want map[consent:no]", got)
	}

	// The answer comes one page later: the click id of the page before is stored.
	p.Open(site + "/landing?ttclid=" + click)
	p.Click("#next")
	p.AwaitText("h1", "/pricing")
	press("#yes")
	checkClick(click)
	stored := cookies()
	p.Open(site + "/")
	p.Open(site + "/landing?ttclid=" + click) // the same click, then a page without
	p.Open(site + "/pricing")
	checkCookies(stored)
	link := func(selector string) string {
		t.Helper()
		return chromium.Evaluate[string](p, `document.querySelector("`+selector+`").href`)
	}
	if got, want := link("#link"), "https://buy.stripe.com/test_1"; got != want {
		t.Errorf("Payment Link = %s, want %s: Stripe drops a reference with these characters", got, want)
	}
	id := buy()
	s.checkOnlyDelivered(id)
	b := bodyOf(t, s.event(id))
	if b.User["ttclid"] != click || b.User["ip"] != "" || !strings.Contains(b.User["user_agent"], "Chrome") ||
		b.Page.URL != site+"/pricing" {
		t.Errorf("event = %+v, want the click id, Chrome and /pricing without an ip", b)
	}

	// A Payment Link carries the click id in its reference. A merchant's own reference is kept.
	const plain = "E.C.P.Cr_7-x"
	p.Open(site + "/landing?ttclid=" + plain)
	checkClick(plain)
	if got := link("#own"); !strings.HasSuffix(got, "?client_reference_id=order-7") {
		t.Errorf("Payment Link = %s, want the merchant's reference order-7", got)
	}
	c := stripegen.NewCheckout()
	c.Reference = strings.TrimPrefix(link("#link"), "https://buy.stripe.com/test_1?client_reference_id=")
	c.Metadata = map[string]string{"consent": "yes", "page_url": site}
	s.send(c)
	s.awaitStatus(c.SessionID, "delivered")
	if got := bodyOf(t, s.event(c.SessionID)).User["ttclid"]; got != plain {
		t.Errorf("click id of the reference %s = %q, want %q", c.Reference, got, plain)
	}
	// An invalid click id and a placeholder replace nothing.
	p.Open(site + "/landing?ttclid=" + url.QueryEscape(`"><script>;max-age=0`))
	checkClick(plain)
	p.Open(site + "/landing?ttclid=__CLICKID__&ttclid=undefined")
	checkClick(plain)
	p.Open(site + "/landing?ttclid=#/offer?TTCLID=E.C.P.route")
	checkClick("E.C.P.route")
	press("#no") // removes it
	checkCookies("consent=no")
	p.CheckConsole()
}

// Snippets are small. The documentation contains them and the example unchanged.
func TestSnippets_MatchDocumentation(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../../docs/identifiers.md")
	if err != nil {
		t.Fatal(err)
	}
	files := []string{"snippets/keep-click.js", "snippets/payment-links.js", "examples/checkout.mjs"}
	for _, file := range files {
		data, err := os.ReadFile(filepath.Join("../../docs", file))
		if err != nil || !strings.Contains(string(doc), "```js\n"+string(data)+"```\n") {
			t.Errorf("docs/identifiers.md lacks %s as it is, %v", file, err)
		}
		if strings.HasPrefix(file, "snippets") && len(data) >= 1024 {
			t.Errorf("%s has %d bytes, want less than 1024", file, len(data))
		}
	}
}
