package main

import (
	"bufio"
	"context"
	"io"
	"net"
	"strings"
	"testing"
)

func noEnv(string) string { return "" }

// TestRunServesUntilItIsStopped starts the command as main does, asks it through its own -health, and stops it.
func TestRunServesUntilItIsStopped(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	env := func(name string) string {
		return map[string]string{"SIM_ADDR": "127.0.0.1:0", "SIM_MISBEHAVE": "0"}[name]
	}
	out, in := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, []string{"-seed", "7"}, env, in) }()
	lines := bufio.NewReader(out)
	first, err := lines.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, lines) }()
	addr := strings.TrimSpace(strings.TrimPrefix(first, "TikTok simulator on http://"))
	if err := run(t.Context(), []string{"-health", "-addr", addr}, noEnv, io.Discard); err != nil {
		t.Errorf("healthy: %v", err)
	}
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	for _, every := range []string{":", "0.0.0.0:"} {
		if err := run(t.Context(), []string{"-health", "-addr", every + port}, noEnv, io.Discard); err != nil {
			t.Errorf("asked at %s: %v", every, err)
		}
	}
	if err := run(t.Context(), []string{"-addr", addr}, noEnv, io.Discard); err == nil || !strings.Contains(err.Error(), addr) {
		t.Errorf("a taken address: %v", err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("stopped: %v", err)
	}
	if err := run(t.Context(), []string{"-health", "-addr", addr}, noEnv, io.Discard); err == nil {
		t.Error("it is healthy after its end")
	}
}

func TestRunRefusesWhatItCannotRead(t *testing.T) {
	for _, args := range []string{"-nonsense", "-misbehave=2", "-misbehave=-1", "-misbehave=NaN", "-latency=soon", "-health -addr=nowhere"} {
		if err := run(t.Context(), strings.Fields(args), noEnv, io.Discard); err == nil {
			t.Errorf("%s was taken", args)
		}
	}
	for _, name := range []string{"SIM_MISBEHAVE", "SIM_LATENCY"} {
		env := func(n string) string {
			if n == name {
				return "soon"
			}
			return ""
		}
		if err := run(t.Context(), nil, env, io.Discard); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var usage strings.Builder
	if err := run(t.Context(), []string{"-h"}, noEnv, &usage); err != nil || !strings.Contains(usage.String(), "SIM_ADDR") {
		t.Errorf("-h: %v, %q", err, usage.String())
	}
}
