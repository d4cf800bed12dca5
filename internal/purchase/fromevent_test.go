package purchase_test

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"purchase-relay/internal/purchase"
)

var received = time.Date(2026, 1, 2, 3, 4, 5, 600, time.UTC)

// event returns the event of a paid checkout, changed.
func event(change func(e *purchase.Event, c *purchase.Checkout)) purchase.Event {
	e := purchase.Event{
		ID: "evt_1", Type: purchase.TypeCompleted, Livemode: true,
		Created: received.Add(-time.Minute).Truncate(time.Second),
		Checkout: &purchase.Checkout{
			ID: "cs_1", Mode: "subscription", PaymentStatus: "paid", AmountTotal: new(int64(2999)), Currency: "USD",
			Customer: "cus_1", Subscription: "sub_1", Email: " Buyer@Example.com", Phone: "+12133734253",
		},
	}
	change(&e, e.Checkout)
	return e
}

// invoiceEvent returns the event of a paid invoice, changed.
func invoiceEvent(change func(e *purchase.Event, i *purchase.Invoice)) purchase.Event {
	e := purchase.Event{
		ID: "evt_2", Type: purchase.TypeInvoicePaid, Livemode: true,
		Created: received.Add(-time.Hour).Truncate(time.Second),
		Invoice: &purchase.Invoice{
			ID: "in_1", Subscription: "sub_1", Customer: "cus_1", AmountPaid: new(int64(2999)), Currency: "USD",
			PeriodStart: received.AddDate(0, 0, -7),
		},
	}
	change(&e, e.Invoice)
	return e
}

func asIs[T any](*purchase.Event, *T) {}

// subscriptions returns rules under which subscriptions and first payments count.
func subscriptions() purchase.Rules {
	return purchase.Rules{Modes: map[string]bool{"subscription": true}, FirstPayment: true}
}

// decide returns the purchase of an event, which must be recorded.
func decide(t *testing.T, e purchase.Event, rules purchase.Rules) purchase.Purchase {
	t.Helper()
	p, decision, err := purchase.FromEvent(e, rules, received)
	if decision != purchase.DecisionRecord || err != nil {
		t.Errorf("decision = %q, error %v, want record", decision, err)
	}
	return p
}

func TestFromEvent_Checkouts(t *testing.T) {
	t.Parallel()
	const paid, unpaid, malformed = "pending  buyer@example.com", "awaiting_payment  ", "malformed"
	for name, tc := range map[string]struct {
		change func(e *purchase.Event, c *purchase.Checkout)
		want   string // status reason email, a decision or malformed
	}{
		"paid": {asIs[purchase.Checkout], paid},
		"trial": {func(_ *purchase.Event, c *purchase.Checkout) {
			c.PaymentStatus = "no_payment_required"
		}, "skipped no_payment buyer@example.com"},
		"unpaid": {func(_ *purchase.Event, c *purchase.Checkout) {
			c.PaymentStatus = "unpaid"
		}, unpaid},
		"unknown payment status": {func(_ *purchase.Event, c *purchase.Checkout) {
			c.PaymentStatus = "half_paid"
		}, unpaid},
		"no payment status": {func(_ *purchase.Event, c *purchase.Checkout) { c.PaymentStatus = "" }, unpaid},
		"async succeeded": {func(e *purchase.Event, _ *purchase.Checkout) {
			e.Type = purchase.TypeAsyncSucceeded
		}, paid},
		"async failed": {func(e *purchase.Event, c *purchase.Checkout) {
			e.Type, c.PaymentStatus = purchase.TypeAsyncFailed, "unpaid"
		}, "payment_failed  "},
		"no address": {func(_ *purchase.Event, c *purchase.Checkout) {
			c.Email = ""
		}, "rejected invalid_email "},
		"unusable address": {func(_ *purchase.Event, c *purchase.Checkout) {
			c.Email = "none"
		}, "rejected invalid_email "},
		"unpaid without an address": {func(_ *purchase.Event, c *purchase.Checkout) {
			c.PaymentStatus, c.Email = "unpaid", ""
		}, unpaid},
		"other type without an object": {func(e *purchase.Event, _ *purchase.Checkout) {
			e.Type, e.Checkout = "customer.updated", nil
		}, "ignore"},
		"setup":        {func(_ *purchase.Event, c *purchase.Checkout) { c.Mode = "setup" }, "ignore"},
		"payment mode": {func(_ *purchase.Event, c *purchase.Checkout) { c.Mode = "payment" }, "ignore"},
		"thin": {func(e *purchase.Event, _ *purchase.Checkout) {
			e.Thin, e.Checkout = true, nil
		}, "fetch"},
		"thin, other type": {func(e *purchase.Event, _ *purchase.Checkout) {
			e.Thin, e.Type = true, "x"
		}, "ignore"},
		"thin, foreign": {func(e *purchase.Event, _ *purchase.Checkout) {
			e.Thin, e.Account = true, "acct_1"
		}, "foreign"},
		"foreign":           {func(e *purchase.Event, _ *purchase.Checkout) { e.Account = "acct_1" }, "foreign"},
		"no type":           {func(e *purchase.Event, _ *purchase.Checkout) { e.Type = "" }, malformed},
		"no object":         {func(e *purchase.Event, _ *purchase.Checkout) { e.Checkout = nil }, malformed},
		"no session id":     {func(_ *purchase.Event, c *purchase.Checkout) { c.ID = "" }, malformed},
		"dot in session id": {func(_ *purchase.Event, c *purchase.Checkout) { c.ID = "cs.1" }, malformed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, decision, err := purchase.FromEvent(event(tc.change), subscriptions(), received)
			got := string(decision)
			switch {
			case err != nil:
				got = malformed
			case decision == purchase.DecisionRecord:
				got = strings.Join([]string{string(p.Status), string(p.Reason), p.Email}, " ")
			}
			if got != tc.want {
				t.Errorf("decided %q, want %q (%v)", got, tc.want, err)
			}
			if p.Status == purchase.StatusAwaitingPayment && !p.At.IsZero() {
				t.Errorf("an unpaid purchase was paid at %v", p.At)
			}
		})
	}
}

