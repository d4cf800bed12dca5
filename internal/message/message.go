// Package message defines the NATS JetStream interface between the two binaries: streams, subjects, headers
// and versioned JSON messages.
//
// Ingest publishes an Envelope on purchases.live.<id> or purchases.test.<id>. The worker publishes outcomes
// on outcomes, a DeadLetter on purchases.dead.<id> and its WorkerState on workers.<instance>. The worker that
// holds the lease leases.stats asks TikTok for its counts and publishes Stats on outcomes.stats.
//
// The golden files under testdata are frozen: messages of older binaries must decode. An incompatible change
// raises Version and adds files. A binary leaves newer messages to newer binaries (ErrNewer).
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
var ErrNewer = errors.New("message version is newer than this binary")

// Streams and durable consumers.
const (
	StreamPurchases     = "PURCHASES"
	StreamPurchasesDead = "PURCHASES_DEAD"
	StreamOutcomes      = "OUTCOMES"
	StreamLeases        = "LEASES"
	ConsumerWorker      = "worker"   // on PURCHASES
	ConsumerRecorder    = "recorder" // on OUTCOMES
)

// Subjects. PURCHASES binds two wildcards instead of "purchases.>", which would overlap the dead letters.
const (
	SubjectLive     = "purchases.live."
	SubjectTest     = "purchases.test."
	SubjectDead     = "purchases.dead."
	SubjectOutcomes = "outcomes"
	SubjectStats    = "outcomes.stats" // on OUTCOMES, too
	SubjectWorkers  = "workers."
	SubjectLeases   = "leases."
	LeaseStats      = "stats" // of the worker that asks for TikTok's counts
)

// Headers of a purchase message.
const (
	// HeaderMsgID is NATS' de-duplication header: "<session>:<generation>".
	HeaderMsgID = "Nats-Msg-Id"
	// HeaderFirstPublished is the time of the first publish in RFC 3339, from which the age limit counts. Only
	// a replay renews it.
	HeaderFirstPublished = "Purchase-First-Published"
)

// MaxGeneration bounds a message's generation, far above any number of replays and below the column's
// maximum.
const MaxGeneration = 1 << 20

// Subject returns the subject of a purchase.
func Subject(id string, livemode bool) string {
	if livemode {
		return SubjectLive + id
	}
	return SubjectTest + id
}

// MsgID returns the message ID of a purchase's generation. A replay or a sweep raises the generation: the
// stream drops a message with a known ID within its de-duplication window.
func MsgID(id string, generation int) string { return id + ":" + strconv.Itoa(generation) }

// Generation returns the generation in a message ID, or 1 if it is invalid.
func Generation(msgID string) int {
	_, after, _ := strings.Cut(msgID, ":")
	if n, err := strconv.Atoi(after); err == nil && n > 0 && n <= MaxGeneration {
		return n
	}
	return 1
}

// decode unmarshals a message and checks its version, which points into the message.
func decode(data []byte, message any, version *int) error {
	err := json.Unmarshal(data, message) // sets version despite a field of the wrong type
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
