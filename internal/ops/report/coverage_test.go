package report_test

import (
	"math"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"purchase-relay/internal/ops/report"
)

// A quantile of the histogram is as near to the true one as a step is wide.
func TestQuantile(t *testing.T) {
	t.Parallel()
	if _, ok := (report.Delays{3: 0}).Quantile(0.5); ok {
		t.Error("a median of nothing")
	}
	rapid.Check(t, func(t *rapid.T) {
		seconds := rapid.SliceOfN(rapid.Float64Range(0.1, 1e5), 1, 200).Draw(t, "seconds")
		delays := report.Delays{}
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

func TestFalls(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 5, 20, 15, 0, 0, 0, time.UTC)
	day := func(ago, of, clicks int) report.DayCoverage {
		c := report.Coverage{Of: of, Strong: of}
		c.With[0], c.With[2] = of, clicks
		return report.DayCoverage{At: now.Truncate(24*time.Hour).AddDate(0, 0, -ago), Coverage: c}
	}
	for name, tc := range map[string]struct {
		days []report.DayCoverage
		want []report.CoverageDrop
	}{
		"a quarter":             {[]report.DayCoverage{day(13, 60, 40), day(7, 40, 40), day(6, 50, 20), day(0, 50, 40)}, []report.CoverageDrop{{Name: "ttclid", Before: 0.8, Now: 0.6}}},
		"less than a quarter":   {[]report.DayCoverage{day(8, 100, 80), day(0, 100, 61)}, nil},
		"it rises":              {[]report.DayCoverage{day(8, 100, 10), day(0, 100, 61)}, nil},
		"all gone":              {[]report.DayCoverage{day(8, 100, 80), day(0, 30, 0)}, []report.CoverageDrop{{Name: "ttclid", Before: 0.8}}},
		"too few to say":        {[]report.DayCoverage{day(8, 19, 19), day(0, 100, 0)}, nil},
		"too few now":           {[]report.DayCoverage{day(8, 100, 80), day(0, 19, 0)}, nil},
		"a week without":        {[]report.DayCoverage{day(20, 100, 80), day(0, 100, 0)}, nil},
		"long ago is forgotten": {[]report.DayCoverage{day(14, 1000, 1000), day(8, 100, 10), day(0, 100, 10)}, nil},
	} {
		if diff := cmp.Diff(tc.want, report.CoverageDrops(tc.days, now)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}
