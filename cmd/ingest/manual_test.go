package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"purchase-relay/internal/service"
	"purchase-relay/internal/testkit/manual"
)

// --help, docs/configuration.md, README.md, .env.example and docker-compose.yml tell of the same variables, with the same defaults.
func TestManual(t *testing.T) {
	manual.Check(t, "ingest", func(args ...string) string {
		var out bytes.Buffer
		if err := run(t.Context(), args, env(), strings.NewReader(""), &out); !errors.Is(err, service.ErrHelp) {
			t.Fatalf("%v: %v", args, err)
		}
		return out.String()
	})
}