// Without FIRST_PAYMENT an invoice is of a type that does not count.
func TestFromEvent_IgnoresInvoicesWithoutFirstPayment(t *testing.T) {
	t.Parallel()
	rules := subscriptions()
	rules.FirstPayment = false
	_, decision, err := purchase.FromEvent(invoiceEvent(asIs[purchase.Invoice]), rules, received)
	if decision != purchase.DecisionIgnore || err != nil {
		t.Errorf("decision = %q, error %v, want ignore", decision, err)
	}
}

func TestFromEvent_CheckoutFields(t *testing.T) {
	t.Parallel()
	p := decide(t, event(asIs[purchase.Checkout]), subscriptions())
	if p.Currency != "usd" || *p.AmountMinor != 2999 || p.Customer != "cus_1" || p.Subscription != "sub_1" {
		t.Errorf("purchase = %+v", p)
	}
	if want := received.Add(-time.Minute).Truncate(time.Second); !p.At.Equal(want) || !p.Livemode {
		t.Errorf("at = %v, livemode %v, want %v, true", p.At, p.Livemode, want)
	}
	if p.Keys.Email != purchase.HashEmail("buyer@example.com") || p.Keys.ExternalID != "" {
		t.Errorf("keys = %+v", p.Keys)
	}
	for name, tc := range map[string]struct {
		change func(c *purchase.Checkout)
		empty  func(p purchase.Purchase) bool
	}{
		"no amount": {
			func(c *purchase.Checkout) { c.AmountTotal = nil },
			func(p purchase.Purchase) bool { return p.AmountMinor == nil && p.Currency == "usd" },
		},
		"negative amount": {
			func(c *purchase.Checkout) { c.AmountTotal = new(int64(-1)) },
			func(p purchase.Purchase) bool { return p.AmountMinor == nil },
		},
		"no currency": {
			func(c *purchase.Checkout) { c.Currency = "" },
			func(p purchase.Purchase) bool { return p.Currency == "" },
		},
		"hostile ids": {
			func(c *purchase.Checkout) { c.Customer, c.Subscription = "cus_\x00", "' OR 1=1" },
			func(p purchase.Purchase) bool { return p.Customer == "" && p.Subscription == "" },
		},
	} {
		p := decide(t, event(func(_ *purchase.Event, c *purchase.Checkout) { tc.change(c) }), subscriptions())
		if p.Status != purchase.StatusPending || p.Email != "buyer@example.com" || !tc.empty(p) {
			t.Errorf("%s: purchase = %+v", name, p)
		}
	}
}

