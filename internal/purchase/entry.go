package purchase

import (
	"encoding/base64"
	"errors"
	"strconv"
	"strings"
	"time"
)

// Entry is one row of the ledger as the API tells it: the field names are the ledger's columns. The buyer's address and the
// message itself are not part of it.
type Entry struct {
	ID             string     `json:"checkout_session_id"`
	Status         Status     `json:"status"`
	Reason         Reason     `json:"reason"`
	ProfileID      *string    `json:"profile_id"`
	Mode           string     `json:"mode"`
	Livemode       bool       `json:"livemode"`
	AmountMinor    *int64     `json:"amount_minor"`
	Currency       *string    `json:"currency"`
	PurchasedAt    *time.Time `json:"purchased_at"`
	Customer       *string    `json:"stripe_customer_id"`
	Subscription   *string    `json:"stripe_subscription_id"`
	Generation     int        `json:"generation"`
	FirstPublished *time.Time `json:"first_published_at"`
	Published      *time.Time `json:"published_at"`
	Sequence       *int64     `json:"stream_sequence"`
	Swept          *time.Time `json:"swept_at"`
	Attempts       int        `json:"attempts"`
	LastAttempt    *time.Time `json:"last_attempt_at"`
	LastClass      *string    `json:"last_class"`
	LastCode       *int       `json:"last_code"`
	LastError      *string    `json:"last_error"`
	RequestID      *string    `json:"tiktok_request_id"`
	Finished       *time.Time `json:"finished_at"`
	Created        time.Time  `json:"created_at"`
	Updated        time.Time  `json:"updated_at"`
	Kind           Kind       `json:"kind"`
	TrialSession   *string    `json:"trial_session_id"`
	SentMinor      *int64     `json:"sent_minor"` // the value that TikTok accepted
}

// At is the purchase's time: paid, or first heard of while it is unpaid.
func (e *Entry) At() time.Time {
	if e.PurchasedAt != nil {
		return *e.PurchasedAt
	}
	return e.Created
}

// Position is where this entry stands in a list.
func (e *Entry) Position() Position { return Position{At: e.At(), ID: e.ID} }

// Filter chooses entries; its zero value means all of them. Lists go from the newest to the oldest.
type Filter struct {
	Query    string // exactly a session's, event's, customer's or profile's id, or an e-mail address; "": any
	Status   Status
	Livemode *bool
	Reason   Reason
	Code     *int      // TikTok's last code
	NoCode   bool      // only those without any code
	Day      time.Time // a day of UTC
	After    Position  // zero: from the newest on
	Limit    int       // above 0
}

// Position is a place in a list from the newest to the oldest.
type Position struct {
	At time.Time
	ID string
}

// Cursor writes a position as an opaque text.
func (p Position) Cursor() string {
	return base64.RawURLEncoding.EncodeToString([]byte(strconv.FormatInt(p.At.UnixMicro(), 10) + "." + p.ID))
}

var errCursor = errors.New("the cursor is none of ours: leave it out to start at the newest")

// ParseCursor reads a position back. "" is the zero position.
func ParseCursor(text string) (Position, error) {
	if text == "" {
		return Position{}, nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || len(raw) > 300 {
		return Position{}, errCursor
	}
	micros, id, ok := strings.Cut(string(raw), ".")
	at, err := strconv.ParseInt(micros, 10, 64)
	if !ok || err != nil || !ValidID(id) || at < 0 || at > maxMicros {
		return Position{}, errCursor
	}
	return Position{At: time.UnixMicro(at).UTC(), ID: id}, nil
}

// maxMicros is the end of the year 9999.
const maxMicros = 253402300799_999999

// ParseStatus reads a status; "" is "".
func ParseStatus(text string) (Status, error) {
	if text == "" {
		return "", nil
	}
	names := make([]string, 0, len(Statuses()))
	for _, s := range Statuses() {
		if string(s) == text {
			return s, nil
		}
		names = append(names, string(s))
	}
	return "", errors.New("status is one of " + strings.Join(names, ", "))
}
