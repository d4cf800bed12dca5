package deploytest

import (
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"purchase-relay/internal/testkit/manual"
)

// service is a container of docker-compose.yml.
type service struct {
	Command     any               `yaml:"command"` // a string or a list
	EnvFile     string            `yaml:"env_file"`
	Environment map[string]string `yaml:"environment"`
	Profiles    []string          `yaml:"profiles"`
	Healthcheck struct {
		Test []string `yaml:"test"`
	} `yaml:"healthcheck"`
	DependsOn map[string]struct {
		Condition string `yaml:"condition"`
	} `yaml:"depends_on"`
}

// assigned is a line NAME=value of an environment file, or #NAME=value of .env.example.
var assigned = regexp.MustCompile(`(?m)^#?([A-Z_]+)=(.*)$`)

func assignments(text string) map[string]string {
	values := map[string]string{}
	for _, m := range assigned.FindAllStringSubmatch(text, -1) {
		values[m[1]] = m[2]
	}
	return values
}

// services reads docker-compose.yml, with the environment of each service's file for the local stack.
func services(t *testing.T) map[string]service {
	t.Helper()
	var file struct {
		Services map[string]service `yaml:"services"`
	}
	if err := yaml.Unmarshal([]byte(read(t, "docker-compose.yml")), &file); err != nil {
		t.Fatal(err)
	}
	for _, s := range file.Services {
		if s.EnvFile != "" {
			maps.Copy(s.Environment, assignments(read(t, strings.Replace(s.EnvFile, withToken, "", 1))))
		}
	}
	return file.Services
}

// withToken is the part of an included file's name that a TIKTOK_ACCESS_TOKEN changes to -real.
const withToken = "${TIKTOK_ACCESS_TOKEN:+-real}"

// composeFiles returns the text of docker-compose.yml, the cluster's file and the files that they include.
func composeFiles(t *testing.T) string {
	t.Helper()
	included, err := filepath.Glob(filepath.Join(root, "deploy/compose/*"))
	if err != nil {
		t.Fatal(err)
	}
	text := read(t, "docker-compose.yml") + read(t, "deploy/compose.cluster.yml")
	for _, file := range included {
		text += read(t, strings.TrimPrefix(file, root))
	}
	return text
}

// variables returns a binary's variables by name.
func variables(t *testing.T, binary string) map[string]manual.Variable {
	t.Helper()
	list, err := manual.Variables(root, binary)
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]manual.Variable{}
	for _, v := range list {
		known[v.Name] = v
	}
	return known
}

// A container gets only variables that its binary takes, and each variable reaches a container.
func TestCompose_PassesVariables(t *testing.T) {
	t.Parallel()
	all := services(t)
	for binary, containers := range map[string][]string{
		"ingest":        {"ingest", "migrate", "provision", "prune"},
		"tiktok-worker": {"tiktok-worker"},
	} {
		known := variables(t, binary)
		passed := map[string]bool{"GOMEMLIMIT": true}
		for _, container := range containers {
			for name := range all[container].Environment {
				if _, ok := known[name]; !ok && name != "GOMEMLIMIT" {
					t.Errorf("%s gets %s, which %s does not take", container, name, binary)
				}
				passed[name] = true
			}
		}
		for name := range known {
			if !passed[name] {
				t.Errorf("docker-compose.yml does not pass %s to %s", name, binary)
			}
		}
	}
	for _, container := range []string{"ingest", "tiktok-worker"} {
		file := all[container].EnvFile
		local := assignments(read(t, strings.Replace(file, withToken, "", 1)))
		token := assignments(read(t, strings.Replace(file, withToken, "-real", 1)))
		if got, want := slices.Sorted(maps.Keys(token)), slices.Sorted(maps.Keys(local)); !slices.Equal(got, want) {
			t.Errorf("%s gets %v with a token, want the variables without one: %v", container, got, want)
		}
	}
}

