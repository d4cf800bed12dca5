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

func TestDelays_QuantileIsWithinAStep(t *testing.T) {
	t.Parallel()
	if _, ok := (report.Delays{3: 0}).Quantile(0.5); ok {
		t.Error("quantile of an empty histogram: ok = true, want false")
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
				t.Fatalf("quantile %v of %v = %s, want %v s", q, seconds, got, want)
			}
		}
	})
}

func TestCoverageDrops_ComparesTwoWeeks(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 5, 20, 15, 0, 0, 0, time.UTC)
	day := func(ago, of, clicks int) report.DayCoverage {
		c := report.Coverage{Of: of, Strong: of}
		c.With[0], c.With[2] = of, clicks
		return report.DayCoverage{At: now.Truncate(24*time.Hour).AddDate(0, 0, -ago), Coverage: c}
	}
	type days = []report.DayCoverage
	type drops = []report.CoverageDrop
	for name, tc := range map[string]struct {
		days days
		want drops
	}{
		"a quarter": {
			days{day(13, 60, 40), day(7, 40, 40), day(6, 50, 20), day(0, 50, 40)},
			drops{{Name: "ttclid", Before: 0.8, Now: 0.6}},
		},
		"less than a quarter": {days{day(8, 100, 80), day(0, 100, 61)}, nil},
		"rise":                {days{day(8, 100, 10), day(0, 100, 61)}, nil},
		"to zero":             {days{day(8, 100, 80), day(0, 30, 0)}, drops{{Name: "ttclid", Before: 0.8}}},
		"too few before":      {days{day(8, 19, 19), day(0, 100, 0)}, nil},
		"too few now":         {days{day(8, 100, 80), day(0, 19, 0)}, nil},
		"empty week":          {days{day(20, 100, 80), day(0, 100, 0)}, nil},
		"older ones ignored":  {days{day(14, 1000, 1000), day(8, 100, 10), day(0, 100, 10)}, nil},
	} {
		if diff := cmp.Diff(tc.want, report.CoverageDrops(tc.days, now.Truncate(24*time.Hour))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}
