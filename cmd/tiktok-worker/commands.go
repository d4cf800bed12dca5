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
)

// run is the program without the process: tests call it.
func run(ctx context.Context, args []string, getenv func(string) string, stdout io.Writer) error {
	var c config
	command, err := service.Parse(&c, "tiktok-worker",
		"Delivers purchases from the queue to TikTok's Events API.", args, getenv, stdout)
	usage := &service.UsageError{}
	if err != nil && !errors.As(err, &usage) {
		return err
	}
	c.trim()
	usage.Problems = append(usage.Problems, c.problems(command)...)
	if command == "doctor" { // it reports the problems beside everything else
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
	Code string `noenv:"" help:"The test event code from Events Manager. Default: TIKTOK_TEST_EVENT_CODE. Required, so that the test never counts as a sale."`
}

// Help is the command's own page.
func (sendTestFlags) Help() string {
	return `One made-up purchase goes where test purchases go, as a test event, and TikTok's answer is explained.

  tiktok-worker send-test --code TEST12345       the code from Events Manager, Test events

Exit status 1: it was not accepted.`
}

// errNotAccepted ends send-test after the answer was printed.
var errNotAccepted = errors.New("the test event was not accepted")

// sendTest sends one made-up purchase where test purchases go, and explains TikTok's answer.
func sendTest(ctx context.Context, c *config, out io.Writer) error {
	to := c.testTarget()
	event := testEvent(c, time.Now())
	_, _ = fmt.Fprintf(out, "Sending one %s of 1.00 USD, event_id %s, to pixel %s as a test event.\n",
		c.EventName, event.EventID, to.pixel)
	answer := c.pixelFor(to).SendTest(ctx, event)
	advice := guide.Answer(answer)
	if answer.Class == purchase.ClassDelivered {
		advice.Remedy = "Accepted is not attributed: see it in Events Manager, under Test events."
	}
	_, _ = fmt.Fprintf(out, "%s. %s\n", advice.Meaning, advice.Remedy)
	if answer.Class != purchase.ClassDelivered {
		return errNotAccepted
	}
	return nil
}

// testEvent is a made-up purchase of nobody.
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
	Code string `noenv:"" help:"The test event code from Events Manager: with it, one test event is sent to each destination. Default: TIKTOK_TEST_EVENT_CODE."`
}

// Help is the command's own page.
func (doctorFlags) Help() string {
	return `Each check passes, warns or fails; what does not pass says what to do. With a test event code one test event goes to each destination, which shows token, pixel and the right event:write;
nothing else is changed, and nothing counts as a sale.

  tiktok-worker doctor --code TEST12345          the code from Events Manager, Test events

Exit status 0: nothing has to be fixed; 3: something has to be.`
}

// diagnose checks everything that the worker needs, as far as the configuration's problems allow.
func diagnose(ctx context.Context, c *config, problems []string, out io.Writer) error {
	live, test := c.liveTarget(), c.testTarget()
	return doctor.Report(out, doctor.Worker{
		Problems: problems, Queue: c.Config,
		TikTok: c.tiktok(), Reachable: absolute(c.APIURL) && c.Timeout > 0,
		Live:         doctor.Destination{Pixel: live.pixel, Token: live.token},
		Test:         doctor.Destination{Pixel: test.pixel, Token: test.token, TestCode: test.testCode},
		OwnTestPixel: c.TestPixelID != "", OwnTestToken: c.TestAccessToken != "", SendTests: c.TestMode == "send",
		Code:     cmp.Or(c.Doctor.Code, c.TestEventCode),
		NewEvent: func() message.Envelope { return testEvent(c, time.Now()) },
	}.Checks(ctx))
}
