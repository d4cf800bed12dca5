package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
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
		c = c.Trial()
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

// send sends all events as Stripe does, delayed, twice, out of order, to the ingests, and each again until it
// is accepted.
func (x *experiment) send(ctx context.Context, disorder stripegen.Disorder) error {
	sender := &stripegen.Sender{
		URL: "http://ingest/webhooks/stripe", Secret: launch.SigningSecret,
		Client: &http.Client{Timeout: 10 * time.Second, Transport: &balancer{
			experiment: x, connections: http.Transport{MaxIdleConnsPerHost: 64},
		}},
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

// balancer sends each request to a random ingest and counts the answers.
type balancer struct {
	*experiment
	connections http.Transport
}

// RoundTrip implements http.RoundTripper.
func (b *balancer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.URL.Host = b.links["stripe→"+b.ingests[rand.IntN(ingests)].name].Addr() //nolint:gosec // no secret
	response, err := b.connections.RoundTrip(r)
	if err != nil {
		b.answers.Add("none", 1)
		return nil, err
	}
	b.answers.Add(strconv.Itoa(response.StatusCode), 1)
	if response.StatusCode != http.StatusOK && response.StatusCode != http.StatusServiceUnavailable {
		b.find("a valid webhook was answered %d", response.StatusCode)
	}
	return response, nil
}
