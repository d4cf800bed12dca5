package ledger_test

import (
	"fmt"
	"testing"
	"time"

	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
)

// A test purchase has a profile of its own, and changes nothing of the live one; both are found by the
// address.
func TestRecord_TestModeHasItsOwnProfile(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	buy := func(id string, live bool, customer string, at time.Time) purchase.Recorded {
		r := receipt("evt_"+id, id, purchase.StatusPending, "")
		r.Event.Livemode, r.Purchase.Livemode, r.Purchase.Customer, r.Purchase.At = live, live, customer, at
		return l.must(r, purchase.Processed)
	}
	test := buy("cs_test_1", false, "cus_test", base)
	live := buy("cs_live_1", true, "cus_live", base)
	if !test.ProfileCreated || !live.ProfileCreated || test.ProfileID == live.ProfileID {
		t.Errorf("test %+v, live %+v, want two profiles", test, live)
	}
	row := func() string {
		return ask[string](l, `SELECT string_agg(p::text, E'\n' ORDER BY livemode) FROM profiles p WHERE livemode`)
	}
	before := row()
	if again := buy("cs_test_2", false, "cus_test_2", base.Add(time.Hour)); again.ProfileID != test.ProfileID ||
		again.PreviousCustomer != "cus_test" {
		t.Errorf("test again = %+v, want profile %s and the customer before", again, test.ProfileID)
	}
	if after := row(); after != before {
		t.Errorf("the live profile is\n%s, want\n%s", after, before)
	}
	for query, want := range map[string]int{" BUYER@example.com": 3, test.ProfileID: 3, live.ProfileID: 3} {
		entries, err := l.List(t.Context(), report.Filter{Query: query, Limit: 10})
		if err != nil || len(entries) != want {
			t.Errorf("%q finds %d, %v, want %d", query, len(entries), err, want)
		}
	}
	if found, err := l.Search(t.Context(), "buyer@example.com", 10); err != nil || len(found) != 3 {
		t.Errorf("histories: %d, %v, want 3", len(found), err)
	}
	if id, err := l.ProfileByEmail(t.Context(), "buyer@example.com"); err != nil || id != live.ProfileID {
		t.Errorf("profile = %s, %v, want the live one %s", id, err, live.ProfileID)
	}
}

// Another customer id for a known address is reported, within one transaction, too; the profile shows the ids
// of its latest purchase.
func TestRecord_ReportsAnotherCustomer(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	for i, tc := range []struct {
		customer string
		at       time.Duration
		before   string
		shown    string
	}{
		{"cus_1", 0, "", "cus_1"},
		{"cus_1", time.Hour, "", "cus_1"},
		{"", 2 * time.Hour, "", "cus_1"}, // a guest
		{"cus_2", 3 * time.Hour, "cus_1", "cus_2"},
		{"cus_3", time.Minute, "cus_2", "cus_2"}, // an older event that comes late
		{"cus_2", 4 * time.Hour, "", "cus_2"},
	} {
		r := receipt(fmt.Sprintf("evt_%d", i), fmt.Sprintf("cs_%d", i), purchase.StatusPending, "")
		r.Purchase.Customer, r.Purchase.At = tc.customer, base.Add(tc.at)
		if got := l.must(r, purchase.Processed); got.PreviousCustomer != tc.before {
			t.Errorf("purchase %d: customer before = %q, want %q", i, got.PreviousCustomer, tc.before)
		}
		if got := ask[string](l, `SELECT stripe_customer_id FROM profiles`); got != tc.shown {
			t.Errorf("purchase %d: the profile shows %s, want %s", i, got, tc.shown)
		}
	}
}
