package dashboard_test

import (
	"context"
	"errors"
	"html"
	"strings"
	"testing"
	"time"

	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/dashboard"
	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
)

// mainText returns the visible text of a page's main part in one line.
func mainText(page string) string {
	_, page, _ = strings.Cut(page, "<main")
	page, _, _ = strings.Cut(page, "</main>")
	return strings.Join(strings.Fields(html.UnescapeString(tag.ReplaceAllString(page, " "))), " ")
}

// Each state's page has no sentence that is false for it: the pages once said that an unpaid purchase is
// never sent, that the customer of a forgotten one is in the database, and that more attempts will come.
func TestPurchase_SaysWhatIsTrueOfEachState(t *testing.T) {
	t.Parallel()
	message := []byte(`{"event_id":"x"}`)
	at := func(ago time.Duration) *time.Time { return new(now.Add(-ago)) }
	customer := func(r *report.Row) {
		r.ProfileID, r.Customer = new("5f1d7a4e-0000-4000-8000-000000000001"), new("cus_1")
	}
	for name, tc := range map[string]struct {
		status  purchase.Status
		reason  purchase.Reason
		change  func(r *report.Row)
		wanted  []string
		without []string
	}{
		"awaiting payment": {
			purchase.StatusAwaitingPayment, "", func(r *report.Row) { r.PurchasedAt = nil },
			[]string{"Unpaid checkout of 29.99 USD", "It is made when the payment succeeds"},
			[]string{"ever sent", "Send round", "e-mail address is only", "Paid", "No attempts"},
		},
		"payment failed": {
			purchase.StatusPaymentFailed, "", func(r *report.Row) { r.PurchasedAt = nil },
			[]string{"Unpaid checkout", "It is made when the payment succeeds", "If the payment succeeds later"},
			[]string{"ever sent", "Send round", "Paid"},
		},
		"rejected": {
			purchase.StatusRejected, purchase.ReasonInvalidEmail, func(*report.Row) {},
			[]string{"give access by hand", "Paid", "without a usable e-mail address is not sent"},
			[]string{"e-mail address is only", "Send round", "Replay"},
		},
		"pending": {
			purchase.StatusPending, "", func(r *report.Row) { customer(r); r.Envelope = message },
			[]string{"Request to send", "Purchase of 29.99 USD", "e-mail address is only"},
			[]string{"Send round", "Replay"},
		},
		"pending again": {
			purchase.StatusPending, "", func(r *report.Row) {
				customer(r)
				r.Envelope, r.Generation, r.AttemptCount, r.LastError = message, 2, 1, new("no good")
			},
			[]string{"Request of each attempt", "Send round 2", "TikTok's last error: no good"},
			[]string{"Replay …"},
		},
		"retrying": {
			purchase.StatusRetrying, "", func(r *report.Row) {
				r.Envelope, r.AttemptCount, r.LastCode, r.LastError = message, 1, new(503), new("")
				r.NextAttempt = new(now.Add(12 * time.Minute))
			},
			[]string{"Next attempt in 12 min ( 2026-01-02 03:16 UTC )"},
			[]string{"last error", "Replay …"},
		},
		"retrying, due": {
			purchase.StatusRetrying, "",
			func(r *report.Row) { r.Envelope, r.NextAttempt = message, at(5*time.Minute) },
			[]string{"Next attempt due 5 min ago, as soon as a worker has a free request"},
			nil,
		},
		"retrying, unknown": {
			purchase.StatusRetrying, "", func(r *report.Row) { r.Envelope = message }, nil, []string{"Next attempt"},
		},
		"delivered without attempts": {
			purchase.StatusDelivered, "", func(r *report.Row) {
				customer(r)
				r.AttemptCount, r.SentMinor, r.KeyMask = 2, new(int64(2999)), new(int16(1))
			},
			[]string{"2 attempts were deleted by ingest prune", "Sent with: E-mail"},
			[]string{"No attempts", "without a value", "Next attempt"},
		},
		"dead, never sent": {
			purchase.StatusDead, purchase.ReasonExpired, func(r *report.Row) { r.Envelope = message },
			[]string{"Request of a replay", "Replay …"},
			[]string{"Request sent"},
		},
		"dead, refused": {
			purchase.StatusDead, purchase.ReasonRefused, func(r *report.Row) {
				r.Envelope, r.AttemptCount, r.LastCode = message, 1, new(40002)
			},
			[]string{"Request of each attempt", "Replay …"},
			nil,
		},
		"free order": {
			purchase.StatusSkipped, purchase.ReasonNoPayment, customer,
			[]string{"Checkout without a payment", "Checked out", "the purchase is not sent"},
			[]string{"Paid", "Replay"},
		},
		"trial with first payment": {
			purchase.StatusSkipped, purchase.ReasonNoPayment, func(r *report.Row) {
				r.Kind = purchase.KindTrial
				r.FirstPayment = new("in_1")
			},
			[]string{"Trial", "Checked out", "the first payment is sent in its place"},
			[]string{"Paid"},
		},
		"no consent": {
			purchase.StatusSkipped, purchase.ReasonNoConsent, customer,
			[]string{"did not consent", "the purchase is not sent"},
			[]string{"Replay"},
		},
		"not configured": {
			purchase.StatusSkipped, purchase.ReasonNotConfigured, func(r *report.Row) { r.Envelope = message },
			[]string{"Request of a replay", "Replay …"},
			nil,
		},
		"forgotten": {
			purchase.StatusSkipped, purchase.ReasonForgotten, func(r *report.Row) { r.AttemptCount = 1 },
			[]string{"The message was deleted with the customer's data."},
			[]string{"ever sent", "e-mail address is only", "Replay"},
		},
		"unreadable message": {
			purchase.StatusPublished, "", func(r *report.Row) { r.Envelope = []byte("newer") },
			[]string{"The stored message cannot be rendered"},
			[]string{"ever sent"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			row := report.Row{
				ID: "cs_1", Status: tc.status, Reason: tc.reason, Kind: purchase.KindCheckout, Mode: "subscription",
				Livemode: true, AmountMinor: new(int64(2999)), Currency: new("usd"), Generation: 1,
				PurchasedAt: at(time.Hour), Created: *at(time.Hour), Updated: now,
			}
			tc.change(&row)
			c := config(&ledger{entries: []report.Row{row}, details: report.Row{
				Envelope: row.Envelope, KeyMask: row.KeyMask, FirstPayment: row.FirstPayment,
			}})
			c.Body = func(envelope []byte, _ *purchase.Sent) ([]byte, error) {
				if string(envelope) == "newer" {
					return nil, errors.New("newer version")
				}
				return []byte(`{"event_source":"web"}`), nil
			}
			text := mainText(get(t, dashboard.New(c), "/purchases/cs_1", plain).Body.String())
			for _, part := range tc.wanted {
				if !strings.Contains(text, part) {
					t.Errorf("page lacks %q: %s", part, text)
				}
			}
			for _, part := range tc.without {
				if strings.Contains(strings.ReplaceAll(text, "Paid, without", ""), part) {
					t.Errorf("page has %q: %s", part, text)
				}
			}
		})
	}
}

