package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"time"

	"purchase-relay/internal/testkit/freeport"
)

const (
	project  = "purchase-relay-test"
	patience = 3 * time.Minute // for what should come by itself
	building = 30 * time.Minute
)

// engine is Docker with Compose, asked through its command line.
type engine struct {
	env    []string
	files  []string
	client *http.Client
	out    io.Writer
}

// passed are the variables that the engine's client needs; none of the stack's own may come in from outside: the real TikTok is not a
// place to rehearse at.
var passed = []string{"PATH", "HOME", "DOCKER_", "COMPOSE_DOCKER_CLI_BUILD", "BUILDKIT_", "TMPDIR", "XDG_", "SSH_AUTH_SOCK", "SSL_CERT_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"}

func newEngine(environ []string, out io.Writer) (*engine, error) {
	e := &engine{files: []string{"-f", "docker-compose.yml"}, client: &http.Client{Timeout: 10 * time.Second}, out: out}
	for _, pair := range environ {
		if slices.ContainsFunc(passed, func(p string) bool { return strings.HasPrefix(pair, p) }) {
			e.env = append(e.env, pair)
		}
	}
	e.env = append(e.env, "VERSION=rehearsal", "ADMIN_TOKEN=rehearsal-0123456789", "SWEEP_GRACE=40s", "SWEEP_INTERVAL=2s")
	for _, name := range []string{"INGEST_PORT", "ADMIN_PORT", "SIMULATOR_PORT"} {
		addr, err := freeport.Addr()
		if err != nil {
			return nil, err
		}
		_, port, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		e.env = append(e.env, name+"="+port)
	}
	return e, nil
}

func (e *engine) value(name string) string {
	for _, pair := range e.env {
		if value, ok := strings.CutPrefix(pair, name+"="); ok {
			return value
		}
	}
	return ""
}

// missing says why there is nothing to rehearse with; "": there is.
func (e *engine) missing(ctx context.Context) string {
	if _, err := exec.LookPath("docker"); err != nil {
		return "there is no docker on this machine"
	}
	if _, err := e.docker(ctx, time.Minute, "compose", "version"); err != nil {
		return "docker has no Compose plugin here"
	}
	if _, err := e.docker(ctx, time.Minute, "info"); err != nil {
		return "no container engine answers"
	}
	return ""
}

// docker runs one command and returns what it printed.
func (e *engine) docker(ctx context.Context, most time.Duration, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker", args...) //nolint:gosec // the arguments are ours
	cmd.Env = e.env
	var out, wrong bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &wrong
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("docker %s: %w\n%s%s", strings.Join(args, " "), err, tail(out.String()), tail(wrong.String()))
	}
	return out.String(), nil
}

// compose runs one of Compose's commands on the stack, without anybody's .env.
func (e *engine) compose(ctx context.Context, args ...string) (string, error) {
	return e.docker(ctx, building, slices.Concat([]string{"compose", "--env-file", "/dev/null", "-p", project}, e.files, args)...)
}

func tail(text string) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-30):], "\n") + "\n"
}

// await waits for the thing itself.
func (e *engine) await(ctx context.Context, what string, done func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		err := done(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited in vain for %s: %w", what, err)
		case <-tick.C:
		}
	}
}

// get asks one of the published addresses.
func (e *engine) get(ctx context.Context, port, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:"+e.value(port)+path, http.NoBody)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+e.value("ADMIN_TOKEN"))
	resp, err := e.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 32<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answers %s", path, resp.Status)
	}
	return body, err
}

// summary is what the ledger says.
type summary struct {
	Purchases map[string]int `json:"purchases"`
	Health    struct {
		Workers []struct {
			Instance string `json:"instance"`
			Version  string `json:"version"`
			State    string `json:"state"`
		} `json:"workers"`
	} `json:"health"`
}

func (e *engine) summary(ctx context.Context) (s summary, err error) {
	body, err := e.get(ctx, "ADMIN_PORT", "/api/v1/summary")
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(body, &s)
}

// settled waits until the ledger has exactly n purchases and all of them are delivered.
func (e *engine) settled(ctx context.Context, n int) error {
	return e.await(ctx, fmt.Sprintf("%d purchases, all accepted", n), func(ctx context.Context) error {
		s, err := e.summary(ctx)
		if err != nil {
			return err
		}
		total := 0
		for _, count := range s.Purchases {
			total += count
		}
		if s.Purchases["delivered"] != n || total != n {
			return fmt.Errorf("the ledger has %v", s.Purchases)
		}
		return nil
	})
}

// onceAtTikTok compares what the simulator holds: n events, each in one body.
func (e *engine) onceAtTikTok(ctx context.Context, n int) (repeats int, err error) {
	body, err := e.get(ctx, "SIMULATOR_PORT", "/events")
	if err != nil {
		return 0, err
	}
	var events []struct {
		EventID  string `json:"event_id"`
		Copies   int    `json:"copies"`
		Variants int    `json:"variants"`
	}
	if err := json.Unmarshal(body, &events); err != nil {
		return 0, err
	}
	for _, event := range events {
		if repeats += event.Copies - 1; event.Variants != 1 {
			return 0, fmt.Errorf("%s came in %d bodies", event.EventID, event.Variants)
		}
	}
	if len(events) != n {
		return 0, fmt.Errorf("TikTok has %d events, the ledger %d purchases", len(events), n)
	}
	return repeats, nil
}

var paid = regexp.MustCompile(`data-figure="paid">([\d,. ]+)<`)

// dashboard reads the page that people look at.
func (e *engine) dashboard(ctx context.Context, n int) error {
	page, err := e.get(ctx, "ADMIN_PORT", "/")
	if err != nil {
		return err
	}
	m := paid.FindSubmatch(page)
	if m == nil {
		return errors.New("the dashboard shows no figure of paid purchases")
	}
	if got := regexp.MustCompile(`\D`).ReplaceAllString(string(m[1]), ""); got != fmt.Sprint(n) {
		return fmt.Errorf("the dashboard shows %s paid purchases, %d were sent", got, n)
	}
	return nil
}

// workers waits until so many say that they run.
func (e *engine) workers(ctx context.Context, n int) error {
	return e.await(ctx, fmt.Sprintf("%d workers", n), func(ctx context.Context) error {
		s, err := e.summary(ctx)
		if err != nil {
			return err
		}
		running := 0
		for _, w := range s.Health.Workers {
			if w.State == "running" {
				running++
			}
			if w.Version != "rehearsal" {
				return fmt.Errorf("the worker %s is of version %q", w.Instance, w.Version)
			}
		}
		if running < n {
			return fmt.Errorf("%d workers run", running)
		}
		return nil
	})
}

// left lists what the project still has on the engine.
func (e *engine) left(ctx context.Context) (list []string, err error) {
	for _, what := range [][]string{{"ps", "-aq"}, {"volume", "ls", "-q"}, {"network", "ls", "-q"}} {
		out, err := e.docker(ctx, time.Minute, append(what, "--filter", "label=com.docker.compose.project="+project)...)
		if err != nil {
			return nil, err
		}
		for id := range strings.FieldsSeq(out) {
			list = append(list, what[0]+" "+id)
		}
	}
	return list, nil
}
