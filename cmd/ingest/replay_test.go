package main

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strings"
	"testing"

	"purchase-relay/internal/service"
)

func TestReplay_WarnsOfOldPurchases(t *testing.T) {
	t.Parallel()
	o := newOperator(t)
	o.count(`WITH p AS (
		INSERT INTO purchases (checkout_session_id, status, reason, mode, livemode, purchased_at,
			first_published_at, finished_at, envelope)
		SELECT 'cs_' || n, 'dead', 'refused', 'subscription', true, now() - n * interval '10 days', now(), now(), ''
		FROM generate_series(1, 4) n RETURNING 1)
		SELECT count(*) FROM p`)
	for _, tc := range []struct {
		args []string
		want string // "": no warning
	}{
		{[]string{"--status", "dead"}, "2 of them were paid more than 28 days ago"},
		{[]string{"--session", "cs_4"}, "1 of them were paid more than 28 days ago"},
		{[]string{"--session", "cs_2"}, ""},
	} {
		status, out := o.run("n\n", append([]string{"replay"}, tc.args...)...)
		if status != 3 || !strings.Contains(out, tc.want) || tc.want == "" && strings.Contains(out, "28 days") {
			t.Errorf("replay %v = %d, want 3 and %q:\n%s", tc.args, status, tc.want, out)
		}
	}
}

// interrupter cancels a context, as a signal does, once a text was printed.
type interrupter struct {
	printed bytes.Buffer
	text    string
	cancel  context.CancelFunc
}

// Write implements io.Writer.
func (i *interrupter) Write(p []byte) (int, error) {
	n, err := i.printed.Write(p)
	if strings.Contains(i.printed.String(), i.text) {
		i.cancel()
	}
	return n, err
}

func TestReplay_InterruptedRequiresAction(t *testing.T) {
	t.Parallel()
	o := newOperator(t)
	o.count(`WITH p AS (
		INSERT INTO purchases (checkout_session_id, status, reason, mode, livemode, purchased_at,
			first_published_at, finished_at, envelope)
		VALUES ('cs_1', 'dead', 'refused', 'subscription', true, now(), now(), now(), '') RETURNING 1)
		SELECT count(*) FROM p`)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out := &interrupter{text: "1 to replay", cancel: cancel}
	err := run(ctx, []string{"replay", "--status", "dead", "--yes"}, env("DATABASE_URL="+o.url), nil, out)
	var stderr bytes.Buffer
	code := service.ExitCode(err, &stderr)
	if want := "interrupted with 0 of 1 made pending: action required\n"; code != 3 || stderr.String() != want {
		t.Errorf("interrupted replay = %d, %q, want 3, %q", code, stderr.String(), want)
	}
}

// A signal ends a prompt that gets no answer.
func TestPrompts_EndOnSignal(t *testing.T) {
	t.Parallel()
	const question = "Continue? [y/N] "
	for name, tc := range map[string]struct {
		args []string
		want string // the end of the output
	}{
		"the address to forget": {[]string{"forget", "-"}, "Nothing was done.\n"},
		"the confirmation":      {[]string{"forget", "ada@example.com"}, question + "\nNothing was done.\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			stdin, terminal := io.Pipe()
			defer func() { _ = terminal.Close() }()
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			var out bytes.Buffer
			err := run(ctx, tc.args, env("DATABASE_URL=postgres://h/d"), stdin, &out)
			if code := service.ExitCode(err, io.Discard); code != 3 || !strings.HasSuffix(out.String(), tc.want) {
				t.Errorf("%v = %d, %q, want 3 and %q at the end", tc.args, code, out.String(), tc.want)
			}
		})
	}
}

func TestBackfill_WarnsOfOldPurchases(t *testing.T) {
	t.Parallel()
	o := newOperator(t)
	_, address := shopAPI(t)
	for since, warned := range map[string]bool{"30d": true, "29d": true, "28d": false, "72h": false} {
		status, out := o.run("", "backfill", "--since", since,
			"--stripe-api-key", "rk_test_x", "--stripe-api-url", address)
		if status != 0 || strings.Contains(out, "older than 28 days") != warned {
			t.Errorf("backfill --since %s = %d, want 0 and a warning: %t\n%s", since, status, warned, out)
		}
	}
}

// An unrestricted key gets a hint. Without the right to read events the backfill fails.
func TestBackfill_ReportsRightsOfKey(t *testing.T) {
	t.Parallel()
	o := newOperator(t)
	api, address := shopAPI(t)
	expect := func(key string, status int, want string) {
		t.Helper()
		got, out := o.run("", "backfill", "--stripe-api-key", key, "--stripe-api-url", address)
		if got != status || !strings.Contains(out, want) || strings.Contains(out, "hunter2") {
			t.Errorf("backfill = %d, want %d with %q and without the key:\n%s", got, status, want, out)
		}
	}
	expect("sk_test_hunter2", 0, "a restricted one")
	api.Fail(1, http.StatusForbidden)
	expect("rk_test_hunter2", 1, "lacks read permission")
}
