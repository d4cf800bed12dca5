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

	"purchase-relay/internal/testkit/process"
	"purchase-relay/internal/testkit/stripegen"
)

// examples are the servers of docs/examples, and how each is started. A language that is not here is left out.
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

// startExample starts one and returns its address. stripe is where it finds Stripe's API, shop where its buyers come back to.
// env is added to its environment.
func startExample(t *testing.T, language, stripe, shop string, env ...string) (address string) {
	t.Helper()
	if _, err := exec.LookPath(language); err != nil {
		t.Skipf("there is no %s here", language)
	}
	addr := freeAddr(t)
	_, port, _ := strings.Cut(addr, ":")
	args := examples()[language](port)
	if language == "go" { // as a program of its own: what `go run` starts would outlive it
		program := filepath.Join(t.TempDir(), "checkout")
		if out, err := exec.Command("go", "build", "-o", program, "../../docs/examples/checkout.go").CombinedOutput(); err != nil {
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
			t.Logf("%s says:\n%s", language, out.String())
		}
	})
	(&stack{t: t}).await(language+" to answer", func() bool { return status("http://"+addr+"/") != 0 })
	return "http://" + addr
}

// Each example creates a session with what the relay reads; without consent with nothing but the no; and no cookie, however long or
// strange, keeps a buyer from paying.
func TestCheckoutExamples(t *testing.T) {
	t.Parallel()
	for language := range examples() {
		t.Run(language, func(t *testing.T) {
			api := stripegen.NewAPI()
			api.PayURL = "https://pay.example/"
			shop := startExample(t, language, listen(t, api), "https://shop.example")
			forwarded := "198.51.100.9, 203.0.113.7" // without proxies of the shop's own, a visitor's invention
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
				resp, err := http.DefaultTransport.RoundTrip(r)
				if err != nil {
					t.Fatal(err)
				}
				_ = resp.Body.Close()
				created := api.Sessions()
				if resp.StatusCode != http.StatusSeeOther || len(created) != before+1 || !strings.HasPrefix(resp.Header.Get("Location"), "https://pay.example/cs_test_") {
					t.Fatalf("answered %d %v, %d sessions", resp.StatusCode, resp.Header, len(created)-before)
				}
				return created[before].Metadata
			}
			whole := map[string]string{"consent": "yes", "ttclid": "E.C.P.ab_c-1", "ttclid_at": "1790000000", "_ttp": "2QkW.tt.1"}
			want := map[string]string{
				"consent": "yes", "ttclid": "E.C.P.ab_c-1", "ttclid_at": "1790000000", "ttp": "2QkW.tt.1", "client_ip": "127.0.0.1", "user_agent": "Mozilla/5.0 (Test)",
				"page_url": "https://shop.example/pricing?plan=1&x=é",
			}
			got := buy(whole, "https://shop.example/pricing?plan=1&x=é")
			got["client_ip"] = strings.TrimPrefix(got["client_ip"], "::ffff:")
			if language == "node" || language == "python3" { // a browser escapes what is not ASCII; these read bytes
				want["page_url"], got["page_url"] = "", ""
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("metadata %v\nwant %v", got, want)
			}
			whole["consent"] = "no"
			if got := buy(whole, "https://shop.example/"); fmt.Sprint(got) != "map[consent:no]" {
				t.Errorf("without consent: %v", got)
			}
			if got := buy(nil, ""); fmt.Sprint(got) != "map[consent:no]" {
				t.Errorf("without any cookie: %v", got)
			}
			got = buy(map[string]string{"consent": "yes", "ttclid": strings.Repeat("a", 501), "strange": "{=}=", "_ttp": "2QkW"}, "https://shop.example/?"+strings.Repeat("x", 500))
			if _, long := got["ttclid"]; long || got["ttp"] != "2QkW" || got["page_url"] != "" {
				t.Errorf("with values that Stripe refuses: %v", got)
			}

			// Behind two proxies: the second address from the right, however many a visitor writes in front and in how many headers.
			shop = startExample(t, language, listen(t, api), "https://shop.example", "PROXIES=2")
			for header, want := range map[string]string{
				"203.0.113.7, 10.0.0.1": "203.0.113.7", "127.0.0.1, 198.51.100.9,203.0.113.7 , 10.0.0.1": "203.0.113.7",
				"198.51.100.9; 203.0.113.7, 10.0.0.1": "203.0.113.7", "10.0.0.1": "",
			} {
				forwarded = header
				if got := buy(map[string]string{"consent": "yes"}, "")["client_ip"]; got != want {
					t.Errorf("X-Forwarded-For %q: client_ip %q, want %q", header, got, want)
				}
			}
		})
	}
}

