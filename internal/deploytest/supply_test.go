package deploytest

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Images and tools have exact versions: the same commit builds and runs the same things tomorrow.
func TestSupply_HasExactVersions(t *testing.T) {
	t.Parallel()
	image := regexp.MustCompile(`(:v?\d+\.\d+(\.\d+)?(-[\w.-]+)?|@sha256:[0-9a-f]{64}|^scratch)$`)
	module := regexp.MustCompile(`@v\d+\.\d+\.\d+$`)
	imageLine := `(?m)^\s+image: (?:\$\{[A-Z_]+:-)?([^\s}]+)`
	for _, tc := range []struct {
		file  string
		find  string // its first group is the versioned name
		least int
		exact *regexp.Regexp
	}{
		// A name without a colon is a stage of the file.
		{"Dockerfile", `(?mi)^FROM (\S+:\S+)`, 1, image},
		{"docker-compose.yml", imageLine, 5, image},
		{"deploy/compose.cluster.yml", imageLine, 0, image},
		{"deploy/kubernetes/base/kustomization.yaml", `newTag(: [^\s}]+)`, 2, image},
		{"deploy/kubernetes/migrate/kustomization.yaml", `newTag(: [^\s}]+)`, 1, image},
		{"Makefile", `(?m)^[A-Z]+\s*:= ((?:github\.com|golang\.org|sigs\.k8s\.io)/\S+)$`, 7, module},
		{".goreleaser.yaml", `\brun, "([^"]+)"`, 2, module},
		{"deploy/linux/Dockerfile", `(?mi)^FROM (\S+:\S+)`, 1, image},
		{"internal/tools/licences.sh", `(?m)^tool=(\S+)$`, 1, module},
	} {
		text := read(t, tc.file)
		found := regexp.MustCompile(tc.find).FindAllStringSubmatch(text, -1)
		if len(found) < tc.least {
			t.Errorf("%s: versions = %q, want at least %d", tc.file, found, tc.least)
		}
		for _, m := range found {
			if name := strings.ReplaceAll(m[1], ": ", ":"); !tc.exact.MatchString(name) {
				t.Errorf("%s: %s, want an exact version", tc.file, name)
			}
		}
	}
	for _, file := range []string{
		"Makefile", "Dockerfile", ".ci/run", "internal/tools/licences.sh", ".goreleaser.yaml",
	} {
		if strings.Contains(read(t, file), "@latest") {
			t.Errorf("%s names a version that moves", file)
		}
	}
}

// Each way to build the binaries links the same facts, so that a bug report names the commit.
func TestBuilds_LinkVersionCommitAndDate(t *testing.T) {
	t.Parallel()
	for _, file := range []string{"Makefile", "Dockerfile", ".goreleaser.yaml"} {
		for _, want := range []string{"-buildid=", "service.version=", "service.commit=", "service.committed="} {
			if !strings.Contains(read(t, file), want) {
				t.Errorf("%s does not link %s", file, want)
			}
		}
	}
}

// No command, health check or script that is shipped has a secret in its arguments, which every local user
// can list.
func TestShipped_NoSecretInArguments(t *testing.T) {
	t.Parallel()
	secret := regexp.MustCompile(
		`\$\{?[A-Z_]*(PASSWORD|TOKEN|SECRET|API_KEY|DATABASE_URL|NATS_URL|NATS_ROUTE)|:[^/\s]+@`)
	check := func(where, args string) {
		if secret.MatchString(args) {
			t.Errorf("%s: arguments hold a secret: %s", where, args)
		}
	}
	for _, file := range []string{"docker-compose.yml", "deploy/compose.cluster.yml"} {
		for name, service := range at(decode(t, file)[0], "services").(map[string]any) {
			for _, key := range []string{"command", "entrypoint", "healthcheck test"} {
				check(file+": "+name, text(service, key))
			}
		}
	}
	for name, template := range podTemplates(t) {
		check("deploy/kubernetes: "+name, fmt.Sprint(at(template, "spec containers 0 args")))
	}
	for line := range strings.Lines(strings.ReplaceAll(read(t, "deploy/postgres/roles.sh"), "\\\n", " ")) {
		if strings.HasPrefix(line, "psql") {
			check("deploy/postgres/roles.sh", line)
		}
	}
}

// Commands of the documents put no secret into an argument either: neither curl's header nor a Postgres URL.
func TestDocuments_NoSecretInArguments(t *testing.T) {
	t.Parallel()
	secret := regexp.MustCompile(`-H\s*["']Authorization|` +
		`\b(psql|pg_dump|pg_restore)\b.*(\$\{?[A-Z_]*(DATABASE_URL|PASSWORD)|://[^\s:@/]+:[^\s@/]+@)`)
	extensions := []string{".md", ".sh", ".yml", ".yaml", ".example"}
	skipped := []string{".git", ".local", "node_modules", "internal", "dist"}
	err := fs.WalkDir(os.DirFS(root), ".", func(name string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && slices.Contains(skipped, entry.Name()):
			return fs.SkipDir
		case !entry.Type().IsRegular():
			return nil
		case !slices.Contains(extensions, filepath.Ext(name)) && name != "Makefile":
			return nil
		}
		for line := range strings.Lines(read(t, name)) {
			if secret.MatchString(line) {
				t.Errorf("%s: a secret in an argument: %s", name, strings.TrimSpace(line))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
