package report_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/testkit/ledgertest"
)

// week is a week of made-up sales with a browser pixel beside them, asked about three days after its end.
type week struct {
	now   time.Time
	rows  []report.CountRow
	sales []report.SalesDay
}

func newWeek() *week {
	first := time.Date(2026, 11, 16, 0, 0, 0, 0, time.UTC)
	w := &week{now: first.AddDate(0, 0, 10)}
	for i := range 7 {
		day, sold := first.AddDate(0, 0, i), 50+i
		w.sales = append(w.sales, report.SalesDay{Day: day, Livemode: true, Paid: sold + 1, Accepted: sold})
		w.rows = append(w.rows, report.CountRow{
			Event: "SHOPPING", Day: day, Server: sold, Browser: sold - 15, Total: 2*sold - 15, AskedAt: w.now,
			Attributed: (2*sold - 15) * 26 / 100,
		})
	}
	return w
}

func (w *week) compare(names report.EventNames) report.Counts {
	return report.CompareCounts(w.rows, w.sales, nil, names, w.now)
}

// texts returns the findings' texts, each with its number of days.
func texts(findings []report.Finding) string {
	var list []string
	for _, f := range findings {
		list = append(list, fmt.Sprintf("%s (%d)", f.Text, len(f.Days)))
	}
	return strings.Join(list, "; ")
}

func TestCompareCounts_NamesEachDifferenceAndNothingElse(t *testing.T) {
	t.Parallel()
	const good = "26 % (7)"
	for name, tc := range map[string]struct {
		change     func(w *week)
		want       string // without the attribution
		attributed string // share, and number of days
	}{
		"a good week": {func(*week) {}, "", good},
		"a lost day": {
			func(w *week) { w.rows[3].Server, w.rows[3].Attributed = 0, 0 },
			"TikTok counts none of the 53 events that it accepted (1); ", "22 % (7)",
		},
		"three fewer on one day": {
			func(w *week) { w.rows[2].Server -= 3 }, "TikTok counts 3 fewer than it accepted (49 of 52) (1); ", good,
		},
		"two fewer on one day": {func(w *week) { w.rows[2].Server -= 2 }, "", good},
		"one fewer each day": {
			func(w *week) {
				for i := range w.rows {
					w.rows[i].Server--
				}
			}, "", good,
		},
		"a double-firing pixel": {
			func(w *week) {
				for i := range w.rows {
					w.rows[i].Browser = w.sales[i].Paid * 14 / 10
				}
			},
			"The browser pixel sends 39 % more than there were sales: it fires on a page that reloads (7); ", good,
		},
		"a pixel that fires twice on one day": {
			func(w *week) { w.rows[5].Browser = 2 * w.sales[5].Paid },
			"The browser pixel sends 100 % more than there were sales: it fires on a page that reloads (1); ", good,
		},
		"a lost day and a double-firing pixel": {
			func(w *week) {
				w.rows[3].Server = 0
				w.rows[5].Browser = 2 * w.sales[5].Paid
			},
			"TikTok counts none of the 53 events that it accepted (1); " +
				"The browser pixel sends 100 % more than there were sales: it fires on a page that reloads (1); ", good,
		},
		"no browser pixel": {
			func(w *week) {
				for i := range w.rows {
					w.rows[i].Browser, w.rows[i].Total = 0, w.rows[i].Server
					w.rows[i].Attributed = w.rows[i].Server * 26 / 100
				}
			}, "", "25 % (7)",
		},
		"counted on the day of arrival, after an outage": {
			func(w *week) { w.rows[1].Server -= 40; w.rows[2].Server += 40 }, "", good,
		},
		"today and yesterday still settle": {
			func(w *week) {
				w.now = w.rows[6].Day.Add(12 * time.Hour)
				for i := range w.rows {
					w.rows[i].AskedAt = w.now
				}
				w.rows[6].Server, w.rows[6].Browser, w.rows[5].Server, w.rows[4].Server = 0, 0, 10, 50
			}, "", "26 % (4)",
		},
		"another sender": {
			func(w *week) { w.rows[4].Server += 20 },
			"TikTok counts 20 more from servers than it accepted from here (1); ", good,
		},
		"a few repeats": {func(w *week) { w.rows[4].Server += 4 }, "", good},
		"not asked for two days": {
			func(w *week) { w.now = w.now.Add(50 * time.Hour) }, "TikTok's counts are 50 hours old (0); ", good,
		},
		"browser events without a sale": {
			func(w *week) { w.sales[0].Paid, w.sales[0].Accepted, w.rows[0].Server = 0, 0, 0 },
			"The browser pixel sends 35 events although there were no sales (1); ", good,
		},
		"one of two sales a day: no day is unusual, the month is": {
			func(w *week) {
				for i := range w.rows {
					w.sales[i].Paid, w.sales[i].Accepted = 2, 2
					w.rows[i].Server, w.rows[i].Browser, w.rows[i].Total, w.rows[i].Attributed = 1, 4, 5, 0
				}
			},
			"TikTok counts 7 fewer than it accepted (7 of 14) (7); " +
				"The browser pixel sends 100 % more than there were sales: it fires on a page that reloads (7); ",
			"0 % (7)",
		},
		"test purchases beside": {
			func(w *week) {
				w.sales = append(w.sales, report.SalesDay{Day: w.sales[0].Day, Paid: 900, Accepted: 900})
			}, "", good,
		},
		"two pixels in one week": {
			func(w *week) {
				second := w.rows[3]
				second.Server, second.Browser, second.Total, second.Attributed = 10, 0, 0, 0
				w.rows[3].Server -= 10
				w.rows = append(w.rows, second)
			}, "", good,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWeek()
			tc.change(w)
			share, days, _ := strings.Cut(tc.attributed, " (")
			want := tc.want + "TikTok attributes " + share + " of the events that it counts to your ads (" + days
			if got := texts(w.compare(report.EventNames{}).Findings); got != want {
				t.Errorf("findings = %q\nwant %q", got, want)
			}
		})
	}
}

