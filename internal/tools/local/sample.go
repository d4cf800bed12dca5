package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/testkit/process"
	"purchase-relay/internal/testkit/stripegen"
)

// sampleTimeout bounds the sample's way; the simulator misbehaves a little, so that a retry may be on it.
const sampleTimeout = time.Minute

func (s *stack) ensureDatabase(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, s.pg.URL("postgres"))
	if err != nil {
		return fmt.Errorf("connect to the private Postgres: %w", err)
	}
	defer func() { _ = conn.Close(ctx) }()
	var exists, role bool
	err = conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1), EXISTS (SELECT FROM pg_roles WHERE rolname = $2)`,
		database, runtimeRole).Scan(&exists, &role)
	if err != nil {
		return err
	}
	verb := "CREATE"
	if role {
		verb = "ALTER"
	}
	if _, err := conn.Exec(ctx, verb+" ROLE "+runtimeRole+" LOGIN PASSWORD '"+s.pg.Password(runtimeRole)+"'"); err != nil {
		return fmt.Errorf("make the role that ingest runs as: %w", err)
	}
	if exists {
		return nil
	}
	return s.pg.CreateDatabase(ctx, database, "")
}

// row is the sample's row on the ledger.
type row struct {
	status, requestID string
	received          time.Time
	published, ended  *time.Time
	attempts          int
	lastError         string
}

// sample sends one signed purchase and follows it to its end.
func (s *stack) sample(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, sampleTimeout)
	defer cancel()
	checkout := stripegen.NewCheckout()
	began := time.Now()
	step := func(format string, args ...any) {
		s.say("  %+8.3fs  "+format+"\n", append([]any{time.Since(began).Seconds()}, args...)...)
	}
	s.say("\nA sample purchase (livemode=false):\n")
	body := checkout.Event()
	if err := s.shelf.Add(body); err != nil {
		return err
	}
	sender := &stripegen.Sender{URL: "http://" + s.at.ingest + "/webhooks/stripe", Secret: signingSecret}
	answer, err := sender.Send(ctx, body)
	if err != nil {
		return err
	}
	step("Stripe posted %s, signed; ingest answered %d %s", checkout.Type, answer.Status, answer.Body)
	if answer.Status != http.StatusOK {
		return fmt.Errorf("ingest refused the sample; its log is %s/ingest.log", s.root)
	}
	conn, err := pgx.Connect(ctx, s.pg.URL(database))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	told := ""
	for {
		r, err := readRow(ctx, conn, checkout.SessionID)
		if err != nil {
			return fmt.Errorf("read the sample's row: %w", err)
		}
		if r.status != told {
			told = r.status
			step("ledger: %s", describe(r))
		}
		switch r.status {
		case "delivered":
			if err := s.showAtSimulator(ctx, checkout.SessionID, step); err != nil {
				return err
			}
			s.say("\nThe sample purchase %s was delivered.\n", checkout.SessionID)
			return nil
		case "dead", "skipped", "rejected":
			return fmt.Errorf("the sample purchase ended %s (%s); the logs are in %s", r.status, r.lastError, s.root)
		}
		select {
		case <-ctx.Done():
			return errors.New("the sample purchase did not end within a minute; the logs are in " + s.root)
		case name := <-s.died:
			return fmt.Errorf("%s ended by itself; its log ends with:\n%s", name, process.Tail(s.log(name)))
		case <-tick.C:
		}
	}
}

func readRow(ctx context.Context, conn *pgx.Conn, id string) (r row, err error) {
	err = conn.QueryRow(ctx, `
SELECT status, COALESCE(tiktok_request_id, ''), created_at, published_at, finished_at, attempts, COALESCE(last_error, '')
FROM public.purchases WHERE checkout_session_id = $1`, id).
		Scan(&r.status, &r.requestID, &r.received, &r.published, &r.ended, &r.attempts, &r.lastError)
	return r, err
}

func describe(r row) string {
	switch {
	case r.status == "delivered" && r.ended != nil:
		return fmt.Sprintf("delivered after %d ms and %d attempt(s), TikTok's request_id %s", r.ended.Sub(r.received).Milliseconds(), r.attempts, r.requestID)
	case r.status == "published" && r.published != nil:
		return fmt.Sprintf("published to the queue after %d ms", r.published.Sub(r.received).Milliseconds())
	case r.status == "retrying":
		return fmt.Sprintf("retrying: the simulator misbehaves a little by default (%s)", r.lastError)
	}
	return r.status
}

func (s *stack) showAtSimulator(ctx context.Context, id string, step func(string, ...any)) error {
	_, body := get(ctx, "http://"+s.at.simulator+"/events?event_id="+id)
	var events []struct {
		Body struct {
			Event      string `json:"event"`
			EventTime  int64  `json:"event_time"`
			Properties struct {
				Value    json.Number `json:"value"`
				Currency string      `json:"currency"`
			} `json:"properties"`
		} `json:"body"`
	}
	if err := json.Unmarshal(body, &events); err != nil || len(events) != 1 {
		return fmt.Errorf("the simulator holds %d events of the sample: %.200s", len(events), body)
	}
	e := events[0].Body
	step("TikTok has %s, event_id %s, %s %s, event_time %d", e.Event, id, e.Properties.Value, e.Properties.Currency, e.EventTime)
	return nil
}
