package stripe_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"purchase-relay/internal/purchase"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/stripe"
	"purchase-relay/internal/testkit/stripegen"
)

func webhook(secrets ...secret.String) *stripe.Webhook { return stripe.NewWebhook(secrets, time.Now) }

func TestWebhook_Verify(t *testing.T) {
	now := time.Now()
	body := stripegen.NewCheckout().Event()
	sign := func(key string, at time.Time) string { return stripegen.Sign(body, key, at) }
	good, old := sign("whsec_a", now), sign("whsec_b", now)
	v1 := strings.TrimPrefix(good[strings.Index(good, ","):], ",")
	stamp := strings.TrimSuffix(good, ","+v1)
	for name, tc := range map[string]struct {
		header string
		want   error
	}{
		"signed":                        {good, nil},
		"signed with the other secret":  {old, nil},
		"several signatures":            {stamp + ",v1=" + strings.Repeat("0", 64) + "," + v1, nil},
		"a v0 beside it":                {good + ",v0=" + strings.Repeat("1", 64), nil},
		"four minutes old":              {sign("whsec_a", now.Add(-4*time.Minute)), nil},
		"four minutes ahead":            {sign("whsec_a", now.Add(4*time.Minute)), nil},
		"none":                          {"", stripe.ErrMissing},
		"no time":                       {v1, stripe.ErrStale}, // the library judges the time first
		"garbage":                       {"t=x,v1=y", stripe.ErrInvalid},
		"another's":                     {sign("whsec_c", now), stripe.ErrWrong},
		"signed with nothing":           {sign("", now), stripe.ErrWrong},
		"stale":                         {sign("whsec_a", now.Add(-301*time.Second)), stripe.ErrStale},
		"from the future":               {sign("whsec_b", now.Add(302*time.Second)), stripe.ErrFuture},
		"from the far future":           {sign("whsec_a", now.AddDate(50, 0, 0)), stripe.ErrFuture},
		"only a v0 (test mode's dummy)": {stamp + ",v0=" + strings.TrimPrefix(v1, "v1="), stripe.ErrWrong},
	} {
		if err := webhook("whsec_a", "whsec_b").Verify(body, tc.header); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
	}
	if err := webhook("").Verify(body, sign("", now)); err == nil {
		t.Error("an empty secret accepted a body signed with nothing")
	}
}

func TestParseSecrets(t *testing.T) {
	got, problems := stripe.ParseSecrets(" whsec_a, whsec_b ")
	if len(got) != 2 || got[0].Reveal() != "whsec_a" || got[1].Reveal() != "whsec_b" || len(problems) > 0 {
		t.Errorf("%d secrets, %v", len(got), problems)
	}
	for _, bad := range []secret.String{"", "whsec_a,", "whsec_", "hunter2"} {
		_, problems := stripe.ParseSecrets(bad)
		if len(problems) == 0 || strings.Contains(strings.Join(problems, ""), "hunter2") {
			t.Errorf("%q: %v", bad.Reveal(), problems)
		}
	}
}

func TestWebhook_Decode(t *testing.T) {
	c := stripegen.NewCheckout()
	c.APIVersion, c.City, c.State, c.Zip, c.Reference, c.Locale = "2031-01-01.unheard_of", "New York", "NY", "10001", "order-7", "pt-BR"
	event, err := webhook("whsec_a").Decode(c.Event())
	if err != nil {
		t.Fatal(err)
	}
	want := purchase.Event{
		ID: c.EventID, Type: c.Type, Created: c.Created,
		Checkout: &purchase.Checkout{
			ID: c.SessionID, Mode: "subscription", PaymentStatus: "paid", AmountTotal: c.AmountTotal, Currency: "usd",
			Customer: c.Customer, Subscription: c.Subscription, Email: *c.Email, Phone: *c.Phone,
			Discount: new(int64(0)), Tax: new(int64(0)), Shipping: new(int64(0)), Name: *c.Name, Metadata: c.Metadata,
			Address: purchase.Address{City: "New York", State: "NY", PostalCode: "10001", Country: "US"}, Reference: "order-7", Locale: "pt-BR", Created: c.Created.Add(-time.Minute),
		},
	}
	if diff := cmp.Diff(want, event); diff != "" {
		t.Error(diff)
	}
}

