// Package message is what crosses NATS JetStream between the two binaries: streams, subjects,
// headers and the versioned messages. A released golden file under testdata is never edited: what an older
// binary wrote must decode.
//
// Ingest publishes an Envelope on purchases.live.<id> or purchases.test.<id>; the worker answers with
// Outcomes on outcomes, a DeadLetter on purchases.dead.<id> and its WorkerState on workers.<instance>.
package message

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"purchase-relay/internal/logsafe"
	"purchase-relay/internal/purchase"
)

// Streams and durable consumers.
const (
	StreamPurchases     = "PURCHASES"
	StreamPurchasesDead = "PURCHASES_DEAD"
	StreamOutcomes      = "OUTCOMES"
	ConsumerWorker      = "worker"   // on PURCHASES
	ConsumerRecorder    = "recorder" // on OUTCOMES
)

// Subjects. PURCHASES binds the two wildcards and not "purchases.>", which would overlap the dead letters'.
const (
	SubjectLive     = "purchases.live."
	SubjectTest     = "purchases.test."
	SubjectDead     = "purchases.dead."
	SubjectOutcomes = "outcomes"
	SubjectWorkers  = "workers."
)

// Headers of a purchase message.
const (
	// HeaderMsgID is NATS' own de-duplication header: "<session>:<generation>".
	HeaderMsgID = "Nats-Msg-Id"
	// HeaderFirstPublished is when the purchase was first handed to the queue, RFC 3339. Kept on the ledger,
	// renewed by a replay alone: the age limit counts from it.
	HeaderFirstPublished = "Purchase-First-Published"
)

// The versions of messages: Version is what everything bears that a worker of the first version reads rightly. VersionEvent is
// borne by envelopes alone, by those that such a worker would send wrongly, because it would pass over the event's name or the
// limit on the use of data. VersionOutcomes is a list of outcomes; version 1 on that subject is an outcome alone, and still read.
const (
	Version         = 1
	VersionEvent    = 2
	VersionOutcomes = 2
)

// ErrNewer marks a message of a newer version than this binary knows: leave it to a newer one.
var ErrNewer = errors.New("the message is of a newer version than this binary; update it")

// Envelope is a purchase on its way to TikTok. It is encoded once and stored in the ledger: the relay, the
// sweeper and a replay publish the same bytes, so that TikTok gets the same body each time. It holds no
// plain personal data.
type Envelope struct {
	Version     int                `json:"version"`
	EventID     string             `json:"event_id"` // the checkout session's id
	Livemode    bool               `json:"livemode"`
	PurchasedAt int64              `json:"purchased_at"`           // Unix seconds, UTC
	AmountMinor *int64             `json:"amount_minor,omitempty"` // smallest unit, as Stripe counts it
	Currency    string             `json:"currency,omitempty"`     // lower case
	Keys        purchase.MatchKeys `json:"match_keys"`

	Event          string            `json:"event,omitempty"` // the event's name where it is not the worker's own
	LimitedDataUse bool              `json:"limited_data_use,omitempty"`
	Content        *purchase.Content `json:"content,omitempty"`
}

// EncodeEnvelope encodes a purchase for the queue.
func EncodeEnvelope(p *purchase.Purchase) ([]byte, error) {
	e := Envelope{
		Version: Version, EventID: p.ID, Livemode: p.Livemode, PurchasedAt: p.At.Unix(),
		AmountMinor: p.AmountMinor, Currency: p.Currency, Keys: p.Keys,
		Event: p.EventName, LimitedDataUse: p.LimitedDataUse, Content: p.Content,
	}
	if p.Kind == purchase.KindTrial { // no money moved: its event has no value, not one of 0
		e.AmountMinor, e.Currency = nil, ""
	}
	if e.Event != "" || e.LimitedDataUse {
		e.Version = VersionEvent
	}
	if err := e.check(); err != nil {
		return nil, fmt.Errorf("encode purchase %q: %w", p.ID, err)
	}
	return json.Marshal(e)
}

// DecodeEnvelope reads a purchase message and checks it: a consumer trusts nobody's messages, because the
// server does not check reply subjects for the right to publish. The error is ErrNewer or says what is wrong.
func DecodeEnvelope(data []byte) (Envelope, error) {
	var e Envelope
	if err := decode(data, &e, &e.Version, VersionEvent); err != nil {
		return Envelope{}, err
	}
	return e, e.check()
}

