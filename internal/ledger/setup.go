package ledger

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"purchase-relay/internal/logsafe"
	"purchase-relay/internal/secret"
)

const (
	setupRetry   = time.Second
	setupTimeout = 30 * time.Second
)

// MigrateAndGrant migrates the schema as its owner and grants the runtime role its rights. Without ownerURL
// the runtime role owns the schema.
func MigrateAndGrant(ctx context.Context, runtime, ownerURL secret.String) (applied int, err error) {
	if ownerURL == "" {
		return Migrate(ctx, runtime)
	}
	if applied, err = Migrate(ctx, ownerURL); err != nil {
		return applied, err
	}
	return applied, Grant(ctx, ownerURL, runtime)
}

// Setup migrates the schema as soon as Postgres is available.
type Setup struct {
	db             *DB
	runtime, owner secret.String
	log            *zap.Logger
	ready          chan struct{}
}

// NewSetup returns a Setup that migrates while Run runs. The URLs are those of MigrateAndGrant.
func NewSetup(db *DB, runtime, ownerURL secret.String, log *zap.Logger) *Setup {
	return &Setup{db: db, runtime: runtime, owner: ownerURL, log: log, ready: make(chan struct{})}
}

// Ready is closed once the ledger is usable.
func (s *Setup) Ready() <-chan struct{} { return s.ready }

// Run retries until the schema is usable or ctx ends. Its only error is ErrTooOld.
func (s *Setup) Run(ctx context.Context) error {
	var failures logsafe.Changes
	for {
		applied, err := s.once(ctx)
		switch {
		case errors.Is(err, ErrTooOld):
			return err
		case err == nil:
			s.log.Info("Ledger ready", zap.Int("migrations_applied", applied))
			s.checkPrivilege(ctx)
			close(s.ready)
			return nil
		case ctx.Err() != nil:
			return nil
		case failures.Failed(err):
			s.log.Warn("Waiting for Postgres", zap.Error(err), zap.String("effect", "webhooks are answered 503"))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(setupRetry):
		}
	}
}

func (s *Setup) once(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, setupTimeout)
	defer cancel()
	applied, err := MigrateAndGrant(ctx, s.runtime, s.owner)
	if err != nil {
		return applied, err
	}
	return applied, s.db.CheckSchema(ctx)
}

// checkPrivilege warns if the runtime role may create tables although another role owns the schema.
func (s *Setup) checkPrivilege(ctx context.Context) {
	if s.owner == "" || s.owner == s.runtime {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, setupTimeout)
	defer cancel()
	if may, err := s.db.MayCreate(ctx); err == nil && may {
		s.log.Warn("The role of DATABASE_URL may create tables",
			zap.String("remedy", "REVOKE CREATE ON SCHEMA public FROM PUBLIC, and from that role"))
	}
}
