// Package maintenance changes the ledger for its operator: it makes purchases pending again, prunes what
// ended long ago, drops delivered messages, and removes a customer's data.
package maintenance

import "purchase-relay/internal/ledger"

// Jobs are the maintenance jobs of a ledger. They are safe for concurrent use, and run beside webhooks.
type Jobs struct{ db *ledger.DB }

// New returns the jobs of a ledger.
func New(db *ledger.DB) *Jobs { return &Jobs{db} }
