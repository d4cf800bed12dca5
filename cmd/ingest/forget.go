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
	Email   string `arg:"" name:"e-mail" help:"The customer's address; -: it is read from standard input, and stands in no history and no list of processes."`
	NoQueue bool   `noenv:"" help:"Leave the queue alone: what it holds goes by itself, dead letters after 30 days."`
	Yes     bool   `noenv:"" short:"y" help:"Do not ask."`
}

// Help is the command's own page.
func (*forgetFlags) Help() string {
	return `The profile with the address is removed, content and links are taken from the purchases, and the queue's messages and dead letters are overwritten. Session and event ids stay, so that
nothing is counted twice. What was not delivered is not sent any more. There is no way back.

  ingest forget -                                then type the address
  ingest forget --yes ada@example.com

NATS_URL names an operator's user: ingest's own may not read or delete messages. Exit status 1: nobody is known under this address; 3: the queue could not be looked through, run it
again.`
}

// errNobody does not repeat the address.
var errNobody = errors.New("the ledger knows nobody under this address")

// connectPatience is how long the queue is waited for. settling is how long a claim lasts, a publish may be
// in the network, and a worker may hold a message whose dead letter it then publishes.
const (
	connectPatience = 10 * time.Second
	settling        = queue.AckWait + 5*time.Second
)

// forget removes one person from the ledger and the queue.
func forget(ctx context.Context, c *config, stdin io.Reader, out io.Writer) error {
	input := bufio.NewReader(stdin)
	email := c.Forget.Email
	if email == "-" {
		line, err := input.ReadString('\n')
		if email = line; err != nil && !errors.Is(err, io.EOF) {
			return err
		}
	}
	if purchase.NormaliseEmail(email) == "" {
		return &service.UsageError{Problems: []string{"that is no e-mail address"}}
	}
	if !c.Forget.Yes {
		_, _ = fmt.Fprintln(out, "The customer's profile is removed, and with it the access that other programs give by it; purchases that were not delivered are not sent any more. There is no way back.")
		if err := confirm(input, out); err != nil {
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
			_, _ = fmt.Fprintln(out, "A new purchase came meanwhile; once more.")
		}
		if c.Forget.NoQueue {
			return nil
		}
		if err := eraseQueue(ctx, c, ids, out); err != nil {
			return fmt.Errorf("%w: the ledger has forgotten the content; address and links are kept until the queue is done: run it again, or with --no-queue: %w", service.ErrLeft, err)
		}
		return nil
	})
	switch {
	case errors.Is(err, report.ErrNotFound):
		return errNobody
	case err != nil:
		return err
	}
	printForgotten(out, person, c.Forget.NoQueue)
	return nil
}

// eraseQueue erases immediately, and again until nothing more has come for a while: a relay may be publishing a
// purchase, and a worker may hold one.
func eraseQueue(ctx context.Context, c *config, ids []string, out io.Writer) error {
	registry, _ := service.Metrics(service.Version()) // not exposed
	js, err := queue.Connect(c.Config, queue.RoleIngest, zap.NewNop(), registry)
	if err != nil {
		return err
	}
	defer func() { _ = js.Close(ctx) }() // nothing is left to be sent
	if err := awaitConnection(ctx, js); err != nil {
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
		_, _ = fmt.Fprintf(out, "Looking again in %s: one may be in flight.\n", settling)
		if err := pause(ctx, settling); err != nil {
			return err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func printForgotten(out io.Writer, person maintenance.Person, noQueue bool) {
	_, _ = fmt.Fprintf(out,
		"Forgotten: the profile (live and test), its trials, and the content and links of %d purchases. "+
			"Their session ids stay, with sum and time, so that nothing is counted twice.\n", len(person.Purchases))
	if sent := person.Sent(); len(sent) > 0 {
		_, _ = fmt.Fprintf(out, "TikTok has %d of them; ask it to delete the events (event_id): %s\n", len(sent), strings.Join(sent, ", "))
	}
	if noQueue {
		_, _ = fmt.Fprintln(out, "The queue was left alone: dead letters stay there for 30 days, what waits is still sent.")
	}
}
