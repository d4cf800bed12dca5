// Package archtest tests the import rules of docs/architecture.md.
package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "purchase-relay/"

// domain is allowed everywhere.
var domain = []string{
	"internal/purchase", "internal/message", "internal/secret", "internal/logsafe", "internal/flood",
}

// steps are the steps of a purchase's path. A step imports no other step and no client.
var steps = []string{"internal/intake", "internal/relay", "internal/delivery", "internal/recorder"}

// clients talk to other systems. A client may import the step whose interface it implements, but no other
// client.
var clients = map[string][]string{
	"internal/stripe": {},
	"internal/ledger": {"internal/relay", "migrations"},
	"internal/queue":  {"internal/relay"},
	"internal/tiktok": {},
}

// ops is for operators. Only cmd and ops import it.
var ops = map[string][]string{
	"internal/ops/report":      {"internal/ledger", "internal/ops/guide"},
	"internal/ops/maintenance": {"internal/ledger", "internal/ops/report"},
	"internal/ops/backfill":    {"internal/ledger", "internal/ops/report"},
	"internal/ops/guide":       {"internal/tiktok"}, // the classes of its codes
	"internal/ops/notify":      {"internal/ops/report", "internal/ops/guide"},
	"internal/ops/stats":       {"internal/ops/guide"},
	"internal/ops/doctor":      {"internal/queue", "internal/tiktok", "internal/service", "internal/ops/guide"},
	"internal/ops/doctor/ingestdoctor": {
		"internal/ledger", "internal/queue", "internal/stripe", "internal/service", "internal/ops/doctor",
		"internal/ops/guide",
	},
	"internal/ops/dashboard": {"internal/ops/report", "internal/ops/maintenance", "internal/ops/guide"},
}

// allowed returns the module's packages that each product package may import.
func allowed() map[string][]string {
	all := map[string][]string{
		"internal/purchase": {}, "internal/secret": {}, "internal/logsafe": {}, "internal/flood": {},
		"migrations":       {},
		"internal/message": {"internal/purchase", "internal/logsafe"},
		"internal/service": {"internal/secret", "internal/logsafe", "internal/flood"},
	}
	cmd := append(slices.Clone(domain), "internal/service")
	for _, step := range steps {
		all[step], cmd = domain, append(cmd, step)
	}
	for _, group := range []map[string][]string{clients, ops} {
		for pkg, more := range group {
			all[pkg], cmd = append(slices.Clone(domain), more...), append(cmd, pkg)
		}
	}
	all["cmd/ingest"], all["cmd/tiktok-worker"] = cmd, cmd
	return all
}

// owners lists, by prefix, who may import third-party modules and some of the standard library. Without
// owners, only tests and development tools may.
var owners = map[string][]string{
	"golang.org/x/text/unicode/norm": {"internal/purchase"},
	"golang.org/x/net/idna":          {"internal/purchase"},
	"github.com/jackc/pgx/": {
		"internal/ledger", "internal/ops/backfill", "internal/ops/maintenance", "internal/ops/report",
	},
	"github.com/pressly/goose/":        {"internal/ledger"},
	"database/sql":                     {"internal/ledger"},
	"github.com/nats-io/nats.go":       {"internal/queue"},
	"github.com/tidwall/gjson":         {"internal/stripe"},
	"github.com/stripe/stripe-go/":     {"internal/stripe"},
	"github.com/alecthomas/kong":       {"internal/service"},
	"github.com/cenkalti/backoff/":     {"internal/ops/backfill", "internal/delivery"},
	"github.com/nats-io/nats-server/":  {},
	"testing":                          {},
	"net/http/httptest":                {},
	"github.com/google/go-cmp/":        {},
	"pgregory.net/rapid":               {},
	"github.com/jackc/pgx/v5/pgxpool/": {"internal/ledger"},
	"github.com/schollz/progressbar/":  {"cmd/ingest"},
	"github.com/prometheus/client_golang": {
		"internal/delivery", "internal/intake", "internal/ops/backfill", "internal/ops/dashboard",
		"internal/ops/notify", "internal/ops/stats", "internal/queue", "internal/recorder", "internal/relay",
		"internal/service",
	},
}

// stdlibOnly import no third-party module, except unicodeTables.
var stdlibOnly = []string{"internal/purchase", "internal/message", "internal/secret", "internal/logsafe"}

// unicodeTables are maintained by the Go project and do no I/O.
var unicodeTables = []string{"golang.org/x/text/unicode/norm", "golang.org/x/net/idna"}

