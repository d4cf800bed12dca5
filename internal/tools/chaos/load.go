package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/tidwall/gjson"

	"purchase-relay/internal/testkit/launch"
	"purchase-relay/internal/testkit/stripegen"
)

// sale is a checkout session with all its events.
type sale struct {
	events []stripegen.Checkout // in the order of their creation
	end    end
	future bool // the event is ahead of the clock, so that its time becomes that of receipt
}

// end is how a checkout session must end: a status of the ledger, or one of the two that are none.
type end string

const (
	paid     end = "paid"           // delivered, unless TikTok refuses the event
	failed   end = "payment_failed" // a delayed method without success
	trial    end = "skipped"        // no_payment
	rejected end = "rejected"       // no usable address
	ignored  end = "ignored"        // foreign: not on the ledger
)

// id is the session's.
func (s *sale) id() string { return s.events[0].SessionID }

// newSales draws sales: cards, delayed methods, trials, returning customers, unusable addresses, live and
// test.
func newSales(seed uint64, n int) (sales []*sale) {
	random := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // repeatable, no secret
	var customers []*string
	for range n {
		c := stripegen.NewCheckout()
		if random.Float64() < 0.75 {
			c = c.Live()
		}
		if len(customers) > 0 && random.Float64() < 0.15 {
			c.Email = customers[random.IntN(len(customers))]
		} else {
			customers = append(customers, c.Email)
		}
		sales = append(sales, draw(random.Float64(), c))
	}
	return sales
}

// draw makes a sale of a checkout. chance, from 0 up to 1, selects its kind.
func draw(chance float64, c stripegen.Checkout) *sale {
	one := func(end end) *sale { return &sale{end: end, events: []stripegen.Checkout{c}} }
	earlier := c
	earlier.Created = c.Created.Add(-time.Hour)
	switch {
	case chance < 0.60: // a card
		return one(paid)
	case chance < 0.70: // two events for one purchase
		second := c
		second.EventID, second.Created = stripegen.ID("evt_", 24), c.Created.Add(time.Second)
		return &sale{end: paid, events: []stripegen.Checkout{c, second}}
	case chance < 0.82: // a delayed payment that succeeds
		c = earlier.Delayed("us_bank_account")
		return &sale{end: paid, events: []stripegen.Checkout{c, c.AsyncSucceeded(time.Hour)}}
	case chance < 0.87: // and one that fails
		c = earlier.Delayed("sepa_debit")
		return &sale{end: failed, events: []stripegen.Checkout{c, c.AsyncFailed(time.Hour)}}
	case chance < 0.92:
		c.PaymentStatus, c.AmountTotal = "no_payment_required", new(int64)
		return one(trial)
	case chance < 0.95:
		unusable := "no address"
		c.Email = &unusable
		return one(rejected)
	case chance < 0.98:
		c.Mode = "setup"
		return one(ignored)
	default:
		c.Created = c.Created.Add(6 * time.Hour)
		return &sale{end: paid, events: []stripegen.Checkout{c}, future: true}
	}
}

// send sends all events as Stripe does, delayed, twice, out of order, through a load balancer before the
// ingests, and each again until it is accepted.
func (x *experiment) send(ctx context.Context, disorder stripegen.Disorder) error {
	balancer := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			ingest := x.ingests[rand.IntN(ingests)] //nolint:gosec // no secret
			r.SetURL(&url.URL{Scheme: "http", Host: x.links["stripe→"+ingest.name].Addr()})
		},
		Transport: &http.Transport{MaxIdleConnsPerHost: 64, IdleConnTimeout: patience},
		ModifyResponse: func(r *http.Response) error {
			x.answers.Add(strconv.Itoa(r.StatusCode), 1)
			if r.StatusCode != http.StatusOK && r.StatusCode != http.StatusServiceUnavailable {
				x.find("a valid webhook was answered %d", r.StatusCode)
			}
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) {
			x.answers.Add("none", 1)
			w.WriteHeader(http.StatusBadGateway)
		},
		ErrorLog: log.New(io.Discard, "", 0),
	})
	defer balancer.Close()
	sender := &stripegen.Sender{
		URL: balancer.URL + "/webhooks/stripe", Secret: launch.SigningSecret,
		Client: &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 64}},
	}
	var bodies [][]byte
	for _, s := range x.sales {
		for _, e := range s.events {
			bodies = append(bodies, e.Event())
		}
	}
	arrivals, _ := disorder.Plan(bodies)
	pace := stripegen.Pace{Concurrency: 256, Attempts: 1_000_000, Wait: 50 * time.Millisecond}
	x.accepted = make(map[string]string)
	err := sender.Play(ctx, slices.Values(arrivals), pace, func(a stripegen.Arrival, answer stripegen.Answer) {
		x.accepted[gjson.GetBytes(a.Body, "id").String()] = answer.Body
	})
	if err != nil {
		return fmt.Errorf("send webhooks: %w", err)
	}
	return nil
}