// Compose reads only variables that .env.example lists, which lists no others. A default that Compose repeats
// is the binary's, apart from those of the local stack.
func TestCompose_RepeatsDefaults(t *testing.T) {
	t.Parallel()
	local := map[string][]string{
		"ADMIN_HOSTS":            {"ingest", "tiktok-worker"},
		"ADMIN_TOKEN":            {"local-only"},
		"CHECKOUT_MODES":         {"subscription,payment"},
		"DATABASE_URL":           {"postgres://ingest:"},
		"MIGRATE_DATABASE_URL":   {"postgres://purchase_relay:"},
		"NATS_MAX_BYTES":         {"1GiB"},
		"STRIPE_WEBHOOK_SECRET":  {"whsec_local"},
		"TIKTOK_API_URL":         {"http://tiktok-simulator:8083/open_api/v1.3/event/track/"},
		"TIKTOK_PIXEL_ID":        {"LOCALPIXEL"},
		"TIKTOK_TEST_EVENT_CODE": {"TEST12345"},
		"TIKTOK_TEST_MODE":       {"send"},
	}
	example := assignments(read(t, ".env.example"))
	known := variables(t, "ingest")
	maps.Copy(known, variables(t, "tiktok-worker"))
	interpolated := map[string]bool{}
	variable := regexp.MustCompile(`\$\{([A-Z_]+)(?::-([^$}]*))?`)
	for _, m := range variable.FindAllStringSubmatch(composeFiles(t), -1) {
		name, got := m[1], m[2]
		want, listed := example[name]
		if v, ok := known[name]; ok {
			want = v.Default
		}
		interpolated[name] = true
		if !listed {
			t.Errorf(".env.example lacks %s, which Compose reads", name)
		} else if got != "" && got != want && want != "…" && !slices.Contains(local[name], got) {
			t.Errorf("Compose has %s = %q, want %q as the binary or .env.example", name, got, want)
		}
	}
	for name := range example {
		if _, ok := known[name]; !ok && !interpolated[name] {
			t.Errorf(".env.example lists %s, which nothing reads", name)
		}
	}
}

// A real token makes every secret required that has a published default, and ends the exemption for published
// secrets.
func TestCompose_RealTokenRequiresRealSecrets(t *testing.T) {
	t.Parallel()
	main, cluster := read(t, "docker-compose.yml"), read(t, "deploy/compose.cluster.yml")
	required := read(t, "deploy/compose/secrets-real.yml") + read(t, "deploy/compose/cluster-real.yml")
	published := map[string]bool{}
	defaulted := regexp.MustCompile(`\$\{([A-Z_]+):-(?:local-only|whsec_local)[a-z-]*\}`)
	for _, m := range defaulted.FindAllStringSubmatch(main+cluster, -1) {
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
	for _, tc := range []struct{ name, text, line string }{
		{"docker-compose.yml", main, "  - deploy/compose/secrets" + withToken + ".yml"},
		{"compose.cluster.yml", cluster, "  - deploy/compose/cluster" + withToken + ".yml"},
		{"ingest.env", read(t, "deploy/compose/ingest.env"), "LOCAL_STACK=true"},
		{"ingest-real.env", read(t, "deploy/compose/ingest-real.env"), "LOCAL_STACK="},
		{"tiktok.env", read(t, "deploy/compose/tiktok.env"), "LOCAL_STACK=true"},
		{"tiktok-real.env", read(t, "deploy/compose/tiktok-real.env"), "LOCAL_STACK="},
	} {
		if !slices.Contains(strings.Split(tc.text, "\n"), tc.line) {
			t.Errorf("%s has no line %q", tc.name, tc.line)
		}
	}
}

// Each secret is in the environment of the containers that need it, and of no other.
func TestCompose_EachSecretInOnePlace(t *testing.T) {
	t.Parallel()
	for secret, want := range map[string][]string{
		"MIGRATE_DATABASE_URL":       {"migrate"},
		"STRIPE_WEBHOOK_SECRET":      {"ingest"},
		"TIKTOK_ACCESS_TOKEN":        {"tiktok-worker"},
		"${POSTGRES_PASSWORD":        {"migrate", "postgres"},
		"${INGEST_DATABASE_PASSWORD": {"ingest", "migrate", "postgres", "prune"},
		"${NATS_INGEST_PASSWORD":     {"ingest", "nats"},
		"${NATS_PROVISION_PASSWORD":  {"nats", "provision"},
		"${NATS_WORKER_PASSWORD":     {"nats", "tiktok-worker"},
	} {
		var got []string
		for name, s := range services(t) {
			if strings.Contains(fmt.Sprint(s.Environment), secret) {
				got = append(got, name)
			}
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("%s is in the environment of %v, want %v", secret, got, want)
		}
	}
}

func TestCompose_MigratesBeforeIngest(t *testing.T) {
	t.Parallel()
	if got := services(t)["ingest"].DependsOn["migrate"].Condition; got != "service_completed_successfully" {
		t.Errorf("ingest's condition for migrate = %q, want service_completed_successfully", got)
	}
}

// The image has no cron: the profile repeats the command itself.
func TestCompose_Prunes(t *testing.T) {
	t.Parallel()
	s := services(t)["prune"]
	const want = "[prune --yes --every 24h --older-than ${PRUNE_OLDER_THAN:-90d} " +
		"--also dead,rejected,awaiting_payment]"
	if got := fmt.Sprint(s.Command); got != want || !slices.Equal(s.Profiles, []string{"prune"}) {
		t.Errorf("command = %s, profiles = %v, want %s", got, s.Profiles, want)
	}
}
