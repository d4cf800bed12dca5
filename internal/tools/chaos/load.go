package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"purchase-relay/internal/testkit/faultproxy"
	"purchase-relay/internal/testkit/stripegen"
)

// end is how a checkout session must stand in the end.
type end string

const (
	paid     end = "paid"           // delivered, unless TikTok refuses it
	failed   end = "payment_failed" // a delayed method, and no money came
	trial    end = "skipped"        // no_payment
	rejected end = "rejected"       // no usable address
	ignored  end = "ignored"        // not ours: not on the ledger at all
)

// sale is a checkout session and all that Stripe says of it.
type sale struct {
	checkout stripegen.Checkout // its first event
	events   []stripegen.Checkout
	end      end
	future   bool // its event is ahead of the clock: its time is that of receipt
}

// load is the purchases of a run.
type load struct {
	sales  map[string]*sale // by session
	events map[string]*sale // by event
	bodies [][]byte
	seed   uint64
	every  time.Duration
	late   time.Duration

	answers tally // by status

	mu    sync.Mutex
	taken map[string]string // what was answered 2xx, by event
}

// newLoad draws purchases at a rate for a time: cards, delayed methods, trials, customers who come again, unusable addresses, live
// and test.
func newLoad(seed uint64, rate float64, duration time.Duration) *load {
	l := &load{
		sales: make(map[string]*sale), events: make(map[string]*sale), seed: seed,
		every: time.Duration(float64(time.Second) / rate), late: min(2*time.Second, duration/5), taken: make(map[string]string),
	}
	random := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // to be repeated, no secret
	var customers []*string
	for range int(rate * (duration - l.late).Seconds()) {
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

// draw makes a sale of a checkout; chance, from 0 up to 1, says of what kind.
func draw(chance float64, c stripegen.Checkout) *sale {
	s := &sale{end: paid}
	switch {
	case chance < 0.60: // a card
		s.events = []stripegen.Checkout{c}
	case chance < 0.70: // two events for one thing, made one after the other
		twin := c
		twin.EventID, twin.Created = stripegen.ID("evt_", 24), c.Created.Add(time.Second)
		s.events = []stripegen.Checkout{c, twin}
	case chance < 0.82: // money that comes later
		c.Created = c.Created.Add(-time.Hour)
		c = c.Delayed("us_bank_account")
		s.events = []stripegen.Checkout{c, c.AsyncSucceeded(time.Hour)}
	case chance < 0.87: // and does not
		c.Created = c.Created.Add(-time.Hour)
		c = c.Delayed("sepa_debit")
		s.end, s.events = failed, []stripegen.Checkout{c, c.AsyncFailed(time.Hour)}
	case chance < 0.92:
		zero := int64(0)
		c.PaymentStatus, c.AmountTotal = "no_payment_required", &zero
		s.end, s.events = trial, []stripegen.Checkout{c}
	case chance < 0.95:
		nobody := "nobody at all"
		c.Email = &nobody
		s.end, s.events = rejected, []stripegen.Checkout{c}
	case chance < 0.98:
		c.Mode = "setup"
		s.end, s.events = ignored, []stripegen.Checkout{c}
	default:
		c.Created = c.Created.Add(6 * time.Hour)
		s.future, s.events = true, []stripegen.Checkout{c}
	}
	s.checkout = c
	return s
}

func (l *load) add(s *sale) {
	l.sales[s.checkout.SessionID] = s
	for _, e := range s.events {
		l.events[e.EventID] = s
		l.bodies = append(l.bodies, e.Event())
	}
}

// play sends all events as Stripe does, late, twice, out of order, each to one of the ingests and again until it is taken.
func (l *load) play(ctx context.Context, s *stack) error {
	disorder := stripegen.Disorder{Seed: l.seed, Every: l.every, Delay: l.late, Reorder: 0.1, Duplicates: 0.2}
	arrivals, _ := disorder.Plan(l.bodies)
	balancer := &balancer{to: s.webhooks, answers: &l.answers, findings: s.findings, next: &http.Transport{MaxIdleConnsPerHost: 64, IdleConnTimeout: 30 * time.Second}}
	defer balancer.next.CloseIdleConnections()
	sender := &stripegen.Sender{
		URL: "http://ingest/webhooks/stripe", Secret: signingSecret, Client: &http.Client{Timeout: 10 * time.Second, Transport: balancer},
	}
	pace := stripegen.Pace{Concurrency: 256, Attempts: 1_000_000, Wait: 50 * time.Millisecond}
	err := sender.Play(ctx, slices.Values(arrivals), pace, func(a stripegen.Arrival, answer stripegen.Answer) {
		var event struct{ ID string }
		if json.Unmarshal(a.Body, &event) != nil {
			panic("an event of ours is no JSON")
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		l.taken[event.ID] = answer.Body
	})
	if err != nil {
		return fmt.Errorf("the load: %w", err)
	}
	return nil
}

// balancer sends each request to any of the ingests, and counts the answers.
type balancer struct {
	to       []*faultproxy.Proxy
	next     *http.Transport
	answers  *tally
	findings *findings
}

// RoundTrip implements http.RoundTripper.
func (b *balancer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.URL.Host = b.to[rand.IntN(len(b.to))].Addr() //nolint:gosec // any will do
	resp, err := b.next.RoundTrip(r)
	if err != nil {
		b.answers.add("0", "no answer")
		return nil, err
	}
	b.answers.add(strconv.Itoa(resp.StatusCode), strings.ToLower(http.StatusText(resp.StatusCode)))
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusServiceUnavailable {
		b.findings.add("a good webhook was answered %d", resp.StatusCode)
	}
	return resp, nil
}
