package main

import (
	"bufio"
	"context"
	"io"
	"net"
	"strings"
	"testing"
)

func TestRun_ServesUntilStopped(t *testing.T) {
	t.Parallel()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	getenv := func(name string) string { return map[string]string{"SIM_ADDR": "127.0.0.1:0"}[name] }
	out, in := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, []string{"-misbehave", "0"}, getenv, in) }()
	lines := bufio.NewReader(out)
	first, err := lines.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, lines) }()

	addr := strings.TrimSpace(strings.TrimPrefix(first, "TikTok simulator on http://"))
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	noEnv := func(string) string { return "" }
	for _, at := range []string{addr, ":" + port, "0.0.0.0:" + port} {
		if err := run(t.Context(), []string{"-health", "-addr", at}, noEnv, io.Discard); err != nil {
			t.Errorf("health at %s: %v", at, err)
		}
	}
	if err := run(t.Context(), []string{"-addr", addr}, noEnv, io.Discard); err == nil {
		t.Error("two simulators listen on one address")
	}
	stop()
	if err := <-ended; err != nil {
		t.Errorf("stopped: %v", err)
	}
	if err := run(t.Context(), []string{"-health", "-addr", addr}, noEnv, io.Discard); err == nil {
		t.Error("healthy after the stop")
	}
}
