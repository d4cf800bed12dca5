package ingestdoctor

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"purchase-relay/internal/ledger"
	"purchase-relay/internal/ops/doctor"
	"purchase-relay/internal/secret"
)

// What the ledger asks of its server.
const (
	oldestPostgres = 130000 // gen_random_uuid, vacuum by insertions
	testedPostgres = 150000
	poolSize       = 16 // connections that one ingest may take
	ledgerTimeout  = 10 * time.Second
)

const (
	urlForm    = "write it as postgres://user:password@host:5432/database"
	seeLog     = "see Postgres' own log"
	runMigrate = "run ingest migrate (ingest does it at its start, where its role may)"
	twoRoles   = "(docs/operations.md, Two roles in Postgres)"
)

// postgres checks the server behind DATABASE_URL, the schema, the role's rights and what Stripe sent lately.
// live reports whether a live checkout was received in 30 days, as far as the ledger could be read.
func postgres(ctx context.Context, url secret.String) (checks []doctor.Check, live bool) {
	ctx, cancel := context.WithTimeout(ctx, ledgerTimeout)
	defer cancel()
	probe, err := ledger.OpenProbe(ctx, url)
	if err != nil {
		return []doctor.Check{judgePostgres(err)}, false
	}
	defer probe.Close(ctx)
	checks = append(checks, doctor.Passed("Postgres", "answers as %s on %s", probe.User, probe.Database))
	checks = append(checks, transport("Postgres: TLS", url))
	server, err := probe.Server(ctx)
	if err != nil {
		return append(checks, unreadable("Postgres: settings", "they", err)), false
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
	}
	return checks, !latestLive.IsZero()
}

func unreadable(what, pronoun string, err error) doctor.Check {
	return doctor.Failed(what, pronoun+" cannot be read: "+err.Error(), seeLog)
}

// judgePostgres explains why there is no connection.
func judgePostgres(err error) doctor.Check {
	const what = "Postgres"
	if errors.Is(err, ledger.ErrURL) {
		return doctor.Failed(what, "DATABASE_URL is not a connection string", urlForm)
	}
	refused, ok := errors.AsType[*ledger.ServerError](err)
	if !ok {
		return doctor.Failed(what, "does not answer: "+err.Error(),
			"start it; check host, port and TLS in DATABASE_URL, and the way there (DNS, firewall)")
	}
	switch refused.SQLState {
	case "28P01", "28000":
		return doctor.Failed(what, "refuses the role: "+refused.Message,
			"fix user and password in DATABASE_URL, or pg_hba.conf")
	case "3D000":
		return doctor.Failed(what, refused.Message, "create it: createdb, then ingest migrate")
	case "53300":
		return doctor.Failed(what, refused.Message, "raise max_connections, or find out who holds them")
	}
	return doctor.Failed(what, refused.Message, seeLog)
}

// transport checks how a URL reaches its server, without a connection.
func transport(what string, url secret.String) doctor.Check {
	const remedy = "add sslmode=verify-full to the URL, and sslrootcert where the authority is your own"
	protection, err := ledger.TransportOf(url)
	switch {
	case err != nil:
		return doctor.Failed(what, "it is not a connection string", urlForm)
	case protection == ledger.TransportClear:
		return doctor.Warned(what, "sslmode lets passwords and purchases travel in the clear", remedy)
	case protection == ledger.TransportUnverified:
		return doctor.Warned(what, "the connection is encrypted, and the server's name is not verified", remedy)
	}
	return doctor.Passed(what, "the server is on this machine, or its certificate and name are verified")
}

func judgeServer(s ledger.Server) []doctor.Check {
	return []doctor.Check{judgeVersion(s), judgePrimary(s), judgeDurability(s), judgeClock(s), judgeConnections(s)}
}

func judgeVersion(s ledger.Server) doctor.Check {
	const what = "Postgres: version"
	switch {
	case s.Version < oldestPostgres:
		return doctor.Failed(what, s.VersionText+" is too old", "update it to 13 or newer, better 15")
	case s.Version < testedPostgres:
		return doctor.Warned(what, s.VersionText+" is older than what is tested",
			"update it to 15 or newer when convenient")
	}
	return doctor.Passed(what, "%s", s.VersionText)
}

func judgePrimary(s ledger.Server) doctor.Check {
	const what = "Postgres: primary"
	if s.Replica {
		return doctor.Failed(what, "this is a replica: nothing can be written",
			"name the primary in DATABASE_URL, for instance with target_session_attrs=read-write")
	}
	return doctor.Passed(what, "takes writes")
}

