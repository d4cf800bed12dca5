package doctor

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"time"

	"purchase-relay/internal/logsafe"
	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/guide"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/tiktok"
)

// Destination is a pixel and its credentials.
type Destination struct {
	Pixel    string
	Token    secret.String
	TestCode string // test event code; "": events count as sales
}

// The forms that Events Manager shows, and the prefixes of Stripe's secrets.
var (
	pixelForm    = regexp.MustCompile(`^[A-Z0-9]{8,32}$`)
	tokenForm    = regexp.MustCompile(`^[\x21-\x7e]{8,512}$`)
	stripeSecret = regexp.MustCompile(`^(whsec|sk|rk|pk)_`)
)

// checkTokenForm prints nothing of the token.
func checkTokenForm(what string, token secret.String) Check {
	const remedy = "copy it again from Events Manager (Settings, Events API, Generate access token), " +
		"without quotes and spaces"
	text := token.Reveal()
	switch {
	case strings.HasPrefix(strings.ToLower(text), "bearer "):
		return Failed(what, "begins with Bearer", "remove that word")
	case stripeSecret.MatchString(text):
		return Failed(what, "is a secret of Stripe", remedy+"; keep Stripe's secret out of the worker")
	case !tokenForm.MatchString(text), strings.ContainsAny(text, `"'`):
		return Failed(what, "is not in the form of a token", remedy)
	}
	return Passed(what, "is well formed")
}

func checkPixelForm(what, id string) Check {
	if !pixelForm.MatchString(id) {
		return Warned(what, "does not look like a pixel ID (capital letters and digits)",
			"copy it from Events Manager, below the pixel's name")
	}
	return Passed(what, "is well formed")
}

// forms checks the form of tokens and pixels, and whether a test purchase can count as a sale.
func (w *Worker) forms() (checks []Check) {
	if w.Live.Token == "" {
		return []Check{Warned("TikTok: live token", "is not set: every purchase ends skipped (not_configured)",
			"unless delivery is off on purpose, set TIKTOK_ACCESS_TOKEN, then run "+
				"`ingest replay --status skipped --reason not_configured`")}
	}
	checks = append(checks, checkTokenForm("TikTok: live token", w.Live.Token))
	if w.Live.Pixel != "" {
		checks = append(checks, checkPixelForm("TikTok: live pixel", w.Live.Pixel))
	}
	if w.OwnTestToken {
		checks = append(checks, checkTokenForm("TikTok: test token", w.Test.Token))
	}
	if w.OwnTestPixel {
		checks = append(checks, checkPixelForm("TikTok: test pixel", w.Test.Pixel))
	}
	return append(checks, w.testPurchases())
}

func (w *Worker) testPurchases() Check {
	const what = "TikTok: test purchases"
	switch {
	case !w.SendTests:
		return Passed(what, "are skipped")
	case w.Test.TestCode != "":
		return Passed(what, "are sent as test events")
	case w.Test.Pixel == w.Live.Pixel && w.Test.Token == w.Live.Token:
		return Failed(what, "count as sales: they go to the live pixel without a test event code",
			"set TIKTOK_TEST_EVENT_CODE, or TIKTOK_TEST_PIXEL_ID with its own token")
	case w.Test.Pixel == w.Live.Pixel:
		return Warned(what, "may count as sales: they go to the live pixel without a test event code",
			"set TIKTOK_TEST_EVENT_CODE or TIKTOK_TEST_PIXEL_ID")
	}
	return Passed(what, "go to a separate pixel")
}

// reach checks the connection to TikTok and the clocks.
func reach(ctx context.Context, c tiktok.Config) []Check {
	const what = "TikTok: connection"
	reached, err := tiktok.Ping(ctx, c)
	if err != nil {
		return []Check{Failed(what, "no response: "+err.Error(),
			"check TIKTOK_API_URL and this host's DNS, proxy (HTTPS_PROXY), firewall and TLS interception")}
	}
	checks := []Check{Passed(what, "%s responds", reached.Host)}
	if reached.ClockKnown {
		checks = append(checks, judgeTikTokClock(reached.ClockAhead))
	}
	return checks
}

// judgeTikTokClock: the worker's clock determines a purchase's age and a retry's delay.
func judgeTikTokClock(ahead time.Duration) Check {
	const what, remedy = "TikTok: clock", "synchronize this machine's clock (timedatectl, chrony)"
	offset := ahead.Abs().Round(time.Second)
	found := fmt.Sprintf("differs from this machine's by %s", offset)
	switch {
	case offset > 10*time.Minute:
		return Failed(what, found+": purchases would expire at the wrong time", remedy)
	case offset > 10*time.Second:
		return Warned(what, found, remedy)
	}
	return Passed(what, "agrees with this machine's")
}

// access sends one test event, which verifies the token, the pixel and the permission event:write. Without a
// test event code nothing is sent: the event would count as a sale.
func access(ctx context.Context, what string, c tiktok.Config, d Destination, event message.Envelope) Check {
	if d.TestCode == "" {
		return Warned(what, "not checked: without a test event code the event would count as a sale",
			"set --code or TIKTOK_TEST_EVENT_CODE to the code from Events Manager, Test events")
	}
	return judgeAccess(what, tiktok.NewPixel(c, d.Pixel, d.Token, d.TestCode).SendTest(ctx, event))
}

func judgeAccess(what string, a purchase.Answer) Check {
	advice := guide.Answer(a)
	switch a.Class {
	case purchase.ClassDelivered:
		return Passed(what, "%s: token, pixel and event:write are valid", advice.Meaning)
	case purchase.ClassRate:
		return Warned(what, advice.Meaning, advice.Remedy)
	default:
		return Failed(what, advice.Meaning, advice.Remedy)
	}
}

// judgeStats judges the answer to the question for yesterday's counts.
func judgeStats(counts []message.Count, a purchase.Answer) Check {
	const what = "TikTok: counts"
	if a.Class == purchase.ClassDelivered {
		names := make([]string, len(counts))
		for i, c := range counts {
			names[i] = c.Event
		}
		return Passed(what, "the token may read them; yesterday: %s", logsafe.Text(strings.Join(names, ", "), 200))
	}
	advice := guide.Stats(string(a.Class))
	found := advice.Meaning + " (" + guide.Details(a) + "); deliveries do not depend on it"
	switch a.Class {
	case purchase.ClassRate, purchase.ClassRetry:
		return Warned(what, found, advice.Remedy)
	default:
		return Failed(what, found, advice.Remedy)
	}
}
