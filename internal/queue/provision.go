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

	"purchase-relay/internal/message"
)

// The settings that the product relies on; docs/architecture.md says why each.
const (
	// AckWait is how long a delivery may go without a word before the server delivers the message again.
	AckWait = 30 * time.Second

	maxAckPending = 200_000 // delayed messages count: the default of 1,000 would stop new purchases in an outage
	duplicates    = 2 * time.Minute
	deadAge       = 30 * 24 * time.Hour
	smallStream   = 1 << 30

	infoTimeout = time.Second

	errNoStorage jetstream.ErrorCode = 10047
)

// StreamConfig is what an operator chooses for the streams.
type StreamConfig struct {
	Replicas int
	MaxBytes int64 // of PURCHASES; JetStream reserves it
}

func streams(s StreamConfig) []jetstream.StreamConfig {
	return []jetstream.StreamConfig{
		{
			Name: message.StreamPurchases, Description: "Paid purchases on their way to TikTok",
			// One message a subject, so that the server itself refuses to hold a purchase twice.
			Subjects: []string{message.SubjectLive + "*", message.SubjectTest + "*"}, MaxMsgsPerSubject: 1,
			Retention: jetstream.WorkQueuePolicy, Storage: jetstream.FileStorage, Discard: jetstream.DiscardNew,
			DiscardNewPerSubject: true, MaxBytes: s.MaxBytes, Duplicates: duplicates, Replicas: s.Replicas,
		},
		{
			Name: message.StreamPurchasesDead, Description: "Purchases given up on, with the reason",
			Subjects: []string{message.SubjectDead + "*"}, Retention: jetstream.LimitsPolicy, Storage: jetstream.FileStorage,
			MaxAge: deadAge, MaxBytes: smallStream, Duplicates: duplicates, Replicas: s.Replicas,
		},
		{
			Name: message.StreamOutcomes, Description: "What became of purchases, on the way to the ledger",
			Subjects: []string{message.SubjectOutcomes}, Retention: jetstream.WorkQueuePolicy, Storage: jetstream.FileStorage,
			Discard: jetstream.DiscardNew, MaxBytes: smallStream, Duplicates: duplicates, Replicas: s.Replicas,
		},
	}
}

func consumer(durable string) jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{
		Durable: durable, AckPolicy: jetstream.AckExplicitPolicy, AckWait: AckWait, MaxAckPending: maxAckPending,
		MaxDeliver: -1, // the worker owns the limit; the server would only stop delivering
	}
}

// durables are the consumers: stream and name.
func durables() [][2]string {
	return [][2]string{{message.StreamPurchases, message.ConsumerWorker}, {message.StreamOutcomes, message.ConsumerRecorder}}
}

// ErrNotPermitted says that the connection's user may not create or change streams and consumers.
var ErrNotPermitted = errors.New("not permitted")

