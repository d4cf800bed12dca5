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

func TestReader_ListPagesThroughAllMatches(t *testing.T) {
	t.Parallel()
	l := ledgertest.New(t)
	statuses := []purchase.Status{purchase.StatusDelivered, purchase.StatusDead, purchase.StatusRetrying}
	codes := []int{0, 40002, 50000}
	for i := range 60 {
		r := ledgertest.Receipt(fmt.Sprintf("evt_%d", i), fmt.Sprintf("cs_%02d", i), purchase.StatusPending, "")
		r.Purchase.At = base.Add(time.Duration(i/4) * 5 * time.Hour) // four purchases share each time
		r.Purchase.Livemode = i%3 > 0
		r.Purchase.Customer = fmt.Sprintf("cus_%d", i%5)
		r.Purchase.Email = fmt.Sprintf("buyer%d@example.com", i%5)
		if i%10 == 0 {
			r.Purchase.Kind = purchase.KindTrial
		}
		l.MustRecord(r)
		o := ledgertest.Outcome(r.Purchase.ID, 1, statuses[i%7%3], "a", base)
		o.Attempt.Code = new(codes[i%7%3])
		l.MustSettle(o)
	}
	profile := ledgertest.Ask[string](l, `SELECT id::text FROM profiles
		WHERE livemode AND email = 'buyer3@example.com'`)
	if id, err := l.ProfileByEmail(t.Context(), " Buyer3@Example.com"); err != nil || id != profile {
		t.Errorf("profile = %q, %v, want %q", id, err, profile)
	}
	type filter = report.Filter
	type statusList = []purchase.Status
	type reasonList = []purchase.Reason
	type kindList = []purchase.Kind
	const dead, delivered, retrying = purchase.StatusDead, purchase.StatusDelivered, purchase.StatusRetrying
	day := base.Truncate(24 * time.Hour)
	for name, tc := range map[string]struct {
		filter filter
		where  string
	}{
		"all":             {filter{}, `true`},
		"live":            {filter{Livemode: new(true)}, `livemode`},
		"test":            {filter{Livemode: new(false)}, `NOT livemode`},
		"dead":            {filter{Statuses: statusList{dead}}, `status = 'dead'`},
		"dead or retried": {filter{Statuses: statusList{dead, retrying}}, `status IN ('dead', 'retrying')`},
		"no status":       {filter{Statuses: statusList{}}, `false`},
		"live delivered": {
			filter{Statuses: statusList{delivered}, Livemode: new(true)}, `status = 'delivered' AND livemode`,
		},
		"code":            {filter{Code: new(40002)}, `last_code = 40002`},
		"code 0":          {filter{Code: new(0)}, `last_code = 0`},
		"code and status": {filter{Code: new(40002), Statuses: statusList{delivered}}, `false`},
		"day": {
			filter{From: day, Until: day.AddDate(0, 0, 1)}, `date_trunc('day', purchased_at, 'UTC') = '2026-01-02Z'`,
		},
		"dead of a day": {
			filter{Until: day.AddDate(0, 0, 1), Statuses: statusList{dead}},
			`status = 'dead' AND purchased_at < '2026-01-03Z'`,
		},
		"customer": {filter{Query: "cus_2"}, `stripe_customer_id = 'cus_2'`},
		"address": {
			filter{Query: "BUYER3@example.com", Livemode: new(true)}, `livemode AND stripe_customer_id = 'cus_3'`,
		},
		"profile": {filter{Query: profile}, `stripe_customer_id = 'cus_3'`},
		"event":   {filter{Query: "evt_7"}, `checkout_session_id = 'cs_07'`},
		"session": {filter{Query: " cs_07 "}, `checkout_session_id = 'cs_07'`},
		"unknown": {filter{Query: "%"}, `false`},
		"reason": {
			filter{Statuses: statusList{dead}, Reasons: reasonList{purchase.ReasonRefused}}, `status = 'dead'`,
		},
		"other reason": {filter{Reasons: reasonList{purchase.ReasonExpired}}, `false`},
		"no reason":    {filter{Reasons: reasonList{""}}, `reason = ''`},
		"not refused":  {filter{NotReasons: reasonList{purchase.ReasonRefused}}, `reason <> 'refused'`},
		"checkouts":    {filter{Kinds: kindList{purchase.KindCheckout}}, `kind = 'checkout'`},
		"trials":       {filter{Kinds: kindList{purchase.KindTrial}}, `kind = 'trial'`},
		"first sales":  {filter{FirstSale: new(true)}, `first_sale`},
	} {
		want := ledgertest.Ask[[]string](l, `SELECT COALESCE(array_agg(checkout_session_id
			ORDER BY purchased_at DESC, checkout_session_id DESC), '{}') FROM purchases WHERE `+tc.where)
		for _, limit := range []int{1, 7, 60} {
			if got := listAll(l, tc.filter, limit); !slices.Equal(got, want) {
				t.Errorf("%s, pages of %d: ids = %v, want %v", name, limit, got, want)
			}
		}
	}
}

