package e2e

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"purchase-relay/internal/testkit/stripegen"
	"purchase-relay/internal/testkit/tiktoksim"
)

// hostileValues returns values that are no match key, by name.
func hostileValues() map[string]any {
	return map[string]any{
		"list": []any{"a", "b"}, "object": map[string]any{"a": map[string]any{"b": []any{map[string]any{}}}},
		"number": 7, "true": true, "false": false, "null": nil, "empty": "", "blanks": " \t ",
		"500 characters": strings.Repeat("a\"'<é", 100), "5,000 characters": strings.Repeat("x", 5000),
		"control characters": "a\x00\x1b[31m\r\nb", "markup": "<script>alert(1)</script>",
		"format": "%s%n${jndi:x}", "surrogate": json.RawMessage(`"\ud800"`),
	}
}

// Every match key reaches TikTok in TikTok's form. An invalid value is dropped without the others.
func TestMatchKeys_ReachTikTok(t *testing.T) {
	t.Parallel()
	s := newStack(t, "CHECKOUT_MODES=subscription,payment", "SKIP_EMAIL_DOMAINS=staff.example",
		"CONSENT_KEY=consent")
	full := func() stripegen.Checkout {
		c := stripegen.NewCheckout().Live()
		c.City, c.State, c.Zip, c.Name = "New York", "NY", "10001-1234", new("Grace Brewster Hopper")
		c.Locale = "pt-BR"
		maps.Copy(c.Metadata, map[string]string{
			"content_id": "plan-7", "content_name": "Yearly plan", "content_ids": "plan-7,plan-8", "quantity": "2",
			"content_category": "Plans", "brand": "Example", "price": "14.50", "limited_data_use": "true",
		})
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
	want := sent{Limited: true, User: map[string]string{
		"first_name": sha("grace"), "last_name": sha("brewster hopper"), "zip_code": sha("100011234"),
		"city": "newyork", "state": "ny", "country": "us", "locale": "pt-BR",
		"email": sha(strings.ToLower(*c.Email)), "phone": sha(*c.Phone), "external_id": got.User["external_id"],
		"ttclid": c.Metadata["ttclid"], "ttp": c.Metadata["ttp"], "ip": "203.0.113.7",
		"user_agent": c.Metadata["user_agent"],
	}}
	want.Properties.Contents = []map[string]any{{
		"content_id": "plan-7", "content_name": "Yearly plan", "content_category": "Plans", "brand": "Example",
		"price": 14.5, "quantity": 2.0,
	}}
	want.Properties.ContentIDs, want.Properties.NumItems = []string{"plan-7", "plan-8"}, 2
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("event (-want +got):\n%s", diff)
	}
	allKeys := len(got.User)

	// Each hostile value under each key: the purchase is delivered without at most that key.
	var hostile []stripegen.Checkout
	for name, value := range hostileValues() {
		for _, key := range []string{
			"ttclid", "ttp", "client_ip", "user_agent", "page_url", "referrer", "content_id", "content_name",
			"content_ids", "content_category", "brand", "price", "quantity", "ttclid_at", "limited_data_use",
		} {
			c := full()
			c.Odd = map[string]any{key: value}
			if !s.post(c.Event(), http.StatusOK, `{"status":"processed"}`) {
				t.Errorf("%s as %s: not processed", name, key)
			}
			hostile = append(hostile, c)
		}
	}
	// All keys are hostile, and the buyer's fields.
	c = full()
	c.Name, c.Phone, c.City = new(strings.Repeat("%\x00", 300)), new("<phone>"), "12345"
	c.State, c.Zip, c.Country, c.Locale = strings.Repeat("é", 500), "'; --", "Germany", "\x00"
	c.Odd = map[string]any{
		"ttclid": []any{}, "ttp": 7, "client_ip": map[string]any{}, "user_agent": true, "page_url": []any{},
		"referrer": 1.5, "content_id": []any{}, "content_name": 0, "content_ids": 7, "quantity": "many",
		"content_category": "undefined", "brand": "__BRAND__", "price": "29,99",
	}
	s.send(c)
	s.awaitCount("delivered", len(hostile)+2)
	for _, c := range hostile {
		if lost := allKeys - len(read(c).User); lost < 0 || lost > 1 {
			t.Errorf("%v: %d match keys are lost, want at most 1", c.Odd, lost)
		}
	}
	got = read(c)
	user := map[string]string{"email": sha(strings.ToLower(*c.Email)), "external_id": got.User["external_id"]}
	if diff := cmp.Diff(user, got.User); diff != "" || got.Properties.Contents != nil {
		t.Errorf("user (-want +got):\n%s\ncontents = %v, want none", diff, got.Properties.Contents)
	}
	for _, drop := range []string{
		"ttclid wrong_type", "ttclid too_long", "user_agent invalid", "name too_long", "phone invalid",
		"city invalid", "state too_long", "zip_code invalid", "country invalid", "quantity invalid",
		"price invalid", "brand placeholder", "content_category placeholder", "content_ids wrong_type",
	} {
		key, reason, _ := strings.Cut(drop, " ")
		series := fmt.Sprintf("purchase_relay_match_keys_dropped_total{key=%q,reason=%q}", key, reason)
		if n := s.metric(s.admin, series); n < 1 && s.repeats.Load() == 0 { // a duplicate is not counted
			t.Errorf("%s = %v, want at least 1", series, n)
		}
	}

	// A Payment Link has the click id in its reference. A click of eight days ago is sent and counted as late.
	c = full()
	c.Metadata = map[string]string{
		"ttclid_at": fmt.Sprint(c.Created.AddDate(0, 0, -8).Unix()), "page_url": "https://shop.example/",
	}
	c.Reference = "ttclid-E_dC_dP_dabc__1"
	before, repeats := s.metric(s.admin, "purchase_relay_late_click_ids_total"), s.repeats.Load()
	s.send(c)
	if got := read(c).User["ttclid"]; got != "E.C.P.abc_1" {
		t.Errorf("click id = %q, want the reference's E.C.P.abc_1", got)
	}
	n := s.metric(s.admin, "purchase_relay_late_click_ids_total")
	if before != 0 || n != 1 && s.repeats.Load() == repeats {
		t.Errorf("late click ids = %v, then %v, want 0, then 1", before, n)
	}

	// With CONSENT_KEY alone a purchase without an answer is sent, as those above. Only a no skips it.
	c = full()
	c.Metadata["consent"] = "No"
	s.send(c)
	s.checkPurchase(c.SessionID, "skipped", "no_consent")

	// A purchase of the merchant's staff gives access and is never sent.
	c = full()
	c.Email = new("Tester@Mail.Staff.Example")
	s.post(c.Event(), http.StatusOK, `"processed"`)
	s.checkPurchase(c.SessionID, "skipped", "internal")
	if code, out := s.command("replay", "--session", c.SessionID, "--yes"); code == 0 {
		t.Errorf("replay of staff: exit code 0, want a failure: %s", out)
	}
	if n := s.rows(`profiles WHERE email = 'tester@mail.staff.example'`); n != 1 {
		t.Errorf("profiles of staff = %d, want 1", n)
	}

	// The overview shows coverage by day, and warns of a share that fell against the week before.
	today := `<th scope="row">` + time.Now().UTC().Format("2006-01-02") + `</th>`
	_, page := httpGet(s.admin + "/?mode=all")
	if strings.Contains(page, "data-fall") || !strings.Contains(page, today) {
		t.Errorf("the overview warns, or lacks today: %s", page)
	}
	s.exec(`INSERT INTO purchases (checkout_session_id, status, mode, livemode, purchased_at, match_keys)
		SELECT 'cs_old_' || i, 'delivered', 'subscription', true, now() - interval '9 days', 1 | 4
		FROM generate_series(1, 100) i
		UNION ALL SELECT 'cs_new_' || i, 'delivered', 'subscription', true, now(), 1
		FROM generate_series(1, 1000) i`)
	_, page = httpGet(s.admin + "/?mode=all")
	if !strings.Contains(page, `data-fall="ttclid"`) || strings.Contains(page, `data-fall="E-mail"`) {
		t.Errorf("the overview does not warn of click ids alone: %s", page)
	}
}

