package ingestdoctor

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"purchase-relay/internal/ops/doctor"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/stripe"
	"purchase-relay/internal/testkit/stripegen"
)

const shop = "https://shop.example/webhooks/stripe"

func needs(change ...func(e *Endpoint)) Endpoint {
	e := Endpoint{URL: shop, Types: purchase.Rules{}.Types(), APIKey: true, Live: true}
	for _, c := range change {
		c(&e)
	}
	return e
}

func endpoints(changes ...func(e *stripe.Endpoint)) []stripe.Endpoint {
	list := make([]stripe.Endpoint, max(1, len(changes)))
	for i := range list {
		list[i] = stripe.Endpoint{
			ID: fmt.Sprint("we_", i), Kind: stripe.KindWebhook, URL: shop, Types: purchase.Rules{}.Types(),
			Livemode: true,
		}
		if len(changes) > 0 {
			changes[i](&list[i])
		}
	}
	return list
}

func TestEndpoint_Verdicts(t *testing.T) {
	t.Parallel()
	good := func(*stripe.Endpoint) {}
	disabled := func(e *stripe.Endpoint) { e.Disabled = true }
	thin := func(e *stripe.Endpoint) { e.Thin = true }
	disabledThin := func(e *stripe.Endpoint) { e.Thin, e.Disabled = true, true }
	types := func(list ...string) func(e *stripe.Endpoint) { return func(e *stripe.Endpoint) { e.Types = list } }
	first, rest := purchase.Rules{}.Types()[:1], purchase.Rules{}.Types()[1:]
	more := slices.Concat(first, rest, []string{"a.b"})
	split := endpoints(types(first...), types(rest...))
	noKey := func(e *Endpoint) { e.APIKey = false }
	test := func(e *Endpoint) { e.Live = false }
	connect := func(e *Endpoint) { e.Connect = true }
	invoices := func(e *Endpoint) { e.Types = purchase.Rules{FirstPayment: true}.Types() }
	exists := func(list []stripe.Endpoint, err error) doctor.Check {
		found := stripe.Endpoints{List: list, DestinationsErr: err}
		return needs().judgeExists(found, found.At(shop))
	}
	elsewhere := endpoints(func(e *stripe.Endpoint) { e.URL = "https://hooks.example/hunter2?token=hunter2" })
	verify(t, map[string]judged{
		"a public URL":                   {judgePublicURL(shop), pass},
		"plain http":                     {judgePublicURL("http://shop.example/webhooks/stripe"), warn},
		"loopback":                       {judgePublicURL("https://127.0.0.1:8080/webhooks/stripe"), warn},
		"localhost":                      {judgePublicURL("https://localhost/webhooks/stripe"), warn},
		"a private address":              {judgePublicURL("https://10.1.2.3/webhooks/stripe"), warn},
		"exists":                         {exists(endpoints(), nil), pass},
		"exists, disabled":               {exists(endpoints(disabled), nil), pass},
		"none":                           {exists(nil, nil), fail},
		"another URL":                    {exists(elsewhere, nil), fail},
		"none that is readable":          {exists(nil, stripe.ErrNoDestinations), warn},
		"enabled":                        {judgeEnabled(endpoints(good)), pass},
		"one of two enabled":             {judgeEnabled(endpoints(good, disabled)), pass},
		"all disabled":                   {judgeEnabled(endpoints(disabled, disabled)), fail},
		"all types":                      {needs().judgeTypes(endpoints(good)), pass},
		"types of two endpoints":         {needs().judgeTypes(split), pass},
		"a missing type":                 {needs().judgeTypes(endpoints(types(rest...))), fail},
		"no types":                       {needs().judgeTypes(endpoints(types())), fail},
		"a type of a disabled one":       {needs().judgeTypes(endpoints(types(rest...), disabled)), fail},
		"types of the only one":          {needs().judgeTypes(endpoints(disabled)), pass},
		"invoice.paid for FIRST_PAYMENT": {needs(invoices).judgeTypes(endpoints(good)), fail},
		"a needless type":                {needs().judgeTypes(endpoints(types(more...))), warn},
		"every type":                     {needs().judgeTypes(endpoints(types("*"))), warn},
		"snapshot":                       {needs(noKey).judgePayload(endpoints(good)), pass},
		"thin with a key":                {needs().judgePayload(endpoints(thin)), pass},
		"thin without a key":             {needs(noKey).judgePayload(endpoints(thin)), fail},
		"a disabled thin one":            {needs(noKey).judgePayload(endpoints(good, disabledThin)), pass},
		"any version":                    {judgeAPIVersion(endpoints(good)), pass},
		"live":                           {needs().judgeMode(), pass},
		"test":                           {needs(test).judgeMode(), warn},
		"no duplicates":                  {needs().judgeDuplicates(endpoints(good)), pass},
		"a disabled duplicate":           {needs().judgeDuplicates(endpoints(good, disabled)), pass},
		"two with different types":       {needs().judgeDuplicates(split), pass},
		"two with the same types":        {needs().judgeDuplicates(endpoints(good, good)), warn},
		"two, one with all types":        {needs().judgeDuplicates(endpoints(good, types("*"))), warn},
		"two with connected accounts":    {needs(connect).judgeDuplicates(endpoints(good, good)), pass},
		"three with connected accounts":  {needs(connect).judgeDuplicates(endpoints(good, good, good)), warn},
		"destinations without access":    {judgeDestinations(stripe.ErrNoDestinations), warn},
		"unreadable endpoints":           {judgeReadable(errors.New("timeout")), warn},
		"no PUBLIC_URL":                  {Endpoint{}.Checks(stripe.Endpoints{}, nil)[0], warn},
		"all arrived":                    {judgeArrivals(3, nil, nil, nil), pass},
		"some missing":                   {judgeArrivals(3, []string{"cs_1"}, []string{"cs_2"}, nil), fail},
		"some by backfill":               {judgeArrivals(3, nil, []string{"cs_2"}, nil), warn},
		"unreadable arrivals":            {judgeArrivals(3, nil, nil, errors.New("timeout")), fail},
		"a readable list of events":      {judgeEventList(nil), pass},
		"an unreadable list of events":   {judgeEventList(errors.New("timeout")), warn},
	})
}