func judgeDurability(s ledger.Server) doctor.Check {
	const what = "Postgres: durability"
	if len(s.LossyOff) > 0 {
		found := strings.Join(s.LossyOff, ", ") + " is off: a crash may lose purchases that were answered 200"
		return doctor.Failed(what, found, "switch it on")
	}
	return doctor.Passed(what, "a commit outlives a crash")
}

// judgeClock: Stripe's tolerance is five minutes, and a clock that is off by more refuses every webhook.
func judgeClock(s ledger.Server) doctor.Check {
	const what = "Postgres: clock"
	apart := s.ClockAhead.Abs().Round(time.Millisecond)
	found := fmt.Sprintf("differs from this machine's by %s", apart)
	switch {
	case apart > time.Minute:
		found += "; past 5 minutes on this one every webhook's signature is refused as stale"
		return doctor.Failed(what, found, doctor.FollowTime)
	case apart > 2*time.Second:
		return doctor.Warned(what, found, doctor.FollowTime)
	}
	return doctor.Passed(what, "%s", found)
}

func judgeConnections(s ledger.Server) doctor.Check {
	const what = "Postgres: connections"
	found := fmt.Sprintf("%d of %d are taken", s.Used, s.Max)
	if s.Max-s.Used < poolSize {
		return doctor.Warned(what, fmt.Sprintf("%s; one ingest may take %d", found, poolSize),
			"raise max_connections, or lower the pools of others (pool_max_conns in DATABASE_URL for ingest's)")
	}
	return doctor.Passed(what, "%s", found)
}

func judgeSchema(s ledger.Schema, err error) doctor.Check {
	const what = "ledger: schema"
	switch {
	case errors.Is(err, ledger.ErrNoRights):
		return doctor.Failed(what, err.Error(), ledger.ErrNoRights.Error())
	case err != nil:
		return unreadable(what, "it", err)
	case !s.Exists:
		return doctor.Failed(what, "the database is empty", runMigrate)
	case s.Oldest > s.Known:
		return doctor.Failed(what, ledger.ErrTooOld.Error(), "start the newer binary")
	case s.Level < s.Known:
		return doctor.Failed(what, fmt.Sprintf("it is at level %d of %d", s.Level, s.Known), runMigrate)
	case s.Level > s.Known:
		found := fmt.Sprintf("it is at level %d, this binary knows %d: it can be used", s.Level, s.Known)
		return doctor.Warned(what, found, "run the newer binary everywhere when convenient")
	}
	return doctor.Passed(what, "at level %d", s.Level)
}

func judgeRole(missing []string, err error) doctor.Check {
	const what = "ledger: rights"
	switch {
	case err != nil:
		return unreadable(what, "they", err)
	case len(missing) > 0:
		return doctor.Failed(what, "this role lacks "+strings.Join(missing, ", "), ledger.ErrNoRights.Error())
	}
	return doctor.Passed(what, "this role has what it needs")
}

func judgePrivilege(mayCreate bool, err error) doctor.Check {
	const what = "ledger: least privilege"
	switch {
	case err != nil:
		return unreadable(what, "it", err)
	case mayCreate:
		return doctor.Warned(what, "this role may create tables",
			"give ingest a role of its own, and the owner's URL to ingest migrate alone "+twoRoles)
	}
	return doctor.Passed(what, "this role cannot change the schema")
}

// judgeEvents looks at the latest checkouts: a signing secret does not show its endpoint's mode.
func judgeEvents(live, test time.Time, err error) doctor.Check {
	const what = "Stripe: webhooks"
	switch {
	case err != nil:
		return doctor.Failed(what, "they cannot be counted: "+err.Error(), seeLog)
	case live.IsZero() && test.IsZero():
		return doctor.Warned(what, "no checkout came in 30 days", "send one: in Stripe's test mode, "+
			"or stripe trigger checkout.session.completed; then see the endpoint's deliveries in Stripe")
	case live.IsZero():
		return doctor.Warned(what, "only test checkouts came in 30 days, the last at "+test.Format(time.RFC3339),
			"if the shop sells already: add the live endpoint's signing secret to STRIPE_WEBHOOK_SECRET "+
				"(comma-separated); live and test endpoints have different ones")
	}
	return doctor.Passed(what, "the last live checkout came at %s", live.Format(time.RFC3339))
}
