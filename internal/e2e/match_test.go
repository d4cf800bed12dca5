package e2e

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"purchase-relay/internal/testkit/stripegen"
	"purchase-relay/internal/testkit/tiktoksim"
)

// What a shop may find in its buyers' and its own metadata, by name.
func hostileValues() map[string]any {
	return map[string]any{
		"a list": []any{"a", "b"}, "a nested object": map[string]any{"a": map[string]any{"b": []any{map[string]any{}}}}, "a number": 7, "a bool": true, "false": false, "null": nil,
		"500 characters": strings.Repeat("a\"'<é", 100), "5,000 characters": strings.Repeat("x", 5000), "control characters": "a\x00\x1b[31m\r\nb", "markup": "<script>alert(1)</script>",
		"a format": "%s%n${jndi:x}", "nothing": "", "blanks": " \t ", "a surrogate": json.RawMessage(`"\ud800"`),
	}
}

// Every match key goes the whole way, each in TikTok's form; whatever stands in the metadata instead of one is dropped alone.
func TestMatchKeysGoAllTheWay(t *testing.T) {
	t.Parallel()
	s := newStack(t, "CHECKOUT_MODES=subscription,payment", "SKIP_EMAIL_DOMAINS=staff.example", "CONSENT_KEY=consent")
	full := func() stripegen.Checkout {
		c := stripegen.NewCheckout().Live()
		c.City, c.State, c.Zip, c.Name = "New York", "NY", "10001-1234", new("Grace Brewster Hopper")
		maps.Copy(c.Metadata, map[string]string{"content_id": "plan-7", "content_name": "Yearly plan", "quantity": "2", "limited_data_use": "true"})
		c.Locale = "pt-BR"
		maps.Copy(c.Metadata, map[string]string{"content_category": "Plans", "brand": "Example", "price": "14.50", "content_ids": "plan-7,plan-8"})
		return c
	}
	type sent struct {
		Limited    bool              `json:"limited_data_use"`
		User       map[string]string `json:"user"`
		Properties struct {
			Contents   []map[string]any `json:"contents"`
			ContentIDs []string         `json:"content_ids"`
			NumItems   int              `json:"num_items"`
		} `json:"properties"`
	}
	read := func(c stripegen.Checkout) (got sent) {
		t.Helper()
		s.awaitStatus(c.SessionID, "delivered")
		if err := json.Unmarshal(s.event(c.SessionID).Body, &got); err != nil {
			t.Fatal(err)
		}
		return got
	}
	c := full()
	s.send(c)
	got := read(c)
	want := map[string]string{
		"first_name": sha("grace"), "last_name": sha("brewster hopper"), "zip_code": sha("100011234"), "city": "newyork", "state": "ny", "country": "us",
		"email": sha(strings.ToLower(*c.Email)), "phone": sha(*c.Phone), "external_id": got.User["external_id"],
		"ttclid": c.Metadata["ttclid"], "ttp": c.Metadata["ttp"], "ip": "203.0.113.7", "user_agent": c.Metadata["user_agent"],
		"locale": "pt-BR",
	}
	const contents = "[map[brand:Example content_category:Plans content_id:plan-7 content_name:Yearly plan price:14.5 quantity:2]]"
	if fmt.Sprint(got.User) != fmt.Sprint(want) || !got.Limited || fmt.Sprint(got.Properties.Contents) != contents ||
		fmt.Sprint(got.Properties.ContentIDs) != "[plan-7 plan-8]" || got.Properties.NumItems != 2 {
		t.Errorf("TikTok has %+v\nwant %v", got, want)
	}
	whole := len(got.User)

	// Each hostile value under each key: the purchase is delivered, at most this key is lost.
	var hostile []stripegen.Checkout
	for name, value := range hostileValues() {
		for _, key := range []string{
			"ttclid", "ttp", "client_ip", "user_agent", "page_url", "referrer", "content_id", "content_name",
			"content_ids", "content_category", "brand", "price", "quantity", "ttclid_at", "limited_data_use",
		} {
			c := full()
			c.Odd = map[string]any{key: value}
			if answer := s.send(c); answer.Body != `{"status":"processed"}` {
				t.Errorf("%s as %s: %+v", name, key, answer)
			}
			hostile = append(hostile, c)
		}
	}
	// And all of them at once, in the buyer's own fields as well.
	c = full()
	c.Name, c.Phone, c.City, c.State, c.Zip, c.Country = new(strings.Repeat("%\x00", 300)), new("<phone>"), "12345", strings.Repeat("é", 500), "'; --", "Germany"
	c.Locale = "\x00"
	c.Odd = map[string]any{
		"ttclid": []any{}, "ttp": 7, "client_ip": map[string]any{}, "user_agent": true, "page_url": []any{}, "referrer": 1.5, "content_id": []any{}, "content_name": 0, "quantity": "many",
		"content_ids": 7, "content_category": "undefined", "brand": "__BRAND__", "price": "29,99",
	}
	s.send(c)
	s.await("all of them to be delivered", func() bool {
		return query[int](s, `SELECT count(*) FROM purchases WHERE status = 'delivered'`) == len(hostile)+2
	})
	for _, c := range hostile {
		if lost := whole - len(read(c).User); lost < 0 || lost > 1 {
			t.Errorf("%v: %d keys are lost", c.Odd, lost)
		}
	}
	got = read(c)
	if fmt.Sprint(got.User) != fmt.Sprint(map[string]string{"email": sha(strings.ToLower(*c.Email)), "external_id": got.User["external_id"]}) || got.Properties.Contents != nil {
		t.Errorf("of nothing but rubbish TikTok got %+v", got)
	}
	for _, series := range []string{
		`{key="ttclid",reason="wrong_type"}`, `{key="ttclid",reason="too_long"}`, `{key="user_agent",reason="invalid"}`, `{key="name",reason="too_long"}`, `{key="phone",reason="invalid"}`,
		`{key="city",reason="invalid"}`, `{key="state",reason="too_long"}`, `{key="zip_code",reason="invalid"}`, `{key="country",reason="invalid"}`, `{key="quantity",reason="invalid"}`,
		`{key="price",reason="invalid"}`, `{key="brand",reason="placeholder"}`, `{key="content_category",reason="placeholder"}`, `{key="content_ids",reason="wrong_type"}`,
	} {
		if n := s.ingestFigure("purchase_relay_match_keys_dropped_total" + series); n < 1 {
			t.Errorf("%s: %v", series, n)
		}
	}

	// A Payment Link carries the click id in its reference. The click was eight days ago: it is sent, and counted.
	c = full()
	c.Metadata = map[string]string{"ttclid_at": fmt.Sprint(c.Created.AddDate(0, 0, -8).Unix()), "page_url": "https://shop.example/"}
	c.Reference = "ttclid-E_dC_dP_dabc__1"
	before := s.ingestFigure("purchase_relay_late_click_ids_total")
	s.send(c)
	if got := read(c).User["ttclid"]; got != "E.C.P.abc_1" {
		t.Errorf("the reference's click id is %q", got)
	}
	if n := s.ingestFigure("purchase_relay_late_click_ids_total"); before != 0 || n != 1 {
		t.Errorf("late click ids: %v, then %v", before, n)
	}

	// With CONSENT_KEY alone only a no is a no: all those above said nothing.
	c = full()
	c.Metadata["consent"] = "No"
	s.send(c)
	if r := s.purchase(c.SessionID); r.Status != "skipped" || r.Reason != "no_consent" {
		t.Errorf("after a no: %+v", r)
	}

	// The merchant's own staff has access and is no sale.
	c = full()
	c.Email = new("Tester@Mail.Staff.Example")
	if answer := s.send(c); answer.Body != `{"status":"processed"}` {
		t.Errorf("staff: %+v", answer)
	}
	if r := s.purchase(c.SessionID); r.Status != "skipped" || r.Reason != "internal" {
		t.Errorf("staff: %+v", r)
	}
	if code, out := s.command("replay", "--session", c.SessionID, "--yes"); code == 0 {
		t.Errorf("staff was replayed: %s", out)
	}
	if n := query[int](s, `SELECT count(*) FROM profiles WHERE email = 'tester@mail.staff.example'`); n != 1 {
		t.Errorf("staff has %d profiles", n)
	}

	// The overview tells coverage by the day, and of a share that fell against the week before.
	if _, page := get(s.admin + "/"); strings.Contains(page, "data-fall") || !strings.Contains(page, `<th scope="row">`+time.Now().UTC().Format("2006-01-02")+`</th>`) {
		t.Errorf("the overview: %s", page)
	}
	s.exec(`INSERT INTO purchases (checkout_session_id, status, mode, livemode, purchased_at, match_keys)
		SELECT 'cs_old_' || i, 'delivered', 'subscription', true, now() - interval '9 days', 1 | 4 FROM generate_series(1, 100) i
		UNION ALL SELECT 'cs_new_' || i, 'delivered', 'subscription', true, now(), 1 FROM generate_series(1, 1000) i`)
	if _, page := get(s.admin + "/"); !strings.Contains(page, `data-fall="ttclid"`) || strings.Contains(page, `data-fall="E-mail"`) {
		t.Errorf("the overview does not warn of the click ids alone: %s", page)
	}
}

