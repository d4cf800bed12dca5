package maintenance_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/maintenance"
	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/testkit/ledgertest"
)

func TestReplay_MakesSelectedPending(t *testing.T) {
	t.Parallel()
	l := ledgertest.New(t)
	for _, p := range []struct {
		id     string
		result purchase.Status
		reason purchase.Reason
	}{
		{"cs_dead", purchase.StatusDead, purchase.ReasonRefused},
		{"cs_dead2", purchase.StatusDead, purchase.ReasonExpired},
		{"cs_off", purchase.StatusSkipped, purchase.ReasonNotConfigured},
		{"cs_test", purchase.StatusSkipped, purchase.ReasonTestPurchase},
		{"cs_delivered", purchase.StatusDelivered, ""},
	} {
		l.Buy(p.id)
		o := ledgertest.Outcome(p.id, 1, p.result, "", time.Now())
		o.Reason = p.reason
		l.MustSettle(o)
	}
	l.MustRecord(ledgertest.Receipt("evt_trial", "cs_trial", purchase.StatusSkipped, purchase.ReasonNoPayment))
	l.MustRecord(ledgertest.Receipt("evt_unpaid", "cs_unpaid", purchase.StatusAwaitingPayment, ""))
	replay := func(s maintenance.Selection) (int, error) {
		t.Helper()
		groups, err := l.CountReplayable(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		counted, _ := maintenance.Sum(groups)
		n, err := l.Replay(t.Context(), s, func(int) {})
		if n != counted {
			t.Errorf("%+v: counted %d, replayed %d, want the same", s, counted, n)
		}
		return n, err
	}
	for id, want := range map[string]error{
		"cs_trial": maintenance.ErrNotReplayable, "cs_delivered": maintenance.ErrNotReplayable,
		"cs_unpaid": maintenance.ErrNotReplayable, "cs_unknown": report.ErrNotFound,
	} {
		if n, err := replay(maintenance.Selection{ID: id}); n != 0 || !errors.Is(err, want) {
			t.Errorf("replay %s = %d, %v", id, n, err)
		}
	}
	for _, s := range []maintenance.Selection{
		{Status: purchase.StatusDead, Reason: purchase.ReasonInvalidEmail},
		{Status: purchase.StatusDead, Code: new(1)},
		{Status: purchase.StatusDead, Since: time.Now().Add(time.Hour)},
		{Status: purchase.StatusSkipped, Reason: purchase.ReasonTestPurchase},
		{Status: purchase.StatusDelivered},
	} {
		if n, err := replay(s); n != 0 || err != nil {
			t.Errorf("replay %+v = %d, %v", s, n, err)
		}
	}
	for _, tc := range []struct {
		s    maintenance.Selection
		want int
	}{
		{maintenance.Selection{
			Status: purchase.StatusDead, Reason: purchase.ReasonExpired, Since: time.Now().Add(-time.Hour),
		}, 1},
		{maintenance.Selection{Status: purchase.StatusDead}, 1},
		{maintenance.Selection{Status: purchase.StatusSkipped}, 1},
		{maintenance.Selection{IDs: []string{"cs_test", "cs_trial", "cs_unknown", "cs_delivered"}}, 1},
	} {
		if n, err := replay(tc.s); n != tc.want || err != nil {
			t.Errorf("replay %+v = %d, %v", tc.s, n, err)
		}
	}
	if got := ledgertest.Ask[string](l, `SELECT string_agg(checkout_session_id, ' '
		ORDER BY checkout_session_id) FROM purchases
		WHERE status = 'pending' AND generation = 2 AND reason = '' AND first_published_at IS NULL
		AND finished_at IS NULL`); got != "cs_dead cs_dead2 cs_off cs_test" {
		t.Errorf("pending = %s", got)
	}
	// A late outcome of the first generation is ignored.
	l.MustSettle(ledgertest.Outcome("cs_dead", 1, purchase.StatusDead, "late", time.Now()))
	if got := ledgertest.Ask[string](l, `SELECT status FROM purchases
		WHERE checkout_session_id = 'cs_dead'`); got != "pending" {
		t.Errorf("status = %s, want pending", got)
	}
}

// Only what TikTok may have accepted may count twice: not what it refused.
func TestCountReplayable_WarnsOfWhatTikTokMayHave(t *testing.T) {
	t.Parallel()
	const refused, expired, crash = purchase.ReasonRefused, purchase.ReasonExpired, purchase.ReasonCrash
	for name, tc := range map[string]struct {
		age      time.Duration
		reason   purchase.Reason
		attempts []purchase.Class
		code     int
		want     int
	}{
		"refused":                   {49 * time.Hour, refused, []purchase.Class{purchase.ClassRefused}, 40002, 0},
		"refused, partly accepted":  {49 * time.Hour, refused, []purchase.Class{purchase.ClassRefused}, 20001, 1},
		"refused after no answer":   {49 * time.Hour, refused, []purchase.Class{"retry", "refused"}, 40002, 1},
		"refused after a bad token": {49 * time.Hour, refused, []purchase.Class{"access", "rate", "blocked"}, 0, 0},
		"refused today":             {time.Hour, refused, []purchase.Class{"retry", "refused"}, 40002, 0},
		"expired":                   {49 * time.Hour, expired, nil, 0, 1},
		"crash":                     {49 * time.Hour, crash, nil, 0, 1},
		"crash today":               {time.Hour, crash, nil, 0, 0},
	} {
		l := ledgertest.New(t)
		l.Buy("cs_1")
		var outcomes []message.Outcome
		for i, class := range tc.attempts {
			o := ledgertest.Outcome("cs_1", 1, purchase.StatusRetrying, fmt.Sprintf("a%d", i), time.Now().Add(-tc.age))
			o.Attempt.Class, o.Attempt.Code = class, &tc.code
			outcomes = append(outcomes, o)
		}
		end := ledgertest.Outcome("cs_1", 1, purchase.StatusDead, "", time.Now())
		end.Reason = tc.reason
		l.MustSettle(append(outcomes, end)...)
		l.Exec(`UPDATE purchases SET first_published_at = $1`, time.Now().Add(-tc.age))
		groups, err := l.CountReplayable(t.Context(), maintenance.Selection{ID: "cs_1"})
		if err != nil {
			t.Fatal(err)
		}
		if n, late := maintenance.Sum(groups); n != 1 || late != tc.want {
			t.Errorf("%s: replayable %d, late %d, want 1 and %d", name, n, late, tc.want)
		}
	}
}

func TestSelection_CheckOfIDs(t *testing.T) {
	t.Parallel()
	many := make([]string, maintenance.MaxIDs+1)
	for i := range many {
		many[i] = "cs_1"
	}
	for name, tc := range map[string]struct {
		s    maintenance.Selection
		good bool
	}{
		"some":                {maintenance.Selection{IDs: []string{"cs_1", "cs_2"}}, true},
		"some and one":        {maintenance.Selection{IDs: []string{"cs_1"}, ID: "cs_2"}, false},
		"some and a status":   {maintenance.Selection{IDs: []string{"cs_1"}, Status: purchase.StatusDead}, false},
		"some, without codes": {maintenance.Selection{IDs: []string{"cs_1"}, NoCode: true}, false},
		"some since a time":   {maintenance.Selection{IDs: []string{"cs_1"}, Since: base}, false},
		"some within a time":  {maintenance.Selection{IDs: []string{"cs_1"}, Within: time.Hour}, false},
		"one within a time":   {maintenance.Selection{ID: "cs_1", Within: time.Hour}, false},
		"dead within a time":  {maintenance.Selection{Status: purchase.StatusDead, Within: time.Hour}, true},
		"junk among some":     {maintenance.Selection{IDs: []string{"cs_1", "cs.2"}}, false},
		"too many":            {maintenance.Selection{IDs: many}, false},
		"without codes":       {maintenance.Selection{Status: purchase.StatusDead, NoCode: true}, true},
	} {
		if err := tc.s.Check(); (err == nil) != tc.good {
			t.Errorf("%s: error = %v", name, err)
		}
	}
}

func TestParseSince_DurationsAndTimes(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 31, 0, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Time{
		"": {}, "30m": now.Add(-30 * time.Minute), "72h": now.Add(-72 * time.Hour), "7d": now.AddDate(0, 0, -7),
		"2026-01-02T00:00:00Z": now.AddDate(0, 0, -29),
	} {
		if got, err := maintenance.ParseSince(text, now); err != nil || !got.Equal(want) {
			t.Errorf("ParseSince(%q) = %s, %v", text, got, err)
		}
	}
	for _, text := range []string{"soon", "-1h", "0d", "-3d", "1.5d", "d", "2026-01-02"} {
		if got, err := maintenance.ParseSince(text, now); err == nil {
			t.Errorf("ParseSince(%q) = %s, want an error", text, got)
		}
	}
}
