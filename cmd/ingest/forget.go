package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"go.uber.org/zap"

	"purchase-relay/internal/ledger"
	"purchase-relay/internal/ops/maintenance"
	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/queue"
	"purchase-relay/internal/service"
)

// forgetFlags are the arguments of `ingest forget`.
type forgetFlags struct {
	Email   string `arg:"" name:"e-mail" help:"The customer's address; - reads it from standard input."`
	NoQueue bool   `noenv:"" help:"Do not erase in the queue, where dead letters expire after 30 days."`
	Yes     bool   `noenv:"" short:"y" help:"Do not ask."`
}

// Help implements kong.HelpProvider.
func (*forgetFlags) Help() string {
	return `Deletes the profile with the address, removes personal data and links from its purchases, and
overwrites their messages and dead letters in the queue. Session and event ids are kept, so that
nothing is counted twice. Undelivered purchases are not sent. This cannot be undone.

  ingest forget -                                then type the address
  ingest forget --yes ada@example.com

NATS_URL needs the rights of an operator: ingest's own user may not read or delete messages.

Exit status 1: unknown address; 3: not confirmed, or the queue could not be searched: run it again.`
}

// errUnknownAddress does not repeat the address.
var errUnknownAddress = errors.New("no customer with this address")

// settleTime is how long a claim lasts, a publish may be in flight, and a worker may hold a message before it
// publishes a dead letter.
const settleTime = queue.AckWait + 5*time.Second

// forget removes one customer from the ledger and the queue.
func forget(ctx context.Context, c *config, stdin io.Reader, out io.Writer) error {
	input := bufio.NewReader(stdin)
	email := c.Forget.Email
	if email == "-" {
		line, err := readLine(ctx, input)
		switch {
		case errors.Is(err, context.Canceled):
			return notConfirmed(out)
		case err != nil && !errors.Is(err, io.EOF):
			return err
		}
		email = line
	}
	if purchase.NormaliseEmail(email) == "" {
		return &service.UsageError{Problems: []string{"not an e-mail address"}}
	}
	if !c.Forget.Yes {
		_, _ = fmt.Fprintln(out, "This deletes the customer's profile, and with it the access that other programs "+
			"grant by it.\nUndelivered purchases are not sent. This cannot be undone.")
		if err := confirm(ctx, input, out); err != nil {
			return err
		}
	}
	db, err := ledger.Open(ctx, c.DatabaseURL)
	if err != nil {
		return err
	}
	defer db.Close()
	rounds := 0
	person, err := maintenance.New(db).ForgetCustomer(ctx, email, func(ctx context.Context, ids []string) error {
		if rounds++; rounds > 1 {
			_, _ = fmt.Fprintln(out, "A new purchase arrived; repeating.")
		}
		if c.Forget.NoQueue {
			return nil
		}
		if err := eraseQueue(ctx, c, ids, out); err != nil {
			_, _ = fmt.Fprintln(out, "The address and the links are kept until the queue is erased: "+
				"run it again, or with --no-queue.")
			return fmt.Errorf("erase in the queue: %w: %w", err, service.ErrActionRequired)
		}
		return nil
	})
	switch {
	case errors.Is(err, report.ErrNotFound):
		return errUnknownAddress
	case err != nil:
		return err
	}
	printForgotten(out, person, c.Forget.NoQueue)
	return nil
}

// eraseQueue erases until nothing new has arrived for settleTime: a relay may be publishing a purchase, and a
// worker may hold one.
func eraseQueue(ctx context.Context, c *config, ids []string, out io.Writer) error {
	registry, _ := service.Metrics(service.Version()) // not exposed
	js, err := queue.Connect(c.Config, queue.RoleIngest, zap.NewNop(), registry)
	if err != nil {
		return err
	}
	defer func() { _ = js.Close(ctx) }() // nothing is buffered
	if err := awaitConnection(ctx, js, connectTimeout); err != nil {
		return err
	}
	for again := false; ; again = true {
		waiting, dead, err := js.Erase(ctx, ids)
		if err != nil {
			return err
		}
		_, _ = fmt.Fprintf(out, "Erased from the queue: %d waiting, %d dead letters.\n", waiting, dead)
		if again && waiting+dead == 0 || len(ids) == 0 {
			return nil
		}
		_, _ = fmt.Fprintf(out, "Checking again in %s for messages in flight.\n", settleTime)
		select {
		case <-time.After(settleTime):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func printForgotten(out io.Writer, person maintenance.Person, noQueue bool) {
	_, _ = fmt.Fprintf(out,
		"Erased: the profile (live and test), its trials, and the personal data and links of %d purchases. "+
			"Session ids, amounts and times are kept.\n", len(person.Purchases))
	if sent := person.Sent(); len(sent) > 0 {
		_, _ = fmt.Fprintf(out, "TikTok has %d of them; ask TikTok to delete these event_ids: %s\n",
			len(sent), strings.Join(sent, ", "))
	}
	if noQueue {
		_, _ = fmt.Fprintln(out, "The queue is unchanged: purchases are sent, dead letters kept for 30 days.")
	}
}