// shop is a merchant's site: pages with the snippets, a banner that asks, a form that begins the checkout at the example's server.
func newShopFront(t *testing.T, checkout string) *httptest.Server {
	t.Helper()
	target, err := url.Parse(checkout)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /snippets/", http.StripPrefix("/snippets/", http.FileServer(http.Dir("../../docs/snippets"))))
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.Transport = &http.Transport{DisableKeepAlives: true} // Node closes an idle connection after five seconds
	mux.Handle("POST /checkout", proxy)
	page := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = io.WriteString(w, `<!doctype html><title>shop</title><link rel="icon" href="data:,"><script src="/snippets/keep-click.js"></script><script src="/snippets/payment-links.js"></script>
<script>
function answer(yes) { document.cookie = 'consent=' + (yes ? 'yes' : 'no') + ';path=/'; keepClick(yes); markPaymentLinks() }
</script>
<h1>`+r.URL.Path+`</h1><button id="yes" onclick="answer(true)">Yes</button><button id="no" onclick="answer(false)">No</button>
<a id="next" href="/pricing">Pricing</a><a id="link" href="https://buy.stripe.com/test_1">Pay</a><a id="own" href="https://buy.stripe.com/test_2?client_reference_id=order-7">Pay</a>
<form action="/checkout" method="post"><button id="buy">Buy</button></form><script>if (/consent=yes/.test(document.cookie)) { keepClick(true); markPaymentLinks() }</script>`)
	}
	for _, path := range []string{"GET /{$}", "GET /landing", "GET /pricing", "GET /thanks"} {
		mux.HandleFunc(path, page)
	}
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server
}

