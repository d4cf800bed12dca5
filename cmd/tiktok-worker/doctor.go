package main

import (
	"context"
	"io"
	"time"

	"purchase-relay/internal/ops/doctor"
	"purchase-relay/internal/queue"
	"purchase-relay/internal/service"
	"purchase-relay/internal/tiktok"
)

// doctorFlags are the flags of `tiktok-worker doctor`.
type doctorFlags struct {
	Code string `noenv:"" help:"The test event code from Events Manager: with it, one test event is sent to each destination. Default: TIKTOK_TEST_EVENT_CODE."`
}

// Help is the command's own page.
func (doctorFlags) Help() string {
	return `Each look passes, warns or fails; what does not pass says what to do. With a test event code one test event goes to each destination, which shows token, pixel and the right event:write;
nothing else is changed, and nothing counts as a sale.

  tiktok-worker doctor --code TEST12345          the code from Events Manager, Test events

Exit status 0: nothing has to be mended; 3: something has to be.`
}

// doctor looks at everything that the worker needs. It changes nothing, but for a test event at TikTok where there is a code for it.
func runDoctor(ctx context.Context, c *config, problems []string, out io.Writer) error {
	checks := service.Configuration(problems)
	checks = append(checks, c.destinationsChecked()...)
	if len(c.Problems()) == 0 {
		checks = append(checks, queue.Examine(ctx, c.Config, queue.RoleWorker, queue.StreamConfig{})...)
	}
	if !absolute(c.APIURL) || c.Timeout <= 0 {
		return service.Concluded(out, checks) // problems of the configuration
	}
	checks = append(checks, tiktok.Reach(ctx, c.tiktok())...)
	if c.AccessToken != "" && c.PixelID != "" {
		live := c.liveWay()
		live.testCode = orElse(c.Doctor.Code, c.TestEventCode) // so that it counts as no sale
		checks = append(checks, tiktok.ExamineAccess(ctx, "TikTok: live access", c.pixelFor(live), testEvent(c, time.Now())))
		if test := c.testWay(); c.TestMode == "send" && (test.pixel != live.pixel || test.token != live.token) {
			test.testCode = orElse(c.Doctor.Code, c.TestEventCode)
			checks = append(checks, tiktok.ExamineAccess(ctx, "TikTok: test access", c.pixelFor(test), testEvent(c, time.Now())))
		}
	}
	return service.Concluded(out, checks)
}

// destinationsChecked looks at tokens and pixels by their form, and at whether a test can count as a sale.
func (c *config) destinationsChecked() (checks []doctor.Check) {
	if c.AccessToken == "" {
		return append(checks, doctor.Warned("TikTok: live token", "there is none: every purchase ends skipped (not_configured)", "set TIKTOK_ACCESS_TOKEN, unless this is the off switch; then ingest replay --status skipped --reason not_configured"))
	}
	checks = append(checks, tiktok.ExamineToken("TikTok: live token", c.AccessToken))
	if c.PixelID != "" {
		checks = append(checks, tiktok.ExaminePixel("TikTok: live pixel", c.PixelID))
	}
	if c.TestAccessToken != "" {
		checks = append(checks, tiktok.ExamineToken("TikTok: test token", c.TestAccessToken))
	}
	if c.TestPixelID != "" {
		checks = append(checks, tiktok.ExaminePixel("TikTok: test pixel", c.TestPixelID))
	}
	return append(checks, c.testsApart())
}

// testsApart says whether a purchase in Stripe's test mode can count as a sale.
func (c *config) testsApart() doctor.Check {
	const what = "TikTok: test purchases"
	test, live := c.testWay(), c.liveWay()
	switch {
	case c.TestMode != "send":
		return doctor.Passed(what, "are skipped")
	case c.TestEventCode != "":
		return doctor.Passed(what, "are sent as test events")
	case test.pixel == live.pixel && test.token == live.token:
		return doctor.Failed(what, "go to the live pixel with the live token and without a test event code: each counts as a sale", "set TIKTOK_TEST_EVENT_CODE, or TIKTOK_TEST_PIXEL_ID with a token of its own")
	case test.pixel == live.pixel:
		return doctor.Warned(what, "go to the live pixel with another token and without a test event code: each may count as a sale", "set TIKTOK_TEST_EVENT_CODE or TIKTOK_TEST_PIXEL_ID")
	}
	return doctor.Passed(what, "go to a pixel of their own")
}
