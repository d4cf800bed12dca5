package purchase

import "time"

// Class is the meaning of TikTok's answer for the worker.
type Class string

// The classes.
const (
	ClassDelivered Class = "delivered" // accepted, or a duplicate
	ClassRetry     Class = "retry"     // a temporary or unknown failure: retry later
	ClassRate      Class = "rate"      // too many requests: slow down the process
	ClassRefused   Class = "refused"   // a bad request: split it; a single event is dead
	ClassAccess    Class = "access"    // token, permission or URL rejected: pause; no event is dead
	ClassBlocked   Class = "blocked"   // a page in place of TikTok's JSON: one event's fault, or the network's
)

// Answer is the classified result of one request.
type Answer struct {
	Class      Class
	Code       *int          // TikTok's body code, else the HTTP status; nil: no response
	Known      bool          // the code is documented
	Message    string        // TikTok's or the network's error, without secrets or personal data; 300 bytes
	RequestID  string        // TikTok's request_id; "": none
	RetryAfter time.Duration // 0: not requested
	Sent       []Sent        // contents of each delivered event, in order
}

// Attempt is one request to TikTok for one purchase, as the ledger stores it.
type Attempt struct {
	ID         string        // unique, which makes recording idempotent
	Generation int           // of the purchase; 0: not recorded yet
	At         time.Time     // start of the request
	Took       time.Duration // duration of the request
	Class      Class
	Code       *int
	Message    string
	RequestID  string
}
