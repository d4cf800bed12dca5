package service_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"purchase-relay/internal/secret"
	"purchase-relay/internal/service"
)

// program is one like ours.
type program struct {
	Serve struct{} `cmd:"" default:"1" help:"Work (the default)."`
	Mend  struct {
		Status string `noenv:"" enum:",dead,skipped" default:"" help:"It's dead: or skipped."`
		Yes    bool   `noenv:"" short:"y" help:"Do not ask."`
	} `cmd:"" help:"Mend what's broken."`
	Token    secret.String `help:"A secret."`
	LogLevel string        `default:"info" enum:"debug,info" help:"How much to say."`
}

// printed is what a call prints; every one here ends with help.
func printed(t *testing.T, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	// What the environment holds is no matter, and is in no script.
	getenv := func(name string) string {
		return map[string]string{"TOKEN": "hunter2", "LOG_LEVEL": "nonsense", "VERSION": "hunter2"}[name]
	}
	if _, err := service.Parse(&program{}, "our-program", "It works.", args, getenv, &out); !errors.Is(err, service.ErrHelp) {
		t.Fatalf("%v: %v", args, err)
	}
	if strings.Contains(out.String(), "hunter2") {
		t.Errorf("%v: a secret was printed: %s", args, &out)
	}
	return out.String()
}

// Each shell itself says what it would offer.
func TestCompletion(t *testing.T) {
	for shell, ask := range map[string]func(script, line string) []string{
		"bash": func(script, line string) []string {
			return []string{"-c", `source "$0"; eval "COMP_WORDS=($1)"; COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _our_program; printf '%s\n' "${COMPREPLY[@]}"`, script, line}
		},
		"fish": func(script, line string) []string {
			return []string{"--no-config", "-c", "source $argv[1]; complete -C (string replace -a \"''\" '' -- $argv[2]) | string split -f1 \\t; true", script, line}
		},
	} {
		t.Run(shell, func(t *testing.T) {
			path, err := exec.LookPath(shell)
			if err != nil {
				t.Skipf("%s is not installed", shell)
			}
			script := filepath.Join(t.TempDir(), "script")
			if err := os.WriteFile(script, []byte(printed(t, "completion", shell)), 0o600); err != nil {
				t.Fatal(err)
			}
			for line, want := range map[string][]string{
				"our-program me":               {"mend"},
				"our-program mend --s":         {"--status"},
				"our-program mend --status ''": {"dead", "skipped"},
				"our-program --log-level d":    {"debug"},
				"our-program completion f":     {"fish"},
			} {
				cmd := exec.CommandContext(t.Context(), path, ask(script, line)...)
				cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}
				out, err := cmd.CombinedOutput()
				got := strings.Fields(string(out))
				slices.Sort(got)
				if err != nil || !slices.Equal(got, want) {
					t.Errorf("%s: %v, want %v (%v)", line, got, want, err)
				}
			}
		})
	}
	// zsh completes only where somebody types: its script is read.
	zsh := printed(t, "completion", "zsh")
	for _, want := range []string{"#compdef our-program\n", `'mend:Mend what'\''s broken.'`, `'--status:It'\''s dead\: or skipped.'`, "--status) compadd -- dead skipped", "--log-level) compadd -- debug info"} {
		if !strings.Contains(zsh, want) {
			t.Errorf("zsh's script lacks %q:\n%s", want, zsh)
		}
	}
	if path, err := exec.LookPath("zsh"); err == nil {
		cmd := exec.CommandContext(t.Context(), path, "-n", "/dev/stdin")
		cmd.Stdin = strings.NewReader(zsh)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("zsh does not understand its script: %v\n%s", err, out)
		}
	}
}

func TestVersionAndHelp(t *testing.T) {
	if version := printed(t, "--version"); !strings.HasPrefix(version, "our-program "+service.Version()+" (commit ") {
		t.Errorf("version: %s", version)
	}
	root := printed(t, "--help")
	for _, want := range []string{"mend ", "completion ", "Exit status: 0 done", "3 done", "$TOKEN", "$TOKEN_FILE"} {
		if !strings.Contains(root, want) {
			t.Errorf("the help lacks %q:\n%s", want, root)
		}
	}
	// A command's own flags come before those that all share.
	own := printed(t, "mend", "--help")
	if status, settings := strings.Index(own, "--status"), strings.Index(own, "Settings:"); status < 0 || settings < status {
		t.Errorf("a command's help:\n%s", own)
	}
	if strings.Contains(own, "$STATUS") || strings.Contains(root, "$VERSION") {
		t.Error("what is a flag alone is told as a variable")
	}
}
