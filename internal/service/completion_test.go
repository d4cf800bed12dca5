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

type program struct {
	Serve  struct{} `cmd:"" default:"1" help:"Work (the default)."`
	Repair struct {
		Status string `noenv:"" enum:",dead,skipped" default:"" help:"It's dead: or skipped."`
		Yes    bool   `noenv:"" short:"y" help:"Do not ask."`
	} `cmd:"" help:"Repair what's broken."`
	Token    secret.String `help:"A secret."`
	LogLevel string        `default:"info" enum:"debug,info" help:"Log level."`
}

// output returns what a command prints before it ends with ErrHelp. The environment must not matter.
func output(t *testing.T, args ...string) string {
	t.Helper()
	getenv := func(name string) string {
		return map[string]string{"TOKEN": "hunter2", "LOG_LEVEL": "nonsense", "VERSION": "hunter2"}[name]
	}
	var out bytes.Buffer
	_, err := service.Parse(&program{}, "our-program", "It works.", args, getenv, &out)
	if !errors.Is(err, service.ErrHelp) {
		t.Fatalf("Parse(%v) = %v, want ErrHelp", args, err)
	}
	if strings.Contains(out.String(), "hunter2") {
		t.Errorf("%v printed a secret:\n%s", args, &out)
	}
	return out.String()
}

func TestCompletion_InEachShell(t *testing.T) {
	const bash = `source "$0"; eval "COMP_WORDS=($1)"; COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
		_our_program; printf '%s\n' "${COMPREPLY[@]}"`
	const fish = `source $argv[1]
		complete -C (string replace -a "''" '' -- $argv[2]) | string split -f1 \t; true`
	for shell, options := range map[string][]string{"bash": {"-c", bash}, "fish": {"--no-config", "-c", fish}} {
		t.Run(shell, func(t *testing.T) {
			path, err := exec.LookPath(shell)
			if err != nil {
				t.Skipf("%s is not installed", shell)
			}
			script := filepath.Join(t.TempDir(), "script")
			if err := os.WriteFile(script, []byte(output(t, "completion", shell)), 0o600); err != nil {
				t.Fatal(err)
			}
			for line, want := range map[string][]string{
				"our-program re":                 {"repair"},
				"our-program repair --s":         {"--status"},
				"our-program repair --status ''": {"dead", "skipped"},
				"our-program --log-level d":      {"debug"},
				"our-program completion f":       {"fish"},
			} {
				cmd := exec.CommandContext(t.Context(), path, append(slices.Clone(options), script, line)...)
				cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}
				out, err := cmd.CombinedOutput()
				got := strings.Fields(string(out))
				slices.Sort(got)
				if err != nil || !slices.Equal(got, want) {
					t.Errorf("%s: completions = %q, %v, want %q", line, got, err, want)
				}
			}
		})
	}
}

// zsh completes only on a terminal, so its script is only parsed.
func TestCompletion_Zsh(t *testing.T) {
	script := output(t, "completion", "zsh")
	for _, part := range []string{
		"#compdef our-program\n", `'repair:Repair what'\''s broken.'`, `'--status:It'\''s dead\: or skipped.'`,
		"--status) compadd -- dead skipped", "--log-level) compadd -- debug info",
	} {
		if !strings.Contains(script, part) {
			t.Errorf("%q is missing in:\n%s", part, script)
		}
	}
	path, err := exec.LookPath("zsh")
	if err != nil {
		t.Skip("zsh is not installed")
	}
	cmd := exec.CommandContext(t.Context(), path, "-n", "/dev/stdin")
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("zsh -n = %v: %s", err, out)
	}
}

func TestParse_HelpOfCommand(t *testing.T) {
	help := output(t, "repair", "--help")
	own, settings, _ := strings.Cut(help, "Settings:")
	if !strings.Contains(own, "--status") || !strings.Contains(settings, "--token") {
		t.Errorf("help = %s\nwant the command's own flags before the settings", help)
	}
	if strings.Contains(help, "$STATUS") {
		t.Errorf("help = %s\nwant no variable for a noenv flag", help)
	}
}
