package e2e

import (
	"encoding/hex"
	"net/http"
	"strings"
	"testing"

	"purchase-relay/internal/dev/stripegen"
	"purchase-relay/internal/dev/tiktoksim"
)

// One person is removed from the ledger and from the queue's files, wherever the purchases stand; doctor looks at the same stack.
func TestForget(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	buy := func(email, click string) stripegen.Checkout {
		c := stripegen.NewCheckout().Live()
		c.Email, c.Customer, c.Subscription = &email, "cus_"+click, "sub_"+click
		c.Metadata = map[string]string{"ttclid": click, "client_ip": "203.0.113.7"}
		if answer := s.send(c); answer.Status != http.StatusOK {
			t.Fatalf("%+v", answer)
		}
		return c
	}
	const ada, bob = "ada.byron@example.com", "bob@example.com"
	delivered := buy(ada, "clickofada")
	s.awaitStatus(delivered.SessionID, "delivered")
	s.sim.Inject(tiktoksim.Fault{Code: 40002, Message: "no"})
	dead, other := buy(ada, "clickofada"), buy(bob, "clickofbob")
	s.awaitStatus(dead.SessionID, "dead")
	s.awaitStatus(other.SessionID, "dead")
	s.sim.Clear()

	env := []string{"DATABASE_URL=" + s.runtime(), "STRIPE_WEBHOOK_SECRET=" + signingSecret, "NATS_URL=" + natsURL("ingest", s.natsAddr), "NATS_MAX_BYTES=1GiB", "ADMIN_ADDR=" + strings.TrimPrefix(s.admin, "http://")}
	// The server of the tests is a throw-away one: the only thing to mend.
	if code, out := command(t, "ingest", env, "doctor"); code != 3 || !strings.Contains(out, ", 1 to mend.") || !strings.Contains(out, "fail  Postgres: durability") ||
		!strings.Contains(out, "pass  NATS: rights") || !strings.Contains(out, "pass  Stripe: signatures") {
		t.Errorf("ingest doctor: %d\n%s", code, out)
	}
	if code, out := command(t, "tiktok-worker", []string{
		"TIKTOK_ACCESS_TOKEN=local-token", "TIKTOK_PIXEL_ID=LOCALPIXEL", "TIKTOK_API_URL=" + s.simURL + eventPath, "NATS_URL=" + natsURL("worker", s.natsAddr),
	}, "doctor", "--code", "TEST1"); code != 0 || !strings.Contains(out, "0 to look at, 0 to mend.") {
		t.Errorf("tiktok-worker doctor: %d\n%s", code, out)
	}

	s.worker.stop()
	waiting := buy(ada, "clickofada")
	s.awaitStatus(waiting.SessionID, "published")
	profile := query[string](s, `SELECT id::text FROM profiles WHERE email = $1`, ada)
	traces := []string{ada, sha(ada), "clickofada", "cus_clickofada", profile, sha(profile)}

	// Ingest's own user may not erase: then the address is kept, by which the rest is found.
	if code, out := command(t, "ingest", env, "forget", "--yes", ada); code != 3 || !strings.Contains(out, "operator") || strings.Contains(out, ada) || query[int](s, `SELECT count(*) FROM profiles WHERE email = $1`, ada) != 1 {
		t.Errorf("without the right to erase: %d\n%s", code, out)
	}
	if code, out := command(t, "ingest", env, "forget", ada); code != 3 || !strings.Contains(out, "Nothing was done") {
		t.Errorf("not confirmed: %d\n%s", code, out)
	}
	env = append(env, "NATS_URL=nats://operator:anybody@"+s.natsAddr)
	if code, out := command(t, "ingest", env, "forget", "--yes", ada); code != 0 || !strings.Contains(out, "1 waiting, 1 dead") || !strings.Contains(out, delivered.SessionID) || strings.Contains(out, ada) {
		t.Errorf("forget: %d\n%s", code, out)
	}
	if code, out := command(t, "ingest", env, "forget", "--yes", ada); code != 1 || strings.Contains(out, ada) {
		t.Errorf("once more: %d\n%s", code, out)
	}
	places := map[string]string{"the ledger": s.everything(), "the queue's files": contents(t, s.natsDir), "ingest's log": strings.Join(s.ingest.lines(), "\n")}
	for place, text := range places {
		for _, trace := range traces {
			if place == "ingest's log" && trace == profile {
				continue // a random number, which nothing connects with anybody any more
			}
			if strings.Contains(text, trace) || strings.Contains(text, hex.EncodeToString([]byte(trace))) {
				t.Errorf("%s: %q is still there", place, trace)
			}
		}
	}
	for _, trace := range []string{bob, "cus_clickofbob"} {
		if !strings.Contains(places["the ledger"], trace) {
			t.Errorf("of the other one %q is gone", trace)
		}
	}
	if !strings.Contains(places["the queue's files"], "clickofbob") {
		t.Error("the other one's dead letter is gone")
	}

	// De-duplication is kept, and nothing of it is sent any more.
	if answer := s.send(waiting); answer.Body != `{"status":"duplicate"}` {
		t.Errorf("the same event again: %+v", answer)
	}
	s.startWorker()
	s.awaitStatus(buy(bob, "clickofbob").SessionID, "delivered")
	if r := s.purchase(waiting.SessionID); r.Status != "skipped" || r.Reason != "forgotten" {
		t.Errorf("what waited: %+v", r)
	}
	for _, e := range s.sim.Received() {
		if e.EventID == waiting.SessionID {
			t.Error("what waited was sent all the same")
		}
	}
}
