package ledger

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// The keys of the advisory locks, all distinct: a leader holds its own for its lifetime. The first two are
// seeds of the hash of session ids and addresses.
const (
	lockSessions = "7101"
	lockEmails   = "7102"
	lockLead     = "7103"
	lockGrants   = "7105"
	lockCheck    = "7106"
	lockCommand  = "7107"

	LockRollup    int64 = 7104 // folding the rollup
	LockEnvelopes int64 = 7120 // dropping old envelopes
)

const sqlTryLock = `SELECT pg_try_advisory_xact_lock($1)`

// TryLock takes an advisory lock until the end of tx and reports whether it did: another replica may have it.
func TryLock(ctx context.Context, tx pgx.Tx, number int64) (taken bool, err error) {
	err = tx.QueryRow(ctx, sqlTryLock, number).Scan(&taken)
	return taken, err
}

// LockAddress keeps webhooks about an e-mail address, of both modes, waiting until the end of tx.
func LockAddress(ctx context.Context, tx pgx.Tx, email string) error {
	keys := sorted([]string{profileKey{true, email}.lock(), profileKey{false, email}.lock()})
	_, err := tx.Exec(ctx, sqlLockEmails, keys)
	return err
}
