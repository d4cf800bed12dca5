package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"purchase-relay/internal/testkit/pglocal"
	"purchase-relay/internal/testkit/process"
	"purchase-relay/internal/testkit/wait"
)

// documents hold commands, in the order in which somebody would read them.
func documents(t *testing.T) []string {
	t.Helper()
	list := []string{"docs/quickstart.md", "README.md", "docs/dashboard.md", "docs/operations.md"}
	for _, pattern := range []string{"docs/*.md", "deploy/*/*.md"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if !slices.Contains(list, file) {
				list = append(list, file)
			}
		}
	}
	return list
}

// programs are the first words of what is a command.
var programs = regexp.MustCompile(`^(\$?[A-Z_]+=\S+ )*(\.local/bin/)?(ingest|tiktok-worker|make|docker|curl|go|kubectl|stripe|pg_dump|pg_restore|psql|export|echo|cd) `)

// inline is a command in a sentence: one with an argument of its own, or a flag. Less is a name.
var inline = regexp.MustCompile("`((?:ingest|tiktok-worker|make|docker|kubectl|stripe|go) [^`]+)`")

// written is a command as it stands in a document.
type written struct {
	file, text, comment string
}

// commandsOf reads the commands of a document: lines of indented blocks, and those in sentences.
func commandsOf(file, text string) (list []written) {
	lines := strings.Split(text, "\n")
	fenced := false
	for i := 0; i < len(lines); i++ {
		line := lines[i]
		if strings.HasPrefix(line, "```") {
			fenced = !fenced
		}
		if block := strings.HasPrefix(line, "    "); block && !fenced {
			for strings.HasSuffix(line, "\\") && i+1 < len(lines) {
				i++
				line = strings.TrimSuffix(line, "\\") + strings.TrimSpace(lines[i])
			}
			command, comment, _ := strings.Cut(strings.TrimSpace(line), "  #")
			if command = strings.TrimSpace(command); programs.MatchString(command + " ") {
				if strings.HasPrefix(command, "make ") { // aligned with what it does
					command, _, _ = strings.Cut(command, "   ")
				}
				list = append(list, written{file, command, strings.TrimSpace(comment)})
			}
			continue
		}
		for _, m := range inline.FindAllStringSubmatch(line, -1) {
			command := m[1]
			if words := strings.Fields(command); len(words) > 2 || strings.Contains(command, " --") || words[0] == "make" {
				list = append(list, written{file, command, ""})
			}
		}
	}
	return list
}

// otherwise is how commands are dealt with that are not for the stack of make run.
type otherwise struct {
	command *regexp.Regexp
	by      string // what runs it: a file, and a word that stands in it; "": nothing but a reader
}

// elsewhere are the commands that something else runs, or nothing but a reader.
var elsewhere = []otherwise{
	{regexp.MustCompile(`^make test$`), ".ci/run make test"},
	{regexp.MustCompile(`^make run( PORT=\d+)?$`), "Makefile ./internal/tools/local"},       // this very test runs it
	{regexp.MustCompile(`^make (up|compose-test)`), "internal/tools/composetest/run.go up"}, // a container engine
	{regexp.MustCompile(`^docker compose`), "internal/tools/composetest/run.go up"},         // a container engine; make compose-test rehearses it
	{regexp.MustCompile(`^docker buildx`), ""},                                              // a registry
	{regexp.MustCompile(`^ingest provision`), "internal/e2e/roles_test.go provision"},       // the queue's user for that
	{regexp.MustCompile(`^docker build`), "internal/tools/composetest/run.go --build"},      // a container engine
	{regexp.MustCompile(`^make bench`), "internal/tools/bench/run_test.go TestEverySection"},
	{regexp.MustCompile(`^make profile`), "internal/tools/bench/run_test.go TestProfiles"},
	{regexp.MustCompile(`^go tool pprof`), "internal/tools/bench/run_test.go TestProfiles"}, // opens a browser
	{regexp.MustCompile(`^make chaos`), "internal/e2e/chaos_test.go TestChaos"},
	{regexp.MustCompile(`^make (screenshots|release)`), ""},                                  // minutes, and files of the repository
	{regexp.MustCompile(`^make manifests`), "internal/deploytest/yaml_test.go kubernetes"},   // schemas from the network
	{regexp.MustCompile(`kubectl|kustomize`), "internal/deploytest/yaml_test.go kubernetes"}, // a cluster
	{regexp.MustCompile(`COMMAND --help|^ingest serve`), "cmd/ingest/config_test.go --help"},
}

// way is how a command is run against the stack.
type way struct {
	input         string
	codes         []int  // exit statuses that are right; nil: 0
	of            string // the status of the purchase that stands for an id in it; "": delivered
	before, after func(s *reading)
}

