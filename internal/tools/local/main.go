// Command local runs the whole product on this machine, without containers: a private Postgres, NATS in this
// process, simulators of TikTok and of Stripe's list of events, and the two binaries. It sends one signed
// sample purchase, prints its timeline, and stays until Ctrl-C.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil && !errors.Is(err, context.Canceled) {
		_, _ = fmt.Fprintln(os.Stderr, "\nlocal:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	flags := flag.NewFlagSet("local", flag.ContinueOnError)
	port := flags.Int("port", 8080, "the first of seven ports: "+strings.Join(listeners, ", "))
	dir := flags.String("dir", ".local", "the folder of the data, the binaries and the logs")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *port < 1 || *port+len(listeners) > 65536 {
		return errors.New("-port is a number from 1 to 65529")
	}
	if *dir, err = filepath.Abs(*dir); err != nil {
		return err
	}
	var addrs []string
	for i := range listeners {
		addrs = append(addrs, fmt.Sprintf("127.0.0.1:%d", *port+i))
	}
	s := newStack(addrs, *dir, out)
	defer func() { err = errors.Join(err, s.stop()) }()
	if err := s.start(ctx); err != nil {
		return err
	}
	if err := s.sample(ctx); err != nil {
		return err
	}
	s.printAddresses()
	select {
	case <-ctx.Done():
		s.say("\nStopping …\n")
		return nil
	case name := <-s.ended:
		return fmt.Errorf("%s ended; its log is %s", name, s.path(name+".log"))
	}
}

func (s *stack) printAddresses() {
	values := []string{
		"{dir}", s.dir, "{secret}", signingSecret, "{key}", apiKey, "{missed}", fmt.Sprint(missed),
		"{pgpass}", s.path("pgpass"), "{superuser}", s.ledger("postgres"), "{runtime}", s.ledger(role),
	}
	for i, name := range listeners {
		values = append(values, "{"+name+"}", s.at[i])
	}
	s.say("%s", strings.NewReplacer(values...).Replace(`
Everything is up. Ctrl-C stops it; the data stays for the next start.

  webhook        http://{ingest}/webhooks/stripe   (signing secret {secret})
  dashboard      http://{ingest admin}/?mode=test   (beside it /api/v1/…, /metrics, /readyz)
  worker admin   http://{worker admin}/readyz · /metrics
  TikTok (sim)   http://{TikTok}/events · /stats · POST /faults · PUT /counting
  Stripe (sim)   http://{Stripe}/v1/events   (key {key})
  NATS           nats://{NATS}
  Postgres       PGPASSFILE={pgpass} psql '{superuser}'
  logs           {dir}/*.log

Send another purchase:

  go run ./internal/tools/stripegen -url http://{ingest}/webhooks/stripe -list http://{Stripe}

Compare Stripe's events with the ledger, and backfill what no webhook brought (at the first start {missed}
purchases; with -n 20 -withhold 0.5 the command above withholds some more):

  export STRIPE_API_KEY={key} STRIPE_API_URL=http://{Stripe} CHECKOUT_MODES=subscription,payment
  export PGPASSFILE={pgpass} DATABASE_URL='{runtime}'
  {dir}/bin/ingest reconcile
  {dir}/bin/ingest backfill

Let TikTok fail for ten seconds, and watch the worker's log:

  curl -X POST http://{TikTok}/faults -d '{"status":503,"for":"10s"}'

See what TikTok counts beside the ledger, and let its token lose the right to ask:

  http://{ingest admin}/reconciliation
  curl -X PUT http://{TikTok}/counting -d '{"no_scope":true}'

Next, docs/quickstart.md: a refused token, a replay, your own Stripe account, your own pixel.

`))
}