func TestCompareCounts_PicksTheEventType(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		types   string // of the purchases' rows, by turns
		names   report.EventNames
		event   string
		finding string
	}{
		"ads' name":       {"SHOPPING", report.EventNames{}, "SHOPPING", ""},
		"the older name":  {"CompletePayment", report.EventNames{}, "CompletePayment", ""},
		"the newer name":  {"Purchase", report.EventNames{}, "Purchase", ""},
		"the event's own": {"my sale", report.EventNames{Sent: "MySale"}, "my sale", ""},
		"unknown": {
			"MY_SALE", report.EventNames{}, "", "TikTok lists no known event type of purchases, but MY_SALE",
		},
		"several": {
			"SHOPPING PURCHASE", report.EventNames{}, "", "TikTok lists purchases under several event types: ",
		},
		"several, one set": {"SHOPPING PURCHASE", report.EventNames{Setting: "purchase"}, "PURCHASE", ""},
		"a spelling apart": {"COMPLETE_PAYMENT CompletePayment", report.EventNames{}, "COMPLETE_PAYMENT", ""},
		"set, not listed": {
			"SHOPPING", report.EventNames{Setting: "ON_WEB_ORDER"}, "", "TikTok lists no known event type",
		},
		"set, as it listed": {"ON_WEB_ORDER", report.EventNames{Setting: "OnWebOrder"}, "ON_WEB_ORDER", ""},
	} {
		w := newWeek()
		types := strings.Split(tc.types, " ")
		if name == "the event's own" {
			types = []string{tc.types}
		}
		for i := range w.rows {
			w.rows[i].Event = types[i%len(types)]
			w.rows = append(w.rows, report.CountRow{Event: "PAGE_VIEW", Day: w.rows[i].Day, Browser: 9, Total: 9})
		}
		c := w.compare(tc.names)
		if c.Event != tc.event || !strings.HasPrefix(texts(c.Findings), tc.finding) {
			t.Errorf("%s: event = %q, findings = %q, want %q and %q",
				name, c.Event, texts(c.Findings), tc.event, tc.finding)
		}
		if got := c.Types[len(c.Types)-1]; got.Event != "PAGE_VIEW" || got.Browser != 63 {
			t.Errorf("%s: the last type = %+v, want PAGE_VIEW", name, got)
		}
	}
	w := newWeek()
	for i := range w.rows { // nothing is counted: the worker reports the event's own name with 0
		w.rows[i] = report.CountRow{Event: "CompletePayment", Day: w.rows[i].Day, AskedAt: w.now}
	}
	if got, want := texts(w.compare(report.EventNames{}).Findings),
		"TikTok counts none of the 371 events that it accepted (7)"; got != want {
		t.Errorf("findings = %q, want %q", got, want)
	}
	c := report.CompareCounts(nil, w.sales, nil, report.EventNames{}, w.now)
	if len(c.Findings) > 0 || len(c.Days) > 0 {
		t.Errorf("without an answer: %+v, want nothing", c)
	}
}

