package manual_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"purchase-relay/internal/testkit/manual"
)

func source(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// exact is a tag with a version of two numbers at least, or a digest.
var exact = regexp.MustCompile(`(:v?\d+\.\d+(\.\d+)?(-[\w.-]+)?$|@sha256:[0-9a-f]{64}$)`)

// No image is named by a tag that moves.
func TestImages_HaveExactVersions(t *testing.T) {
	t.Parallel()
	var images []string
	for _, m := range regexp.MustCompile(`(?mi)^FROM (\S+)`).FindAllStringSubmatch(source(t, "Dockerfile"), -1) {
		images = append(images, m[1])
	}
	for _, file := range []string{"docker-compose.yml", "deploy/compose.cluster.yml"} {
		for _, m := range regexp.MustCompile(`(?m)^\s+image: (?:\$\{[A-Z_]+:-)?([^\s}]+)`).FindAllStringSubmatch(source(t, file), -1) {
			images = append(images, m[1])
		}
	}
	for _, dir := range []string{"base", "migrate"} {
		for _, m := range regexp.MustCompile(`newTag: ([^\s}]+)`).FindAllStringSubmatch(source(t, "deploy/kubernetes/"+dir+"/kustomization.yaml"), -1) {
			images = append(images, dir+":"+m[1])
		}
	}
	if len(images) < 11 {
		t.Fatalf("images = %q, want all of them", images)
	}
	for _, image := range images {
		if image != "scratch" && !exact.MatchString(image) {
			t.Errorf("%s: want an exact version", image)
		}
	}
}

// What the Makefile runs by `go run` or downloads has an exact version.
func TestTools_HaveExactVersions(t *testing.T) {
	t.Parallel()
	found := regexp.MustCompile(`(?m)^[A-Z]+\s*:= ((?:github\.com|golang\.org|sigs\.k8s\.io)/\S+)$`).FindAllStringSubmatch(source(t, "Makefile"), -1)
	if len(found) < 6 {
		t.Fatalf("tools = %q, want all of them", found)
	}
	for _, m := range found {
		if !regexp.MustCompile(`@v\d+\.\d+\.\d+$`).MatchString(m[1]) {
			t.Errorf("%s: want an exact version", m[1])
		}
	}
	for _, file := range []string{"Makefile", "Dockerfile", ".ci/run"} {
		if strings.Contains(source(t, file), "@latest") {
			t.Errorf("%s names a version that moves", file)
		}
	}
}

// A real token makes every secret required that has a published default, and switches the exemption for
// published secrets off.
func TestCompose_RealTokenRequiresRealSecrets(t *testing.T) {
	t.Parallel()
	main, cluster := source(t, "docker-compose.yml"), source(t, "deploy/compose.cluster.yml")
	required := source(t, "deploy/compose/secrets-real.yml") + source(t, "deploy/compose/cluster-real.yml")
	published := map[string]bool{}
	for _, m := range regexp.MustCompile(`\$\{([A-Z_]+):-(?:local-only|whsec_local)[a-z-]*\}`).FindAllStringSubmatch(main+cluster, -1) {
		published[m[1]] = true
	}
	if len(published) < 8 {
		t.Fatalf("published = %v, want all of them", published)
	}
	for name := range published {
		if !strings.Contains(required, "- ${"+name+":?") {
			t.Errorf("%s has a published default and is not required with a real token", name)
		}
	}
	for text, include := range map[string]string{main: "deploy/compose/secrets", cluster: "deploy/compose/cluster"} {
		if !strings.Contains(text, "\ninclude:\n  - "+include+"${TIKTOK_ACCESS_TOKEN:+-real}.yml\n") {
			t.Errorf("%s is not included", include)
		}
	}
	for _, service := range []string{"ingest", "tiktok"} {
		for suffix, want := range map[string]string{"": "LOCAL_STACK=true", "-real": "LOCAL_STACK="} {
			file := "deploy/compose/" + service + suffix + ".env"
			if !slices.Contains(strings.Split(source(t, file), "\n"), want) {
				t.Errorf("%s has no line %q", file, want)
			}
		}
	}
}

// The schema owner's password and the right to change streams are each one container's.
func TestCompose_EachSecretInOnePlace(t *testing.T) {
	t.Parallel()
	compose, err := manual.ReadCompose(root)
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range compose.Services {
		told := fmt.Sprint(s.Environment)
		for secret, holders := range map[string][]string{
			"MIGRATE_DATABASE_URL": {"migrate"}, "${POSTGRES_PASSWORD": {"migrate", "postgres"}, "${NATS_PROVISION_PASSWORD": {"nats", "provision"},
			"${NATS_WORKER_PASSWORD": {"nats", "tiktok-worker"}, "${NATS_INGEST_PASSWORD": {"nats", "ingest"}, "STRIPE_WEBHOOK_SECRET": {"ingest"},
			"TIKTOK_ACCESS_TOKEN": {"tiktok-worker"}, "${INGEST_DATABASE_PASSWORD": {"postgres", "ingest", "migrate", "prune"},
		} {
			if strings.Contains(told, secret) != slices.Contains(holders, name) {
				t.Errorf("%s: has %s = %t, want it with %v", name, secret, !slices.Contains(holders, name), holders)
			}
		}
	}
	if got := compose.Services["ingest"].DependsOn["migrate"].Condition; got != "service_completed_successfully" {
		t.Errorf("ingest waits for migrate: %q", got)
	}
}

// The profile that prunes does so by a schedule of its own: the image has no cron.
func TestCompose_Prunes(t *testing.T) {
	t.Parallel()
	compose, err := manual.ReadCompose(root)
	if err != nil {
		t.Fatal(err)
	}
	s := compose.Services["prune"]
	want := "[prune --yes --every 24h --older-than ${PRUNE_OLDER_THAN:-90d} --also dead,rejected,awaiting_payment]"
	if got := fmt.Sprint(s.Command); got != want || !slices.Equal(s.Profiles, []string{"prune"}) {
		t.Errorf("command = %s, profiles = %v, want %s", got, s.Profiles, want)
	}
}

// No command, health check or script that is shipped has a secret in its arguments: every local user can list
// those.
func TestShipped_NoSecretInArguments(t *testing.T) {
	t.Parallel()
	secrets := regexp.MustCompile(`\$\{?[A-Z_]*(PASSWORD|TOKEN|SECRET|API_KEY|DATABASE_URL|NATS_URL)|:[^/\s]+@`)
	compose, err := manual.ReadCompose(root)
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range compose.Services {
		for _, args := range []string{fmt.Sprint(s.Command), fmt.Sprint(s.Healthcheck.Test)} {
			if secrets.MatchString(args) {
				t.Errorf("docker-compose.yml: %s: arguments hold a secret: %s", name, args)
			}
		}
	}
	for line := range strings.Lines(source(t, "deploy/compose.cluster.yml")) {
		if strings.Contains(line, "command:") && secrets.MatchString(line) || strings.Contains(line, "--cluster") || strings.Contains(line, "--routes") {
			t.Errorf("deploy/compose.cluster.yml: arguments hold a secret: %s", line)
		}
	}
	for _, o := range objects(t) {
		for _, c := range append(o.Spec.Template.Spec.Containers, o.Spec.JobTemplate.Spec.Template.Spec.Containers...) {
			if args := strings.Join(c.Args, " "); secrets.MatchString(args) {
				t.Errorf("%s: arguments hold a secret: %s", o.Metadata.Name, args)
			}
		}
	}
	for line := range strings.Lines(strings.ReplaceAll(source(t, "deploy/postgres/roles.sh"), "\\\n", " ")) {
		if strings.HasPrefix(line, "psql") && secrets.MatchString(line) {
			t.Errorf("roles.sh: %s", line)
		}
	}
	checkSnippets(t)
}

// checkSnippets looks through commands of the documents: curl's headers and Postgres' own programs.
func checkSnippets(t *testing.T) {
	t.Helper()
	header := regexp.MustCompile(`-H\s*["']Authorization`)
	client := regexp.MustCompile(`\b(psql|pg_dump|pg_restore)\b.*(\$\{?[A-Z_]*(DATABASE_URL|PASSWORD)|://[^\s:@/]+:[^\s@/]+@)`)
	err := fs.WalkDir(os.DirFS(root), ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && slices.Contains([]string{".git", ".local", "node_modules", "internal", "dist"}, entry.Name()) {
			return fs.SkipDir
		}
		if extension := filepath.Ext(name); !slices.Contains([]string{".md", ".sh", ".yml", ".yaml", ".example"}, extension) && filepath.Base(name) != "Makefile" {
			return nil
		}
		text, err := os.ReadFile(filepath.Join(root, name))
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a link to nowhere
		} else if err != nil {
			return err
		}
		for line := range strings.Lines(string(text)) {
			if header.MatchString(line) || client.MatchString(line) {
				t.Errorf("%s: a secret in an argument: %s", name, strings.TrimSpace(line))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
