// Package promlocal runs a Prometheus on loopback for the tests of the alert rules.
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

// ErrMissing means that Prometheus is neither installed nor can be downloaded.
var ErrMissing = errors.New("no prometheus and promtool on this machine")

// Tools holds the paths of the two programs.
type Tools struct{ Prometheus, Promtool string }

// Ensure finds the programs. Where they are missing and root may use apt-get, it announces that on out and
// unpacks Debian's package into the user's cache: an installed one would start a server of its own.
func Ensure(ctx context.Context, out io.Writer) (Tools, error) {
	if t, err := find(""); err == nil {
		return t, nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return Tools{}, fmt.Errorf("%w: %w", ErrMissing, err)
	}
	dir := filepath.Join(cache, "purchase-relay", "prometheus")
	bin := filepath.Join(dir, "usr", "bin")
	if t, err := find(bin); err == nil {
		return t, nil
	}
	if err := download(ctx, dir, bin, out); err != nil {
		return Tools{}, fmt.Errorf("%w: %w", ErrMissing, err)
	}
	return find(bin)
}

// find looks for the programs in a directory, or in the PATH for "".
func find(dir string) (t Tools, err error) {
	if t.Prometheus, err = exec.LookPath(filepath.Join(dir, "prometheus")); err != nil {
		return t, err
	}
	t.Promtool, err = exec.LookPath(filepath.Join(dir, "promtool"))
	return t, err
}

func download(ctx context.Context, dir, bin string, out io.Writer) (err error) {
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
		Done: func() bool { _, err := find(bin); return err == nil },
	}.Run(ctx, out)
}

// Server is a running Prometheus.
type Server struct {
	url     string
	process *process.Process
}

// Start runs Prometheus at a loopback address with a configuration file. Its data and its log are in dir.
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

// Stop ends the process and waits for it.
func (s *Server) Stop() error { return s.process.Stop(20 * time.Second) }

// Alert is one of Prometheus' active alerts.
type Alert struct {
	Labels map[string]string `json:"labels"`
	State  string            `json:"state"` // pending or firing
}

// Alerts returns the active alerts.
func (s *Server) Alerts(ctx context.Context) ([]Alert, error) {
	var data struct {
		Alerts []Alert `json:"alerts"`
	}
	err := s.get(ctx, "/api/v1/alerts", &data)
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
	err = s.get(ctx, "/api/v1/rules", &data)
	for _, g := range data.Groups {
		for _, r := range g.Rules {
			if r.Health == "err" {
				failed = append(failed, r.Name+": "+r.LastError)
			}
		}
	}
	return failed, err
}

// Count returns the number of series in an expression's current result.
func (s *Server) Count(ctx context.Context, expr string) (int, error) {
	var data struct {
		Result []json.RawMessage `json:"result"`
	}
	err := s.get(ctx, "/api/v1/query?query="+url.QueryEscape(expr), &data)
	return len(data.Result), err
}

func (s *Server) get(ctx context.Context, path string, data any) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+path, nil)
	if err != nil {
		return err
	}
	response, err := (&http.Client{Timeout: 5 * time.Second}).Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	answer := struct {
		Status string `json:"status"`
		Data   any    `json:"data"`
	}{Data: data}
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil || answer.Status != "success" {
		return fmt.Errorf("query prometheus: HTTP %s, status %q: %w", response.Status, answer.Status, err)
	}
	return nil
}