// Endpoints elsewhere are described without their paths, which may be secrets; those at the same host with.
func TestDescribe_HidesForeignPaths(t *testing.T) {
	t.Parallel()
	list := endpoints(
		func(e *stripe.Endpoint) { e.URL = "https://hooks.example/hunter2?token=hunter2" },
		func(e *stripe.Endpoint) { e.URL = "https://u:hunter2@hooks.example/a" },
		func(e *stripe.Endpoint) { e.URL = "https://shop.example/hook\x1b[31m"; e.Disabled = true },
		func(e *stripe.Endpoint) { e.URL = "https://shop.example/old?key=hunter2"; e.Disabled = true },
		func(e *stripe.Endpoint) { e.URL = "https://old.example/webhooks/stripe" },
		func(e *stripe.Endpoint) { e.URL, e.Kind = "", stripe.KindEventBridge },
		func(e *stripe.Endpoint) { e.URL, e.Kind = "", stripe.KindEventGrid },
	)
	got := describe(stripe.Endpoints{List: list}, "shop.example")
	want := "Stripe has https://shop.example/old (disabled), https://hooks.example/…, " +
		"https://hooks.example/…, webhook (disabled), https://old.example/webhooks/stripe and 2 more"
	if got != want {
		t.Errorf("description =\n%s, want\n%s", got, want)
	}
	got = describe(stripe.Endpoints{List: list[5:]}, "shop.example")
	if want := "Stripe has Amazon EventBridge, Azure Event Grid"; got != want {
		t.Errorf("description = %s, want %s", got, want)
	}
}

func TestEndpoint_SilenceCause(t *testing.T) {
	t.Parallel()
	disabled := func(e *stripe.Endpoint) { e.Disabled = true }
	for name, tc := range map[string]struct {
		found        stripe.Endpoints
		pending      bool
		what, remedy string
	}{
		"none":          {stripe.Endpoints{}, true, "has no endpoint at " + shop, "stripe-endpoint --create"},
		"disabled":      {stripe.Endpoints{List: endpoints(disabled)}, true, "disabled in Stripe (we_0)", "Enable"},
		"nothing sold":  {stripe.Endpoints{List: endpoints()}, false, "it sends nothing", ""},
		"do not arrive": {stripe.Endpoints{List: endpoints()}, true, "webhooks do not arrive", ""},
		"unreadable destinations": {
			stripe.Endpoints{DestinationsErr: stripe.ErrNoDestinations}, true, "no webhook endpoint at " + shop, "",
		},
	} {
		what, remedy := needs().SilenceCause(tc.found, tc.pending)
		if !strings.Contains(what, tc.what) || !strings.Contains(remedy, tc.remedy) ||
			(remedy == "") != (tc.remedy == "") {
			t.Errorf("%s: cause = %q, remedy = %q, want %q, %q", name, what, remedy, tc.what, tc.remedy)
		}
	}
}

