package main

import (
	"bytes"
	"errors"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"purchase-relay/internal/purchase"
	"purchase-relay/internal/service"
	"purchase-relay/internal/testkit/stripegen"
)

const shop = "https://shop.example/webhooks/stripe"

// shopAPI returns a stand-in for Stripe's API and its URL.
func shopAPI(t *testing.T, list ...stripegen.Endpoint) (api *stripegen.API, address string) {
	t.Helper()
	api = stripegen.NewAPI()
	for _, e := range list {
		api.AddEndpoint(e)
	}
	server := httptest.NewServer(api)
	t.Cleanup(server.Close)
	return api, server.URL
}

// runEndpoint runs stripe-endpoint without a database and returns its exit status, output and error text.
func runEndpoint(t *testing.T, args []string, pairs ...string) (status int, out, problem string) {
	t.Helper()
	var printed, failed bytes.Buffer
	args = append([]string{"stripe-endpoint"}, args...)
	err := run(t.Context(), args, env(pairs...), strings.NewReader(""), &printed)
	status = service.ExitCode(err, &failed)
	if text := printed.String() + failed.String(); strings.Contains(text, "hunter2") {
		t.Errorf("%v printed a key:\n%s", args, text)
	}
	return status, printed.String(), failed.String()
}

func TestStripeEndpoint_Checks(t *testing.T) {
	t.Parallel()
	types := purchase.Rules{}.Types()
	good := stripegen.Endpoint{URL: shop, Types: types}
	disabled := stripegen.Endpoint{URL: shop, Types: types, Disabled: true}
	thin := stripegen.Endpoint{URL: shop, Thin: true, Destination: true}
	for _, t := range types {
		thin.Types = append(thin.Types, "v1."+t)
	}
	public := []string{"PUBLIC_URL=https://shop.example"}
	invoices, invalid := []string{public[0], "FIRST_PAYMENT=true"}, []string{public[0], "SWEEP_GRACE=soon"}
	one, slash, other := []stripegen.Endpoint{good}, "--url=https://shop.example/", "--url=https://b.example"
	for name, tc := range map[string]struct {
		endpoints []stripegen.Endpoint
		args      []string
		settings  []string
		status    int
		want      string
	}{
		"right":               {one, []string{slash}, nil, 0, "0 failed."},
		"of PUBLIC_URL":       {one, nil, public, 0, "pass  Stripe: endpoint "},
		"thin destination":    {[]stripegen.Endpoint{thin}, nil, public, 0, "thin: the checkout is fetched"},
		"duplicate":           {[]stripegen.Endpoint{good, thin}, nil, public, 0, "warn  Stripe: duplicates"},
		"none":                {nil, nil, public, 3, "fail  Stripe: endpoint "},
		"--url wins":          {one, []string{other}, public, 3, "none at https://b"},
		"disabled":            {[]stripegen.Endpoint{disabled}, nil, public, 3, "fail  Stripe: endpoint enabled"},
		"no invoice.paid":     {one, nil, invoices, 3, "not sent: invoice.paid"},
		"other settings":      {one, nil, invalid, 0, "0 failed."},
		"lists what it needs": {one, nil, public, 0, "checkout.session.async_payment_failed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, address := shopAPI(t, tc.endpoints...)
			settings := append([]string{"STRIPE_API_KEY=rk_test_hunter2", "STRIPE_API_URL=" + address}, tc.settings...)
			status, out, problem := runEndpoint(t, tc.args, settings...)
			if status != tc.status || !strings.Contains(out, tc.want) {
				t.Errorf("status = %d, want %d and %q:\n%s%s", status, tc.status, tc.want, out, problem)
			}
		})
	}
}

func TestStripeEndpoint_WithoutKey(t *testing.T) {
	t.Parallel()
	status, out, problem := runEndpoint(t, []string{"--url", "https://shop.example"})
	if status != 3 || !strings.Contains(out, shop) || !strings.Contains(problem, "not checked") {
		t.Errorf("status = %d, want 3, what is needed and that nothing was checked:\n%s%s", status, out, problem)
	}
}

