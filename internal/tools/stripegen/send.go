package main

import (
	"bytes"
	"cmp"
	"context"
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

	"github.com/tidwall/gjson"

	"purchase-relay/internal/testkit/stripegen"
)

const firstWait = 100 * time.Millisecond // before the second attempt

// fewPurchases is the number up to which each answer has its own line.
const fewPurchases = 20

// send sends all events and prints the answers: one line each for a few purchases, a table for many. After an
// error it prints the answers so far.
func (o *options) send(ctx context.Context, out io.Writer) error {
	sender := &stripegen.Sender{URL: o.url, Secret: o.secret}
	if o.forge {
		sender.Secret = "whsec_forged"
	}
	if o.stale {
		sender.Now = func() time.Time { return time.Now().Add(-10 * time.Minute) }
	}
	var addFailed error
	copies := func(yield func(stripegen.Arrival) bool) {
		for arrival := range o.arrivals(out, &addFailed) {
			for range o.copies {
				if !yield(arrival) {
					return
				}
			}
		}
	}
	answers := map[string]int{}
	var took []time.Duration
	pace := stripegen.Pace{Concurrency: o.concurrency * o.copies, Attempts: o.retry, Wait: firstWait}
	err := sender.Play(ctx, copies, pace, func(a stripegen.Arrival, answer stripegen.Answer) {
		text := fmt.Sprintf("%d %s", answer.Status, answer.Body)
		answers[text]++
		took = append(took, answer.Took)
		if o.n <= fewPurchases {
			session := gjson.GetBytes(a.Body, "data.object.id")
			_, _ = fmt.Fprintf(out, "%s  %s  %.1f ms\n", session, text, milliseconds(answer.Took))
		}
	})
	if o.n > fewPurchases && len(took) > 0 {
		for _, answer := range slices.Sorted(maps.Keys(answers)) {
			_, _ = fmt.Fprintf(out, "%7d × %s\n", answers[answer], answer)
		}
		slices.Sort(took)
		median, p95 := took[len(took)/2], took[len(took)*95/100]
		_, _ = fmt.Fprintf(out, "median %.1f ms, p95 %.1f ms\n", milliseconds(median), milliseconds(p95))
	}
	return errors.Join(err, addFailed)
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// arrivals returns the events when they are due. Without disorder each is generated only then: a long run
// holds few in memory, and their times are true. With disorder all are generated first.
func (o *options) arrivals(out io.Writer, failed *error) iter.Seq[stripegen.Arrival] {
	d := o.disorder
	if o.rate > 0 {
		d.Every = time.Duration(float64(time.Second) / o.rate / float64(len(o.purchase())))
	}
	if d.Delay > 0 || d.Reorder > 0 || d.Duplicates > 0 || d.Withhold > 0 {
		bodies := slices.Collect(o.events(failed))
		plan, withheld := d.Plan(bodies)
		_, _ = fmt.Fprintf(out, "-seed %d repeats this; %d of %d events are withheld\n",
			d.Seed, len(withheld), len(bodies))
		return slices.Values(plan)
	}
	return func(yield func(stripegen.Arrival) bool) {
		due := time.Duration(0)
		for body := range o.events(failed) {
			if !yield(stripegen.Arrival{After: due, Body: body}) {
				return
			}
			due += d.Every
		}
	}
}

// events generates the events in order and lists them at the stand-in, whose first error ends them.
func (o *options) events(failed *error) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for range o.n {
			for _, c := range o.purchase() {
				body := c.Event()
				if o.add != nil {
					if *failed = o.add(body); *failed != nil {
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

// purchase returns the events of one purchase. With a delayed payment method they are an hour apart, the
// second of now.
func (o *options) purchase() []stripegen.Checkout {
	c := stripegen.NewCheckout()
	if o.live {
		c = c.Live()
	}
	c.SessionID = cmp.Or(o.session, c.SessionID)
	if o.email != "" {
		c.Email = &o.email
	}
	c.Mode, c.PaymentStatus, c.Type = o.mode, o.status, o.kind
	c.AmountTotal, c.Currency, c.Phone = &o.amount, &o.currency, &o.phone
	if o.async == "" {
		return []stripegen.Checkout{c}
	}
	methods := map[string]string{"eur": "sepa_debit", "gbp": "bacs_debit", "jpy": "konbini"}
	c.Created = c.Created.Add(-time.Hour)
	c = c.Delayed(cmp.Or(methods[strings.ToLower(o.currency)], "us_bank_account"))
	if o.async == "failed" {
		return []stripegen.Checkout{c, c.AsyncFailed(time.Hour)}
	}
	return []stripegen.Checkout{c, c.AsyncSucceeded(time.Hour)}
}

// post lists an event at a stand-in.
func post(ctx context.Context, address string, body []byte) error {
	url := strings.TrimSuffix(address, "/") + "/events"
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Timeout: 10 * time.Second}).Do(req)
	if err != nil {
		return fmt.Errorf("-list: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("-list: %s answered %s", url, resp.Status)
	}
	return nil
}

// sendAndServe also serves the events as Stripe's API does, until ctx ends.
func (o *options) sendAndServe(ctx context.Context, out io.Writer) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", o.serve)
	if err != nil {
		return fmt.Errorf("-serve-events: %w", err)
	}
	_, _ = fmt.Fprintf(out, "events at http://%s/v1/events, for any key sk_test_… or rk_test_…\n",
		listener.Addr())
	api := stripegen.NewAPI()
	o.add = api.Add
	server := &http.Server{Handler: api, ReadHeaderTimeout: 5 * time.Second}
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		_ = server.Serve(listener) // until Close
	}()
	defer func() {
		_ = server.Close()
		<-closed
	}()
	if err := o.send(ctx, out); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}
