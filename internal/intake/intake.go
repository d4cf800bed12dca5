// Package intake is step 1: a verified event of Stripe becomes a purchase, is recorded once together with the
// customer's profile, and is answered 200 after the commit, never before.
//
// Its promise: a webhook answered 200 is on the ledger. Nothing here waits for the queue or for TikTok.
package intake

import (
	"context"

	"purchase-relay/internal/purchase"
)

// Ledger records what an event says. Implementations owe: one transaction that is committed when Record
// returns nil; an event, and a session's same or earlier state, recorded once however often and concurrently
// they come (then Duplicate); an error means that the caller may try the same event again.
type Ledger interface {
	Record(ctx context.Context, r purchase.Receipt) (purchase.Recorded, error)
}
