package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"purchase-relay/internal/testkit/stripegen"
)

type options struct {
	url, secret                 string
	n, copies, concurrency      int
	retry                       uint64
	rate                        float64
	live, forge, stale          bool
	mode, status, kind, session string
	amount                      int64
	currency, email, phone      string
	async                       string
	disorder                    stripegen.Disorder
	serve, list                 string
	add                         func(body []byte) error // lists an event at a stand-in; nil: none
}

func run(ctx context.Context, args []string, getenv func(string) string, out io.Writer) error {
	o, err := parse(args, getenv)
	if err != nil {
		return err
	}
	switch {
	case o.serve != "":
		return o.sendAndServe(ctx, out)
	case o.list != "":
		o.add = func(body []byte) error { return post(ctx, o.list, body) }
	}
	return o.send(ctx, out)
}

func parse(args []string, getenv func(string) string) (*options, error) {
	o := &options{}
	f := flag.NewFlagSet("stripegen", flag.ContinueOnError)
	webhook := cmp.Or(getenv("WEBHOOK_URL"), "http://127.0.0.1:8080/webhooks/stripe")
	secret := cmp.Or(getenv("STRIPE_WEBHOOK_SECRET"), "whsec_local")
	f.StringVar(&o.url, "url", webhook, "webhook `URL` on this machine; $WEBHOOK_URL")
	f.StringVar(&o.secret, "secret", secret, "signing secret; $STRIPE_WEBHOOK_SECRET")
	f.IntVar(&o.n, "n", 1, "purchases, a million at most")
	f.IntVar(&o.concurrency, "concurrency", 4, "events in flight, including those that wait for a retry")
	f.IntVar(&o.copies, "copies", 1, "concurrent copies of each event")
	f.Float64Var(&o.rate, "rate", 0, "purchases per second, from 0.001; 0: as fast as possible")
	f.Uint64Var(&o.retry, "retry", 1,
		"attempts per event until the status is 2xx, 1000 at most, 0.1 to 3.2 s apart")
	f.BoolVar(&o.live, "live", false, "live mode")
	f.BoolVar(&o.forge, "forge", false, "sign with a wrong secret")
	f.BoolVar(&o.stale, "stale", false, "sign with a time ten minutes ago")
	f.StringVar(&o.mode, "mode", "subscription", "subscription, payment or setup")
	f.StringVar(&o.status, "status", "paid", "payment status: paid, unpaid or no_payment_required")
	f.StringVar(&o.kind, "type", "checkout.session.completed", "event type")
	f.StringVar(&o.session, "session", "", "fixed session id, for the second event of a session")
	f.Int64Var(&o.amount, "amount", 2999, "amount in the currency's smallest unit")
	f.StringVar(&o.currency, "currency", "usd", "currency")
	f.StringVar(&o.email, "email", "", "e-mail address; default: a new one for each purchase")
	f.StringVar(&o.phone, "phone", "+12133734253", "phone number")
	f.StringVar(&o.async, "async", "", "succeeded or failed: two events per purchase, unpaid and then this; "+
		"in order with -concurrency 1")
	f.DurationVar(&o.disorder.Delay, "delay", 0, "delay each event by up to this much, 72h at most")
	f.Float64Var(&o.disorder.Reorder, "reorder", 0, "share of events, 0 to 1, overtaken by later ones")
	f.Float64Var(&o.disorder.Duplicates, "duplicates", 0, "share of events, 0 to 1, sent a second time")
	f.Float64Var(&o.disorder.Withhold, "withhold", 0, "share of events, 0 to 1, that are not sent")
	f.Uint64Var(&o.disorder.Seed, "seed", 0, "seed from an earlier run's output, to repeat it; 0: a new one")
	f.StringVar(&o.serve, "serve-events", "", "loopback `address`, such as :12111, for a stand-in for Stripe's "+
		"API with all events, until interrupted")
	f.StringVar(&o.list, "list", "", "`URL` of make run's stand-in for Stripe's API, such as "+
		"http://127.0.0.1:8086, to add all events to")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	given := map[string]bool{}
	f.Visit(func(f *flag.Flag) { given[f.Name] = true })
	for o.disorder.Seed == 0 {
		o.disorder.Seed = rand.Uint64() //nolint:gosec // reproducible choices, no secret
	}
	return o, errors.Join(o.problems(given)...)
}

// problems returns what is wrong with the flags. given are those on the command line.
func (o *options) problems(given map[string]bool) (list []error) {
	d := o.disorder
	share := func(f float64) bool { return f >= 0 && f <= 1 } // false for NaN
	for _, rule := range []struct {
		holds bool
		text  string
	}{
		{local(o.url), "-url must be on this machine: generated purchases must not reach a real ledger"},
		{o.serve == "" || localListener(o.serve), "-serve-events must be a loopback address or a port"},
		{o.list == "" || local(o.list), "-list must be on this machine"},
		{o.list == "" || o.serve == "", "-list and -serve-events exclude each other"},
		{o.n >= 1 && o.n <= 1_000_000, "-n must be from 1 to 1000000"},
		{o.copies >= 1 && o.concurrency >= 1, "-copies and -concurrency must be at least 1"},
		{o.rate == 0 || o.rate >= 0.001, "-rate must be 0 or at least 0.001"},
		{o.retry >= 1 && o.retry <= 1000, "-retry must be from 1 to 1000"},
		{d.Delay >= 0 && d.Delay <= 72*time.Hour, "-delay must be from 0 to 72h, as long as Stripe retries"},
		{
			share(d.Reorder) && share(d.Duplicates) && share(d.Withhold),
			"-reorder, -duplicates and -withhold must be from 0 to 1",
		},
		{o.kind != "", "-type must not be empty"},
		{slices.Contains([]string{"", "succeeded", "failed"}, o.async), "-async must be succeeded or failed"},
		{o.async == "" || !given["type"] && !given["status"], "-async sets -type and -status itself"},
	} {
		if !rule.holds {
			list = append(list, errors.New(rule.text))
		}
	}
	return list
}

// local reports whether a URL is on this machine: loopback, or a name without a dot, which only a container
// network resolves.
func local(raw string) bool {
	u, err := url.Parse(raw)
	if err != nil || u.Hostname() == "" {
		return false
	}
	return loopback(u.Hostname()) || !strings.ContainsAny(u.Hostname(), ".:")
}

// localListener reports whether an address to listen on is loopback, or only a port, which a container
// publishes or not.
func localListener(address string) bool {
	host, _, err := net.SplitHostPort(address)
	return err == nil && (host == "" || loopback(host))
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}