// listAll pages through a filter's purchases and returns their ids.
func listAll(l *ledgertest.Ledger, f report.Filter, limit int) (ids []string) {
	l.T.Helper()
	f.Limit = limit
	for range 100 {
		page, err := l.List(l.T.Context(), f)
		if err != nil {
			l.T.Fatal(err)
		}
		for i := range page {
			ids = append(ids, page[i].ID)
		}
		if len(page) < limit {
			return ids
		}
		if f.After, err = report.ParseCursor(page[len(page)-1].Position().Cursor()); err != nil {
			l.T.Fatal(err)
		}
	}
	l.T.Fatal("List returned 100 full pages")
	return nil
}

func TestReader_SearchByIDAndAddress(t *testing.T) {
	t.Parallel()
	l := ledgertest.New(t)
	l.MustRecord(ledgertest.Receipt("evt_1", "cs_1", purchase.StatusPending, ""))
	l.MustRecord(ledgertest.Receipt("evt_2", "cs_1", purchase.StatusPending, "")) // a second event
	l.MustRecord(ledgertest.Receipt("evt_3", "cs_2", purchase.StatusAwaitingPayment, ""))
	other := ledgertest.Receipt("evt_4", "cs_3", purchase.StatusPending, "")
	other.Purchase.Email = "other@example.com"
	l.MustRecord(other)
	if _, err := l.Claim(t.Context(), 10); err != nil {
		t.Fatal(err)
	}
	if err := l.MarkPublished(t.Context(), []relay.Mark{{ID: "cs_1", Generation: 1, Sequence: 7}}); err != nil {
		t.Fatal(err)
	}
	l.MustSettle(
		ledgertest.Outcome("cs_1", 1, purchase.StatusDelivered, "a2", base.Add(2*time.Second)),
		ledgertest.Outcome("cs_1", 1, purchase.StatusRetrying, "a1", base.Add(time.Second)))
	search := func(term string, limit int) (ids string) {
		t.Helper()
		found, err := l.Search(t.Context(), term, limit)
		if err != nil {
			t.Fatal(err)
		}
		for i := range found {
			ids += found[i].ID + " "
		}
		return ids
	}
	for term, want := range map[string]string{
		"cs_1": "cs_1 ", "evt_1": "cs_1 ", "evt_2": "cs_1 ", "evt_3": "cs_2 ", "BUYER@example.com": "cs_1 ",
		"other@example.com": "cs_3 ", "cs_4": "", "": "", "unknown@example.com": "", "x\x00\xff": "", "%": "",
	} {
		if got := search(term, 5); got != want {
			t.Errorf("search %q = %q, want %q", term, got, want)
		}
	}
	l.MustRecord(ledgertest.Receipt("evt_5", "cs_5", purchase.StatusPending, ""))
	if got := search("buyer@example.com", 1); got != "cs_5 " {
		t.Errorf("search with limit 1 = %q, want the newest, cs_5", got)
	}
	found, err := l.Search(t.Context(), "cs_1", 1)
	if err != nil {
		t.Fatal(err)
	}
	r := found[0]
	if r.Status != purchase.StatusDelivered || *r.AmountMinor != 2999 || *r.Currency != "usd" ||
		!r.At().Equal(base) || r.ProfileID == nil || *r.Customer != "cus_1" || r.Generation != 1 ||
		*r.Sequence != 7 ||
		r.FirstPublished == nil || r.Published.Before(*r.FirstPublished) || r.Finished.Before(*r.Published) ||
		*r.RequestID != "req-a2" || r.AttemptCount != 2 || len(r.Envelope) == 0 {
		t.Errorf("row = %+v", r)
	}
	if e := r.Events; len(e) != 2 || e[0].Disposition != purchase.Processed || !e[0].Created.Equal(base) ||
		e[1].Disposition != purchase.Duplicate {
		t.Errorf("events = %+v", e)
	}
	if a := r.Attempts; len(a) != 2 || a[0].ID != "a1" || *a[0].Code != 50000 ||
		a[1].Class != purchase.ClassDelivered || *a[1].Code != 0 {
		t.Errorf("attempts = %+v", a)
	}
}

