// Command tiktoksim serves the simulator of TikTok.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"purchase-relay/internal/testkit/tiktoksim"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Getenv, os.Stdout)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "tiktoksim:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, getenv func(string) string, out io.Writer) error {
	var c tiktoksim.Config
	flags := flag.NewFlagSet("tiktoksim", flag.ContinueOnError)
	flags.SetOutput(out)
	addr := flags.String("addr", "127.0.0.1:8083", "listen address; $SIM_ADDR")
	flags.StringVar(&c.Token, "token", "local-token", "accepted access token; $SIM_TOKEN")
	flags.StringVar(&c.Pixel, "pixel", "LOCALPIXEL", "accepted pixel; $SIM_PIXEL")
	flags.StringVar(&c.TestToken, "test-token", "", "second access token; $SIM_TEST_TOKEN")
	flags.StringVar(&c.TestPixel, "test-pixel", "", "second pixel; $SIM_TEST_PIXEL")
	flags.StringVar(&c.AdvertiserID, "advertiser", "7000000000000000001", "owner of the pixels; $SIM_ADVERTISER")
	flags.StringVar(&c.StatsToken, "stats-token", "", "token that may read counts; $SIM_STATS_TOKEN")
	flags.Float64Var(&c.Misbehave, "misbehave", 0.02, "share of requests, 0 to 1, that fail; $SIM_MISBEHAVE")
	flags.DurationVar(&c.Latency, "latency", 20*time.Millisecond, "of every answer; $SIM_LATENCY")
	flags.Uint64Var(&c.Seed, "seed", 0, "of the random choices; 0 picks one; $SIM_SEED")
	health := flags.Bool("health", false, "check the running simulator")

	var errs []error
	flags.VisitAll(func(f *flag.Flag) {
		name := "SIM_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		if value := getenv(name); value != "" && f.Name != "health" {
			if err := f.Value.Set(value); err != nil {
				errs = append(errs, fmt.Errorf("%s=%s: %w", name, value, err))
			}
		}
	})
	if err := errors.Join(append(errs, flags.Parse(args))...); err != nil {
		return err
	}
	if c.Misbehave < 0 || c.Misbehave > 1 {
		return errors.New("misbehave must be between 0 and 1")
	}
	if *health {
		return check(ctx, *addr)
	}
	s := tiktoksim.New(c)
	s.SetCounting(tiktoksim.Counting{Browser: 0.7, Attributed: 0.26}) // a browser pixel, with ad blockers
	return serve(ctx, *addr, s, c.Misbehave, out)
}

const guide = `TikTok simulator on http://%[1]s

  accepted events    curl http://%[1]s/events
  counts             curl http://%[1]s/stats
  start a fault      curl -X POST http://%[1]s/faults -d '{"status":503,"for":"10s"}'
  end all faults     curl -X DELETE http://%[1]s/faults
  lie about counts   curl -X PUT http://%[1]s/counting -d '{"no_scope":true}'

%.3[2]g%% of the requests fail; -seed %[3]d repeats which.
`

func serve(ctx context.Context, addr string, s *tiktoksim.Simulator, misbehave float64, out io.Writer) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintf(out, guide, listener.Addr(), misbehave*100, s.Seed())
	server := &http.Server{Handler: s, ReadHeaderTimeout: 5 * time.Second}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func check(ctx context.Context, addr string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/healthz", nil)
	if err != nil {
		return err
	}
	response, err := (&http.Client{Timeout: 3 * time.Second}).Do(request)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		err = fmt.Errorf("check health: HTTP %s", response.Status)
	}
	return errors.Join(err, response.Body.Close())
}
