// Package promlocal finds Prometheus on this machine, or fetches Debian's package of it, and runs it on loopback: for the tests
// of the alert rules.
package promlocal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"purchase-relay/internal/testkit/aptget"
	"purchase-relay/internal/testkit/process"
)

// ErrMissing says that Prometheus is not here and cannot be fetched.
var ErrMissing = errors.New("no prometheus and promtool on this machine")

// Tools are the two programs' paths.
type Tools struct{ Prometheus, Promtool string }

// Ensure finds the programs in the path. Where they are missing and root may use apt-get, Ensure announces
// that on out and unpacks Debian's package into the user's cache: installed as usual, it would start a server
// of its own.
func Ensure(ctx context.Context, out io.Writer) (Tools, error) {
	if t, err := inPath(); err == nil {
		return t, nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return Tools{}, ErrMissing
	}
	dir := filepath.Join(cache, "purchase-relay", "prometheus")
	if t, err := in(filepath.Join(dir, "usr", "bin")); err == nil {
		return t, nil
	}
	if err := fetch(ctx, dir, out); err != nil {
		return Tools{}, fmt.Errorf("%w (%w)", ErrMissing, err)
	}
	return in(filepath.Join(dir, "usr", "bin"))
}

func inPath() (t Tools, err error) {
	if t.Prometheus, err = exec.LookPath("prometheus"); err != nil {
		return t, err
	}
	t.Promtool, err = exec.LookPath("promtool")
	return t, err
}

func in(dir string) (Tools, error) {
	t := Tools{Prometheus: filepath.Join(dir, "prometheus"), Promtool: filepath.Join(dir, "promtool")}
	for _, file := range []string{t.Prometheus, t.Promtool} {
		if _, err := os.Stat(file); err != nil {
			return Tools{}, err
		}
	}
	return t, nil
}

// fetch downloads the package and unpacks it into dir; nothing of it is installed or started.
func fetch(ctx context.Context, dir string, out io.Writer) (err error) {
	work, err := os.MkdirTemp("", "promlocal")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	return aptget.Request{
		What: "Prometheus", Dir: work, Remedy: "apt-get install prometheus",
		Commands: [][]string{
			{"apt-get", "update", "-qq"},
			{"apt-get", "download", "-qq", "prometheus"},
			{"sh", "-c", `exec dpkg-deb -x prometheus_*.deb "$0"`, dir},
		},
		Done: func() bool { _, err := in(filepath.Join(dir, "usr", "bin")); return err == nil },
	}.Run(ctx, out)
}

// Server is a running Prometheus.
type Server struct {
	url     string
	process *process.Process
}

// Start runs Prometheus on a loopback address with a configuration file; its data and its log go to dir.
func (t Tools) Start(config, addr, dir string) (*Server, error) {
	p, err := process.Start(process.Command{
		Path: t.Prometheus, Env: os.Environ(), Log: filepath.Join(dir, "prometheus.log"),
		Args: []string{
			"--config.file=" + config, "--web.listen-address=" + addr,
			"--storage.tsdb.path=" + filepath.Join(dir, "tsdb"),
		},
	})
	return &Server{url: "http://" + addr, process: p}, err
}

// Stop ends it and waits.
func (s *Server) Stop() error { return s.process.Stop(20 * time.Second) }

// Alert is one of Prometheus' active alerts.
type Alert struct {
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
	State       string            `json:"state"` // pending or firing
	Value       string            `json:"value"`
}

// Alerts asks for the active alerts.
func (s *Server) Alerts(ctx context.Context) ([]Alert, error) {
	var data struct {
		Alerts []Alert `json:"alerts"`
	}
	err := s.ask(ctx, "/api/v1/alerts", &data)
	return data.Alerts, err
}

// FailedRules returns the rules whose last evaluation failed, as "name: error".
func (s *Server) FailedRules(ctx context.Context) (failed []string, err error) {
	var data struct {
		Groups []struct {
			Rules []struct {
				Name      string `json:"name"`
				Health    string `json:"health"` // ok, err or unknown
				LastError string `json:"lastError"`
			} `json:"rules"`
		} `json:"groups"`
	}
	err = s.ask(ctx, "/api/v1/rules", &data)
	for _, g := range data.Groups {
		for _, r := range g.Rules {
			if r.Health == "err" {
				failed = append(failed, r.Name+": "+r.LastError)
			}
		}
	}
	return failed, err
}

// Count says how many series an expression has now.
func (s *Server) Count(ctx context.Context, expr string) (int, error) {
	var data struct {
		Result []json.RawMessage `json:"result"`
	}
	err := s.ask(ctx, "/api/v1/query?query="+url.QueryEscape(expr), &data)
	return len(data.Result), err
}

func (s *Server) ask(ctx context.Context, path string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+path, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{}).Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	answer := struct {
		Status string `json:"status"`
		Data   any    `json:"data"`
	}{Data: into}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<22)).Decode(&answer); err != nil || answer.Status != "success" {
		return fmt.Errorf("prometheus answers %s %q (%w)", resp.Status, answer.Status, err)
	}
	return nil
}
