package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/tiktok"
)

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

// errNotAccepted ends send-test; what TikTok said was printed.
var errNotAccepted = errors.New("the test event was not accepted")

func (c *config) testProblems() (list []string) {
	if c.AccessToken == "" && c.TestAccessToken == "" {
		list = append(list, "TIKTOK_ACCESS_TOKEN or TIKTOK_TEST_ACCESS_TOKEN is required")
	}
	if c.PixelID == "" && c.TestPixelID == "" {
		list = append(list, "TIKTOK_PIXEL_ID or TIKTOK_TEST_PIXEL_ID is required")
	}
	if c.SendTest.Code == "" && c.TestEventCode == "" {
		list = append(list, "a test event code is required (--code or TIKTOK_TEST_EVENT_CODE), or the test would count as a sale: Events Manager shows it under Test events")
	}
	list = append(list, c.unusable()...)
	list = append(list, c.addressProblems()...)
	if c.Timeout <= 0 {
		list = append(list, "TIKTOK_TIMEOUT must be longer than nothing")
	}
	return list
}

// sendTest sends one made-up purchase where test purchases go, and says what came of it.
func sendTest(ctx context.Context, c *config, out io.Writer) error {
	pixel := c.pixelFor(c.testWay())
	event := testEvent(c, time.Now())
	_, _ = fmt.Fprintf(out, "Sending one %s of 1.00 USD, event_id %s, to pixel %s as a test event.\n", c.EventName, event.EventID, c.testWay().pixel)
	answer := pixel.SendTest(ctx, event)
	_, _ = fmt.Fprintln(out, tiktok.Explain(answer))
	if answer.Class != purchase.ClassDelivered {
		return errNotAccepted
	}
	return nil
}

// testEvent is a made-up purchase of nobody.
func testEvent(c *config, now time.Time) message.Envelope {
	amount := int64(100)
	return message.Envelope{
		Version: message.Version, EventID: "send-test-" + strings.ToLower(rand.Text()[:12]), PurchasedAt: now.Unix(), AmountMinor: &amount, Currency: "usd",
		Keys: purchase.MatchKeys{Email: purchase.HashEmail("test@example.com"), PageURL: orElse(c.PageURL, "https://example.com/")},
	}
}
