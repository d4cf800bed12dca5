package purchase

import "time"

// Class is what an answer of TikTok means for what the worker does next.
type Class string

// The classes.
const (
	ClassDelivered Class = "delivered" // accepted, or known already
	ClassRetry     Class = "retry"     // nobody's fault, or unknown: again later
	ClassRate      Class = "rate"      // too many requests: the whole process slows down
	ClassRefused   Class = "refused"   // the request is bad: split it; a single event is dead
	ClassAccess    Class = "access"    // token, permission or address: stop and wait, the event is not to blame
	ClassBlocked   Class = "blocked"   // a page in place of TikTok's answer: one event's fault, or every event's
)

// Answer is one call's result, already classified.
type Answer struct {
	Class      Class
	Code       *int          // TikTok's body code, else the HTTP status, else nil (no answer at all)
	Known      bool          // whether the code stands in the table of the contract
	Message    string        // TikTok's or the network's words, without secrets and personal data, at most 300 bytes
	RequestID  string        // TikTok's request_id, "" when the answer had none
	RetryAfter time.Duration // asked for by the server; 0: nothing asked
	Sent       []Sent        // of a delivered request: what each event carried, in their order
}

// Attempt is one call to TikTok about one purchase, as the ledger keeps it.
type Attempt struct {
	ID         string        // unique: makes recording idempotent
	Generation int           // of the purchase; 0 before it is on the ledger
	At         time.Time     // when the call began
	Took       time.Duration // how long it lasted
	Class      Class
	Code       *int
	Message    string
	RequestID  string
}
