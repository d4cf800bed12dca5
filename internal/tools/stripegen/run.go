package main

import (
	"context"
	"errors"
	"flag"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"purchase-relay/internal/testkit/stripegen"
)

// Bounds of what can be asked for: with them no time overflows and no wait is longer than Stripe's.
const (
	maxPurchases = 1_000_000
	maxAttempts  = 1000
	maxDelay     = 72 * time.Hour // Stripe tries for three days
	minRate      = 0.001
)

type options struct {
	url, secret                 string
	n, concurrency, copies      int
	rate                        float64
	live, forge, stale          bool
	mode, status, kind, session string
	amount                      int64
	currency, email, phone      string
	async                       string
	disorder                    stripegen.Disorder
	retry                       int
	serve                       string
	listAt                      string
	list                        func(body []byte) error // nil: the events are not listed
	unlisted                    error                   // why one could not be: it was the last
}

func run(ctx context.Context, args []string, getenv func(string) string, out io.Writer) error {
	var o options
	flags := flag.NewFlagSet("stripegen", flag.ContinueOnError)
	flags.StringVar(&o.url, "url", orElse(getenv("WEBHOOK_URL"), "http://127.0.0.1:8080/webhooks/stripe"), "the webhook's address; $WEBHOOK_URL")
	flags.StringVar(&o.secret, "secret", orElse(getenv("STRIPE_WEBHOOK_SECRET"), "whsec_local"), "the signing secret; $STRIPE_WEBHOOK_SECRET")
	flags.IntVar(&o.n, "n", 1, "how many purchases")
	flags.IntVar(&o.concurrency, "concurrency", 4, "how many at a time, those that wait for their next attempt included")
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
	flags.StringVar(&o.async, "async", "", "succeeded or failed: each purchase is two events, unpaid first and then this; in their order with -concurrency 1")
	flags.DurationVar(&o.disorder.Delay, "delay", 0, "each event arrives up to this much later, at random, such as 30s")
	flags.Float64Var(&o.disorder.Reorder, "reorder", 0, "share of the events, 0 to 1, that are held back behind later ones")
	flags.Float64Var(&o.disorder.Duplicates, "duplicates", 0, "share of the events, 0 to 1, that are sent a second time later")
	flags.Float64Var(&o.disorder.Withhold, "withhold", 0, "share of the events, 0 to 1, that are never sent, as to a disabled endpoint")
	flags.Uint64Var(&o.disorder.Seed, "seed", 0, "repeats the choices of a run that told this one; 0: new ones")
	flags.IntVar(&o.retry, "retry", 1, "how often an event is tried until the answer is 2xx, first after 100 ms, then after twice as long each time up to 3.2 s")
	flags.StringVar(&o.serve, "serve-events", "", "list all events, sent or not, as Stripe's API does at this address, 127.0.0.1:12111 or :12111, until interrupted")
	flags.StringVar(&o.listAt, "list", "", "also list all events, sent or not, at the stand-in for Stripe's API that make run starts, such as http://127.0.0.1:8086")
	if err := flags.Parse(args); err != nil {
		return err
	}
	given := make(map[string]bool)
	flags.Visit(func(f *flag.Flag) { given[f.Name] = true })
	if err := o.check(given); err != nil {
		return err
	}
	for o.disorder.Seed == 0 {
		o.disorder.Seed = rand.Uint64() //nolint:gosec // a seed to play with, no secret
	}
	if o.listAt != "" {
		o.list = func(body []byte) error { return postTo(ctx, o.listAt, body) }
	}
	if o.serve == "" {
		return o.send(ctx, out)
	}
	return o.sendAndServe(ctx, out)
}

// check says what is wrong with the flags; given are those that were not left to their defaults.
func (o *options) check(given map[string]bool) error {
	share := func(f float64) bool { return f >= 0 && f <= 1 } // NaN is none
	d := o.disorder
	switch {
	case !local(o.url):
		return errors.New("only an address on this machine is taken: this sends made-up purchases, and they belong into no real ledger")
	case o.serve != "" && !localListener(o.serve):
		return errors.New("-serve-events is a loopback address or a port alone, such as 127.0.0.1:12111 or :12111")
	case o.listAt != "" && (!local(o.listAt) || o.serve != ""):
		return errors.New("-list is the address of a stand-in on this machine, and no -serve-events beside it")
	case o.n < 1 || o.copies < 1 || o.concurrency < 1:
		return errors.New("-n, -copies and -concurrency start at 1")
	case o.n > maxPurchases:
		return errors.New("-n is at most a million")
	case o.rate != 0 && !(o.rate >= minRate):
		return errors.New("-rate is 0 or from 0.001 purchases a second")
	case o.retry < 1 || o.retry > maxAttempts:
		return errors.New("-retry is from 1 to 1000")
	case d.Delay < 0 || d.Delay > maxDelay:
		return errors.New("-delay is from 0 to 72h")
	case !share(d.Reorder) || !share(d.Duplicates) || !share(d.Withhold):
		return errors.New("-reorder, -duplicates and -withhold are shares from 0 to 1")
	case o.kind == "":
		return errors.New("-type is not empty")
	case o.async != "" && o.async != "succeeded" && o.async != "failed":
		return errors.New("-async is succeeded or failed")
	case o.async != "" && (given["type"] || given["status"]):
		return errors.New("-async says itself which -type and -status its two events have")
	}
	return nil
}

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

// localListener says whether an address to listen at is on loopback, or a port alone, which a container publishes or not.
func localListener(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "" || host == "localhost" || err == nil && ip.IsLoopback()
}

func orElse(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}