// An invoice names its subscription in one of two places, by the account's API version; it may be expanded.
func TestWebhook_DecodeInvoice(t *testing.T) {
	c := stripegen.NewCheckout().Live().Trial()
	for version, change := range map[string]func(body string) string{
		"2020-08-27":       func(body string) string { return body },
		"2025-06-30.basil": func(body string) string { return body },
		"2025-09-30": func(body string) string {
			return strings.Replace(body, `"`+c.Subscription+`"`, `{"id":"`+c.Subscription+`"}`, 1)
		},
	} {
		i := c.Invoices(7*24*time.Hour, 30*24*time.Hour, 2)[1]
		i.APIVersion = version
		e, err := webhook("whsec_a").Decode([]byte(change(string(i.Event()))))
		if err != nil {
			t.Fatal(err)
		}
		want := purchase.Event{
			ID: i.EventID, Type: purchase.TypeInvoicePaid, Created: i.Created, Livemode: true,
			Invoice: &purchase.Invoice{
				ID: i.InvoiceID, Subscription: c.Subscription, Customer: c.Customer, AmountPaid: new(int64(2999)), Currency: "usd",
				Tax: new(int64(0)), Reason: "subscription_cycle", Created: i.Created, PeriodStart: c.Created, PeriodEnd: i.PeriodEnd,
			},
		}
		if diff := cmp.Diff(want, e); diff != "" {
			t.Errorf("%s:\n%s", version, diff)
		}
	}
	first := c.Invoices(7*24*time.Hour, 30*24*time.Hour, 1)[0]
	if e, err := webhook("whsec_a").Decode(first.Event()); err != nil || e.Invoice.Reason != "subscription_create" || *e.Invoice.AmountPaid != 0 {
		t.Errorf("a trial's very first invoice: %+v, %v", e.Invoice, err)
	}
	e, err := webhook("whsec_a").Decode([]byte(`{"id":"evt_1","type":"invoice.paid","data":{"object":{"id":[],"subscription":7,"amount_paid":"1","period_start":"now"}}}`))
	if diff := cmp.Diff(&purchase.Invoice{}, e.Invoice); err != nil || diff != "" {
		t.Errorf("a strange one: %v\n%s", err, diff)
	}
}

