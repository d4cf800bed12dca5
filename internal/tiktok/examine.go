package tiktok

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"time"

	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/doctor"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/secret"
)

// pixelForm is that of a pixel's id in Events Manager; tokenForm that of a token of the Events API.
var (
	pixelForm = regexp.MustCompile(`^[A-Z0-9]{8,32}$`)
	tokenForm = regexp.MustCompile(`^[\x21-\x7e]{8,512}$`)
)

// ExamineToken looks at a token's form. It says nothing of what is in it.
func ExamineToken(what string, token secret.Text) doctor.Check {
	text := token.Reveal()
	const remedy = "copy it again from Events Manager (Settings, Events API, Generate access token), without quotes and blanks"
	switch {
	case strings.HasPrefix(strings.ToLower(text), "bearer "):
		return doctor.Failed(what, "begins with the word Bearer", "give the token alone")
	case strings.HasPrefix(text, "whsec_"), strings.HasPrefix(text, "sk_"), strings.HasPrefix(text, "rk_"), strings.HasPrefix(text, "pk_"):
		return doctor.Failed(what, "is one of Stripe's secrets", remedy+"; and give that secret to nobody else")
	case !tokenForm.MatchString(text), strings.ContainsAny(text, `"'`):
		return doctor.Failed(what, "does not have the form of a token", remedy)
	}
	return doctor.Passed(what, "has the form of a token")
}

// ExaminePixel looks at a pixel id's form.
func ExaminePixel(what, id string) doctor.Check {
	if !pixelForm.MatchString(id) {
		return doctor.Warned(what, "does not look like a pixel's id (capital letters and digits)", "copy it from Events Manager, under the pixel's name")
	}
	return doctor.Passed(what, "has the form of a pixel's id")
}

// Reach asks for TikTok's address without a token: any answer of it will do, and its time is compared with ours.
func Reach(ctx context.Context, c Config) []doctor.Check {
	const what, way = "TikTok: way", "check TIKTOK_API_URL and the way out of this host: DNS, proxy (HTTPS_PROXY), firewall, TLS interception"
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.URL, http.NoBody)
	if err != nil {
		return []doctor.Check{doctor.Failed(what, "TIKTOK_API_URL cannot be used", way)}
	}
	resp, err := NewPixel(c, "", "", "").client.Do(req)
	if err != nil {
		return []doctor.Check{doctor.Failed(what, "no answer: "+reason(err), way)}
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxAnswer)) // what it says does not matter
	_ = resp.Body.Close()
	checks := []doctor.Check{doctor.Passed(what, "%s answers", req.URL.Host)}
	if theirs, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		checks = append(checks, judgeClock(theirs.Sub(c.Now())))
	}
	return checks
}

// judgeClock: a Date has whole seconds. The worker's clock decides how old a purchase is, and what a retry waits.
func judgeClock(ahead time.Duration) doctor.Check {
	const what, remedy = "TikTok: clock", "let this machine follow a time server (timedatectl, chrony)"
	apart := ahead.Abs().Round(time.Second)
	switch {
	case apart > 10*time.Minute:
		return doctor.Failed(what, fmt.Sprintf("differs from this machine's by %s: purchases would be given up on at the wrong time", apart), remedy)
	case apart > 10*time.Second:
		return doctor.Warned(what, fmt.Sprintf("differs from this machine's by %s", apart), remedy)
	}
	return doctor.Passed(what, "agrees with this machine's")
}

// ExamineAccess sends one event to a pixel and judges the answer: token, pixel and the right event:write. The event must be a test's, or
// it would count as a sale.
func ExamineAccess(ctx context.Context, what string, p *Pixel, event message.Envelope) doctor.Check {
	if p.testCode == "" {
		return doctor.Warned(what, "was not tried: without a test event code the event would count as a sale", "give the code from Events Manager, Test events: --code or TIKTOK_TEST_EVENT_CODE")
	}
	return judgeAccess(what, p.SendTest(ctx, event))
}

func judgeAccess(what string, a purchase.Answer) doctor.Check {
	found, remedy, _ := strings.Cut(Explain(a), "). ")
	found += ")"
	switch a.Class {
	case purchase.ClassDelivered:
		return doctor.Passed(what, "%s: token, pixel and event:write are good", found)
	case purchase.ClassRate:
		return doctor.Warned(what, found, remedy)
	default:
		return doctor.Failed(what, found, remedy)
	}
}
