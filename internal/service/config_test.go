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
	} `cmd:"" default:"withargs" help:"Serve."`
	Migrate struct{} `cmd:"" help:"Migrate."`

	Token    secret.Text   `name:"api-token" help:"The token."`
	Wait     time.Duration `default:"8s" help:"How long."`
	MaxRPS   float64       `name:"max-rps" default:"10" help:"How fast."`
	Modes    []string      `default:"a" help:"Which."`
	AddrName string        `default:":1" help:"Where."`

	service.LogConfig
}

func parse(t *testing.T, env map[string]string, args ...string) (cli, string, string, error) {
	t.Helper()
	var c cli
	var out bytes.Buffer
	command, err := service.Parse(&c, "prog", "Does things.", args, func(name string) string { return env[name] }, &out)
	return c, command, out.String(), err
}

func TestParse_ReadsFlagsAndVariables(t *testing.T) {
	t.Setenv("WAIT", "99s") // the real environment is not looked at
	c, command, _, err := parse(t, map[string]string{"API_TOKEN": "tok", "MAX_RPS": "2.5", "MODES": "x,y", "ADDR_NAME": "", "LOG_FORMAT": "console"})
	if err != nil || command != "serve" {
		t.Fatalf("%q, %v", command, err)
	}
	if c.Token.Reveal() != "tok" || c.MaxRPS != 2.5 || !slices.Equal(c.Modes, []string{"x", "y"}) || c.Wait != 8*time.Second || c.AddrName != ":1" ||
		c.LogFormat != "console" || c.LogLevel != "info" {
		t.Errorf("%+v", c)
	}
	c, command, _, err = parse(t, map[string]string{"WAIT": "1s"}, "migrate", "--wait=2s")
	if err != nil || command != "migrate" || c.Wait != 2*time.Second {
		t.Errorf("a flag wins: %q %+v, %v", command, c, err)
	}
	if c, command, _, err := parse(t, nil, "--max-rps", "3", "--depth=4"); err != nil || command != "serve" || c.MaxRPS != 3 || c.Serve.Depth != 4 {
		t.Errorf("flags of the default command: %q %+v, %v", command, c, err)
	}
	if c, _, _, err := parse(t, map[string]string{"DEPTH": "5"}); err != nil || c.Serve.Depth != 5 {
		t.Errorf("the default command's own variable: %+v, %v", c, err)
	}
	if c, _, _, err := parse(t, map[string]string{"WAIT": "soon"}, "--wait=2s"); err != nil || c.Wait != 2*time.Second {
		t.Errorf("a bad variable that a flag overrules: %+v, %v", c, err)
	}
}

func TestParse_CollectsProblems(t *testing.T) {
	_, _, _, err := parse(t, map[string]string{"WAIT": "soon", "MAX_RPS": "fast", "LOG_LEVEL": "loud", "API_TOKEN_FILE": "/nowhere/token"})
	var usage *service.UsageError
	if !errors.As(err, &usage) || len(usage.Problems) != 4 {
		t.Fatalf("%v", err)
	}
	for i, want := range []string{"API_TOKEN_FILE", "LOG_LEVEL", "MAX_RPS", "WAIT"} {
		slices.Sort(usage.Problems)
		if !strings.HasPrefix(usage.Problems[i], want) {
			t.Errorf("%q does not tell of %s", usage.Problems[i], want)
		}
	}
	if code := service.ExitCode(err, io.Discard); code != 2 {
		t.Errorf("exit code %d", code)
	}
	_, _, _, err = parse(t, map[string]string{"WAIT": "soon"}, "--nonsense")
	if service.ExitCode(err, io.Discard) != 2 || !strings.Contains(err.Error(), "--nonsense") || !strings.Contains(err.Error(), "WAIT") {
		t.Errorf("an unknown flag and a bad variable: %v", err)
	}
}

func TestParse_ReadsSecretFromFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("tok\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, _, _, err := parse(t, map[string]string{"API_TOKEN_FILE": file}); err != nil || c.Token.Reveal() != "tok" {
		t.Errorf("%q, %v", c.Token.Reveal(), err)
	}
	if _, _, _, err := parse(t, map[string]string{"API_TOKEN_FILE": file, "API_TOKEN": "x"}); err == nil {
		t.Error("both were taken")
	}
}

