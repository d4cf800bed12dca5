package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"purchase-relay/internal/ops/doctor"
	"purchase-relay/internal/ops/doctor/ingestdoctor"
	"purchase-relay/internal/service"
	"purchase-relay/internal/stripe"
)

// endpointFlags are the flags of `ingest stripe-endpoint`.
type endpointFlags struct {
	URL    string `noenv:"" name:"url" placeholder:"URL" help:"Address of the webhook. Default: PUBLIC_URL."`
	Create bool   `noenv:"" help:"Create the endpoint and print its signing secret."`
}

// Help implements kong.HelpProvider.
func (*endpointFlags) Help() string {
	return `Prints what the endpoint in Stripe must look like and, with STRIPE_API_KEY, checks the one at the
URL. With --create it makes one, unless one exists there, and prints its signing secret: Stripe's API returns
it only this once. --create needs a key with the permission "Webhook Endpoints: Write"; use it for this
command only.

  ingest stripe-endpoint --url https://shop.example
  ingest stripe-endpoint --url https://shop.example --create

Exit status 0: the endpoint is right; 1: failed, or refused because an endpoint exists at the URL; 3: a check
failed, or there was no key to check with.`
}

// endpointURL returns the URL of --url or PUBLIC_URL in its normal form.
func (c *config) endpointURL() (string, error) {
	if c.Endpoint.URL == "" {
		return c.publicURL()
	}
	address, err := stripe.EndpointURL(c.Endpoint.URL)
	if err != nil {
		return "", fmt.Errorf("--url %w", err)
	}
	return address, nil
}

// endpointProblems lists what is wrong with the flags of `ingest stripe-endpoint`.
func (c *config) endpointProblems() (list []string) {
	address, err := c.endpointURL()
	switch {
	case err != nil:
		list = append(list, err.Error())
	case address == "":
		list = append(list, "--url or PUBLIC_URL is required, such as https://shop.example")
	case c.Endpoint.Create && c.api().Livemode() && strings.HasPrefix(address, "http:"):
		list = append(list, "--create needs an https URL: Stripe's live mode accepts no other")
	}
	if c.Endpoint.Create && c.StripeAPIKey == "" {
		list = append(list, "--create needs STRIPE_API_KEY with the permission Webhook Endpoints: Write")
	}
	return list
}

// endpoint returns what ingest needs of the endpoint at a URL.
func (c *config) endpoint(address string) ingestdoctor.Endpoint {
	return ingestdoctor.Endpoint{
		URL: address, Types: c.api().Types, APIKey: c.StripeAPIKey != "", Live: c.api().Livemode(),
		Connect: len(c.ConnectAccounts) > 0,
	}
}

var (
	errNotChecked     = errors.New("the endpoint was not checked: STRIPE_API_KEY is not set")
	errEndpointExists = errors.New("create the endpoint: one exists at this URL; change that one in Stripe")
)

// stripeEndpoint prints what the endpoint must look like, checks it and, with --create, creates it.
func stripeEndpoint(ctx context.Context, c *config, out io.Writer) error {
	address, err := c.endpointURL()
	if err != nil {
		return err
	}
	want := c.endpoint(address)
	_, _ = fmt.Fprintf(out, "The endpoint in Stripe (Developers > Webhooks):\n\n  URL      %s\n  types    %s\n"+
		"  payload  snapshot\n  version  any\n\n", address, strings.Join(want.Types, "\n           "))
	if c.StripeAPIKey == "" {
		_, _ = fmt.Fprintln(out, "Set STRIPE_API_KEY to check it, and add --create to create it.")
		return fmt.Errorf("%w: %w", errNotChecked, service.ErrActionRequired)
	}
	api := stripe.NewAPI(c.api())
	found, err := api.Endpoints(ctx)
	if err != nil {
		return err
	}
	if c.Endpoint.Create {
		return createEndpoint(ctx, api, found, want, out)
	}
	return doctor.Report(out, want.Checks(found, nil))
}

// createEndpoint creates the endpoint unless one exists, and prints its signing secret.
func createEndpoint(
	ctx context.Context, api *stripe.API, found stripe.Endpoints, want ingestdoctor.Endpoint, out io.Writer,
) error {
	switch {
	case len(found.At(want.URL)) > 0:
		return errors.Join(errEndpointExists, reportOnly(out, want.Checks(found, nil)))
	case errors.Is(found.DestinationsErr, stripe.ErrNoDestinations):
		_, _ = fmt.Fprintf(out, "Not compared: %v.\n", found.DestinationsErr)
	case found.DestinationsErr != nil:
		return found.DestinationsErr // one of them may be at this URL
	}
	id, key, err := api.CreateEndpoint(ctx, want.URL, want.Types)
	if errors.Is(err, stripe.ErrMaybeCreated) {
		_, _ = fmt.Fprintln(out, "Run the command again without --create. If the endpoint exists, its signing "+
			"secret is on its page in Stripe.")
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "Created %s. Add its signing secret to ingest's STRIPE_WEBHOOK_SECRET "+
		"(comma-separated); it is printed only this once:\n\nSTRIPE_WEBHOOK_SECRET=%s\n", id, key.Reveal())
	if err != nil {
		return fmt.Errorf("print the signing secret of %s, which is on its page in Stripe: %w", id, err)
	}
	return nil
}

// reportOnly prints checks whose failure is not the command's.
func reportOnly(out io.Writer, checks []doctor.Check) error {
	if err := doctor.Report(out, checks); !errors.Is(err, service.ErrActionRequired) {
		return err
	}
	return nil
}

// silenceCause returns a source of notify: why no webhook came. It is nil without PUBLIC_URL or
// STRIPE_API_KEY.
func silenceCause(c *config) func(ctx context.Context, since time.Time) (what, remedy string, err error) {
	address, err := c.publicURL()
	if err != nil || address == "" || c.StripeAPIKey == "" {
		return nil
	}
	api, want := stripe.NewAPI(c.api()), c.endpoint(address)
	return func(ctx context.Context, since time.Time) (what, remedy string, err error) {
		found, err := api.Endpoints(ctx)
		if err != nil {
			return "", "", err
		}
		pending := false
		for _, err := range api.Events(ctx, since.Add(time.Second), time.Now(), "") {
			if err != nil {
				return "", "", err
			}
			pending = true
			break
		}
		what, remedy = want.SilenceCause(found, pending)
		return what, remedy, nil
	}
}
