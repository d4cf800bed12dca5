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

// load is the purchases of an experiment and the answers to their webhooks.
type load struct {
	sales    map[string]*sale // by session
	events   map[string]*sale // by event
	bodies   [][]byte
	disorder stripegen.Disorder
	answers  tally // by status

	accepted map[string]string // body of the answer 2xx, by event
}

// newLoad draws the purchases of a duration: cards, delayed methods, trials, returning customers, unusable
// addresses, live and test.
func newLoad(seed uint64, rate float64, duration time.Duration) *load {
	delay := min(2*time.Second, duration/5)
	l := &load{
		sales: make(map[string]*sale), events: make(map[string]*sale), accepted: make(map[string]string),
		disorder: stripegen.Disorder{Seed: seed, Delay: delay, Reorder: 0.1, Duplicates: 0.2},
	}
	if duration > 0 {
		l.disorder.Every = time.Duration(float64(time.Second) / rate)
	}
	random := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // repeatable, no secret
	var customers []*string
	for range int(rate * (duration - delay).Seconds()) {
		c := stripegen.NewCheckout()
		if random.Float64() < 0.75 {
			c = c.Live()
		}
		if len(customers) > 0 && random.Float64() < 0.15 {
			c.Email = customers[random.IntN(len(customers))]
		} else {
			customers = append(customers, c.Email)
		}
		l.add(draw(random.Float64(), c))
	}
	return l
}

// draw makes a sale of a checkout. chance, from 0 up to 1, selects its kind.
func draw(chance float64, c stripegen.Checkout) *sale {
	one := []stripegen.Checkout{c}
	earlier := c
	earlier.Created = c.Created.Add(-time.Hour)
	switch {
	case chance < 0.60: // a card
		return &sale{end: paid, events: one}
	case chance < 0.70: // two events for one purchase
		second := c
		second.EventID, second.Created = stripegen.ID("evt_", 24), c.Created.Add(time.Second)
		return &sale{end: paid, events: append(one, second)}
	case chance < 0.82: // a delayed payment that succeeds
		c = earlier.Delayed("us_bank_account")
		return &sale{end: paid, events: []stripegen.Checkout{c, c.AsyncSucceeded(time.Hour)}}
	case chance < 0.87: // and one that fails
		c = earlier.Delayed("sepa_debit")
		return &sale{end: failed, events: []stripegen.Checkout{c, c.AsyncFailed(time.Hour)}}
	case chance < 0.92:
		one[0].PaymentStatus, one[0].AmountTotal = "no_payment_required", new(int64)
		return &sale{end: trial, events: one}
	case chance < 0.95:
		unusable := "no address"
		one[0].Email = &unusable
		return &sale{end: rejected, events: one}
	case chance < 0.98:
		one[0].Mode = "setup"
		return &sale{end: ignored, events: one}
	default:
		one[0].Created = c.Created.Add(6 * time.Hour)
		return &sale{end: paid, events: one, future: true}
	}
}

func (l *load) add(s *sale) {
	for _, e := range s.events {
		l.sales[e.SessionID], l.events[e.EventID] = s, s
		l.bodies = append(l.bodies, e.Event())
	}
}

// play sends all events as Stripe does, delayed, twice, out of order, each to one of the ingests and again
// until it is accepted.
func (l *load) play(ctx context.Context, s *stack) error {
	arrivals, _ := l.disorder.Plan(l.bodies)
	balancer := &balancer{stack: s, answers: &l.answers, next: &http.Transport{MaxIdleConnsPerHost: 64}}
	defer balancer.next.CloseIdleConnections()
	sender := &stripegen.Sender{
		URL: "http://ingest/webhooks/stripe", Secret: launch.SigningSecret,
		Client: &http.Client{Timeout: 10 * time.Second, Transport: balancer},
	}
	pace := stripegen.Pace{Concurrency: 256, Attempts: 1_000_000, Wait: 50 * time.Millisecond}
	record := func(a stripegen.Arrival, answer stripegen.Answer) {
		l.accepted[gjson.GetBytes(a.Body, "id").String()] = answer.Body
	}
	if err := sender.Play(ctx, slices.Values(arrivals), pace, record); err != nil {
		return fmt.Errorf("send webhooks: %w", err)
	}
	return nil
}

// balancer sends each request to a random ingest and counts the answers.
type balancer struct {
	stack   *stack
	answers *tally
	next    *http.Transport
}

// RoundTrip implements http.RoundTripper.
func (b *balancer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.URL.Host = b.stack.webhooks(b.stack.ingests[rand.IntN(ingests)]) //nolint:gosec // no secret
	resp, err := b.next.RoundTrip(r)
	if err != nil {
		b.answers.add("none")
		return nil, err
	}
	b.answers.add(strconv.Itoa(resp.StatusCode))
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusServiceUnavailable {
		b.stack.findings.add("a valid webhook was answered %d", resp.StatusCode)
	}
	return resp, nil
}
