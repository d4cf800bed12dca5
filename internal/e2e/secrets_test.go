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
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"purchase-relay/internal/testkit/stripegen"
	"purchase-relay/internal/testkit/tiktoksim"
)

// spellings are the ways in which a text may hide in another one. Those of small letters are looked for in either case.
func spellings(needle string) (anyCase, exact []string) {
	anyCase = []string{needle, url.QueryEscape(needle), url.PathEscape(needle), url.QueryEscape(url.QueryEscape(needle)), html.EscapeString(needle), hex.EncodeToString([]byte(needle))}
	escaped := ""
	for _, b := range []byte(needle) {
		escaped += fmt.Sprintf("%%%02x", b)
	}
	quoted := strings.ReplaceAll(needle, "@", `\u0040`)
	anyCase = append(anyCase, escaped, quoted)
	for _, form := range []string{needle, strings.ToLower(needle), strings.ToUpper(needle)} {
		for skip := range 3 { // where it begins within a group of three bytes
			raw := append(make([]byte, skip), form...)
			from, to := (skip*8+5)/6, len(raw)*8/6 // whole characters that depend on nothing around
			exact = append(exact, base64.RawStdEncoding.EncodeToString(raw)[from:to], base64.RawURLEncoding.EncodeToString(raw)[from:to])
		}
	}
	return anyCase, exact
}

// holds says whether a text holds a needle in any of its spellings.
func holds(text, needle string) bool {
	anyCase, exact := spellings(needle)
	lower := strings.ToLower(text)
	for _, s := range anyCase {
		if strings.Contains(lower, strings.ToLower(s)) {
			return true
		}
	}
	for _, s := range exact {
		if strings.Contains(text, s) {
			return true
		}
	}
	return false
}

// The search itself: it finds what is hidden, whatever stands around it.
func TestSearchFindsWhatIsHidden(t *testing.T) {
	t.Parallel()
	const needle = "Ada.Byron+1@Example.com"
	for name, text := range map[string]string{
		"plain": needle, "upper case": strings.ToUpper(needle), "lower case": strings.ToLower(needle), "a query": url.QueryEscape(needle), "a path": url.PathEscape(needle),
		"escaped twice": url.QueryEscape(url.QueryEscape(needle)), "lower-case escapes": strings.ToLower(url.QueryEscape(needle)), "JSON": `Ada.Byron+1\u0040example.com`,
		"base64": base64.StdEncoding.EncodeToString([]byte("to: " + needle + ";")), "base64 of a URL": base64.RawURLEncoding.EncodeToString([]byte("<" + strings.ToLower(needle))),
		"hexadecimal": hex.EncodeToString([]byte("x" + needle)),
	} {
		if !holds("before "+text+" after", needle) {
			t.Errorf("%s is not found: %s", name, text)
		}
	}
	if holds("Ada Byron at example.com", needle) {
		t.Error("it finds what is not there")
	}
}

// witness keeps what was said in every place.
type witness struct {
	t      *testing.T
	places map[string]string
}

func (w *witness) saw(place, text string) { w.places[place] += text + "\n" }

// asked keeps an HTTP answer: status, headers and body.
func (w *witness) asked(place string, req *http.Request, err error) int {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
	resp, err := (&http.Client{Timeout: patience}).Do(req)
	if err != nil {
		w.saw(place, "no answer")
		return 0
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<22))
	if err != nil {
		w.t.Fatal(err)
	}
	w.saw(place, fmt.Sprint(resp.StatusCode, resp.Header, string(body)))
	return resp.StatusCode
}

// files keeps everything below a folder.
func (w *witness) files(place, dir string) {
	w.t.Helper()
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return nil // a file that the server has just removed
		}
		if data, err := os.ReadFile(path); err == nil {
			w.saw(place, string(data))
		}
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// What must stand nowhere but in Postgres and in our neighbours' own configuration.
const (
	hiddenToken   = "tok-Live-Hunter-1111"
	hiddenTest    = "tok-Test-Hunter-2222"
	hiddenAdmin   = "adm-Hunter-33333"
	hiddenSecret  = "whsec_HunterFirst44444"
	hiddenSecond  = "whsec_HunterSecond5555"
	hiddenEmail   = "Grace.Hopper@Navy-Mail.example"
	hiddenPrefill = "prefilled.buyer@other-mail.example"
	hiddenStrange = "strange.place@odd-mail.example"
	hiddenPhone   = "2135550147" // the last digits, whatever is before and between
	hiddenName    = "Grace Brewster Murray"
	hiddenOwner   = "owner-Hunter-6666"
)

