package e2e

import (
	"strings"
	"testing"

	"purchase-relay/internal/testkit/pglocal/pgtest"
	"purchase-relay/internal/testkit/stripegen"
)

// Every command's exit status: 0 done, 1 failed, 2 invalid command line or configuration, 3 action required.
// A command needs no more than its own settings.
func TestCommands_ExitStatus(t *testing.T) {
	t.Parallel()
	s := newIdleStack(t, pgtest.Migrated(t, func(url string) error { return migrateTemplate(t, url) }))
	s.exec(`INSERT INTO purchases (checkout_session_id, status, reason, mode, livemode, finished_at, envelope)
		VALUES ('cs_dead', 'dead', 'refused', 'subscription', false, now(), '')`)
	api := listen(t, stripegen.NewAPI())
	db := "DATABASE_URL=" + s.runtimeURL()
	away, foreign := "DATABASE_URL=postgres://u:hunter2@127.0.0.1:1/d", "DATABASE_URL=mysql://u:hunter2@h/d?a=b"
	unreadable := "DATABASE_URL=postgres://u:hunter2@h:port/d"
	stripe := []string{"STRIPE_API_KEY=rk_test_x", "STRIPE_API_URL=" + api}
	nats := "NATS_URL=nats://127.0.0.1:1"
	// Settings of other commands, all of them invalid.
	others := []string{
		"SWEEP_GRACE=soon", "LOG_LEVEL=loud", "NATS_REPLICAS=2", "STRIPE_API_KEY=hunter2", "CHECKOUT_MODES=setup",
		"STRIPE_WEBHOOK_SECRET=hunter2", "NOTIFY_URL=hunter2", "TIKTOK_TIMEOUT=soon", "ADMIN_ADDR=:0",
	}
	worker := []string{"TIKTOK_API_URL=" + s.simURL + eventPath, "TIKTOK_PIXEL_ID=LOCALPIXEL"}
	for _, tc := range []struct {
		command string
		env     []string
		status  int
		want    string
	}{
		{"ingest --help", nil, 0, "Exit status"},
		{"ingest --version", others, 0, "ingest "},
		{"ingest completion bash", others, 0, "complete"},
		{"ingest migrate", []string{db}, 0, "up to date"},
		{"ingest show cs_dead", append(others, db), 0, "refused"},
		{"ingest replay --status skipped --yes", append(others, db), 0, "0 made pending"},
		{"ingest backfill", append(stripe, db), 0, "events:"},

		{"ingest health", []string{"ADMIN_ADDR=127.0.0.1:1"}, 1, "refused"},
		{"ingest show cs_unknown", append(others, db), 1, "no purchase"},
		{"ingest replay --session cs_unknown --yes", append(others, db), 1, ""},
		{"ingest forget --yes ada@example.com", []string{db}, 1, "no customer"},
		{"ingest provision", []string{nats}, 1, "connect to NATS"},
		{"ingest migrate", []string{away}, 1, ""},
		{"ingest show cs_dead", []string{away}, 1, ""},
		{"ingest show --problems", []string{away}, 1, ""},
		{"ingest replay --status dead --yes", []string{away}, 1, ""},
		{"ingest prune --yes", []string{away}, 1, ""},
		{"ingest forget --yes ada@example.com", []string{away}, 1, ""},
		{"ingest backfill", append(stripe, away), 1, ""},
		{"ingest reconcile", append(stripe, away), 1, ""},

		{"ingest srve", nil, 2, `  - unknown command "srve"; did you mean "serve"?`},
		{"ingest --databse-url=x", others, 2, `  - unknown flag "--databse-url"; did you mean "--database-url"?`},
		{"ingest replay --statsu=dead", others, 2, `  - unknown flag "--statsu"; did you mean "--status"?`},
		{"ingest show cs_1 ada@example.com", others, 2, "  - unexpected argument"},
		{"ingest --sweep-grace=soon", nil, 2, "--sweep-grace"},
		{"ingest", nil, 2, "DATABASE_URL is required"},
		{"ingest", []string{foreign}, 2, "DATABASE_URL: not a Postgres"},
		{"ingest migrate", []string{foreign}, 2, "DATABASE_URL: not a Postgres"},
		{"ingest migrate", []string{db, "MIGRATE_" + unreadable}, 2, "MIGRATE_DATABASE_URL: not a Postgres"},
		{"ingest show cs_1", []string{unreadable}, 2, "DATABASE_URL: not a Postgres"},
		{"ingest show", []string{db}, 2, "--problems is required"},
		{"ingest show --problems", []string{db, "NATS_URL=http://x"}, 2, "NATS_URL"},
		{"ingest replay --status dead", []string{foreign}, 2, "DATABASE_URL: not a Postgres"},
		{"ingest replay", []string{db}, 2, "--session or --status"},
		{"ingest backfill", append(stripe, foreign), 2, "DATABASE_URL: not a Postgres"},
		{"ingest backfill", []string{db}, 2, "STRIPE_API_KEY is required"},
		{"ingest reconcile", append(stripe, unreadable), 2, "DATABASE_URL: not a Postgres"},
		{"ingest prune --yes", []string{foreign}, 2, "DATABASE_URL: not a Postgres"},
		{"ingest prune --older-than=1d", []string{db}, 2, ""},
		{"ingest forget nobody", []string{db}, 2, "not an e-mail address"},
		{"ingest forget ada@example.com", []string{foreign}, 2, "DATABASE_URL: not a Postgres"},
		{"ingest provision --every=-1s", []string{nats}, 2, "--every"},
		{"ingest completion csh", nil, 2, "<shell>"},

		{"ingest show --problems", []string{db, nats}, 3, "Purchases are dead (refused)"},
		{"ingest replay --status dead", []string{db}, 3, "Nothing was done"},
		{"ingest prune", []string{db}, 3, ""},
		{"ingest reconcile", append(stripe, db), 3, "payments differ"},
		{"ingest forget ada@example.com", []string{db}, 3, "Nothing was done"},
		{"ingest doctor", []string{foreign}, 3, "fail  "},
		{"ingest show --problems", []string{db}, 3, "Purchases are dead (refused)"},

		{"tiktok-worker --help", nil, 0, "Exit status"},
		{
			"tiktok-worker send-test --code TEST1", // blanks are trimmed
			append(worker, "TIKTOK_ACCESS_TOKEN=\ufeff local-token\r\n", "TIKTOK_PIXEL_ID= LOCALPIXEL ",
				"BATCH_SIZE=0"),
			0,
			"to pixel LOCALPIXEL as",
		},
		{"tiktok-worker send-test --code TEST1", append(worker, "TIKTOK_ACCESS_TOKEN=wrong"), 1, "not accepted"},
		{"tiktok-worker health", []string{"ADMIN_ADDR=127.0.0.1:1", "BATCH_SIZE=0"}, 1, "refused"},
		{"tiktok-worker rnu", nil, 2, `  - unknown command "rnu"; did you mean "run"?`},
		{
			"tiktok-worker --batch-szie=3",
			[]string{"RETRY_MAX=x"},
			2,
			`unknown flag "--batch-szie"; did you mean "--batch-size"?`,
		},
		{"tiktok-worker send-test", worker, 2, "--code"},
		{"tiktok-worker", []string{"TIKTOK_ACCESS_TOKEN=local-token"}, 2, "TIKTOK_PIXEL_ID is required"},
		{"tiktok-worker doctor", []string{nats, "TIKTOK_API_URL=http://127.0.0.1:1/"}, 3, "fail  NATS"},
	} {
		words := strings.Fields(tc.command)
		var status int
		var out string
		for range 3 { // on a busy machine a command may exceed a time limit
			status, out = command(t, words[0], tc.env, words[1:]...)
			if status == tc.status && strings.Contains(out, tc.want) || !timedOut.MatchString(out) {
				break
			}
		}
		if status != tc.status || !strings.Contains(out, tc.want) || strings.Contains(out, "hunter2") ||
			strings.Contains(out, "ada@") {
			t.Errorf("%s with %q = %d, want %d and %q:\n%s", tc.command, tc.env, status, tc.status, tc.want, out)
		}
		if lines := strings.Count(out, "\n"); strings.Contains(tc.want, "unknown ") && lines != 2 {
			t.Errorf("%s: %d lines, want the unknown word alone:\n%s", tc.command, lines, out)
		}
	}
	// Without NATS at the default address the list may be incomplete.
	s.exec(`DELETE FROM purchases`)
	if status, out := command(t, "ingest", []string{db}, "show", "--problems"); status != 3 ||
		!strings.Contains(out, "not checked.\nNo problems in the ledger.") {
		t.Errorf("show --problems = %d, want 3 and the ledger alone:\n%s", status, out)
	}
}
