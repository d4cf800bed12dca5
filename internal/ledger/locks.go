package ledger

// The keys of the advisory locks, all distinct: a leader holds its own for its lifetime. The first two are
// seeds of the hash of session ids and addresses.
const (
	lockSessions  = "7101"
	lockEmails    = "7102"
	lockLead      = "7103"
	lockRollup    = "7104"
	lockGrants    = "7105"
	lockCheck     = "7106"
	lockCommand   = "7107"
	lockEnvelopes = "7120"
)
