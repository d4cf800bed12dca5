package e2e

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"purchase-relay/internal/testkit/stripegen"
)

// Figures and pages show what TikTok received: the value in supported currencies only, the worker's default
// page, the click id of a Payment Link.
func TestFigures_CountWhatWasSent(t *testing.T) {
	t.Parallel()
	const page = "https://shop.example/default"
	s := newStack(t, "TIKTOK_PAGE_URL="+page)
	own := stripegen.NewCheckout().Live()
	francs, lari := stripegen.NewCheckout().Live(), stripegen.NewCheckout().Live()
	*francs.Currency, *lari.Currency = "xof", "gel"
	link := stripegen.NewCheckout().Live() // a Payment Link, thus without the visitor's metadata
	link.Metadata, link.Reference = nil, "ttclid-E_dC_dP_dabc"
	for _, c := range []stripegen.Checkout{own, francs, lari, link} {
		s.send(c)
		s.awaitStatus(c.SessionID, "delivered")
	}

	var summary struct {
		Value []struct {
			Currency string
			Accepted int64 `json:"accepted_minor"`
		}
		NoValue int `json:"accepted_without_value"`
	}
	if _, text := httpGet(s.admin + "/api/v1/summary?range=30d"); json.Unmarshal([]byte(text), &summary) != nil {
		t.Fatalf("summary: %s", text)
	}
	accepted := map[string]int64{}
	for _, v := range summary.Value {
		accepted[v.Currency] = v.Accepted
	}
	if diff := cmp.Diff(map[string]int64{"USD": 2 * 2999, "XOF": 0, "GEL": 0}, accepted); diff != "" {
		t.Errorf("accepted (-want +got):\n%s", diff)
	}
	if summary.NoValue != 2 {
		t.Errorf("accepted without a value = %d, want 2", summary.NoValue)
	}
	_, text := httpGet(s.admin + "/?range=30d&mode=all")
	if !strings.Contains(text, `data-figure="no-value">2<`) {
		t.Error("the overview does not count the two without a value")
	}

	got := map[string]any{}
	clicks, pages := 0, 0
	for _, e := range s.sim.Received() {
		var body struct {
			User struct{ TTCLID string }
			Page struct{ URL string }
		}
		if err := json.Unmarshal(e.Body, &body); err != nil {
			t.Fatal(err)
		}
		if body.User.TTCLID != "" {
			clicks++
		}
		if body.Page.URL != "" {
			pages++
		}
		got[e.EventID] = decoded(t, e.Body)
	}
	for mask, want := range map[int]int{4: clicks, 64: pages} {
		if n := s.rows(`purchases WHERE match_keys & $1::int <> 0`, mask); n != want {
			t.Errorf("match key %d: %d purchases, want %d as at TikTok", mask, n, want)
		}
	}
	for _, c := range []stripegen.Checkout{own, francs, lari, link} {
		var one struct {
			Sent *int64 `json:"sent_minor"`
			Body struct{ Data []json.RawMessage }
		}
		_, text := httpGet(s.admin + "/api/v1/purchases/" + c.SessionID)
		if err := json.Unmarshal([]byte(text), &one); err != nil || len(one.Body.Data) != 1 {
			t.Fatalf("%s: %s", c.SessionID, text)
		}
		if diff := cmp.Diff(got[c.SessionID], decoded(t, one.Body.Data[0])); diff != "" {
			t.Errorf("%s %s: body (-TikTok's +page's):\n%s", *c.Currency, c.SessionID, diff)
		}
		if supported := *c.Currency == "usd"; (one.Sent != nil) != supported {
			t.Errorf("%s: sent_minor = %v, want a value: %v", *c.Currency, one.Sent, supported)
		}
	}
	for id, want := range map[string]string{francs.SessionID: "Sent without a value", link.SessionID: page} {
		if _, text := httpGet(s.admin + "/purchases/" + id); !strings.Contains(text, want) {
			t.Errorf("the page of %s lacks %q", id, want)
		}
	}
}

func decoded(t *testing.T, body []byte) (v any) {
	t.Helper()
	if err := json.Unmarshal(body, &v); err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	return v
}
