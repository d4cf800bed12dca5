package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/testkit/faultproxy"
	"purchase-relay/internal/testkit/stripegen"
)

// postgresProxy puts a proxy in front of Postgres, which listens on a Unix socket. database is its URL.
func (s *stack) postgresProxy() (proxy *faultproxy.Proxy, database string) {
	s.t.Helper()
	config, err := pgx.ParseConfig(s.database)
	if err != nil {
		s.t.Fatal(err)
	}
	proxy = faultproxy.ForTest(s.t, fmt.Sprintf("%s/.s.PGSQL.%d", config.Host, config.Port))
	return proxy, fmt.Sprintf("postgres://%s@%s/%s?sslmode=disable", config.User, proxy.Addr(), config.Database)
}

// Ingest is killed after Postgres has committed and before ingest gets the answer. Stripe sends the event
// again: a duplicate.
func TestIngest_KilledAfterCommit(t *testing.T) {
	t.Parallel() // a killed relay's claim lasts 30 s
	s := newStack(t)
	for range max(1, crashes()/6) {
		proxy, database := s.postgresProxy()
		s.ingest.Kill()
		s.startIngest("DATABASE_URL=" + database)
		c := stripegen.NewCheckout().Live()
		held := proxy.HoldAnswersAfter([]byte("commit"))
		answered := make(chan error, 1)
		go func() {
			_, err := s.sender.Send(t.Context(), c.Event())
			answered <- err
		}()
		<-held
		s.await("the commit", func() bool { // or the answer, where the relay's commit was the held one
			return len(answered) > 0 || s.rows(`purchases WHERE checkout_session_id = $1`, c.SessionID) == 1
		})
		s.ingest.Kill()
		err := <-answered
		s.startIngest()
		want := ""
		if err != nil {
			want = `"duplicate"`
		}
		s.post(c.Event(), http.StatusOK, want)
		s.checkDelivered(c.SessionID)
		if n := s.rows(`profiles WHERE email = lower($1)`, *c.Email); n != 1 {
			t.Errorf("profiles = %d, want 1", n)
		}
	}
}

// Ingest is killed after the stream has stored a purchase and before ingest gets the PubAck. The purchase is
// published again with the same message id, and the stream keeps one.
func TestIngest_KilledAfterPublish(t *testing.T) {
	t.Parallel() // a killed relay's claim lasts 30 s
	s := newStack(t)
	for range max(1, crashes()/6) {
		proxy := faultproxy.ForTest(t, s.natsAddr)
		s.ingest.Kill()
		s.startIngest("NATS_URL=" + natsURL("ingest", proxy.Addr()))
		s.await("ingest to be connected", func() bool {
			_, body := httpGet(s.admin + "/readyz")
			return strings.Contains(body, `"nats":"up"`)
		})
		c := stripegen.NewCheckout().Live()
		held := proxy.HoldAnswersAfter([]byte("purchases.live." + c.SessionID))
		s.send(c)
		<-held
		s.await("TikTok to receive the purchase", func() bool { return s.received()[c.SessionID].Copies > 0 })
		s.ingest.Kill()
		s.startIngest()
		s.checkDelivered(c.SessionID)
	}
}

// The worker is killed after TikTok or NATS has accepted what it sent and before the answer. NATS redelivers
// after 30 s, and the same event is sent again.
func TestWorker_KilledBeforeAnswer(t *testing.T) {
	t.Parallel()
	for name, where := range map[string]string{"TikTok's answer": "tiktok", "PubAck of the outcome": "nats"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStack(t)
			if where == "tiktok" {
				proxy := faultproxy.ForTest(t, strings.TrimPrefix(s.simURL, "http://"))
				s.killWorkerBeforeAnswer(proxy, `"event_id"`, "TIKTOK_API_URL=http://"+proxy.Addr()+eventPath)
				return
			}
			proxy := faultproxy.ForTest(t, s.natsAddr)
			s.killWorkerBeforeAnswer(proxy, "PUB outcomes ", "NATS_URL="+natsURL("worker", proxy.Addr()))
		})
	}
}

// killWorkerBeforeAnswer lets a worker send two purchases through a proxy, kills it while the answer to match
// is held, and starts another one.
func (s *stack) killWorkerBeforeAnswer(proxy *faultproxy.Proxy, match, env string) {
	s.t.Helper()
	s.worker.Kill()
	ids := s.sell(2)
	s.awaitCount("published", 2)
	held := proxy.HoldAnswersAfter([]byte(match))
	s.startWorker(env)
	<-held
	s.await("TikTok to receive both", func() bool { return len(s.sim.Received()) == 2 })
	s.worker.Kill()
	s.startWorker()
	s.await("both to be sent again", func() bool {
		events := s.received()
		return events[ids[0]].Copies > 1 && events[ids[1]].Copies > 1
	})
	for _, id := range ids {
		s.awaitStatus(id, "delivered")
		if e := s.event(id); e.Variants != 1 {
			s.t.Errorf("%s was sent in %d bodies, want 1", id, e.Variants)
		}
	}
}
