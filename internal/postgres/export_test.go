package postgres

// Settled waits until everything that was to be recorded is, or is not.
func (db *DB) Settled() { db.records.close() }