// wayOf is that of a command: most are run as they stand.
func wayOf(command string) way {
	no, left := "no\n", []int{0, 3}
	for _, w := range []struct {
		begins string
		way
	}{
		{"curl http://127.0.0.1:8082/readyz", way{codes: []int{22}, before: (*reading).accessRefused, after: (*reading).accessComesBack}}, // 503, which is the lesson
		{".local/bin/ingest replay --status dead --yes", way{before: (*reading).oneDies, after: (*reading).everythingDelivered}},
		{"ingest replay --session", way{input: no, codes: []int{3}, of: "dead", before: (*reading).refuse}},
		{"ingest replay", way{input: no, codes: left}},
		{"ingest doctor", way{codes: []int{3}}},             // the key is of test mode, and the quickstart's live checkouts came
		{"ingest backfill --dry-run", way{codes: []int{3}}}, // something was missed
		{"ingest reconcile", way{codes: []int{3}}},          // purchases that the stand-in has never heard of
		{"ingest prune --older-than", way{input: no, codes: left}},
		{"ingest forget -", way{input: "ada@example.com\n", codes: []int{3}, before: (*reading).adaBuys}}, // the queue is an operator's to read
	} {
		if strings.HasPrefix(command, w.begins) {
			return w.way
		}
	}
	return way{}
}

// TestDocumentedCommands runs what the documentation tells its reader to type, against the stack that make run starts. What is not run
// here is run by another test, or needs what its comment says.
func TestDocumentedCommands(t *testing.T) {
	t.Chdir("../../..")
	s := startReading(t)
	used := make(map[int]bool)
	ran := make(map[string]bool)
	for _, file := range documents(t) {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range commandsOf(file, string(data)) {
			if strings.HasPrefix(c.comment, "needs your ") || ran[c.text] && file != "docs/quickstart.md" {
				continue
			}
			if i := slices.IndexFunc(elsewhere, func(e otherwise) bool { return e.command.MatchString(c.text) }); i >= 0 {
				used[i] = true
				continue
			}
			ran[c.text] = true
			s.run(c)
		}
	}
	if len(ran) < 25 {
		t.Errorf("only %d commands were found", len(ran))
	}
	for i, e := range elsewhere {
		if !used[i] {
			t.Errorf("no document has a command like %s any more", e.command)
		}
		if file, word, ok := strings.Cut(e.by, " "); ok {
			if data, err := os.ReadFile(filepath.Clean(file)); err != nil || !strings.Contains(string(data), word) {
				t.Errorf("%s should be run by %s: %v", e.command, e.by, err)
			}
		}
	}
}

// reading is somebody who types what a document says.
type reading struct {
	t    *testing.T
	at   addresses
	port int
	dir  string
	out  *lockedBuffer
	env  map[string][]string // of each program
	own  []string            // what was exported

	postgres string // where pg_dump is
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// startReading starts the stack as make run does.
func startReading(t *testing.T) *reading {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "documented") //nolint:usetesting // where the user that Postgres runs as can reach it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s := &reading{t: t, dir: dir, out: new(lockedBuffer)}
	for try := 0; ; try++ {
		s.port = 20000 + rand.IntN(10000)
		if s.at = newAddresses(s.port); s.at.free(t.Context(), s.port) == nil {
			break
		}
		if try == 100 {
			t.Fatal("no seven ports in a row are free")
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, []string{"-port", strconv.Itoa(s.port), "-dir", dir}, os.Getenv, s.out) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("the stack: %v", err)
		}
		if t.Failed() {
			for _, name := range []string{"ingest", "tiktok-worker"} {
				t.Logf("%s's log ends with:\n%s", name, process.Tail(filepath.Join(dir, name+".log")))
			}
		}
	})
	s.await("the stack to be up", func() bool {
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("the stack ended: %v\n%s", err, s.out)
		default:
		}
		return strings.Contains(s.out.String(), "Everything is up")
	})
	ingest := append(s.at.ingestEnv(s.at.withoutPassword(runtimeRole)),
		"MIGRATE_DATABASE_URL="+s.at.withoutPassword("postgres"), "PGPASSFILE="+filepath.Join(dir, "pgpass"))
	s.env = map[string][]string{"ingest": ingest, "pg_dump": ingest, "pg_restore": ingest, "tiktok-worker": s.at.workerEnv()}
	if s.postgres, err = pglocal.Binaries(); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *reading) await(what string, done func() bool) {
	s.t.Helper()
	if !wait.Until(s.t.Context(), 3*time.Minute, 50*time.Millisecond, done) {
		s.t.Fatalf("waited in vain for %s", what)
	}
}

