package message

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"purchase-relay/internal/logsafe"
	"purchase-relay/internal/purchase"
)

// Limits of a worker's reports. A compromised or broken worker may publish anything on its subjects and
// must not make the ledger or its pages unusable.
const (
	maxTook      = 24 * time.Hour
	maxSequence  = 1 << 53 // largest exact integer of a JSON number
	maxOutcomes  = 10_000  // per message
	maxReason    = 40
	maxMessage   = 1000
	maxRequestID = 200
	maxAttempts  = 1 << 31
	maxPage      = 2048 // bytes, as in package purchase

	clockSkew     = 5 * time.Minute // between the clocks of a worker and the queue
	maxPublishAge = 48 * time.Hour  // of an outcome that the worker could not publish earlier
)

// Outcome is the worker's report on one purchase: a failed attempt to be retried, or the final result.
type Outcome struct {
	EventID    string          `json:"event_id"`
	Generation int             `json:"generation"`
	Result     purchase.Status `json:"result"` // retrying, delivered, dead or skipped
	Reason     purchase.Reason `json:"reason,omitempty"`
	At         time.Time       `json:"at"`
	Attempt    *Attempt        `json:"attempt,omitempty"`  // nil: nothing was sent
	Sequence   uint64          `json:"sequence,omitempty"` // stream sequence of the purchase; 0: unknown
	Taken      time.Time       `json:"taken,omitzero"`     // when the stream stored the purchase
	Sent       *purchase.Sent  `json:"sent,omitempty"`     // of a delivered purchase
	Next       time.Time       `json:"next,omitzero"`      // when the queue redelivers a retrying purchase
}

// Attempt is the wire form of purchase.Attempt.
type Attempt struct {
	ID        string         `json:"id"`
	At        time.Time      `json:"at"`
	TookMS    int64          `json:"took_ms"`
	Class     purchase.Class `json:"class"`
	Code      *int           `json:"code,omitempty"`
	Message   string         `json:"message,omitempty"`
	RequestID string         `json:"request_id,omitempty"`
}

// NewAttempt converts an attempt to its wire form.
func NewAttempt(a purchase.Attempt) *Attempt {
	return &Attempt{
		ID: a.ID, At: a.At, TookMS: a.Took.Milliseconds(), Class: a.Class, Code: a.Code,
		Message: a.Message, RequestID: a.RequestID,
	}
}

// EncodeOutcome encodes one outcome for EncodeOutcomes.
func EncodeOutcome(o Outcome) ([]byte, error) {
	if err := o.check(); err != nil {
		return nil, fmt.Errorf("encode outcome of %q: %w", o.EventID, err)
	}
	return json.Marshal(o)
}

// EncodeOutcomes joins encoded outcomes into one message. A request to TikTok settles hundreds of
// purchases, and single messages would double the queue's load. The message needs no de-duplication ID:
// recording is idempotent.
func EncodeOutcomes(encoded [][]byte) []byte {
	message := fmt.Appendf(nil, `{"version":%d,"outcomes":[`, Version)
	return append(append(message, bytes.Join(encoded, []byte{','})...), "]}"...)
}

// DecodeOutcomes decodes a message and returns its valid outcomes. The error is ErrNewer or describes the
// first invalid outcome.
func DecodeOutcomes(data []byte) (valid []Outcome, err error) {
	var message struct {
		Version  int       `json:"version"`
		Outcomes []Outcome `json:"outcomes"`
	}
	if err := decode(data, &message, &message.Version); err != nil {
		return nil, err
	}
	if len(message.Outcomes) == 0 {
		return nil, errors.New("outcomes is empty")
	}
	if len(message.Outcomes) > maxOutcomes {
		message.Outcomes, err = message.Outcomes[:maxOutcomes], errors.New("outcomes has too many elements")
	}
	for _, o := range message.Outcomes {
		if invalid := o.check(); invalid != nil {
			if err == nil {
				err = invalid
			}
			continue
		}
		if a := o.Attempt; a != nil {
			a.Message, a.RequestID = logsafe.Text(a.Message, maxMessage), logsafe.Text(a.RequestID, maxRequestID)
		}
		valid = append(valid, o)
	}
	return valid, err
}

func (o *Outcome) check() error {
	switch o.Result {
	case purchase.StatusRetrying, purchase.StatusDelivered, purchase.StatusDead, purchase.StatusSkipped:
	default:
		return fmt.Errorf("result %.40q is not retrying, delivered, dead or skipped", o.Result)
	}
	switch {
	case !purchase.ValidID(o.EventID):
		return errors.New("event_id is malformed")
	case o.At.IsZero():
		return errors.New("at is missing")
	case o.Generation < 1 || o.Generation > MaxGeneration:
		return errors.New("generation is out of range")
	case o.Sequence > maxSequence:
		return errors.New("sequence is out of range")
	case !validLabel(string(o.Reason)):
		return errors.New("reason is malformed")
	}
	if s := o.Sent; s != nil {
		switch {
		case s.Keys < 0 || s.Keys >= 1<<purchase.MatchKeyKinds:
			return errors.New("sent.keys is out of range")
		case s.Minor != nil && *s.Minor < 0:
			return errors.New("sent.minor is negative")
		case s.Page != "" && !ValidPage(s.Page):
			return errors.New("sent.page is malformed")
		}
	}
	if o.Attempt != nil {
		return o.Attempt.check()
	}
	return nil
}

