package dashboard_test

import (
	"context"
	"encoding/json"
	"fmt"
	"html"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"purchase-relay/internal/ops/dashboard"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/testkit/ledgergen"
	"purchase-relay/internal/testkit/ledgertest"
	"purchase-relay/internal/testkit/pglocal/pgtest"
	"purchase-relay/internal/testkit/wait"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Run(m)) }

// newRealAPI returns the dashboard of a ledger, in a time zone.
func newRealAPI(t *testing.T, l *ledgertest.Ledger, zone string, now time.Time) http.Handler {
	t.Helper()
	location, err := time.LoadLocation(zone)
	if err != nil {
		t.Fatal(err)
	}
	return dashboard.New(dashboard.Config{
		Reports: l, Replays: l.Jobs, Zone: location, Wake: func() {}, Log: zap.NewNop(),
		Health:   func(context.Context) dashboard.Health { return dashboard.Health{Postgres: "up", NATS: "up"} },
		Problems: noProblems,
		Body:     func([]byte, *purchase.Sent) ([]byte, error) { return nil, nil },
		Now:      func() time.Time { return now },
	})
}

// getLedger requests a page, again while the ledger exceeds the dashboard's time limit.
func getLedger(t *testing.T, h http.Handler, target string) (w *httptest.ResponseRecorder) {
	t.Helper()
	wait.Until(t.Context(), time.Minute, 10*time.Millisecond, func() bool {
		w = get(t, h, target, plain)
		return w.Code != http.StatusServiceUnavailable
	})
	return w
}

var (
	listLink = regexp.MustCompile(`(?s)<a[^>]* href="(/purchases\?[^"]*)"[^>]*>(.*?)</a>`)
	tag      = regexp.MustCompile(`<[^>]*>`)
	integer  = regexp.MustCompile(`[0-9][0-9,]*`)
)

// count pages through the list of a link.
func count(t *testing.T, h http.Handler, target string) (n int) {
	t.Helper()
	for cursor := ""; ; {
		var page struct {
			Items []json.RawMessage
			Next  *string
		}
		w := getLedger(t, h, "/api/v1"+target+"&limit=200"+cursor)
		if err := json.Unmarshal(w.Body.Bytes(), &page); w.Code != http.StatusOK || err != nil {
			t.Fatalf("%s: status = %d, %v: %s", target, w.Code, err, w.Body)
		}
		n += len(page.Items)
		if page.Next == nil {
			return n
		}
		cursor = "&cursor=" + *page.Next
	}
}

