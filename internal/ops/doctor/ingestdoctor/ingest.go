// Package ingestdoctor checks what ingest needs: configuration, Postgres, NATS and Stripe.
package ingestdoctor

import (
	"context"
	"time"

	"purchase-relay/internal/ops/doctor"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/queue"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/stripe"
)

// Ingest is what `ingest doctor` checks. Invalid parts are only reported as configuration.
type Ingest struct {
	Problems           []string // of the configuration
	SigningSecrets     secret.String
	API                stripe.APIConfig // not checked without a key
	Endpoint           Endpoint
	Rules              purchase.Rules
	DatabaseURL        secret.String
	MigrateDatabaseURL secret.String
	Queue              queue.Config
	Streams            queue.StreamConfig
	AdminAddr          string
}

// Checks runs every check.
func (i Ingest) Checks(ctx context.Context) []doctor.Check {
	checks := append(doctor.Configuration(i.Problems), signingSecrets(i.SigningSecrets)...)
	var api []doctor.Check
	var recent []purchase.Event
	if i.API.Key != "" {
		api, recent = i.stripe(ctx, time.Now())
	}
	var ledger []doctor.Check
	live := false
	if i.DatabaseURL != "" {
		ledger, live = postgres(ctx, i.DatabaseURL, recent)
	}
	if i.API.Key != "" {
		checks = append(append(checks, judgeAPIKey(i.API.Key, live)), api...)
	}
	checks = append(checks, ledger...)
	if i.MigrateDatabaseURL != "" {
		checks = append(checks, transport("ledger: owner's TLS", i.MigrateDatabaseURL))
		if i.MigrateDatabaseURL == i.DatabaseURL {
			checks = append(checks, doctor.Warned("ledger: owner",
				"MIGRATE_DATABASE_URL is DATABASE_URL: ingest owns its tables", "use two roles "+twoRoles))
		}
	}
	if len(i.Queue.Problems()) == 0 {
		checks = append(checks, doctor.NATS(ctx, i.Queue, queue.RoleIngest, i.Streams)...)
	}
	return append(checks, running(ctx, i.AdminAddr)...)
}
