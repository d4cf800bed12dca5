package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"purchase-relay/internal/testkit/launch"
	"purchase-relay/internal/testkit/stripegen"
	"purchase-relay/internal/testkit/try"
)

// load is one run of prepared requests over kept connections. It ends when all requests are answered or its
// time is over, whichever comes first. It parses only as much of HTTP as it needs, which leaves the processor
// to the measured program.
type load struct {
	addr     string                            // host:port
	conns    int                               // each sends a request after the response to the last
	requests int                               // number of requests
	append   func(buffer []byte, i int) []byte // appends the i-th request; called concurrently
	duration time.Duration                     // 0: until all are answered
	every    time.Duration                     // interval of requests over all connections; 0: no pace
	status   int                               // of every response
}

// result is the responses of a run.
type result struct {
	took      time.Duration // from the first request to the last response
	latencies series        // of the responses in ms, sorted
}

func (r *result) perSecond() float64 { return float64(len(r.latencies)) / r.took.Seconds() }

// patience bounds a run, beyond load.duration.
const patience = 5 * time.Minute

// run opens the connections, then starts the clock. Every response must have the planned status: a rate of
// errors would be worse than no figure.
func (l *load) run(ctx context.Context) (r result, err error) {
	conns := make([]net.Conn, l.conns)
	for i := range conns {
		if conns[i], err = (&net.Dialer{}).DialContext(ctx, "tcp", l.addr); err != nil {
			return r, err
		}
		defer func() { _ = conns[i].Close() }()
		defer context.AfterFunc(ctx, func() { _ = conns[i].Close() })()
	}
	var next atomic.Int64
	var mu sync.Mutex
	var all errgroup.Group
	began := time.Now()
	for _, conn := range conns {
		all.Go(func() error {
			latencies, err := l.send(conn, &next, began)
			mu.Lock()
			defer mu.Unlock()
			r.latencies = append(r.latencies, latencies...)
			return err
		})
	}
	err = all.Wait()
	r.took = time.Since(began)
	slices.Sort(r.latencies)
	return r, cmp.Or(ctx.Err(), err)
}

// send sends requests over one connection and returns the time of each response in ms.
func (l *load) send(conn net.Conn, next *atomic.Int64, began time.Time) (latencies series, err error) {
	if err := conn.SetDeadline(began.Add(l.duration + patience)); err != nil {
		return nil, err
	}
	responses, buffer := bufio.NewReaderSize(conn, 8<<10), []byte(nil)
	for {
		i := int(next.Add(1) - 1)
		if i >= l.requests {
			return latencies, nil
		}
		if l.every > 0 {
			<-time.After(time.Until(began.Add(time.Duration(i) * l.every)))
		}
		sent := time.Now()
		if l.duration > 0 && sent.Sub(began) >= l.duration {
			return latencies, nil
		}
		buffer = l.append(buffer[:0], i)
		if _, err := conn.Write(buffer); err != nil {
			return nil, fmt.Errorf("send request %d: %w", i, err)
		}
		if err := receive(responses, l.status); err != nil {
			return nil, fmt.Errorf("response to request %d: %w", i, err)
		}
		latencies = append(latencies, time.Since(sent).Seconds()*1000)
	}
}

var errForm = errors.New("no HTTP/1.1 response with a Content-Length")

// receive reads one response. Another status is an error. http.ReadResponse takes nine times as long.
func receive(r *bufio.Reader, want int) error {
	status, length := 0, -1
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		name, value, _ := bytes.Cut(bytes.TrimRight(line, "\r\n"), []byte(" "))
		switch {
		case bytes.Equal(name, []byte("HTTP/1.1")):
			status, err = strconv.Atoi(string(value[:min(3, len(value))]))
		case bytes.EqualFold(name, []byte("Content-Length:")):
			length, err = strconv.Atoi(string(value))
		case len(name) == 0 && (status == 0 || length < 0):
			return errForm
		case len(name) == 0:
			body, err := r.Peek(min(length, 1024))
			if err == nil && status != want {
				err = fmt.Errorf("%d %.200s, want %d", status, body, want)
			}
			if err == nil {
				_, err = r.Discard(length)
			}
			return err
		}
		if err != nil {
			return errForm
		}
	}
}

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

// newLoad returns a load of one webhook for each customer. They are signed now, before the clock starts;
// ingest accepts the signatures for five minutes. A longer load repeats them.
func (k kind) newLoad(addr string, conns int, tokens []string) load {
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
	return load{
		addr: addr, conns: conns, requests: len(tokens), status: k.status,
		append: func(buffer []byte, i int) []byte {
			i %= len(tokens)
			buffer = append(append(buffer, head...), signatures[i]...)
			return body.append(append(buffer, "\r\n\r\n"...), tokens[i])
		},
	}
}

// fullSpeed sends new webhooks for the time of one measurement, as fast as they are answered.
func (b *bench) fullSpeed(addr string, conns int) load {
	const supply = 12_000 // prepared for each second: more than two cores answer
	l := paid().newLoad(addr, conns, newTokens(int(supply*b.duration.Seconds())+1000))
	l.duration = b.duration
	return l
}

// paced sends webhooks evenly for the time of one measurement.
func (b *bench) paced(k kind, addr string, conns int, every time.Duration) load {
	l := k.newLoad(addr, conns, newTokens(int(b.duration/every)+1))
	l.every = every
	return l
}

// repeated sends a load's requests again and again for the time of one measurement.
func (b *bench) repeated(l load) load {
	l.duration, l.requests = b.duration, 1<<40
	return l
}

// send sends a load. usages are measured for each response.
func send(ctx context.Context, l load, usages ...*usage) (r result) {
	end := meter(usages...)
	for len(r.latencies) == 0 { // a stalled machine sends nothing in a short measurement
		r = try.Must(l.run(ctx))
	}
	end(len(r.latencies))
	return r
}

// record adds a round: in ms the median of the responses, else their rate.
func (m *measurement) record(r result) {
	value := r.perSecond()
	if m.Unit == "ms" {
		value = r.latencies.median()
	}
	m.add(value)
	m.P99 = append(m.P99, r.latencies[len(r.latencies)*99/100])
	m.answered += len(r.latencies)
}

// responses measures a load, which prepare signs before the clock starts.
func (b *bench) responses(name, unit string, prepare func() load, usages ...*usage) *measurement {
	m := b.measurement(name, unit)
	m.run = func(ctx context.Context) { m.record(send(ctx, prepare(), usages...)) }
	return m
}

// webhooks measures new webhooks at full speed over 64 connections.
func (b *bench) webhooks(name, addr string, usages ...*usage) *measurement {
	return b.responses(name, "/s", func() load { return b.fullSpeed(addr, 64) }, usages...)
}

// wholeWay measures webhooks at full speed and, in a row of its own, the rate from the first webhook to the
// last recorded outcome.
func (b *bench) wholeWay(name string, s *system, usages ...*usage) (m *measurement, sustained *row) {
	m, sustained = b.measurement("webhooks, "+name, "/s"), b.row(name+", sustained", "/s")
	m.run = func(ctx context.Context) {
		l := b.fullSpeed(s.addr, 64)
		end, began := meter(usages...), time.Now()
		r := send(ctx, l)
		s.awaitDelivery(ctx)
		end(len(r.latencies))
		sustained.add(float64(len(r.latencies)) / time.Since(began).Seconds())
		m.record(r)
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
