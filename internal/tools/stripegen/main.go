// Command stripegen sends signed checkout events to ingest, as Stripe would.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"iter"
	"maps"
	"math/rand/v2"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/tidwall/gjson"

	"purchase-relay/internal/testkit/stripegen"
	"purchase-relay/internal/testkit/try"
)

const (
	firstWait    = 100 * time.Millisecond // before the second attempt
	fewPurchases = 20                     // up to so many, each answer has its own line
)

type options struct {
	sender   stripegen.Sender
	pace     stripegen.Pace
	disorder stripegen.Disorder
	n        int
	rate     float64
	live     bool
	email    string
	list     string
}

func main() {
	try.Main("stripegen", func(ctx context.Context) error { return run(ctx, os.Args[1:], os.Getenv, os.Stdout) })
}

func run(ctx context.Context, args []string, getenv func(string) string, out io.Writer) error {
	o := &options{pace: stripegen.Pace{Wait: firstWait}}
	f := flag.NewFlagSet("stripegen", flag.ContinueOnError)
	webhook := cmp.Or(getenv("WEBHOOK_URL"), "http://127.0.0.1:8080/webhooks/stripe")
	secret := cmp.Or(getenv("STRIPE_WEBHOOK_SECRET"), "whsec_local")
	f.StringVar(&o.sender.URL, "url", webhook, "webhook `URL` on this machine; $WEBHOOK_URL")
	f.StringVar(&o.sender.Secret, "secret", secret, "signing secret; $STRIPE_WEBHOOK_SECRET")
	f.IntVar(&o.n, "n", 1, "purchases, a million at most")
	f.IntVar(&o.pace.Concurrency, "concurrency", 4,
		"events in flight, including those that wait for a retry")
	f.Float64Var(&o.rate, "rate", 0, "purchases per second, from 0.001; 0: as fast as possible")
	f.Uint64Var(&o.pace.Attempts, "retry", 1,
		"attempts per event until the status is 2xx, 0.1 to 3.2 s apart")
	f.BoolVar(&o.live, "live", false, "live mode")
	f.StringVar(&o.email, "email", "", "e-mail address; default: a new one for each purchase")
	f.DurationVar(&o.disorder.Delay, "delay", 0, "delay each event by up to this much")
	f.Float64Var(&o.disorder.Reorder, "reorder", 0, "share of events, 0 to 1, overtaken by later ones")
	f.Float64Var(&o.disorder.Duplicates, "duplicates", 0, "share of events, 0 to 1, sent a second time")
	f.Float64Var(&o.disorder.Withhold, "withhold", 0, "share of events, 0 to 1, that are not sent")
	f.Uint64Var(&o.disorder.Seed, "seed", rand.Uint64(), //nolint:gosec // reproducible choices, no secret
		"seed from an earlier run's output, to repeat it; default: a new one")
	f.StringVar(&o.list, "list", "", "`URL` of make run's stand-in for Stripe's API, such as "+
		"http://127.0.0.1:8086, to add all events to")
	if err := f.Parse(args); err != nil {
		return err
	}
	switch {
	case f.NArg() > 0:
		return fmt.Errorf("unexpected argument %s", f.Arg(0))
	case !local(o.sender.URL):
		return errors.New("-url must be on this machine: generated purchases must not reach a real ledger")
	case o.list != "" && !local(o.list):
		return errors.New("-list must be on this machine")
	case o.n < 1 || o.n > 1_000_000:
		return errors.New("-n must be from 1 to 1000000")
	case o.rate != 0 && !(o.rate >= 0.001):
		return errors.New("-rate must be 0 or at least 0.001")
	}
	return o.send(ctx, out)
}

// local reports whether a URL is on this machine: loopback, or a name without a dot, which only a container
// network resolves.
func local(raw string) bool {
	u, err := url.Parse(raw)
	if err != nil || u.Hostname() == "" {
		return false
	}
	ip, err := netip.ParseAddr(u.Hostname())
	return err == nil && ip.IsLoopback() || !strings.ContainsAny(u.Hostname(), ".:")
}

// send sends all events and prints how often which answer came, of a few purchases each one, too. After an
// error it prints the answers so far.
func (o *options) send(ctx context.Context, out io.Writer) error {
	var notListed error
	arrivals := o.arrivals(o.events(ctx, &notListed), out)
	answers := map[string]int{}
	err := o.sender.Play(ctx, arrivals, o.pace, func(a stripegen.Arrival, answer stripegen.Answer) {
		text := fmt.Sprintf("%d %s", answer.Status, answer.Body)
		if answers[text]++; o.n <= fewPurchases {
			session, took := gjson.GetBytes(a.Body, "data.object.id"), answer.Took.Round(100*time.Microsecond)
			_, _ = fmt.Fprintf(out, "%s  %s  %s\n", session, text, took)
		}
	})
	for _, answer := range slices.Sorted(maps.Keys(answers)) {
		_, _ = fmt.Fprintf(out, "%7d × %s\n", answers[answer], answer)
	}
	return errors.Join(err, notListed)
}

// arrivals returns the events when they are due. Without disorder each is generated only then: a long run
// holds few in memory, and their times are true. With disorder all are generated first.
func (o *options) arrivals(events iter.Seq[[]byte], out io.Writer) iter.Seq[stripegen.Arrival] {
	d := o.disorder
	if o.rate > 0 {
		d.Every = time.Duration(float64(time.Second) / o.rate)
	}
	if d.Delay > 0 || d.Reorder > 0 || d.Duplicates > 0 || d.Withhold > 0 {
		plan, withheld := d.Plan(slices.Collect(events))
		_, _ = fmt.Fprintf(out, "-seed %d repeats this; %d of %d events are withheld\n",
			d.Seed, len(withheld), o.n)
		return slices.Values(plan)
	}
	return func(yield func(stripegen.Arrival) bool) {
		due := time.Duration(0)
		for body := range events {
			if !yield(stripegen.Arrival{After: due, Body: body}) {
				return
			}
			due += d.Every
		}
	}
}

// events generates the events and adds them to the list, whose first error ends them.
func (o *options) events(ctx context.Context, notListed *error) iter.Seq[[]byte] {
	list := stripegen.Sender{URL: strings.TrimSuffix(o.list, "/") + "/events"}
	return func(yield func([]byte) bool) {
		for range o.n {
			c := stripegen.NewCheckout()
			if o.live {
				c = c.Live()
			}
			if o.email != "" {
				c.Email = &o.email
			}
			body := c.Event()
			if o.list != "" {
				if _, err := list.Deliver(ctx, body, 1, 0); err != nil {
					*notListed = fmt.Errorf("-list: %w", err)
					return
				}
			}
			if !yield(body) {
				return
			}
		}
	}
}