// The figures come from the ledger: a year of counts is on it, the last 31 days are read.
func TestCounts_ReadsTheLedger(t *testing.T) {
	t.Parallel()
	l := ledgertest.New(t)
	now := time.Now().UTC().Truncate(time.Second)
	today := now.Truncate(24 * time.Hour)
	l.Exec(`INSERT INTO tiktok_counts (pixel_id, event, day, total, browser, server, attributed, asked_at)
		SELECT 'C4', 'SHOPPING', d::date, 7, 3, 4, 1, $1
		FROM generate_series($2::date - 365, $2::date - 1, interval '1 day') d`, now, today)
	err := l.RecordStats(t.Context(), message.Stats{
		PixelID: "C4", Day: today.Format(time.DateOnly), AskedAt: now,
		Counts: []message.Count{{Event: "SHOPPING", Total: 9, Browser: 4, Server: 5, Attributed: 2}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"cs_1", "cs_2", "cs_3"} {
		l.Buy(id)
	}
	l.End("cs_1", "delivered")
	l.Exec("UPDATE purchases SET purchased_at = $1", today.Add(time.Minute))
	l.Exec("UPDATE purchases SET purchased_at = $1 WHERE checkout_session_id = 'cs_3'", today.Add(-time.Minute))
	stored := report.Reconciliation{
		Made: now, Since: today.AddDate(0, 0, -2).Add(time.Hour), Until: now, Livemode: true,
		Days: []report.ReconciledDay{
			{Day: today.AddDate(0, 0, -1), Currency: "EUR", Paid: report.Totals{Count: 1}},
			{Day: today.AddDate(0, 0, -1), Currency: "USD", Paid: report.Totals{Count: 2}},
		},
	}
	if err := l.PutReconciliation(t.Context(), stored); err != nil {
		t.Fatal(err)
	}
	for _, folded := range []bool{false, true} {
		if folded {
			if _, err := l.Fold(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		c, err := l.Counts(t.Context(), report.EventNames{}, now)
		if err != nil {
			t.Fatal(err)
		}
		if len(c.Days) != report.CountedDays || !c.Livemode || c.Event != "SHOPPING" || !c.AskedAt.Equal(now) {
			t.Fatalf("counts = %d days of %q, live %t, asked at %s", len(c.Days), c.Event, c.Livemode, c.AskedAt)
		}
		want := []report.CountedDay{
			{Day: today.AddDate(0, 0, -2), Server: 4, Browser: 3, Total: 7, Attributed: 1, AskedAt: now},
			{
				Day: today.AddDate(0, 0, -1), Stripe: new(3), Ledger: 1, Server: 4, Browser: 3, Total: 7,
				Attributed: 1, AskedAt: now,
			},
			{
				Day: today, Ledger: 2, Accepted: 1, Server: 5, Browser: 4, Total: 9, Attributed: 2, AskedAt: now,
				ChangedAt: now,
			},
		}
		if diff := cmp.Diff(want, c.Days[report.CountedDays-3:]); diff != "" {
			t.Errorf("folded %t: days (-want +got):\n%s", folded, diff)
		}
		rows := c.CSV()
		wantRow := []string{
			today.AddDate(0, 0, -1).Format(time.DateOnly), "3", "1", "0", "4", "3", "7", "1",
			now.Format(time.RFC3339), "",
		}
		got := rows[report.CountedDays-1]
		wantRow[9] = got[9] // findings have their own test
		if diff := cmp.Diff(wantRow, got); diff != "" {
			t.Errorf("CSV (-want +got):\n%s", diff)
		}
	}
}