// The same address in another spelling is the same customer, when recorded and when searched.
func TestEmail_SpellingsAreOneCustomer(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	spellings := []string{
		"r\u00e9mi..x@example.com", "\u200bRE\u0301MI..x@example.com ", "re\u0301mi..x\uff20exam\u00adple.com",
	}
	var ids []string
	for _, spelling := range spellings {
		c := stripegen.NewCheckout().Live()
		c.Email = new(spelling)
		s.post(c.Event(), http.StatusOK, `"processed"`)
		s.awaitStatus(c.SessionID, "delivered")
		if got, want := bodyOf(t, s.event(c.SessionID)).User["email"], sha(spellings[0]); got != want {
			t.Errorf("%q is sent as %s, want %s", spelling, got, want)
		}
		ids = append(ids, c.SessionID)
	}
	if n := s.rows(`profiles WHERE email LIKE '%example.com'`); n != 1 {
		t.Errorf("%d profiles, want 1", n)
	}
	for _, spelling := range spellings {
		_, shown := s.command("show", spelling)
		_, found := httpGet(s.admin + "/api/v1/purchases?q=" + url.QueryEscape(spelling))
		for _, id := range ids {
			if !strings.Contains(shown, id) || !strings.Contains(found, id) {
				t.Errorf("show or search of %q does not find %s:\n%s\n%s", spelling, id, shown, found)
			}
		}
	}
}

