package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"purchase-relay/internal/dev/pglocal/pgtest"
	"purchase-relay/internal/dev/stripegen"
	"purchase-relay/internal/dev/tiktoksim"
	"purchase-relay/migrations"
)

// previous is a stack without binaries yet, on a ledger of the level before the newest.
func previous(t *testing.T) *stack {
	t.Helper()
	s := &stack{t: t, database: pgtest.Database(t), natsDir: t.TempDir(), natsAddr: freeAddr(t), sim: tiktoksim.New(tiktoksim.Config{})}
	s.startNATS()
	s.simURL = listen(t, s.sim)
	s.makeRole()
	config, err := pgx.ParseConfig(s.database)
	if err != nil {
		t.Fatal(err)
	}
	conn := stdlib.OpenDB(*config)
	defer func() { _ = conn.Close() }()
	provider, err := goose.NewProvider(goose.DialectPostgres, conn, migrations.FS, goose.WithDisableGlobalRegistry(true))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := provider.UpTo(t.Context(), migrations.Level-1); err != nil {
		t.Fatal(err)
	}
	return s
}

// migrate runs the new version's `ingest migrate`, as the schema's owner.
func (s *stack) migrate() {
	s.t.Helper()
	if code, out := command(s.t, "ingest", []string{"DATABASE_URL=" + s.runtime(), "MIGRATE_DATABASE_URL=" + s.database}, "migrate"); code != 0 {
		s.t.Fatalf("migrate: %d %s", code, out)
	}
}

// delivered waits until so many more purchases have reached TikTok.
func (s *stack) delivered(more int, when string) {
	s.t.Helper()
	want := len(s.sim.Received()) + more
	s.await(fmt.Sprintf("%d more purchases to be delivered %s", more, when), func() bool { return len(s.sim.Received()) >= want })
}

// The new ingest is started before the ledger was migrated, with Stripe sending: it takes nothing and says what to do, Stripe comes
// again, and after `ingest migrate` everything is taken without a restart.
func TestUpgradeBehindIngest(t *testing.T) {
	t.Parallel()
	s := previous(t)
	public, admin := freeAddr(t), freeAddr(t)
	s.webhook, s.admin = "http://"+public+"/webhooks/stripe", "http://"+admin
	s.ingest = start(t, "ingest", "STRIPE_WEBHOOK_SECRET="+signingSecret, "DATABASE_URL="+s.runtime(), "INGEST_ADDR="+public, "ADMIN_ADDR="+admin,
		"NATS_URL="+natsURL("ingest", s.natsAddr), "NATS_MAX_BYTES=1GiB")
	s.sender = &stripegen.Sender{URL: s.webhook, Secret: signingSecret}
	s.startWorker()
	s.await("ingest to say what to do", func() bool { return strings.Contains(strings.Join(s.ingest.lines(), "\n"), "run `ingest migrate`") })
	s.await("ingest to listen", func() bool { return status(s.admin+"/metrics") == http.StatusOK }) // it may wait for Postgres before it does
	l := s.load()
	s.await("webhooks to be refused", func() bool {
		return s.metric(s.admin, `purchase_relay_webhooks_total{result="unavailable",type="checkout.session.completed"}`) > 0
	})
	if n := query[int](s, `SELECT count(*) FROM purchases`); n != 0 {
		t.Errorf("%d purchases were taken before the migration", n)
	}
	s.migrate()
	s.delivered(50, "after the migration")
	l.end()
}

// A rolling upgrade from the version before the newest migration, with purchases coming in all along: the ledger is migrated under the
// old binaries and they go on, the new ones join them, the old ones leave. Nothing is lost, nothing is sent in two bodies.
func TestRollingUpgrade(t *testing.T) {
	t.Parallel()
	buildPrevious(t)
	s := previous(t)
	s.build = "old-"
	s.startIngest()
	s.startWorker()
	oldIngest, oldWorker := s.ingest, s.worker
	l := s.load()
	s.delivered(100, "by the old version")
	s.migrate()
	s.delivered(100, "by the old version on the new schema")
	s.build = ""
	s.startIngest()
	s.startWorker()
	s.delivered(100, "by both versions")
	l.moved()
	for name, p := range map[string]*program{"ingest": oldIngest, "tiktok-worker": oldWorker} {
		if code := p.stop(); code != 0 {
			t.Errorf("the old %s ended with %d", name, code)
		}
	}
	s.delivered(100, "by the new version alone")
	l.end()
	if code, text := get(s.admin + "/api/v1/summary"); code != http.StatusOK || !strings.Contains(text, fmt.Sprintf(`"delivered":%d,`, len(s.sim.Received()))) {
		t.Errorf("the dashboard's figures after the upgrade: %d %s", code, text)
	}
}

// buildPrevious builds the last version before the newest migration, out of the history.
func buildPrevious(t *testing.T) {
	t.Helper()
	newest, err := fs.Glob(migrations.FS, fmt.Sprintf("%04d_*.sql", migrations.Level))
	if err != nil || len(newest) != 1 {
		t.Fatalf("the newest migration: %v, %v", newest, err)
	}
	added := strings.TrimSpace(git(t, "log", "--diff-filter=A", "--format=%H", "-n", "1", "--", "migrations/"+newest[0]))
	if added == "" {
		t.Skipf("%s is not in git's history yet: commit it to test the upgrade to it", newest[0])
	}
	if strings.TrimSpace(git(t, "rev-parse", "--verify", "--quiet", added+"^")) == "" {
		t.Skip("the history does not reach back to the version before the newest migration (a shallow clone?)")
	}
	dir := t.TempDir()
	archive := filepath.Join(dir, "old.tar")
	git(t, "archive", "--output", archive, added+"^", "cmd", "internal", "migrations", "go.mod", "go.sum")
	sources := filepath.Join(dir, "old")
	if err := os.Mkdir(sources, 0o750); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("tar", "-xf", archive, "-C", sources).CombinedOutput(); err != nil {
		t.Fatalf("unpack the old sources: %v\n%s", err, out)
	}
	for _, name := range []string{"ingest", "tiktok-worker"} {
		build := exec.Command("go", "build", "-buildvcs=false", "-o", filepath.Join(binaries, "old-"+name), "./cmd/"+name)
		build.Dir = sources
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build the old %s: %v\n%s", name, err, out)
		}
	}
}

// git asks for something of this repository's history; "" where there is none.
func git(t *testing.T, args ...string) string {
	t.Helper()
	var out, wrong bytes.Buffer
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), "git", args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "../..", &out, &wrong
	if err := cmd.Run(); err != nil {
		t.Logf("git %s: %v %s", strings.Join(args, " "), err, wrong.String())
		return ""
	}
	return out.String()
}