func TestStripeEndpoint_Usage(t *testing.T) {
	t.Parallel()
	const key, live = "STRIPE_API_KEY=rk_test_hunter2", "STRIPE_API_KEY=rk_live_hunter2"
	for args, tc := range map[string]struct{ setting, want string }{
		"":                           {key, "--url or PUBLIC_URL is required"},
		"--url ftp://shop.example":   {key, "--url is not an http(s) URL"},
		"--url https://h/?k=hunter2": {key, "--url must have no user, query or fragment"},
		"--url https://h/hook":       {key, "--url must end with /webhooks/stripe"},
		"--url https://h --create":   {"", "--create needs STRIPE_API_KEY"},
		"--url http://h --create":    {live, "--create needs an https URL"},
		"--url https://h hunter2":    {key, "unexpected argument"},
		"--url https://h --create ":  {"STRIPE_API_KEY=whsec_hunter2", "STRIPE_API_KEY does not look like"},
		"--create":                   {"PUBLIC_URL=shop.example", "PUBLIC_URL is not an http(s) URL"},
	} {
		status, out, problem := runEndpoint(t, strings.Fields(args), tc.setting)
		if status != 2 || !strings.Contains(problem, tc.want) || out != "" {
			t.Errorf("%q: status = %d, want 2 and %q:\n%s%s", args, status, tc.want, out, problem)
		}
	}
}

// The secret is printed once, to stdout, as a line for an environment file.
func TestStripeEndpoint_Creates(t *testing.T) {
	t.Parallel()
	api, address := shopAPI(t, stripegen.Endpoint{URL: "https://other.example/webhooks/stripe"})
	settings := []string{
		"STRIPE_API_KEY=rk_test_hunter2", "STRIPE_API_URL=" + address, "PUBLIC_URL=https://shop.example",
		"FIRST_PAYMENT=true",
	}
	status, out, problem := runEndpoint(t, []string{"--create"}, settings...)
	e := api.Endpoints()[0]
	line := regexp.MustCompile(`(?m)^STRIPE_WEBHOOK_SECRET=` + e.Secret + `$`)
	if status != 0 || problem != "" || !line.MatchString(out) || strings.Count(out, e.Secret) != 1 {
		t.Errorf("status = %d, want 0 and the secret once:\n%s%s", status, out, problem)
	}
	if e.URL != shop || len(e.Types) != 4 || len(api.Endpoints()) != 2 {
		t.Errorf("endpoint = %+v, want one at %s with 4 types", e, shop)
	}
	status, out, _ = runEndpoint(t, nil, settings...)
	if status != 0 || strings.Contains(out, e.Secret) {
		t.Errorf("check after the creation = %d, want 0 without the secret:\n%s", status, out)
	}
}

// An endpoint at the URL, enabled or not, webhook endpoint or destination, prevents a second one.
func TestStripeEndpoint_RefusesSecond(t *testing.T) {
	t.Parallel()
	for name, e := range map[string]stripegen.Endpoint{
		"enabled":     {URL: "https://SHOP.example:443/webhooks/stripe/", Types: purchase.Rules{}.Types()},
		"disabled":    {URL: shop, Disabled: true},
		"destination": {URL: shop, Destination: true, Thin: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			api, address := shopAPI(t, e)
			status, out, problem := runEndpoint(t, []string{"--create", "--url", "https://shop.example"},
				"STRIPE_API_KEY=rk_test_hunter2", "STRIPE_API_URL="+address)
			n := len(api.Endpoints())
			if status != 1 || n != 1 || !strings.Contains(problem, "one exists at this URL") {
				t.Errorf("status = %d with %d endpoints, want 1, 1:\n%s%s", status, n, out, problem)
			}
		})
	}
}

// A failure of a list or of the creation ends with exit status 1 and a clear text, without key and secret.
// internal/stripe tests every fault.
func TestStripeEndpoint_Faults(t *testing.T) {
	t.Parallel()
	for fault, want := range map[stripegen.Fault]string{
		401: "STRIPE_API_KEY is unknown", 403: "(Webhook Endpoints: ", 404: "returned 404",
		stripegen.Cut: "read Stripe's response",
	} {
		for healthy, request := range []string{"endpoints", "destinations", "creation"} {
			t.Run(strings.Join([]string{request, want}, ", "), func(t *testing.T) {
				t.Parallel()
				api, address := shopAPI(t)
				api.FailLater(healthy, 1, fault)
				status, out, problem := runEndpoint(t, []string{"--create", "--url", "https://shop.example"},
					"STRIPE_API_KEY=rk_test_hunter2", "STRIPE_API_URL="+address)
				if request == "destinations" && (fault == 403 || fault == 404) { // not for this key or account
					if status != 0 || !strings.Contains(out, "not available to this key") {
						t.Errorf("status = %d, want 0 and a note:\n%s%s", status, out, problem)
					}
					return
				}
				if status != 1 || !strings.Contains(problem, want) || strings.Contains(out, "whsec_") {
					t.Errorf("status = %d, want 1 and %q:\n%s%s", status, want, out, problem)
				}
				ambiguous := request == "creation" && fault == stripegen.Cut
				if got := strings.Contains(out, "without --create"); got != ambiguous {
					t.Errorf("tells how to look for the endpoint = %t, want %t:\n%s", got, ambiguous, out)
				}
			})
		}
	}
}