// purchases asks ingest's API for a page of them.
func (s *reading) purchases(query string) string {
	_, body := get(s.t.Context(), "http://"+s.at.ingestAdmin+"/api/v1/purchases?"+query)
	return string(body)
}

func (s *reading) accessRefused() {
	s.await("the worker to be paused", func() bool {
		status, _ := get(s.t.Context(), "http://"+s.at.workerAdmin+"/readyz")
		return status == http.StatusServiceUnavailable
	})
}

func (s *reading) accessComesBack() {
	log, err := os.ReadFile(filepath.Join(s.dir, "tiktok-worker.log"))
	if err != nil || !strings.Contains(string(log), "TikTok denies access") {
		s.t.Errorf("the worker's log has no pause for denied access (%v)", err)
	}
	s.await("the worker to deliver again", func() bool {
		status, _ := get(s.t.Context(), "http://"+s.at.workerAdmin+"/readyz")
		return status == http.StatusOK
	})
	s.everythingDelivered()
}

func (s *reading) everythingDelivered() {
	s.t.Helper()
	s.await("everything to be delivered", func() bool {
		for _, status := range []string{"pending", "published", "retrying", "dead"} {
			if strings.Contains(s.purchases("status="+status), `"cs_`) {
				return false
			}
		}
		return true
	})
}

func (s *reading) oneDies() {
	s.await("a purchase to be refused", func() bool { return strings.Contains(s.purchases("status=dead"), `"cs_`) })
}

// refuse lets TikTok refuse a purchase for its content.
func (s *reading) refuse() {
	s.run(written{"", `curl -X POST http://127.0.0.1:8083/faults -d '{"code":40002,"count":1}'`, ""})
	s.run(written{"", "go run ./internal/tools/stripegen", ""})
	s.oneDies()
}

func (s *reading) adaBuys() {
	s.run(written{"", "go run ./internal/tools/stripegen -email ada@example.com", ""})
}

// session is the id of a purchase with this status.
func (s *reading) session(status string) string {
	id := regexp.MustCompile(`cs_test_\w+`).FindString(s.purchases("status=" + status))
	if id == "" {
		s.t.Fatalf("no purchase is %s", status)
	}
	return id
}

// run types a command, with what stands for something put in.
func (s *reading) run(c written) {
	s.t.Helper()
	how := wayOf(c.text)
	if how.codes == nil {
		how.codes = []int{0}
	}
	if how.before != nil {
		how.before(s)
	}
	text := regexp.MustCompile(`127\.0\.0\.1:80(8\d)`).ReplaceAllStringFunc(c.text, func(a string) string {
		n, _ := strconv.Atoi(a[len(a)-1:])
		return fmt.Sprintf("127.0.0.1:%d", s.port+n)
	})
	if id := regexp.MustCompile(`cs_(live_|test_)?…|<id>`); id.MatchString(text) {
		text = id.ReplaceAllString(text, s.session(cmp.Or(how.of, "delivered")))
	}
	for from, to := range map[string]string{
		"postgres://ingest:…@host/db": "$DATABASE_URL", "postgres://owner:…@host/db": "$MIGRATE_DATABASE_URL",
		"postgres://owner@host/db": "'" + s.at.withoutPassword("postgres") + "'", "$PWD/.local/": s.dir + "/",
		".local/bin/": filepath.Join(s.dir, "bin") + "/", "ledger.dump": filepath.Join(s.dir, "ledger.dump"),
	} {
		text = strings.ReplaceAll(text, from, to)
	}
	if assignment, ok := strings.CutPrefix(text, "export "); ok {
		s.own = append(s.own, strings.Fields(strings.ReplaceAll(assignment, "'", ""))...)
		return
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", `curl() { command curl -sS --fail-with-body "$@"; }; `+text)
	cmd.Stdin = strings.NewReader(how.input)
	cmd.Env = append(environment(os.Getenv), "PATH="+filepath.Join(s.dir, "bin")+":"+os.Getenv("PATH")+":"+s.postgres,
		"WEBHOOK_URL=http://"+s.at.ingest+"/webhooks/stripe")
	for program, env := range s.env {
		if regexp.MustCompile(`(^| |/)` + program + ` `).MatchString(text + " ") {
			cmd.Env = append(cmd.Env, env...)
		}
	}
	cmd.Env = append(cmd.Env, s.own...)
	out, err := cmd.CombinedOutput()
	if code := cmd.ProcessState.ExitCode(); !slices.Contains(how.codes, code) {
		s.t.Errorf("%s: `%s` ends with exit status %d (%v), not %v:\n%s", c.file, text, code, err, how.codes, out)
	} else {
		s.t.Logf("%s: `%s`: %d", c.file, c.text, code)
	}
	if how.after != nil {
		how.after(s)
	}
}