// The same address in another spelling is the same customer, wherever it is read or searched.
func TestEmail_SpellingsAreOneCustomer(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	spellings := []string{"r\u00e9mi..x@example.com", "\u200bRE\u0301MI..x@example.com ", "re\u0301mi..x\uff20exam\u00adple.com"}
	var ids []string
	for _, spelling := range spellings {
		c := stripegen.NewCheckout().Live()
		c.Email = new(spelling)
		if answer := s.send(c); answer.Body != `{"status":"processed"}` {
			t.Errorf("%q is answered %+v", spelling, answer)
		}
		s.awaitStatus(c.SessionID, "delivered")
		if got, want := bodyOf(t, s.event(c.SessionID)).User["email"], sha(spellings[0]); got != want {
			t.Errorf("%q is sent as %s, want %s", spelling, got, want)
		}
		ids = append(ids, c.SessionID)
	}
	if n := query[int](s, `SELECT count(*) FROM profiles WHERE email LIKE '%example.com'`); n != 1 {
		t.Errorf("%d profiles, want 1", n)
	}
	for _, spelling := range spellings {
		_, shown := s.command("show", spelling)
		_, found := get(s.admin + "/api/v1/purchases?q=" + url.QueryEscape(spelling))
		for _, id := range ids {
			if !strings.Contains(shown, id) || !strings.Contains(found, id) {
				t.Errorf("show or search of %q does not find %s:\n%s\n%s", spelling, id, shown, found)
			}
		}
	}
}

