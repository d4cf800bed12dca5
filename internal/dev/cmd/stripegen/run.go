package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"purchase-relay/internal/dev/stripegen"
)

type options struct {
	url, secret                 string
	n, concurrency, copies      int
	rate                        float64
	live, forge, stale          bool
	mode, status, kind, session string
	amount                      int64
	currency, email, phone      string
}

func run(ctx context.Context, args []string, getenv func(string) string, out io.Writer) error {
	var o options
	flags := flag.NewFlagSet("stripegen", flag.ContinueOnError)
	flags.StringVar(&o.url, "url", orElse(getenv("WEBHOOK_URL"), "http://127.0.0.1:8080/webhooks/stripe"), "the webhook's address; $WEBHOOK_URL")
	flags.StringVar(&o.secret, "secret", orElse(getenv("STRIPE_WEBHOOK_SECRET"), "whsec_local"), "the signing secret; $STRIPE_WEBHOOK_SECRET")
	flags.IntVar(&o.n, "n", 1, "how many purchases")
	flags.IntVar(&o.concurrency, "concurrency", 4, "how many at a time")
	flags.IntVar(&o.copies, "copies", 1, "how often each event is sent, at the same time")
	flags.Float64Var(&o.rate, "rate", 0, "purchases a second; 0: as fast as possible")
	flags.BoolVar(&o.live, "live", false, "livemode")
	flags.BoolVar(&o.forge, "forge", false, "sign with a wrong secret")
	flags.BoolVar(&o.stale, "stale", false, "sign with a time ten minutes ago")
	flags.StringVar(&o.mode, "mode", "subscription", "subscription, payment or setup")
	flags.StringVar(&o.status, "status", "paid", "paid, unpaid or no_payment_required")
	flags.StringVar(&o.kind, "type", "checkout.session.completed", "the event's type")
	flags.StringVar(&o.session, "session", "", "a fixed session id, for the second event of a session")
	flags.Int64Var(&o.amount, "amount", 2999, "in the currency's smallest unit")
	flags.StringVar(&o.currency, "currency", "usd", "the currency")
	flags.StringVar(&o.email, "email", "", "the buyer's address; default: a new one each")
	flags.StringVar(&o.phone, "phone", "+12133734253", "the buyer's phone")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if !local(o.url) {
		return errors.New("only an address on this machine is taken: this sends made-up purchases, and they belong into no real ledger")
	}
	if o.n < 1 || o.copies < 1 || o.concurrency < 1 {
		return errors.New("-n, -copies and -concurrency start at 1")
	}
	return o.send(ctx, out)
}

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

// send sends everything and sums up: a line each for a few, a table for many.
func (o *options) send(ctx context.Context, out io.Writer) error {
	sender := &stripegen.Sender{URL: o.url, Secret: o.secret}
	if o.forge {
		sender.Secret = "whsec_forged"
	}
	if o.stale {
		sender.Now = func() time.Time { return time.Now().Add(-10 * time.Minute) }
	}
	limit := rate.NewLimiter(rate.Inf, 1)
	if o.rate > 0 {
		limit = rate.NewLimiter(rate.Limit(o.rate), 1)
	}
	var mu sync.Mutex
	answers := make(map[string]int)
	took := make([]time.Duration, 0, o.n*o.copies)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(o.concurrency * o.copies)
	for range o.n {
		if limit.Wait(ctx) != nil {
			break
		}
		c := o.checkout()
		body := c.Event()
		for range o.copies {
			group.Go(func() error {
				answer, err := sender.Send(ctx, body)
				if err != nil {
					return err
				}
				mu.Lock()
				defer mu.Unlock()
				answers[fmt.Sprintf("%d %s", answer.Status, answer.Body)]++
				took = append(took, answer.Took)
				if o.n <= 20 {
					_, _ = fmt.Fprintf(out, "%s  %d %s  %.1f ms\n", c.SessionID, answer.Status, answer.Body, milliseconds(answer.Took))
				}
				return nil
			})
		}
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if o.n > 20 && len(took) > 0 {
		slices.Sort(took)
		for _, answer := range slices.Sorted(maps.Keys(answers)) {
			_, _ = fmt.Fprintf(out, "%7d × %s\n", answers[answer], answer)
		}
		_, _ = fmt.Fprintf(out, "median %.1f ms, p95 %.1f ms\n", milliseconds(took[len(took)/2]), milliseconds(took[len(took)*95/100]))
	}
	return nil
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// local says whether a URL stays on this machine: a loopback address, or a name without a dot, which only a container's
// own network resolves.
func local(raw string) bool {
	u, err := url.Parse(raw)
	if err != nil || u.Hostname() == "" {
		return false
	}
	if ip, err := netip.ParseAddr(u.Hostname()); err == nil {
		return ip.IsLoopback()
	}
	return !strings.Contains(u.Hostname(), ".")
}

func orElse(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}
