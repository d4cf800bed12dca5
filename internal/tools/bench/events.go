package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"time"

	"purchase-relay/internal/testkit/load"
	"purchase-relay/internal/testkit/stripegen"
	"purchase-relay/internal/testkit/try"
)

// mark is the placeholder for a token in a template: in every id and in the e-mail address.
const mark = "zzzzzzzzzzzz"

// padded returns an id with the mark, as long as Stripe's.
func padded(prefix string, zeros int) string { return prefix + mark + strings.Repeat("0", zeros) }

// order is a paid live subscription with every match key.
func order() stripegen.Checkout {
	c := stripegen.NewCheckout().Live()
	email := "buyer." + mark + "@example.com"
	c.EventID, c.SessionID, c.Email = padded("evt_", 12), padded("cs_live_a1", 44), &email
	c.Customer, c.Subscription = padded("cus_", 2), padded("sub_", 12)
	return c
}

// request is a prepared HTTP request in which tokens replace the mark.
type request struct {
	text   []byte
	places []int // of the mark
}

func newRequest(text string) request {
	r := request{text: []byte(text)}
	for at := 0; ; at += len(mark) {
		next := strings.Index(text[at:], mark)
		if next < 0 {
			return r
		}
		at += next
		r.places = append(r.places, at)
	}
}

// append appends the request with a token of the mark's length.
func (r *request) append(buffer []byte, token string) []byte {
	start := len(buffer)
	buffer = append(buffer, r.text...)
	for _, place := range r.places {
		copy(buffer[start+place:], token)
	}
	return buffer
}

// events are webhooks, signed before the clock starts. Each is about another customer, at a random place of
// every index.
type events struct {
	request
	signature int // where the signature is
	tokens    []string
	signed    []string
}

// newEvents signs n copies of an order, each with a token of its own. Ingest accepts the signatures for five
// minutes.
func newEvents(c stripegen.Checkout, n int) *events {
	at := time.Now()
	body := newRequest(string(c.Event()))
	head := fmt.Sprintf("POST /webhooks/stripe HTTP/1.1\r\nHost: bench\r\n"+
		"User-Agent: Stripe/1.0 (+https://stripe.com/docs/webhooks)\r\n"+
		"Content-Type: application/json; charset=utf-8\r\nContent-Length: %d\r\nStripe-Signature: %s\r\n\r\n",
		len(body.text), stripegen.Sign(body.text, signingSecret, at))
	e := &events{
		request:   newRequest(head + string(body.text)),
		signature: strings.Index(head, ",v1=") + len(",v1="),
		tokens:    make([]string, n), signed: make([]string, n),
	}
	var text []byte
	for i := range n {
		e.tokens[i] = strings.ToLower(rand.Text())[:len(mark)]
		text = body.append(text[:0], e.tokens[i])
		_, e.signed[i], _ = strings.Cut(stripegen.Sign(text, signingSecret, at), "v1=")
	}
	return e
}

// append appends the i-th request. After the last one it starts again, with duplicates.
func (e *events) append(buffer []byte, i int) []byte {
	i %= len(e.tokens)
	start := len(buffer)
	buffer = e.request.append(buffer, e.tokens[i])
	copy(buffer[start+e.signature:], e.signed[i])
	return buffer
}

// forged appends the i-th request with an invalid signature.
func (e *events) forged(buffer []byte, i int) []byte {
	start := len(buffer)
	buffer = e.append(buffer, i)
	copy(buffer[start+e.signature:], strings.Repeat("0", 64))
	return buffer
}

// plan sends every event once.
func (e *events) plan(addr string, conns int) load.Plan {
	return load.Plan{Addr: addr, Conns: conns, Requests: len(e.tokens), Append: e.append, Want: 200}
}

// repeated sends the same events again and again for the time of one measurement.
func (b *bench) repeated(e *events, addr string) load.Plan {
	p := e.plan(addr, 64)
	p.For, p.Requests = b.duration, 1<<40
	return p
}

// supply is how many events are prepared for each second: more than two cores answer.
const supply = 12_000

// fullSpeed sends new events for the time of one measurement, as fast as they are answered.
func (b *bench) fullSpeed(addr string, conns int) load.Plan {
	p := newEvents(order(), int(supply*b.duration.Seconds())+1000).plan(addr, conns)
	p.For = b.duration
	return p
}

// paced sends new events evenly for the time of one measurement.
func (b *bench) paced(addr string, conns int, every time.Duration) load.Plan {
	p := newEvents(order(), int(b.duration/every)+1).plan(addr, conns)
	p.Every = every
	return p
}

// loadSeries are the results of one load, round by round.
type loadSeries struct {
	rate        series // answers a second
	median, p99 series // ms
	answered    int    // in all rounds
}

// run sends a load. Every response must have the wanted status, otherwise the figure would mean nothing.
// usages are measured for each answer.
func (s *loadSeries) run(ctx context.Context, plan load.Plan, usages ...*usage) {
	end := meter(usages...)
	result := try.Must(load.Run(ctx, plan))
	if result.Odd > 0 || result.Answered == 0 {
		try.Check(fmt.Errorf("%d of %d responses are not %d, the first: %s",
			result.Odd, result.Odd+result.Answered, plan.Want, result.FirstOdd))
	}
	end(result.Answered)
	s.rate = append(s.rate, result.PerSecond())
	s.median, s.p99 = append(s.median, result.Quantile(0.5)), append(s.p99, result.Quantile(0.99))
	s.answered += result.Answered
}

// measurement sends new events to an address at full speed.
func (s *loadSeries) measurement(b *bench, name, addr string, conns int, usages ...*usage) measurement {
	return measurement{name, func(ctx context.Context) { s.run(ctx, b.fullSpeed(addr, conns), usages...) }}
}

// report adds the row of the rate.
func (s *loadSeries) report(b *bench, name string) *row {
	return b.report.add(name, "/s", s.rate).
		note("median %s ms, p99 %s ms", number(s.median.median()), number(s.p99.median()))
}
