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
	"path/filepath"
	"strings"

	"purchase-relay/internal/testkit/try"
)

func main() {
	try.Main("local", func(ctx context.Context) error {
		err := run(ctx, os.Args[1:], os.Stdout)
		if errors.Is(err, context.Canceled) { // Ctrl-C during the start
			return nil
		}
		return err
	})
}

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("local", flag.ContinueOnError)
	port := flags.Int("port", 8080, "the first of seven ports: "+strings.Join(listeners, ", "))
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *port < 1 || *port+len(listeners) > 65536 {
		return errors.New("-port is a number from 1 to 65529")
	}
	dir, err := filepath.Abs(".local")
	if err != nil {
		return err
	}
	s := &stack{dir: dir, bin: filepath.Join(dir, "bin"), out: out, ended: make(chan string, 2)}
	for i := range listeners {
		s.at = append(s.at, fmt.Sprintf("127.0.0.1:%d", *port+i))
	}
	return s.Scoped(func() {
		s.start(ctx)
		s.sample(ctx)
		s.printAddresses()
		select {
		case <-ctx.Done():
			s.say("\nStopping …\n")
		case name := <-s.ended:
			try.Check(fmt.Errorf("%s ended; its log is %s", name, s.path(name+".log")))
		}
	})
}

func (s *stack) printAddresses() {
	values := []string{
		"{dir}", s.dir, "{secret}", signingSecret, "{key}", apiKey, "{missed}", fmt.Sprint(missed),
		"{pgpass}", s.path("pgpass"), "{superuser}", s.ledger("postgres"),
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

Send another purchase. With -n 20 -withhold 0.5 half have no webhook, like {missed} at each start:
{dir}/bin/ingest backfill finds those.

  go run ./internal/tools/stripegen -url http://{ingest}/webhooks/stripe -list http://{Stripe}

Next, docs/quickstart.md: a refused token, a replay, your own Stripe account, your own pixel.

`))
}
