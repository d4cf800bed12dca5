package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stripe/stripe-go/v76/webhook"

	"purchase-relay/internal/testkit/stripegen"
)

func noenv(string) string { return "" }

// Made-up purchases never leave this machine.
func TestSendsToThisMachineAlone(t *testing.T) {
	for url, want := range map[string]bool{
		"http://127.0.0.1:8080/x": true, "http://[::1]:8080/x": true, "http://localhost/x": true, "http://ingest:8080/x": true,
		"http://10.0.0.1/x": false, "https://shop.example/x": false, "http://[2001:db8::1]/x": false, "": false, "/x": false,
	} {
		if local(url) != want {
			t.Errorf("%s: %v", url, !want)
		}
	}
	if err := run(t.Context(), []string{"-url", "https://shop.example/webhooks/stripe"}, noenv, io.Discard); err == nil {
		t.Error("it was sent elsewhere")
	}
}

func TestSendsCopiesOfEach(t *testing.T) {
	var mu sync.Mutex
	sessions, signed := map[string]int{}, 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		var event struct {
			Data struct {
				Object struct{ ID string } `json:"object"`
			} `json:"data"`
		}
		if err := json.Unmarshal(body, &event); err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		sessions[event.Data.Object.ID]++
		if webhook.ValidatePayload(body, r.Header.Get("Stripe-Signature"), "whsec_local") == nil {
			signed++
		}
		_, _ = io.WriteString(w, `{"status":"processed"}`)
	}))
	defer server.Close()
	var out bytes.Buffer
	if err := run(t.Context(), []string{"-url", server.URL, "-n", "30", "-copies", "3"}, noenv, &out); err != nil {
		t.Fatal(err)
	}
	if len(sessions) != 30 || signed != 90 || !strings.Contains(out.String(), `90 × 200 {"status":"processed"}`) {
		t.Errorf("%d sessions, %d signed; %s", len(sessions), signed, out.String())
	}
	for _, way := range []string{"-forge", "-stale"} {
		signed = 0
		if err := run(t.Context(), []string{"-url", server.URL, way}, noenv, io.Discard); err != nil || signed > 0 {
			t.Errorf("%s: %d signed, %v", way, signed, err)
		}
	}
}

// told is what an endpoint reads of an event.
type told struct {
	ID, Type string
	Created  int64
	Data     struct {
		Object struct {
			ID            string
			PaymentStatus string   `json:"payment_status"`
			Methods       []string `json:"payment_method_types"`
		}
	}
}

// endpoint takes events and answers each with a status, which depends on how often it came by then, the first time 1.
type endpoint struct {
	url string

	mu   sync.Mutex
	came []told
}

func (e *endpoint) events() []told {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.came)
}

func listen(t *testing.T, status func(times int) int) *endpoint {
	t.Helper()
	e := new(endpoint)
	times := make(map[string]int)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		var event told
		if err != nil || json.Unmarshal(body, &event) != nil || webhook.ValidatePayload(body, r.Header.Get("Stripe-Signature"), "whsec_local") != nil {
			t.Errorf("no signed event: %s, %v", body, err)
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		e.came = append(e.came, event)
		times[event.ID]++
		w.WriteHeader(status(times[event.ID]))
	}))
	t.Cleanup(server.Close)
	e.url = server.URL
	return e
}

func ok(int) int { return http.StatusOK }

func TestAsyncSendsTwoEventsOfEachSession(t *testing.T) {
	for _, c := range []struct{ async, currency, status, method string }{
		{"succeeded", "JPY", "paid", "konbini"}, {"failed", "eur", "unpaid", "sepa_debit"}, {"succeeded", "usd", "paid", "us_bank_account"},
	} {
		e := listen(t, ok)
		if err := run(t.Context(), []string{"-url", e.url, "-n", "3", "-async", c.async, "-currency", c.currency, "-concurrency", "1"}, noenv, io.Discard); err != nil {
			t.Fatal(err)
		}
		came := e.events()
		if len(came) != 6 {
			t.Fatalf("%d events", len(came))
		}
		for pair := range slices.Chunk(came, 2) {
			first, second := pair[0], pair[1]
			if first.Type != "checkout.session.completed" || second.Type != "checkout.session.async_payment_"+c.async || first.ID == second.ID ||
				first.Data.Object.ID != second.Data.Object.ID || first.Created >= second.Created || second.Created > time.Now().Unix() ||
				first.Data.Object.PaymentStatus != "unpaid" || second.Data.Object.PaymentStatus != c.status ||
				!slices.Equal(first.Data.Object.Methods, []string{c.method}) || !slices.Equal(second.Data.Object.Methods, []string{c.method}) {
				t.Errorf("%+v: %+v", c, pair)
			}
		}
	}
}