func TestFromEvent_Invoices(t *testing.T) {
	t.Parallel()
	p := decide(t, invoiceEvent(asIs[purchase.Invoice]), subscriptions())
	want := purchase.Purchase{
		ID: "in_1", Kind: purchase.KindFirstPayment, Status: purchase.StatusPending, Mode: "subscription",
		Livemode: true, AmountMinor: new(int64(2999)), Currency: "usd",
		At:       received.Add(-time.Hour).Truncate(time.Second),
		Customer: "cus_1", Subscription: "sub_1", PeriodStart: received.AddDate(0, 0, -7),
	}
	if diff := cmp.Diff(want, p); diff != "" {
		t.Errorf("first payment (-want +got):\n%s", diff)
	}
	for name, change := range map[string]func(i *purchase.Invoice){
		"of 0":                   func(i *purchase.Invoice) { i.AmountPaid = new(int64(0)) },
		"of a negative amount":   func(i *purchase.Invoice) { i.AmountPaid = new(int64(-1)) },
		"of an unknown amount":   func(i *purchase.Invoice) { i.AmountPaid = nil },
		"of no subscription":     func(i *purchase.Invoice) { i.Subscription = "" },
		"of a hostile id":        func(i *purchase.Invoice) { i.Subscription = "sub.>" },
		"a subscription's first": func(i *purchase.Invoice) { i.Reason = "subscription_create" },
		"manual":                 func(i *purchase.Invoice) { i.Reason = "manual" },
		"of single items":        func(i *purchase.Invoice) { i.Reason = "automatic_pending_invoice_item_invoice" },
	} {
		e := invoiceEvent(func(_ *purchase.Event, i *purchase.Invoice) { change(i) })
		_, decision, err := purchase.FromEvent(e, subscriptions(), received)
		if decision != purchase.DecisionIgnore || err != nil {
			t.Errorf("%s: decision = %q, error %v, want ignore", name, decision, err)
		}
	}
	for name, change := range map[string]func(e *purchase.Event, i *purchase.Invoice){
		"no invoice":    func(e *purchase.Event, _ *purchase.Invoice) { e.Invoice = nil },
		"no id":         func(_ *purchase.Event, i *purchase.Invoice) { i.ID = "" },
		"dot in the id": func(_ *purchase.Event, i *purchase.Invoice) { i.ID = "in.1" },
	} {
		if _, _, err := purchase.FromEvent(invoiceEvent(change), subscriptions(), received); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestFromEvent_ConsentStaffAndTrials(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		trial            bool
		event            string // TRIAL_EVENT_NAME
		consent          string
		email            string
		want             string // status and reason
		keys, kept, sent bool   // match keys; kept for the first payment; sent as an event of its own
	}{
		"sale":                  {consent: "yes", want: "pending ", keys: true},
		"sale without consent":  {consent: "no", want: "skipped no_consent"},
		"staff":                 {consent: "yes", email: "a@staff.example", want: "skipped internal"},
		"staff without consent": {consent: "no", email: "a@staff.example", want: "skipped no_consent"},
		"trial":                 {trial: true, consent: "yes", want: "skipped no_payment", keys: true, kept: true},
		"trial without consent": {trial: true, consent: "no", want: "skipped no_payment", kept: true},
		"sent trial without consent": {
			trial: true, event: "StartTrial", consent: "no", want: "skipped no_consent", kept: true,
		},
		"sent trial": {
			trial: true, event: "StartTrial", consent: "yes", want: "pending ", keys: true, kept: true, sent: true,
		},
		"sent trial of staff": {
			trial: true, event: "StartTrial", consent: "yes", email: "a@staff.example",
			want: "skipped internal", kept: true,
		},
	} {
		rules := subscriptions()
		rules.Consent = purchase.Consent{Key: "consent", Required: true}
		rules.Staff = purchase.Domains{"staff.example"}
		rules.TrialEvent = tc.event
		p := decide(t, event(func(_ *purchase.Event, c *purchase.Checkout) {
			c.Metadata = map[string]string{
				"consent": tc.consent, "ttclid": "E.C.P.abc", "content_id": "42", "limited_data_use": "true",
			}
			if tc.trial {
				c.PaymentStatus, c.AmountTotal = "no_payment_required", new(int64(0))
			}
			if tc.email != "" {
				c.Email = tc.email
			}
		}), rules)
		if got := string(p.Status) + " " + string(p.Reason); got != tc.want {
			t.Errorf("%s: state = %q, want %q", name, got, tc.want)
		}
		if p.Trial != tc.kept || (p.EventName != "") != tc.sent {
			t.Errorf("%s: kept = %v, event name %q", name, p.Trial, p.EventName)
		}
		if hasKeys := p.Keys != (purchase.MatchKeys{}); hasKeys != tc.keys || (p.Content != nil) != tc.keys {
			t.Errorf("%s: keys = %+v, content %v", name, p.Keys, p.Content)
		}
		if p.LimitedDataUse != tc.keys || (p.Withheld == "") != tc.keys {
			t.Errorf("%s: limited = %v, withheld %q", name, p.LimitedDataUse, p.Withheld)
		}
	}
}

// Money decides what a checkout is, before Stripe's word for it.
func TestFromEvent_MoneyDecides(t *testing.T) {
	t.Parallel()
	type want struct {
		status purchase.Status
		reason purchase.Reason
		kind   purchase.Kind
		name   string // of the event that is sent; "" is the worker's own
		keep   bool   // for the first payment
	}
	sale := want{status: purchase.StatusPending, kind: purchase.KindCheckout}
	free := want{status: purchase.StatusSkipped, reason: purchase.ReasonNoPayment, kind: purchase.KindCheckout}
	discounted := free
	discounted.keep = true
	trial := want{status: purchase.StatusPending, kind: purchase.KindTrial, name: "StartTrial", keep: true}
	const sub, pay, paid, none = "subscription", "payment", "paid", "no_payment_required"
	for name, tc := range map[string]struct {
		mode, status  string
		total, reduce *int64
		want          want
	}{
		"paid":                                {sub, paid, new(int64(2999)), new(int64(0)), sale},
		"paid, half of it discounted":         {sub, paid, new(int64(1500)), new(int64(1499)), sale},
		"paid, unknown amount":                {sub, paid, nil, nil, sale},
		"a trial":                             {sub, none, new(int64(0)), new(int64(0)), trial},
		"a trial without total_details":       {sub, none, new(int64(0)), nil, trial},
		"a trial that is called paid":         {sub, paid, new(int64(0)), nil, trial},
		"a trial that is called unpaid":       {sub, "unpaid", new(int64(0)), nil, trial},
		"a paid trial":                        {sub, paid, new(int64(100)), nil, sale},
		"a payment that is delayed by Stripe": {sub, none, new(int64(2999)), nil, trial},
		"a trial of an unknown amount":        {sub, none, nil, nil, trial},
		"a discounted first period":           {sub, paid, new(int64(0)), new(int64(2999)), discounted},
		"a discounted period without payment": {sub, none, new(int64(0)), new(int64(1)), discounted},
		"a free order":                        {pay, none, new(int64(0)), new(int64(0)), free},
		"a free order that is called paid":    {pay, paid, new(int64(0)), new(int64(500)), free},
		"the smallest one-time payment":       {pay, paid, new(int64(1)), nil, sale},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rules := subscriptions()
			rules.Modes[pay], rules.TrialEvent = true, "StartTrial"
			p := decide(t, event(func(_ *purchase.Event, c *purchase.Checkout) {
				c.Mode, c.PaymentStatus, c.AmountTotal, c.Discount = tc.mode, tc.status, tc.total, tc.reduce
				if tc.mode == pay {
					c.Subscription = ""
				}
			}), rules)
			if got := (want{p.Status, p.Reason, p.Kind, p.EventName, p.Trial}); got != tc.want {
				t.Errorf("purchase = %+v, want %+v", got, tc.want)
			}
		})
	}
}

