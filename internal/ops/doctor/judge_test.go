package doctor

import (
	"errors"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/queue"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/testkit/tiktoksim"
	"purchase-relay/internal/tiktok"
)

// judged is a check and the verdict that it must have.
type judged struct {
	check Check
	want  Verdict
}

// verify fails where a verdict differs, where a remedy is missing or needless, and where a secret is printed.
func verify(t *testing.T, cases map[string]judged) {
	t.Helper()
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			if tc.check.Verdict != tc.want || (tc.check.Remedy == "") != (tc.want == Pass) {
				t.Errorf("check = %+v, want %q", tc.check, tc.want)
			}
			if strings.Contains(tc.check.Found+tc.check.Remedy, "hunter2") {
				t.Errorf("a secret is printed: %+v", tc.check)
			}
		})
	}
}

func TestNATS_Judgements(t *testing.T) {
	t.Parallel()
	stream := func(bytes uint64, differs ...string) queue.StreamState {
		return queue.StreamState{Name: "s", Messages: 3, Bytes: bytes << 20, MaxBytes: 100 << 20, Differs: differs}
	}
	storage := func(limit int64, used, reserved uint64, missing int64) Check {
		return judgeStorage(queue.Storage{Limit: limit, Used: used, Reserved: reserved}, missing, nil)
	}
	verify(t, map[string]judged{
		"a wrong password":       {judgeNATS(queue.ErrCredentials), Fail},
		"a certificate":          {judgeNATS(queue.ErrTLS), Fail},
		"no server":              {judgeNATS(errors.New("no servers available")), Fail},
		"a tested version":       {judgeNATSVersion("2.15.2"), Pass},
		"an older version":       {judgeNATSVersion("2.9.25"), Warn},
		"a version too old":      {judgeNATSVersion("2.8.4"), Fail},
		"no version":             {judgeNATSVersion("next"), Warn},
		"a line on this machine": {judgeLine("nats://127.0.0.1:4222", false), Pass},
		"an encrypted line":      {judgeLine("nats://nats.example:4222", true), Pass},
		"an open line":           {judgeLine("nats://nats.example:4222", false), Warn},
		"all rights":             {judgeRights(nil, nil, nil), Pass},
		"no figures":             {judgeRights(nil, []string{"$JS.API.INFO"}, nil), Warn},
		"no purchases": {
			judgeRights([]string{"purchases.live.doctor"}, []string{"$JS.API.INFO"}, nil),
			Fail,
		},
		"untried rights":           {judgeRights(nil, nil, errors.New("timeout")), Fail},
		"a stream with room":       {judgeStream(stream(79)), Pass},
		"a stream fairly full":     {judgeStream(stream(85)), Warn},
		"a stream nearly full":     {judgeStream(stream(96)), Fail},
		"a changed stream":         {judgeStream(stream(1, "age")), Warn},
		"a missing stream":         {judgeStream(queue.StreamState{Err: queue.ErrMissing}), Warn},
		"a stream not permitted":   {judgeStream(queue.StreamState{Err: queue.ErrNotPermitted}), Fail},
		"JetStream off":            {judgeStream(queue.StreamState{Err: queue.ErrJetStreamOff}), Fail},
		"an unreadable stream":     {judgeStream(queue.StreamState{Err: errors.New("timeout")}), Fail},
		"a consumer":               {judgeConsumer(queue.ConsumerState{Waiting: 1, Unacknowledged: 1}), Pass},
		"a changed consumer":       {judgeConsumer(queue.ConsumerState{Differs: true}), Warn},
		"a missing consumer":       {judgeConsumer(queue.ConsumerState{Err: queue.ErrMissing}), Warn},
		"clocks agree":             {judgeNATSClock(-9 * time.Second), Pass},
		"clock ahead":              {judgeNATSClock(11 * time.Second), Warn},
		"clock behind":             {judgeNATSClock(-5 * time.Minute), Warn},
		"clock far ahead":          {judgeNATSClock(11 * time.Minute), Fail},
		"room for streams":         {storage(10<<30, 1<<20, 4<<30, 2<<30), Pass},
		"no limit":                 {storage(-1, 1<<20, 4<<30, 2<<30), Pass},
		"no room for streams":      {storage(5<<30, 1<<20, 4<<30, 2<<30), Fail},
		"a full disk":              {storage(5<<30, 5<<30, 5<<30, 0), Fail},
		"a disk not permitted":     {judgeStorage(queue.Storage{}, 0, queue.ErrNotPermitted), Warn},
		"a disk without an answer": {judgeStorage(queue.Storage{}, 0, errors.New("timeout")), Warn},
	})
}

