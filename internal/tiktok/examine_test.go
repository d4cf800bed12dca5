package tiktok

import (
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/doctor"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/testkit/tiktoksim"
)

// Each judgement passes, and does not.
func TestExaminations(t *testing.T) {
	sim := httptest.NewServer(tiktoksim.New(tiktoksim.Config{}))
	defer sim.Close()
	config := Config{URL: sim.URL + "/open_api/v1.3/event/track/", Payload: PayloadEvents, EventName: "CompletePayment", Timeout: time.Minute, Now: time.Now}
	elsewhere, nobody, late := config, config, config
	elsewhere.URL, nobody.URL = sim.URL+"/nothing", "http://127.0.0.1:1/"
	late.Now = func() time.Time { return time.Now().Add(-time.Hour) }
	reach := func(c Config, what string) doctor.Check {
		for _, check := range Reach(t.Context(), c) {
			if check.What == what {
				return check
			}
		}
		return doctor.Check{}
	}
	event := message.Envelope{
		Version: message.Version, EventID: "doctor-1", PurchasedAt: time.Now().Unix(), AmountMinor: new(int64(100)), Currency: "usd",
		Keys: purchase.MatchKeys{Email: purchase.HashEmail("test@example.com"), PageURL: "https://example.com/"},
	}
	access := func(c Config, pixel string, token secret.Text, code string) doctor.Check {
		return ExamineAccess(t.Context(), "access", NewPixel(c, pixel, token, code), event)
	}
	odd := config
	odd.EventName = "Complete Payment"
	for name, tc := range map[string]struct {
		check doctor.Check
		want  doctor.Verdict
	}{
		"a token":                       {ExamineToken("token", "0123456789abcdef0123456789abcdef01234567"), doctor.Pass},
		"a token in quotes":             {ExamineToken("token", `"0123456789abcdef"`), doctor.Fail},
		"a token with a line end":       {ExamineToken("token", "0123456789\nabcdef"), doctor.Fail},
		"a header":                      {ExamineToken("token", "Bearer 0123456789abcdef"), doctor.Fail},
		"Stripe's secret":               {ExamineToken("token", "whsec_0123456789abcdef"), doctor.Fail},
		"a pixel":                       {ExaminePixel("pixel", "C4A1B2C3D4E5F6G7H8I9"), doctor.Pass},
		"a pixel's name":                {ExaminePixel("pixel", "My pixel"), doctor.Warn},
		"TikTok answers":                {reach(config, "TikTok: way"), doctor.Pass},
		"nobody does":                   {reach(nobody, "TikTok: way"), doctor.Fail},
		"the clocks agree":              {reach(config, "TikTok: clock"), doctor.Pass},
		"the clocks differ":             {reach(late, "TikTok: clock"), doctor.Fail},
		"the clocks differ a little":    {judgeClock(-time.Minute), doctor.Warn},
		"accepted":                      {access(config, "LOCALPIXEL", "local-token", "TEST1"), doctor.Pass},
		"not tried":                     {access(config, "LOCALPIXEL", "local-token", ""), doctor.Warn},
		"a wrong token":                 {access(config, "LOCALPIXEL", "hunter2", "TEST1"), doctor.Fail},
		"a pixel that is not ours":      {access(config, "OTHERPIXEL", "local-token", "TEST1"), doctor.Fail},
		"a wrong path":                  {access(elsewhere, "LOCALPIXEL", "local-token", "TEST1"), doctor.Fail},
		"an event that is not TikTok's": {access(odd, "LOCALPIXEL", "local-token", "TEST1"), doctor.Fail},
		"no answer":                     {access(nobody, "LOCALPIXEL", "local-token", "TEST1"), doctor.Fail},
		"too many requests":             {judgeAccess("access", purchase.Answer{Class: purchase.ClassRate, Code: new(40100)}), doctor.Warn},
	} {
		if tc.check.Verdict != tc.want || (tc.check.Remedy == "") != (tc.want == doctor.Pass) || strings.Contains(tc.check.Found, "hunter2") {
			t.Errorf("%s: %+v, want %q", name, tc.check, tc.want)
		}
	}
}
