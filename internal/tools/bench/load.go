package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"strings"
	"time"

	"purchase-relay/internal/testkit/launch"
	"purchase-relay/internal/testkit/load"
	"purchase-relay/internal/testkit/stripegen"
	"purchase-relay/internal/testkit/try"
)

// mark is the placeholder for a token of the same length: in every id and in the e-mail address.
const mark = "zzzzzzzzzzzz"

// template is a request, cut at its marks.
type template []string

func newTemplate(text string) template { return strings.Split(text, mark) }

// append appends the request with a token in place of each mark.
func (t template) append(buffer []byte, token string) []byte {
	for i, text := range t {
		if i > 0 {
			buffer = append(buffer, token...)
		}
		buffer = append(buffer, text...)
	}
	return buffer
}

// order is a paid live subscription with every match key. Its ids are as long as Stripe's; digit fills them.
// Two orders of one token are of the same customer.
func order(digit string) stripegen.Checkout {
	c := stripegen.NewCheckout().Live()
	id := func(prefix string, fill int) string { return prefix + mark + strings.Repeat(digit, fill) }
	email := "buyer." + mark + "@example.com"
	c.EventID, c.SessionID, c.Email = id("evt_", 12), id("cs_live_a1", 44), &email
	c.Customer, c.Subscription = id("cus_", 2), id("sub_", 12)
	return c
}

// newTokens returns n customers, each at a random place of every index.
func newTokens(n int) []string {
	tokens := make([]string, n)
	for i := range tokens {
		tokens[i] = strings.ToLower(rand.Text())[:len(mark)]
	}
	return tokens
}

// kind is a kind of webhook and the status of its response.
type kind struct {
	checkout stripegen.Checkout
	secret   string
	status   int
}

func paid() kind { return kind{order("0"), launch.SigningSecret, http.StatusOK} }

func forged() kind { return kind{order("0"), "whsec_other-0123456789", http.StatusBadRequest} }

// plan returns a load of one webhook for each customer. They are signed now, before the clock starts; ingest
// accepts the signatures for five minutes. A longer load repeats them.
func (k kind) plan(addr string, conns int, tokens []string) load.Plan {
	at := time.Now()
	body := newTemplate(string(k.checkout.Event()))
	signatures := make([]string, len(tokens))
	var text []byte
	for i, token := range tokens {
		text = body.append(text[:0], token)
		signatures[i] = stripegen.Sign(text, k.secret, at)
	}
	head := fmt.Sprintf("POST /webhooks/stripe HTTP/1.1\r\nHost: bench\r\n"+
		"User-Agent: Stripe/1.0 (+https://stripe.com/docs/webhooks)\r\n"+
		"Content-Type: application/json; charset=utf-8\r\nContent-Length: %d\r\nStripe-Signature: ", len(text))
	return load.Plan{
		Addr: addr, Conns: conns, Requests: len(tokens), Want: k.status,
		Append: func(buffer []byte, i int) []byte {
			i %= len(tokens)
			buffer = append(append(buffer, head...), signatures[i]...)
			return body.append(append(buffer, "\r\n\r\n"...), tokens[i])
		},
	}
}

// fullSpeed sends new webhooks for the time of one measurement, as fast as they are answered.
func (b *bench) fullSpeed(addr string, conns int) load.Plan {
	const supply = 12_000 // prepared for each second: more than two cores answer
	plan := paid().plan(addr, conns, newTokens(int(supply*b.duration.Seconds())+1000))
	plan.For = b.duration
	return plan
}

// paced sends webhooks evenly for the time of one measurement.
func (b *bench) paced(k kind, addr string, conns int, every time.Duration) load.Plan {
	plan := k.plan(addr, conns, newTokens(int(b.duration/every)+1))
	plan.Every = every
	return plan
}

// repeated sends a plan's requests again and again for the time of one measurement.
func (b *bench) repeated(plan load.Plan) load.Plan {
	plan.For, plan.Requests = b.duration, 1<<40
	return plan
}

// send sends a load. Every response must have the planned status: a rate of errors would be worse than no
// figure. usages are measured for each answer.
func send(ctx context.Context, plan load.Plan, usages ...*usage) load.Result {
	end := meter(usages...)
	var result load.Result
	for result.Answered+result.Odd == 0 { // a stalled machine sends nothing in a short measurement
		result = try.Must(load.Run(ctx, plan))
	}
	if result.Odd > 0 {
		try.Check(fmt.Errorf("%d of %d responses are not %d, the first: %s",
			result.Odd, result.Odd+result.Answered, plan.Want, result.FirstOdd))
	}
	end(result.Answered)
	return result
}

// record adds a round: in ms the median of the responses, else their rate.
func (m *measurement) record(r load.Result) {
	value := r.PerSecond()
	if m.Unit == "ms" {
		value = r.Quantile(0.5)
	}
	m.add(value)
	m.P99 = append(m.P99, r.Quantile(0.99))
	m.answered += r.Answered
}

// load measures a load, which plan prepares before the clock starts.
func (b *bench) load(name, unit string, plan func() load.Plan, usages ...*usage) *measurement {
	m := b.measurement(name, unit)
	m.run = func(ctx context.Context) { m.record(send(ctx, plan(), usages...)) }
	return m
}

// webhooks measures new webhooks at full speed.
func (b *bench) webhooks(name, unit, addr string, conns int, usages ...*usage) *measurement {
	return b.load(name, unit, func() load.Plan { return b.fullSpeed(addr, conns) }, usages...)
}

// wholeWay measures webhooks at full speed and, in a row of its own, the rate from the first webhook to the
// last recorded outcome.
func (b *bench) wholeWay(name string, s *system, usages ...*usage) (m *measurement, sustained *row) {
	m, sustained = b.measurement("webhooks, "+name, "/s"), b.row(name+", sustained", "/s")
	m.run = func(ctx context.Context) {
		plan := b.fullSpeed(s.addr, 64)
		end, began := meter(usages...), time.Now()
		result := send(ctx, plan)
		s.awaitDelivery(ctx)
		end(result.Answered)
		sustained.add(float64(result.Answered) / time.Since(began).Seconds())
		m.record(result)
	}
	return m, sustained
}

// warmUp sends webhooks to servers whose first load reads pages, fills pools or compiles.
func (b *bench) warmUp(ctx context.Context, addrs ...string) {
	for _, addr := range addrs {
		b.announce("warming up")
		send(ctx, b.fullSpeed(addr, 64))
	}
}
