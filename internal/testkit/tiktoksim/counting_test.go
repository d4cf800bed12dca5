package tiktoksim_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"purchase-relay/internal/testkit/tiktoksim"
)

const (
	statsPath  = "/open_api/v1.3/pixel/event/stats/"
	advertiser = "7000000000000000001"
	oneDay     = `{"start_date":"1999-12-31","end_date":"1999-12-31"}` // of event
)

// askStats returns the code with its message, and the statistics of the first pixel.
func askStats(
	t *testing.T, s *tiktoksim.Simulator, token string, query url.Values,
) (code, statistics string) {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, statsPath+"?"+query.Encode(), http.NoBody)
	r.Header.Set("Access-Token", token)
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	var answer struct {
		Data struct {
			List []struct{ Statistics json.RawMessage }
		}
	}
	_ = json.Unmarshal(w.Body.Bytes(), &answer) // a fault may answer with anything
	if len(answer.Data.List) > 0 {
		statistics = string(answer.Data.List[0].Statistics)
	}
	return codeOf(w.Body.String()), statistics
}

func statsQuery(advertiser, pixels, dates string) url.Values {
	return url.Values{"advertiser_id": {advertiser}, "pixel_ids": {pixels}, "date_range": {dates}}
}

func TestCounting_RefusesLikeTikTok(t *testing.T) {
	t.Parallel()
	good := statsQuery(advertiser, `["LOCALPIXEL"]`, oneDay)
	more := statsQuery(advertiser, `["LOCALPIXEL"]`, oneDay)
	more.Set("level", "EVENT")
	for name, tc := range map[string]struct {
		token, want string
		query       url.Values
	}{
		"good":          {"local-token", "0 OK", good},
		"no token":      {"", "40104", good},
		"unknown token": {"other", "40105", good},
		"unknown field": {"local-token", "40002 level", more},
		"no advertiser": {"local-token", "40002 advertiser_id", statsQuery("", `["LOCALPIXEL"]`, oneDay)},
		"other advertiser": {
			"local-token", "40001 No permission to operate advertiser", statsQuery("7", `["LOCALPIXEL"]`, oneDay),
		},
		"pixel without a list": {"local-token", "40002 pixel_ids", statsQuery(advertiser, "LOCALPIXEL", oneDay)},
		"no pixel":             {"local-token", "40002 pixel_ids", statsQuery(advertiser, "[]", oneDay)},
		"eleven pixels": {
			"local-token", "40002 pixel_ids",
			statsQuery(advertiser, `["a"`+strings.Repeat(`,"a"`, 10)+"]", oneDay),
		},
		"other pixel": {
			"local-token", "40001 No permission to operate pixel", statsQuery(advertiser, `["OTHER"]`, oneDay),
		},
		"no dates": {"local-token", "40002 date_range", statsQuery(advertiser, `["LOCALPIXEL"]`, "")},
		"a year": {"local-token", "40002 date_range", statsQuery(advertiser, `["LOCALPIXEL"]`,
			`{"start_date":"2025-01-01","end_date":"2025-12-31"}`)},
		"backwards": {"local-token", "40002 date_range", statsQuery(advertiser, `["LOCALPIXEL"]`,
			`{"start_date":"2025-01-02","end_date":"2025-01-01"}`)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, _ := askStats(t, tiktoksim.New(tiktoksim.Config{}), tc.token, tc.query)
			if !strings.HasPrefix(got, tc.want) {
				t.Errorf("answer = %q, want %q", got, tc.want)
			}
		})
	}
	own := tiktoksim.New(tiktoksim.Config{StatsToken: "stats"})
	for token, want := range map[string]string{"stats": "0 OK", "local-token": "40001"} {
		if got, _ := askStats(t, own, token, good); !strings.HasPrefix(got, want) {
			t.Errorf("token %s: answer = %q, want %q", token, got, want)
		}
	}
}

func TestCounting_CountsWhatItAccepted(t *testing.T) {
	t.Parallel()
	good := statsQuery(advertiser, `["LOCALPIXEL"]`, oneDay)
	synctest.Test(t, func(t *testing.T) {
		s := tiktoksim.New(tiktoksim.Config{})
		post(t, s, batchPath, batchOf("cs_1", "cs_2", "cs_3", "cs_4", "cs_5"), nil)
		post(t, s, batchPath, batchOf("cs_1", "cs_2"), nil) // repeats
		check := func(name string, c tiktoksim.Counting, want string) {
			t.Helper()
			s.SetCounting(c)
			if code, got := askStats(t, s, "local-token", good); got != want || !strings.HasPrefix(code, "0 ") {
				t.Errorf("%s: answer %s, statistics = %s\nwant %s", name, code, got, want)
			}
		}
		one := func(eventType, total, browser, server, attributed string) string {
			return `[{"pixel_event_type":"` + eventType + `","total_count":` + total +
				`,"browser_event_total_count":` + browser + `,"server_event_total_count":` + server +
				`,"attributed_count":` + attributed + `,"preview_count":0}]`
		}
		check("as accepted", tiktoksim.Counting{}, one("SHOPPING", "5", "0", "5", "0"))
		check("browser and attribution", tiktoksim.Counting{Browser: 1, Attributed: 0.3},
			one("SHOPPING", "10", "5", "5", "3"))
		check("fewer", tiktoksim.Counting{Lose: 0.4}, one("SHOPPING", "3", "0", "3", "0"))
		check("a lost day", tiktoksim.Counting{LoseDay: "1999-12-31"}, one("SHOPPING", "0", "0", "0", "0"))
		check("another name", tiktoksim.Counting{As: "PURCHASE"}, one("PURCHASE", "5", "0", "5", "0"))
		post(t, s, "/faults", `{"stats":true,"status":429,"count":1}`, nil)
		if code, _ := askStats(t, s, "local-token", good); code != "" {
			t.Errorf("fault: answer = %q, want none of TikTok's", code)
		}
		status, code := post(t, s, batchPath, batchOf("cs_1"), nil)
		if status != 200 || !strings.HasPrefix(code, "0 ") {
			t.Errorf("events = %d %q, want no fault", status, code)
		}
		s.SetCounting(tiktoksim.Counting{NoScope: true})
		if code, _ := askStats(t, s, "local-token", good); !strings.HasPrefix(code, "40001") {
			t.Errorf("without the scope: answer = %q, want 40001", code)
		}
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPut, "/counting",
			strings.NewReader(`{"late":"1h","as":"PURCHASE"}`))
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if diff := cmp.Diff("{\"late\":\"1h0m0s\",\"as\":\"PURCHASE\"}\n", w.Body.String()); diff != "" {
			t.Errorf("PUT /counting (-want +got):\n%s", diff)
		}
		if _, got := askStats(t, s, "local-token", good); got != "[]" {
			t.Errorf("late: statistics = %s, want none yet", got)
		}
		<-time.After(time.Hour)
		if _, got := askStats(t, s, "local-token", good); got != one("PURCHASE", "5", "0", "5", "0") {
			t.Errorf("an hour later: statistics = %s, want all", got)
		}
	})
	s := tiktoksim.New(tiktoksim.Config{})
	for _, body := range []string{`{"lose":2}`, `{"losing":1}`, `{"late":"-1s"}`, `{"lose_day":"today"}`, ``} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPut, "/counting", strings.NewReader(body))
		w := httptest.NewRecorder()
		if s.ServeHTTP(w, r); w.Code != http.StatusBadRequest {
			t.Errorf("PUT %s: status = %d, want 400", body, w.Code)
		}
	}
}
