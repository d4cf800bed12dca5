package tiktok_test

import (
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"purchase-relay/internal/tiktok"
)

// A slow response is no difference of the clocks.
func TestPing_ComparesClocks(t *testing.T) {
	t.Parallel()
	date := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, tc := range map[string]struct {
		began, took, want time.Duration // began: after the response's date
	}{
		"equal":             {0, 0, 0},
		"slow response":     {-20 * time.Second, 40 * time.Second, 0},
		"TikTok is ahead":   {-time.Minute, 20 * time.Second, 40 * time.Second},
		"TikTok lags":       {time.Minute, 20 * time.Second, -time.Minute},
		"its fraction lags": {500 * time.Millisecond, 0, -500 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var took atomic.Int64
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				took.Store(int64(tc.took))
				w.Header().Set("Date", date.Format(http.TimeFormat))
			}))
			defer server.Close()
			c := config()
			c.URL = server.URL
			c.Now = func() time.Time { return date.Add(tc.began + time.Duration(took.Load())) }
			got, err := tiktok.Ping(t.Context(), c)
			if err != nil || !got.ClockKnown || got.ClockAhead != tc.want {
				t.Errorf("Ping = %+v, %v, want the clock ahead by %s", got, err, tc.want)
			}
		})
	}
}