// -rate counts purchases, which may be of two events, and holds in disorder too: here, in one that changes nothing.
func TestRateSetsThePace(t *testing.T) {
	for _, c := range []struct {
		o    options
		want []time.Duration
	}{
		{options{n: 3}, []time.Duration{0, 0, 0}},
		{options{n: 3, rate: 2}, []time.Duration{0, 500 * time.Millisecond, time.Second}},
		{options{n: 2, rate: 2, async: "failed"}, []time.Duration{0, 250 * time.Millisecond, 500 * time.Millisecond, 750 * time.Millisecond}},
		{options{n: 3, rate: 2, disorder: stripegen.Disorder{Delay: 1}}, []time.Duration{0, 500 * time.Millisecond, time.Second}},
	} {
		var due []time.Duration
		for a := range c.o.arrivals(io.Discard) {
			due = append(due, a.After.Round(time.Millisecond))
		}
		if !slices.Equal(due, c.want) {
			t.Errorf("%+v: %v", c.o, due)
		}
	}
}

func TestReorderSendsTheLaterEventFirst(t *testing.T) {
	e := listen(t, ok)
	if err := run(t.Context(), []string{"-url", e.url, "-async", "succeeded", "-reorder", "1", "-concurrency", "1"}, noenv, io.Discard); err != nil {
		t.Fatal(err)
	}
	if came := e.events(); len(came) != 2 || came[0].Created <= came[1].Created {
		t.Errorf("%+v", came)
	}
}

func TestDuplicatesAreSentTwice(t *testing.T) {
	e := listen(t, ok)
	var out bytes.Buffer
	if err := run(t.Context(), []string{"-url", e.url, "-n", "30", "-duplicates", "1", "-delay", "1ms"}, noenv, &out); err != nil {
		t.Fatal(err)
	}
	times := make(map[string]int)
	for _, event := range e.events() {
		times[event.ID]++
	}
	for id, n := range times {
		if n != 2 {
			t.Errorf("%s came %d times", id, n)
		}
	}
	if len(times) != 30 || !strings.Contains(out.String(), "60 × 200") {
		t.Errorf("%d events; %s", len(times), out.String())
	}
}

func TestRetriesUntilTaken(t *testing.T) {
	for retry, want := range map[string]struct {
		came   int
		answer string
	}{"1": {21, "21 × 503"}, "2": {42, "21 × 200"}} {
		e := listen(t, func(times int) int {
			if times == 1 {
				return http.StatusServiceUnavailable
			}
			return http.StatusOK
		})
		var out bytes.Buffer
		if err := run(t.Context(), []string{"-url", e.url, "-n", "21", "-retry", retry, "-concurrency", "21"}, noenv, &out); err != nil {
			t.Fatal(err)
		}
		if n := len(e.events()); n != want.came || !strings.Contains(out.String(), want.answer) {
			t.Errorf("-retry %s: %d came; %s", retry, n, out.String())
		}
	}
}

// A run told its seed: with it, the same of its events are withheld and come twice.
func TestSeedRepeatsARun(t *testing.T) {
	seedOf := regexp.MustCompile(`^-seed (\d+) repeats this; (\d+) of 200 events are withheld\n`)
	play := func(more ...string) (seed, withheld string, came int) {
		e := listen(t, ok)
		var out bytes.Buffer
		args := append([]string{"-url", e.url, "-n", "200", "-withhold", "0.5", "-duplicates", "0.5"}, more...)
		if err := run(t.Context(), args, noenv, &out); err != nil {
			t.Fatal(err)
		}
		said := seedOf.FindStringSubmatch(out.String())
		if said == nil {
			t.Fatalf("no seed: %s", out.String())
		}
		return said[1], said[2], len(e.events())
	}
	seed, withheld, came := play()
	again, againWithheld, againCame := play("-seed", seed)
	if seed == "0" || again != seed || againWithheld != withheld || againCame != came {
		t.Errorf("seed %s: %s withheld, %d came; again %s: %s, %d", seed, withheld, came, again, againWithheld, againCame)
	}
}

func TestSaysNoSeedWithoutChance(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), []string{"-url", listen(t, ok).url}, noenv, &out); err != nil || strings.Contains(out.String(), "seed") {
		t.Errorf("%v; %s", err, out.String())
	}
}