// What real accounts send and the library's own types stumble over.
func TestWebhook_DecodeUnexpectedTypes(t *testing.T) {
	const session = `"id":"cs_1","mode":"payment","payment_status":"paid"`
	for name, tc := range map[string]struct {
		body  string
		check func(e purchase.Event) bool
	}{
		"request is a text (old accounts)": {
			`{"id":"evt_1","type":"t","request":"req_1","data":{"object":{` + session + `}}}`,
			func(e purchase.Event) bool { return e.Checkout != nil && e.Checkout.ID == "cs_1" },
		},
		"metadata is a list": {
			`{"id":"evt_1","type":"t","data":{"object":{` + session + `,"metadata":[],"currency":"usd"}}}`,
			func(e purchase.Event) bool { return len(e.Checkout.Metadata) == 0 && e.Checkout.Currency == "usd" },
		},
		"a metadata value is a number": {
			`{"id":"evt_1","type":"t","data":{"object":{` + session + `,"metadata":{"a":1,"ttclid":"x"}}}}`,
			func(e purchase.Event) bool {
				return len(e.Checkout.Metadata) == 1 && e.Checkout.Metadata["ttclid"] == "x" && e.Checkout.NonStrings["a"] && len(e.Checkout.NonStrings) == 1
			},
		},
		"customer_details is null": {
			`{"id":"evt_1","type":"t","data":{"object":{` + session + `,"customer_details":null,"customer_email":"a@b.example"}}}`,
			func(e purchase.Event) bool {
				return e.Checkout.Email == "" && e.Checkout.CustomerEmail == "a@b.example"
			},
		},
		"customer is expanded": {
			`{"id":"evt_1","type":"t","data":{"object":{` + session + `,"customer":{"id":"cus_1"},"subscription":7}}}`,
			func(e purchase.Event) bool { return e.Checkout.Customer == "cus_1" && e.Checkout.Subscription == "" },
		},
		"an amount past 2^53": {
			`{"id":"evt_1","type":"t","data":{"object":{` + session + `,"amount_total":9007199254740993}}}`,
			func(e purchase.Event) bool { return *e.Checkout.AmountTotal == 9007199254740993 },
		},
		"an amount past 2^63": {
			`{"id":"evt_1","type":"t","data":{"object":{` + session + `,"amount_total":99999999999999999999,"currency":"usd"}}}`,
			func(e purchase.Event) bool { return e.Checkout.AmountTotal == nil && e.Checkout.Currency == "usd" },
		},
		"an amount as a text": {
			`{"id":"evt_1","type":"t","data":{"object":{` + session + `,"amount_total":"2999"}}}`,
			func(e purchase.Event) bool { return e.Checkout.AmountTotal == nil },
		},
		"created is a text (thin events)": {
			`{"id":"evt_1","type":"v1.x","object":"v2.core.event","created":"2026-01-01T00:00:00Z"}`,
			func(e purchase.Event) bool {
				return e.Thin && e.Type == "x" && e.Created.Equal(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)) && e.Checkout == nil
			},
		},
		"no data": {`{"id":"evt_1","type":"t"}`, func(e purchase.Event) bool { return e.Checkout == nil }},
		"data is a text": {
			`{"id":"evt_1","type":"t","data":"x"}`,
			func(e purchase.Event) bool { return e.Checkout == nil },
		},
		"the object is a list": {
			`{"id":"evt_1","type":"t","data":{"object":[1]}}`,
			func(e purchase.Event) bool { return e.Checkout == nil },
		},
		"the object is an empty object": {
			`{"id":"evt_1","type":"t","data":{"object":{}}}`,
			func(e purchase.Event) bool { return e.Checkout != nil && e.Checkout.ID == "" },
		},
		"livemode on the session alone": {
			`{"id":"evt_1","type":"t","data":{"object":{` + session + `,"livemode":true}}}`,
			func(e purchase.Event) bool { return e.Livemode },
		},
	} {
		e, err := webhook("whsec_a").Decode([]byte(tc.body))
		if err != nil || !tc.check(e) {
			t.Errorf("%s: %+v %+v, %v", name, e, e.Checkout, err)
		}
	}
}

func TestWebhook_DecodeRefusesNonEvents(t *testing.T) {
	for _, body := range []string{
		``, `null`, `7`, `"x"`, `[]`, `{`, `{}`, `{"id":"evt_1"}`, `{"type":"t"}`, `{"id":"","type":"t"}`, `{"id":1,"type":"t"}`, `{"id":"evt_1","type":["t"]}`,
		`{"id":"evt_1","type":"t"} trailing`, `{"id":"evt_1","type":"t","deep":` + strings.Repeat("[", 1000) + strings.Repeat("]", 1000) + `}`,
		strings.Repeat(`{"a":`, 1<<17), // as deep as a body may be
	} {
		if e, err := webhook("whsec_a").Decode([]byte(body)); !errors.Is(err, stripe.ErrNotEvent) {
			t.Errorf("%.200s: %+v, %v", body, e, err)
		}
	}
}

func FuzzWebhook(f *testing.F) {
	c := stripegen.NewCheckout()
	f.Add(c.Event(), stripegen.Sign(c.Event(), "whsec_a", time.Now()))
	f.Add([]byte(`{"id":"evt_1","type":"t","data":{"object":{"metadata":[]}}}`), "t=1,v1=00")
	f.Add([]byte(`{"id":"\u0000","type":"t","created":1e99}`), ",,t=,v1=")
	w := webhook("whsec_a")
	f.Fuzz(func(t *testing.T, body []byte, header string) {
		_ = w.Verify(body, header)
		e, err := w.Decode(body)
		if err == nil && (e.ID == "" || e.Type == "") {
			t.Errorf("an event without id or type: %+v", e)
		}
		if err == nil && !json.Valid(body) {
			t.Errorf("no JSON: %q", body)
		}
	})
}
