// Package ingestdoctor checks what ingest needs: configuration, Postgres, NATS and Stripe.
package ingestdoctor

import (
	"context"

	"purchase-relay/internal/ops/doctor"
	"purchase-relay/internal/queue"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/stripe"
)

// Ingest is what `ingest doctor` checks; empty or unusable parts only as configuration.
type Ingest struct {
	Problems           []string // of the configuration
	SigningSecrets     secret.String
	API                stripe.APIConfig // without a key it is not checked
	DatabaseURL        secret.String
	MigrateDatabaseURL secret.String
	Queue              queue.Config
	Streams            queue.StreamConfig
	AdminAddr          string
}

// Checks runs every check.
func (i Ingest) Checks(ctx context.Context) []doctor.Check {
	checks := append(doctor.Configuration(i.Problems), signingSecrets(i.SigningSecrets)...)
	var ledger []doctor.Check
	live := false
	if i.DatabaseURL != "" {
		ledger, live = postgres(ctx, i.DatabaseURL)
	}
	if i.API.Key != "" {
		checks = append(checks, judgeAPIKey(i.API.Key, live), listEvents(ctx, i.API))
	}
	checks = append(checks, ledger...)
	if i.MigrateDatabaseURL != "" {
		checks = append(checks, transport("ledger: owner's TLS", i.MigrateDatabaseURL))
		if i.MigrateDatabaseURL == i.DatabaseURL {
			checks = append(checks, doctor.Warned("ledger: owner",
				"MIGRATE_DATABASE_URL is DATABASE_URL: ingest owns what it only has to use",
				"give it a role of its own "+twoRoles))
		}
	}
	if len(i.Queue.Problems()) == 0 {
		checks = append(checks, doctor.NATS(ctx, i.Queue, queue.RoleIngest, i.Streams)...)
	}
	return append(checks, running(ctx, i.AdminAddr)...)
}
