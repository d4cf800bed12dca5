package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"purchase-relay/internal/testkit/stripegen"
	"purchase-relay/internal/testkit/tiktoksim"
)

// encodings returns the encodings in which a text may contain needle: those to compare in any case, and exact
// ones.
func encodings(needle string) (anyCase, exact []string) {
	percent := ""
	for _, b := range []byte(needle) {
		percent += fmt.Sprintf("%%%02x", b)
	}
	anyCase = []string{
		needle, url.QueryEscape(needle), url.PathEscape(needle), url.QueryEscape(url.QueryEscape(needle)), percent,
		html.EscapeString(needle), hex.EncodeToString([]byte(needle)), strings.ReplaceAll(needle, "@", `\u0040`),
	}
	for _, form := range []string{needle, strings.ToLower(needle), strings.ToUpper(needle)} {
		for offset := range 3 { // of the needle within base64's groups of three bytes
			raw := append(make([]byte, offset), form...)
			from, to := (offset*8+5)/6, len(raw)*8/6 // only characters that encode nothing else
			for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
				exact = append(exact, encoding.EncodeToString(raw)[from:to])
			}
		}
	}
	return anyCase, exact
}

// findEncoded returns the position of the first encoding of needle that text contains, or -1.
func findEncoded(text, needle string) int {
	anyCase, exact := encodings(needle)
	lower := strings.ToLower(text)
	for _, s := range anyCase {
		if i := strings.Index(lower, strings.ToLower(s)); i >= 0 {
			return i
		}
	}
	for _, s := range exact {
		if i := strings.Index(text, s); i >= 0 {
			return i
		}
	}
	return -1
}

func TestFindEncoded(t *testing.T) {
	t.Parallel()
	const needle = "Ada.Byron+1@Example.com"
	lower := strings.ToLower(needle)
	for name, text := range map[string]string{
		"plain": needle, "upper case": strings.ToUpper(needle), "lower case": lower,
		"query": url.QueryEscape(needle), "path": url.PathEscape(needle),
		"escaped twice":      url.QueryEscape(url.QueryEscape(needle)),
		"lower-case escapes": strings.ToLower(url.QueryEscape(needle)),
		"JSON":               `Ada.Byron+1\u0040example.com`,
		"base64":             base64.StdEncoding.EncodeToString([]byte("to: " + needle + ";")),
		"base64 for URLs":    base64.RawURLEncoding.EncodeToString([]byte("<" + lower)),
		"hexadecimal":        hex.EncodeToString([]byte("x" + needle)),
	} {
		if findEncoded("before "+text+" after", needle) < 0 {
			t.Errorf("%s: not found in %s", name, text)
		}
	}
	if i := findEncoded("Ada Byron at example.com", needle); i != -1 {
		t.Errorf("position in a text without the needle = %d, want -1", i)
	}
}

// outputs collects the product's outputs by place.
type outputs struct {
	t      *testing.T
	places map[string]string
}

func (o *outputs) add(place, text string) { o.places[place] += text + "\n" }

// request adds the response to a request: status, headers and body.
func (o *outputs) request(place string, req *http.Request, err error) int {
	o.t.Helper()
	if err != nil {
		o.t.Fatal(err)
	}
	resp, err := (&http.Client{Timeout: timeout}).Do(req)
	if err != nil {
		o.add(place, "no response")
		return 0
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<22))
	if err != nil {
		o.t.Fatal(err)
	}
	o.add(place, fmt.Sprint(resp.StatusCode, resp.Header, string(body)))
	return resp.StatusCode
}

// Secrets and personal data, which only Postgres and the settings may contain.
const (
	hiddenToken   = "tok-Live-Hunter-1111"
	hiddenTest    = "tok-Test-Hunter-2222"
	hiddenAdmin   = "adm-Hunter-33333"
	hiddenSecret  = "whsec_HunterFirst44444"
	hiddenSecond  = "whsec_HunterSecond5555"
	hiddenEmail   = "Grace.Hopper@Navy-Mail.example"
	hiddenPrefill = "prefilled.buyer@other-mail.example"
	hiddenStrange = "strange.place@odd-mail.example"
	hiddenPhone   = "2135550147" // the last digits
	hiddenName    = "Grace Brewster Murray"
	hiddenOwner   = "owner-Hunter-6666"
)

