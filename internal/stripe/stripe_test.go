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
	signed := sign("whsec_a", now)
	stamp, v1, _ := strings.Cut(signed, ",")
	v0 := "v0=" + strings.TrimPrefix(v1, "v1=")
	for name, tc := range map[string]struct {
		header string
		want   error
	}{
		"signed":                        {signed, nil},
		"signed with the other secret":  {sign("whsec_b", now), nil},
		"several signatures":            {stamp + ",v1=" + strings.Repeat("0", 64) + "," + v1, nil},
		"a v0 beside it":                {signed + ",v0=" + strings.Repeat("1", 64), nil},
		"four minutes old":              {sign("whsec_a", now.Add(-4*time.Minute)), nil},
		"four minutes ahead":            {sign("whsec_a", now.Add(4*time.Minute)), nil},
		"none":                          {"", stripe.ErrMissing},
		"no time":                       {v1, stripe.ErrStale}, // the library checks the time first
		"garbage":                       {"t=x,v1=y", stripe.ErrMalformed},
		"other secret":                  {sign("whsec_c", now), stripe.ErrWrong},
		"empty secret":                  {sign("", now), stripe.ErrWrong},
		"stale":                         {sign("whsec_a", now.Add(-301*time.Second)), stripe.ErrStale},
		"from the future":               {sign("whsec_b", now.Add(302*time.Second)), stripe.ErrFuture},
		"from the far future":           {sign("whsec_a", now.AddDate(50, 0, 0)), stripe.ErrFuture},
		"only a v0 (test mode's dummy)": {stamp + "," + v0, stripe.ErrWrong},
	} {
		w := stripe.NewWebhook([]secret.String{"whsec_a", "whsec_b"}, func() time.Time { return now })
		if err := w.Verify(body, tc.header); !errors.Is(err, tc.want) {
			t.Errorf("%s: error = %v, want %v", name, err, tc.want)
		}
	}
	if err := webhook("").Verify(body, sign("", now)); err == nil {
		t.Error("empty secret: error = nil, want one")
	}
}

// While the secrets are replaced, each signature is checked against the old or the new list.
func TestWebhook_SetSecretsDuringVerify(t *testing.T) {
	t.Parallel()
	body := stripegen.NewCheckout().Event()
	w := webhook("whsec_a", "whsec_b")
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		lists := [][]secret.String{{"whsec_b"}, {"whsec_b", "whsec_c"}, {"", "whsec_b"}}
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				w.SetSecrets(lists[i%len(lists)])
			}
		}
	}()
	for range 1000 {
		if err := w.Verify(body, stripegen.Sign(body, "whsec_b", time.Now())); err != nil {
			t.Fatalf("secret of every list: error = %v, want none", err)
		}
	}
	close(stop)
	<-ended
	w.SetSecrets([]secret.String{"whsec_c"})
	for key, want := range map[string]error{
		"whsec_a": stripe.ErrWrong, "whsec_b": stripe.ErrWrong, "whsec_c": nil,
	} {
		if err := w.Verify(body, stripegen.Sign(body, key, time.Now())); !errors.Is(err, want) {
			t.Errorf("%s after the rotation: error = %v, want %v", key, err, want)
		}
	}
}

func TestParseSecrets(t *testing.T) {
	got, problems := stripe.ParseSecrets(" whsec_a, whsec_b ")
	if len(got) != 2 || got[0].Reveal() != "whsec_a" || got[1].Reveal() != "whsec_b" || len(problems) > 0 {
		t.Errorf("%d secrets, problems = %v, want 2 and none", len(got), problems)
	}
	for _, list := range []secret.String{
		"", "whsec_a,", "whsec_", "hunter2", "whsec_a\nwhsec_b", "whsec_a whsec_b", "\ufeffwhsec_a", "whsec_a\x00",
	} {
		_, problems := stripe.ParseSecrets(list)
		if len(problems) == 0 || strings.Contains(strings.Join(problems, ""), "hunter2") {
			t.Errorf("ParseSecrets(%q): problems = %v, want some without the value", list.Reveal(), problems)
		}
	}
}

func TestWebhook_Decode(t *testing.T) {
	c := stripegen.NewCheckout()
	c.APIVersion, c.City, c.State, c.Zip = "2031-01-01.unknown", "New York", "NY", "10001"
	c.Reference, c.Locale = "order-7", "pt-BR"
	want := purchase.Event{
		ID: c.EventID, Type: c.Type, Created: c.Created,
		Checkout: &purchase.Checkout{
			ID: c.SessionID, Mode: "subscription", PaymentStatus: "paid", AmountTotal: c.AmountTotal, Currency: "usd",
			Customer: c.Customer, Subscription: c.Subscription, Email: *c.Email, Phone: *c.Phone,
			Discount: new(int64(0)), Tax: new(int64(0)), Shipping: new(int64(0)), Name: *c.Name, Metadata: c.Metadata,
			Address:   purchase.Address{City: "New York", State: "NY", PostalCode: "10001", Country: "US"},
			Reference: "order-7", Locale: "pt-BR", Created: c.Created.Add(-time.Minute),
		},
	}
	if diff := cmp.Diff(want, decode(t, c.Event())); diff != "" {
		t.Errorf("event (-want +got):\n%s", diff)
	}
}

