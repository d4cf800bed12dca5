package purchase_test

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"purchase-relay/internal/purchase"
)

type (
	stripeEvent = purchase.Event
	session     = purchase.Checkout
	paidInvoice = purchase.Invoice
)

var received = time.Date(2026, 1, 2, 3, 4, 5, 600, time.UTC)

// event returns the modified event of a paid checkout.
func event(change func(e *stripeEvent, c *session)) purchase.Event {
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

// invoiceEvent returns the modified event of a paid invoice.
func invoiceEvent(change func(e *stripeEvent, i *paidInvoice)) purchase.Event {
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

func asIs[T any](*stripeEvent, *T) {}

// subscriptions returns rules for subscriptions and first payments.
func subscriptions() purchase.Rules {
	return purchase.Rules{Modes: map[string]bool{"subscription": true}, FirstPayment: true}
}

// decide returns an event's purchase and fails unless the decision is to record.
func decide(t *testing.T, e purchase.Event, rules purchase.Rules) purchase.Purchase {
	t.Helper()
	p, decision, err := purchase.FromEvent(e, rules, received)
	if decision != purchase.DecisionRecord || err != nil {
		t.Errorf("decision = %q, error = %v, want record", decision, err)
	}
	return p
}

func TestFromEvent_Checkouts(t *testing.T) {
	t.Parallel()
	const paid, unpaid, malformed = "pending  buyer@example.com", "awaiting_payment  ", "malformed"
	for name, tc := range map[string]struct {
		change func(e *stripeEvent, c *session)
		want   string // status reason email, a decision or malformed
	}{
		"paid": {asIs[session], paid},
		"trial": {func(_ *stripeEvent, c *session) {
			c.PaymentStatus = "no_payment_required"
		}, "skipped no_payment buyer@example.com"},
		"unpaid":                 {func(_ *stripeEvent, c *session) { c.PaymentStatus = "unpaid" }, unpaid},
		"unknown payment status": {func(_ *stripeEvent, c *session) { c.PaymentStatus = "half_paid" }, unpaid},
		"no payment status":      {func(_ *stripeEvent, c *session) { c.PaymentStatus = "" }, unpaid},
		"async succeeded":        {func(e *stripeEvent, _ *session) { e.Type = purchase.TypeAsyncSucceeded }, paid},
		"async failed": {func(e *stripeEvent, c *session) {
			e.Type, c.PaymentStatus = purchase.TypeAsyncFailed, "unpaid"
		}, "payment_failed  "},
		"no address":       {func(_ *stripeEvent, c *session) { c.Email = "" }, "rejected invalid_email "},
		"unusable address": {func(_ *stripeEvent, c *session) { c.Email = "none" }, "rejected invalid_email "},
		"unpaid without an address": {func(_ *stripeEvent, c *session) {
			c.PaymentStatus, c.Email = "unpaid", ""
		}, unpaid},
		"other type without an object": {func(e *stripeEvent, _ *session) {
			e.Type, e.Checkout = "customer.updated", nil
		}, "ignore"},
		"setup":             {func(_ *stripeEvent, c *session) { c.Mode = "setup" }, "ignore"},
		"payment mode":      {func(_ *stripeEvent, c *session) { c.Mode = "payment" }, "ignore"},
		"thin":              {func(e *stripeEvent, _ *session) { e.Thin, e.Checkout = true, nil }, "fetch"},
		"thin, other type":  {func(e *stripeEvent, _ *session) { e.Thin, e.Type = true, "x" }, "ignore"},
		"thin, foreign":     {func(e *stripeEvent, _ *session) { e.Thin, e.Account = true, "acct_1" }, "foreign"},
		"foreign":           {func(e *stripeEvent, _ *session) { e.Account = "acct_1" }, "foreign"},
		"no type":           {func(e *stripeEvent, _ *session) { e.Type = "" }, malformed},
		"no object":         {func(e *stripeEvent, _ *session) { e.Checkout = nil }, malformed},
		"no session id":     {func(_ *stripeEvent, c *session) { c.ID = "" }, malformed},
		"dot in session id": {func(_ *stripeEvent, c *session) { c.ID = "cs.1" }, malformed},
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
				t.Errorf("decision = %q, want %q (error %v)", got, tc.want, err)
			}
			if p.Status == purchase.StatusAwaitingPayment && !p.At.IsZero() {
				t.Errorf("at = %v of an unpaid purchase, want zero", p.At)
			}
		})
	}
}

