package main

import (
	"context"
	"time"

	"go.uber.org/zap"

	"purchase-relay/internal/purchase"
)

const (
	dropEvery = time.Minute // between two looks at the ledger
	dropBatch = 500         // rows per transaction: some ten milliseconds
	dropRest  = 4           // times a step's duration: most of a busy Postgres belongs to the webhooks
)

// envelopes is the ledger's side of the retention: it removes the messages of purchases that were delivered
// before an age.
type envelopes interface {
	DropEnvelopes(ctx context.Context, age time.Duration, limit int) (int, error)
}

// keepLean drops the envelopes of delivered purchases until ctx ends. The first failure of a row of them is
// logged.
func keepLean(db envelopes, log *zap.Logger) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		failing := false
		for {
			began := time.Now()
			n, err := db.DropEnvelopes(ctx, purchase.EnvelopeAge, dropBatch)
			if err != nil && !failing && ctx.Err() == nil {
				log.Warn("Envelopes not dropped; retrying", zap.Error(err))
			}
			failing = err != nil
			rest := dropEvery
			if n == dropBatch {
				rest = dropRest * time.Since(began)
			}
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(rest):
			}
		}
	}
}
