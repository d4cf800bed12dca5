// Package maintenance changes the ledger for its operator: it replays, prunes and forgets, and drops the
// messages of delivered purchases.
package maintenance

import "purchase-relay/internal/ledger"

// Jobs are the maintenance jobs of a ledger. They are safe for concurrent use and run beside webhooks.
type Jobs struct{ db *ledger.DB }

// New returns the jobs of a ledger.
func New(db *ledger.DB) *Jobs { return &Jobs{db} }
