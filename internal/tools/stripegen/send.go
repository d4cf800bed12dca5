package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"purchase-relay/internal/testkit/stripegen"
)

// firstWait is the wait before the second attempt.
const firstWait = 100 * time.Millisecond

func (o *options) checkout() stripegen.Checkout {
	c := stripegen.NewCheckout()
	if o.live {
		c = c.Live()
	}
	if o.session != "" {
		c.SessionID = o.session
	}
	if o.email != "" {
		c.Email = &o.email
	}
	c.Mode, c.PaymentStatus, c.Type, c.AmountTotal, c.Currency, c.Phone = o.mode, o.status, o.kind, &o.amount, &o.currency, &o.phone
	return c
}

// every is the time from one event to the next.
func (o *options) every() time.Duration {
	events := o.rate // a second
	if o.async != "" {
		events *= 2
	}
	if events == 0 {
		return 0
	}
	return time.Duration(float64(time.Second) / events)
}

// purchase makes the events of one purchase. Those of a delayed payment method are an hour apart, and the second is of
// now: none is of the future.
func (o *options) purchase() []stripegen.Checkout {
	c := o.checkout()
	if o.async == "" {
		return []stripegen.Checkout{c}
	}
	method := map[string]string{"eur": "sepa_debit", "gbp": "bacs_debit", "jpy": "konbini"}[strings.ToLower(o.currency)]
	c.Created = c.Created.Add(-time.Hour)
	c = c.Delayed(orElse(method, "us_bank_account"))
	if o.async == "failed" {
		return []stripegen.Checkout{c, c.AsyncFailed(time.Hour)}
	}
	return []stripegen.Checkout{c, c.AsyncSucceeded(time.Hour)}
}

// bodies makes all events, one by one, and lists them.
func (o *options) bodies() iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for range o.n {
			for _, c := range o.purchase() {
				body := c.Event()
				if o.list != nil {
					if o.unlisted = o.list(body); o.unlisted != nil {
						return
					}
				}
				if !yield(body) {
					return
				}
			}
		}
	}
}

// random says whether chance has a say.
func (o *options) random() bool {
	d := o.disorder
	return d.Delay > 0 || d.Reorder > 0 || d.Duplicates > 0 || d.Withhold > 0
}

// arrivals are the events when they are due, before they are copied. In order, each is made only then: a long run holds few
// at a time, and they are as old as they say. In disorder all are made first.
func (o *options) arrivals(out io.Writer) iter.Seq[stripegen.Arrival] {
	if o.random() {
		bodies := slices.Collect(o.bodies())
		disorder := o.disorder
		disorder.Every = o.every()
		plan, withheld := disorder.Plan(bodies)
		_, _ = fmt.Fprintf(out, "-seed %d repeats this; %d of %d events are withheld\n", o.disorder.Seed, len(withheld), len(bodies))
		return slices.Values(plan)
	}
	return func(yield func(stripegen.Arrival) bool) {
		due := time.Duration(0)
		for body := range o.bodies() {
			if !yield(stripegen.Arrival{After: due, Body: body}) {
				return
			}
			due += o.every()
		}
	}
}

// send sends everything and sums up: a line each for a few, a table for many. What was sent before
// an error is summed up, too.
func (o *options) send(ctx context.Context, out io.Writer) error {
	sender := &stripegen.Sender{URL: o.url, Secret: o.secret}
	if o.forge {
		sender.Secret = "whsec_forged"
	}
	if o.stale {
		sender.Now = func() time.Time { return time.Now().Add(-10 * time.Minute) }
	}
	copied := func(yield func(stripegen.Arrival) bool) {
		for a := range o.arrivals(out) {
			for range o.copies {
				if !yield(a) {
					return
				}
			}
		}
	}
	answers := make(map[string]int)
	var took []time.Duration
	pace := stripegen.Pace{Concurrency: o.concurrency * o.copies, Attempts: o.retry, Wait: firstWait}
	err := sender.Play(ctx, copied, pace, func(a stripegen.Arrival, answer stripegen.Answer) {
		answers[fmt.Sprintf("%d %s", answer.Status, answer.Body)]++
		took = append(took, answer.Took)
		if o.n <= 20 {
			_, _ = fmt.Fprintf(out, "%s  %d %s  %.1f ms\n", session(a.Body), answer.Status, answer.Body, milliseconds(answer.Took))
		}
	})
	err = errors.Join(err, o.unlisted)
	if o.n > 20 && len(took) > 0 {
		slices.Sort(took)
		for _, answer := range slices.Sorted(maps.Keys(answers)) {
			_, _ = fmt.Fprintf(out, "%7d × %s\n", answers[answer], answer)
		}
		_, _ = fmt.Fprintf(out, "median %.1f ms, p95 %.1f ms\n", milliseconds(took[len(took)/2]), milliseconds(took[len(took)*95/100]))
	}
	return err
}

// session is the id of the session that an event is about.
func session(body []byte) string {
	var event struct {
		Data struct {
			Object struct{ ID string } `json:"object"`
		} `json:"data"`
	}
	if err := json.Unmarshal(body, &event); err != nil {
		panic(err) // it was made here
	}
	return event.Data.Object.ID
}

// postTo lists an event at a stand-in.
func postTo(ctx context.Context, address string, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(address, "/")+"/events", bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Timeout: 10 * time.Second}).Do(req)
	if err != nil {
		return fmt.Errorf("-list: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("-list: %s does not list it: %s", address, resp.Status)
	}
	return nil
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// sendAndServe lists the events from the first on, and goes on with that after the last was sent, until ctx ends.
func (o *options) sendAndServe(ctx context.Context, out io.Writer) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", o.serve)
	if err != nil {
		return fmt.Errorf("-serve-events: %w", err)
	}
	_, _ = fmt.Fprintf(out, "events at http://%s/v1/events, for any key sk_test_… or rk_test_…\n", listener.Addr())
	list := new(stripegen.EventList)
	o.list = list.Add
	server := &http.Server{Handler: list, ReadHeaderTimeout: 5 * time.Second}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		return server.Close()
	})
	group.Go(func() error { return o.send(ctx, out) })
	return group.Wait()
}
