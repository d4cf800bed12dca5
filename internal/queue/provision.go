package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"purchase-relay/internal/logsafe"
	"purchase-relay/internal/message"
)

// Settings of the streams and consumers; docs/architecture.md gives the reasons.
const (
	// AckWait is how long the server waits for an acknowledgement before it redelivers the message.
	AckWait = 30 * time.Second

	// Delayed messages count: the default of 1,000 would stop new purchases in an outage.
	maxAckPending = 200_000
	duplicates    = 2 * time.Minute
	deadAge       = 30 * 24 * time.Hour
	// purchaseAge exceeds RETRY_MAX_AGE. A killed server may restore an acknowledged message, which no consumer
	// gets but which blocks its purchase's replay; only clusters remove it themselves (nats-server 2.15.2).
	purchaseAge = 72 * time.Hour
	smallStream = 1 << 30
	leaseBytes  = 64 << 10

	// LeaseTTL is how long a lease lasts without a renewal.
	LeaseTTL = 30 * time.Second

	infoTimeout = time.Second

	errNoStorage jetstream.ErrorCode = 10047
)

// StreamConfig holds the configurable settings of the streams.
type StreamConfig struct {
	Replicas int
	MaxBytes int64 // of PURCHASES; JetStream reserves it
}

func streams(s StreamConfig) []jetstream.StreamConfig {
	return []jetstream.StreamConfig{
		{
			Name: message.StreamPurchases, Description: "Paid purchases on their way to TikTok",
			// One message per subject: the server itself rejects a second message of a purchase.
			Subjects: []string{message.SubjectLive + "*", message.SubjectTest + "*"}, MaxMsgsPerSubject: 1,
			Retention: jetstream.WorkQueuePolicy, Storage: jetstream.FileStorage, Discard: jetstream.DiscardNew,
			DiscardNewPerSubject: true, MaxAge: purchaseAge, MaxBytes: s.MaxBytes, Duplicates: duplicates,
			Replicas: s.Replicas,
		},
		{
			Name: message.StreamPurchasesDead, Description: "Dead-lettered purchases, with the reason",
			Subjects: []string{message.SubjectDead + "*"}, Retention: jetstream.LimitsPolicy,
			Storage: jetstream.FileStorage, MaxAge: deadAge, MaxBytes: smallStream,
			Duplicates: duplicates, Replicas: s.Replicas,
		},
		{
			Name: message.StreamOutcomes, Description: "Outcomes of purchases on their way to the ledger",
			Subjects:  []string{message.SubjectOutcomes, message.SubjectStats},
			Retention: jetstream.WorkQueuePolicy,
			Storage:   jetstream.FileStorage, Discard: jetstream.DiscardNew, MaxBytes: smallStream,
			Duplicates: duplicates, Replicas: s.Replicas,
		},
		{
			Name: message.StreamLeases, Description: "Leases of the workers, see Lease",
			Subjects: []string{message.SubjectLeases + "*"}, MaxMsgsPerSubject: 1,
			Retention: jetstream.LimitsPolicy, Storage: jetstream.FileStorage, MaxAge: LeaseTTL,
			MaxBytes: leaseBytes, Duplicates: LeaseTTL, Replicas: s.Replicas,
		},
	}
}

// optional reports whether purchases are delivered without a stream: its failures must not stop them.
func optional(stream string) bool { return stream == message.StreamLeases }

func consumer(durable string) jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{
		Durable: durable, AckPolicy: jetstream.AckExplicitPolicy, AckWait: AckWait, MaxAckPending: maxAckPending,
		MaxDeliver: -1, // the worker enforces RETRY_MAX_AGE
	}
}

// durables returns stream and name of each consumer.
func durables() [][2]string {
	return [][2]string{
		{message.StreamPurchases, message.ConsumerWorker}, {message.StreamOutcomes, message.ConsumerRecorder},
	}
}

// ErrNotPermitted means that the connection's user lacks a permission.
var ErrNotPermitted = errors.New("not permitted")

// Provision creates the streams and the two consumers, and repairs their settings. A failure of one does not
// stop the others; that of an optional stream is only logged. It returns ErrNotPermitted as soon as the
// server denies a request.
func (c *Conn) Provision(ctx context.Context, s StreamConfig) error {
	var failed []error
	for _, config := range streams(s) {
		subjects := []string{"$JS.API.STREAM.CREATE." + config.Name, "$JS.API.STREAM.UPDATE." + config.Name}
		err := c.requestOn(ctx, subjects, func(ctx context.Context) error {
			_, err := c.js.CreateOrUpdateStream(ctx, config)
			return err
		})
		switch {
		case optional(config.Name):
			c.logOptional(config.Name, err)
		case errors.Is(err, ErrNotPermitted):
			return fmt.Errorf("stream %s: %w", config.Name, err)
		case err != nil:
			failed = append(failed, fmt.Errorf("stream %s: %w", config.Name, c.explain(ctx, err, config)))
		}
	}
	for _, d := range durables() {
		err := c.provisionConsumer(ctx, d[0], d[1])
		if errors.Is(err, ErrNotPermitted) {
			return err
		}
		failed = append(failed, err)
	}
	return errors.Join(failed...)
}

// logOptional logs the first of an optional stream's consecutive failures.
func (c *Conn) logOptional(stream string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		c.optional = logsafe.Changes{}
		return
	}
	if c.optional.Failed(err) {
		c.log.Warn("Optional stream not ready", zap.String("stream", stream), zap.Error(err),
			zap.String("remedy", "compare the user's permissions and the server's storage with "+
				"deploy/nats/nats-server.conf; until then TikTok's counts are not read"))
	}
}

