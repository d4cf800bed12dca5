package stripegen_test

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stripe/stripe-go/v76"
	"github.com/stripe/stripe-go/v76/event"

	"purchase-relay/internal/testkit/stripegen"
)

// What was listed is listed at the next start, once, until Stripe would forget it; half a line of one that was killed harms nothing.
func TestShelfKeepsItsList(t *testing.T) {
	file := filepath.Join(t.TempDir(), "events")
	old, recent, posted := stripegen.NewCheckout(), stripegen.NewCheckout(), stripegen.NewCheckout()
	old.Created = time.Now().AddDate(0, 0, -20)
	recent.Created = time.Now().Add(-time.Minute)
	open := func(now time.Time) (*stripegen.Shelf, bool) {
		t.Helper()
		s, fresh, err := stripegen.OpenShelf(file, now)
		if err != nil {
			t.Fatal(err)
		}
		return s, fresh
	}
	list := func(s *stripegen.Shelf) []string {
		t.Helper()
		server := httptest.NewServer(s)
		defer server.Close()
		resp, err := server.Client().Post(server.URL+"/events", "application/json", strings.NewReader(string(posted.Event())))
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusNoContent {
			t.Errorf("posted: %d", resp.StatusCode)
		}
		return all(t, event.Client{Key: "rk_test_x", B: stripe.GetBackendWithConfig(stripe.APIBackend, &stripe.BackendConfig{URL: &server.URL, LeveledLogger: &stripe.LeveledLogger{}})}, nil)
	}
	s, fresh := open(time.Now())
	for _, c := range []stripegen.Checkout{old, recent} {
		if err := s.Add(c.Event()); err != nil {
			t.Fatal(err)
		}
	}
	if got := list(s); !fresh || !slices.Equal(got, []string{posted.EventID, recent.EventID, old.EventID}) {
		t.Errorf("first: %v, fresh %v", got, fresh)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"id":"evt_ha`); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	for days, want := range [][]string{{posted.EventID, recent.EventID, old.EventID}, {posted.EventID, recent.EventID}} {
		s, fresh := open(time.Now().AddDate(0, 0, 15*days))
		if got := list(s); fresh || !slices.Equal(got, want) {
			t.Errorf("after %d days: %v, fresh %v", 15*days, got, fresh)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