// VALUE=net leaves out tax and shipping where Stripe names them, and is never below 0.
func TestFromEvent_ValueNet(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		total, tax, shipping *int64
		net                  *int64
	}{
		"tax and shipping":    {new(int64(2999)), new(int64(499)), new(int64(500)), new(int64(2000))},
		"neither known":       {new(int64(2999)), nil, nil, new(int64(2999))},
		"neither there":       {new(int64(2999)), new(int64(0)), new(int64(0)), new(int64(2999))},
		"more than the total": {new(int64(100)), new(int64(60)), new(int64(60)), new(int64(0))},
		"all of the total":    {new(int64(100)), nil, new(int64(100)), new(int64(0))},
		"negative ones":       {new(int64(100)), new(int64(-60)), new(int64(-1)), new(int64(100))},
		"largest": {
			new(int64(math.MaxInt64)), new(int64(math.MaxInt64)), new(int64(1)), new(int64(0)),
		},
		"an unknown total":       {nil, new(int64(60)), nil, nil},
		"a negative total":       {new(int64(-5)), new(int64(60)), nil, nil},
		"tax alone of a payment": {new(int64(1190)), new(int64(190)), nil, new(int64(1000))},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for basis, want := range map[purchase.ValueBasis]*int64{
				purchase.ValueNet: tc.net, purchase.ValueTotal: tc.total, "": tc.total,
			} {
				if want != nil && *want < 0 {
					want = nil
				}
				rules := subscriptions()
				rules.Value = basis
				checkout := decide(t, event(func(_ *purchase.Event, c *purchase.Checkout) {
					c.AmountTotal, c.Tax, c.Shipping = tc.total, tc.tax, tc.shipping
				}), rules)
				if diff := cmp.Diff(want, checkout.AmountMinor); diff != "" || checkout.Status != purchase.StatusPending {
					t.Errorf("VALUE=%s: a checkout's value, %s (-want +got):\n%s", basis, checkout.Status, diff)
				}
				if want == nil {
					continue
				}
				paid := decide(t, invoiceEvent(func(_ *purchase.Event, i *purchase.Invoice) {
					i.AmountPaid, i.Tax, i.Shipping = tc.total, tc.tax, tc.shipping
				}), rules)
				if diff := cmp.Diff(want, paid.AmountMinor); diff != "" {
					t.Errorf("VALUE=%s: an invoice's value (-want +got):\n%s", basis, diff)
				}
			}
		})
	}
}

