package doctor

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"time"

	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/guide"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/tiktok"
)

// Destination is a pixel and what opens it.
type Destination struct {
	Pixel    string
	Token    secret.String
	TestCode string // "": its events count as sales
}

// The forms that Events Manager shows.
var (
	pixelForm = regexp.MustCompile(`^[A-Z0-9]{8,32}$`)
	tokenForm = regexp.MustCompile(`^[\x21-\x7e]{8,512}$`)
)

// stripeSecret matches the beginnings of Stripe's secrets and keys.
var stripeSecret = regexp.MustCompile(`^(whsec|sk|rk|pk)_`)

// tokenShape checks a token's form and repeats nothing of it.
func tokenShape(what string, token secret.String) Check {
	const remedy = "copy it again from Events Manager (Settings, Events API, Generate access token), " +
		"without quotes and blanks"
	text := token.Reveal()
	switch {
	case strings.HasPrefix(strings.ToLower(text), "bearer "):
		return Failed(what, "begins with the word Bearer", "give the token alone")
	case stripeSecret.MatchString(text):
		return Failed(what, "is one of Stripe's secrets", remedy+"; and give that secret to nobody else")
	case !tokenForm.MatchString(text), strings.ContainsAny(text, `"'`):
		return Failed(what, "does not have the form of a token", remedy)
	}
	return Passed(what, "has the form of a token")
}

func pixelShape(what, id string) Check {
	if !pixelForm.MatchString(id) {
		return Warned(what, "does not look like a pixel's id (capital letters and digits)",
			"copy it from Events Manager, under the pixel's name")
	}
	return Passed(what, "has the form of a pixel's id")
}

// shapes checks tokens and pixels by their form, and whether a test purchase can count as a sale.
func (w *Worker) shapes() (checks []Check) {
	if w.Live.Token == "" {
		return []Check{Warned("TikTok: live token", "there is none: every purchase ends skipped (not_configured)",
			"set TIKTOK_ACCESS_TOKEN, unless this is the off switch; "+
				"then ingest replay --status skipped --reason not_configured")}
	}
	checks = append(checks, tokenShape("TikTok: live token", w.Live.Token))
	if w.Live.Pixel != "" {
		checks = append(checks, pixelShape("TikTok: live pixel", w.Live.Pixel))
	}
	if w.OwnTestToken {
		checks = append(checks, tokenShape("TikTok: test token", w.Test.Token))
	}
	if w.OwnTestPixel {
		checks = append(checks, pixelShape("TikTok: test pixel", w.Test.Pixel))
	}
	return append(checks, w.testPurchases())
}

// testPurchases checks whether a purchase in Stripe's test mode can count as a sale.
func (w *Worker) testPurchases() Check {
	const what = "TikTok: test purchases"
	switch {
	case !w.SendTests:
		return Passed(what, "are skipped")
	case w.Test.TestCode != "":
		return Passed(what, "are sent as test events")
	case w.Test.Pixel == w.Live.Pixel && w.Test.Token == w.Live.Token:
		return Failed(what,
			"go to the live pixel with the live token and without a test event code: each counts as a sale",
			"set TIKTOK_TEST_EVENT_CODE, or TIKTOK_TEST_PIXEL_ID with a token of its own")
	case w.Test.Pixel == w.Live.Pixel:
		return Warned(what,
			"go to the live pixel with another token and without a test event code: each may count as a sale",
			"set TIKTOK_TEST_EVENT_CODE or TIKTOK_TEST_PIXEL_ID")
	}
	return Passed(what, "go to a pixel of their own")
}

// reach checks the way to TikTok's address, and the clocks.
func reach(ctx context.Context, c tiktok.Config) []Check {
	const what = "TikTok: way"
	reached, err := tiktok.Ping(ctx, c)
	if err != nil {
		return []Check{Failed(what, "no answer: "+err.Error(),
			"check TIKTOK_API_URL and the way out of this host: DNS, proxy (HTTPS_PROXY), firewall, TLS interception")}
	}
	checks := []Check{Passed(what, "%s answers", reached.Host)}
	if reached.ClockKnown {
		checks = append(checks, judgeTikTokClock(reached.ClockAhead))
	}
	return checks
}

// judgeTikTokClock: the worker's clock decides how old a purchase is, and how long a retry waits.
func judgeTikTokClock(ahead time.Duration) Check {
	const what, remedy = "TikTok: clock", "let this machine follow a time server (timedatectl, chrony)"
	apart := ahead.Abs().Round(time.Second)
	found := fmt.Sprintf("differs from this machine's by %s", apart)
	switch {
	case apart > 10*time.Minute:
		return Failed(what, found+": purchases would expire at the wrong time", remedy)
	case apart > 10*time.Second:
		return Warned(what, found, remedy)
	}
	return Passed(what, "agrees with this machine's")
}

// access sends one event to a destination: it shows token, pixel and the right event:write. Without a test
// event code the event would count as a sale, and nothing is sent.
func access(ctx context.Context, what string, c tiktok.Config, d Destination, event message.Envelope) Check {
	if d.TestCode == "" {
		return Warned(what, "was not tried: without a test event code the event would count as a sale",
			"give the code from Events Manager, Test events: --code or TIKTOK_TEST_EVENT_CODE")
	}
	return judgeAccess(what, tiktok.NewPixel(c, d.Pixel, d.Token, d.TestCode).SendTest(ctx, event))
}

func judgeAccess(what string, a purchase.Answer) Check {
	advice := guide.Answer(a)
	switch a.Class {
	case purchase.ClassDelivered:
		return Passed(what, "%s: token, pixel and event:write are good", advice.Meaning)
	case purchase.ClassRate:
		return Warned(what, advice.Meaning, advice.Remedy)
	default:
		return Failed(what, advice.Meaning, advice.Remedy)
	}
}