// A click id from a landing page comes to TikTok: a real browser, the snippet, an example's server, Stripe's stand-in, both binaries,
// the simulator. Nothing is kept before the visitor says yes, and nothing after a no.
func TestClickComesToTikTok(t *testing.T) {
	t.Parallel()
	s := newStack(t, "CONSENT_KEY=consent", "CONSENT_REQUIRED=true", "TIKTOK_TEST_MODE=send", "TIKTOK_TEST_EVENT_CODE=TEST1")
	api := stripegen.NewAPI()
	paid := make(chan string, 10)
	pay := listen(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { // a buyer who pays at once
		for _, session := range api.Sessions() {
			if r.URL.Path == "/"+session.SessionID {
				if answer := s.send(session); answer.Status != http.StatusOK {
					t.Errorf("the webhook answered %+v", answer)
				}
				paid <- session.SessionID
				http.Redirect(w, r, session.SuccessURL, http.StatusSeeOther)
				return
			}
		}
		http.NotFound(w, r)
	}))
	api.PayURL = pay + "/"
	var shop *httptest.Server
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { shop.Config.Handler.ServeHTTP(w, r) }))
	t.Cleanup(front.Close)
	shop = newShopFront(t, startExample(t, "node", listen(t, api), front.URL))

	p := s.openTab()
	const click = "E.C.P.CrABcGVyc29u_-.7~x"
	cookies := func() string { return ask[string](p, `document.cookie`) }
	keeps := func(click string) bool { return strings.Contains("; "+cookies()+";", "; ttclid="+click+";") }
	on := func(path string) {
		t.Helper()
		p.awaitText("h1", path)
	}
	press := func(selector string) {
		t.Helper()
		p.do(chromedp.Click(chromedp.CSS(selector)))
	}

	// Nothing is kept before the answer, and nothing after a no.
	p.open(front.URL + "/landing?ttclid=" + click + "&utm_source=tiktok")
	if got := cookies(); got != "" {
		t.Errorf("before the answer the browser keeps %q", got)
	}
	press("#no")
	if got := cookies(); got != "consent=no" {
		t.Errorf("after a no the browser keeps %q", got)
	}
	p.click("#next")
	on("/pricing")
	p.click("#buy")
	on("/thanks")
	refused := <-paid
	if r := s.awaitStatus(refused, "skipped"); r.Reason != "no_consent" {
		t.Errorf("after a no: %+v", r)
	}
	if metadata := api.Sessions()[0].Metadata; fmt.Sprint(metadata) != "map[consent:no]" {
		t.Errorf("after a no Stripe got %v", metadata)
	}

	// The answer comes one page later: the click is still known from the page before.
	p.open(front.URL + "/landing?ttclid=" + click)
	p.click("#next")
	on("/pricing")
	press("#yes")
	kept := cookies()
	if !keeps(click) {
		t.Fatalf("after a yes the browser keeps %q", kept)
	}
	p.open(front.URL + "/")
	p.open(front.URL + "/landing?ttclid=" + click) // the same click again, and later a page without
	p.open(front.URL + "/pricing")
	if got := cookies(); got != kept {
		t.Errorf("on a later page the browser keeps %q instead of %q", got, kept)
	}
	if href := ask[string](p, `document.querySelector('#link').href`); href != "https://buy.stripe.com/test_1" {
		t.Errorf("the Payment Link bears what Stripe would drop: %s", href)
	}
	p.click("#buy")
	on("/thanks")
	id := <-paid
	s.awaitStatus(id, "delivered")
	b := bodyOf(t, s.event(id))
	if b.User["ttclid"] != click || b.User["ip"] != "" || !strings.Contains(b.User["user_agent"], "Chrome") ||
		b.Page.URL != front.URL+"/pricing" {
		t.Errorf("TikTok has %+v", b)
	}
	if len(s.sim.Received()) != 1 {
		t.Errorf("TikTok has %d events", len(s.sim.Received()))
	}

	// A Payment Link carries it in its reference; a merchant's own stays. What is no click id is not kept.
	const plain = "E.C.P.Cr_7-x"
	p.open(front.URL + "/landing?ttclid=" + plain)
	if got := cookies(); !keeps(plain) {
		t.Errorf("of a newer click the browser keeps %q", got)
	}
	reference := strings.TrimPrefix(ask[string](p, `document.querySelector('#link').href`), "https://buy.stripe.com/test_1?client_reference_id=")
	if own := ask[string](p, `document.querySelector('#own').href`); !strings.HasSuffix(own, "?client_reference_id=order-7") {
		t.Errorf("the merchant's own reference became %s", own)
	}
	c := stripegen.NewCheckout()
	c.Reference, c.Metadata = reference, map[string]string{"consent": "yes", "page_url": front.URL}
	s.send(c)
	s.awaitStatus(c.SessionID, "delivered")
	if got := bodyOf(t, s.event(c.SessionID)).User["ttclid"]; got != plain {
		t.Errorf("%s came to TikTok as %q", reference, got)
	}
	p.open(front.URL + "/landing?ttclid=" + url.QueryEscape(`"><script>;max-age=0`))
	if got := cookies(); !keeps(plain) {
		t.Errorf("a strange click id replaced the good one: %q", got)
	}
	p.open(front.URL + "/landing?ttclid=__CLICKID__&ttclid=undefined")
	if got := cookies(); !keeps(plain) {
		t.Errorf("a placeholder replaced the good click id: %q", got)
	}
	p.open(front.URL + "/landing?ttclid=#/offer?TTCLID=E.C.P.route")
	if got := cookies(); !keeps("E.C.P.route") {
		t.Errorf("of a click id behind # the browser keeps %q", got)
	}
	press("#no") // and now forgets it
	if got := cookies(); got != "consent=no" {
		t.Errorf("after a late no the browser keeps %q", got)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, message := range p.messages {
		t.Errorf("the console says: %s", message)
	}
}

// Snippets are small, and the documentation shows them and the example as they are.
func TestSnippetsAreAsDocumented(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../../docs/identifiers.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"snippets/keep-click.js", "snippets/payment-links.js", "examples/checkout.mjs"} {
		data, err := os.ReadFile(filepath.Join("../../docs", file))
		if err != nil || !strings.Contains(string(doc), "```js\n"+string(data)+"```\n") {
			t.Errorf("docs/identifiers.md shows another %s, %v", file, err)
		}
		if strings.HasPrefix(file, "snippets") && len(data) >= 1024 {
			t.Errorf("%s has %d bytes", file, len(data))
		}
	}
}
