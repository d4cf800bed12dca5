package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/doctor"
	"purchase-relay/internal/ops/guide"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/service"
	"purchase-relay/internal/tiktok"
)

// run is main without the process, for tests.
func run(ctx context.Context, args []string, getenv func(string) string, stdout io.Writer) error {
	var c config
	command, err := service.Parse(&c, "tiktok-worker",
		"Delivers purchases from the queue to TikTok's Events API.", args, getenv, stdout)
	usage := &service.UsageError{}
	if err != nil && !errors.As(err, &usage) {
		return err
	}
	c.trim()
	if command != "" { // after a wrong command line the defaults are not set
		usage.Problems = append(usage.Problems, c.problems(command)...)
	}
	if command == "doctor" { // it reports the problems among its checks
		return diagnose(ctx, &c, usage.Problems, stdout)
	}
	if len(usage.Problems) > 0 {
		return usage
	}
	switch command {
	case "health":
		return service.Health(ctx, c.AdminAddr)
	case "send-test":
		return sendTest(ctx, &c, stdout)
	default:
		return serve(ctx, &c, getenv, c.Logger(stdout))
	}
}

// sendTestFlags are the flags of `tiktok-worker send-test`.
type sendTestFlags struct {
	Code string `noenv:"" help:"Test event code. Default: TIKTOK_TEST_EVENT_CODE. Required."`
}

// Help implements kong.HelpProvider.
func (sendTestFlags) Help() string {
	return `Sends a made-up purchase as a test event, where test purchases go, and explains TikTok's answer.
The test event code keeps it from counting as a sale.

  tiktok-worker send-test --code TEST12345       the code from Events Manager, Test events

Exit status 1: not accepted.`
}

var errNotAccepted = errors.New("the test event was not accepted")

func sendTest(ctx context.Context, c *config, out io.Writer) error {
	to := c.testTarget()
	event := testEvent(c, time.Now())
	_, _ = fmt.Fprintf(out, "Sending one %s of 1.00 USD, event_id %s, to pixel %s as a test event.\n",
		c.EventName, event.EventID, to.pixel)
	answer := c.pixelFor(to).SendTest(ctx, event)
	advice := guide.Answer(answer)
	if answer.Class == purchase.ClassDelivered {
		advice.Remedy = "See the event in Events Manager, Test events: accepted does not mean attributed."
	}
	_, _ = fmt.Fprintf(out, "%s. %s\n", advice.Meaning, advice.Remedy)
	if answer.Class != purchase.ClassDelivered {
		return errNotAccepted
	}
	return nil
}

// testEvent returns a made-up purchase.
func testEvent(c *config, now time.Time) message.Envelope {
	amount := int64(100)
	return message.Envelope{
		Version: message.Version, EventID: "send-test-" + strings.ToLower(rand.Text()[:12]),
		PurchasedAt: now.Unix(), AmountMinor: &amount, Currency: "usd",
		Keys: purchase.MatchKeys{
			Email: purchase.HashEmail("test@example.com"), PageURL: cmp.Or(c.PageURL, "https://example.com/"),
		},
	}
}

// doctorFlags are the flags of `tiktok-worker doctor`.
type doctorFlags struct {
	Code string `noenv:"" help:"Test event code. Default: TIKTOK_TEST_EVENT_CODE. Empty: nothing is sent."`
}

// Help implements kong.HelpProvider.
func (doctorFlags) Help() string {
	return `Each check passes, warns or fails; a warning or failure shows its remedy. With a test event code, a
test event to each destination verifies token, pixel and the permission event:write. It does not count as a
sale. With TIKTOK_ADVERTISER_ID, yesterday's counts verify the token that reads them. Nothing else is
changed.

  tiktok-worker doctor --code TEST12345          the code from Events Manager, Test events

Exit status 0: no check failed; 3: a check failed.`
}

// diagnose runs the checks that the configuration's problems allow.
func diagnose(ctx context.Context, c *config, problems []string, out io.Writer) error {
	live, test := c.liveTarget(), c.testTarget()
	var counts *tiktok.Stats
	if c.asksForStats() && len(c.statsProblems()) == 0 && c.PixelID != "" && c.Timeout > 0 {
		counts = c.stats()
	}
	return doctor.Report(out, doctor.Worker{
		Problems: problems, Queue: c.Config,
		TikTok: c.tiktok(), Reachable: isAbsolute(c.APIURL) && c.Timeout > 0,
		Live:         doctor.Destination{Pixel: live.pixel, Token: live.token},
		Test:         doctor.Destination{Pixel: test.pixel, Token: test.token, TestCode: test.testCode},
		OwnTestPixel: c.TestPixelID != "", OwnTestToken: c.TestAccessToken != "", SendTests: c.TestMode == "send",
		Code:     cmp.Or(c.Doctor.Code, c.TestEventCode),
		NewEvent: func() message.Envelope { return testEvent(c, time.Now()) },
		Stats:    counts,
	}.Checks(ctx))
}
