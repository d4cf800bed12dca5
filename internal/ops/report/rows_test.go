package report_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/relay"
	"purchase-relay/internal/testkit/ledgertest"
)

// Every filter, alone and with others, pages through exactly the rows that match, newest first, whatever the page's size.
func TestReader_ListPagesThroughEverything(t *testing.T) {
	t.Parallel()
	l := ledgertest.New(t)
	for i := range 60 {
		r := ledgertest.Receipt(fmt.Sprintf("evt_%d", i), fmt.Sprintf("cs_%02d", i), purchase.StatusPending, "")
		r.Purchase.At = base.Add(time.Duration(i/4) * 5 * time.Hour) // four share each time
		r.Purchase.Livemode = i%3 > 0
		r.Purchase.Customer = fmt.Sprintf("cus_%d", i%5)
		r.Purchase.Email = fmt.Sprintf("buyer%d@example.com", i%5)
		l.MustRecord(r)
		o := ledgertest.Outcome(r.Purchase.ID, 1, []purchase.Status{purchase.StatusDelivered, purchase.StatusDead, purchase.StatusRetrying}[i%7%3], "a", base)
		o.Attempt.Code = new([]int{0, 40002, 50000}[i%7%3])
		if _, err := l.Settle(t.Context(), []message.Outcome{o}); err != nil {
			t.Fatal(err)
		}
	}
	profile := ledgertest.Ask[string](l, `SELECT id::text FROM profiles WHERE livemode AND email = 'buyer3@example.com'`)
	if id, err := l.ProfileByEmail(t.Context(), " Buyer3@Example.com"); err != nil || id != profile {
		t.Errorf("profile %q, %v", id, err)
	}
	for name, tc := range map[string]struct {
		filter report.Filter
		where  string
	}{
		"all":             {report.Filter{}, `true`},
		"live":            {report.Filter{Livemode: new(true)}, `livemode`},
		"test":            {report.Filter{Livemode: new(false)}, `NOT livemode`},
		"dead":            {report.Filter{Status: purchase.StatusDead}, `status = 'dead'`},
		"live delivered":  {report.Filter{Status: purchase.StatusDelivered, Livemode: new(true)}, `status = 'delivered' AND livemode`},
		"code":            {report.Filter{Code: new(40002)}, `last_code = 40002`},
		"code 0":          {report.Filter{Code: new(0)}, `last_code = 0`},
		"code and status": {report.Filter{Code: new(40002), Status: purchase.StatusDelivered}, `false`},
		"a day":           {report.Filter{Day: base}, `purchased_at >= '2026-01-02 00:00Z' AND purchased_at < '2026-01-03 00:00Z'`},
		"dead of a day":   {report.Filter{Day: base, Status: purchase.StatusDead}, `status = 'dead' AND purchased_at < '2026-01-03 00:00Z'`},
		"a customer":      {report.Filter{Query: "cus_2"}, `stripe_customer_id = 'cus_2'`},
		"an address":      {report.Filter{Query: "BUYER3@example.com", Livemode: new(true)}, `livemode AND stripe_customer_id = 'cus_3'`},
		"a profile":       {report.Filter{Query: profile}, `stripe_customer_id = 'cus_3'`},
		"an event":        {report.Filter{Query: "evt_7"}, `checkout_session_id = 'cs_07'`},
		"a session":       {report.Filter{Query: " cs_07 "}, `checkout_session_id = 'cs_07'`},
		"a stranger":      {report.Filter{Query: "%"}, `false`},
		"a reason":        {report.Filter{Status: purchase.StatusDead, Reason: purchase.ReasonExpired}, `false`},
	} {
		want := ledgertest.Ask[string](l, `SELECT COALESCE(string_agg(checkout_session_id, ' ' ORDER BY purchased_at DESC, checkout_session_id DESC), '') FROM purchases WHERE `+tc.where)
		for _, limit := range []int{1, 7, 60} {
			got, pages := "", 0
			f := tc.filter
			f.Limit = limit
			for {
				page, err := l.List(t.Context(), f)
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				for _, e := range page {
					if got != "" {
						got += " "
					}
					got += e.ID
				}
				if pages++; len(page) < limit || pages > 61 {
					break
				}
				if f.After, err = report.ParseCursor(page[len(page)-1].Position().Cursor()); err != nil {
					t.Fatal(err)
				}
			}
			if got != want {
				t.Errorf("%s by %d:\n%s\nwant\n%s", name, limit, got, want)
			}
		}
	}
}