// TikTok's request_id and the parts of an id that people copy find a purchase.
func TestReader_SearchByRequestAndPart(t *testing.T) {
	t.Parallel()
	l := ledgertest.New(t)
	const id, other = "cs_live_a1B2c3D4e5F6g7H8", "cs_live_a1B2xxD4e5F6g7_8"
	l.Buy(id)
	l.Buy(other)
	l.MustSettle(
		ledgertest.Outcome(id, 1, purchase.StatusRetrying, "a1", base),
		ledgertest.Outcome(id, 1, purchase.StatusDelivered, "a2", base.Add(time.Second)),
		ledgertest.Outcome(other, 1, purchase.StatusDead, "a3", base))
	const both = other + " " + id // the same time: by id
	check := func(term, want string) {
		t.Helper()
		if got := strings.Join(listAll(l, report.Filter{Query: term}, 5), " "); got != want {
			t.Errorf("search %q = %q, want %q", term, got, want)
		}
	}
	for term, want := range map[string]string{
		"req-a1": id, "req-a2": id, "req-a3": other, "req-": "",
		"cs_live_a1B2": both, "cs_live_a1B2c": id, "cs_live_a1B": "", "csXliveXa1B2": "", "CS_LIVE_A1B2": "",
		"e5F6g7H8": id, "F6g7H8": id, "6g7H8": "", "e5F6g7_8": other, "e5F6g7X8": "", "cs_live_%%%%": "",
		"cs_live_a1B2c3…6g7H8": "", "cs_live_a1B2c3…F6g7H8": id, "cs_live_a1B2c3...F6g7H8": id,
		"cs_live_a1B2…e5F6g7_8": other, "cs_live_a1B2…nothing": "", "…F6g7H8": "", "cs_live_a1B2…": "", "…": "",
	} {
		check(term, want)
	}
	// The request_id of a purchase is found when its attempts were deleted.
	l.Exec(`DELETE FROM attempts`)
	check("req-a2", id)
}

// An unreadable row is reported and left out of lists, pages, details and outcomes; the others are
// returned.
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

	listed := listAll(l, report.Filter{}, 2)
	if slices.Sort(listed); !slices.Equal(listed, want) {
		t.Errorf("listed = %v, want %v", listed, want)
	}
	if got := skipped(); !slices.Equal(got, []string{"entries cs_3"}) {
		t.Errorf("skipped = %v, want entries cs_3", got)
	}

	histories, err := l.Search(t.Context(), "buyer@example.com", 10)
	if err != nil || len(histories) != len(want) {
		t.Errorf("%d histories, %v, want %d", len(histories), err, len(want))
	}
	if got := skipped(); !slices.Equal(got, []string{"history cs_3"}) {
		t.Errorf("skipped = %v, want history cs_3", got)
	}
	l.Exec(`UPDATE attempts SET at = 'infinity' WHERE checkout_session_id = 'cs_1'`)
	l.Exec(`UPDATE stripe_events SET received_at = 'infinity' WHERE checkout_session_id = 'cs_1'`)
	if histories, err = l.Search(t.Context(), "cs_1", 10); err != nil || len(histories) != 1 ||
		len(histories[0].Attempts) != 0 {
		t.Errorf("histories = %+v, %v, want one without attempts", histories, err)
	}
	skipped()

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
	if got := skipped(); !slices.Equal(got, []string{"outcomes cs_3"}) {
		t.Errorf("skipped = %v, want outcomes cs_3", got)
	}

	l.Exec(`UPDATE purchases SET purchased_at = 'infinity', status = 'skipped'
		WHERE checkout_session_id = 'cs_4'`)
	scope := report.Scope{
		Since: base.Add(-time.Hour), Until: time.Now().AddDate(10, 0, 0), Livemode: true,
		Modes: []string{"subscription"},
	}
	payments, err := l.Payments(t.Context(), scope, []string{"cs_4"})
	if err != nil || len(payments) != 5 {
		t.Errorf("%d payments, %v, want 5", len(payments), err)
	}
	skipped()
	l.Exec(`UPDATE purchases SET status = 'dead', reason = 'refused', finished_at = 'infinity'
		WHERE checkout_session_id = 'cs_4'`)
	p, err := l.Problems(t.Context())
	if err != nil || len(p.Failed) != 2 || !p.Failed[0].Latest.IsZero() || !p.Failed[1].First.IsZero() {
		t.Errorf("problems = %+v, %v, want both dead purchases without a time", p, err)
	}
}

func TestParseCursor_RoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		at := time.UnixMicro(rapid.Int64Range(0, 4e15).Draw(t, "at")).UTC()
		want := report.Position{At: at, ID: rapid.StringMatching(`[A-Za-z0-9_-]{1,80}`).Draw(t, "id")}
		if got, err := report.ParseCursor(want.Cursor()); err != nil || got != want {
			t.Fatalf("position = %+v, %v, want %+v", got, err, want)
		}
		text := rapid.String().Draw(t, "text")
		got, err := report.ParseCursor(text)
		if err == nil && text != "" && got.Cursor() != strings.TrimSpace(text) {
			t.Fatalf("ParseCursor(%q) = %+v, want an error", text, got)
		}
	})
}

func TestParseCursor_RejectsOthers(t *testing.T) {
	t.Parallel()
	tooEarly := report.Position{At: time.UnixMicro(-5), ID: "cs_1"}
	tooLate := report.Position{At: time.Unix(1<<40, 0), ID: "cs_1"}
	for _, cursor := range []string{
		"!", "MTIz", "MS5hLmI", tooEarly.Cursor(), tooLate.Cursor(), strings.Repeat("A", 1000),
	} {
		if got, err := report.ParseCursor(cursor); err == nil {
			t.Errorf("ParseCursor(%q) = %+v, want an error", cursor, got)
		}
	}
}
