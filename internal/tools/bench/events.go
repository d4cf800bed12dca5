package main

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"time"

	"purchase-relay/internal/testkit/load"
	"purchase-relay/internal/testkit/stripegen"
)

// mark stands in the template where an event's own token comes: in every id and in the e-mail address.
const mark = "zzzzzzzzzzzz"

// order is a paid live subscription with everything that a well-run shop knows of its buyer; a token in place of the mark
// makes it another one.
func order() stripegen.Checkout {
	c := stripegen.NewCheckout().Live()
	email := "buyer." + mark + "@example.com"
	c.EventID, c.SessionID = "evt_"+mark+strings.Repeat("0", 12), "cs_live_a1"+mark+strings.Repeat("0", 44)
	c.Customer, c.Subscription, c.Email = "cus_"+mark+"00", "sub_"+mark+strings.Repeat("0", 12), &email
	return c
}

// events are signed webhooks, made before the clock starts. Each is a customer of its own, at a random place of every index.
type events struct {
	request   []byte // head and body
	body      int    // where it begins
	tokens    []int  // where an event's own token goes
	signature int    // where its v1 goes
	filled    []filled
}

type filled struct {
	token [len(mark)]byte
	v1    [64]byte
}

// newEvents signs n events; they are taken for five minutes.
func newEvents(n int) *events { return eventsOf(order(), n) }

// eventsOf signs n copies of an order of mark, each with a token of its own.
func eventsOf(c stripegen.Checkout, n int) *events {
	body := c.Event()
	signed := stripegen.Sign(body, signingSecret, time.Now())
	head := fmt.Sprintf("POST /webhooks/stripe HTTP/1.1\r\nHost: bench\r\nUser-Agent: Stripe/1.0 (+https://stripe.com/docs/webhooks)\r\n"+
		"Content-Type: application/json; charset=utf-8\r\nContent-Length: %d\r\nStripe-Signature: %s\r\n\r\n", len(body), signed)
	e := &events{request: append([]byte(head), body...), body: len(head), filled: make([]filled, n)}
	e.signature = strings.Index(head, ",v1=") + len(",v1=")
	e.tokens = placesOf(e.request, mark)
	stamp, _, _ := strings.Cut(strings.TrimPrefix(signed, "t="), ",")
	at := time.Unix(mustInt(stamp), 0)
	var all sync.WaitGroup
	share := n/runtime.NumCPU() + 1
	for first := 0; first < n; first += share {
		all.Go(func() {
			text := bytes.Clone(body)
			for i := first; i < min(n, first+share); i++ {
				f := &e.filled[i]
				copy(f.token[:], strings.ToLower(rand.Text()))
				for _, place := range e.tokens {
					copy(text[place-e.body:], f.token[:])
				}
				_, v1, _ := strings.Cut(stripegen.Sign(text, signingSecret, at), "v1=")
				copy(f.v1[:], v1)
			}
		})
	}
	all.Wait()
	return e
}

// placesOf lists where a word stands.
func placesOf(text []byte, word string) (places []int) {
	for at := 0; ; {
		next := bytes.Index(text[at:], []byte(word))
		if next < 0 {
			return places
		}
		places = append(places, at+next)
		at += next + len(word)
	}
}

func mustInt(s string) (n int64) {
	if _, err := fmt.Sscan(s, &n); err != nil {
		panic(err) // a signature's own time
	}
	return n
}

// append appends the i-th request; past the last one it starts again: a duplicate.
func (e *events) append(buffer []byte, i int) []byte {
	f := &e.filled[i%len(e.filled)]
	began := len(buffer)
	buffer = append(buffer, e.request...)
	for _, place := range e.tokens {
		copy(buffer[began+place:], f.token[:])
	}
	copy(buffer[began+e.signature:], f.v1[:])
	return buffer
}

// forged appends the i-th request with a signature that is none.
func (e *events) forged(buffer []byte, i int) []byte {
	began := len(buffer)
	buffer = e.append(buffer, i)
	copy(buffer[began+e.signature:], strings.Repeat("0", 64))
	return buffer
}

// plan sends these events to an address.
func (e *events) plan(addr string, conns int, duration time.Duration) load.Plan {
	return load.Plan{Addr: addr, Conns: conns, Requests: len(e.filled), Append: e.append, For: duration, Want: 200}
}