// Invoices count with FIRST_PAYMENT only.
func TestFromEvent_IgnoresInvoicesWithoutFirstPayment(t *testing.T) {
	t.Parallel()
	rules := subscriptions()
	rules.FirstPayment = false
	_, decision, err := purchase.FromEvent(invoiceEvent(asIs[paidInvoice]), rules, received)
	if decision != purchase.DecisionIgnore || err != nil {
		t.Errorf("decision = %q, error = %v, want ignore", decision, err)
	}
}

func TestFromEvent_CheckoutFields(t *testing.T) {
	t.Parallel()
	p := decide(t, event(asIs[session]), subscriptions())
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
		change func(c *session)
		empty  func(p purchase.Purchase) bool
	}{
		"no amount": {
			func(c *session) { c.AmountTotal = nil },
			func(p purchase.Purchase) bool { return p.AmountMinor == nil && p.Currency == "usd" },
		},
		"negative amount": {
			func(c *session) { c.AmountTotal = new(int64(-1)) },
			func(p purchase.Purchase) bool { return p.AmountMinor == nil },
		},
		"no currency": {
			func(c *session) { c.Currency = "" },
			func(p purchase.Purchase) bool { return p.Currency == "" },
		},
		"malicious ids": {
			func(c *session) { c.Customer, c.Subscription, c.Invoice = "cus_\x00", "' OR 1=1", "in_<b>" },
			func(p purchase.Purchase) bool { return p.Customer == "" && p.Subscription == "" && p.Payment == "" },
		},
		"payment intent": {
			func(c *session) { c.PaymentIntent, c.Invoice = "pi_1", "in_1" },
			func(p purchase.Purchase) bool { return p.Payment == "pi_1" },
		},
		"invoice": {
			func(c *session) { c.Invoice = "in_1" },
			func(p purchase.Purchase) bool { return p.Payment == "in_1" },
		},
	} {
		p := decide(t, event(func(_ *stripeEvent, c *session) { tc.change(c) }), subscriptions())
		if p.Status != purchase.StatusPending || p.Email != "buyer@example.com" || !tc.empty(p) {
			t.Errorf("%s: purchase = %+v", name, p)
		}
	}
}

func TestFromEvent_Invoices(t *testing.T) {
	t.Parallel()
	p := decide(t, invoiceEvent(asIs[paidInvoice]), subscriptions())
	want := purchase.Purchase{
		ID: "in_1", Kind: purchase.KindFirstPayment, Status: purchase.StatusPending, Mode: "subscription",
		Livemode: true, AmountMinor: new(int64(2999)), Currency: "usd",
		At:       received.Add(-time.Hour).Truncate(time.Second),
		Customer: "cus_1", Subscription: "sub_1", PeriodStart: received.AddDate(0, 0, -7),
	}
	if diff := cmp.Diff(want, p); diff != "" {
		t.Errorf("first payment (-want +got):\n%s", diff)
	}
	for name, change := range map[string]func(i *paidInvoice){
		"0":                     func(i *paidInvoice) { i.AmountPaid = new(int64(0)) },
		"negative amount":       func(i *paidInvoice) { i.AmountPaid = new(int64(-1)) },
		"unknown amount":        func(i *paidInvoice) { i.AmountPaid = nil },
		"no subscription":       func(i *paidInvoice) { i.Subscription = "" },
		"invalid subscription":  func(i *paidInvoice) { i.Subscription = "sub.>" },
		"invoice of a checkout": func(i *paidInvoice) { i.Reason = "subscription_create" },
		"manual":                func(i *paidInvoice) { i.Reason = "manual" },
		"pending items":         func(i *paidInvoice) { i.Reason = "automatic_pending_invoice_item_invoice" },
	} {
		e := invoiceEvent(func(_ *stripeEvent, i *paidInvoice) { change(i) })
		_, decision, err := purchase.FromEvent(e, subscriptions(), received)
		if decision != purchase.DecisionIgnore || err != nil {
			t.Errorf("%s: decision = %q, error = %v, want ignore", name, decision, err)
		}
	}
	for name, change := range map[string]func(e *stripeEvent, i *paidInvoice){
		"no invoice":    func(e *stripeEvent, _ *paidInvoice) { e.Invoice = nil },
		"no id":         func(_ *stripeEvent, i *paidInvoice) { i.ID = "" },
		"dot in the id": func(_ *stripeEvent, i *paidInvoice) { i.ID = "in.1" },
	} {
		if _, _, err := purchase.FromEvent(invoiceEvent(change), subscriptions(), received); err == nil {
			t.Errorf("%s: error = nil, want one", name)
		}
	}
}

