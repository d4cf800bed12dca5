package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"strconv"
	"time"

	"purchase-relay/internal/testkit/tiktoksim"
)

func run(ctx context.Context, args []string, getenv func(string) string, out io.Writer) error {
	share, err := strconv.ParseFloat(orElse(getenv("SIM_MISBEHAVE"), "0.02"), 64)
	if err != nil {
		return errors.New("SIM_MISBEHAVE is a share from 0 to 1")
	}
	latency, err := time.ParseDuration(orElse(getenv("SIM_LATENCY"), "20ms"))
	if err != nil {
		return errors.New("SIM_LATENCY is a time such as 20ms")
	}
	flags := flag.NewFlagSet("tiktoksim", flag.ContinueOnError)
	var c tiktoksim.Config
	addr := flags.String("addr", orElse(getenv("SIM_ADDR"), "127.0.0.1:8083"), "where to listen; $SIM_ADDR")
	flags.StringVar(&c.Token, "token", orElse(getenv("SIM_TOKEN"), "local-token"), "the access token that is accepted; $SIM_TOKEN")
	flags.StringVar(&c.Pixel, "pixel", orElse(getenv("SIM_PIXEL"), "LOCALPIXEL"), "the pixel that is accepted; $SIM_PIXEL")
	flags.StringVar(&c.TestToken, "test-token", getenv("SIM_TEST_TOKEN"), "a second token; $SIM_TEST_TOKEN")
	flags.StringVar(&c.TestPixel, "test-pixel", getenv("SIM_TEST_PIXEL"), "a second pixel; $SIM_TEST_PIXEL")
	flags.Float64Var(&c.Misbehave, "misbehave", share, "share of requests that fail in passing; $SIM_MISBEHAVE")
	flags.DurationVar(&c.Latency, "latency", latency, "of every answer; $SIM_LATENCY")
	flags.Uint64Var(&c.Seed, "seed", 0, "repeats the choices of a run that told this one; 0: new ones")
	health := flags.Bool("health", false, "ask the running simulator whether it lives")
	flags.SetOutput(out)
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	if math.IsNaN(c.Misbehave) || c.Misbehave < 0 || c.Misbehave > 1 {
		return errors.New("-misbehave (SIM_MISBEHAVE) is a share from 0 to 1")
	}
	if *health {
		return ask(ctx, *addr)
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", *addr)
	if err != nil {
		return fmt.Errorf("cannot listen on %s: something else does, or set SIM_ADDR", *addr)
	}
	sim := tiktoksim.New(c)
	server := &http.Server{Handler: sim, ReadHeaderTimeout: 5 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	_, _ = fmt.Fprintf(out, guide, listener.Addr(), c.Misbehave*100, sim.Seed())
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	// Close ends every connection, and with it what hangs in a fault.
	if err := server.Close(); err != nil {
		return err
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

const guide = `TikTok simulator on http://%[1]s

  what it accepted   curl http://%[1]s/events
  counts             curl http://%[1]s/stats
  let it fail        curl -X POST http://%[1]s/faults -d '{"status":503,"for":"10s"}'
  let it behave      curl -X DELETE http://%[1]s/faults

%.3[2]g%% of the requests fail in passing; -seed %[3]d repeats which.
`

func ask(ctx context.Context, addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	if host == "" || host == "0.0.0.0" || host == "::" {
		host = "127.0.0.1"
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(host, port)+"/healthz", http.NoBody)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{}).Do(req)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return errors.Join(fmt.Errorf("it answers %s", resp.Status), resp.Body.Close())
	}
	return resp.Body.Close()
}

func orElse(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}
