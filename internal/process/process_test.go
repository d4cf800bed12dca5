package process_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"purchase-relay/internal/process"
	"purchase-relay/internal/secret"
)

// cli is a command line like those of the binaries.
type cli struct {
	Serve   struct{} `cmd:"" default:"1" help:"Serve."`
	Migrate struct{} `cmd:"" help:"Migrate."`

	Token    secret.Text   `name:"api-token" help:"The token."`
	Wait     time.Duration `default:"8s" help:"How long."`
	MaxRPS   float64       `name:"max-rps" default:"10" help:"How fast."`
	Modes    []string      `default:"a" help:"Which."`
	AddrName string        `default:":1" help:"Where."`

	process.LogConfig
}

func parse(t *testing.T, env map[string]string, args ...string) (cli, string, string, error) {
	t.Helper()
	var c cli
	var out bytes.Buffer
	command, err := process.Parse(&c, "prog", "Does things.", args, func(name string) string { return env[name] }, &out)
	return c, command, out.String(), err
}

func TestParse(t *testing.T) {
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
	if c, _, _, err := parse(t, nil, "--max-rps", "3"); err != nil || c.MaxRPS != 3 {
		t.Errorf("flags of the default command: %+v, %v", c, err)
	}
}

func TestParseCollectsProblems(t *testing.T) {
	_, _, _, err := parse(t, map[string]string{"WAIT": "soon", "MAX_RPS": "fast", "LOG_LEVEL": "loud", "API_TOKEN_FILE": "/nowhere/token"})
	var usage *process.UsageError
	if !errors.As(err, &usage) || len(usage.Problems) != 4 {
		t.Fatalf("%v", err)
	}
	for i, want := range []string{"API_TOKEN_FILE", "LOG_LEVEL", "MAX_RPS", "WAIT"} {
		slices.Sort(usage.Problems)
		if !strings.HasPrefix(usage.Problems[i], want) {
			t.Errorf("%q does not tell of %s", usage.Problems[i], want)
		}
	}
	if code := process.ExitCode(err, io.Discard); code != 2 {
		t.Errorf("exit code %d", code)
	}
	if _, _, _, err := parse(t, nil, "--nonsense"); process.ExitCode(err, io.Discard) != 2 {
		t.Errorf("an unknown flag: %v", err)
	}
}

func TestSecretFromAFile(t *testing.T) {
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

func TestHelpListsFlagsAndVariables(t *testing.T) {
	_, _, help, err := parse(t, nil, "--help")
	if !errors.Is(err, process.ErrHelp) || process.ExitCode(err, io.Discard) != 0 {
		t.Fatalf("%v", err)
	}
	for _, want := range []string{"serve", "migrate", "--api-token", "$API_TOKEN", "$API_TOKEN_FILE", "--wait", "$WAIT", "8s", "$LOG_LEVEL"} {
		if !strings.Contains(help, want) {
			t.Errorf("the help lacks %q:\n%s", want, help)
		}
	}
}

func TestExitCodes(t *testing.T) {
	var said bytes.Buffer
	for err, want := range map[error]int{nil: 0, errors.New("broken"): 1, fmt.Errorf("x: %w", process.ErrLeft): 3} {
		if got := process.ExitCode(err, &said); got != want {
			t.Errorf("%v: %d", err, got)
		}
	}
	if !strings.Contains(said.String(), "broken") {
		t.Errorf("said %q", said.String())
	}
}

func TestLoopback(t *testing.T) {
	for addr, want := range map[string]bool{
		"127.0.0.1:1": true, "localhost:1": true, "[::1]:1": true, "127.9.9.9:1": true, ":1": false, "0.0.0.0:1": false, "[::]:1": false, "10.0.0.1:1": false, "x": false,
	} {
		if process.Loopback(addr) != want {
			t.Errorf("%s: %v", addr, !want)
		}
	}
}

func TestStopsRunInReverseAndAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := process.NewLifecycle(zap.NewNop())
		var order []string
		add := func(name string, err error) {
			l.OnStop(name, func(context.Context) error { order = append(order, name); return err })
		}
		add("first", nil)
		l.Go("loop", func(ctx context.Context) error { <-ctx.Done(); order = append(order, "loop"); return ctx.Err() })
		add("broken", errors.New("it is stuck"))
		l.Go("stuck", func(context.Context) error { time.Sleep(time.Hour); return nil }) //nolint:forbidigo // virtual time
		add("last", nil)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := l.Wait(ctx); err != nil {
			t.Error(err)
		}
		began := time.Now()
		err := l.Stop(8 * time.Second)
		if got := strings.Join(order, " "); got != "last broken loop first" {
			t.Errorf("order: %s", got)
		}
		if err == nil || !strings.Contains(err.Error(), "stop broken: it is stuck") || !strings.Contains(err.Error(), "stop stuck: still busy") {
			t.Errorf("errors: %v", err)
		}
		if took := time.Since(began); took != 8*time.Second {
			t.Errorf("stopping took %s", took)
		}
		time.Sleep(time.Hour) //nolint:forbidigo // virtual time: the stuck one ends too
	})
}

