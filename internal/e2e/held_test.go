package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/testkit/faultproxy"
	"purchase-relay/internal/testkit/stripegen"
)

// postgresThrough puts a proxy before the stack's Postgres, which listens on a Unix socket, and returns the URL that goes through it.
func (s *stack) postgresThrough() (proxy *faultproxy.Proxy, database string) {
	s.t.Helper()
	config, err := pgx.ParseConfig(s.database)
	if err != nil {
		s.t.Fatal(err)
	}
	proxy = faultproxy.ForTest(s.t, fmt.Sprintf("%s/.s.PGSQL.%d", config.Host, config.Port))
	return proxy, fmt.Sprintf("postgres://%s@%s/%s?sslmode=disable", config.User, proxy.Addr(), config.Database)
}

// once checks that a purchase is delivered, and stands once everywhere.
func (s *stack) once(c stripegen.Checkout) {
	s.t.Helper()
	s.awaitStatus(c.SessionID, "delivered")
	if e := s.event(c.SessionID); e.Copies != 1 || e.Variants != 1 {
		s.t.Errorf("%d copies in %d bodies", e.Copies, e.Variants)
	}
	if n := query[int](s, `SELECT count(*) FROM profiles WHERE email = lower($1)`, *c.Email); n != 1 {
		s.t.Errorf("%d profiles", n)
	}
}

// Ingest is killed after Postgres has committed and before it heard so: Stripe sends the event again, and it is a duplicate.
func TestKilledBeforeTheCommitIsHeard(t *testing.T) {
	t.Parallel() // a killed relay's claim stands for half a minute
	s := newStack(t)
	for range max(1, crashes()/6) {
		proxy, database := s.postgresThrough()
		s.ingest.kill()
		s.startIngest("DATABASE_URL=" + database)
		c := stripegen.NewCheckout().Live()
		held := proxy.HoldAnswersAfter([]byte("commit"))
		answered := make(chan error, 1)
		go func() {
			_, err := s.sender.Send(t.Context(), c.Event())
			answered <- err
		}()
		<-held
		s.await("the commit", func() bool { // a relay's commit may have come first: then there is no answer to miss
			return len(answered) > 0 || query[int](s, `SELECT count(*) FROM purchases WHERE checkout_session_id = $1`, c.SessionID) == 1
		})
		s.ingest.kill()
		err := <-answered
		s.startIngest()
		want := `{"status":"duplicate"}`
		if answer := s.send(c); answer.Status != 200 || (err != nil && answer.Body != want) {
			t.Errorf("the event again: %+v", answer)
		}
		s.once(c)
	}
}

// Ingest is killed after the stream has taken a purchase and before it heard so: it is published again under the same
// message id, and the stream keeps one.
func TestKilledBeforeThePublishIsHeard(t *testing.T) {
	t.Parallel() // a killed relay's claim stands for half a minute
	s := newStack(t)
	for range max(1, crashes()/6) {
		proxy := faultproxy.ForTest(t, s.natsAddr)
		s.ingest.kill()
		s.startIngest("NATS_URL=" + natsURL("ingest", proxy.Addr()))
		s.await("ingest to be connected", func() bool {
			_, body := get(s.admin + "/readyz")
			return strings.Contains(body, `"nats":"up"`)
		})
		c := stripegen.NewCheckout().Live()
		held := proxy.HoldAnswersAfter([]byte("purchases.live." + c.SessionID))
		s.send(c)
		<-held
		s.await("TikTok to have it", func() bool {
			for _, e := range s.sim.Received() {
				if e.EventID == c.SessionID {
					return true
				}
			}
			return false
		})
		s.ingest.kill()
		s.startIngest()
		s.once(c)
	}
}

// The worker is killed after TikTok, or the queue, has taken what it sent and before it heard so: the queue delivers again
// after half a minute, and the same event is sent again, alone.
func TestWorkerKilledBeforeItHears(t *testing.T) {
	t.Parallel()
	for name, where := range map[string]string{"TikTok's answer": "tiktok", "the outcome's acknowledgement": "nats"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStack(t)
			if where == "tiktok" {
				proxy := faultproxy.ForTest(t, strings.TrimPrefix(s.simURL, "http://"))
				s.killHeld(proxy, `"event_id"`, "TIKTOK_API_URL=http://"+proxy.Addr()+eventPath)
				return
			}
			proxy := faultproxy.ForTest(t, s.natsAddr)
			s.killHeld(proxy, "PUB outcomes ", "NATS_URL="+natsURL("worker", proxy.Addr()))
		})
	}
}

// killHeld lets a worker send two purchases together, kills it when its neighbour's answer to a match is held, and starts
// another one.
func (s *stack) killHeld(proxy *faultproxy.Proxy, match, env string) {
	s.t.Helper()
	s.worker.kill()
	a, b := stripegen.NewCheckout().Live(), stripegen.NewCheckout().Live()
	s.send(a)
	s.send(b)
	s.awaitStatus(a.SessionID, "published")
	s.awaitStatus(b.SessionID, "published")
	held := proxy.HoldAnswersAfter([]byte(match))
	s.startWorker(env)
	<-held
	s.await("TikTok to have both", func() bool { return len(s.sim.Received()) == 2 })
	s.worker.kill()
	s.startWorker()
	again := func() bool {
		for _, e := range s.sim.Received() {
			if e.Copies < 2 {
				return false
			}
		}
		return true
	}
	s.await("the queue to deliver both again", again)
	for _, c := range []stripegen.Checkout{a, b} {
		s.awaitStatus(c.SessionID, "delivered")
		if e := s.event(c.SessionID); e.Variants != 1 {
			s.t.Errorf("%d bodies under one event_id", e.Variants)
		}
	}
}
