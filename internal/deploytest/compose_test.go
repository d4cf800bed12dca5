package deploytest

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"purchase-relay/internal/testkit/manual"
)

// assigned is a line NAME=value of an environment file, or #NAME=value of .env.example.
var assigned = regexp.MustCompile(`(?m)^#?([A-Z_]+)=(.*)$`)

func assignments(text string) map[string]string {
	values := map[string]string{}
	for _, m := range assigned.FindAllStringSubmatch(text, -1) {
		values[m[1]] = m[2]
	}
	return values
}

// withToken is the part of an included file's name that a TIKTOK_ACCESS_TOKEN changes to -real.
const withToken = "${TIKTOK_ACCESS_TOKEN:+-real}"

// environments returns the environment of each service of docker-compose.yml, with that of its file for the
// local stack.
func environments(t *testing.T) map[string]map[string]string {
	t.Helper()
	all := map[string]map[string]string{}
	for name, service := range at(decode(t, "docker-compose.yml")[0], "services").(map[string]any) {
		file := strings.Replace(text(service, "env_file"), withToken, "", 1)
		all[name] = map[string]string{}
		if file != "" {
			all[name] = assignments(read(t, file))
		}
		set, _ := at(service, "environment").(map[string]any)
		for variable, value := range set {
			all[name][variable] = fmt.Sprint(value)
		}
	}
	return all
}

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
	all := environments(t)
	for binary, containers := range map[string][]string{
		"ingest":        {"ingest", "migrate", "provision", "prune"},
		"tiktok-worker": {"tiktok-worker"},
	} {
		known := variables(t, binary)
		passed := map[string]bool{"GOMEMLIMIT": true}
		for _, container := range containers {
			for name := range all[container] {
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
	for _, name := range []string{"ingest", "tiktok"} {
		local := assignments(read(t, "deploy/compose/"+name+".env"))
		real := assignments(read(t, "deploy/compose/"+name+"-real.env"))
		if got, want := slices.Sorted(maps.Keys(real)), slices.Sorted(maps.Keys(local)); !slices.Equal(got, want) {
			t.Errorf("%s-real.env sets %v, want the variables of %s.env: %v", name, got, name, want)
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
		"TIKTOK_ADVERTISER_ID":   {"7000000000000000001"},
		"TIKTOK_PIXEL_ID":        {"LOCALPIXEL"},
		"TIKTOK_STATS_INTERVAL":  {"1m"},
		"TIKTOK_STATS_URL":       {"http://tiktok-simulator:8083/open_api/v1.3/pixel/event/stats/"},
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
	required := read(t, "deploy/compose/secrets-real.yml") + read(t, "deploy/compose/cluster-real.yml")
	defaulted := regexp.MustCompile(`\$\{([A-Z_]+):-(?:local-only|whsec_local)[a-z-]*\}`)
	published := defaulted.FindAllStringSubmatch(composeFiles(t), -1)
	if len(published) < 8 {
		t.Fatalf("published = %v, want all of them", published)
	}
	for _, m := range published {
		if !strings.Contains(required, "- ${"+m[1]+":?") {
			t.Errorf("%s has a published default and is not required with a real token", m[1])
		}
	}
	for file, want := range map[string]string{
		"ingest.env": "true", "tiktok.env": "true", "ingest-real.env": "", "tiktok-real.env": "",
	} {
		if got, ok := assignments(read(t, "deploy/compose/"+file))["LOCAL_STACK"]; !ok || got != want {
			t.Errorf("%s: LOCAL_STACK = %q, %t, want %q", file, got, ok, want)
		}
	}
}

func TestCompose_Settings(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ file, path, want string }{
		{"docker-compose.yml", "include", "[deploy/compose/secrets" + withToken + ".yml]"},
		{"deploy/compose.cluster.yml", "include", "[deploy/compose/cluster" + withToken + ".yml]"},
		{"docker-compose.yml", "services ingest env_file", "deploy/compose/ingest" + withToken + ".env"},
		{"docker-compose.yml", "services tiktok-worker env_file", "deploy/compose/tiktok" + withToken + ".env"},
		{"docker-compose.yml", "services ingest depends_on migrate condition", "service_completed_successfully"},
		// The image has no cron: the command repeats itself.
		{"docker-compose.yml", "services prune command", "[prune --yes --every 24h --older-than " +
			"${PRUNE_OLDER_THAN:-90d} --also dead,rejected,awaiting_payment]"},
		{"docker-compose.yml", "services prune profiles", "[prune]"},
		{"docker-compose.yml", "services prometheus profiles", "[observability]"},
		{"docker-compose.yml", "services grafana profiles", "[observability]"},
		{"deploy/grafana/provisioning/datasources/prometheus.yml", "datasources 0 url", "http://prometheus:9090"},
		{
			"deploy/grafana/provisioning/dashboards/purchase-relay.yml", "providers 0 options path",
			"/var/lib/grafana/dashboards",
		},
	} {
		if got := text(decode(t, tc.file)[0], tc.path); got != tc.want {
			t.Errorf("%s: %s = %s, want %s", tc.file, tc.path, got, tc.want)
		}
	}
}

// Ports are published on loopback only. The files that containers mount exist and are read-only.
func TestCompose_PortsAndMounts(t *testing.T) {
	t.Parallel()
	published, mounted := 0, 0
	for name, service := range at(decode(t, "docker-compose.yml")[0], "services").(map[string]any) {
		for _, port := range list(service, "ports") {
			published++
			if !strings.HasPrefix(fmt.Sprint(port), "127.0.0.1:") {
				t.Errorf("%s publishes %s, want loopback only", name, port)
			}
		}
		for _, volume := range list(service, "volumes") {
			source, target, _ := strings.Cut(fmt.Sprint(volume), ":")
			if !strings.HasPrefix(source, "./") {
				continue
			}
			mounted++
			if _, err := os.Stat(filepath.Join(root, source)); err != nil || !strings.HasSuffix(target, ":ro") {
				t.Errorf("%s mounts %s: %v, want an existing file, read-only", name, volume, err)
			}
		}
	}
	if published < 5 || mounted < 5 {
		t.Errorf("ports = %d, mounts = %d, want at least 5 each", published, mounted)
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
		for name, set := range environments(t) {
			if strings.Contains(fmt.Sprint(set), secret) {
				got = append(got, name)
			}
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("%s is in the environment of %v, want %v", secret, got, want)
		}
	}
}
