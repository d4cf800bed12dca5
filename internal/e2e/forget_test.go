package e2e

import (
	"encoding/hex"
	"net/http"
	"strings"
	"testing"
	"time"

	"purchase-relay/internal/testkit/stripegen"
	"purchase-relay/internal/testkit/tiktoksim"
)

// One person is removed from the ledger and from the queue's files, wherever the purchases stand; doctor looks at the same stack.
func TestForget(t *testing.T) {
	t.Parallel()
	s := newStack(t, "FIRST_PAYMENT=true")
	buy := func(email, click string) stripegen.Checkout {
		c := stripegen.NewCheckout().Live()
		c.Email, c.Customer, c.Subscription = &email, "cus_"+click[len("clickof"):], "sub_"+click[len("clickof"):]
		c.Metadata = map[string]string{"ttclid": click, "client_ip": "203.0.113.7"}
		if answer := s.send(c); answer.Status != http.StatusOK {
			t.Fatalf("%+v", answer)
		}
		return c
	}
	const ada, bob = "ada.byron@example.com", "bob@example.com"
	delivered := buy(ada, "clickofada")
	s.awaitStatus(delivered.SessionID, "delivered")
	// TikTok's message repeats the event's own values.
	s.sim.Inject(tiktoksim.Fault{Code: 40002, Message: "Batch.0.user.ip: 203.0.113.7 is not valid"})
	dead, other := buy(ada, "clickofada"), buy(bob, "clickofbob")
	s.awaitStatus(dead.SessionID, "dead")
	s.awaitStatus(other.SessionID, "dead")
	s.sim.Clear()
	if got := query[string](s, `SELECT last_error FROM purchases WHERE checkout_session_id = $1`,
		dead.SessionID); got != "Batch.0.user.ip: [redacted] is not valid" {
		t.Errorf("TikTok's message on the ledger: %q", got)
	}
	if n := strings.Count(contents(t, s.natsDir)+strings.Join(s.worker.lines(), "\n"),
		"203.0.113.7 is not"); n != 0 {
		t.Errorf("TikTok's message repeats the event's value %d times in the queue's files and the worker's log", n)
	}

	env := []string{"DATABASE_URL=" + s.runtime(), "STRIPE_WEBHOOK_SECRET=" + signingSecret, "NATS_URL=" + natsURL("ingest", s.natsAddr), "NATS_MAX_BYTES=1GiB", "ADMIN_ADDR=" + strings.TrimPrefix(s.admin, "http://")}
	// The tests' Postgres runs without fsync: the only failure.
	if code, out := command(t, "ingest", env, "doctor"); code != 3 || !strings.Contains(out, ", 1 failed.") || !strings.Contains(out, "fail  Postgres: durability") ||
		!strings.Contains(out, "pass  NATS: permissions") || !strings.Contains(out, "pass  Stripe: signatures") {
		t.Errorf("ingest doctor: %d\n%s", code, out)
	}
	if code, out := command(t, "tiktok-worker", []string{
		"TIKTOK_ACCESS_TOKEN=local-token", "TIKTOK_PIXEL_ID=LOCALPIXEL", "TIKTOK_API_URL=" + s.simURL + eventPath, "NATS_URL=" + natsURL("worker", s.natsAddr),
	}, "doctor", "--code", "TEST1"); code != 0 || !strings.Contains(out, "0 warnings, 0 failed.") {
		t.Errorf("tiktok-worker doctor: %d\n%s", code, out)
	}

	// A trial that was pruned, with an invoice that is held; and a purchase of the test mode.
	trial := stripegen.NewCheckout().Live().Trial()
	trial.Email, trial.Customer, trial.Subscription = new(ada), "cus_trialofada", "sub_trialofada"
	trial.Metadata = map[string]string{"ttclid": "clickofada"}
	trial.Created = trial.Created.AddDate(0, 0, -20)
	invoices := trial.Invoices(8*24*time.Hour, 5*24*time.Hour, 3)
	invoice := func(n int, want string) {
		t.Helper()
		if answer, err := s.sender.Send(t.Context(), invoices[n].Event()); err != nil ||
			answer.Body != `{"status":"`+want+`"}` {
			t.Errorf("invoice %d: %+v, %v, want %s", n, answer, err, want)
		}
	}
	if answer := s.send(trial); answer.Body != `{"status":"processed"}` {
		t.Fatalf("the trial: %+v", answer)
	}
	invoice(2, "held")
	s.exec(`UPDATE purchases SET purchased_at = purchased_at - interval '60 days',
		created_at = created_at - interval '60 days',
		finished_at = finished_at - interval '60 days' WHERE checkout_session_id = $1`, trial.SessionID)
	s.exec(`UPDATE stripe_events SET received_at = received_at - interval '60 days'
		WHERE checkout_session_id = $1`, trial.SessionID)
	if code, out := command(t, "ingest", env, "prune", "--yes", "--older-than", "35d"); code != 0 {
		t.Errorf("prune: %d\n%s", code, out)
	}
	if query[int](s, `SELECT count(*) FROM purchases WHERE checkout_session_id = $1`, trial.SessionID) != 0 ||
		query[int](s, `SELECT count(*) FROM trials WHERE envelope IS NOT NULL AND invoice_id IS NOT NULL`) != 1 {
		t.Fatal("the pruning should take the trial's purchase, and leave its keys and its invoice")
	}
	tested := stripegen.NewCheckout()
	tested.Email, tested.Customer, tested.Subscription = new(ada), "cus_testofada", "sub_testofada"
	if answer := s.send(tested); answer.Status != http.StatusOK {
		t.Fatalf("a test purchase: %+v", answer)
	}
	s.await("the test purchase's end", func() bool {
		return s.purchase(tested.SessionID).Status != "published" &&
			s.purchase(tested.SessionID).Status != "pending"
	})

	s.worker.stop()
	waiting := buy(ada, "clickofada")
	s.awaitStatus(waiting.SessionID, "published")
	profile := query[string](s, `SELECT id::text FROM profiles WHERE livemode AND email = $1`, ada)
	testProfile := query[string](s, `SELECT id::text FROM profiles WHERE NOT livemode AND email = $1`, ada)
	traces := []string{
		ada, sha(ada), "clickofada", "cus_ada", "sub_ada", "cus_trialofada", "sub_trialofada", "cus_testofada", "sub_testofada",
		profile, sha(profile), testProfile, sha(testProfile),
	}

	// Ingest's own user may not erase: then the address is kept, by which the rest is found.
	code, out := command(t, "ingest", env, "forget", "--yes", ada)
	if n := query[int](s, `SELECT count(*) FROM profiles WHERE email = $1`, ada); code != 3 || n != 2 ||
		!strings.Contains(out, "operator") || strings.Contains(out, ada) {
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
			random := trace == profile || trace == testProfile || strings.HasPrefix(trace, "cus_")
			if place == "ingest's log" && random {
				continue // random numbers, which nothing here connects with anybody any more
			}
			if strings.Contains(text, trace) || strings.Contains(text, hex.EncodeToString([]byte(trace))) {
				t.Errorf("%s: %q is still there", place, trace)
			}
		}
	}
	for _, trace := range []string{bob, "cus_bob"} {
		if !strings.Contains(places["the ledger"], trace) {
			t.Errorf("of the other one %q is gone", trace)
		}
	}
	if !strings.Contains(places["the queue's files"], "clickofbob") {
		t.Error("the other one's dead letter is gone")
	}

	// The trial's first invoice comes: it finds no trial.
	invoice(1, "held")
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
		if e.EventID == waiting.SessionID || e.EventID == trial.SessionID || e.EventID == invoices[1].InvoiceID ||
			e.EventID == invoices[2].InvoiceID {
			t.Errorf("%s was sent all the same", e.EventID)
		}
	}
}
