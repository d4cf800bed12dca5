package purchase

import "time"

// Summary is the ledger at a glance, over a range of time and a mode.
type Summary struct {
	Counts    map[Status]int // purchases by status; a status without any may be missing
	Attention int            // dead or rejected: a person must decide
	Oldest    time.Time      // the oldest purchase that is on its way (pending, published, retrying); zero: none
	Values    []Value        // by currency, in the currency's order
}

// Deaths are the purchases that died lately of one reason and are dead still.
type Deaths struct {
	Reason        Reason
	Count         int
	First, Latest time.Time // when the first and the last of them was recorded as dead
	IDs           []string  // some, the latest first
}

// Value is the money of one currency, in its smallest unit as Stripe counts it.
type Value struct {
	Currency      string `json:"currency"` // upper case
	PaidMinor     int64  `json:"paid_minor"`
	AcceptedMinor int64  `json:"accepted_minor"` // accepted by TikTok
}