// A time after the receipt, a test clock's for instance, becomes the receipt's.
func TestFromEvent_ClampsTheFuture(t *testing.T) {
	t.Parallel()
	rules := subscriptions()
	second := received.Truncate(time.Second)
	for name, tc := range map[string]struct{ created, want time.Time }{
		"the past":           {second.Add(-time.Hour), second.Add(-time.Hour)},
		"this second":        {second, second},
		"the next second":    {second.Add(time.Second), second},
		"in a month":         {second.AddDate(0, 1, 0), second},
		"in the year 9999":   {time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC), second},
		"never":              {time.Time{}, second},
		"of a very old list": {second.AddDate(-9, 0, 0), second.AddDate(-9, 0, 0)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sale := decide(t, event(func(e *purchase.Event, _ *purchase.Checkout) { e.Created = tc.created }), rules)
			if !sale.At.Equal(tc.want) {
				t.Errorf("checkout: at = %v, want %v", sale.At, tc.want)
			}
			first := decide(t, invoiceEvent(func(e *purchase.Event, _ *purchase.Invoice) { e.Created = tc.created }), rules)
			if !first.At.Equal(tc.want) {
				t.Errorf("invoice: at = %v, want %v", first.At, tc.want)
			}
		})
	}
	// A trial's beginning is Stripe's own time: its invoice's period is of the same clock.
	ahead := second.AddDate(0, 0, 7)
	trial := decide(t, event(func(e *purchase.Event, c *purchase.Checkout) {
		e.Created, c.AmountTotal = ahead, new(int64(0))
	}), rules)
	if !trial.At.Equal(second) || !trial.PeriodStart.Equal(ahead) {
		t.Errorf("trial: at %v, began %v, want %v and %v", trial.At, trial.PeriodStart, second, ahead)
	}
}

// Of the three places of an address the first usable one counts.
func TestFromEvent_EmailSources(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ details, prefill, expanded, want string }{
		"details first":         {"a@a.example", "b@b.example", "c@c.example", "a@a.example"},
		"prefilled next":        {"", "b@b.example", "c@c.example", "b@b.example"},
		"expanded customer":     {"", "", "C@c.example ", "c@c.example"},
		"unusable ones skipped": {"nobody", "@", "c@c.example", "c@c.example"},
		"none":                  {"nobody", "", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := decide(t, event(func(_ *purchase.Event, c *purchase.Checkout) {
				c.Email, c.CustomerEmail, c.ExpandedEmail = tc.details, tc.prefill, tc.expanded
			}), subscriptions())
			if p.Email != tc.want || (p.Status == purchase.StatusRejected) != (tc.want == "") {
				t.Errorf("email = %q, %s, want %q", p.Email, p.Status, tc.want)
			}
		})
	}
}