func (a *Attempt) check() error {
	switch {
	case !purchase.ValidID(a.ID):
		return errors.New("attempt.id is malformed")
	case a.At.IsZero():
		return errors.New("attempt.at is missing")
	case a.TookMS < 0 || a.TookMS > maxTook.Milliseconds():
		return errors.New("attempt.took_ms is out of range")
	case a.Code != nil && int(int32(*a.Code)) != *a.Code: //nolint:gosec // checks for 32 bits
		return errors.New("attempt.code is out of range")
	case !validLabel(string(a.Class)):
		return errors.New("attempt.class is malformed")
	case !storable(a.Message, maxMessage), !storable(a.RequestID, maxRequestID):
		return errors.New("attempt.message or attempt.request_id cannot be stored")
	}
	return nil
}

// ValidPage reports whether raw is a valid default page: an absolute http(s) URL without a user, of at most
// 2,048 bytes. The ledger stores it, and the dashboard shows it.
func ValidPage(raw string) bool {
	u, err := url.Parse(raw) // rejects control characters
	return err == nil && len(raw) <= maxPage && utf8.ValidString(raw) && u.Host != "" && u.User == nil &&
		(u.Scheme == "https" || u.Scheme == "http")
}

// validLabel reports whether s is a reason or a class: at most 40 lower-case letters, digits and underscores.
func validLabel(s string) bool {
	return len(s) <= maxReason && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789_") == ""
}

// storable reports whether Postgres can store s: bounded and without NUL. encoding/json replaces invalid
// UTF-8.
func storable(s string, max int) bool { return len(s) <= max && !strings.Contains(s, "\x00") }

// WithValidTimes returns the outcome with implausible times replaced by stored, the time at which the
// stream stored the outcome. A time is implausible after stored, or before it by more than maxPublishAge.
// An implausible next attempt becomes unknown.
// Otherwise a wrong or forged clock could move a purchase out of the ranges of pages, the sweeper and
// prune.
func (o Outcome) WithValidTimes(stored time.Time) Outcome {
	implausible := func(at time.Time) bool {
		return at.After(stored.Add(clockSkew)) || at.Before(stored.Add(-maxPublishAge))
	}
	if implausible(o.At) {
		o.At = stored
	}
	if o.Next.Before(stored.Add(-clockSkew)) || o.Next.After(stored.Add(maxPublishAge)) {
		o.Next = time.Time{}
	}
	if o.Taken.After(stored.Add(clockSkew)) {
		o.Taken, o.Sequence = time.Time{}, 0
	}
	if o.Attempt != nil && implausible(o.Attempt.At) {
		attempt := *o.Attempt
		attempt.At = stored
		o.Attempt = &attempt
	}
	return o
}

// DeadLetter is a purchase that will not be retried, with the cause.
type DeadLetter struct {
	Version        int             `json:"version"`
	EventID        string          `json:"event_id"`
	Generation     int             `json:"generation"`
	Reason         purchase.Reason `json:"reason"`
	Code           *int            `json:"code,omitempty"`
	Message        string          `json:"message,omitempty"`
	RequestID      string          `json:"request_id,omitempty"`
	Attempts       int             `json:"attempts"` // number of deliveries, a hint; the ledger counts attempts
	FirstPublished time.Time       `json:"first_published"`
	DiedAt         time.Time       `json:"died_at"`
	Envelope       json.RawMessage `json:"envelope"`
}

// EncodeDeadLetter encodes a dead letter.
func EncodeDeadLetter(d DeadLetter) ([]byte, error) {
	d.Version = Version
	d.Message, d.RequestID = logsafe.Text(d.Message, maxMessage), logsafe.Text(d.RequestID, maxRequestID)
	if err := d.check(); err != nil {
		return nil, fmt.Errorf("encode dead letter of %q: %w", d.EventID, err)
	}
	return json.Marshal(d)
}

func (d *DeadLetter) check() error {
	switch {
	case !purchase.ValidID(d.EventID):
		return errors.New("event_id is malformed")
	case d.Generation < 1 || d.Generation > MaxGeneration:
		return errors.New("generation is out of range")
	case d.Attempts < 0 || d.Attempts >= maxAttempts:
		return errors.New("attempts is out of range")
	case d.Reason == "" || !validLabel(string(d.Reason)):
		return errors.New("reason is malformed")
	case d.DiedAt.IsZero():
		return errors.New("died_at is missing")
	}
	return nil
}
