// Command tiktoksim serves the simulator of TikTok.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"purchase-relay/internal/testkit/launch"
	"purchase-relay/internal/testkit/tiktoksim"
	"purchase-relay/internal/testkit/try"
)

func main() {
	try.Main("tiktoksim", func(ctx context.Context) error { return run(ctx, os.Args[1:], os.Getenv, os.Stdout) })
}

const guide = `TikTok simulator on http://%[1]s

  accepted events    curl http://%[1]s/events
  counts             curl http://%[1]s/stats
  start a fault      curl -X POST http://%[1]s/faults -d '{"status":503,"for":"10s"}'
  end all faults     curl -X DELETE http://%[1]s/faults
  refuse counts      curl -X PUT http://%[1]s/counting -d '{"no_scope":true}'

%.3[2]g%% of the requests fail.
`

func run(ctx context.Context, args []string, getenv func(string) string, out io.Writer) error {
	var c tiktoksim.Config
	flags := flag.NewFlagSet("tiktoksim", flag.ContinueOnError)
	flags.SetOutput(out)
	addr := flags.String("addr", cmp.Or(getenv("SIM_ADDR"), "127.0.0.1:8083"), "listen address; $SIM_ADDR")
	flags.Float64Var(&c.Misbehave, "misbehave", 0.02, "share of requests, 0 to 1, that fail")
	flags.DurationVar(&c.Latency, "latency", 20*time.Millisecond, "of every answer")
	health := flags.Bool("health", false, "check the running simulator")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *health {
		if status, text := launch.Get(ctx, "http://"+*addr+"/healthz"); status != http.StatusOK {
			return fmt.Errorf("check health: %d %s", status, text)
		}
		return nil
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", *addr)
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintf(out, guide, listener.Addr(), c.Misbehave*100)
	s := tiktoksim.New(c)
	s.SetCounting(tiktoksim.Counting{Browser: 0.7, Attributed: 0.26}) // a browser pixel, with ad blockers
	server := &http.Server{Handler: s, ReadHeaderTimeout: 5 * time.Second}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
