package ledger

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// The keys of the advisory locks. They are distinct, because a leader holds its lock for its lifetime. The
// first two are seeds for the hashes of session ids and e-mail addresses.
const (
	lockSessions = "7101"
	lockEmails   = "7102"
	lockGrants   = "7105"
	lockStats    = "7130" // recording TikTok's counts

	lockNotifier        int64 = 7103
	lockPeriodicCheck   int64 = 7106
	lockBackfillCommand int64 = 7107

	LockRollup    int64 = 7104 // folding the rollup
	LockEnvelopes int64 = 7120 // dropping old envelopes
)

const sqlTryLock = `SELECT pg_try_advisory_xact_lock($1)`

// TryLock takes an advisory lock until tx ends. It returns false if another session holds the lock.
func TryLock(ctx context.Context, tx pgx.Tx, key int64) (locked bool, err error) {
	err = tx.QueryRow(ctx, sqlTryLock, key).Scan(&locked)
	return locked, err
}

// LockAddress blocks webhooks for an e-mail address, in both modes, until tx ends.
func LockAddress(ctx context.Context, tx pgx.Tx, email string) error {
	keys := sorted([]string{profileKey{true, email}.lockKey(), profileKey{false, email}.lockKey()})
	_, err := tx.Exec(ctx, sqlLockEmails, keys)
	return err
}