// imports calls visit for each non-test file below top, with dep "", and for each of its imports. It reads
// the files itself, so that the test cache notices changes, unlike those that a child process reads.
func imports(t *testing.T, top string, visit func(pkg, file, dep string)) {
	t.Helper()
	root := os.DirFS("../..")
	err := fs.WalkDir(root, top, func(p string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(p, ".go") || strings.HasSuffix(p, "_test.go") {
			return err
		}
		visit(path.Dir(p), p, "")
		f := parse(t, root, p, parser.ImportsOnly)
		for _, im := range f.Imports {
			dep, err := strconv.Unquote(im.Path.Value)
			if err != nil {
				return err
			}
			visit(path.Dir(p), p, dep)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func parse(t *testing.T, root fs.FS, p string, mode parser.Mode) *ast.File {
	t.Helper()
	src, err := fs.ReadFile(root, p)
	if err != nil {
		t.Fatal(err)
	}
	f, err := parser.ParseFile(token.NewFileSet(), p, src, mode)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// forDevelopment reports whether a package is only for tests and developers.
func forDevelopment(pkg string) bool {
	return strings.HasPrefix(pkg, "internal/testkit") || strings.HasPrefix(pkg, "internal/tools")
}

func TestImports_FollowRules(t *testing.T) {
	seen, allowed := map[string]bool{}, allowed()
	for _, top := range []string{"cmd", "internal", "migrations"} {
		imports(t, top, func(pkg, file, dep string) {
			if forDevelopment(pkg) {
				return
			}
			seen[pkg] = true
			want, known := allowed[pkg]
			if !known {
				t.Errorf("%s has no import rule: add one here and to docs/architecture.md", pkg)
				return
			}
			if own, ours := strings.CutPrefix(dep, module); ours {
				if !slices.Contains(want, own) {
					t.Errorf("%s must not import %s", file, own)
				}
				return
			}
			for prefix, by := range owners {
				owned := dep == prefix || strings.HasPrefix(dep, strings.TrimSuffix(prefix, "/")+"/")
				if owned && !slices.Contains(by, pkg) {
					t.Errorf("%s must not import %s: only %v may", file, dep, by)
				}
			}
			external := strings.Contains(dep, ".") && !slices.Contains(unicodeTables, dep)
			if external && slices.Contains(stdlibOnly, pkg) {
				t.Errorf("%s must not import %s: only the standard library", file, dep)
			}
		})
	}
	for pkg := range allowed {
		if !seen[pkg] {
			t.Errorf("%s has an import rule but does not exist", pkg)
		}
	}
}

// The worker needs neither the database nor Stripe.
func TestWorker_LinksNoDatabase(t *testing.T) {
	deps := map[string][]string{}
	for _, top := range []string{"cmd", "internal"} {
		imports(t, top, func(pkg, _, dep string) {
			if own, ours := strings.CutPrefix(dep, module); ours {
				deps[pkg] = append(deps[pkg], own)
			}
		})
	}
	linked := map[string]bool{}
	var visit func(pkg string)
	visit = func(pkg string) {
		if !linked[pkg] {
			linked[pkg] = true
			for _, dep := range deps[pkg] {
				visit(dep)
			}
		}
	}
	visit("cmd/tiktok-worker")
	for _, pkg := range []string{"internal/ledger", "internal/stripe"} {
		if linked[pkg] {
			t.Errorf("cmd/tiktok-worker links %s", pkg)
		}
	}
	if !linked["internal/delivery"] {
		t.Error("cmd/tiktok-worker does not link internal/delivery: this test is broken")
	}
}

// A simulator that shared code with its client would share the client's mistakes.
func TestImports_SimulatorsAreIndependent(t *testing.T) {
	count := 0
	for _, top := range []string{"internal/testkit/tiktoksim", "internal/testkit/stripegen"} {
		imports(t, top, func(_, file, dep string) {
			count++
			if own, ours := strings.CutPrefix(dep, module); ours && !forDevelopment(own) {
				t.Errorf("%s must not import %s", file, own)
			}
		})
	}
	if count == 0 {
		t.Error("no simulator found")
	}
}

// main only calls run, so that tests can run the program without a process.
func TestMain_OnlyCallsRun(t *testing.T) {
	for _, p := range []string{"cmd/ingest/main.go", "cmd/tiktok-worker/main.go"} {
		src, err := os.ReadFile("../../" + p)
		if err != nil {
			t.Fatal(err)
		}
		if lines := strings.Count(string(src), "\n"); lines > 60 {
			t.Errorf("%s: lines = %d, want at most 60", p, lines)
		}
		for _, d := range parse(t, os.DirFS("../.."), p, 0).Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Name.Name != "main" {
				t.Errorf("%s declares %s, want main alone", p, f.Name.Name)
			}
		}
	}
}

func TestPackages_NoCatchAll(t *testing.T) {
	imports(t, "internal", func(pkg, _, _ string) {
		catchAlls := []string{"util", "utils", "common", "helpers", "models", "types", "services"}
		if slices.Contains(catchAlls, path.Base(pkg)) {
			t.Errorf("%s: want a package named after its subject", pkg)
		}
	})
}
