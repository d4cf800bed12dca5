package ledger

// The numbers of the advisory locks, no two alike: the leader holds its own as long as it lives. The first two are seeds of the
// keys' hash.
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
