package intake_test

import (
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"purchase-relay/internal/intake"
	"purchase-relay/internal/purchase"
)

// Money decides what a checkout is, before Stripe's word for it.
func TestPropose_MoneyDecides(t *testing.T) {
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
			rules := intake.Rules{Modes: map[string]bool{sub: true, pay: true}, TrialEvent: "StartTrial", FirstPayment: true}
			p, ours, err := intake.Propose(event(func(e *purchase.Event) {
				c := e.Checkout
				c.Mode, c.PaymentStatus, c.AmountTotal, c.Discount = tc.mode, tc.status, tc.total, tc.reduce
				if tc.mode == pay {
					c.Subscription = ""
				}
			}), rules, received)
			if err != nil || !ours {
				t.Fatalf("ours = %v, error %v", ours, err)
			}
			if got := (want{p.Status, p.Reason, p.Kind, p.EventName, p.Trial}); got != tc.want {
				t.Errorf("purchase = %+v, want %+v", got, tc.want)
			}
		})
	}
}

// VALUE=net leaves tax and shipping out, as far as Stripe names them, and never goes below zero: money moved.
func TestPropose_ValueNet(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		total, tax, shipping *int64
		net                  *int64
	}{
		"tax and shipping":       {new(int64(2999)), new(int64(499)), new(int64(500)), new(int64(2000))},
		"neither known":          {new(int64(2999)), nil, nil, new(int64(2999))},
		"neither there":          {new(int64(2999)), new(int64(0)), new(int64(0)), new(int64(2999))},
		"more than the total":    {new(int64(100)), new(int64(60)), new(int64(60)), new(int64(0))},
		"all of the total":       {new(int64(100)), nil, new(int64(100)), new(int64(0))},
		"negative ones":          {new(int64(100)), new(int64(-60)), new(int64(-1)), new(int64(100))},
		"the largest there are":  {new(int64(math.MaxInt64)), new(int64(math.MaxInt64)), new(int64(1)), new(int64(0))},
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
				rules := intake.Rules{Modes: map[string]bool{"subscription": true}, FirstPayment: true, Value: basis}
				checkout, _, err := intake.Propose(event(func(e *purchase.Event) {
					c := e.Checkout
					c.AmountTotal, c.Tax, c.Shipping = tc.total, tc.tax, tc.shipping
				}), rules, received)
				if err != nil || checkout.Status != purchase.StatusPending {
					t.Errorf("VALUE=%s: %s, want pending, error %v", basis, checkout.Status, err)
				}
				if diff := cmp.Diff(want, checkout.AmountMinor); diff != "" {
					t.Errorf("VALUE=%s: a checkout's value (-want +got):\n%s", basis, diff)
				}
				if want == nil {
					continue
				}
				paid, ours, err := intake.Propose(invoice(func(e *purchase.Event) {
					e.Invoice.AmountPaid, e.Invoice.Tax, e.Invoice.Shipping = tc.total, tc.tax, tc.shipping
				}), rules, received)
				if diff := cmp.Diff(want, paid.AmountMinor); err != nil || !ours || diff != "" {
					t.Errorf("VALUE=%s: an invoice's value, error %v (-want +got):\n%s", basis, err, diff)
				}
			}
		})
	}
}