func TestFromEvent_ConsentStaffAndTrials(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		trial            bool
		trialEvent       string // TRIAL_EVENT_NAME
		consent          string
		email            string
		want             string // status and reason
		keys, kept, sent bool   // has match keys; kept for the first payment; sent as a trial event
	}{
		"sale":                  {consent: "yes", want: "pending ", keys: true},
		"sale without consent":  {consent: "no", want: "skipped no_consent"},
		"staff":                 {consent: "yes", email: "a@staff.example", want: "skipped internal"},
		"staff without consent": {consent: "no", email: "a@staff.example", want: "skipped no_consent"},
		"trial":                 {trial: true, consent: "yes", want: "skipped no_payment", keys: true, kept: true},
		"trial without consent": {trial: true, consent: "no", want: "skipped no_payment", kept: true},
		"sent trial without consent": {
			trial: true, trialEvent: "StartTrial", consent: "no", want: "skipped no_consent", kept: true,
		},
		"sent trial": {
			trial: true, trialEvent: "StartTrial", consent: "yes",
			want: "pending ", keys: true, kept: true, sent: true,
		},
		"sent trial of staff": {
			trial: true, trialEvent: "StartTrial", consent: "yes", email: "a@staff.example",
			want: "skipped internal", kept: true,
		},
	} {
		rules := subscriptions()
		rules.Consent = purchase.Consent{Key: "consent", Required: true}
		rules.Staff = purchase.Domains{"staff.example"}
		rules.TrialEvent = tc.trialEvent
		p := decide(t, event(func(_ *stripeEvent, c *session) {
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
			t.Errorf("%s: kept = %t, event name = %q, want %t, %t", name, p.Trial, p.EventName, tc.kept, tc.sent)
		}
		if hasKeys := p.Keys != (purchase.MatchKeys{}); hasKeys != tc.keys || (p.Content != nil) != tc.keys {
			t.Errorf("%s: keys = %+v, content = %v, want them: %t", name, p.Keys, p.Content, tc.keys)
		}
		if p.LimitedDataUse != tc.keys || (p.Withheld == "") != tc.keys {
			t.Errorf("%s: limited = %t, withheld = %q, want keys: %t", name, p.LimitedDataUse, p.Withheld, tc.keys)
		}
	}
}

// The amount precedes Stripe's payment_status.
func TestFromEvent_AmountDecides(t *testing.T) {
	t.Parallel()
	type want struct {
		status purchase.Status
		reason purchase.Reason
		kind   purchase.Kind
		event  string // name of the sent event; "": the worker's
		keep   bool   // for the first payment
	}
	sale := want{status: purchase.StatusPending, kind: purchase.KindCheckout}
	free := want{status: purchase.StatusSkipped, reason: purchase.ReasonNoPayment, kind: purchase.KindCheckout}
	discounted := free
	discounted.keep = true
	trial := want{status: purchase.StatusPending, kind: purchase.KindTrial, event: "StartTrial", keep: true}
	const sub, pay, paid, none = "subscription", "payment", "paid", "no_payment_required"
	for name, tc := range map[string]struct {
		mode, status    string
		total, discount *int64
		want            want
	}{
		"paid":                               {sub, paid, new(int64(2999)), new(int64(0)), sale},
		"paid, half discounted":              {sub, paid, new(int64(1500)), new(int64(1499)), sale},
		"paid, unknown amount":               {sub, paid, nil, nil, sale},
		"a trial":                            {sub, none, new(int64(0)), new(int64(0)), trial},
		"a trial without total_details":      {sub, none, new(int64(0)), nil, trial},
		"a trial reported as paid":           {sub, paid, new(int64(0)), nil, trial},
		"a trial reported as unpaid":         {sub, "unpaid", new(int64(0)), nil, trial},
		"a paid trial":                       {sub, paid, new(int64(100)), nil, sale},
		"no_payment_required with an amount": {sub, none, new(int64(2999)), nil, trial},
		"a trial, unknown amount":            {sub, none, nil, nil, trial},
		"a discounted first period":          {sub, paid, new(int64(0)), new(int64(2999)), discounted},
		"a full discount without payment":    {sub, none, new(int64(0)), new(int64(1)), discounted},
		"a free order":                       {pay, none, new(int64(0)), new(int64(0)), free},
		"a free order reported as paid":      {pay, paid, new(int64(0)), new(int64(500)), free},
		"the smallest one-time payment":      {pay, paid, new(int64(1)), nil, sale},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rules := subscriptions()
			rules.Modes[pay], rules.TrialEvent = true, "StartTrial"
			p := decide(t, event(func(_ *stripeEvent, c *session) {
				c.Mode, c.PaymentStatus, c.AmountTotal, c.Discount = tc.mode, tc.status, tc.total, tc.discount
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

// VALUE=net subtracts known tax and shipping, down to 0.
func TestFromEvent_ValueNet(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		total, tax, shipping *int64
		net                  *int64
	}{
		"tax and shipping":    {new(int64(2999)), new(int64(499)), new(int64(500)), new(int64(2000))},
		"neither known":       {new(int64(2999)), nil, nil, new(int64(2999))},
		"both zero":           {new(int64(2999)), new(int64(0)), new(int64(0)), new(int64(2999))},
		"more than the total": {new(int64(100)), new(int64(60)), new(int64(60)), new(int64(0))},
		"all of the total":    {new(int64(100)), nil, new(int64(100)), new(int64(0))},
		"negative parts":      {new(int64(100)), new(int64(-60)), new(int64(-1)), new(int64(100))},
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
				checkout := decide(t, event(func(_ *stripeEvent, c *session) {
					c.AmountTotal, c.Tax, c.Shipping = tc.total, tc.tax, tc.shipping
				}), rules)
				if diff := cmp.Diff(want, checkout.AmountMinor); diff != "" || checkout.Status != purchase.StatusPending {
					t.Errorf("VALUE=%s: checkout, %s (-want +got):\n%s", basis, checkout.Status, diff)
				}
				if want == nil {
					continue
				}
				paid := decide(t, invoiceEvent(func(_ *stripeEvent, i *paidInvoice) {
					i.AmountPaid, i.Tax, i.Shipping = tc.total, tc.tax, tc.shipping
				}), rules)
				if diff := cmp.Diff(want, paid.AmountMinor); diff != "" {
					t.Errorf("VALUE=%s: invoice (-want +got):\n%s", basis, diff)
				}
			}
		})
	}
}

func TestFromEvent_ClampsTheFuture(t *testing.T) {
	t.Parallel()
	rules := subscriptions()
	second := received.Truncate(time.Second)
	for name, tc := range map[string]struct{ created, want time.Time }{
		"the past":         {second.Add(-time.Hour), second.Add(-time.Hour)},
		"this second":      {second, second},
		"the next second":  {second.Add(time.Second), second},
		"in a month":       {second.AddDate(0, 1, 0), second},
		"in the year 9999": {time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC), second},
		"unknown":          {time.Time{}, second},
		"nine years ago":   {second.AddDate(-9, 0, 0), second.AddDate(-9, 0, 0)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, e := range []purchase.Event{
				event(func(e *stripeEvent, _ *session) { e.Created = tc.created }),
				invoiceEvent(func(e *stripeEvent, _ *paidInvoice) { e.Created = tc.created }),
			} {
				if got := decide(t, e, rules).At; !got.Equal(tc.want) {
					t.Errorf("%s: at = %v, want %v", e.Type, got, tc.want)
				}
			}
		})
	}
	// The start of a trial is not clamped: it is compared with its invoice's period, by the same clock.
	ahead := second.AddDate(0, 0, 7)
	trial := decide(t, event(func(e *stripeEvent, c *session) {
		e.Created, c.AmountTotal = ahead, new(int64(0))
	}), rules)
	if !trial.At.Equal(second) || !trial.PeriodStart.Equal(ahead) {
		t.Errorf("trial: at = %v, period start = %v, want %v, %v", trial.At, trial.PeriodStart, second, ahead)
	}
}

