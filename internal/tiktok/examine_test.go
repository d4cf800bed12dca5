package tiktok

import (
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"purchase-relay/internal/checkup"
	"purchase-relay/internal/contract"
	"purchase-relay/internal/dev/tiktoksim"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/secret"
)

// Each judgement passes, and does not.
func TestExaminations(t *testing.T) {
	sim := httptest.NewServer(tiktoksim.New(tiktoksim.Config{}))
	defer sim.Close()
	config := Config{URL: sim.URL + "/open_api/v1.3/event/track/", Payload: PayloadEvents, EventName: "CompletePayment", Timeout: time.Minute, Now: time.Now}
	elsewhere, nobody, late := config, config, config
	elsewhere.URL, nobody.URL = sim.URL+"/nothing", "http://127.0.0.1:1/"
	late.Now = func() time.Time { return time.Now().Add(-time.Hour) }
	reach := func(c Config, what string) checkup.Check {
		for _, check := range Reach(t.Context(), c) {
			if check.What == what {
				return check
			}
		}
		return checkup.Check{}
	}
	event := contract.Envelope{
		Version: contract.Version, EventID: "doctor-1", PurchasedAt: time.Now().Unix(), AmountMinor: new(int64(100)), Currency: "usd",
		Keys: purchase.MatchKeys{Email: purchase.HashEmail("test@example.com"), PageURL: "https://example.com/"},
	}
	access := func(c Config, pixel string, token secret.Text, code string) checkup.Check {
		return ExamineAccess(t.Context(), "access", NewPixel(c, pixel, token, code), event)
	}
	odd := config
	odd.EventName = "Complete Payment"
	for name, tc := range map[string]struct {
		check checkup.Check
		want  checkup.Verdict
	}{
		"a token":                       {ExamineToken("token", "0123456789abcdef0123456789abcdef01234567"), checkup.Pass},
		"a token in quotes":             {ExamineToken("token", `"0123456789abcdef"`), checkup.Fail},
		"a token with a line end":       {ExamineToken("token", "0123456789\nabcdef"), checkup.Fail},
		"a header":                      {ExamineToken("token", "Bearer 0123456789abcdef"), checkup.Fail},
		"Stripe's secret":               {ExamineToken("token", "whsec_0123456789abcdef"), checkup.Fail},
		"a pixel":                       {ExaminePixel("pixel", "C4A1B2C3D4E5F6G7H8I9"), checkup.Pass},
		"a pixel's name":                {ExaminePixel("pixel", "My pixel"), checkup.Warn},
		"TikTok answers":                {reach(config, "TikTok: way"), checkup.Pass},
		"nobody does":                   {reach(nobody, "TikTok: way"), checkup.Fail},
		"the clocks agree":              {reach(config, "TikTok: clock"), checkup.Pass},
		"the clocks differ":             {reach(late, "TikTok: clock"), checkup.Fail},
		"the clocks differ a little":    {judgeClock(-time.Minute), checkup.Warn},
		"accepted":                      {access(config, "LOCALPIXEL", "local-token", "TEST1"), checkup.Pass},
		"not tried":                     {access(config, "LOCALPIXEL", "local-token", ""), checkup.Warn},
		"a wrong token":                 {access(config, "LOCALPIXEL", "hunter2", "TEST1"), checkup.Fail},
		"a pixel that is not ours":      {access(config, "OTHERPIXEL", "local-token", "TEST1"), checkup.Fail},
		"a wrong path":                  {access(elsewhere, "LOCALPIXEL", "local-token", "TEST1"), checkup.Fail},
		"an event that is not TikTok's": {access(odd, "LOCALPIXEL", "local-token", "TEST1"), checkup.Fail},
		"no answer":                     {access(nobody, "LOCALPIXEL", "local-token", "TEST1"), checkup.Fail},
		"too many requests":             {judgeAccess("access", purchase.Answer{Class: purchase.ClassRate, Code: new(40100)}), checkup.Warn},
	} {
		if tc.check.Verdict != tc.want || (tc.check.Remedy == "") != (tc.want == checkup.Pass) || strings.Contains(tc.check.Found, "hunter2") {
			t.Errorf("%s: %+v, want %q", name, tc.check, tc.want)
		}
	}
}