// The field of an invoice's subscription depends on the API version. It may be expanded.
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
		want := purchase.Event{
			ID: i.EventID, Type: purchase.TypeInvoicePaid, Created: i.Created, Livemode: true,
			Invoice: &purchase.Invoice{
				ID: i.InvoiceID, Subscription: c.Subscription, Customer: c.Customer, Currency: "usd",
				AmountPaid: new(int64(2999)), Tax: new(int64(0)), Reason: "subscription_cycle",
				Created: i.Created, PeriodStart: c.Created, PeriodEnd: i.PeriodEnd,
			},
		}
		if diff := cmp.Diff(want, decode(t, []byte(change(string(i.Event()))))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", version, diff)
		}
	}
	ofCheckout := decode(t, c.Invoices(7*24*time.Hour, 30*24*time.Hour, 1)[0].Event()).Invoice
	if ofCheckout.Reason != "subscription_create" || *ofCheckout.AmountPaid != 0 {
		t.Errorf("invoice of the checkout = %+v, want subscription_create of 0", ofCheckout)
	}
	const object = `{"id":[],"subscription":7,"amount_paid":"1","period_start":"now"}`
	unexpected := decode(t, []byte(`{"id":"evt_1","type":"invoice.paid","data":{"object":`+object+`}}`))
	if diff := cmp.Diff(&purchase.Invoice{}, unexpected.Invoice); diff != "" {
		t.Errorf("invoice of unexpected types (-want +got):\n%s", diff)
	}
}

// Real accounts send fields of other types than the API reference and the library have.
func TestWebhook_DecodeUnexpectedTypes(t *testing.T) {
	type event = purchase.Event
	for name, tc := range map[string]struct {
		session string // fields of the session
		check   func(c *purchase.Checkout) bool
	}{
		"metadata is a list": {`"metadata":[],"currency":"usd"`, func(c *purchase.Checkout) bool {
			return len(c.Metadata) == 0 && c.Currency == "usd"
		}},
		"a metadata value is a number": {`"metadata":{"a":1,"ttclid":"x"}`, func(c *purchase.Checkout) bool {
			return cmp.Equal(c.Metadata, map[string]string{"ttclid": "x"}) &&
				cmp.Equal(c.NonStrings, map[string]bool{"a": true})
		}},
		"customer_details is null": {
			`"customer_details":null,"customer_email":"a@b.example"`,
			func(c *purchase.Checkout) bool { return c.Email == "" && c.CustomerEmail == "a@b.example" },
		},
		"customer is expanded": {
			`"customer":{"id":"cus_1"},"subscription":7`,
			func(c *purchase.Checkout) bool { return c.Customer == "cus_1" && c.Subscription == "" },
		},
		"payment_intent and invoice are expanded": {
			`"payment_intent":{"id":"pi_1"},"invoice":{"id":"in_1"}`,
			func(c *purchase.Checkout) bool { return c.PaymentIntent == "pi_1" && c.Invoice == "in_1" },
		},
		"an amount past 2^53": {
			`"amount_total":9007199254740993`,
			func(c *purchase.Checkout) bool { return *c.AmountTotal == 9007199254740993 },
		},
		"an amount past 2^63": {
			`"amount_total":99999999999999999999,"currency":"usd"`,
			func(c *purchase.Checkout) bool { return c.AmountTotal == nil && c.Currency == "usd" },
		},
		"an amount is a string": {
			`"amount_total":"2999"`, func(c *purchase.Checkout) bool { return c.AmountTotal == nil },
		},
	} {
		body := `{"id":"evt_1","type":"t","data":{"object":{"id":"cs_1","mode":"payment",` + tc.session + `}}}`
		if c := decode(t, []byte(body)).Checkout; c == nil || !tc.check(c) {
			t.Errorf("%s: checkout = %+v", name, c)
		}
	}
	noCheckout := func(e event) bool { return e.Checkout == nil }
	for name, tc := range map[string]struct {
		fields string // after id
		check  func(e event) bool
	}{
		"request is a string": {
			`"type":"t","request":"req_1","data":{"object":{"id":"cs_1"}}`,
			func(e event) bool { return e.Checkout != nil && e.Checkout.ID == "cs_1" },
		},
		"no data":              {`"type":"t"`, noCheckout},
		"data is a string":     {`"type":"t","data":"x"`, noCheckout},
		"the object is a list": {`"type":"t","data":{"object":[1]}`, noCheckout},
		"the object is empty": {
			`"type":"t","data":{"object":{}}`,
			func(e event) bool { return e.Checkout != nil && e.Checkout.ID == "" },
		},
		"livemode of the session only": {
			`"type":"t","data":{"object":{"id":"cs_1","livemode":true}}`, func(e event) bool { return e.Livemode },
		},
	} {
		if e := decode(t, []byte(`{"id":"evt_1",`+tc.fields+`}`)); !tc.check(e) {
			t.Errorf("%s: event = %+v, checkout = %+v", name, e, e.Checkout)
		}
	}
}

func TestWebhook_DecodeRejectsNonEvents(t *testing.T) {
	for _, body := range []string{
		``, `null`, `7`, `"x"`, `[]`, `{`, `{}`, `{"id":"evt_1"}`, `{"type":"t"}`, `{"id":"","type":"t"}`,
		`{"id":1,"type":"t"}`, `{"id":"evt_1","type":["t"]}`, `{"id":"evt_1","type":"t"} trailing`,
		`{"id":"evt_1","type":"t","deep":` + strings.Repeat("[", 1000) + strings.Repeat("]", 1000) + `}`,
		strings.Repeat(`{"a":`, 1<<17), // the depth of a body of 640 KiB
	} {
		if e, err := webhook("whsec_a").Decode([]byte(body)); !errors.Is(err, stripe.ErrNotEvent) {
			t.Errorf("Decode(%.200s) = %+v, error = %v, want ErrNotEvent", body, e, err)
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
			t.Errorf("event = %+v, want id and type", e)
		}
		if err == nil && !json.Valid(body) {
			t.Errorf("Decode(%q): error = nil, want one for invalid JSON", body)
		}
	})
}