// checkedWith runs the checks with a key on a stand-in for Stripe's API.
func checkedWith(t *testing.T, api *stripegen.API) (text string, recent []purchase.Event) {
	t.Helper()
	server := httptest.NewServer(api)
	t.Cleanup(server.Close)
	rules := purchase.Rules{Modes: map[string]bool{"subscription": true}}
	i := Ingest{
		API:      stripe.APIConfig{Key: "rk_test_hunter2", URL: server.URL, Types: rules.Types()},
		Endpoint: needs(), Rules: rules,
	}
	checks, recent := i.stripe(t.Context(), time.Now())
	for _, c := range checks {
		text += fmt.Sprintf("%s %s: %s\n", c.Verdict, c.What, c.Found+c.Remedy)
	}
	if strings.Contains(text, "hunter2") {
		t.Errorf("checks contain the key:\n%s", text)
	}
	return text, recent
}

func TestIngest_ChecksStripe(t *testing.T) {
	t.Parallel()
	api := stripegen.NewAPI()
	api.AddEndpoint(stripegen.Endpoint{URL: shop, Types: purchase.Rules{}.Types()})
	var wanted string
	for _, age := range []time.Duration{time.Minute, time.Hour, 30 * time.Hour} {
		for _, mode := range []string{"subscription", "payment"} {
			c := stripegen.NewCheckout()
			c.Mode, c.Created = mode, time.Now().Add(-age)
			if err := api.Add(c.Event()); err != nil {
				t.Fatal(err)
			}
			if mode == "subscription" && age == time.Hour {
				wanted = c.SessionID
			}
		}
	}
	text, recent := checkedWith(t, api)
	for _, want := range []string{
		"pass Stripe: list of events", "pass Stripe: endpoint:", "pass Stripe: event types", "pass Stripe: payload",
		"pass Stripe: duplicates",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("checks lack %q:\n%s", want, text)
		}
	}
	if len(recent) != 1 || recent[0].Checkout.ID != wanted {
		t.Errorf("recent events = %+v, want %s alone: of the last day, not on its way, of a counted mode",
			recent, wanted)
	}
}

// A key that may not read endpoints, or an API that fails, is a warning; the rest is checked.
func TestIngest_ChecksStripeWithoutPermission(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		healthy int
		fault   stripegen.Fault
		want    string
	}{
		"endpoints forbidden":    {1, http.StatusForbidden, "warn Stripe: endpoint: unreadable: Stripe"},
		"permission":             {1, http.StatusForbidden, `"Webhook Endpoints: Read"`},
		"endpoints down":         {1, http.StatusInternalServerError, "warn Stripe: endpoint: unreadable"},
		"endpoints HTML":         {1, stripegen.HTML, "warn Stripe: endpoint: unreadable"},
		"destinations forbidden": {2, http.StatusForbidden, "warn Stripe: event destinations"},
		"destinations limited":   {2, http.StatusTooManyRequests, "warn Stripe: event destinations"},
		"events forbidden":       {0, http.StatusForbidden, "fail Stripe: list of events"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			api := stripegen.NewAPI()
			api.AddEndpoint(stripegen.Endpoint{URL: shop, Types: purchase.Rules{}.Types()})
			api.FailLater(tc.healthy, 1, tc.fault)
			text, _ := checkedWith(t, api)
			if !strings.Contains(text, tc.want) {
				t.Errorf("checks lack %q:\n%s", tc.want, text)
			}
			if tc.healthy != 1 && !strings.Contains(text, "pass Stripe: endpoint:") {
				t.Errorf("the endpoint was not checked:\n%s", text)
			}
		})
	}
}
