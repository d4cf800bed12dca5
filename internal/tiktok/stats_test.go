package tiktok_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/testkit/tiktoksim"
	"purchase-relay/internal/tiktok"
)

const statsToken = "stats-token-0123456789"

func newStats(url string, timeout time.Duration) *tiktok.Stats {
	return tiktok.NewStats(tiktok.StatsConfig{
		URL: url + "/open_api/v1.3/pixel/event/stats/", AdvertiserID: "7000000000000000001", PixelID: "LOCALPIXEL",
		EventName: "CompletePayment", Timeout: timeout, Now: time.Now,
	}, statsToken)
}

func count(total, browser, server, attributed int64) message.Count {
	return message.Count{
		Event: "SHOPPING", Total: total, Browser: browser, Server: server, Attributed: attributed,
	}
}

var statsDay = time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)

// The simulator refuses every field that TikTok's description does not have.
func TestStats_MeetsTheSimulatorsRules(t *testing.T) {
	t.Parallel()
	sim := tiktoksim.New(tiktoksim.Config{StatsToken: statsToken})
	server := httptest.NewServer(sim)
	defer server.Close()
	defer sim.Clear()
	s := newStats(server.URL, time.Minute)
	counts, answer := s.Day(t.Context(), statsDay)
	want := []message.Count{{Event: "CompletePayment"}} // nothing is listed
	if diff := cmp.Diff(want, counts); diff != "" || answer.Class != purchase.ClassDelivered {
		t.Errorf("answer = %+v, counts (-want +got):\n%s", answer, diff)
	}
	s.SetToken("local-token")
	if counts, answer = s.Day(t.Context(), statsDay); answer.Class != purchase.ClassAccess || counts != nil {
		t.Errorf("token without the scope: %+v, %v, want access", answer, counts)
	}
	for name, tc := range map[string]struct {
		fault tiktoksim.Fault
		want  purchase.Class
	}{
		"HTML":           {tiktoksim.Fault{HTML: true}, purchase.ClassRetry},
		"HTML with 200":  {tiktoksim.Fault{HTML: true, Status: 200}, purchase.ClassRetry},
		"429":            {tiktoksim.Fault{Status: 429, RetryAfter: "7"}, purchase.ClassRate},
		"forbidden":      {tiktoksim.Fault{Status: 403}, purchase.ClassBlocked},
		"another path":   {tiktoksim.Fault{Status: 404}, purchase.ClassAccess},
		"bad parameter":  {tiktoksim.Fault{Code: 40002, Message: "date_range: Not valid"}, purchase.ClassRefused},
		"bad advertiser": {tiktoksim.Fault{Code: 40002, Message: "advertiser_id: Not valid"}, purchase.ClassAccess},
		"endless":        {tiktoksim.Fault{Endless: true}, purchase.ClassRetry},
		"drip":           {tiktoksim.Fault{Drip: true}, purchase.ClassRetry},
		"hang":           {tiktoksim.Fault{Hang: true}, purchase.ClassRetry},
		"cut":            {tiktoksim.Fault{Cut: true}, purchase.ClassRetry},
		"cut body":       {tiktoksim.Fault{LyingLength: true}, purchase.ClassRetry},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sim := tiktoksim.New(tiktoksim.Config{StatsToken: statsToken}) // a late request meets no other fault
			server := httptest.NewServer(sim)
			defer server.Close()
			defer sim.Clear()
			fault, timeout := tc.fault, time.Minute
			fault.Stats, fault.Count = true, 1
			sim.Inject(fault)
			if fault.Endless || fault.Drip || fault.Hang {
				timeout = 300 * time.Millisecond
			}
			counts, answer := newStats(server.URL, timeout).Day(t.Context(), statsDay)
			if answer.Class != tc.want || counts != nil || strings.Contains(answer.Message, statsToken) {
				t.Errorf("answer = %+v, counts = %v, want %s", answer, counts, tc.want)
			}
			if tc.fault.RetryAfter != "" && answer.RetryAfter != 7*time.Second {
				t.Errorf("retry after %s, want 7s", answer.RetryAfter)
			}
		})
	}
}

