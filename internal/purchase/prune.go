package purchase

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"
)

// The least ages of what may be pruned.
const (
	// LeastPruneAge keeps de-duplication: Stripe lists an event for 30 days, and may send it again by hand that long.
	LeastPruneAge = 35 * 24 * time.Hour
	// LeastAttemptAge is past RETRY_MAX_AGE's limit: an attempt's outcome may be told again until then, and is counted once.
	LeastAttemptAge = 7 * 24 * time.Hour
	// EnvelopeAge is how long a delivered purchase keeps its message: TikTok de-duplicates for 48 hours, and
	// nothing is sent again.
	EnvelopeAge = 48 * time.Hour
)

// Pruning says what leaves the ledger: purchases that ended before a time, with their attempts and Stripe's events; events that no
// purchase is left of; and, where they have an age of their own, attempts of finished purchases that stay.
//
// A purchase that Stripe spoke of since then stays. So does everything that is on its way, and, unless it is named in Also, what waits
// for a person (dead, rejected) or for Stripe (awaiting_payment).
type Pruning struct {
	Before   time.Time
	Attempts time.Time // attempts before it go, too; not after Before: they go with their purchase
	Also     []Status
}

// Prunable are the statuses that leave without being named: nothing more will come of them.
func Prunable() []Status { return []Status{StatusDelivered, StatusSkipped, StatusPaymentFailed} }

// PrunableByName are the statuses that leave only when they are named.
func PrunableByName() []Status {
	return []Status{StatusDead, StatusRejected, StatusAwaitingPayment}
}

// Statuses are those that leave.
func (p *Pruning) Statuses() []Status { return append(Prunable(), p.Also...) }

// Staying are the statuses that might leave by name and were not named.
func (p *Pruning) Staying() []Status {
	return slices.DeleteFunc(PrunableByName(), func(s Status) bool { return slices.Contains(p.Also, s) })
}

// Check says what is wrong with a pruning.
func (p *Pruning) Check(now time.Time) error {
	switch {
	case p.Before.After(now.Add(-LeastPruneAge)):
		return fmt.Errorf("purchases and events stay for at least %d days: Stripe may send an event again for 30, and it must be known", int(LeastPruneAge.Hours()/24))
	case p.Attempts.After(now.Add(-LeastAttemptAge)):
		return fmt.Errorf("attempts stay for at least %d days", int(LeastAttemptAge.Hours()/24))
	}
	for _, s := range p.Also {
		if !slices.Contains(PrunableByName(), s) {
			return errors.New("only dead, rejected and awaiting_payment can be pruned by name; what is on its way never is")
		}
	}
	return nil
}

// Pruned counts what left the ledger, or would.
type Pruned struct {
	Groups   []Group // purchases by status and reason, in this order; without codes
	Attempts int
	Events   int
	Trials   int // what was kept to join trials and their first payments
}

// Purchases is how many of them there are.
func (p *Pruned) Purchases() (n int) {
	for _, g := range p.Groups {
		n += g.Count
	}
	return n
}

// Add counts n more purchases that stand alike.
func (p *Pruned) Add(status Status, reason Reason, n int) {
	for i := range p.Groups {
		if g := &p.Groups[i]; g.Status == status && g.Reason == reason {
			g.Count += n
			return
		}
	}
	order := append(Prunable(), PrunableByName()...)
	p.Groups = append(p.Groups, Group{Status: status, Reason: reason, Count: n})
	slices.SortFunc(p.Groups, func(a, b Group) int {
		return cmp.Or(slices.Index(order, a.Status)-slices.Index(order, b.Status), cmp.Compare(a.Reason, b.Reason))
	})
}
