package purchase_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"purchase-relay/internal/purchase"
)

func TestPruningKeepsDeduplication(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	days := func(n int) time.Time { return now.AddDate(0, 0, -n) }
	for name, tc := range map[string]struct {
		p  purchase.Pruning
		ok bool
	}{
		"35 days":              {purchase.Pruning{Before: days(35)}, true},
		"34 days":              {purchase.Pruning{Before: days(34)}, false},
		"attempts of a week":   {purchase.Pruning{Before: days(90), Attempts: days(7)}, true},
		"attempts of 6 days":   {purchase.Pruning{Before: days(90), Attempts: days(6)}, false},
		"dead ones by name":    {purchase.Pruning{Before: days(90), Also: purchase.PrunableByName()}, true},
		"what is on its way":   {purchase.Pruning{Before: days(90), Also: []purchase.Status{purchase.StatusRetrying}}, false},
		"a status unheard of":  {purchase.Pruning{Before: days(90), Also: []purchase.Status{"old"}}, false},
		"a time still to come": {purchase.Pruning{Before: now.Add(time.Hour)}, false},
	} {
		if err := tc.p.Check(now); (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Every status either leaves, or leaves by name, or is on its way and never does.
func TestWhatIsOnItsWayIsNeverPruned(t *testing.T) {
	all := purchase.Pruning{Also: purchase.PrunableByName()}
	if left := all.Staying(); len(left) > 0 {
		t.Errorf("all are named, and yet stay: %v", left)
	}
	prunable := make(map[purchase.Status]bool)
	for _, s := range all.Statuses() {
		prunable[s] = true
	}
	for _, s := range purchase.Statuses() {
		onItsWay := s == purchase.StatusPending || s == purchase.StatusPublished || s == purchase.StatusRetrying
		if prunable[s] == onItsWay {
			t.Errorf("%s: prunable %t", s, prunable[s])
		}
	}
	some := purchase.Pruning{Also: []purchase.Status{purchase.StatusDead}}
	if diff := cmp.Diff([]purchase.Status{purchase.StatusRejected, purchase.StatusAwaitingPayment}, some.Staying()); diff != "" {
		t.Error(diff)
	}
}

func TestPrunedAddsUp(t *testing.T) {
	var p purchase.Pruned
	p.Add(purchase.StatusSkipped, "test_purchase", 1)
	p.Add(purchase.StatusSkipped, "no_payment", 2)
	p.Add(purchase.StatusDelivered, "", 3)
	p.Add(purchase.StatusSkipped, "no_payment", 4)
	want := []purchase.Group{{Status: "delivered", Count: 3}, {Status: "skipped", Reason: "no_payment", Count: 6}, {Status: "skipped", Reason: "test_purchase", Count: 1}}
	if diff := cmp.Diff(want, p.Groups); diff != "" || p.Purchases() != 10 {
		t.Errorf("%d in all\n%s", p.Purchases(), diff)
	}
}