func TestTikTok_Judgements(t *testing.T) {
	t.Parallel()
	sim := httptest.NewServer(tiktoksim.New(tiktoksim.Config{}))
	defer sim.Close()
	config := tiktok.Config{
		URL: sim.URL + "/open_api/v1.3/event/track/", Payload: tiktok.PayloadEvents, EventName: "CompletePayment",
		Timeout: time.Minute, Now: time.Now,
	}
	elsewhere, nobody, late, odd := config, config, config, config
	elsewhere.URL, nobody.URL, odd.EventName = sim.URL+"/nothing", "http://127.0.0.1:1/", "Complete Payment"
	late.Now = func() time.Time { return time.Now().Add(-time.Hour) }
	reached := func(c tiktok.Config, what string) Check {
		for _, check := range reach(t.Context(), c) {
			if check.What == what {
				return check
			}
		}
		return Check{}
	}
	event := message.Envelope{
		Version: message.Version, EventID: "doctor-1", PurchasedAt: time.Now().Unix(), AmountMinor: new(int64(100)), Currency: "usd",
		Keys: purchase.MatchKeys{Email: purchase.HashEmail("test@example.com"), PageURL: "https://example.com/"},
	}
	try := func(c tiktok.Config, pixel string, token secret.String, code string) Check {
		return access(t.Context(), "access", c, Destination{pixel, token, code}, event)
	}
	verify(t, map[string]judged{
		"a token":                 {tokenShape("token", "0123456789abcdef0123456789abcdef01234567"), Pass},
		"a token in quotes":       {tokenShape("token", `"0123456789abcdef"`), Fail},
		"a token with a line end": {tokenShape("token", "0123456789\nabcdef"), Fail},
		"a header":                {tokenShape("token", "Bearer 0123456789abcdef"), Fail},
		"Stripe's secret":         {tokenShape("token", "whsec_0123456789abcdef"), Fail},
		"a pixel":                 {pixelShape("pixel", "C4A1B2C3D4E5F6G7H8I9"), Pass},
		"a pixel's name":          {pixelShape("pixel", "My pixel"), Warn},
		"TikTok answers":          {reached(config, "TikTok: way"), Pass},
		"nobody answers":          {reached(nobody, "TikTok: way"), Fail},
		"clocks agree":            {reached(config, "TikTok: clock"), Pass},
		"clocks differ":           {reached(late, "TikTok: clock"), Fail},
		"clocks differ a little":  {judgeTikTokClock(-time.Minute), Warn},
		"accepted":                {try(config, "LOCALPIXEL", "local-token", "TEST1"), Pass},
		"not tried":               {try(config, "LOCALPIXEL", "local-token", ""), Warn},
		"a wrong token":           {try(config, "LOCALPIXEL", "hunter2", "TEST1"), Fail},
		"a foreign pixel":         {try(config, "OTHERPIXEL", "local-token", "TEST1"), Fail},
		"a wrong path":            {try(elsewhere, "LOCALPIXEL", "local-token", "TEST1"), Fail},
		"an event TikTok rejects": {try(odd, "LOCALPIXEL", "local-token", "TEST1"), Fail},
		"no answer":               {try(nobody, "LOCALPIXEL", "local-token", "TEST1"), Fail},
		"too many requests": {judgeAccess("access",
			purchase.Answer{Class: purchase.ClassRate, Code: new(40100)}), Warn},
		"no live token":              {(&Worker{}).shapes()[0], Warn},
		"tests skipped":              {(&Worker{}).testPurchases(), Pass},
		"tests with a code":          {tests(Destination{"P", "t", ""}, Destination{"P", "t", "CODE"}), Pass},
		"tests with their own pixel": {tests(Destination{"P", "t", ""}, Destination{"Q", "u", ""}), Pass},
		"tests with another token":   {tests(Destination{"P", "t", ""}, Destination{"P", "u", ""}), Warn},
		"tests with the live token":  {tests(Destination{"P", "t", ""}, Destination{"P", "t", ""}), Fail},
	})
}

func tests(live, test Destination) Check {
	return (&Worker{Live: live, Test: test, SendTests: true}).testPurchases()
}