func TestReader_Search(t *testing.T) {
	t.Parallel()
	l := ledgertest.New(t)
	l.MustRecord(ledgertest.Receipt("evt_1", "cs_1", purchase.StatusPending, ""))
	l.MustRecord(ledgertest.Receipt("evt_2", "cs_1", purchase.StatusPending, "")) // a second event of the same sale
	other := ledgertest.Receipt("evt_3", "cs_2", purchase.StatusAwaitingPayment, "")
	l.MustRecord(other)
	stranger := ledgertest.Receipt("evt_4", "cs_3", purchase.StatusPending, "")
	stranger.Purchase.Email = "stranger@example.com"
	l.MustRecord(stranger)
	if _, err := l.Claim(t.Context(), 10); err != nil {
		t.Fatal(err)
	}
	if err := l.MarkPublished(t.Context(), []relay.Mark{{ID: "cs_1", Generation: 1, Sequence: 7}}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Settle(t.Context(), []message.Outcome{
		ledgertest.Outcome("cs_1", 1, purchase.StatusDelivered, "a2", base.Add(2*time.Second)), ledgertest.Outcome("cs_1", 1, purchase.StatusRetrying, "a1", base.Add(time.Second)),
	}); err != nil {
		t.Fatal(err)
	}
	find := func(term string, most int) (ids string) {
		t.Helper()
		found, err := l.Search(t.Context(), term, most)
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range found {
			ids += h.ID + " "
		}
		return ids
	}
	for term, want := range map[string]string{
		"cs_1": "cs_1 ", "evt_1": "cs_1 ", "evt_2": "cs_1 ", "evt_3": "cs_2 ", "BUYER@example.com": "cs_1 ", "stranger@example.com": "cs_3 ",
		"cs_4": "", "": "", "nobody@example.com": "", "x\x00\xff": "", "%": "",
	} {
		if got := find(term, 5); got != want {
			t.Errorf("%q found %q, want %q", term, got, want)
		}
	}
	l.MustRecord(ledgertest.Receipt("evt_5", "cs_5", purchase.StatusPending, ""))
	if got := find("buyer@example.com", 1); got != "cs_5 " {
		t.Errorf("the newest one: %q", got)
	}
	found, err := l.Search(t.Context(), "cs_1", 1)
	if err != nil {
		t.Fatal(err)
	}
	h := found[0]
	if h.Status != purchase.StatusDelivered || *h.AmountMinor != 2999 || *h.Currency != "usd" || !h.At().Equal(base) ||
		h.ProfileID == nil || *h.Customer != "cus_1" || h.Generation != 1 || *h.Sequence != 7 || h.FirstPublished == nil ||
		h.Published.Before(*h.FirstPublished) || h.Finished.Before(*h.Published) || *h.RequestID != "req-a2" ||
		h.AttemptCount != 2 || len(h.Envelope) == 0 {
		t.Errorf("row: %+v", h)
	}
	if len(h.Events) != 2 || h.Events[0].Disposition != purchase.Processed || h.Events[1].Disposition != purchase.Duplicate || !h.Events[0].Created.Equal(base) {
		t.Errorf("events: %+v", h.Events)
	}
	if len(h.Attempts) != 2 || h.Attempts[0].ID != "a1" || *h.Attempts[0].Code != 50000 || h.Attempts[1].Class != purchase.ClassDelivered || *h.Attempts[1].Code != 0 {
		t.Errorf("attempts: %+v", h.Attempts)
	}
}

// Every list, page, report and recording goes on without the row, and says so. Histories and pages keep their
// length.
func TestReader_SkipsUnreadableRow(t *testing.T) {
	t.Parallel()
	l := ledgertest.New(t)
	skipped := l.Skips()
	for i := range 6 {
		id := fmt.Sprintf("cs_%d", i)
		l.Buy(id)
		l.End(id, purchase.StatusDead)
	}
	l.Exec(`UPDATE purchases SET finished_at = 'infinity' WHERE checkout_session_id = 'cs_3'`)
	want := []string{"cs_0", "cs_1", "cs_2", "cs_4", "cs_5"}

	var entries []string
	var after report.Position
	for range 10 {
		list, err := l.List(t.Context(), report.Filter{Limit: 2, After: after})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			entries = append(entries, e.ID)
		}
		if len(list) < 2 {
			break
		}
		after = list[len(list)-1].Position()
	}
	if slices.Sort(entries); !slices.Equal(entries, want) {
		t.Errorf("entries = %v, want %v", entries, want)
	}
	if got := skipped.Take(); !slices.Equal(got, []string{"entries cs_3"}) {
		t.Errorf("skipped = %v, want entries cs_3", got)
	}

	histories, err := l.Search(t.Context(), "buyer@example.com", 10)
	if err != nil || len(histories) != len(want) {
		t.Errorf("%d histories, %v, want %d", len(histories), err, len(want))
	}
	if got := skipped.Take(); !slices.Equal(got, []string{"history cs_3"}) {
		t.Errorf("skipped = %v, want history cs_3", got)
	}
	l.Exec(`UPDATE attempts SET at = 'infinity' WHERE checkout_session_id = 'cs_1'`)
	l.Exec(`UPDATE stripe_events SET received_at = 'infinity' WHERE checkout_session_id = 'cs_1'`)
	if histories, err = l.Search(t.Context(), "cs_1", 10); err != nil || len(histories) != 1 ||
		len(histories[0].Attempts) != 0 {
		t.Errorf("histories = %+v, %v, want one without attempts", histories, err)
	}
	skipped.Take()

	outcomes := make([]message.Outcome, 6)
	for i := range outcomes {
		outcomes[i] = ledgertest.Outcome(fmt.Sprintf("cs_%d", i), 1, purchase.StatusDelivered, "second", time.Now())
	}
	unknown, err := l.Settle(t.Context(), outcomes)
	if err != nil || !slices.Equal(unknown, []string{"cs_3"}) {
		t.Errorf("settle: unknown %v, %v, want cs_3", unknown, err)
	}
	if n := ledgertest.Ask[int](l, `SELECT count(*) FROM purchases WHERE status = 'delivered'`); n != 5 {
		t.Errorf("%d delivered, want 5", n)
	}
	if got := skipped.Take(); !slices.Equal(got, []string{"outcomes cs_3"}) {
		t.Errorf("skipped = %v, want outcomes cs_3", got)
	}

	l.Exec(`UPDATE purchases SET purchased_at = 'infinity', status = 'skipped'
		WHERE checkout_session_id = 'cs_4'`)
	scope := report.Scope{
		Since: base.Add(-time.Hour), Until: time.Now().AddDate(10, 0, 0), Livemode: true,
		Modes: []string{"subscription"},
	}
	standings, err := l.Payments(t.Context(), scope, []string{"cs_4"})
	if err != nil || len(standings) != 5 {
		t.Errorf("%d standings, %v, want 5", len(standings), err)
	}
	skipped.Take()
	l.Exec(`UPDATE purchases SET status = 'dead', reason = 'refused', updated_at = 'infinity'
		WHERE checkout_session_id = 'cs_4'`)
	l.Exec(`UPDATE purchases SET status = 'dead', reason = 'expired', updated_at = now()
		WHERE checkout_session_id = 'cs_5'`)
	if deaths, err := l.DeadLetters(t.Context(), base); err != nil || len(deaths) != 1 ||
		deaths[0].Reason != purchase.ReasonExpired {
		t.Errorf("deaths = %+v, %v, want the expired one", deaths, err)
	}
}

// A cursor leads back to where it was made; whatever else is given is refused and never a place.
func TestCursor(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p := report.Position{
			At: time.UnixMicro(rapid.Int64Range(0, 4e15).Draw(t, "at")).UTC(), ID: rapid.StringMatching(`[A-Za-z0-9_-]{1,80}`).Draw(t, "id"),
		}
		if got, err := report.ParseCursor(p.Cursor()); err != nil || got != p {
			t.Fatalf("%+v comes back as %+v, %v", p, got, err)
		}
		junk := rapid.String().Draw(t, "junk")
		if got, err := report.ParseCursor(junk); err == nil && junk != "" && got.Cursor() != strings.TrimSpace(junk) {
			t.Fatalf("%q is taken for %+v", junk, got)
		}
	})
	for _, junk := range []string{"!", "MTIz", "MS5hLmI", report.Position{At: time.UnixMicro(-5), ID: "cs_1"}.Cursor(), report.Position{At: time.Unix(1<<40, 0), ID: "cs_1"}.Cursor(), strings.Repeat("A", 1000)} {
		if got, err := report.ParseCursor(junk); err == nil {
			t.Errorf("%q is taken for %+v", junk, got)
		}
	}
}