func TestPurchase_LinksToStripeAndTikTok(t *testing.T) {
	t.Parallel()
	const stripe = `"https://dashboard.stripe.com/`
	for name, tc := range map[string]struct {
		live    bool
		account *string
		wanted  []string
	}{
		"live": {true, nil, []string{
			stripe + `customers/cus_1"`, stripe + `subscriptions/sub_1"`, stripe + `payments/pi_1"`,
			stripe + `events/evt_1"`,
			`"https://ads.tiktok.com/i18n/events_manager/datasource/pixel/detail/C4LIVE"`,
		}},
		"test": {false, nil, []string{
			stripe + `test/customers/cus_1"`, stripe + `test/events/evt_1"`, "detail/C4TEST",
		}},
		"connected account": {true, new("acct_1"), []string{
			stripe + `acct_1/customers/cus_1"`, stripe + `acct_1/events/evt_1"`, ">acct_1<",
		}},
		"connected account, test": {false, new("acct_1"), []string{stripe + `acct_1/test/payments/pi_1"`}},
		"unknown account":         {true, new("?"), nil},
	} {
		l := newLedger()
		row := &l.entries[0]
		row.Livemode, row.Customer, row.Subscription, row.Payment = tc.live, new("cus_1"), new("sub_1"), new("pi_1")
		row.Published = &now
		l.details.Events[0].Account, l.details.Events[0].ID = tc.account, "evt_1.cs_new" // of a second session
		c := config(l)
		c.Health = func(context.Context) dashboard.Health {
			return dashboard.Health{Workers: []message.WorkerState{
				{Instance: "w1", Pixel: "C4LIVE", TestPixel: "C4TEST"}, {Instance: "w2", Pixel: "C4LIVE"},
			}}
		}
		body := get(t, dashboard.New(c), "/purchases/cs_new", plain).Body.String()
		for _, part := range tc.wanted {
			if n := strings.Count(body, part); n != 1 {
				t.Errorf("%s: page has %q %d times, want once", name, part, n)
			}
		}
		if tc.wanted == nil && strings.Contains(body, "dashboard.stripe.com") {
			t.Errorf("%s: page links to Stripe", name)
		}
	}
}