// A secret that could not be printed is an error that names where it is.
func TestStripeEndpoint_UnprintedSecret(t *testing.T) {
	t.Parallel()
	_, address := shopAPI(t)
	settings := env("STRIPE_API_KEY=rk_test_x", "STRIPE_API_URL="+address)
	args := []string{"stripe-endpoint", "--create", "--url", "https://shop.example"}
	err := run(t.Context(), args, settings, strings.NewReader(""), brokenPipe{})
	if err == nil || !strings.Contains(err.Error(), "on its page in Stripe") {
		t.Errorf("error = %v, want where the secret is", err)
	}
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, errors.New("broken pipe") }

func TestSilenceCause(t *testing.T) {
	t.Parallel()
	api, address := shopAPI(t, stripegen.Endpoint{URL: shop})
	c := &config{StripeAPIKey: "rk_test_hunter2", StripeAPIURL: address, PublicURL: "https://shop.example"}
	since := time.Now().Add(-time.Hour)
	expect := func(want string) {
		t.Helper()
		what, _, err := silenceCause(c)(t.Context(), since)
		if err != nil || !strings.Contains(what, want) {
			t.Errorf("cause = %q, %v, want %q", what, err, want)
		}
	}
	expect("Stripe has no events since then")
	sale := stripegen.NewCheckout()
	if err := api.Add(sale.Event()); err != nil {
		t.Fatal(err)
	}
	expect("webhooks do not arrive")
	api.Fail(1, 403)
	if what, _, err := silenceCause(c)(t.Context(), since); err == nil || what != "" ||
		strings.Contains(err.Error(), "hunter2") {
		t.Errorf("cause = %q, %v, want an error without the key", what, err)
	}
	for _, other := range []*config{{PublicURL: "https://shop.example"}, {StripeAPIKey: "rk_test_x"}} {
		if silenceCause(other) != nil {
			t.Errorf("cause of %+v, want none without PUBLIC_URL and STRIPE_API_KEY", other)
		}
	}
}

// doctor compares Stripe's events of the last day with the ledger.
func TestDoctor_ComparesArrivals(t *testing.T) {
	t.Parallel()
	o := newOperator(t)
	api, address := shopAPI(t, stripegen.Endpoint{URL: shop, Types: purchase.Rules{}.Types()})
	sale := stripegen.NewCheckout()
	sale.Created = time.Now().Add(-time.Hour)
	if err := api.Add(sale.Event()); err != nil {
		t.Fatal(err)
	}
	settings := []string{
		"STRIPE_WEBHOOK_SECRET=" + goodSecret, "DATABASE_URL=" + o.url, "NATS_URL=nats://127.0.0.1:1",
		"ADMIN_ADDR=127.0.0.1:1", "STRIPE_API_KEY=rk_test_hunter2", "STRIPE_API_URL=" + address,
		"PUBLIC_URL=https://shop.example",
	}
	expectDoctor(t, "missing", settings, 3, "pass  Stripe: endpoint ", "fail  Stripe: arrivals",
		"1 of 1 events of the last day are not on the ledger, such as "+sale.SessionID)
	status, out := o.run("", "backfill", "--stripe-api-key", "rk_test_hunter2", "--stripe-api-url", address)
	if status != 0 {
		t.Fatalf("backfill = %d\n%s", status, out)
	}
	expectDoctor(t, "backfilled", settings, 3, "warn  Stripe: arrivals", "by backfill, not by webhook")
	o.count(`WITH u AS (UPDATE stripe_events SET caught_up = false RETURNING 1) SELECT count(*) FROM u`)
	expectDoctor(t, "received", settings, 3, "pass  Stripe: arrivals")
	expectDoctor(t, "no PUBLIC_URL", settings[:len(settings)-1], 3, "warn  Stripe: endpoint ",
		"set PUBLIC_URL to", "Stripe has "+shop)
	expectDoctor(t, "a malformed one", append(settings, "PUBLIC_URL=shop.example"), 3,
		"PUBLIC_URL is not an http(s) URL")
}