// What a disabled endpoint lost can still be listed, until the command is interrupted.
func TestServesTheEventsThatItMade(t *testing.T) {
	e := listen(t, ok)
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	out, in := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := run(ctx, []string{"-url", e.url, "-n", "50", "-withhold", "0.5", "-serve-events", "127.0.0.1:0"}, noenv, in)
		_ = in.Close()
		ended <- err
	}()
	address, sent := "", false
	lines := bufio.NewScanner(out)
	for !sent && lines.Scan() {
		if rest, found := strings.CutPrefix(lines.Text(), "events at "); found {
			address, _, _ = strings.Cut(rest, ",")
		}
		sent = strings.HasPrefix(lines.Text(), "median")
	}
	if !sent {
		t.Fatalf("it did not sum up: %v", <-ended)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address+"?limit=100", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer sk_test_x")
	client := http.Client{}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var list struct{ Data []told }
	if err := json.NewDecoder(resp.Body).Decode(&list); err != nil {
		t.Fatal(err)
	}
	listed := make(map[string]bool)
	for _, event := range list.Data {
		listed[event.ID] = true
	}
	came := e.events()
	for _, event := range came {
		if !listed[event.ID] {
			t.Errorf("%s came and is not listed", event.ID)
		}
	}
	if len(listed) != 50 || len(came) == 0 || len(came) == 50 {
		t.Errorf("%d listed, %d came", len(listed), len(came))
	}
	interrupt()
	if err := <-ended; err != nil {
		t.Errorf("interrupted: %v", err)
	}
}

func TestRefusesWhatItCannotDo(t *testing.T) {
	for _, args := range []string{
		"-n=0", "-n=1000001", "-copies=0", "-concurrency=0", "-rate=-1", "-rate=NaN", "-rate=0.0001", "-retry=0", "-retry=1001", "-delay=-1s", "-delay=73h",
		"-reorder=2", "-reorder=NaN", "-duplicates=-1", "-withhold=1.5", "-type=", "-async=perhaps", "-async=failed -status=paid", "-async=failed -type=x",
		"-serve-events=10.0.0.1:0", "-serve-events=shop.example:0", "-serve-events=0.0.0.0:0", "-serve-events=8080", "-list=http://10.0.0.1:8086", "-list=http://127.0.0.1:1 -serve-events=127.0.0.1:0", "-nonsense",
	} {
		e := listen(t, ok)
		// Nothing is served, whatever is taken by mistake: the context has ended.
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		err := run(ctx, append(strings.Fields(args), "-url", e.url), noenv, io.Discard)
		if err == nil || errors.Is(err, context.Canceled) || len(e.events()) > 0 {
			t.Errorf("%s was taken: %v", args, err)
		}
	}
	for addr, want := range map[string]bool{":0": true, "localhost:0": true, "[::1]:0": true, "127.0.0.2:0": true, "ingest:0": false, "[::]:0": false} {
		if localListener(addr) != want {
			t.Errorf("%s: %v", addr, !want)
		}
	}
}

func TestEndsWithoutAnEndpoint(t *testing.T) {
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	for _, args := range [][]string{nil, {"-serve-events", "127.0.0.1:0"}} {
		if err := run(t.Context(), append(args, "-url", gone.URL), noenv, io.Discard); err == nil {
			t.Errorf("%v: sent to nobody", args)
		}
	}
}

// Every event is listed where -list says, also those that are withheld from the webhook; a list that is not there ends it.
func TestListsElsewhere(t *testing.T) {
	shelf, _, err := stripegen.OpenShelf(filepath.Join(t.TempDir(), "events"), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = shelf.Close() }()
	posted := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			posted++
		}
		shelf.ServeHTTP(w, r)
	}))
	defer server.Close()
	e := listen(t, ok)
	if err := run(t.Context(), []string{"-url", e.url, "-n", "20", "-withhold", "1", "-list", server.URL}, noenv, io.Discard); err != nil || posted != 20 || len(e.events()) != 0 {
		t.Errorf("%v; %d listed, %d sent", err, posted, len(e.events()))
	}
	server.Close()
	if err := run(t.Context(), []string{"-url", e.url, "-list", server.URL}, noenv, io.Discard); err == nil || !strings.Contains(err.Error(), "-list") || len(e.events()) != 0 {
		t.Errorf("no list: %v; %d sent", err, len(e.events()))
	}
}
