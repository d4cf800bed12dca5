package ingestdoctor

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"purchase-relay/internal/ledger"
	"purchase-relay/internal/ops/doctor"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/secret"
)

const (
	minPostgres    = 130000 // gen_random_uuid, autovacuum after inserts
	testedPostgres = 150000
	poolSize       = 16 // connections of one ingest
	ledgerTimeout  = 10 * time.Second
)

const (
	urlForm    = "use postgres://user:password@host:5432/database" //nolint:gosec // an example
	seeLog     = "see the log of Postgres"
	runMigrate = "run `ingest migrate`; ingest does so at its start if its role may"
	twoRoles   = "(docs/operations.md, Two roles in Postgres)"
)

// postgres checks the server at DATABASE_URL, the schema, the role's privileges and the latest checkouts.
// live reports whether a live checkout was received in 30 days. recent are events that Stripe lists.
func postgres(
	ctx context.Context, url secret.String, recent []purchase.Event,
) (checks []doctor.Check, live bool) {
	ctx, cancel := context.WithTimeout(ctx, ledgerTimeout)
	defer cancel()
	probe, err := ledger.OpenProbe(ctx, url)
	if err != nil {
		return []doctor.Check{judgePostgres(err)}, false
	}
	defer probe.Close(ctx)
	checks = append(checks, doctor.Passed("Postgres", "responds to %s on %s", probe.User, probe.Database))
	checks = append(checks, transport("Postgres: TLS", url))
	server, err := probe.Server(ctx)
	if err != nil {
		return append(checks, unreadable("Postgres: settings", err)), false
	}
	checks = append(checks, judgeServer(server)...)
	schema, err := probe.Schema(ctx)
	if err != nil || !schema.Exists {
		return append(checks, judgeSchema(schema, err)), false
	}
	missing, rightsErr := probe.MissingRights(ctx)
	may, mayErr := probe.MayCreate(ctx)
	latestLive, latestTest, eventsErr := probe.LatestEvents(ctx)
	checks = append(checks, judgeSchema(schema, nil), judgeRole(missing, rightsErr), judgePrivilege(may, mayErr))
	if rightsErr == nil && len(missing) == 0 {
		checks = append(checks, judgeEvents(latestLive, latestTest, eventsErr))
		if len(recent) > 0 {
			checks = append(checks, arrivals(ctx, probe, recent))
		}
	}
	return checks, !latestLive.IsZero()
}

func unreadable(what string, err error) doctor.Check {
	return doctor.Failed(what, "unreadable: "+err.Error(), seeLog)
}

func judgePostgres(err error) doctor.Check {
	const what = "Postgres"
	if errors.Is(err, ledger.ErrURL) {
		return doctor.Failed(what, "DATABASE_URL is not a connection string", urlForm)
	}
	refused, ok := errors.AsType[*ledger.ServerError](err)
	if !ok {
		return doctor.Failed(what, "no response: "+err.Error(),
			"start Postgres; check host, port and TLS in DATABASE_URL, DNS and firewall")
	}
	switch refused.SQLState {
	case "28P01", "28000":
		return doctor.Failed(what, "rejects the role: "+refused.Message,
			"correct user and password in DATABASE_URL, or pg_hba.conf")
	case "3D000":
		return doctor.Failed(what, refused.Message, "run createdb, then `ingest migrate`")
	case "53300":
		return doctor.Failed(what, refused.Message, "raise max_connections, or find the clients that hold them")
	}
	return doctor.Failed(what, refused.Message, seeLog)
}

// arrivals checks that webhooks brought the events that Stripe lists.
func arrivals(ctx context.Context, probe *ledger.Probe, recent []purchase.Event) doctor.Check {
	sessions, types := make([]string, len(recent)), make([]string, len(recent))
	for i, e := range recent {
		sessions[i], types[i] = e.Checkout.ID, e.Type
	}
	missing, backfilled, err := probe.NotReceived(ctx, sessions, types)
	return judgeArrivals(len(recent), missing, backfilled, err)
}

func judgeArrivals(listed int, missing, backfilled []string, err error) doctor.Check {
	const what = "Stripe: arrivals"
	const remedy = "see the failed deliveries of the endpoint in Stripe"
	switch {
	case err != nil:
		return unreadable(what, err)
	case len(missing) > 0:
		return doctor.Failed(what, fmt.Sprintf("%d of %d events of the last day are not on the ledger, such as %s",
			len(missing), listed, missing[0]), "run `ingest backfill --since 24h`, then "+remedy)
	case len(backfilled) > 0:
		return doctor.Warned(what, fmt.Sprintf("%d of %d events of the last day came by backfill, not by webhook, "+
			"such as %s", len(backfilled), listed, backfilled[0]), remedy)
	}
	return doctor.Passed(what, "all %d events of the last day", listed)
}

// transport checks the TLS settings of a URL, without a connection.
func transport(what string, url secret.String) doctor.Check {
	const remedy = "add sslmode=verify-full to the URL, and sslrootcert for a private CA"
	protection, err := ledger.TransportOf(url)
	switch {
	case err != nil:
		return doctor.Failed(what, "not a connection string", urlForm)
	case protection == ledger.TransportClear:
		return doctor.Warned(what, "passwords and purchases are sent unencrypted", remedy)
	case protection == ledger.TransportUnverified:
		return doctor.Warned(what, "the server's certificate is not verified", remedy)
	}
	return doctor.Passed(what, "local, or encrypted with a verified certificate")
}

