package service_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"purchase-relay/internal/secret"
	"purchase-relay/internal/service"
)

// cli is a command line like those of the binaries.
type cli struct {
	Serve struct {
		Depth int `default:"3" help:"How deep."`
	} `cmd:"" default:"1" help:"Serve."`
	Migrate struct{} `cmd:"" help:"Migrate."`

	Token    secret.String `name:"api-token" help:"The token."`
	Wait     time.Duration `default:"8s" help:"How long."`
	MaxRPS   float64       `name:"max-rps" default:"10" help:"How fast."`
	Modes    []string      `default:"a" help:"Which."`
	AddrName string        `default:":1" help:"Where."`

	service.LogConfig
}

// Settings implements service.Scoped: migrate uses few settings.
func (*cli) Settings(command string) []string {
	if command == "migrate" {
		return []string{"wait", "log-*"}
	}
	return nil
}

func parse(t *testing.T, env map[string]string, args ...string) (cli, string, string, error) {
	t.Helper()
	var c cli
	var out bytes.Buffer
	getenv := func(name string) string { return env[name] }
	command, err := service.Parse(&c, "prog", "Does things.", args, getenv, &out)
	return c, command, out.String(), err
}

func TestParse_ReadsFlagsAndVariables(t *testing.T) {
	t.Setenv("WAIT", "99s") // Parse must not read the process' environment
	type env = map[string]string
	for name, tc := range map[string]struct {
		env     env
		args    []string
		command string
		change  func(c *cli) // of the defaults
	}{
		"nothing":        {nil, nil, "serve", func(*cli) {}},
		"empty variable": {env{"ADDR_NAME": ""}, nil, "serve", func(*cli) {}},
		"secret":         {env{"API_TOKEN": "t"}, nil, "serve", func(c *cli) { c.Token = "t" }},
		"number":         {env{"MAX_RPS": "2.5"}, nil, "serve", func(c *cli) { c.MaxRPS = 2.5 }},
		"list": {
			env{"MODES": "x,y"}, nil, "serve", func(c *cli) { c.Modes = []string{"x", "y"} },
		},
		"embedded":               {env{"LOG_LEVEL": "warn"}, nil, "serve", func(c *cli) { c.LogLevel = "warn" }},
		"command's own variable": {env{"DEPTH": "5"}, nil, "serve", func(c *cli) { c.Serve.Depth = 5 }},
		"command's own flag": {
			nil, []string{"serve", "--depth=4"}, "serve", func(c *cli) { c.Serve.Depth = 4 },
		},
		"flag before variable": {
			env{"WAIT": "1s"}, []string{"migrate", "--wait=2s"}, "migrate", func(c *cli) { c.Wait = 2 * time.Second },
		},
		"flag before bad variable": {
			env{"WAIT": "soon"}, []string{"--wait=2s"}, "serve", func(c *cli) { c.Wait = 2 * time.Second },
		},
	} {
		t.Run(name, func(t *testing.T) {
			want := cli{Wait: 8 * time.Second, MaxRPS: 10, Modes: []string{"a"}, AddrName: ":1"}
			want.Serve.Depth = 3
			want.LogConfig = service.LogConfig{LogLevel: "info", LogFormat: "json"}
			tc.change(&want)
			got, command, _, err := parse(t, tc.env, tc.args...)
			if err != nil || command != tc.command || !reflect.DeepEqual(got, want) {
				t.Errorf("Parse = %+v, %q, %v, want %+v, %q", got, command, err, want, tc.command)
			}
		})
	}
}