func TestFailureAndPanicAreFatal(t *testing.T) {
	for name, run := range map[string]func(context.Context) error{
		"error": func(context.Context) error { return errors.New("it broke") },
		"panic": func(context.Context) error { panic("it broke") },
	} {
		l := process.NewLifecycle(zap.NewNop())
		l.Go("part", run)
		if err := l.Wait(t.Context()); err == nil || !strings.Contains(err.Error(), "part") || !strings.Contains(err.Error(), "it broke") {
			t.Errorf("%s: %v", name, err)
		}
		if err := l.Stop(time.Minute); err != nil {
			t.Errorf("%s: told twice: %v", name, err)
		}
	}
}

func TestServe(t *testing.T) {
	l := process.NewLifecycle(zap.NewNop())
	entered, release := make(chan struct{}), make(chan struct{})
	addr, err := l.Serve("SOME_ADDR", "127.0.0.1:0", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(entered)
		<-release
		_, _ = io.WriteString(w, "done")
	}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Serve("OTHER_ADDR", addr.String(), http.NotFoundHandler()); err == nil || !strings.Contains(err.Error(), "OTHER_ADDR") || !strings.Contains(err.Error(), addr.String()) {
		t.Errorf("a busy port: %v", err)
	}
	answer := make(chan string)
	go func() {
		req, err := http.NewRequestWithContext(context.WithoutCancel(t.Context()), http.MethodGet, "http://"+addr.String(), http.NoBody)
		if err != nil {
			answer <- err.Error()
			return
		}
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			answer <- err.Error()
			return
		}
		defer func() { _ = resp.Body.Close() }()
		body, err := io.ReadAll(resp.Body)
		answer <- fmt.Sprint(string(body), err)
	}()
	<-entered
	stopped := make(chan error)
	go func() { stopped <- l.Stop(time.Minute) }()
	for { // nothing new is taken …
		conn, err := net.Dial("tcp", addr.String())
		if err != nil {
			break
		}
		_ = conn.Close()
	}
	close(release) // … and what is in flight is finished
	if got := <-answer; got != "done<nil>" {
		t.Errorf("the request in flight: %s", got)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

func TestHealthAndReadiness(t *testing.T) {
	ready := false
	mux := http.NewServeMux()
	mux.Handle("/healthz", process.Healthz())
	mux.Handle("/readyz", process.Readyz(func(context.Context) (bool, map[string]string) { return ready, map[string]string{"nats": "down"} }))
	registry, metrics := process.Metrics("v1.2.3")
	mux.Handle("/metrics", metrics)
	server := httptest.NewServer(mux)
	defer server.Close()
	ask := func(path string) (int, string) {
		resp, err := server.Client().Get(server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	if code, body := ask("/healthz"); code != 200 || body != `{"status":"ok"}`+"\n" {
		t.Errorf("healthz: %d %s", code, body)
	}
	for _, want := range []int{503, 200} {
		code, body := ask("/readyz")
		if code != want || body != `{"nats":"down"}`+"\n" {
			t.Errorf("readyz: %d %s", code, body)
		}
		ready = true
	}
	if _, body := ask("/metrics"); !strings.Contains(body, `purchase_relay_build_info{goversion="`) || !strings.Contains(body, `version="v1.2.3"`) || registry == nil {
		t.Errorf("metrics: %.300s", body)
	}
	addr := strings.TrimPrefix(server.URL, "http://")
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{addr, ":" + port, "0.0.0.0:" + port} {
		if err := process.Health(t.Context(), a); err != nil {
			t.Errorf("health of %s: %v", a, err)
		}
	}
	server.Close()
	if err := process.Health(t.Context(), addr); err == nil {
		t.Error("a dead program is healthy")
	}
}

func TestLogger(t *testing.T) {
	var out bytes.Buffer
	log := process.LogConfig{LogLevel: "info", LogFormat: "json"}.Logger(&out)
	log.Debug("hidden")
	log.Info("shown", zap.String("id", "cs_1"), zap.Any("token", secret.Text("hunter2")), zap.Stringer("again", secret.Text("hunter2")))
	var line map[string]any
	if err := json.Unmarshal(out.Bytes(), &line); err != nil || line["msg"] != "shown" || line["level"] != "info" || line["id"] != "cs_1" {
		t.Errorf("%s: %v", out.String(), err)
	}
	if _, err := time.Parse(time.RFC3339, fmt.Sprint(line["ts"])); err != nil || strings.Contains(out.String(), "hunter2") {
		t.Errorf("%s: %v", out.String(), err)
	}
	out.Reset()
	process.LogConfig{LogLevel: "warn", LogFormat: "console"}.Logger(&out).Warn("shown", zap.Int("n", 1))
	if !strings.Contains(out.String(), "WARN") || !strings.Contains(out.String(), `{"n": 1}`) {
		t.Errorf("console: %s", out.String())
	}
}