// The first valid address counts.
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
			p := decide(t, event(func(_ *stripeEvent, c *session) {
				c.Email, c.CustomerEmail, c.ExpandedEmail = tc.details, tc.prefill, tc.expanded
			}), subscriptions())
			if p.Email != tc.want || (p.Status == purchase.StatusRejected) != (tc.want == "") {
				t.Errorf("email = %q (%s), want %q", p.Email, p.Status, tc.want)
			}
		})
	}
}

// An invoice that ends a trial early has no previous period.
func TestFromEvent_TrialEndedEarly(t *testing.T) {
	t.Parallel()
	created := received.AddDate(0, 0, -1).Truncate(time.Second)
	before := created.AddDate(0, 0, -9)
	second, unknown := time.Second, time.Time{}
	earlier := created.Add(-2 * second)
	const update, cycle = "subscription_update", "subscription_cycle"
	for name, tc := range map[string]struct {
		reason              string
		start, end, created time.Time
		want                time.Time
	}{
		"ended early":                   {update, created, created, created, unknown},
		"ended early, a second between": {update, created.Add(-second), created, created, unknown},
		"ended early, created after":    {update, created, created, created.Add(second), unknown},
		"ended early, unknown creation": {update, created, created, unknown, unknown},
		"an upgrade in the middle":      {update, before, created, created, before},
		"an empty period long ago":      {update, before, before, created, before},
		"two seconds":                   {update, earlier, created, created, earlier},
		"a cycle of no length":          {cycle, created, created, created, created},
		"a cycle":                       {cycle, before, created, created, before},
		"unknown":                       {"", unknown, unknown, created, unknown},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := decide(t, invoiceEvent(func(_ *stripeEvent, i *paidInvoice) {
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
				event(func(e *stripeEvent, _ *session) { e.Account = tc.account }),
				invoiceEvent(func(e *stripeEvent, _ *paidInvoice) { e.Account = tc.account }),
			} {
				if _, decision, err := purchase.FromEvent(e, rules, received); decision != tc.want || err != nil {
					t.Errorf("%s: decision = %q, error = %v, want %q", e.Type, decision, err, tc.want)
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
			t.Errorf("ParseAccounts(%q): error = nil, want one", list)
		}
	}
}

func TestParseModes(t *testing.T) {
	t.Parallel()
	modes, err := purchase.ParseModes([]string{"subscription", " payment"})
	if err != nil || !modes["payment"] || !modes["subscription"] {
		t.Errorf("modes = %v, error = %v, want both modes", modes, err)
	}
	for _, list := range [][]string{nil, {""}, {"setup"}, {"subscription", "x"}} {
		if _, err := purchase.ParseModes(list); err == nil {
			t.Errorf("ParseModes(%q): error = nil, want one", list)
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