func TestParse_CollectsProblems(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		env  map[string]string
		args []string
		want []string // beginnings, sorted
	}{
		"variables": {
			map[string]string{"WAIT": "soon", "MAX_RPS": "fast", "LOG_LEVEL": "loud", "API_TOKEN_FILE": "/nowhere"},
			nil,
			[]string{"API_TOKEN_FILE", "LOG_LEVEL", "MAX_RPS", "WAIT"},
		},
		"a variable and a flag": {
			map[string]string{"WAIT": "soon"}, []string{"--max-rps=fast"}, []string{"--max-rps", "WAIT"},
		},
		"an unknown flag alone": {
			map[string]string{"WAIT": "soon"}, []string{"--nonsense"}, []string{`unknown flag "--nonsense"`},
		},
		"a mistyped flag": {
			nil, []string{"migrate", "--wiat=3s"}, []string{`unknown flag "--wiat"; did you mean "--wait"?`},
		},
		"a mistyped flag of a command": {
			nil, []string{"serve", "--dept", "3"}, []string{`unknown flag "--dept"; did you mean "--depth"?`},
		},
		"a mistyped flag before the command": {
			nil, []string{"--max-rsp=3", "serve"}, []string{`unknown flag "--max-rsp"; did you mean "--max-rps"?`},
		},
		"an unknown short flag":  {nil, []string{"-x"}, []string{`unknown flag "-x"`}},
		"an address for a flag":  {nil, []string{"--ada@example.com"}, []string{"unknown flag"}},
		"another command's flag": {nil, []string{"migrate", "--depth=3"}, []string{`unknown flag "--depth"`}},
		"variables it does not use": {
			map[string]string{"MAX_RPS": "fast", "DEPTH": "low", "WAIT": "soon"},
			[]string{"migrate"},
			[]string{"WAIT"},
		},
		"the beginning of a command": {
			nil, []string{"mi"}, []string{`unknown command "mi"; did you mean "migrate"?`},
		},
		"a mistyped command": {
			nil, []string{"migrat"}, []string{`unknown command "migrat"; did you mean "migrate"?`},
		},
		"a mistyped default": {
			nil, []string{"srve"}, []string{`unknown command "srve"; did you mean "serve"?`},
		},
		"an unknown command":       {nil, []string{"dance"}, []string{`unknown command "dance"`}},
		"an address for a command": {nil, []string{"ada@example.com"}, []string{"unknown command"}},
		"an unexpected argument":   {nil, []string{"migrate", "ada@example.com"}, []string{"unexpected argument"}},
		"a secret and its file": {
			map[string]string{"API_TOKEN_FILE": "x", "API_TOKEN": "y"}, nil, []string{"API_TOKEN and API_TOKEN_FILE"},
		},
		"a secret's flag and its file": {
			map[string]string{"API_TOKEN_FILE": "x"},
			[]string{"--api-token=y"},
			[]string{"--api-token and API_TOKEN_FILE"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, _, err := parse(t, tc.env, tc.args...)
			var usage *service.UsageError
			if !errors.As(err, &usage) || len(usage.Problems) != len(tc.want) {
				t.Fatalf("error = %v, want a usage error with %d problems", err, len(tc.want))
			}
			slices.Sort(usage.Problems)
			for i, want := range tc.want {
				if got := usage.Problems[i]; !strings.HasPrefix(got, want) || strings.Contains(got, "@") {
					t.Errorf("problem = %q, want %q", got, want)
				}
			}
		})
	}
}