// A time ahead of our clock, of a test clock for instance, is the receipt's, to the second.
func TestPropose_ClampsTheFuture(t *testing.T) {
	t.Parallel()
	rules := intake.Rules{Modes: map[string]bool{"subscription": true}, FirstPayment: true}
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
			sale, _, err := intake.Propose(event(func(e *purchase.Event) { e.Created = tc.created }), rules, received)
			if err != nil || !sale.At.Equal(tc.want) {
				t.Errorf("checkout: at %v, want %v, error %v", sale.At, tc.want, err)
			}
			first, _, err := intake.Propose(invoice(func(e *purchase.Event) { e.Created = tc.created }), rules, received)
			if err != nil || !first.At.Equal(tc.want) {
				t.Errorf("invoice: at %v, want %v, error %v", first.At, tc.want, err)
			}
		})
	}
	// A trial's beginning is Stripe's own time: its invoice's period is of the same clock.
	ahead := second.AddDate(0, 0, 7)
	trial, _, err := intake.Propose(event(func(e *purchase.Event) {
		e.Created, e.Checkout.AmountTotal = ahead, new(int64(0))
	}), rules, received)
	if err != nil || !trial.At.Equal(second) || !trial.PeriodStart.Equal(ahead) {
		t.Errorf("trial: at %v, began %v, want %v and %v, error %v", trial.At, trial.PeriodStart, second, ahead, err)
	}
}

// Of the three places of an address the first usable one counts.
func TestPropose_EmailSources(t *testing.T) {
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
			p, _, err := intake.Propose(event(func(e *purchase.Event) {
				c := e.Checkout
				c.Email, c.CustomerEmail, c.ExpandedEmail = tc.details, tc.prefill, tc.expanded
			}), intake.Rules{Modes: map[string]bool{"subscription": true}}, received)
			if err != nil || p.Email != tc.want || (p.Status == purchase.StatusRejected) != (tc.want == "") {
				t.Errorf("email = %q, %s, want %q, error %v", p.Email, p.Status, tc.want, err)
			}
		})
	}
}

// An invoice that ends a trial early looks back on no time; every other one on its own.
func TestPropose_EarlyEndOfTrial(t *testing.T) {
	t.Parallel()
	rules := intake.Rules{Modes: map[string]bool{"subscription": true}, FirstPayment: true}
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
			p, ours, err := intake.Propose(invoice(func(e *purchase.Event) {
				i := e.Invoice
				i.Reason, i.PeriodStart, i.PeriodEnd, i.Created = tc.reason, tc.start, tc.end, tc.created
			}), rules, received)
			if err != nil || !ours || !p.PeriodStart.Equal(tc.want) {
				t.Errorf("looks back to %v, want %v; ours %v, error %v", p.PeriodStart, tc.want, ours, err)
			}
		})
	}
}

func TestPropose_ConnectedAccounts(t *testing.T) {
	t.Parallel()
	accounts := func(list ...string) intake.Accounts {
		a, err := intake.ParseAccounts(list)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	for name, tc := range map[string]struct {
		account string
		counts  intake.Accounts
		want    bool
	}{
		"one's own":            {"", accounts(), true},
		"one's own, others":    {"", accounts("acct_1"), true},
		"another":              {"acct_1", accounts(), false},
		"another than named":   {"acct_1", accounts("acct_2", " acct_11"), false},
		"named":                {"acct_1", accounts("acct_2", "acct_1"), true},
		"all":                  {"acct_1", accounts("all"), true},
		"named in other cases": {"ACCT_1", accounts("acct_1"), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rules := intake.Rules{Modes: map[string]bool{"subscription": true}, FirstPayment: true, Accounts: tc.counts}
			_, checkout, err := intake.Propose(event(func(e *purchase.Event) { e.Account = tc.account }), rules, received)
			if err != nil || checkout != tc.want {
				t.Errorf("checkout: ours = %v, want %v, error %v", checkout, tc.want, err)
			}
			_, paid, err := intake.Propose(invoice(func(e *purchase.Event) { e.Account = tc.account }), rules, received)
			if err != nil || paid != tc.want {
				t.Errorf("invoice: ours = %v, want %v, error %v", paid, tc.want, err)
			}
		})
	}
	for _, bad := range [][]string{
		{"acct"}, {"acct_"}, {"cus_1"}, {"acct_1", "acct_2.x"}, {"ALL"}, {"all", "acct_1"}, {"acct_1 acct_2"},
	} {
		if _, err := intake.ParseAccounts(bad); err == nil {
			t.Errorf("ParseAccounts(%q) = no error", bad)
		}
	}
}