// A purchase without consent gives access, stands on the ledger as skipped, and leaves no match key anywhere, hashed or not; nothing
// that an operator can do sends it.
func TestWithoutConsentNothingIsKept(t *testing.T) {
	t.Parallel()
	s := newStack(t, "CONSENT_KEY=cookie_consent", "CONSENT_REQUIRED=true", "TRIAL_EVENT_NAME=StartTrial", "FIRST_PAYMENT=true")
	s.worker.stop() // what is sent stays in the queue, to be found
	given := stripegen.NewCheckout().Live()
	given.Metadata["cookie_consent"] = "yes"
	s.send(given)
	s.awaitStatus(given.SessionID, "published")

	answers := hostileValues()
	for _, no := range []string{"no", "false", "0", "denied", "perhaps", "yes or no", "ja"} {
		answers[no] = no
	}
	delete(answers, "a bool") // Stripe sends texts; a bare true is none, and among the others below
	var refused []stripegen.Checkout
	for _, value := range append(slices.Collect(maps.Values(answers)), true, []any{"yes"}, map[string]any{"yes": "yes"}) {
		c := stripegen.NewCheckout().Live()
		c.Odd, c.Zip, c.City = map[string]any{"cookie_consent": value}, "zip"+stripegen.ID("", 8), "Consentless"
		c.Phone = new(fmt.Sprintf("+1415555%04d", len(refused)))
		refused = append(refused, c)
	}
	nothing := stripegen.NewCheckout().Live() // says nothing at all
	trial := stripegen.NewCheckout().Live().Trial()
	trial.Metadata["cookie_consent"] = "no"
	trial.Created = trial.Created.AddDate(0, 0, -20)
	nothing.Phone, trial.Phone = new("+14155559998"), new("+14155559999")
	refused = append(refused, nothing, trial)
	for _, c := range refused {
		if answer := s.send(c); answer.Body != `{"status":"processed"}` {
			t.Errorf("%v: %+v", c.Odd, answer)
		}
		if r := s.purchase(c.SessionID); r.Status != "skipped" || r.Reason != "no_consent" {
			t.Errorf("consent %v: %+v", c.Odd, r)
		}
	}
	invoice := trial.Invoices(7*24*time.Hour, 30*24*time.Hour, 2)[1]
	if answer, err := s.sender.Send(t.Context(), invoice.Event()); err != nil || answer.Body != `{"status":"processed"}` {
		t.Errorf("the first payment: %+v, %v", answer, err)
	}
	if r := s.purchase(invoice.InvoiceID); r.Status != "skipped" || r.Reason != "no_consent" {
		t.Errorf("the first payment: %+v", r)
	}

	places := map[string]string{"the ledger": s.everything(), "the queue's files": contents(t, s.natsDir), "ingest's log": strings.Join(s.ingest.lines(), "\n")}
	for place, hash := range map[string]bool{"the ledger": true, "the queue's files": true} {
		if found := strings.Contains(places[place], sha(strings.ToLower(*given.Email))); found != hash {
			t.Fatalf("%s do not hold what was consented to: were they looked at?", place)
		}
	}
	for _, c := range refused {
		for _, key := range []string{
			sha(strings.ToLower(*c.Email)), sha(*c.Phone), c.Metadata["ttclid"], c.Metadata["ttp"], sha(strings.ToLower(c.Zip)), "consentless",
		} {
			for place, text := range places {
				if strings.Contains(text, key) {
					t.Errorf("%v: %s stands in %s", c.Odd, key, place)
				}
			}
		}
		if strings.Contains(places["the queue's files"], c.SessionID) {
			t.Errorf("%s came into the queue", c.SessionID)
		}
	}
	if n := query[int](s, `SELECT count(*) FROM purchases WHERE reason = 'no_consent' AND (envelope IS NOT NULL OR match_keys IS NOT NULL OR profile_id IS NULL)`); n != 0 {
		t.Errorf("%d rows hold match keys, or gave no access", n)
	}

	// Nothing sends them: neither by their ids, nor all at once, nor the API, nor a worker that comes back.
	for _, id := range []string{refused[0].SessionID, trial.SessionID, invoice.InvoiceID} {
		if code, out := s.command("replay", "--session", id, "--yes"); code == 0 {
			t.Errorf("%s was replayed: %s", id, out)
		}
	}
	if code, out := s.command("replay", "--status", "skipped", "--yes"); code != 0 {
		t.Errorf("replay of what is skipped: %d %s", code, out)
	}
	s.startWorker()
	s.awaitStatus(given.SessionID, "delivered")
	if list := s.sim.Received(); len(list) != 1 {
		t.Errorf("TikTok has %d events", len(list))
	}
	if n := query[int](s, `SELECT count(*) FROM purchases WHERE reason = 'no_consent'`); n != len(refused)+1 {
		t.Errorf("%d without consent, want %d", n, len(refused)+1)
	}
}