func TestParse_ReadsSecretFromFile(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("tok\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, _, _, err := parse(t, map[string]string{"API_TOKEN_FILE": file})
	if got := c.Token.Reveal(); err != nil || got != "tok" {
		t.Errorf("token = %q, %v, want tok", got, err)
	}
}

func TestParse_HelpListsFlagsAndVariables(t *testing.T) {
	t.Parallel()
	_, _, help, err := parse(t, nil, "--help")
	if !errors.Is(err, service.ErrHelp) || service.ExitCode(err, io.Discard) != 0 {
		t.Fatalf("error = %v, want ErrHelp", err)
	}
	for _, want := range []string{
		"serve", "migrate", "completion", "--api-token", "$API_TOKEN", "$API_TOKEN_FILE", "--wait", "$WAIT", "8s",
		"$LOG_LEVEL", "Exit status: 0 done",
	} {
		if !strings.Contains(help, want) {
			t.Errorf("the help lacks %q:\n%s", want, help)
		}
	}
	if strings.Contains(help, "$VERSION") {
		t.Errorf("the help has a variable for --version:\n%s", help)
	}
}

// A command's help and completion have the settings that it uses, and no others.
func TestParse_ScopesSettings(t *testing.T) {
	t.Parallel()
	script := func(shell string) string {
		_, _, out, _ := parse(t, nil, "completion", shell)
		_, after, _ := strings.Cut(out, "\n    migrate)")
		line, _, _ := strings.Cut(after, "\n")
		return line
	}
	_, _, help, _ := parse(t, nil, "migrate", "--help")
	for name, text := range map[string]string{"help": help, "bash": script("bash"), "zsh": script("zsh")} {
		for flag, want := range map[string]bool{
			"--wait": true, "--log-level": true, "--log-format": true, "--help": true, "--version": true,
			"--max-rps": false, "--api-token": false, "--depth": false,
		} {
			if got := strings.Contains(text, flag); got != want {
				t.Errorf("%s of migrate has %s = %t, want %t:\n%s", name, flag, got, want, text)
			}
		}
	}
}

// Every command prints the version, whatever is wrong with the configuration, and succeeds.
func TestParse_Version(t *testing.T) {
	t.Parallel()
	want := regexp.MustCompile(`^prog ` + regexp.QuoteMeta(service.Version()) + ` \(commit \w+ of \S+, ` +
		regexp.QuoteMeta(runtime.Version()) + `, \w+/\w+\)\n$`)
	for _, args := range [][]string{{"--version"}, {"migrate", "--version"}} {
		_, _, out, err := parse(t, map[string]string{"WAIT": "soon", "VERSION": "false"}, args...)
		if !errors.Is(err, service.ErrHelp) || !want.MatchString(out) {
			t.Errorf("%v prints %q, %v, want %s", args, out, err, want)
		}
	}
}

func TestExitCode(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	action := fmt.Errorf("x: %w", service.ErrActionRequired)
	canceled := fmt.Errorf("list: %w", context.Canceled)
	usage := &service.UsageError{Problems: []string{"a", "b"}}
	for name, tc := range map[string]struct {
		err    error
		code   int
		stderr string
	}{
		"no error":               {nil, 0, ""},
		"a failure":              {broken, 1, "broken\n"},
		"action required":        {action, 3, "x: action required\n"},
		"a signal":               {canceled, 1, "list: context canceled\n"},
		"a failure joined":       {errors.Join(context.Canceled, broken), 1, "context canceled\nbroken\n"},
		"a failure and a signal": {fmt.Errorf("%w: %w", broken, canceled), 1, "broken: list: context canceled\n"},
		"a usage error":          {usage, 2, usage.Error() + "\n"},
		"a timeout":              {context.DeadlineExceeded, 1, "context deadline exceeded\n"},
	} {
		t.Run(name, func(t *testing.T) {
			var stderr bytes.Buffer
			if code := service.ExitCode(tc.err, &stderr); code != tc.code || stderr.String() != tc.stderr {
				t.Errorf("ExitCode = %d, %q, want %d, %q", code, stderr.String(), tc.code, tc.stderr)
			}
		})
	}
}

func TestLoopback(t *testing.T) {
	t.Parallel()
	for addr, want := range map[string]bool{
		"127.0.0.1:1": true, "localhost:1": true, "[::1]:1": true, "127.9.9.9:1": true,
		":1": false, "0.0.0.0:1": false, "[::]:1": false, "10.0.0.1:1": false, "x": false,
	} {
		if got := service.Loopback(addr); got != want {
			t.Errorf("Loopback(%q) = %t, want %t", addr, got, want)
		}
	}
}

func TestLogConfig_JSON(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	token := secret.String("hunter2")
	log := service.LogConfig{LogLevel: "info", LogFormat: "json"}.Logger(&out)
	log.Debug("hidden")
	log.Info("shown", zap.String("id", "cs_1"), zap.Any("token", token), zap.Stringer("again", token))
	var line map[string]any
	if err := json.Unmarshal(out.Bytes(), &line); err != nil {
		t.Fatalf("log = %s: %v", &out, err)
	}
	ts := fmt.Sprint(line["ts"])
	if _, err := time.Parse(time.RFC3339, ts); err != nil {
		t.Errorf("ts = %s: %v", ts, err)
	}
	want := map[string]any{
		"ts": ts, "level": "info", "msg": "shown", "id": "cs_1", "token": "[redacted]", "again": "[redacted]",
	}
	if !reflect.DeepEqual(line, want) {
		t.Errorf("log = %v, want %v", line, want)
	}
}

// Foreign text cannot control a terminal.
func TestLogConfig_ConsoleEscapesControlCharacters(t *testing.T) {
	var out bytes.Buffer
	console := service.LogConfig{LogLevel: "warn", LogFormat: "console"}.Logger(&out)
	console.Warn("shown", zap.String("stranger", "a\x1b[2J\nb"), zap.Any("token", secret.String("hunter2")))
	const want = "\tWARN\tshown\t{\"stranger\": \"a\\u001b[2J\\nb\", \"token\": \"[redacted]\"}\n"
	if got := out.String(); !strings.HasSuffix(got, want) {
		t.Errorf("console = %q, want %q", got, want)
	}
}