// A purchase without consent gives access and is skipped. No match key of it is stored, hashed or not, and no
// operator can send it.
func TestConsent_WithoutItNothingIsStored(t *testing.T) {
	t.Parallel()
	s := newStack(t, "CONSENT_KEY=cookie_consent", "CONSENT_REQUIRED=true", "TRIAL_EVENT_NAME=StartTrial",
		"FIRST_PAYMENT=true")
	s.worker.stop() // published purchases stay in the queue's files
	given := stripegen.NewCheckout().Live()
	given.Metadata["cookie_consent"] = "yes"
	s.send(given)
	s.awaitStatus(given.SessionID, "published")
	hash := sha(strings.ToLower(*given.Email))
	s.await("the purchase in the queue's files", func() bool {
		return strings.Contains(contents(t, s.natsDir), hash)
	})

	answers := hostileValues()
	for _, no := range []string{"no", "false", "0", "denied", "perhaps", "yes or no", "ja"} {
		answers[no] = no
	}
	answers["list with yes"], answers["object with yes"] = []any{"yes"}, map[string]any{"yes": "yes"}
	var refused []stripegen.Checkout
	for _, value := range answers {
		c := stripegen.NewCheckout().Live()
		c.Odd, c.Zip, c.City = map[string]any{"cookie_consent": value}, "zip"+stripegen.ID("", 8), "Consentless"
		c.Phone = new(fmt.Sprintf("+1415555%04d", len(refused)))
		refused = append(refused, c)
	}
	unanswered := stripegen.NewCheckout().Live()
	trial := stripegen.NewCheckout().Live().Trial()
	trial.Metadata["cookie_consent"] = "no"
	trial.Created = trial.Created.AddDate(0, 0, -20)
	unanswered.Phone, trial.Phone = new("+14155559998"), new("+14155559999")
	refused = append(refused, unanswered, trial)
	for _, c := range refused {
		s.post(c.Event(), http.StatusOK, `"processed"`)
		s.checkPurchase(c.SessionID, "skipped", "no_consent")
	}
	firstPayment := trial.Invoices(7*24*time.Hour, 30*24*time.Hour, 2)[1]
	s.post(firstPayment.Event(), http.StatusOK, `"processed"`)
	s.checkPurchase(firstPayment.InvoiceID, "skipped", "no_consent")

	places := map[string]string{
		"the ledger": s.everything(), "the queue's files": contents(t, s.natsDir), "ingest's log": s.ingest.log(),
	}
	for _, place := range []string{"the ledger", "the queue's files"} {
		if !strings.Contains(places[place], hash) {
			t.Fatalf("%s: the address with consent is missing, so the search proves nothing", place)
		}
	}
	for _, c := range refused {
		for _, key := range []string{
			sha(strings.ToLower(*c.Email)), sha(*c.Phone), c.Metadata["ttclid"], c.Metadata["ttp"],
			sha(strings.ToLower(c.Zip)), "consentless", c.SessionID,
		} {
			for place, text := range places {
				if strings.Contains(text, key) && (key != c.SessionID || place == "the queue's files") {
					t.Errorf("consent %v: %s is in %s", c.Odd, key, place)
				}
			}
		}
	}
	const noAccess = `purchases WHERE reason = 'no_consent'
		AND (envelope IS NOT NULL OR match_keys IS NOT NULL OR profile_id IS NULL)`
	if n := s.rows(noAccess); n != 0 {
		t.Errorf("%d purchases have match keys or no profile, want none", n)
	}

	// Neither a replay by id, nor a replay of all, nor a new worker sends them.
	for _, id := range []string{refused[0].SessionID, trial.SessionID, firstPayment.InvoiceID} {
		if code, out := s.command("replay", "--session", id, "--yes"); code == 0 {
			t.Errorf("replay of %s: exit code 0, want a failure: %s", id, out)
		}
	}
	if code, out := s.command("replay", "--status", "skipped", "--yes"); code != 0 {
		t.Errorf("replay of all skipped: exit code %d, want 0: %s", code, out)
	}
	s.startWorker()
	s.checkOnlyDelivered(given.SessionID)
	if n := s.rows(`purchases WHERE reason = 'no_consent'`); n != len(refused)+1 {
		t.Errorf("purchases without consent = %d, want %d", n, len(refused)+1)
	}
}