// The whole product with everything going wrong at least once, and nothing of the above said by anybody.
func TestNothingPersonalAndNoSecretIsSaid(t *testing.T) {
	t.Parallel()
	w := &witness{t: t, places: make(map[string]string)}
	postgres, options := ownPostgres(t)
	sim := tiktoksim.New(tiktoksim.Config{Token: hiddenToken, TestToken: hiddenTest})
	s := &stack{t: t, natsDir: t.TempDir(), natsAddr: freeAddr(t), sim: sim, database: postgres.URL("postgres"), postgres: postgres}
	s.exec(`ALTER ROLE postgres PASSWORD '` + hiddenOwner + `'`)
	s.database = strings.Replace(s.database, postgres.Password(), hiddenOwner, 1)
	s.startNATS()
	s.simURL = listen(t, sim)
	common := []string{"LOG_LEVEL=debug"}
	forIngest := append([]string{
		"STRIPE_WEBHOOK_SECRET=" + hiddenSecret + "," + hiddenSecond, "ADMIN_TOKEN=" + hiddenAdmin, "SWEEP_INTERVAL=200ms", "SWEEP_GRACE=2s",
		"MIGRATE_DATABASE_URL=" + s.database,
	}, common...)
	forWorker := append([]string{
		"TIKTOK_ACCESS_TOKEN=" + hiddenToken, "TIKTOK_TEST_MODE=send", "TIKTOK_TEST_ACCESS_TOKEN=" + hiddenTest, "TIKTOK_TEST_EVENT_CODE=TEST1", "TIKTOK_TIMEOUT=1s",
	}, common...)
	s.startIngest(forIngest...)
	s.sender.Secret = hiddenSecond

	buyer := func() stripegen.Checkout {
		c := stripegen.NewCheckout().Live()
		email, prefill, phone, name := hiddenEmail, hiddenPrefill, "+1 (213) 555-0147", hiddenName
		c.Email, c.CustomerEmail, c.Phone, c.Name = &email, &prefill, &phone, &name
		return c
	}
	// A purchase that carries the address, the number and the name wherever a shop may have put them, escaped or
	// not. Words in base64 or hexadecimal are not decoded: docs/decisions/0009.
	escaped := url.QueryEscape(url.QueryEscape(strings.ToLower(hiddenEmail)))
	for i, page := range []string{
		"https://shop.example/thanks?email=" + url.QueryEscape(hiddenEmail), "https://shop.example/thanks/" + url.PathEscape(hiddenEmail),
		"https://shop.example/?q=" + url.QueryEscape(url.QueryEscape(hiddenEmail)), "https://shop.example/?ref=" + escaped, "https://shop.example/u/" + escaped + "/done",
		"https://shop.example/?n=" + url.QueryEscape(hiddenName), "https://shop.example/call/1-213-555-0147", "https://shop.example/?p=12135550147",
		"https://shop.example/hello/" + url.PathEscape(hiddenName), "https://" + url.UserPassword(hiddenEmail, "x").String() + "@shop.example/", "https://shop.example/#" + hiddenEmail,
		"shop.example/?x=" + hiddenEmail + "&amp;ttclid=" + hiddenEmail, "https://shop.example/Grace-Brewster-Murray/",
		"https://shop.example/?grace.hopper%2540navy-mail.example", "https://shop.example/100%/" + hiddenEmail + "#/?ttclid=" + escaped,
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
	s.await("the queue to hold them", func() bool {
		return query[int](s, `SELECT count(*) FROM purchases WHERE status = 'published'`) == query[int](s, `SELECT count(*) FROM purchases`)
	})
	if err := s.nats.Stop(); err != nil {
		t.Fatal(err)
	}
	w.files("the queue's files", s.natsDir)
	s.startNATS()
	s.startWorker(forWorker...)

	// Signed, and not as it should be.
	for _, body := range strangeEvents() {
		answer, err := s.sender.Send(t.Context(), []byte(body))
		if err != nil {
			t.Fatal(err)
		}
		w.saw("the webhook's answers", answer.Body)
	}
	// Not signed, and by whom it should not be.
	for i, signature := range []string{"", hiddenEmail, "t=1,v1=" + hiddenSecret, stripegen.Sign(buyer().Event(), hiddenToken, time.Now())} {
		req, err := http.NewRequest(http.MethodPost, s.webhook+"?email="+url.QueryEscape(hiddenEmail), bytes.NewReader(buyer().Event()))
		if err == nil {
			req.Header.Set("Stripe-Signature", signature)
			req.Header.Set("X-Note", hiddenEmail)
		}
		if status := w.asked("the webhook's answers", req, err); status != http.StatusBadRequest {
			t.Errorf("signature %d: %d", i, status)
		}
	}
	req, err := http.NewRequest(http.MethodGet, "http://"+s.public()+"/"+url.PathEscape(hiddenEmail), http.NoBody)
	w.asked("the webhook's answers", req, err)

	programs := []*program{s.ingest, s.worker}
	s.await("all of them to end", func() bool {
		return query[int](s, `SELECT count(*) FROM purchases WHERE status IN ('pending', 'published', 'retrying')`) == 0
	})

	// TikTok refuses, and says more than it should.
	said := "no: " + hiddenToken + " " + hiddenEmail + " " + strings.ToUpper(hiddenEmail)
	fail := func(want string, fault tiktoksim.Fault) stripegen.Checkout {
		t.Helper()
		sim.Inject(fault)
		c := buyer()
		s.send(c)
		s.awaitStatus(c.SessionID, want)
		return c
	}
	dead := fail("dead", tiktoksim.Fault{Code: 40002, Message: said, Count: 1})
	fail("delivered", tiktoksim.Fault{Status: http.StatusServiceUnavailable, Body: said, Count: 2})
	fail("delivered", tiktoksim.Fault{Code: 40100, Message: said, Count: 1})
	fail("delivered", tiktoksim.Fault{Code: 40105, Message: said, Count: 1})
	fail("delivered", tiktoksim.Fault{Redirect: s.simURL + "/" + hiddenToken, Count: 1})
	fail("delivered", tiktoksim.Fault{Hang: true, Count: 1, For: 2 * time.Second})
	fail("delivered", tiktoksim.Fault{LyingLength: true, Body: said, Count: 1})
	test := stripegen.NewCheckout()
	email := hiddenEmail
	test.Email = &email
	sim.Inject(tiktoksim.Fault{Code: 40105, Message: hiddenTest + " " + hiddenEmail, Count: 1})
	s.send(test)
	s.awaitStatus(test.SessionID, "delivered")

	// Commands, rightly and wrongly used.
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
		w.saw("commands", out)
	}
	s.awaitStatus(dead.SessionID, "delivered")
	// Configurations that cannot be used. (What a plain setting was set to is the operator's own word, and repeated.)
	secrets := []string{
		"STRIPE_WEBHOOK_SECRET=" + hiddenToken, "DATABASE_URL=postgres://u:" + hiddenOwner + "@h:port/d", "MIGRATE_DATABASE_URL=postgres://u:" + hiddenOwner + "@h:port/d",
		"NATS_URL=http://u:" + ingestPassword + "@h", "ADMIN_TOKEN_FILE=/nowhere", "TIKTOK_PIXEL_ID=" + hiddenTest,
		"TIKTOK_ACCESS_TOKEN=" + hiddenToken, "TIKTOK_API_URL=http://u:" + hiddenOwner + "@h:port/", "ADMIN_ADDR=x",
	}
	for _, name := range []string{"ingest", "tiktok-worker"} {
		_, out := command(t, name, secrets)
		w.saw("commands", name+": "+out)
	}
	for _, url := range []string{"postgres://u:" + hiddenOwner + "@h:port/d", "postgres://u:" + hiddenOwner + "@127.0.0.1:1/d", "postgres://u:" + hiddenOwner + "%zz@h/d"} {
		_, out := command(t, "ingest", []string{"DATABASE_URL=" + url}, "migrate")
		w.saw("commands", out)
		_, out = command(t, "ingest", []string{"DATABASE_URL=" + s.runtime(), "MIGRATE_DATABASE_URL=" + url}, "migrate")
		w.saw("commands", out)
	}
	_, out := command(t, "tiktok-worker", []string{"TIKTOK_ACCESS_TOKEN=" + hiddenToken, "TIKTOK_PIXEL_ID=x", "TIKTOK_API_URL=http://u:" + hiddenOwner + "@127.0.0.1:1/"}, "send-test", "--code", "TEST1")
	w.saw("commands", out)

	// The API and the admin listener, rightly and wrongly asked.
	for _, token := range []string{hiddenAdmin, hiddenSecret, ""} {
		for _, ask := range []struct{ method, path string }{
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
			req, err := http.NewRequest(ask.method, s.admin+ask.path, http.NoBody)
			if err == nil && token != "" {
				req.Header.Set("Authorization", "Bearer "+token)
			}
			w.asked("the API's answers", req, err)
		}
	}
	// A stranger's password, a user without rights, a queue that restarts.
	for _, user := range []string{"worker:" + hiddenOwner, "ingest:" + ingestPassword} {
		p := start(t, "tiktok-worker", append([]string{"NATS_URL=nats://" + user + "@" + s.natsAddr, "TIKTOK_PIXEL_ID=x", "ADMIN_ADDR=" + freeAddr(t)}, forWorker...)...)
		programs = append(programs, p)
		s.await("the worker to be refused", func() bool {
			return strings.Contains(strings.Join(p.lines(), "\n"), `"NATS refuses `)
		})
		p.kill()
	}
	if err := s.nats.Stop(); err != nil {
		t.Fatal(err)
	}
	c := buyer()
	s.send(c)
	w.files("the queue's files", s.natsDir)
	s.startNATS()
	s.awaitStatus(c.SessionID, "delivered")
	// Postgres away, under webhooks, recorder, commands.
	if err := postgres.Stop(); err != nil {
		t.Fatal(err)
	}
	c = buyer()
	if answer := s.send(c); answer.Status != http.StatusServiceUnavailable {
		t.Errorf("Postgres away: %+v", answer)
	}
	for _, args := range [][]string{{"show", hiddenEmail}, {"replay", "--status", "dead", "--yes"}, {"migrate"}} {
		_, out := command(t, "ingest", []string{"DATABASE_URL=" + s.runtime()}, args...)
		w.saw("commands", out)
	}
	startPostgres(t, options)
	if _, err := s.sender.Deliver(t.Context(), c.Event(), 100, 50*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	s.awaitStatus(c.SessionID, "delivered")

	for _, p := range []string{s.admin + "/metrics", s.worker.admin + "/metrics", s.worker.admin + "/readyz"} {
		_, text := get(p)
		w.saw("metrics", text)
	}
	w.files("the queue's files", s.natsDir)
	for _, p := range programs {
		p.stop()
		w.saw("logs", strings.Join(p.lines(), "\n"))
	}
	w.search(dead)
}

// search fails where a needle stands in a place; and where a place does not hold what it must, because then it was not looked at.
func (w *witness) search(dead stripegen.Checkout) {
	w.t.Helper()
	for place, must := range map[string]string{
		"logs": dead.SessionID, "the queue's files": sha(strings.ToLower(hiddenEmail)), "metrics": `purchase_relay_dead_letters_total{reason="refused"} 1`,
		"commands": "1 made pending again", "the API's answers": `"delivered":`, "the webhook's answers": "invalid signature",
	} {
		if !strings.Contains(w.places[place], must) {
			w.t.Errorf("%s do not hold %q: was it looked at?", place, must)
		}
	}
	for place, text := range w.places {
		for _, needle := range []string{
			hiddenToken, hiddenTest, hiddenAdmin, hiddenSecret, hiddenSecond, hiddenEmail, hiddenPrefill, hiddenStrange, hiddenPhone, "555-0147", hiddenName,
			strings.ReplaceAll(hiddenName, " ", "-"), hiddenOwner, ingestPassword, workerPassword, rolePassword,
		} {
			if !holds(text, needle) {
				continue
			}
			anyCase, exact := spellings(needle)
			lower := strings.ToLower(text)
			for i, spelling := range append(anyCase, exact...) {
				at := strings.Index(text, spelling)
				if i < len(anyCase) {
					at = strings.Index(lower, strings.ToLower(spelling))
				}
				if at >= 0 {
					w.t.Errorf("%s stands in %s: …%q…", needle, place, text[max(0, min(at, len(text))-150):min(len(text), at+len(spelling)+80)])
					break
				}
			}
		}
	}
}

// strangeEvents are signed bodies that are no good events, with personal data where none belongs.
func strangeEvents() []string {
	event := func(change func(event, object map[string]any)) string {
		c := stripegen.NewCheckout().Live()
		email := hiddenEmail
		c.Email = &email
		var e map[string]any
		if err := json.Unmarshal(c.Event(), &e); err != nil {
			panic(err) // made by ourselves
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
		`"` + hiddenEmail + `"`, `{"id":"` + hiddenEmail + `"}`, `{"id":"` + hiddenEmail, "not JSON: " + hiddenEmail, `{"` + hiddenEmail + `":1}`,
		top("id", hiddenStrange), top("type", hiddenStrange), top("created", hiddenStrange), top("api_version", hiddenStrange), top("data", hiddenStrange), top("object", "v2."+hiddenStrange),
		event(func(e, _ map[string]any) { e["object"], e["type"] = "v2.core.event", hiddenStrange }),
		event(func(e, _ map[string]any) {
			e["type"], e["data"] = "checkout.session.completed", map[string]any{"object": hiddenStrange}
		}),
		set("id", hiddenStrange), set("mode", hiddenStrange), set("payment_status", hiddenStrange), set("currency", hiddenStrange), set("amount_total", hiddenStrange), set("metadata", hiddenStrange),
		set("customer", map[string]any{"id": hiddenStrange, "email": hiddenStrange}), set("customer", hiddenStrange), set("subscription", hiddenStrange), set("customer_email", hiddenStrange+" "+hiddenStrange),
		set("customer_details", map[string]any{"email": "<" + hiddenStrange, "phone": hiddenStrange, "name": hiddenStrange}),
		set("customer_details", map[string]any{"email": hiddenStrange + "\u0000"}), set("customer_details", []any{hiddenStrange}),
		set("customer_details", map[string]any{"email": `"` + hiddenName + `" <` + hiddenStrange + `>`}),
	}
}
