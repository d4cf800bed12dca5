package purchase_test

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"purchase-relay/internal/purchase"
)

// A cursor leads back to where it was made; whatever else is given is refused and never a place.
func TestCursor(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := purchase.Position{
			At: time.UnixMicro(rapid.Int64Range(0, 4e15).Draw(t, "at")).UTC(), ID: rapid.StringMatching(`[A-Za-z0-9_-]{1,80}`).Draw(t, "id"),
		}
		if got, err := purchase.ParseCursor(p.Cursor()); err != nil || got != p {
			t.Fatalf("%+v comes back as %+v, %v", p, got, err)
		}
		junk := rapid.String().Draw(t, "junk")
		if got, err := purchase.ParseCursor(junk); err == nil && junk != "" && got.Cursor() != strings.TrimSpace(junk) {
			t.Fatalf("%q is taken for %+v", junk, got)
		}
	})
	for _, junk := range []string{"!", "MTIz", "MS5hLmI", purchase.Position{At: time.UnixMicro(-5), ID: "cs_1"}.Cursor(), purchase.Position{At: time.Unix(1<<40, 0), ID: "cs_1"}.Cursor(), strings.Repeat("A", 1000)} {
		if got, err := purchase.ParseCursor(junk); err == nil {
			t.Errorf("%q is taken for %+v", junk, got)
		}
	}
}

// A quantile of the histogram is as near to the true one as a step is wide.
func TestQuantile(t *testing.T) {
	if _, ok := (purchase.Delays{3: 0}).Quantile(0.5); ok {
		t.Error("a median of nothing")
	}
	rapid.Check(t, func(t *rapid.T) {
		seconds := rapid.SliceOfN(rapid.Float64Range(0.1, 1e5), 1, 200).Draw(t, "seconds")
		delays := purchase.Delays{}
		for _, s := range seconds {
			delays[int(math.Floor(4*math.Log2(s/0.1)))]++
		}
		slices.Sort(seconds)
		for _, q := range []float64{0.5, 0.95} {
			got, ok := delays.Quantile(q)
			want := seconds[max(0, int(math.Ceil(q*float64(len(seconds))))-1)]
			if ratio := got.Seconds() / want; !ok || ratio < 0.83 || ratio > 1.2 {
				t.Fatalf("quantile %v of %v is %s, not %v s", q, seconds, got, want)
			}
		}
	})
}

func TestMask(t *testing.T) {
	keys := purchase.MatchKeys{Email: "a", TTCLID: "b", PageURL: "c", ExternalID: "not counted", Referrer: "not counted"}
	if got := keys.Mask(); got != 1|4|64 {
		t.Errorf("mask %b", got)
	}
	full := purchase.MatchKeys{Email: "a", Phone: "a", TTCLID: "a", TTP: "a", IP: "a", UserAgent: "a", PageURL: "a", FirstName: "a", City: "a"}
	if got := full.Mask(); got != 1<<purchase.MatchKeyKinds-1 {
		t.Errorf("mask %b", got)
	}
}

func TestSelectionOfSome(t *testing.T) {
	many := make([]string, purchase.MaxSome+1)
	for i := range many {
		many[i] = "cs_1"
	}
	for name, tc := range map[string]struct {
		s    purchase.Selection
		good bool
	}{
		"some":                {purchase.Selection{IDs: []string{"cs_1", "cs_2"}}, true},
		"some and one":        {purchase.Selection{IDs: []string{"cs_1"}, ID: "cs_2"}, false},
		"some and a status":   {purchase.Selection{IDs: []string{"cs_1"}, Status: purchase.StatusDead}, false},
		"some, without codes": {purchase.Selection{IDs: []string{"cs_1"}, NoCode: true}, false},
		"junk among some":     {purchase.Selection{IDs: []string{"cs_1", "cs.2"}}, false},
		"too many":            {purchase.Selection{IDs: many}, false},
		"without codes":       {purchase.Selection{Status: purchase.StatusDead, NoCode: true}, true},
	} {
		if err := tc.s.Check(); (err == nil) != tc.good {
			t.Errorf("%s: %v", name, err)
		}
	}
}