// A long timeline hides its middle.
func TestPurchase_FoldsManyAttempts(t *testing.T) {
	t.Parallel()
	for attempts, folded := range map[int]string{1: "", 7: "", 8: ">2 more steps<", 190: ">184 more steps<"} {
		l := newLedger()
		l.details.Attempts = nil
		for i := range attempts {
			l.details.Attempts = append(l.details.Attempts, report.Attempt{
				ID: "a", At: now.Add(time.Duration(i) * time.Minute), Class: purchase.ClassRetry, RequestID: "r",
			})
		}
		body := get(t, newAPI(l), "/purchases/cs_dead", plain).Body.String()
		if n := strings.Count(body, "Attempt "); n != attempts {
			t.Errorf("%d attempts: timeline has %d", attempts, n)
		}
		if !strings.Contains(body, folded) || strings.Contains(body, "more steps") != (folded != "") {
			t.Errorf("%d attempts: page lacks %q or folds too much", attempts, folded)
		}
	}
}

// An error keeps the navigation, its counts, and what was entered, except an e-mail address.
func TestErrors_KeepNavigationAndInput(t *testing.T) {
	t.Parallel()
	h := newAPI(newLedger())
	for target, wanted := range map[string][]string{
		"/purchases?code=abc&day=2026-01-02&status=dead": {
			`value="abc"`, `value="2026-01-02"`, `<option value="dead" selected>`, "Code must be a whole number.",
		},
		"/purchases?status=odd&code=7":             {`value="7"`, "alert"},
		"/purchases?q=" + strings.Repeat("x", 400): {"Q is too long"},
		"/purchases/cs_unknown":                    {`<a href="/purchases" aria-current="page"`, "not found"},
	} {
		w := get(t, h, target, plain)
		for _, part := range append(wanted, `<span class="count">2</span>`, `<span class="count">3</span>`) {
			if w.Code/100 != 4 || !strings.Contains(w.Body.String(), part) {
				t.Errorf("%.60s: status = %d, lacks %q:\n%s", target, w.Code, part, w.Body)
			}
		}
	}
	tooLong := post(t, h, "/search", map[string][]string{"q": {strings.Repeat("x", 301)}}, plain).Body.String()
	if !strings.Contains(tooLong, `value="`+strings.Repeat("x", 300)+`"`) {
		t.Errorf("a long search is not in the field:\n%s", tooLong)
	}
	w := get(t, h, "/purchases?code=abc&q=buyer@example.com", plain)
	if strings.Contains(w.Body.String(), "buyer@") {
		t.Error("the page of a wrong filter contains the e-mail address")
	}
	back := post(t, h, "/confirm", map[string][]string{"back": {"/attention"}}, plain).Body.String()
	for _, part := range []string{
		`href="/attention">Back</a>`, `<a href="/attention" aria-current="page">`, "tick at least one",
	} {
		if !strings.Contains(back, part) {
			t.Errorf("nothing ticked: page lacks %q:\n%s", part, back)
		}
	}
}