func (e *Envelope) check() error {
	switch k := e.Keys; {
	case !purchase.ValidID(e.EventID):
		return errors.New("event_id has no usable form")
	case e.PurchasedAt <= 0:
		return errors.New("purchased_at is not a time")
	case e.Currency != "" && !purchase.ValidCurrency(e.Currency):
		return errors.New("currency has no usable form")
	case e.AmountMinor != nil && *e.AmountMinor < 0:
		return errors.New("amount_minor is negative")
	case !hashOrNone(k.Email), !hashOrNone(k.Phone), !hashOrNone(k.ExternalID), !hashOrNone(k.FirstName), !hashOrNone(k.LastName), !hashOrNone(k.Zip):
		return errors.New("a match key is not hashed")
	case e.Event != "" && !ValidEventName(e.Event):
		return errors.New("event has no usable form")
	}
	return nil
}

// ValidEventName says whether a text has the form of TikTok's names of events: StartTrial, CompletePayment.
func ValidEventName(name string) bool {
	return purchase.ValidID(name) && len(name) <= 50 && !strings.ContainsAny(name, "_-")
}

func hashOrNone(s string) bool { return s == "" || purchase.IsHash(s) }

// Subject returns the subject of a purchase.
func Subject(id string, livemode bool) string {
	if livemode {
		return SubjectLive + id
	}
	return SubjectTest + id
}

// MsgID returns the message id of a purchase's generation. The generation is raised by a replay or a sweep,
// because inside the stream's window a second send under the old id would be swallowed.
func MsgID(id string, generation int) string { return id + ":" + strconv.Itoa(generation) }

// Generation reads the generation back from a message id; 1 when it has none.
func Generation(msgID string) int {
	_, after, _ := strings.Cut(msgID, ":")
	if n, err := strconv.Atoi(after); err == nil && n > 0 && n <= MaxGeneration {
		return n
	}
	return 1
}

// Outcome is the worker's report about one purchase: an attempt that is to be retried, or the end.
type Outcome struct {
	Version    int             `json:"version"`
	EventID    string          `json:"event_id"`
	Generation int             `json:"generation"`
	Result     purchase.Status `json:"result"` // retrying, delivered, dead or skipped
	Reason     purchase.Reason `json:"reason,omitempty"`
	At         time.Time       `json:"at"`
	Attempt    *Attempt        `json:"attempt,omitempty"`  // nil when nothing was sent
	Sequence   uint64          `json:"sequence,omitempty"` // the purchase's place in its stream, 0: unknown
	Taken      time.Time       `json:"taken,omitzero"`     // when the stream took it
	Sent       *purchase.Sent  `json:"sent,omitempty"`     // of a delivered one
}

// Attempt is purchase.Attempt on the wire.
type Attempt struct {
	ID        string         `json:"id"`
	At        time.Time      `json:"at"`
	TookMS    int64          `json:"took_ms"`
	Class     purchase.Class `json:"class"`
	Code      *int           `json:"code,omitempty"`
	Message   string         `json:"message,omitempty"`
	RequestID string         `json:"request_id,omitempty"`
}

// NewAttempt puts an attempt on the wire.
func NewAttempt(a purchase.Attempt) *Attempt {
	return &Attempt{
		ID: a.ID, At: a.At, TookMS: a.Took.Milliseconds(), Class: a.Class, Code: a.Code,
		Message: a.Message, RequestID: a.RequestID,
	}
}

// EncodeOutcome encodes an outcome.
func EncodeOutcome(o Outcome) ([]byte, error) {
	o.Version = Version
	if err := o.check(); err != nil {
		return nil, fmt.Errorf("encode outcome of %q: %w", o.EventID, err)
	}
	return json.Marshal(o)
}

// EncodeOutcomes puts encoded outcomes into one message. One request to TikTok ends hundreds of purchases, and a message for each
// would cost the queue as much as the purchases themselves. The message has no id for the stream to know it by: the ledger takes
// the same outcome any number of times.
func EncodeOutcomes(encoded [][]byte) []byte {
	message := fmt.Appendf(nil, `{"version":%d,"outcomes":[`, VersionOutcomes)
	return append(append(message, bytes.Join(encoded, []byte{','})...), "]}"...)
}

