package service_test

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
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
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

func TestParseCollectsProblems(t *testing.T) {
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
func TestVersion(t *testing.T) {
	for _, args := range [][]string{{"--version"}, {"migrate", "--version"}} {
		_, _, out, err := parse(t, map[string]string{"WAIT": "soon", "VERSION": "false"}, args...)
		if want := "prog " + service.Version() + " ("; !errors.Is(err, service.ErrHelp) || !strings.HasPrefix(out, want) || !strings.Contains(out, runtime.Version()) {
			t.Errorf("%v: %q, %v", args, out, err)
		}
	}
}

func TestExitCodes(t *testing.T) {
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

func TestStopsRunInReverseAndAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := service.NewLifecycle(zap.NewNop())
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
		if took := time.Since(began); took > 8*time.Second || took < 7200*time.Millisecond {
			t.Errorf("stopping took %s", took)
		}
		time.Sleep(time.Hour) //nolint:forbidigo // virtual time: the stuck one ends too
	})
}

// A connection pool's Close waits for its last connection and knows no context: the program never ended, until it was
// killed. And several stuck parts took the grace and then more, each.
func TestStopIsBoundedWhateverTheStopsDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := service.NewLifecycle(zap.NewNop())
		var order []string
		free := make(chan struct{})
		l.OnStop("first", func(ctx context.Context) error { order = append(order, "first"); return ctx.Err() })
		l.OnStop("deaf", func(context.Context) error { <-free; return nil })
		for _, name := range []string{"slow", "slower"} {
			l.OnStop(name, func(ctx context.Context) error { <-ctx.Done(); order = append(order, name); return ctx.Err() })
		}
		l.OnStop("panicking", func(context.Context) error { panic("it broke") })
		began := time.Now()
		err := l.Stop(time.Second)
		if took := time.Since(began); took > time.Second {
			t.Errorf("stopping took %s", took)
		}
		if got := strings.Join(order, " "); got != "slower slow first" {
			t.Errorf("order: %s", got)
		}
		for _, want := range []string{"stop panicking: panic: it broke", "stop slower: context deadline", "stop slow: context deadline", "stop deaf: still busy"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q is not told: %v", want, err)
			}
		}
		if strings.Contains(err.Error(), "first") {
			t.Errorf("the stuck ones cost the first its stop: %v", err)
		}
		if err := l.Stop(time.Second); err != nil {
			t.Errorf("stopping again: %v", err)
		}
		close(free)
	})
}

func TestNothingIsFatalOnceStopping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := service.NewLifecycle(zap.NewNop())
		l.Go("ends", func(context.Context) error { return nil })
		l.Go("late", func(ctx context.Context) error { <-ctx.Done(); return errors.New("half was written") })
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := l.Wait(ctx); err != nil {
			t.Errorf("a good end is fatal: %v", err)
		}
		if err := l.Stop(time.Second); err == nil || err.Error() != "stop late: half was written" {
			t.Errorf("the stop tells: %v", err)
		}
	})
}

func TestFailureAndPanicAreFatal(t *testing.T) {
	for name, run := range map[string]func(context.Context) error{
		"error": func(context.Context) error { return errors.New("it broke") },
		"panic": func(context.Context) error { panic("it broke") },
	} {
		l := service.NewLifecycle(zap.NewNop())
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
	l := service.NewLifecycle(zap.NewNop())
	entered, release := make(chan struct{}), make(chan struct{})
	addr, err := l.Serve("SOME_ADDR", "127.0.0.1:0", 20, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(entered)
		<-release
		_, _ = io.WriteString(w, "done")
	}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Serve("OTHER_ADDR", addr.String(), 20, http.NotFoundHandler()); err == nil || !strings.Contains(err.Error(), "OTHER_ADDR") || !strings.Contains(err.Error(), addr.String()) {
		t.Errorf("a busy port: %v", err)
	}
	answer, req := make(chan string), request(t, "http://"+addr.String())
	go func() {
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
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr.String())
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

// The server's own errors, a handler's panic among them, went nowhere: their level was below the one they were let
// through at.
func TestServersErrorsAreLogged(t *testing.T) {
	for level, want := range map[string]bool{"debug": true, "info": false} {
		var out bytes.Buffer
		l := service.NewLifecycle(service.LogConfig{LogLevel: level}.Logger(&out))
		var timeout time.Duration
		addr, err := l.Serve("SOME_ADDR", "127.0.0.1:0", 20, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("it broke") }),
			func(s *http.Server) { timeout, s.WriteTimeout = s.WriteTimeout, time.Minute })
		if err != nil {
			t.Fatal(err)
		}
		if timeout != 30*time.Second {
			t.Errorf("an option saw %s", timeout)
		}
		if resp, err := http.DefaultTransport.RoundTrip(request(t, "http://"+addr.String())); err == nil {
			_ = resp.Body.Close()
			t.Error("a panic was answered")
		}
		if err := l.Stop(time.Minute); err != nil {
			t.Error(err)
		}
		if got := strings.Contains(out.String(), "it broke"); got != want {
			t.Errorf("at %s: %s", level, out.String())
		}
	}
}

func TestServeTellsWhatToDo(t *testing.T) {
	l := service.NewLifecycle(zap.NewNop())
	for _, addr := range []string{"nohost", "127.0.0.1:99999", "203.0.113.9:80"} {
		_, err := l.Serve("SOME_ADDR", addr, 20, http.NotFoundHandler())
		if err == nil || !strings.Contains(err.Error(), addr) || !strings.Contains(err.Error(), "set SOME_ADDR") || strings.Contains(err.Error(), "something else") {
			t.Errorf("%s: %v", addr, err)
		}
	}
}

// request is a GET that outlives the test's context, as one from outside would.
func request(t *testing.T, url string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(context.WithoutCancel(t.Context()), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

func TestHealthAndReadiness(t *testing.T) {
	ready := false
	mux := http.NewServeMux()
	mux.Handle("/healthz", service.Healthz())
	mux.Handle("/readyz", service.Readyz(func(context.Context) (bool, map[string]string) { return ready, map[string]string{"nats": "down"} }))
	registry, metrics := service.Metrics("v1.2.3")
	mux.Handle("/metrics", metrics)
	server := httptest.NewServer(mux)
	defer server.Close()
	ask := func(path string) (int, string) {
		resp, err := server.Client().Do(request(t, server.URL+path))
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
	if _, body := ask("/metrics"); !strings.Contains(body, `purchase_relay_build_info{goversion="`) || !strings.Contains(body, `revision="`) || !strings.Contains(body, "go_goroutines") || !strings.Contains(body, `version="v1.2.3"`) || registry == nil {
		t.Errorf("metrics: %.300s", body)
	}
	addr := strings.TrimPrefix(server.URL, "http://")
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{addr, ":" + port, "0.0.0.0:" + port} {
		if err := service.Health(t.Context(), a); err != nil {
			t.Errorf("health of %s: %v", a, err)
		}
	}
	server.Close()
	if err := service.Health(t.Context(), addr); err == nil {
		t.Error("a dead program is healthy")
	}
}

func TestLogger(t *testing.T) {
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