// An answer in another shape must not be read as counts of 0.
func TestStats_ParsesCounts(t *testing.T) {
	t.Parallel()
	var body string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(body))
	}))
	defer server.Close()
	ok := func(list string) string {
		return `{"code":0,"message":"OK","request_id":"r","data":{"list":` + list + `}}`
	}
	ours := func(statistics string) string {
		return ok(`[{"pixel_id":"LOCALPIXEL","statistics":[` + statistics + `]}]`)
	}
	var many []string
	for i := range 2 * message.MaxEventTypes {
		many = append(many, fmt.Sprintf(`{"custom_event_type":"E%d","total_count":%d}`, i, i))
	}
	const shopping = `{"pixel_event_type":"SHOPPING","total_count":120,"browser_event_total_count":70,` +
		`"server_event_total_count":50,"attributed_count":31,"preview_count":0}`
	nothing := []message.Count{{Event: "CompletePayment"}}
	for name, tc := range map[string]struct {
		body string
		want []message.Count // nil: malformed
	}{
		"one":  {ours(shopping), []message.Count{count(120, 70, 50, 31)}},
		"none": {ours(""), nothing},
		"another id": {
			ok(`[{"pixel_id":"7012345678901234567","statistics":[` + shopping + `]}]`),
			[]message.Count{count(120, 70, 50, 31)},
		},
		"beside another pixel": {
			ok(`[{"pixel_id":"OTHER","statistics":[` + shopping + `]},{"pixel_id":"LOCALPIXEL","statistics":[]}]`),
			nothing,
		},
		"other pixels":  {ok(`[{"pixel_id":"A","statistics":[]},{"pixel_id":"B","statistics":[]}]`), nil},
		"empty list":    {ok(`[]`), nothing},
		"two of a name": {ours(shopping + "," + shopping), []message.Count{count(240, 140, 100, 62)}},
		"largest first": {
			ours(`{"custom_event_type":"Fit\u202ETing","total_count":1},` + shopping),
			[]message.Count{count(120, 70, 50, 31), {Event: "FitTing", Total: 1}},
		},
		"no list":         {`{"code":0,"message":"OK","data":{}}`, nil},
		"null list":       {ok(`null`), nil},
		"no data":         {`{"code":0,"message":"OK"}`, nil},
		"no name":         {ours(`{"total_count":1}`), nil},
		"no count":        {ours(`{"pixel_event_type":"SHOPPING"}`), nil},
		"a text":          {ours(`{"pixel_event_type":"SHOPPING","total_count":"1"}`), nil},
		"a fraction":      {ours(`{"pixel_event_type":"SHOPPING","total_count":1.5}`), nil},
		"negative":        {ours(`{"pixel_event_type":"SHOPPING","total_count":-1}`), nil},
		"huge":            {ours(`{"pixel_event_type":"SHOPPING","total_count":9223372036854775807}`), nil},
		"statistics text": {ok(`[{"pixel_id":"LOCALPIXEL","statistics":"none"}]`), nil},
	} {
		body = tc.body
		got, answer := newStats(server.URL, time.Minute).Day(t.Context(), statsDay)
		diff := cmp.Diff(tc.want, got)
		if diff != "" || (answer.Class == purchase.ClassDelivered) != (tc.want != nil) {
			t.Errorf("%s: answer = %+v, counts (-want +got):\n%s", name, answer, diff)
		}
	}
	body = ours(strings.Join(many, ","))
	got, _ := newStats(server.URL, time.Minute).Day(t.Context(), statsDay)
	if len(got) != message.MaxEventTypes || got[0].Event != "E199" {
		t.Errorf("%d counts from %+v, want the %d largest", len(got), got[0], message.MaxEventTypes)
	}
	long := message.Stats{PixelID: "C", Day: "2026-01-02", AskedAt: statsDay}
	body = ours(`{"custom_event_type":"` + strings.Repeat("é", 500) + `","total_count":1}`)
	long.Counts, _ = newStats(server.URL, time.Minute).Day(t.Context(), statsDay)
	if _, err := message.EncodeStats(long); err != nil {
		t.Errorf("a long name's counts are not encoded: %v", err)
	}
}

// The token reaches neither another host nor a text.
func TestStats_KeepsTheToken(t *testing.T) {
	t.Parallel()
	other := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("a redirect was followed with the token %q", r.Header.Get("Access-Token"))
	}))
	defer other.Close()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/moved/") {
			http.Redirect(w, r, other.URL, http.StatusFound)
			return
		}
		_, _ = fmt.Fprintf(w, `{"code":40105,"message":"bad token %s","request_id":"%[1]s"}`, statsToken)
	}))
	defer server.Close()
	_, answer := newStats(server.URL, time.Minute).Day(t.Context(), statsDay)
	if answer.Class != purchase.ClassAccess || strings.Contains(answer.Message+answer.RequestID, statsToken) {
		t.Errorf("answer = %+v, want access without the token", answer)
	}
	_, answer = newStats(server.URL+"/moved", time.Minute).Day(t.Context(), statsDay)
	if answer.Class != purchase.ClassRetry {
		t.Errorf("redirect: answer = %+v, want retry", answer)
	}
	for _, token := range []secret.String{"two words", "line\nend", ""} {
		s := newStats(server.URL, time.Minute)
		s.SetToken(token)
		if _, answer := s.Day(t.Context(), statsDay); answer.Class != purchase.ClassAccess {
			t.Errorf("token %q: answer = %+v, want access", token.Reveal(), answer)
		}
	}
	if err := tiktok.CheckAdvertiser("7000000000000000001"); err != nil {
		t.Error(err)
	}
	for _, id := range []string{"", "7 0", "act_7", strings.Repeat("7", 33)} {
		if tiktok.CheckAdvertiser(id) == nil {
			t.Errorf("advertiser id %q is accepted", id)
		}
	}
}
