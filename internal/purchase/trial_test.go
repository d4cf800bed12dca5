package purchase_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"purchase-relay/internal/purchase"
	"purchase-relay/internal/testkit/permute"
)

const day = 24 * time.Hour

type purchases []*purchase.Purchase

var trialStart = time.Unix(1_790_000_000, 0).UTC()

// checkout returns the checkout of a trial.
func checkout() *purchase.Purchase {
	return &purchase.Purchase{
		ID: "cs_1", Kind: purchase.KindTrial, Status: purchase.StatusSkipped, Reason: purchase.ReasonNoPayment,
		At: trialStart, PeriodStart: trialStart, ClickExpires: trialStart.Add(7 * day),
	}
}

// invoice returns the n-th paid invoice of a subscription with a trial of a week.
func invoice(n int) *purchase.Purchase {
	p := &purchase.Purchase{ID: fmt.Sprintf("in_%d", n), PeriodStart: trialStart, At: trialStart.Add(7 * day)}
	if n > 1 {
		p.PeriodStart = trialStart.Add(7*day + time.Duration(n-2)*30*day)
		p.At = p.PeriodStart.Add(30 * day)
	}
	return p
}

// endedEarly returns the invoice that ends a trial early, without a previous period.
func endedEarly() *purchase.Purchase {
	return &purchase.Purchase{ID: "in_early", At: trialStart.Add(3 * day)}
}

// ahead returns a purchase by one of Stripe's test clocks. Its own time is clamped to the receipt.
func ahead(p *purchase.Purchase) *purchase.Purchase {
	p.PeriodStart = p.PeriodStart.AddDate(0, 3, 0)
	return p
}

func TestSubscription_FirstPayment(t *testing.T) {
	t.Parallel()
	skewed := invoice(1)
	skewed.PeriodStart = trialStart.Add(time.Hour)
	nextDay := invoice(1)
	nextDay.PeriodStart = trialStart.Add(day)
	for name, tc := range map[string]struct {
		arrived purchases
		want    string // result of each, see arrive
		first   string // the first payment
		expired string // the first payment after InvoiceHoldTime
	}{
		"trial alone":    {purchases{checkout()}, "trial", "", ""},
		"trial, invoice": {purchases{checkout(), invoice(1)}, "trial processed", "in_1", "in_1"},
		"invoice, trial": {purchases{invoice(1), checkout()}, "held converts", "in_1", "in_1"},
		"clock skew":     {purchases{checkout(), skewed}, "trial processed", "in_1", "in_1"},
		"a day later":    {purchases{checkout(), nextDay}, "trial held", "", "in_1"},
		"test clock":     {purchases{ahead(checkout()), ahead(invoice(1))}, "trial processed", "in_1", "in_1"},
		"renewal": {
			purchases{checkout(), invoice(1), invoice(2)},
			"trial processed ignored", "in_1", "in_1",
		},
		"renewal before the first invoice": {
			purchases{checkout(), invoice(2), invoice(1)},
			"trial held processed", "in_1", "in_1",
		},
		"renewals out of order": {
			purchases{invoice(3), checkout(), invoice(2), invoice(4)},
			"held trial held ignored", "", "in_2",
		},
		"repeated": {
			purchases{invoice(2), invoice(2), checkout(), checkout(), invoice(1), invoice(1), checkout()},
			"held duplicate trial trial processed duplicate trial", "in_1", "in_1",
		},
		"ended early": {
			purchases{checkout(), endedEarly(), invoice(2)},
			"trial processed ignored", "in_early", "in_early",
		},
		"ended early, out of order": {
			purchases{invoice(2), endedEarly(), checkout()},
			"held held converts", "in_early", "in_early",
		},
		"without a trial": {purchases{invoice(2), invoice(1)}, "held held", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var s purchase.Subscription
			var got []string
			for _, p := range tc.arrived {
				var result string
				if s, result = arrive(s, p); result == "processed" || result == "converts" {
					s, _ = s.Convert(nil)
				}
				got = append(got, result)
			}
			if got := strings.Join(got, " "); got != tc.want || s.FirstPayment != tc.first {
				t.Errorf("results = %s, first payment = %q, want %s, %q", got, s.FirstPayment, tc.want, tc.first)
			}
			if s.Converts(true) {
				s, _ = s.Convert(nil)
			}
			if s.FirstPayment != tc.expired {
				t.Errorf("first payment after InvoiceHoldTime = %q, want %q", s.FirstPayment, tc.expired)
			}
		})
	}
}

// arrive adds a checkout or an invoice. The result is "trial", "converts" or the disposition.
func arrive(s purchase.Subscription, p *purchase.Purchase) (next purchase.Subscription, result string) {
	if p.Kind == purchase.KindTrial {
		next, converts := s.AddTrial(p)
		if converts {
			return next, "converts"
		}
		return next, "trial"
	}
	next, d := s.AddInvoice(p)
	return next, string(d)
}

func TestSubscription_AnyOrder(t *testing.T) {
	t.Parallel()
	all := purchases{checkout(), invoice(1), invoice(2), invoice(3)}
	for _, order := range permute.Of(len(all)) {
		var s purchase.Subscription
		converted := 0
		for _, i := range slices.Concat(order, order) {
			var result string
			if s, result = arrive(s, all[i]); result == "processed" || result == "converts" {
				s, _ = s.Convert(nil)
				converted++
			}
		}
		if s.FirstPayment != "in_1" || converted != 1 {
			t.Errorf("first payment = %q, converted %d times, want in_1 once", s.FirstPayment, converted)
		}
	}
}

func TestSubscription_Convert(t *testing.T) {
	t.Parallel()
	stored := &purchase.Purchase{
		ID: "cs_1", EventName: "StartTrial", Keys: purchase.MatchKeys{TTCLID: "E.C.P.abc"},
		Content: &purchase.Content{ID: "plan"}, LimitedDataUse: true,
	}
	for name, tc := range map[string]struct {
		withheld purchase.Reason
		stored   *purchase.Purchase
		status   purchase.Status
		reason   purchase.Reason
	}{
		"sent":       {"", stored, purchase.StatusPending, ""},
		"no consent": {purchase.ReasonNoConsent, stored, purchase.StatusSkipped, purchase.ReasonNoConsent},
		"staff":      {purchase.ReasonInternal, nil, purchase.StatusSkipped, purchase.ReasonInternal},
		"forgotten":  {"", nil, purchase.StatusSkipped, purchase.ReasonForgotten},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			trial := checkout()
			trial.Withheld = tc.withheld
			s, _ := purchase.Subscription{}.AddTrial(trial)
			s, d := s.AddInvoice(invoice(1))
			if d != purchase.Processed {
				t.Fatalf("disposition = %q, want %q", d, purchase.Processed)
			}
			s, got := s.Convert(tc.stored)
			want := *invoice(1)
			want.Kind, want.Status, want.Reason = purchase.KindFirstPayment, tc.status, tc.reason
			if tc.status == purchase.StatusPending {
				want.Keys, want.Content = stored.Keys, stored.Content
				want.LimitedDataUse, want.ClickExpires = true, trial.ClickExpires
			}
			if diff := cmp.Diff(want, got); diff != "" || s.FirstPayment != "in_1" || s.Converts(true) {
				t.Errorf("subscription = %+v, payment (-want +got):\n%s", s, diff)
			}
		})
	}
}
