package jetstream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"purchase-relay/internal/contract"
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
			Name: contract.StreamPurchases, Description: "Paid purchases on their way to TikTok",
			// One message a subject, so that the server itself refuses to hold a purchase twice.
			Subjects: []string{contract.SubjectLive + "*", contract.SubjectTest + "*"}, MaxMsgsPerSubject: 1,
			Retention: jetstream.WorkQueuePolicy, Storage: jetstream.FileStorage, Discard: jetstream.DiscardNew,
			DiscardNewPerSubject: true, MaxBytes: s.MaxBytes, Duplicates: duplicates, Replicas: s.Replicas,
		},
		{
			Name: contract.StreamPurchasesDead, Description: "Purchases given up on, with the reason",
			Subjects: []string{contract.SubjectDead + "*"}, Retention: jetstream.LimitsPolicy, Storage: jetstream.FileStorage,
			MaxAge: deadAge, MaxBytes: smallStream, Duplicates: duplicates, Replicas: s.Replicas,
		},
		{
			Name: contract.StreamOutcomes, Description: "What became of purchases, on the way to the ledger",
			Subjects: []string{contract.SubjectOutcomes}, Retention: jetstream.WorkQueuePolicy, Storage: jetstream.FileStorage,
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

// Provision creates the three streams and the two consumers, and repairs what differs. Only ingest does, and may.
func (c *Conn) Provision(ctx context.Context, s StreamConfig) error {
	for _, config := range streams(s) {
		if _, err := c.js.CreateOrUpdateStream(ctx, config); err != nil {
			return fmt.Errorf("stream %s: %w", config.Name, c.explain(ctx, err, config))
		}
	}
	for stream, durable := range map[string]string{
		contract.StreamPurchases: contract.ConsumerWorker, contract.StreamOutcomes: contract.ConsumerRecorder,
	} {
		if _, err := c.js.CreateOrUpdateConsumer(ctx, stream, consumer(durable)); err != nil {
			return fmt.Errorf("consumer %s on %s: %w", durable, stream, err)
		}
	}
	return nil
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