// Provision creates the three streams and the two consumers, and repairs what differs. One that cannot be
// made or repaired does not stop the others. It returns ErrNotPermitted as soon as the server refuses a request.
func (c *Conn) Provision(ctx context.Context, s StreamConfig) error {
	var failed []error
	for _, config := range streams(s) {
		subjects := []string{"$JS.API.STREAM.CREATE." + config.Name, "$JS.API.STREAM.UPDATE." + config.Name}
		err := c.try(ctx, subjects, func(ctx context.Context) error {
			_, err := c.js.CreateOrUpdateStream(ctx, config)
			return err
		})
		switch {
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

// provisionConsumer writes a consumer only where it is missing or differs. The server cannot write one whose
// folder it has lost (its creation overlapped its deletion, seen with nats-server 2.15.2), though it goes on
// delivering from it.
func (c *Conn) provisionConsumer(ctx context.Context, stream, durable string) error {
	name := stream + "." + durable
	err := c.try(ctx, []string{"$JS.API.CONSUMER.INFO." + name, "$JS.API.CONSUMER.CREATE." + name}, func(ctx context.Context) error {
		found, err := c.js.Consumer(ctx, stream, durable)
		if err == nil && asWanted(found.CachedInfo().Config) {
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

// Inspect checks the streams and consumers without changing anything. It returns an error where one is
// missing, else a sentence for each one with other settings.
func (c *Conn) Inspect(ctx context.Context, s StreamConfig) (differences []string, err error) {
	for _, want := range streams(s) {
		stream, err := c.js.Stream(ctx, want.Name)
		if err != nil {
			return nil, fmt.Errorf("stream %s: %w", want.Name, err)
		}
		if list := differing(stream.CachedInfo().Config, want); len(list) > 0 {
			differences = append(differences, fmt.Sprintf("stream %s: %s", want.Name, strings.Join(list, ", ")))
		}
	}
	for _, d := range durables() {
		bound, err := c.js.Consumer(ctx, d[0], d[1])
		if err != nil {
			return nil, fmt.Errorf("consumer %s on %s: %w", d[1], d[0], err)
		}
		if !asWanted(bound.CachedInfo().Config) {
			differences = append(differences, fmt.Sprintf("consumer %s on %s", d[1], d[0]))
		}
	}
	return differences, nil
}

// differing lists the settings of a stream that are not as the product wants them.
func differing(is, want jetstream.StreamConfig) (list []string) {
	for _, d := range []struct {
		name string
		yes  bool
	}{
		{"subjects", !slices.Equal(is.Subjects, want.Subjects)},
		{"retention", is.Retention != want.Retention},
		{"storage", is.Storage != want.Storage},
		{"discard policy", is.Discard != want.Discard || is.DiscardNewPerSubject != want.DiscardNewPerSubject},
		{"messages per subject", max(is.MaxMsgsPerSubject, 0) != max(want.MaxMsgsPerSubject, 0)},
		{"replicas", is.Replicas != max(want.Replicas, 1)},
		{"bytes (NATS_MAX_BYTES)", is.MaxBytes != want.MaxBytes},
		{"age", is.MaxAge != want.MaxAge},
	} {
		if d.yes {
			list = append(list, d.name)
		}
	}
	return list
}

// asWanted reports whether a consumer has the settings that the product relies on.
func asWanted(is jetstream.ConsumerConfig) bool {
	want := consumer(is.Durable)
	return is.AckPolicy == want.AckPolicy && is.AckWait == want.AckWait && is.MaxAckPending == want.MaxAckPending &&
		is.MaxDeliver == want.MaxDeliver && len(is.BackOff) == 0
}

// try runs a request that publishes on one of the subjects, and ends it with ErrNotPermitted as soon as the
// server refuses that: a refused request gets no answer and would otherwise time out.
func (c *Conn) try(ctx context.Context, subjects []string, request func(ctx context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c.mu.Lock()
	for _, subject := range subjects {
		c.trying[subject] = cancel
	}
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, subject := range subjects {
			delete(c.trying, subject)
		}
	}()
	err := request(ctx)
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, ErrNotPermitted) {
		return cause
	}
	return err
}

// endRefused ends the request that an error of the server is about, if try runs one. Such a refusal is
// neither logged nor counted: the caller handles it.
func (c *Conn) endRefused(err error) bool {
	if !errors.Is(err, nats.ErrPermissionViolation) {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for subject, cancel := range c.trying {
		if strings.Contains(err.Error(), strconv.Quote(subject)) {
			cancel(fmt.Errorf("%w to publish on %s", ErrNotPermitted, subject))
			return true
		}
	}
	return false
}

// explain turns JetStream's "insufficient storage resources" into figures and a remedy.
func (c *Conn) explain(ctx context.Context, err error, config jetstream.StreamConfig) error {
	var api *jetstream.APIError
	if !errors.As(err, &api) || api.ErrorCode != errNoStorage {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, infoTimeout) // where the user may not ask, nobody answers
	defer cancel()
	offer := "less than that"
	info, infoErr := c.js.AccountInfo(ctx)
	switch {
	case infoErr != nil:
	case info.Limits.MaxStore > 0:
		offer = fmt.Sprintf("%d bytes in all, %d of them in use", info.Limits.MaxStore, info.Store)
	default: // the server does not say how much it has, only how much of it is taken
		offer = fmt.Sprintf("less than that beside the %d bytes reserved by this account's streams", info.ReservedStore)
	}
	return fmt.Errorf("the server has no room to reserve %d bytes, it offers %s: lower NATS_MAX_BYTES (PURCHASES; the other streams take 1 GiB each) or raise the server's max_file_store: %w",
		config.MaxBytes, offer, err)
}