// everything is the whole ledger as text: what it holds as bytes is told as text, too.
func (s *stack) everything() string {
	s.t.Helper()
	var all strings.Builder
	for table := range strings.FieldsSeq(query[string](s, `SELECT string_agg(tablename, ' ') FROM pg_tables WHERE schemaname = 'public'`)) {
		text := query[string](s, `SELECT COALESCE(string_agg(r::text, E'\n'), '') FROM public.`+table+` r`)
		all.WriteString(text)
		for _, word := range strings.Split(text, `\x`)[1:] {
			end := strings.IndexFunc(word, func(r rune) bool { return !strings.ContainsRune("0123456789abcdef", r) })
			if plain, err := hex.DecodeString(word[:max(end, 0)]); err == nil {
				all.Write(plain)
			}
		}
	}
	return all.String()
}

// contents are those of all files below a folder.
func contents(t *testing.T, dir string) string {
	t.Helper()
	var all strings.Builder
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		all.Write(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}

// A trial is told as what it is, and the first payment after it as the purchase, with the trial's match keys; both lead to each other.
func TestTrialBecomesAPurchase(t *testing.T) {
	t.Parallel()
	s := newStack(t, "TRIAL_EVENT_NAME=StartTrial", "FIRST_PAYMENT=true")
	c := stripegen.NewCheckout().Live().Trial()
	c.Created = c.Created.AddDate(0, 0, -20)
	c.Metadata["limited_data_use"], c.Metadata["content_id"] = "true", "plan-7"
	invoices := c.Invoices(8*24*time.Hour, 5*24*time.Hour, 3)
	say := func(body []byte, want string) {
		t.Helper()
		if answer, err := s.sender.Send(t.Context(), body); err != nil || answer.Body != `{"status":"`+want+`"}` {
			t.Errorf("answered %+v, %v, want %s", answer, err, want)
		}
	}
	say(c.Event(), "processed")
	s.awaitStatus(c.SessionID, "delivered")
	say(invoices[0].Event(), "ignored") // of nothing, at the trial's beginning
	say(invoices[2].Event(), "held")    // a renewal that is quicker than the first payment
	say(invoices[1].Event(), "processed")
	say(invoices[1].Event(), "duplicate")
	say(invoices[2].Event(), "duplicate")
	first := invoices[1].InvoiceID
	s.awaitStatus(first, "delivered")

	events := map[string]tiktoksim.Event{}
	for _, e := range s.sim.Received() {
		events[e.Event] = e
	}
	trial, paid := bodyOf(t, events["StartTrial"]), bodyOf(t, events["CompletePayment"])
	if len(events) != 2 || len(s.sim.Received()) != 2 || events["StartTrial"].EventID != c.SessionID || events["CompletePayment"].EventID != first {
		t.Fatalf("TikTok has %v", events)
	}
	if paid.Properties.Value.String() != "29.99" || paid.EventTime != invoices[1].Created.Unix() || fmt.Sprint(paid.User) != fmt.Sprint(trial.User) || trial.User["email"] != sha(strings.ToLower(*c.Email)) {
		t.Errorf("the trial: %+v\nthe purchase: %+v", trial, paid)
	}
	for name, e := range events {
		if !strings.Contains(string(e.Body), `"limited_data_use":true`) || !strings.Contains(string(e.Body), "plan-7") {
			t.Errorf("%s lost something: %s", name, e.Body)
		}
	}
	if n := s.ingestFigure("purchase_relay_late_click_ids_total"); n != 1 { // the trial's is fresh, the purchase comes eight days later
		t.Errorf("late click ids: %v", n)
	}
	// Both ends, on the pages and in the API; a trial is no sale.
	for path, parts := range map[string][]string{
		"/purchases/" + c.SessionID: {"/purchases/" + first, "First payment recorded"}, "/purchases/" + first: {"/purchases/" + c.SessionID, "First payment after the trial"},
		"/api/v1/purchases/" + first:      {`"kind":"first_payment","trial_session_id":"` + c.SessionID + `"`},
		"/api/v1/summary?range=30d":       {`"value":[{"currency":"USD","paid_minor":2999,"accepted_minor":2999}]`},
		"/purchases.csv?q=" + c.SessionID: {"trial,"},
		"/purchases?q=" + c.Customer:      {c.SessionID, first},
	} {
		_, page := get(s.admin + path)
		for _, part := range parts {
			if !strings.Contains(page, part) {
				t.Errorf("%s lacks %q:\n%s", path, part, page)
			}
		}
	}
}

// A thousand trials, some of which become paying customers, among subscriptions without a trial; all events in random order, each
// one to three times: exactly one purchase for each that converted, under its first invoice, none for the others, and no renewal.
func TestThousandTrials(t *testing.T) {
	t.Parallel()
	s := newStack(t, "FIRST_PAYMENT=true", "CHECKOUT_MODES=subscription", "LOG_LEVEL=warn")
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	const day = 24 * time.Hour
	want := map[string]string{} // the sale's event_id, and the e-mail address that it bears
	var bodies [][]byte
	tell := func(body []byte) {
		for range 1 + random.IntN(3) {
			bodies = append(bodies, body)
		}
	}
	for i := range dose(100, 1000) {
		c := stripegen.NewCheckout().Live().Trial()
		c.Created = c.Created.Add(-time.Duration(200+random.IntN(100)) * day)
		if i%2 == 1 {
			c.APIVersion = "2023-10-16" // names the subscription in another place
		}
		tell(c.Event())
		invoices := c.Invoices(time.Duration(1+random.IntN(30))*day, time.Duration(1+random.IntN(30))*day, 1+random.IntN(5))
		for _, invoice := range invoices {
			tell(invoice.Event())
		}
		if len(invoices) > 1 {
			want[invoices[1].InvoiceID] = sha(strings.ToLower(*c.Email))
		}
	}
	for range dose(20, 50) { // no trial: the checkout is the sale, and every invoice a renewal, whichever came first
		c := stripegen.NewCheckout().Live()
		c.Created = c.Created.Add(-100 * day)
		tell(c.Event())
		want[c.SessionID] = sha(strings.ToLower(*c.Email))
		for i, invoice := range c.Invoices(30*day, 30*day, 3) {
			if i == 0 {
				invoice.AmountPaid = 2999
			}
			tell(invoice.Event())
		}
	}
	random.Shuffle(len(bodies), func(i, j int) { bodies[i], bodies[j] = bodies[j], bodies[i] })
	arrivals := make([]stripegen.Arrival, len(bodies))
	for i, body := range bodies {
		arrivals[i] = stripegen.Arrival{Body: body}
	}
	began, answers := time.Now(), map[string]int{}
	err := s.sender.Play(t.Context(), slices.Values(arrivals), stripegen.Pace{Concurrency: 16, Attempts: 50, Wait: 20 * time.Millisecond},
		func(_ stripegen.Arrival, a stripegen.Answer) { answers[a.Body]++ })
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d events in %s: %v", len(bodies), time.Since(began).Round(time.Millisecond), answers)
	s.await("every sale to be delivered", func() bool {
		return query[int](s, `SELECT count(*) FROM purchases WHERE status = 'delivered'`) >= len(want)
	})
	s.await("nothing more to be on its way", func() bool {
		return query[int](s, `SELECT count(*) FROM purchases WHERE status IN ('pending', 'published', 'retrying')`) == 0
	})
	for _, e := range s.sim.Received() {
		email, sold := want[e.EventID]
		if b := bodyOf(t, e); !sold || e.Copies != 1 || e.Event != "CompletePayment" || b.User["email"] != email || b.Properties.Value.String() != "29.99" {
			t.Errorf("TikTok has %d of %s (sold: %v): %s", e.Copies, e.EventID, sold, e.Body)
		}
		delete(want, e.EventID)
	}
	if len(want) > 0 {
		t.Errorf("%d sales did not reach TikTok", len(want))
	}
	if n := query[int](s, `SELECT count(*) FROM trials WHERE envelope IS NOT NULL AND purchase_id IS NOT NULL`); n != 0 {
		t.Errorf("%d trials keep match keys that nothing waits for", n)
	}
}
