// Package message defines what crosses NATS JetStream between the two binaries: streams, subjects, headers
// and versioned JSON messages.
//
// Ingest publishes an Envelope on purchases.live.<id> or purchases.test.<id>. The worker answers with
// outcomes on outcomes, a DeadLetter on purchases.dead.<id> and its WorkerState on workers.<instance>.
//
// The files under testdata are golden and frozen: a message that an older binary wrote must decode. A change
// that an older binary would read wrongly raises Version and gets files of its own. A binary leaves a newer
// message to a newer binary (ErrNewer).
package message

import (
	"encoding/json"
	"errors"
	"strconv"
	"strings"
)

// Version is the version of every message.
const Version = 1

// ErrNewer is returned for a message of a newer version than this binary's.
var ErrNewer = errors.New("message has a newer version than this binary; update it")

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
	// HeaderFirstPublished is the time of the first publish, RFC 3339. The ledger keeps it and only a replay
	// renews it: the age limit counts from it.
	HeaderFirstPublished = "Purchase-First-Published"
)

// MaxGeneration bounds the generation of a message, far above any number of replays and far below the
// ledger's column.
const MaxGeneration = 1 << 20

// Subject returns the subject of a purchase.
func Subject(id string, livemode bool) string {
	if livemode {
		return SubjectLive + id
	}
	return SubjectTest + id
}

// MsgID returns the message ID of a purchase's generation. A replay or a sweep raises the generation, because
// the stream drops a second message with the same ID within its de-duplication window.
func MsgID(id string, generation int) string { return id + ":" + strconv.Itoa(generation) }

// Generation returns the generation in a message ID; 1 without a valid one.
func Generation(msgID string) int {
	_, after, _ := strings.Cut(msgID, ":")
	if n, err := strconv.Atoi(after); err == nil && n > 0 && n <= MaxGeneration {
		return n
	}
	return 1
}

// decode unmarshals a message and checks its version; version is the field that holds it.
func decode(data []byte, into any, version *int) error {
	err := json.Unmarshal(data, into) // continues after a field of the wrong type, so that version is read
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &syntax):
		return errors.New("malformed JSON")
	case *version > Version:
		return ErrNewer
	case *version < 1:
		return errors.New("version is missing")
	case err != nil:
		return errors.New("a field has the wrong type")
	}
	return nil
}