// provisionConsumer writes a consumer only if it is missing or differs. The server cannot write one whose
// folder is lost (its creation overlapped its deletion, seen with nats-server 2.15.2), although it still
// delivers.
func (c *Conn) provisionConsumer(ctx context.Context, stream, durable string) error {
	name := stream + "." + durable
	subjects := []string{"$JS.API.CONSUMER.INFO." + name, "$JS.API.CONSUMER.CREATE." + name}
	err := c.requestOn(ctx, subjects, func(ctx context.Context) error {
		found, err := c.js.Consumer(ctx, stream, durable)
		if err == nil && consumerMatches(found.CachedInfo().Config) {
			return nil
		}
		if err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
			return err
		}
		_, err = c.js.CreateOrUpdateConsumer(ctx, stream, consumer(durable))
		return err
	})
	if err != nil {
		return fmt.Errorf("consumer %s on %s: %w", durable, stream, err)
	}
	return nil
}

// Inspect checks the streams and consumers without changing them. It returns an error if a required one is
// missing, else a description of each one with other settings.
func (c *Conn) Inspect(ctx context.Context, s StreamConfig) (differences []string, err error) {
	for _, want := range streams(s) {
		var stream jetstream.Stream
		subject := []string{"$JS.API.STREAM.INFO." + want.Name}
		err := c.requestOn(ctx, subject, func(ctx context.Context) (err error) {
			stream, err = c.js.Stream(ctx, want.Name)
			return err
		})
		switch {
		case err != nil && optional(want.Name):
			differences = append(differences, fmt.Sprintf("stream %s: %v", want.Name, err))
			continue
		case err != nil:
			return nil, fmt.Errorf("stream %s: %w", want.Name, err)
		}
		if list := streamDifferences(stream.CachedInfo().Config, want); len(list) > 0 {
			differences = append(differences, fmt.Sprintf("stream %s: %s", want.Name, strings.Join(list, ", ")))
		}
	}
	for _, d := range durables() {
		bound, err := c.js.Consumer(ctx, d[0], d[1])
		if err != nil {
			return nil, fmt.Errorf("consumer %s on %s: %w", d[1], d[0], err)
		}
		if !consumerMatches(bound.CachedInfo().Config) {
			differences = append(differences, fmt.Sprintf("consumer %s on %s", d[1], d[0]))
		}
	}
	return differences, nil
}

// streamDifferences lists the settings of a stream that differ from the product's.
func streamDifferences(got, want jetstream.StreamConfig) (list []string) {
	for _, d := range []struct {
		name    string
		differs bool
	}{
		{"subjects", !slices.Equal(got.Subjects, want.Subjects)},
		{"retention", got.Retention != want.Retention},
		{"storage", got.Storage != want.Storage},
		{"discard policy", got.Discard != want.Discard || got.DiscardNewPerSubject != want.DiscardNewPerSubject},
		{"messages per subject", max(got.MaxMsgsPerSubject, 0) != max(want.MaxMsgsPerSubject, 0)},
		{"replicas", got.Replicas != max(want.Replicas, 1)},
		{"bytes (NATS_MAX_BYTES)", got.MaxBytes != want.MaxBytes},
		{"age", got.MaxAge != want.MaxAge},
	} {
		if d.differs {
			list = append(list, d.name)
		}
	}
	return list
}

// consumerMatches reports whether a consumer has the product's settings.
func consumerMatches(got jetstream.ConsumerConfig) bool {
	want := consumer(got.Durable)
	return got.AckPolicy == want.AckPolicy && got.AckWait == want.AckWait &&
		got.MaxAckPending == want.MaxAckPending && got.MaxDeliver == want.MaxDeliver && len(got.BackOff) == 0
}

// requestOn runs a request that publishes on the subjects. It returns ErrNotPermitted as soon as the server
// denies one: a denied request gets no response and would time out.
func (c *Conn) requestOn(ctx context.Context, subjects []string, send func(ctx context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c.mu.Lock()
	for _, subject := range subjects {
		c.cancels[subject] = cancel
	}
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, subject := range subjects {
			delete(c.cancels, subject)
		}
	}()
	err := send(ctx)
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, ErrNotPermitted) {
		return cause
	}
	return err
}

// cancelDenied cancels the requestOn that a permission error belongs to, and reports whether there is one.
// Its caller handles the error, which is neither logged nor counted.
func (c *Conn) cancelDenied(err error) bool {
	if !errors.Is(err, nats.ErrPermissionViolation) {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for subject, cancel := range c.cancels {
		if strings.Contains(err.Error(), strconv.Quote(subject)) {
			cancel(fmt.Errorf("%w to publish on %s", ErrNotPermitted, subject))
			return true
		}
	}
	return false
}

// explain adds figures to JetStream's "insufficient storage resources".
func (c *Conn) explain(ctx context.Context, err error, config jetstream.StreamConfig) error {
	var api *jetstream.APIError
	if !errors.As(err, &api) || api.ErrorCode != errNoStorage {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, infoTimeout) // the server does not respond to a denied request
	defer cancel()
	offer := "less"
	info, infoErr := c.js.AccountInfo(ctx)
	switch {
	case infoErr != nil:
	case info.Limits.MaxStore > 0:
		offer = fmt.Sprintf("%d bytes, %d of them in use", info.Limits.MaxStore, info.Store)
	default: // the server reports only how much is reserved
		offer = fmt.Sprintf("less, with %d bytes reserved by this account's streams", info.ReservedStore)
	}
	return fmt.Errorf("reserve %d bytes (NATS_MAX_BYTES for PURCHASES): server offers %s: %w",
		config.MaxBytes, offer, err)
}
