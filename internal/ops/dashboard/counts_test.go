package dashboard_test

import (
	"encoding/csv"
	"encoding/json"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	diff "github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/dashboard"
	"purchase-relay/internal/ops/report"
)

// weekOfCounts is a week of made-up sales with a lost day and a browser pixel that fires twice.
func weekOfCounts() report.Counts {
	today := now.Truncate(24 * time.Hour)
	var rows []report.CountRow
	var sales []report.SalesDay
	for ago := range 8 {
		day := today.AddDate(0, 0, -ago)
		sales = append(sales, report.SalesDay{Day: day, Livemode: true, Paid: 1000, Accepted: 1000})
		rows = append(rows, report.CountRow{
			Event: "SHOPPING", Day: day, Server: 1000, Browser: 1400, Total: 2400, Attributed: 624, AskedAt: now,
		}, report.CountRow{Event: "<b>VIEW</b>", Day: day, Browser: 10, Total: 10, AskedAt: now})
	}
	rows[2*5].Server, rows[2*5].Attributed, rows[2*5].Total = 0, 364, 1400
	return report.CompareCounts(rows, sales, map[time.Time]int{today: 1001}, report.EventNames{}, now)
}

var findingLine = regexp.MustCompile(`data-finding="[a-z_]+">(?:<strong>)?([^<]*)`)

// The page names a lost day, a double-firing pixel and a token without the scope, and nothing else.
func TestReconciliation_NamesDifferencesOfCounts(t *testing.T) {
	t.Parallel()
	l := newLedger()
	page := func() string { return get(t, newAPI(l), "/reconciliation", plain).Body.String() }
	if body := page(); strings.Contains(body, "TikTok's counts") || strings.Contains(body, "data-finding") {
		t.Error("the page has counts without an answer of TikTok")
	}
	l.counts = weekOfCounts()
	l.refused = &message.StatsProblem{Kind: "access", Reason: "40001 <no> scope", Since: now.Add(-time.Hour)}
	body := page()
	var got []string
	for _, m := range findingLine.FindAllStringSubmatch(body, -1) {
		got = append(got, m[1])
	}
	want := []string{
		"No counts from TikTok for 60 min: TikTok refuses its counts: the token lacks the measurement " +
			"scope, or may not read this advertiser (40001 &lt;no&gt; scope). Set TIKTOK_STATS_TOKEN to a token " +
			"whose app has the measurement scope (TikTok for Business developers &gt; the app &gt; Scope of " +
			"permission), authorised for TIKTOK_ADVERTISER_ID; a token of the Events API alone does not have it. " +
			"Deliveries continue.",
		"TikTok counts none of the 1000 events that it accepted",
		"The browser pixel sends 40 % more than there were sales: it fires on a page that reloads",
		"TikTok attributes 26 % of the events that it counts to your ads.",
	}
	if d := diff.Diff(want, got); d != "" {
		t.Errorf("findings (-want +got):\n%s", d)
	}
	for _, part := range []string{
		"as SHOPPING", "live purchases", "UTC day", ">1,001<", ">1,400<", ">624<", "on 2025-12-28",
		"&lt;b&gt;VIEW&lt;/b&gt;: 0 by servers, 80 by browsers", `href="/counts.csv"`,
	} {
		if !strings.Contains(body, part) {
			t.Errorf("the page lacks %q:\n%s", part, body)
		}
	}
	if l.names.Sent != "CompletePayment" {
		t.Errorf("names = %+v, want the configured ones", l.names)
	}
	overview := get(t, newAPI(l), "/", plain).Body.String()
	if !strings.Contains(overview, "No counts from TikTok") {
		t.Error("the overview lacks the refusal")
	}

	rows, err := csv.NewReader(get(t, newAPI(l), "/counts.csv", plain).Body).ReadAll()
	if err != nil || len(rows) != 9 || !slices.Equal(rows[0], report.CountsHeader()) {
		t.Fatalf("CSV = %v, %v", rows, err)
	}
	lost := []string{
		"2025-12-28", "", "1000", "1000", "0", "1400", "1400", "364", "2026-01-02T03:04:05Z",
		"counts_none browser_more",
	}
	if d := diff.Diff(lost, rows[3]); d != "" {
		t.Errorf("CSV's lost day (-want +got):\n%s", d)
	}
	var answer struct {
		Timezone string
		Problem  *message.StatsProblem
		Days     []struct{ Server int }
	}
	response := get(t, newAPI(l), "/api/v1/counts", plain)
	if err := json.Unmarshal(response.Body.Bytes(), &answer); err != nil || answer.Timezone != "UTC" ||
		answer.Problem == nil || answer.Problem.Kind != "access" || len(answer.Days) != 8 {
		t.Errorf("API = %+v, %v", answer, err)
	}
	if w := get(t, newAPI(l), "/counts.csv?mode=live", plain); w.Code != http.StatusBadRequest {
		t.Errorf("CSV with a parameter: status = %d, want 400", w.Code)
	}
}

func TestCountsMetrics(t *testing.T) {
	t.Parallel()
	l := newLedger()
	l.counts = weekOfCounts()
	m := dashboard.NewCountsMetrics(l, report.EventNames{}, func() time.Time { return now })
	want := `
# HELP purchase_relay_tiktok_count_differences 1 while TikTok's counts differ from the ledger.
# TYPE purchase_relay_tiktok_count_differences gauge
purchase_relay_tiktok_count_differences{kind="browser_more"} 1
purchase_relay_tiktok_count_differences{kind="counts_fewer"} 0
purchase_relay_tiktok_count_differences{kind="counts_more"} 0
purchase_relay_tiktok_count_differences{kind="counts_none"} 1
purchase_relay_tiktok_count_differences{kind="event_type"} 0
purchase_relay_tiktok_count_differences{kind="stale"} 0
# HELP purchase_relay_tiktok_counts Purchases of the last seven whole UTC days.
# TYPE purchase_relay_tiktok_counts gauge
purchase_relay_tiktok_counts{source="accepted"} 7000
purchase_relay_tiktok_counts{source="attributed"} 4108
purchase_relay_tiktok_counts{source="browser"} 9800
purchase_relay_tiktok_counts{source="ledger"} 7000
purchase_relay_tiktok_counts{source="server"} 6000
`
	if err := testutil.CollectAndCompare(m, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
	l.err = http.ErrServerClosed
	if n := testutil.CollectAndCount(m); n != 0 {
		t.Errorf("%d metrics without the ledger, want 0", n)
	}
}