// DecodeOutcomes reads a message of outcomes, and checks each. The error is ErrNewer or says what is wrong with the first of
// those that are not returned.
func DecodeOutcomes(data []byte) (list []Outcome, err error) {
	var message struct {
		Outcome

		Outcomes []Outcome `json:"outcomes"`
	}
	if err := decode(data, &message, &message.Version, VersionOutcomes); err != nil {
		return nil, err
	}
	if message.Version < VersionOutcomes {
		message.Outcomes = []Outcome{message.Outcome}
	}
	if len(message.Outcomes) > maxOutcomes {
		message.Outcomes, err = message.Outcomes[:maxOutcomes], errors.New("the message has too many outcomes")
	}
	for _, o := range message.Outcomes {
		if wrong := o.check(); wrong == nil {
			if o.Attempt != nil {
				o.Attempt.readable()
			}
			list = append(list, o)
		} else if err == nil { // one of them tells it
			err = wrong
		}
	}
	if len(message.Outcomes) == 0 {
		err = errors.New("the message has no outcome")
	}
	return list, err
}

func (o *Outcome) check() error {
	switch o.Result {
	case purchase.StatusRetrying, purchase.StatusDelivered, purchase.StatusDead, purchase.StatusSkipped:
	default:
		return fmt.Errorf("result %.40q is none of retrying, delivered, dead, skipped", o.Result)
	}
	switch {
	case !purchase.ValidID(o.EventID):
		return errors.New("event_id has no usable form")
	case o.At.IsZero():
		return errors.New("at is missing")
	}
	if s := o.Sent; s != nil {
		switch {
		case s.Keys < 0 || s.Keys >= 1<<purchase.MatchKeyKinds:
			return errors.New("sent.keys is out of range")
		case s.Minor != nil && *s.Minor < 0:
			return errors.New("sent.minor is negative")
		case s.Page != "" && !ValidPage(s.Page):
			return errors.New("sent.page has no usable form")
		}
	}
	if a := o.Attempt; a != nil {
		switch {
		case !purchase.ValidID(a.ID):
			return errors.New("attempt.id has no usable form")
		case a.At.IsZero():
			return errors.New("attempt.at is missing")
		}
	}
	return o.checkBounds()
}

// maxPage bounds a page's address, in bytes, as purchase does.
const maxPage = 2048

// ValidPage reports whether a text can be the worker's default page: an absolute http(s) URL of at most 2,048
// bytes, without a user. The ledger keeps it, and the dashboard shows it.
func ValidPage(raw string) bool {
	u, err := url.Parse(raw) // refuses control characters
	return err == nil && len(raw) <= maxPage && utf8.ValidString(raw) && u.Host != "" && u.User == nil &&
		(u.Scheme == "https" || u.Scheme == "http")
}

// storable says whether Postgres can keep a text: bounded, without NUL. encoding/json has replaced invalid
// UTF-8 before.
func storable(s string, most int) bool { return len(s) <= most && !strings.Contains(s, "\x00") }

// DeadLetter is a purchase given up on, with what an operator needs to judge it.
type DeadLetter struct {
	Version        int             `json:"version"`
	EventID        string          `json:"event_id"`
	Generation     int             `json:"generation"`
	Reason         purchase.Reason `json:"reason"`
	Code           *int            `json:"code,omitempty"`
	Message        string          `json:"message,omitempty"`
	RequestID      string          `json:"request_id,omitempty"`
	Attempts       int             `json:"attempts"` // deliveries by the queue: a hint, the ledger counts attempts
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

// The states of a worker.
const (
	WorkerRunning = "running"
	WorkerPaused  = "paused" // stopped and waiting: token, permission or address
	WorkerOpen    = "open"   // TikTok is down: the circuit is open
	WorkerOff     = "off"    // no access token: everything is skipped
)

// WorkerState is what a worker reports every few seconds. Instance and Seen are no part of the message:
// DecodeWorkerState adds them, and the API shows them.
type WorkerState struct {
	Instance string    `json:"instance,omitempty"` // from the subject
	Version  string    `json:"version"`
	State    string    `json:"state"` // running, paused, open or off
	Reason   string    `json:"reason,omitempty"`
	Since    time.Time `json:"since"`
	Seen     time.Time `json:"seen,omitzero"` // time of receipt
}

// decode unmarshals a message of at most a version. version is the field that it is read into.
func decode(data []byte, into any, version *int, most int) error {
	err := json.Unmarshal(data, into) // goes on after a field of the wrong type
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &syntax):
		return errors.New("not a JSON message of ours")
	case *version > most:
		return ErrNewer
	case *version < 1:
		return errors.New("the message has no version")
	case err != nil:
		return errors.New("a field of the message has the wrong type")
	}
	return nil
}