// everything returns the whole ledger as text, bytea also decoded.
func (s *stack) everything() string {
	s.t.Helper()
	var all strings.Builder
	const names = `SELECT string_agg(tablename, ' ') FROM pg_tables WHERE schemaname = 'public'`
	for table := range strings.FieldsSeq(query[string](s, names)) {
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

// contents returns all files below a folder. A running server may remove some meanwhile.
func contents(t *testing.T, dir string) string {
	t.Helper()
	var all strings.Builder
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			var data []byte
			data, err = os.ReadFile(path)
			all.Write(data)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}

// A trial is sent under its own name, and its first payment as the purchase with the trial's match keys. Each
// page links to the other.
func TestTrial_FirstPaymentIsPurchase(t *testing.T) {
	t.Parallel()
	s := newStack(t, "TRIAL_EVENT_NAME=StartTrial", "FIRST_PAYMENT=true")
	c := stripegen.NewCheckout().Live().Trial()
	c.Created = c.Created.AddDate(0, 0, -20)
	c.Metadata["limited_data_use"], c.Metadata["content_id"] = "true", "plan-7"
	invoices := c.Invoices(8*24*time.Hour, 5*24*time.Hour, 3)
	s.post(c.Event(), http.StatusOK, `"processed"`)
	s.awaitStatus(c.SessionID, "delivered")
	s.post(invoices[0].Event(), http.StatusOK, `"ignored"`) // the trial's invoice over 0
	s.post(invoices[2].Event(), http.StatusOK, `"held"`)    // a renewal before the first payment
	s.post(invoices[1].Event(), http.StatusOK, `"processed"`)
	s.post(invoices[1].Event(), http.StatusOK, `"duplicate"`)
	s.post(invoices[2].Event(), http.StatusOK, `"duplicate"`)
	first := invoices[1].InvoiceID
	s.checkOnlyDelivered(c.SessionID, first)

	trialEvent, paidEvent := s.event(c.SessionID), s.event(first)
	trial, paid := bodyOf(t, trialEvent), bodyOf(t, paidEvent)
	if trial.Event != "StartTrial" || paid.Event != "CompletePayment" {
		t.Errorf("events = %s, %s, want StartTrial, CompletePayment", trial.Event, paid.Event)
	}
	if paid.Properties.Value.String() != "29.99" || paid.EventTime != invoices[1].Created.Unix() {
		t.Errorf("purchase = %+v, want 29.99 at the invoice's time", paid)
	}
	if trial.User["email"] != sha(strings.ToLower(*c.Email)) {
		t.Errorf("the trial's email = %s, want the hash of %s", trial.User["email"], *c.Email)
	}
	if diff := cmp.Diff(trial.User, paid.User); diff != "" {
		t.Errorf("match keys (-trial +purchase):\n%s", diff)
	}
	for _, e := range []tiktoksim.Event{trialEvent, paidEvent} {
		text := string(e.Body)
		if !strings.Contains(text, `"limited_data_use":true`) || !strings.Contains(text, "plan-7") {
			t.Errorf("%s lacks limited_data_use or the content id: %s", e.Event, text)
		}
	}
	// The click is recent for the trial and eight days old for the purchase.
	if n := s.metric(s.admin, "purchase_relay_late_click_ids_total"); n != 1 && s.repeats.Load() == 0 {
		t.Errorf("late click ids = %v, want 1", n)
	}
	// A trial is no sale in the figures.
	for path, parts := range map[string][]string{
		"/purchases/" + c.SessionID:       {"/purchases/" + first, "First payment recorded"},
		"/purchases/" + first:             {"/purchases/" + c.SessionID, "First payment after the trial"},
		"/api/v1/purchases/" + first:      {`"kind":"first_payment","trial_session_id":"` + c.SessionID + `"`},
		"/api/v1/summary?range=30d":       {`"value":[{"currency":"USD","paid_minor":2999,"accepted_minor":2999}]`},
		"/purchases.csv?q=" + c.SessionID: {"trial,"},
		"/purchases?q=" + c.Customer:      {c.SessionID, first},
	} {
		_, page := httpGet(s.admin + path)
		for _, part := range parts {
			if !strings.Contains(page, part) {
				t.Errorf("%s lacks %q:\n%s", path, part, page)
			}
		}
	}
}

// Trials, some of which convert, and subscriptions without a trial, with all events in random order and up to
// three times: each conversion is one purchase under its first invoice, and no renewal is one.
func TestTrial_RandomOrder(t *testing.T) {
	t.Parallel()
	s := newStack(t, "FIRST_PAYMENT=true", "CHECKOUT_MODES=subscription", "LOG_LEVEL=warn")
	random := newRandom(t)
	const day = 24 * time.Hour
	want := map[string]string{} // hash of the e-mail address by event_id
	var bodies [][]byte
	add := func(body []byte) {
		for range 1 + random.IntN(3) {
			bodies = append(bodies, body)
		}
	}
	for i := range scale(40, 1000) {
		c := stripegen.NewCheckout().Live().Trial()
		c.Created = c.Created.Add(-time.Duration(200+random.IntN(100)) * day)
		if i%2 == 1 {
			c.APIVersion = "2023-10-16" // its invoices have the subscription in another field
		}
		add(c.Event())
		days := func() time.Duration { return time.Duration(1+random.IntN(30)) * day }
		invoices := c.Invoices(days(), days(), 1+random.IntN(5))
		for _, invoice := range invoices {
			add(invoice.Event())
		}
		if len(invoices) > 1 {
			want[invoices[1].InvoiceID] = sha(strings.ToLower(*c.Email))
		}
	}
	for range scale(10, 50) { // without a trial the checkout is the sale, and every invoice a renewal
		c := stripegen.NewCheckout().Live()
		c.Created = c.Created.Add(-100 * day)
		add(c.Event())
		want[c.SessionID] = sha(strings.ToLower(*c.Email))
		for i, invoice := range c.Invoices(30*day, 30*day, 3) {
			if i == 0 {
				invoice.AmountPaid = 2999
			}
			add(invoice.Event())
		}
	}
	random.Shuffle(len(bodies), func(i, j int) { bodies[i], bodies[j] = bodies[j], bodies[i] })
	start := time.Now()
	answers := s.deliver(arrivals(bodies...))
	t.Logf("%d events in %s: %v", len(bodies), time.Since(start).Round(time.Millisecond), answers)
	s.await("every sale to be delivered", func() bool { return s.count("delivered") >= len(want) })
	s.awaitNone(`purchases WHERE status IN ('pending', 'published', 'retrying')`)
	s.checkOnlyDelivered(slices.Collect(maps.Keys(want))...)
	for _, e := range s.sim.Received() {
		b := bodyOf(t, e)
		value := b.Properties.Value.String()
		if b.Event != "CompletePayment" || value != "29.99" || b.User["email"] != want[e.EventID] {
			t.Errorf("%s: event %s over %s, want CompletePayment over 29.99 of the buyer: %s",
				e.EventID, b.Event, value, e.Body)
		}
	}
	if n := s.rows(`trials WHERE envelope IS NOT NULL AND purchase_id IS NOT NULL`); n != 0 {
		t.Errorf("%d paid trials still have match keys, want none", n)
	}
}
