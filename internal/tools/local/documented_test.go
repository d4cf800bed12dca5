package main

import (
	"cmp"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"purchase-relay/internal/testkit/freeport"
	"purchase-relay/internal/testkit/launch"
	"purchase-relay/internal/testkit/process"
	"purchase-relay/internal/testkit/try"
	"purchase-relay/internal/testkit/wait"
)

const quickstart = "docs/quickstart.md"

var (
	// A command is a line of an indented block, or a code span with an argument or a flag.
	command = regexp.MustCompile("(?m)^    ((?:[$A-Z_]+=\\S+ )*(?:\\.local/bin/)?" +
		"(?:ingest|tiktok-worker|curl|go|pg_dump|pg_restore|psql|export|echo) .*)$" +
		"|`((?:ingest|tiktok-worker|go) [^` ]+ [^`]+|(?:ingest|tiktok-worker) --[^`]+)`")
	fenced    = regexp.MustCompile("(?s)\n```.*?\n```")
	continued = regexp.MustCompile(`\\\n\s*`)
	comment   = regexp.MustCompile(`  +#.*`)

	// elsewhere matches the commands that need containers, a cluster or an account, or that other tests run.
	elsewhere = regexp.MustCompile(`needs your|docker|kubectl|kustomize|pprof|ingest (serve|provision)|COMMAND`)

	port    = regexp.MustCompile(`127\.0\.0\.1:808(\d)`)
	id      = regexp.MustCompile(`cs_(live_|test_)?…|<id>`)
	session = regexp.MustCompile(`cs_(live|test)_\w+`)
)

// expectation describes the run of a command.
type expectation struct {
	begins   string // the command's beginning
	before   string // a script that prepares it
	after    string // a script that ends what before began
	input    string
	purchase string // the status of the purchase that it needs; "": delivered
	settled  bool   // whether it needs every purchase to be delivered
	codes    []int  // exit statuses
}

// special are the commands that need or return something special. All others end with exit status 0.
var special = []expectation{
	{begins: "curl $WORKER/readyz", before: deny, after: permit, codes: []int{22}}, // 503: delivery is paused
	{begins: `curl -X POST $TIKTOK/faults -d '{"code":40002`, settled: true, codes: []int{0}},
	{begins: ".local/bin/ingest replay --status dead --yes", purchase: "dead", codes: []int{0}},
	{begins: "ingest replay --session", before: refuse, input: "no\n", purchase: "dead", codes: []int{3}},
	{begins: "ingest replay", input: "no\n", codes: []int{0, 3}},
	{begins: "ingest doctor", codes: []int{3}},             // live purchases with a test key
	{begins: "ingest backfill --dry-run", codes: []int{3}}, // missed events
	{begins: ".local/bin/ingest backfill --dry-run", codes: []int{3}},
	{begins: ".local/bin/ingest stripe-endpoint --url", codes: []int{3}}, // none yet
	{begins: "ingest reconcile", codes: []int{3}},                        // purchases unknown to the list
	{begins: "ingest prune --older-than", input: "no\n", codes: []int{0, 3}},
	{begins: "ingest forget -", before: adaBuys, input: "ada@example.com\n", codes: []int{3}},
}

// Scripts around commands: a paused delivery, and purchases.
const (
	deny    = `curl -X POST http://127.0.0.1:8083/faults -d '{"code":40105}' && stripegen -retry 20`
	permit  = `curl -X DELETE http://127.0.0.1:8083/faults`
	refuse  = `curl -X POST http://127.0.0.1:8083/faults -d '{"code":40002,"count":1}' && stripegen -retry 20`
	adaBuys = `stripegen -retry 20 -email ada@example.com`
)

// TestDocumentedCommands runs the documents' commands, in reading order, against the stack of make run.
func TestDocumentedCommands(t *testing.T) {
	t.Chdir("../../..")
	documents, err1 := filepath.Glob("docs/*.md")
	more, err2 := filepath.Glob("deploy/*/*.md")
	bin, err3 := filepath.Abs(".local/documented") // kept, so that go build links only what has changed
	addrs, err4 := freeport.Addrs(len(listeners))
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		t.Fatal(err)
	}
	s := &stack{
		at: addrs, dir: filepath.Join(t.TempDir(), "local"), bin: bin, out: t.Output(), ended: make(chan string, 2),
		extraEnv: []string{"RETRY_MAX=1s"}, // the documents' half a minute of waiting
	}
	t.Cleanup(func() {
		if s.pg != nil {
			_ = os.RemoveAll(s.pg.Dir()) // under root outside of the test's folder
		}
	})
	if err := s.Scoped(func() {
		try.Check(launch.Build(t.Context(), s.bin, "./internal/tools/stripegen"))
		s.start(t.Context())
		s.sample(t.Context())
		s.printAddresses()
		r := &reader{t: t, stack: s, ran: make(map[string]bool)}
		r.read(quickstart)
		r.awaitDelivery()
		log, err := os.ReadFile(s.path("tiktok-worker.log"))
		if err != nil || !strings.Contains(string(log), "TikTok denies access") {
			t.Errorf("the worker's log has no line about the refused access (%v)", err)
		}
		for _, file := range slices.Concat([]string{"README.md"}, documents, more) {
			if file != quickstart {
				r.read(file)
			}
		}
		if len(r.ran) < 25 {
			t.Errorf("%d commands found, want at least 25", len(r.ran))
		}
	}); err != nil {
		t.Error(err)
	}
}