// An invoice that ends a trial early has no period; every other one has its own.
func TestFromEvent_EarlyEndOfTrial(t *testing.T) {
	t.Parallel()
	made := received.AddDate(0, 0, -1).Truncate(time.Second)
	before := made.AddDate(0, 0, -9)
	second, unknown := time.Second, time.Time{}
	const update, cycle = "subscription_update", "subscription_cycle"
	for name, tc := range map[string]struct {
		reason              string
		start, end, created time.Time
		want                time.Time
	}{
		"ended early":                   {update, made, made, made, unknown},
		"ended early, a second between": {update, made.Add(-second), made, made, unknown},
		"ended early, created after":    {update, made, made, made.Add(second), unknown},
		"ended early, unknown creation": {update, made, made, unknown, unknown},
		"an upgrade in the middle":      {update, before, made, made, before},
		"an empty period long ago":      {update, before, before, made, before},
		"two seconds":                   {update, made.Add(-2 * second), made, made, made.Add(-2 * second)},
		"a cycle of no length":          {cycle, made, made, made, made},
		"a cycle":                       {cycle, before, made, made, before},
		"unknown":                       {"", unknown, unknown, made, unknown},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := decide(t, invoiceEvent(func(_ *purchase.Event, i *purchase.Invoice) {
				i.Reason, i.PeriodStart, i.PeriodEnd, i.Created = tc.reason, tc.start, tc.end, tc.created
			}), subscriptions())
			if !p.PeriodStart.Equal(tc.want) {
				t.Errorf("period start = %v, want %v", p.PeriodStart, tc.want)
			}
		})
	}
}

func TestFromEvent_ConnectedAccounts(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		account string
		counted []string // CONNECT_ACCOUNTS
		want    purchase.Decision
	}{
		"own":               {"", nil, purchase.DecisionRecord},
		"own beside others": {"", []string{"acct_1"}, purchase.DecisionRecord},
		"none counts":       {"acct_1", nil, purchase.DecisionForeign},
		"others count":      {"acct_1", []string{"acct_2", " acct_11"}, purchase.DecisionForeign},
		"counts":            {"acct_1", []string{"acct_2", "acct_1"}, purchase.DecisionRecord},
		"all count":         {"acct_1", []string{"all"}, purchase.DecisionRecord},
		"upper case":        {"ACCT_1", []string{"acct_1"}, purchase.DecisionForeign},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			accounts, err := purchase.ParseAccounts(tc.counted)
			if err != nil {
				t.Fatal(err)
			}
			rules := subscriptions()
			rules.Accounts = accounts
			for _, e := range []purchase.Event{
				event(func(e *purchase.Event, _ *purchase.Checkout) { e.Account = tc.account }),
				invoiceEvent(func(e *purchase.Event, _ *purchase.Invoice) { e.Account = tc.account }),
			} {
				if _, decision, err := purchase.FromEvent(e, rules, received); decision != tc.want || err != nil {
					t.Errorf("%s: decision = %q, error %v, want %q", e.Type, decision, err, tc.want)
				}
			}
		})
	}
}

func TestParseAccounts_Invalid(t *testing.T) {
	t.Parallel()
	for _, list := range [][]string{
		{"acct"}, {"acct_"}, {"cus_1"}, {"acct_1", "acct_2.x"}, {"ALL"}, {"all", "acct_1"}, {"acct_1 acct_2"},
	} {
		if _, err := purchase.ParseAccounts(list); err == nil {
			t.Errorf("ParseAccounts(%q) = no error", list)
		}
	}
}

func TestParseModes(t *testing.T) {
	t.Parallel()
	m, err := purchase.ParseModes([]string{"subscription", "payment"})
	if err != nil || !m["payment"] || !m["subscription"] {
		t.Errorf("modes = %v, error %v", m, err)
	}
	for _, list := range [][]string{nil, {""}, {"setup"}, {"subscription", "x"}} {
		if _, err := purchase.ParseModes(list); err == nil {
			t.Errorf("ParseModes(%q) = no error", list)
		}
	}
}

// Types is called for each event.
func TestRules_TypesDoesNotAllocate(t *testing.T) {
	rules := subscriptions()
	if n := testing.AllocsPerRun(100, func() { _ = rules.Types() }); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}
