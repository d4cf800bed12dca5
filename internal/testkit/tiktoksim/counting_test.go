package tiktoksim_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"purchase-relay/internal/testkit/tiktoksim"
)

const (
	statsPath  = "/open_api/v1.3/pixel/event/stats/"
	advertiser = tiktoksim.AdvertiserID
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
		"unknown field": {"local-token", "40002 Unknown field", more},
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
	s := tiktoksim.New(tiktoksim.Config{})
	post(t, s, batchPath, batchOf("cs_1", "cs_2", "cs_3", "cs_4", "cs_5"), nil)
	post(t, s, batchPath, batchOf("cs_1", "cs_2"), nil) // repeats
	for _, tc := range []struct {
		counting                           string
		total, browser, server, attributed int
	}{{"{}", 5, 0, 5, 0}, {`{"browser":1,"attributed":0.3}`, 10, 5, 5, 3}} {
		body := strings.NewReader(tc.counting)
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPut, "/counting", body)
		s.ServeHTTP(httptest.NewRecorder(), r)
		var got []map[string]any
		code, statistics := askStats(t, s, "local-token", good)
		if err := json.Unmarshal([]byte(statistics), &got); err != nil {
			t.Fatalf("answer = %s %s, error = %v", code, statistics, err)
		}
		want := []map[string]any{{
			"pixel_event_type": "SHOPPING", "total_count": float64(tc.total), "preview_count": 0.0,
			"browser_event_total_count": float64(tc.browser), "server_event_total_count": float64(tc.server),
			"attributed_count": float64(tc.attributed),
		}}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.counting, diff)
		}
	}
	nextDay := statsQuery(advertiser, `["LOCALPIXEL"]`, `{"start_date":"2000-01-01","end_date":"2000-01-01"}`)
	if code, got := askStats(t, s, "local-token", nextDay); got != "[]" {
		t.Errorf("the next day: answer = %s %s, want no event", code, got)
	}
	post(t, s, "/faults", `{"stats":true,"status":429,"count":1}`, nil)
	if code, _ := askStats(t, s, "local-token", good); code != "" {
		t.Errorf("fault: answer = %q, want none of TikTok's", code)
	}
	s.SetCounting(tiktoksim.Counting{NoScope: true})
	if code, _ := askStats(t, s, "local-token", good); !strings.HasPrefix(code, "40001") {
		t.Errorf("without the scope: answer = %q, want 40001", code)
	}
}