func judgeServer(s ledger.Server) []doctor.Check {
	return []doctor.Check{
		judgeVersion(s), judgePrimary(s), judgeDurability(s), judgeClock(s), judgeConnections(s),
	}
}

func judgeVersion(s ledger.Server) doctor.Check {
	const what = "Postgres: version"
	switch {
	case s.Version < minPostgres:
		return doctor.Failed(what, s.VersionText+" is too old", "upgrade to 15 or newer; 13 is the minimum")
	case s.Version < testedPostgres:
		return doctor.Warned(what, s.VersionText+" is not tested", "upgrade to 15 or newer")
	}
	return doctor.Passed(what, "%s", s.VersionText)
}

func judgePrimary(s ledger.Server) doctor.Check {
	const what = "Postgres: primary"
	if s.Replica {
		return doctor.Failed(what, "this server is a read-only replica",
			"point DATABASE_URL at the primary, for example with target_session_attrs=read-write")
	}
	return doctor.Passed(what, "writable")
}

func judgeDurability(s ledger.Server) doctor.Check {
	const what = "Postgres: durability"
	if len(s.LossyOff) > 0 {
		found := strings.Join(s.LossyOff, ", ") + " off: a crash can lose acknowledged purchases"
		return doctor.Failed(what, found, "turn on")
	}
	return doctor.Passed(what, "commits survive a crash")
}

// judgeClock: signatures older than five minutes are rejected.
func judgeClock(s ledger.Server) doctor.Check {
	const what = "Postgres: clock"
	offset := s.ClockAhead.Abs().Round(time.Millisecond)
	found := fmt.Sprintf("differs from this machine's by %s", offset)
	switch {
	case offset > time.Minute:
		found += "; if this machine's is off by 5m, every webhook's signature is rejected"
		return doctor.Failed(what, found, doctor.SyncClocks)
	case offset > 2*time.Second:
		return doctor.Warned(what, found, doctor.SyncClocks)
	}
	return doctor.Passed(what, "%s", found)
}

func judgeConnections(s ledger.Server) doctor.Check {
	const what = "Postgres: connections"
	found := fmt.Sprintf("%d of %d in use", s.Used, s.Max)
	if s.Max-s.Used < poolSize {
		return doctor.Warned(what, fmt.Sprintf("%s; one ingest uses up to %d", found, poolSize),
			"raise max_connections, or lower a pool (for ingest, pool_max_conns in DATABASE_URL)")
	}
	return doctor.Passed(what, "%s", found)
}

func judgeSchema(s ledger.Schema, err error) doctor.Check {
	const what = "ledger: schema"
	switch {
	case errors.Is(err, ledger.ErrNoRights):
		return doctor.Failed(what, err.Error(), ledger.ErrNoRights.Error())
	case err != nil:
		return unreadable(what, err)
	case !s.Exists:
		return doctor.Failed(what, "the database is empty", runMigrate)
	case s.Oldest > s.Known:
		return doctor.Failed(what, ledger.ErrTooOld.Error(), "upgrade ingest")
	case s.Level < s.Known:
		return doctor.Failed(what, fmt.Sprintf("level %d of %d", s.Level, s.Known), runMigrate)
	case s.Level > s.Known:
		found := fmt.Sprintf("level %d is compatible with this binary's %d", s.Level, s.Known)
		return doctor.Warned(what, found, "upgrade every ingest")
	}
	return doctor.Passed(what, "level %d", s.Level)
}

func judgeRole(missing []string, err error) doctor.Check {
	const what = "ledger: privileges"
	switch {
	case err != nil:
		return unreadable(what, err)
	case len(missing) > 0:
		return doctor.Failed(what, "this role lacks "+strings.Join(missing, ", "), ledger.ErrNoRights.Error())
	}
	return doctor.Passed(what, "complete")
}

func judgePrivilege(mayCreate bool, err error) doctor.Check {
	const what = "ledger: least privilege"
	switch {
	case err != nil:
		return unreadable(what, err)
	case mayCreate:
		return doctor.Warned(what, "this role may create tables",
			"run ingest as a role that owns nothing "+twoRoles)
	}
	return doctor.Passed(what, "this role cannot change the schema")
}

// judgeEvents checks the modes of the latest checkouts: a signing secret does not reveal its endpoint's mode.
func judgeEvents(live, test time.Time, err error) doctor.Check {
	const what = "Stripe: webhooks"
	switch {
	case err != nil:
		return doctor.Failed(what, "unreadable: "+err.Error(), seeLog)
	case live.IsZero() && test.IsZero():
		return doctor.Warned(what, "no checkout in 30 days", "run `stripe trigger checkout.session.completed`, "+
			"then check the endpoint's deliveries in Stripe")
	case live.IsZero():
		return doctor.Warned(what, "only test checkouts in 30 days, the last at "+test.Format(time.RFC3339),
			"for live sales, add the live endpoint's signing secret to STRIPE_WEBHOOK_SECRET (comma-separated)")
	}
	return doctor.Passed(what, "last live checkout at %s", live.Format(time.RFC3339))
}