func TestParse_HelpListsFlagsAndVariables(t *testing.T) {
	_, _, help, err := parse(t, nil, "--help")
	if !errors.Is(err, service.ErrHelp) || service.ExitCode(err, io.Discard) != 0 {
		t.Fatalf("%v", err)
	}
	for _, want := range []string{"serve", "migrate", "--api-token", "$API_TOKEN", "$API_TOKEN_FILE", "--wait", "$WAIT", "8s", "$LOG_LEVEL"} {
		if !strings.Contains(help, want) {
			t.Errorf("the help lacks %q:\n%s", want, help)
		}
	}
}

// Every command tells its version, whatever else is wrong with its configuration, and that is no failure.
func TestParse_Version(t *testing.T) {
	for _, args := range [][]string{{"--version"}, {"migrate", "--version"}} {
		_, _, out, err := parse(t, map[string]string{"WAIT": "soon", "VERSION": "false"}, args...)
		if want := "prog " + service.Version() + " ("; !errors.Is(err, service.ErrHelp) || !strings.HasPrefix(out, want) || !strings.Contains(out, runtime.Version()) {
			t.Errorf("%v: %q, %v", args, out, err)
		}
	}
}

func TestExitCode(t *testing.T) {
	broken := errors.New("broken")
	for name, tc := range map[string]struct {
		err  error
		code int
		says string
	}{
		"nothing":                     {nil, 0, ""},
		"a failure":                   {broken, 1, "broken\n"},
		"something is left":           {fmt.Errorf("x: %w", service.ErrLeft), 3, "x: done, but something is left\n"},
		"a signal":                    {fmt.Errorf("list: %w", context.Canceled), 0, ""},
		"a signal, told twice":        {errors.Join(context.Canceled, fmt.Errorf("list: %w", context.Canceled)), 0, ""},
		"a failure beside a signal":   {errors.Join(context.Canceled, broken), 1, "context canceled\nbroken\n"},
		"a failure wrapping a signal": {fmt.Errorf("%w after %w", broken, context.Canceled), 1, "broken after context canceled\n"},
		"a timeout":                   {context.DeadlineExceeded, 1, "context deadline exceeded\n"},
	} {
		var said bytes.Buffer
		if code := service.ExitCode(tc.err, &said); code != tc.code || said.String() != tc.says {
			t.Errorf("%s: %d, %q", name, code, said.String())
		}
	}
}

func TestLoopback(t *testing.T) {
	for addr, want := range map[string]bool{
		"127.0.0.1:1": true, "localhost:1": true, "[::1]:1": true, "127.9.9.9:1": true, ":1": false, "0.0.0.0:1": false, "[::]:1": false, "10.0.0.1:1": false, "x": false,
	} {
		if service.Loopback(addr) != want {
			t.Errorf("%s: %v", addr, !want)
		}
	}
}

func TestLogConfig_JSON(t *testing.T) {
	var out bytes.Buffer
	log := service.LogConfig{LogLevel: "info", LogFormat: "json"}.Logger(&out)
	log.Debug("hidden")
	log.Info("shown", zap.String("id", "cs_1"), zap.Any("token", secret.Text("hunter2")), zap.Stringer("again", secret.Text("hunter2")))
	var line map[string]any
	if err := json.Unmarshal(out.Bytes(), &line); err != nil || line["msg"] != "shown" || line["level"] != "info" || line["id"] != "cs_1" {
		t.Errorf("%s: %v", out.String(), err)
	}
	if _, err := time.Parse(time.RFC3339, fmt.Sprint(line["ts"])); err != nil || strings.Contains(out.String(), "hunter2") {
		t.Errorf("%s: %v", out.String(), err)
	}
}

// A stranger's text cannot act on a terminal.
func TestLogConfig_ConsoleEscapesControlCharacters(t *testing.T) {
	var out bytes.Buffer
	console := service.LogConfig{LogLevel: "warn", LogFormat: "console"}.Logger(&out)
	console.Warn("shown", zap.String("stranger", "a\x1b[2J\nb"), zap.Any("token", secret.Text("hunter2")))
	const want = "\tWARN\tshown\t{\"stranger\": \"a\\u001b[2J\\nb\", \"token\": \"[redacted]\"}\n"
	if got := out.String(); !strings.HasSuffix(got, want) {
		t.Errorf("console = %q, want %q", got, want)
	}
}
