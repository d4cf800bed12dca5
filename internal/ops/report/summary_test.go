package report_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/testkit/ledgertest"
)

func TestSummary_CountsFoldedAndUnfolded(t *testing.T) {
	t.Parallel()
	l := ledgertest.New(t)
	l.MustRecord(ledgertest.Receipt("evt_1", "cs_1", purchase.StatusPending, ""))
	l.MustRecord(ledgertest.Receipt("evt_2", "cs_2", purchase.StatusPending, ""))
	l.MustRecord(ledgertest.Receipt("evt_3", "cs_3", purchase.StatusAwaitingPayment, ""))
	rejected := ledgertest.Receipt("evt_4", "cs_4", purchase.StatusRejected, purchase.ReasonInvalidEmail)
	rejected.Purchase.At, rejected.Purchase.AmountMinor = base, nil
	l.MustRecord(rejected)
	test := ledgertest.Receipt("evt_5", "cs_5", purchase.StatusPending, "")
	test.Purchase.Livemode, test.Purchase.Currency = false, "jpy"
	l.MustRecord(test)
	delivered := ledgertest.Outcome("cs_2", 1, purchase.StatusDelivered, "a1", base)
	delivered.Sent = &purchase.Sent{Keys: 1, Minor: new(int64(2999))}
	l.MustSettle(delivered)
	l.Exec(`UPDATE purchases SET finished_at = purchased_at WHERE status = 'delivered'`)
	want := report.Summary{
		Counts: map[purchase.Status]int{
			purchase.StatusPending: 2, purchase.StatusDelivered: 1, purchase.StatusAwaitingPayment: 1,
			purchase.StatusRejected: 1,
		},
		Attention: 1, Oldest: base, OldestNow: base, LastEvent: base.Add(time.Second),
		Groups: []report.Group{
			{Status: purchase.StatusPending, Count: 2},
			{Status: purchase.StatusAwaitingPayment, Count: 1},
			{Status: purchase.StatusDelivered, Count: 1},
			{Status: purchase.StatusRejected, Reason: purchase.ReasonInvalidEmail, Count: 1},
		},
		Coverage: report.Coverage{Of: 3, With: [purchase.MatchKeyKinds]int{3}, Strong: 3},
		Delays:   report.Delays{0: 1},
		Sales: report.Sales{
			Paid: 4, Accepted: 1, Waiting: 2, NewBuyers: 2, Returning: 1, Values: []report.Value{
				{Currency: "JPY", PaidMinor: 2999}, {Currency: "USD", PaidMinor: 5998, AcceptedMinor: 2999},
			},
		},
	}
	want.Steps = []report.Sales{want.Sales}
	for _, form := range []string{"unfolded", "folded"} {
		got, err := l.Summary(t.Context(), ledgertest.Since(base.Add(-time.Hour)), nil)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%s: error %v (-want +got):\n%s", form, err, diff)
		}
		if _, err := l.Fold(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// The accepted value is what was sent: nothing for a trial or an unlisted currency, the net amount if
// configured.
func TestSummary_CountsSentValues(t *testing.T) {
	t.Parallel()
	l := ledgertest.New(t)
	for id, tc := range map[string]struct {
		currency string
		kind     purchase.Kind
		sent     *purchase.Sent
	}{
		"cs_xof":     {"xof", "", &purchase.Sent{Keys: 1}},
		"cs_gel":     {"gel", "", &purchase.Sent{Keys: 1}},
		"cs_usd":     {"usd", "", &purchase.Sent{Keys: 1, Minor: new(int64(2999))}},
		"cs_net":     {"usd", "", &purchase.Sent{Keys: 1, Minor: new(int64(2520))}},
		"cs_without": {"usd", "", &purchase.Sent{Keys: 1}},
		"cs_trial":   {"usd", purchase.KindTrial, &purchase.Sent{Keys: 1}},
		"cs_waiting": {"usd", "", nil},
	} {
		r := ledgertest.Receipt("evt_"+id, id, purchase.StatusPending, "")
		r.Purchase.Currency, r.Purchase.Kind = tc.currency, tc.kind
		l.MustRecord(r)
		if tc.sent != nil {
			o := ledgertest.Outcome(id, 1, purchase.StatusDelivered, "a1", base)
			o.Sent = tc.sent
			l.MustSettle(o)
		}
	}
	for range 2 { // before and after folding
		s, err := l.Summary(t.Context(), ledgertest.Since(base.Add(-time.Hour)), nil)
		if err != nil {
			t.Fatal(err)
		}
		want := []report.Value{
			{Currency: "GEL", PaidMinor: 2999},
			{Currency: "USD", PaidMinor: 4 * 2999, AcceptedMinor: 2999 + 2520},
			{Currency: "XOF", PaidMinor: 2999},
		}
		if diff := cmp.Diff(want, s.Values); diff != "" {
			t.Errorf("values (-want +got):\n%s", diff)
		}
		if s.Accepted != 5 || s.NoValue != 3 {
			t.Errorf("accepted %d, without a value %d, want 5 and 3", s.Accepted, s.NoValue)
		}
		if _, err := l.Fold(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// The other rows are read and folded.
func TestSummary_SkipsUnreadableRow(t *testing.T) {
	t.Parallel()
	l := ledgertest.New(t)
	skipped := l.Skips()
	l.Buy("cs_1")
	l.Exec(`INSERT INTO rollup_changes (at, livemode, status, reason, code, currency, delay, n, minor, keyed,
		key_email, key_phone, key_ttclid, key_ttp, key_ip, key_user_agent, key_page)
		VALUES ('infinity', true, 'dead', 'refused', 'no number', 'usd', -1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0)`)
	s, err := l.Summary(t.Context(), ledgertest.Since(base), nil)
	if err != nil || s.Counts[purchase.StatusPending] != 1 {
		t.Errorf("summary = %+v, %v, want one pending", s.Counts, err)
	}
	if quarters, err := l.Fold(t.Context()); err != nil || quarters != 1 {
		t.Errorf("fold = %d quarter hours, %v, want 1", quarters, err)
	}
	if groups, err := l.Groups(t.Context(), nil); err != nil || len(groups) != 1 {
		t.Errorf("groups = %+v, %v, want one", groups, err)
	}
	foreign := func(row string) bool { return !strings.HasPrefix(row, "rollup ") }
	if rows := skipped(); len(rows) == 0 || slices.ContainsFunc(rows, foreign) {
		t.Errorf("skipped = %q, want rows of the rollup", rows)
	}
}