// Everything fails at least once, and no output contains one of the above.
func TestPrivacy_NoSecretOrPersonalDataLeaks(t *testing.T) {
	t.Parallel()
	o := &outputs{t: t, places: make(map[string]string)}
	postgres, options := ownPostgres(t)
	sim := tiktoksim.New(tiktoksim.Config{Token: hiddenToken, TestToken: hiddenTest})
	s := newIdleStack(t, postgres.URL("postgres"))
	s.postgres, s.sim, s.simURL = postgres, sim, listen(t, sim)
	s.exec(`ALTER ROLE postgres PASSWORD '` + hiddenOwner + `'`)
	s.database = strings.Replace(s.database, postgres.Password(), hiddenOwner, 1)
	s.startNATS()
	workerEnv := []string{
		"TIKTOK_ACCESS_TOKEN=" + hiddenToken, "TIKTOK_TEST_MODE=send", "TIKTOK_TEST_ACCESS_TOKEN=" + hiddenTest,
		"TIKTOK_TEST_EVENT_CODE=TEST1", "TIKTOK_TIMEOUT=1s", "LOG_LEVEL=debug",
	}
	s.startIngest("STRIPE_WEBHOOK_SECRET="+hiddenSecret+","+hiddenSecond, "ADMIN_TOKEN="+hiddenAdmin,
		"SWEEP_INTERVAL=200ms", "SWEEP_GRACE=2s", "LOG_LEVEL=debug")
	s.sender.Secret = hiddenSecond

	buyer := func() stripegen.Checkout {
		c := stripegen.NewCheckout().Live()
		email, prefill, phone, name := hiddenEmail, hiddenPrefill, "+1 (213) 555-0147", hiddenName
		c.Email, c.CustomerEmail, c.Phone, c.Name = &email, &prefill, &phone, &name
		return c
	}
	// The address, the number and the name wherever a shop may put them, escaped or not. Base64 and hexadecimal
	// are not decoded: docs/decisions/0009.
	escaped := url.QueryEscape(url.QueryEscape(strings.ToLower(hiddenEmail)))
	const site = "https://shop.example/"
	for i, page := range []string{
		site + "thanks?email=" + url.QueryEscape(hiddenEmail), site + "thanks/" + url.PathEscape(hiddenEmail),
		site + "?q=" + url.QueryEscape(url.QueryEscape(hiddenEmail)), site + "?ref=" + escaped,
		site + "u/" + escaped + "/done", site + "?n=" + url.QueryEscape(hiddenName), site + "call/1-213-555-0147",
		site + "?p=12135550147", site + "hello/" + url.PathEscape(hiddenName), site + "#" + hiddenEmail,
		"https://" + url.UserPassword(hiddenEmail, "x").String() + "@shop.example/",
		"shop.example/?x=" + hiddenEmail + "&amp;ttclid=" + hiddenEmail, site + "Grace-Brewster-Murray/",
		site + "?grace.hopper%2540navy-mail.example", site + "100%/" + hiddenEmail + "#/?ttclid=" + escaped,
	} {
		c := buyer()
		c.Metadata["page_url"], c.Metadata["referrer"] = page, page
		switch i % 3 {
		case 0:
			c.Metadata["user_agent"] = "Mozilla/5.0 (" + hiddenEmail + ")"
		case 1:
			c.Metadata["user_agent"] = "Mozilla/5.0 for " + hiddenName
		default:
			c.Metadata["ttp"], c.Metadata["client_ip"], c.Metadata["ttclid"] = hiddenEmail, "12135550147", escaped
		}
		c.Metadata[hiddenEmail] = hiddenName
		s.send(c)
	}
	s.awaitCount("published", s.rows("purchases"))
	s.stopNATS()
	o.add("the queue's files", contents(t, s.natsDir))
	s.startNATS()
	s.startWorker(workerEnv...)

	for _, body := range malformedEvents() {
		answer, _ := s.sendEvent([]byte(body), http.StatusBadRequest)
		o.add("the webhook's answers", answer.Body)
	}
	// Missing and wrong signatures.
	for i, signature := range []string{
		"", hiddenEmail, "t=1,v1=" + hiddenSecret, stripegen.Sign(buyer().Event(), hiddenToken, time.Now()),
	} {
		address := s.webhook + "?email=" + url.QueryEscape(hiddenEmail)
		req, err := http.NewRequest(http.MethodPost, address, bytes.NewReader(buyer().Event()))
		if err == nil {
			req.Header.Set("Stripe-Signature", signature)
			req.Header.Set("X-Note", hiddenEmail)
		}
		if status := o.request("the webhook's answers", req, err); status != http.StatusBadRequest {
			t.Errorf("signature %d: status = %d, want 400", i, status)
		}
	}
	address := "http://" + s.publicAddr() + "/" + url.PathEscape(hiddenEmail)
	req, err := http.NewRequest(http.MethodGet, address, http.NoBody)
	o.request("the webhook's answers", req, err)

	programs := []*program{s.ingest, s.worker}
	s.awaitNone(`purchases WHERE status IN ('pending', 'published', 'retrying')`)

	// TikTok repeats the token and the address in its errors.
	echo := "no: " + hiddenToken + " " + hiddenEmail + " " + strings.ToUpper(hiddenEmail)
	fail := func(want string, fault tiktoksim.Fault) stripegen.Checkout {
		t.Helper()
		sim.Inject(fault)
		c := buyer()
		s.send(c)
		s.awaitStatus(c.SessionID, want)
		sim.Clear()
		return c
	}
	// Not once: the worker may not wait for the answer that takes more than a second.
	dead := fail("dead", tiktoksim.Fault{Code: 40002, Message: echo})
	fail("delivered", tiktoksim.Fault{Status: http.StatusServiceUnavailable, Body: echo, Count: 2})
	fail("delivered", tiktoksim.Fault{Code: 40100, Message: echo, Count: 1})
	fail("delivered", tiktoksim.Fault{Code: 40105, Message: echo, Count: 1})
	fail("delivered", tiktoksim.Fault{Redirect: s.simURL + "/" + hiddenToken, Count: 1})
	fail("delivered", tiktoksim.Fault{Hang: true, Count: 1, For: 2 * time.Second})
	fail("delivered", tiktoksim.Fault{LyingLength: true, Body: echo, Count: 1})
	test := stripegen.NewCheckout()
	email := hiddenEmail
	test.Email = &email
	sim.Inject(tiktoksim.Fault{Code: 40105, Message: hiddenTest + " " + hiddenEmail, Count: 1})
	s.send(test)
	s.awaitStatus(test.SessionID, "delivered")

	// Commands, also with wrong arguments.
	for _, args := range [][]string{
		{"show", hiddenEmail},
		{"show", dead.SessionID},
		{"show", "nobody." + hiddenStrange},
		{"show", hiddenStrange, hiddenStrange},
		{"replay", "--session", hiddenStrange, "--yes"},
		{"replay", "--status", hiddenStrange},
		{"replay", "--status", "dead", "--reason", hiddenStrange},
		{"replay", "--status", "dead", "--since", hiddenStrange},
		{"replay", "--status", "dead", "--code", hiddenStrange},
		{"replay", "--session", dead.SessionID, "--yes"},
		{"migrate"},
		{hiddenStrange},
		{"--database-url=" + hiddenStrange, "migrate"},
		{"--admin-token", hiddenAdmin, "--nonsense"},
	} {
		_, out := s.command(args...)
		o.add("commands", out)
	}
	s.awaitStatus(dead.SessionID, "delivered")
	// Unusable settings. The errors repeat the values of settings that are no secret.
	const owner = "u:" + hiddenOwner
	secrets := []string{
		"STRIPE_WEBHOOK_SECRET=" + hiddenToken, "DATABASE_URL=postgres://" + owner + "@h:port/d",
		"MIGRATE_DATABASE_URL=postgres://" + owner + "@h:port/d", "NATS_URL=http://u:" + ingestPassword + "@h",
		"ADMIN_TOKEN_FILE=/missing", "TIKTOK_PIXEL_ID=" + hiddenTest, "TIKTOK_ACCESS_TOKEN=" + hiddenToken,
		"TIKTOK_API_URL=http://" + owner + "@h:port/", "ADMIN_ADDR=x",
	}
	run := func(name string, env []string, args ...string) {
		t.Helper()
		_, out := command(t, name, env, args...)
		o.add("commands", name+": "+out)
	}
	run("ingest", secrets)
	run("tiktok-worker", secrets)
	for _, host := range []string{"@h:port/d", "@127.0.0.1:1/d", "%zz@h/d"} {
		database := "DATABASE_URL=postgres://" + owner + host
		run("ingest", []string{database}, "migrate")
		run("ingest", []string{"DATABASE_URL=" + s.runtimeURL(), "MIGRATE_" + database}, "migrate")
	}
	run("tiktok-worker", []string{
		"TIKTOK_ACCESS_TOKEN=" + hiddenToken, "TIKTOK_PIXEL_ID=x",
		"TIKTOK_API_URL=http://" + owner + "@127.0.0.1:1/",
	}, "send-test", "--code", "TEST1")

	// The API and the admin listener, also with wrong requests and tokens.
	for _, token := range []string{hiddenAdmin, hiddenSecret, ""} {
		for _, r := range []struct{ method, path string }{
			{http.MethodGet, "/api/v1/summary"},
			{http.MethodGet, "/api/v1/summary?range=" + url.QueryEscape(hiddenEmail)},
			{http.MethodGet, "/readyz"},
			{http.MethodGet, "/metrics"},
			{http.MethodGet, "/"},
			{http.MethodPost, "/api/v1/purchases/" + url.PathEscape(hiddenStrange) + "/replay"},
			{http.MethodPost, "/api/v1/purchases/" + dead.SessionID + "/replay"},
			{http.MethodPost, "/api/v1/replay?status=" + url.QueryEscape(hiddenStrange)},
			{http.MethodPost, "/api/v1/replay?status=dead&reason=" + url.QueryEscape(hiddenStrange)},
			{http.MethodPost, "/api/v1/replay?status=dead&since=" + url.QueryEscape(hiddenStrange)},
			{http.MethodGet, "/" + url.PathEscape(hiddenStrange)},
		} {
			req, err := http.NewRequest(r.method, s.admin+r.path, http.NoBody)
			if err == nil && token != "" {
				req.Header.Set("Authorization", "Bearer "+token)
			}
			o.request("the API's answers", req, err)
		}
	}
	// A wrong password, a user without permission, a restart of NATS.
	for _, user := range []string{"worker:" + hiddenOwner, "ingest:" + ingestPassword} {
		env := []string{
			"NATS_URL=nats://" + user + "@" + s.natsAddr, "TIKTOK_PIXEL_ID=x", "ADMIN_ADDR=" + freeAddr(t),
		}
		p := start(t, "tiktok-worker", append(env, workerEnv...)...)
		programs = append(programs, p)
		s.await("NATS to reject the worker", func() bool {
			return p.logged("NATS rejected the credentials") > 0 || p.logged("NATS denied a request") > 0
		})
		p.Kill()
	}
	s.stopNATS()
	c := buyer()
	s.send(c)
	o.add("the queue's files", contents(t, s.natsDir))
	s.startNATS()
	s.awaitStatus(c.SessionID, "delivered")
	// Postgres is down.
	if err := postgres.Stop(); err != nil {
		t.Fatal(err)
	}
	c = buyer()
	s.post(c.Event(), http.StatusServiceUnavailable, "")
	env := []string{"DATABASE_URL=" + s.runtimeURL()}
	run("ingest", env, "show", hiddenEmail)
	run("ingest", env, "replay", "--status", "dead", "--yes")
	run("ingest", env, "migrate")
	startPostgres(t, options)
	if _, err := s.sender.Deliver(t.Context(), c.Event(), 100, 50*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	s.awaitStatus(c.SessionID, "delivered")

	for _, p := range []string{s.admin + "/metrics", s.worker.admin + "/metrics", s.worker.admin + "/readyz"} {
		_, text := httpGet(p)
		o.add("metrics", text)
	}
	o.add("the queue's files", contents(t, s.natsDir))
	for _, p := range programs {
		p.stop()
		o.add("logs", p.log())
	}
	o.check(dead)
}

// check searches every place. A place that lacks its expected text was not collected.
func (o *outputs) check(dead stripegen.Checkout) {
	o.t.Helper()
	for place, part := range map[string]string{
		"logs": dead.SessionID, "the queue's files": sha(strings.ToLower(hiddenEmail)),
		"metrics":  `purchase_relay_dead_letters_total{reason="refused"} 1`,
		"commands": "1 made pending again", "the API's answers": `"delivered":`,
		"the webhook's answers": "invalid signature",
	} {
		if !strings.Contains(o.places[place], part) {
			o.t.Errorf("%s lack %q: not collected", place, part)
		}
	}
	for place, text := range o.places {
		for _, needle := range []string{
			hiddenToken, hiddenTest, hiddenAdmin, hiddenSecret, hiddenSecond, hiddenOwner,
			hiddenEmail, hiddenPrefill, hiddenStrange, hiddenPhone, "555-0147", hiddenName,
			strings.ReplaceAll(hiddenName, " ", "-"), ingestPassword, workerPassword, rolePassword,
		} {
			if i := findEncoded(text, needle); i >= 0 {
				i = min(i, len(text)) // lower case may be longer
				o.t.Errorf("%s contain %s: …%q…", place, needle, text[max(0, i-150):min(len(text), i+120)])
			}
		}
	}
}

// malformedEvents returns bodies that are no valid events, with personal data in any field.
func malformedEvents() []string {
	event := func(change func(event, object map[string]any)) string {
		c := stripegen.NewCheckout().Live()
		email := hiddenEmail
		c.Email = &email
		var e map[string]any
		if err := json.Unmarshal(c.Event(), &e); err != nil {
			panic(err)
		}
		change(e, e["data"].(map[string]any)["object"].(map[string]any))
		body, err := json.Marshal(e)
		if err != nil {
			panic(err)
		}
		return string(body)
	}
	set := func(key string, value any) string { return event(func(_, o map[string]any) { o[key] = value }) }
	top := func(key string, value any) string { return event(func(e, _ map[string]any) { e[key] = value }) }
	return []string{
		`"` + hiddenEmail + `"`, `{"id":"` + hiddenEmail + `"}`, `{"id":"` + hiddenEmail,
		"not JSON: " + hiddenEmail, `{"` + hiddenEmail + `":1}`,
		top("id", hiddenStrange), top("type", hiddenStrange), top("created", hiddenStrange),
		top("api_version", hiddenStrange), top("data", hiddenStrange), top("object", "v2."+hiddenStrange),
		event(func(e, _ map[string]any) { e["object"], e["type"] = "v2.core.event", hiddenStrange }),
		event(func(e, _ map[string]any) {
			e["type"], e["data"] = "checkout.session.completed", map[string]any{"object": hiddenStrange}
		}),
		set("id", hiddenStrange), set("mode", hiddenStrange), set("payment_status", hiddenStrange),
		set("currency", hiddenStrange), set("amount_total", hiddenStrange), set("metadata", hiddenStrange),
		set("customer", map[string]any{"id": hiddenStrange, "email": hiddenStrange}),
		set("customer", hiddenStrange), set("subscription", hiddenStrange),
		set("customer_email", hiddenStrange+" "+hiddenStrange),
		set("customer_details", map[string]any{
			"email": "<" + hiddenStrange, "phone": hiddenStrange, "name": hiddenStrange,
		}),
		set("customer_details", map[string]any{"email": hiddenStrange + "\u0000"}),
		set("customer_details", []any{hiddenStrange}),
		set("customer_details", map[string]any{"email": `"` + hiddenName + `" <` + hiddenStrange + `>`}),
	}
}
