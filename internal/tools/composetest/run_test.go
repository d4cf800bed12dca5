package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// stand is a docker that writes down what it is asked, and fails where a command has the words.
const stand = `#!/bin/sh
echo "$*" >>"$DOCKER_ASKED"
case "$*" in
*"$DOCKER_FAILS"*) echo "no $DOCKER_FAILS" >&2; exit 1 ;;
*" config --quiet") echo "required variable STRIPE_WEBHOOK_SECRET is missing a value" >&2; exit 1 ;;
esac
`

// rehearse runs the command with that docker.
func rehearse(t *testing.T, fails string, args ...string) (said string, asked []string, err error) {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	if err := os.WriteFile(filepath.Join(dir, "docker"), []byte(stand), 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "asked")
	var out strings.Builder
	err = run(t.Context(), args, []string{"DOCKER_ASKED=" + file, "DOCKER_FAILS=" + fails}, &out)
	text, wrong := os.ReadFile(file)
	if wrong != nil {
		t.Fatal(wrong)
	}
	return out.String(), strings.Split(strings.TrimSpace(string(text)), "\n"), err
}

// Without an engine there is one sentence, and nothing is wrong.
func TestSkipped(t *testing.T) {
	for fails, want := range map[string]string{"compose version": "docker has no Compose plugin here", "info": "no container engine answers"} {
		if said, asked, err := rehearse(t, fails); err != nil || said != "compose-test is skipped: "+want+"\n" {
			t.Errorf("without %s: %q, %v, %v", fails, said, asked, err)
		}
	}
	t.Setenv("PATH", t.TempDir())
	var out strings.Builder
	if err := run(t.Context(), nil, nil, &out); err != nil || out.String() != "compose-test is skipped: there is no docker on this machine\n" {
		t.Errorf("without docker: %q, %v", out.String(), err)
	}
}

// Whatever fails, everything is taken down, with the volumes, and nothing but this project's; but for who wants to look at it.
func TestTakesDown(t *testing.T) {
	down := "compose --env-file /dev/null -p " + project + " -f docker-compose.yml down -v --remove-orphans --rmi local"
	said, asked, err := rehearse(t, "up -d")
	if err == nil || !strings.Contains(err.Error(), "docker compose up --build --wait: ") || !slices.Contains(asked, down) {
		t.Errorf("up fails: %v, asked %q", err, asked)
	}
	logs := slices.IndexFunc(asked, func(a string) bool { return strings.HasSuffix(a, " logs --no-color --tail 20") })
	if logs < 0 || logs > slices.Index(asked, down) {
		t.Errorf("the containers' last words were not asked for before: %q, %q", asked, said)
	}
	for _, a := range asked {
		if strings.HasPrefix(a, "compose ") && a != "compose version" && !strings.Contains(a, " -p "+project+" ") {
			t.Errorf("docker %s is not about this project alone", a)
		}
	}
	if _, asked, err := rehearse(t, "up -d", "-keep"); err == nil || slices.Contains(asked, down) {
		t.Errorf("with -keep: %v, asked %q", err, asked)
	}
}

// Nothing of the caller's stack comes in: not its project, not its files, not the real TikTok.
func TestNothingComesIn(t *testing.T) {
	t.Parallel()
	e, err := newEngine([]string{
		"HOME=/home/me", "DOCKER_HOST=tcp://engine", "COMPOSE_PROJECT_NAME=mine", "COMPOSE_FILE=mine.yml", "COMPOSE_PROFILES=load",
		"TIKTOK_ACCESS_TOKEN=real", "DATABASE_URL=postgres://real", "STRIPE_API_KEY=real", "INGEST_PORT=8080",
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, pair := range e.env {
		name, value, _ := strings.Cut(pair, "=")
		if !slices.Contains([]string{"HOME", "DOCKER_HOST", "VERSION", "ADMIN_TOKEN", "SWEEP_GRACE", "SWEEP_INTERVAL", "INGEST_PORT", "ADMIN_PORT", "SIMULATOR_PORT"}, name) || value == "8080" {
			t.Errorf("%s is passed on", pair)
		}
	}
}