// reader types what the documents say.
type reader struct {
	t       *testing.T
	stack   *stack
	ran     map[string]bool
	exports string
}

func (r *reader) read(file string) {
	data, err := os.ReadFile(file)
	if err != nil {
		r.t.Fatal(err)
	}
	text := continued.ReplaceAllString(fenced.ReplaceAllString(string(data), ""), "")
	for _, match := range command.FindAllStringSubmatch(text, -1) {
		line := cmp.Or(match[1], match[2])
		if elsewhere.MatchString(line) {
			continue
		}
		if line = comment.ReplaceAllString(line, ""); !r.ran[line] || file == quickstart {
			r.run(file, line)
		}
		r.ran[line] = true
	}
}

// run types a command, with values for its placeholders.
func (r *reader) run(file, line string) {
	r.t.Helper()
	if strings.HasPrefix(line, "export ") {
		r.exports += line + "\n"
		return
	}
	how := expectation{codes: []int{0}}
	for _, s := range slices.Backward(special) { // the first match wins
		if strings.HasPrefix(line, s.begins) {
			how = s
		}
	}
	r.prepare(how.before)
	if how.settled {
		r.awaitDelivery()
	}
	status, purchase := cmp.Or(how.purchase, "delivered"), ""
	r.await("a purchase that is "+status, func() bool { purchase = r.purchase(status); return purchase != "" })
	var out string
	var code int
	// Some commands show a state that the one before them leads to, a moment later.
	if !wait.Until(r.t.Context(), 5*time.Minute, 200*time.Millisecond, func() bool {
		out, code = r.shell(id.ReplaceAllString(line, purchase), how.input)
		return slices.Contains(how.codes, code)
	}) {
		r.t.Errorf("%s: `%s`: exit status %d, want one of %v:\n%s", file, line, code, how.codes, out)
	}
	r.t.Logf("%s: `%s`: %d", file, line, code)
	r.prepare(how.after)
}

// prepare runs a script of the test's own.
func (r *reader) prepare(script string) {
	r.t.Helper()
	if out, code := r.shell(script, ""); code != 0 {
		r.t.Fatalf("%s: exit status %d\n%s", script, code, out)
	}
}

// shell runs a script as a reader of the documents would, and returns its output and exit status.
func (r *reader) shell(script, input string) (out string, code int) {
	const curl = `curl() { command curl -sS --fail-with-body "$@"; }` + "\n"
	cmd := exec.CommandContext(r.t.Context(), "sh", "-c", curl+r.local(r.exports+script))
	cmd.Stdin = strings.NewReader(input)
	env := append(r.stack.ingestEnv(), "MIGRATE_DATABASE_URL="+r.stack.ledger("postgres"))
	if strings.Contains(script, "tiktok-worker") {
		env = r.stack.workerEnv()
	}
	path := strings.Join([]string{r.stack.bin, r.stack.pg.Programs(), os.Getenv("PATH")}, ":")
	cmd.Env = append(env, "PATH="+path, "WEBHOOK_URL=http://"+r.stack.at[ingest]+"/webhooks/stripe")
	text, _ := cmd.CombinedOutput() // the exit status holds the error
	return string(text), cmd.ProcessState.ExitCode()
}

// local replaces addresses and paths of the documents by those of the stack.
func (r *reader) local(script string) string {
	script = port.ReplaceAllStringFunc(script, func(addr string) string {
		n, _ := strconv.Atoi(addr[len(addr)-1:])
		return r.stack.at[n]
	})
	return strings.NewReplacer(
		"postgres://ingest:…@host/db", "$DATABASE_URL", "postgres://owner:…@host/db", "$MIGRATE_DATABASE_URL",
		"postgres://owner@host/db", "'"+r.stack.ledger("postgres")+"'", "ledger.dump", r.stack.path("ledger.dump"),
		"$PWD/.local/", r.stack.dir+"/", ".local/bin/", "", "go run ./internal/tools/stripegen", "stripegen",
	).Replace(script)
}

// awaitDelivery waits until no purchase is on its way or dead.
func (r *reader) awaitDelivery() {
	r.await("every purchase to be delivered", func() bool {
		return r.purchase("pending")+r.purchase("published")+r.purchase("retrying")+r.purchase("dead") == ""
	})
}

// purchase returns the id of a purchase with a status; "": there is none.
func (r *reader) purchase(status string) string {
	_, body := launch.Get(r.t.Context(), "http://"+r.stack.at[ingestAdmin]+"/api/v1/purchases?status="+status)
	return session.FindString(body)
}

func (r *reader) await(what string, done func() bool) {
	r.t.Helper()
	if wait.Until(r.t.Context(), 5*time.Minute, 200*time.Millisecond, done) {
		return
	}
	for _, status := range []string{"pending", "published", "retrying", "dead"} {
		if id := r.purchase(status); id != "" {
			history, _ := r.shell("ingest show "+id, "")
			r.t.Logf("one of those that are %s:\n%s", status, history)
		}
	}
	log := process.Tail(r.stack.path("tiktok-worker.log"))
	r.t.Fatalf("waited five minutes for %s; the worker's log ends with:\n%s", what, log)
}