// Each number of the overview that is a link equals the number of purchases in the list behind it, in every
// range, mode and time zone.
func TestOverview_LinksToWhatItCounts(t *testing.T) {
	t.Parallel()
	l := ledgertest.New(t)
	if err := ledgergen.Fill(t.Context(), l.Conn, 500, 70*24*time.Hour); err != nil {
		t.Fatal(err)
	}
	// Skips of every kind, sent trials, a failed test purchase, and one in each of the last hours.
	l.Exec(`UPDATE purchases SET status = 'skipped', match_keys = NULL,
			reason = (ARRAY['no_consent', 'internal', 'forgotten', 'not_configured'])[1 + length(currency || mode) % 4]
		WHERE checkout_session_id LIKE '%a'`)
	l.Exec(`UPDATE purchases SET status = 'dead', reason = 'expired', last_code = NULL
		WHERE checkout_session_id LIKE '%b' AND status = 'delivered'`)
	l.Exec(`UPDATE purchases SET kind = 'trial', first_sale = false WHERE checkout_session_id LIKE '%c'`)
	l.Exec(`UPDATE purchases SET livemode = false WHERE checkout_session_id LIKE '%d' AND status <> 'rejected'`)
	if _, err := l.Fold(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.Exec(`UPDATE purchases SET reason = 'internal' WHERE reason = 'forgotten' AND livemode`) // not folded
	now := time.Now()
	date := func(ago int) string { return now.UTC().AddDate(0, 0, -ago).Format(time.DateOnly) }
	for _, zone := range []string{"UTC", "Asia/Kathmandu"} {
		h := newRealAPI(t, l, zone, now)
		for _, query := range []string{
			"", "?range=today&mode=all", "?range=yesterday", "?range=24h&mode=all", "?range=7d&mode=test",
			"?range=30d&mode=all", "?mode=live&from=" + date(40) + "&to=" + date(12),
		} {
			w := getLedger(t, h, "/"+query)
			if w.Code != http.StatusOK {
				t.Fatalf("%s: status = %d: %s", query, w.Code, w.Body)
			}
			counted := make(map[string]int)
			for _, found := range listLink.FindAllStringSubmatch(w.Body.String(), -1) {
				target, text := html.UnescapeString(found[1]), tag.ReplaceAllString(found[2], " ")
				want, err := strconv.Atoi(strings.ReplaceAll(integer.FindString(text), ",", ""))
				if err != nil {
					if !strings.Contains(found[0], "amber") && !strings.Contains(text, "test purchases") {
						t.Errorf("%s, %s: link to %s without a number: %q", zone, query, target, text)
					}
					continue
				}
				if known, again := counted[target]; again && known != want {
					t.Errorf("%s, %s: %s is %d and %d", zone, query, target, known, want)
				}
				counted[target] = want
			}
			if len(counted) < 8 {
				t.Errorf("%s, %s: %d links, want the figures' at least", zone, query, len(counted))
			}
			for target, want := range counted {
				if got := count(t, h, target); got != want {
					t.Errorf("%s, %s: the overview counts %d, its list %s has %d", zone, query, want, target, got)
				}
			}
		}
	}
}

// A day of the table, of the API and of the list's filter has the same purchases, whatever its length.
func TestSummary_DaysAreThoseOfTheZone(t *testing.T) {
	t.Parallel()
	l := ledgertest.New(t)
	start := time.Date(2026, 10, 23, 0, 7, 0, 0, time.UTC)
	const n = 4 * 24 * 4 // one a quarter hour
	for i := range n {
		id := fmt.Sprintf("cs_%03d", i)
		r := ledgertest.Receipt("evt_"+id, id, purchase.StatusPending, "")
		r.Purchase.At = start.Add(time.Duration(i) * 15 * time.Minute)
		r.Purchase.Email = fmt.Sprintf("buyer%d@example.com", i%300)
		l.MustRecord(r)
	}
	for zone, wants := range map[string]map[string]int{
		"UTC":           {"2026-10-24": 96, "2026-10-25": 96},
		"Europe/Berlin": {"2026-10-24": 96, "2026-10-25": 100}, // 25 hours
		"Asia/Kolkata":  {"2026-10-24": 96, "2026-10-23": 74},
	} {
		h := newRealAPI(t, l, zone, start.AddDate(0, 0, 10))
		w := getLedger(t, h, "/api/v1/summary?from=2026-10-23&to=2026-10-26")
		var body struct {
			Days []struct {
				Date          string
				Paid, Waiting int
				NewBuyers     int `json:"new_buyers"`
				Returning     int `json:"returning_buyers"`
			}
		}
		if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || len(body.Days) != 4 {
			t.Fatalf("%s: %d days, %v: %s", zone, len(body.Days), err, w.Body)
		}
		for _, day := range body.Days {
			if want, named := wants[day.Date]; named && day.Paid != want {
				t.Errorf("%s, %s: paid = %d, want %d", zone, day.Date, day.Paid, want)
			}
			if day.NewBuyers+day.Returning != day.Paid || day.Waiting != day.Paid {
				t.Errorf("%s: %+v, want all waiting, new or returning", zone, day)
			}
			if got := count(t, h, "/purchases?day="+day.Date); got != day.Paid {
				t.Errorf("%s, %s: %d in the list, %d in the summary", zone, day.Date, got, day.Paid)
			}
		}
	}
}

// The overview answers in a sentence, by the days of its zone, beside the period before.
func TestOverview_AnswersInWords(t *testing.T) {
	t.Parallel()
	l := ledgertest.New(t)
	berlin := "Europe/Berlin"
	noon := time.Date(2026, 3, 29, 10, 2, 0, 0, time.UTC) // 12:02, on a day of 23 hours
	read := func(query string, now time.Time) string {
		t.Helper()
		w := getLedger(t, newRealAPI(t, l, berlin, now), "/"+query)
		_, text, found := strings.Cut(w.Body.String(), `aria-label="In words">`)
		text, _, _ = strings.Cut(text, "</section>")
		if w.Code != http.StatusOK || !found {
			t.Fatalf("%s: status = %d: %s", query, w.Code, w.Body)
		}
		return strings.Join(strings.Fields(html.UnescapeString(tag.ReplaceAllString(text, ""))), " ")
	}
	if got := read("?range=today", noon); got != "Yesterday: no sales. Today: no sales." {
		t.Errorf("empty ledger: %q", got)
	}
	i := 0
	sell := func(at time.Time, currency string, minor int64, status purchase.Status, reason purchase.Reason) {
		t.Helper()
		i++
		id := fmt.Sprintf("cs_%d", i)
		recorded, recordedReason := purchase.StatusPending, purchase.ReasonNone
		if status == purchase.StatusRejected || status == purchase.StatusSkipped {
			recorded, recordedReason = status, reason
		}
		r := ledgertest.Receipt("evt_"+id, id, recorded, recordedReason)
		r.Purchase.At, r.Purchase.Currency, r.Purchase.AmountMinor = at, currency, &minor
		if status == purchase.StatusRejected {
			r.Purchase.Email = ""
		}
		l.MustRecord(r)
		if status == purchase.StatusDelivered || status == purchase.StatusDead {
			l.End(id, status)
		}
	}
	saturday := time.Date(2026, 3, 27, 23, 0, 0, 0, time.UTC) // its first instant
	sell(saturday.Add(-time.Second), "eur", 700, purchase.StatusDelivered, "")
	sell(saturday, "eur", 498010, purchase.StatusDelivered, "")
	sell(saturday.Add(24*time.Hour-time.Second), "jpy", 1200, purchase.StatusDelivered, "")
	sell(saturday.Add(time.Hour), "usd", 100, purchase.StatusDead, purchase.ReasonRefused)
	sell(saturday.Add(time.Hour), "usd", 100, purchase.StatusRejected, purchase.ReasonInvalidEmail)
	sell(saturday.Add(time.Hour), "usd", 100, purchase.StatusSkipped, purchase.ReasonNoConsent)
	sell(saturday.Add(time.Hour), "usd", 0, purchase.StatusSkipped, purchase.ReasonNoPayment) // no sale
	sell(saturday.Add(24*time.Hour), "eur", 999, "", "")
	const yesterday = "Yesterday: 5 sales, 4,980.10 EUR, 1,200 JPY and 3.00 USD. TikTok accepted 2. " +
		"2 need you. 1 left out on purpose."
	for query, want := range map[string]string{
		"?range=yesterday": yesterday,
		"?range=today":     yesterday + " Today: 1 sale, 9.99 EUR. TikTok accepted 0. 1 is waiting.",
		"?range=7d": yesterday + " Last 7 days: 7 sales, 4,997.09 EUR, 1,200 JPY and 3.00 USD. " +
			"TikTok accepted 3. 1 is waiting. 2 need you. 1 left out on purpose.",
		"?from=2026-03-27&to=2026-03-27": yesterday + " 2026-03-27: 1 sale, 7.00 EUR. TikTok accepted 1.",
		"?range=yesterday&mode=test":     "Yesterday: no sales.",
	} {
		if got := read(query, noon); got != want {
			t.Errorf("%s:\n%q, want\n%q", query, got, want)
		}
	}
	body := getLedger(t, newRealAPI(t, l, berlin, noon), "/?range=today").Body.String()
	for _, part := range []string{
		// The period before ends at the same time of the day.
		`2026-03-28 00:00 CET</time> to <time`, `2026-03-28 12:15 CET</time>. As of`,
		"2026-03-29 12:02:00.000 CEST", `data-figure="paid">1</strong>`, ">4 before<",
		`"2026-03-29T10:02:00.000Z"`, "Days and times in Europe/Berlin", `data-labels="00:00|01:00|03:00|`,
	} {
		if !strings.Contains(body, part) {
			t.Errorf("today lacks %q:\n%s", part, body)
		}
	}
}

// The health strip counts running workers, and the oldest purchase is one of those that are counted.
func TestOverview_FiguresAgree(t *testing.T) {
	t.Parallel()
	l := newLedger()
	l.summary.OldestNow, l.summary.Oldest = time.Time{}, now.AddDate(0, 0, -3)
	body := get(t, newAPI(l), "/?range=today", plain).Body.String()
	for _, part := range []string{
		"1 running, 1 paused", `data-figure="waiting">0<`, `data-figure="oldest">–<`, "3 days of all time",
	} {
		if !strings.Contains(body, part) {
			t.Errorf("overview lacks %q:\n%s", part, body)
		}
	}
	if strings.Contains(body, "connected") {
		t.Error("a paused worker is shown as connected")
	}
}
