package e2e

import (
	"encoding/hex"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"purchase-relay/internal/testkit/stripegen"
	"purchase-relay/internal/testkit/tiktoksim"
	"purchase-relay/internal/testkit/wait"
)

// awaitCommand runs a binary repeatedly until it exits with a code and its output has certain parts.
func awaitCommand(t *testing.T, wantCode int, name string, env, args []string, parts ...string) {
	t.Helper()
	var code int
	var out string
	if !wait.Until(t.Context(), timeout, time.Second, func() bool {
		code, out = command(t, name, env, args...)
		lacks := func(part string) bool { return !strings.Contains(out, part) }
		return code == wantCode && !slices.ContainsFunc(parts, lacks)
	}) {
		t.Errorf("%s %v: exit code %d, want %d with %q:\n%s", name, args, code, wantCode, parts, out)
	}
}

// One person is removed from the ledger and the queue's files, whatever the purchases' status. doctor checks
// the same stack.
func TestForget_RemovesOnePerson(t *testing.T) {
	t.Parallel()
	s := newStack(t, "FIRST_PAYMENT=true")
	buy := func(email, name string) stripegen.Checkout {
		t.Helper()
		c := stripegen.NewCheckout().Live()
		c.Email, c.Customer, c.Subscription = &email, "cus_"+name, "sub_"+name
		c.Metadata = map[string]string{"ttclid": "clickof" + name, "client_ip": "203.0.113.7"}
		s.post(c.Event(), http.StatusOK, `"processed"`)
		return c
	}
	const ada, bob = "ada.byron@example.com", "bob@example.com"
	delivered := buy(ada, "ada")
	s.awaitStatus(delivered.SessionID, "delivered")
	// TikTok's message repeats the event's own values.
	s.sim.Inject(tiktoksim.Fault{Code: 40002, Message: "Batch.0.user.ip: 203.0.113.7 is not valid"})
	dead, other := buy(ada, "ada"), buy(bob, "bob")
	s.awaitStatus(dead.SessionID, "dead")
	s.awaitStatus(other.SessionID, "dead")
	s.sim.Clear()
	lastError := query[string](s, `SELECT last_error FROM purchases WHERE checkout_session_id = $1`,
		dead.SessionID)
	if want := "Batch.0.user.ip: [redacted] is not valid"; lastError != want {
		t.Errorf("last_error = %q, want %q", lastError, want)
	}
	if n := strings.Count(contents(t, s.natsDir)+s.worker.log(), "203.0.113.7 is not"); n != 0 {
		t.Errorf("the queue's files and the worker's log repeat the event's value %d times", n)
	}

	env := []string{
		"DATABASE_URL=" + s.runtimeURL(), "STRIPE_WEBHOOK_SECRET=" + signingSecret, "NATS_MAX_BYTES=1GiB",
		"NATS_URL=" + natsURL("ingest", s.natsAddr), "ADMIN_ADDR=" + strings.TrimPrefix(s.admin, "http://"),
	}
	run := func(wantCode int, program string, env, args []string, parts ...string) (out string) {
		t.Helper()
		code, out := command(t, program, env, args...)
		if code != wantCode {
			t.Errorf("%s %v: exit code %d, want %d\n%s", program, args, code, wantCode, out)
		}
		for _, part := range parts {
			if !strings.Contains(out, part) {
				t.Errorf("%s %v lacks %q:\n%s", program, args, part, out)
			}
		}
		return out
	}
	// A check fails or warns when a busy machine exceeds its time limit. Durability fails because the tests'
	// Postgres does not sync.
	workerEnv := []string{
		"TIKTOK_ACCESS_TOKEN=local-token", "TIKTOK_PIXEL_ID=LOCALPIXEL", "TIKTOK_API_URL=" + s.simURL + eventPath,
		"NATS_URL=" + natsURL("worker", s.natsAddr),
	}
	awaitCommand(t, 3, "ingest", env, []string{"doctor"},
		", 1 failed.", "fail  Postgres: durability", "pass  NATS: permissions", "pass  Stripe: signatures")
	awaitCommand(t, 0, "tiktok-worker", workerEnv, []string{"doctor", "--code", "TEST1"},
		"0 warnings, 0 failed.")

	// A pruned trial with a held invoice, and a purchase in test mode.
	trial := stripegen.NewCheckout().Live().Trial()
	trial.Email, trial.Customer, trial.Subscription = new(ada), "cus_trialofada", "sub_trialofada"
	trial.Metadata = map[string]string{"ttclid": "clickofada"}
	trial.Created = trial.Created.AddDate(0, 0, -20)
	invoices := trial.Invoices(8*24*time.Hour, 5*24*time.Hour, 3)
	s.post(trial.Event(), http.StatusOK, `"processed"`)
	s.post(invoices[2].Event(), http.StatusOK, `"held"`)
	s.exec(`UPDATE purchases SET purchased_at = purchased_at - interval '60 days',
		created_at = created_at - interval '60 days',
		finished_at = finished_at - interval '60 days' WHERE checkout_session_id = $1`, trial.SessionID)
	s.exec(`UPDATE stripe_events SET received_at = received_at - interval '60 days'
		WHERE checkout_session_id = $1`, trial.SessionID)
	run(0, "ingest", env, []string{"prune", "--yes", "--older-than", "35d"})
	if s.rows(`purchases WHERE checkout_session_id = $1`, trial.SessionID) != 0 ||
		s.rows(`trials WHERE envelope IS NOT NULL AND invoice_id IS NOT NULL`) != 1 {
		t.Fatal("prune did not delete the trial's purchase, or not keep its match keys and invoice")
	}
	tested := stripegen.NewCheckout()
	tested.Email, tested.Customer, tested.Subscription = new(ada), "cus_testofada", "sub_testofada"
	s.post(tested.Event(), http.StatusOK, `"processed"`)
	s.awaitStatus(tested.SessionID, "skipped")

	s.worker.stop()
	waiting := buy(ada, "ada")
	s.awaitStatus(waiting.SessionID, "published")
	profile := query[string](s, `SELECT id::text FROM profiles WHERE livemode AND email = $1`, ada)
	testProfile := query[string](s, `SELECT id::text FROM profiles WHERE NOT livemode AND email = $1`, ada)
	traces := []string{
		ada, sha(ada), "clickofada", "cus_ada", "sub_ada", "cus_trialofada", "sub_trialofada",
		"cus_testofada", "sub_testofada", profile, sha(profile), testProfile, sha(testProfile),
	}

	// Without the right to erase messages the address is kept: the rest is found by it.
	forget := []string{"forget", "--yes", ada}
	outputs := run(3, "ingest", env, forget, "operator")
	if n := s.rows(`profiles WHERE email = $1`, ada); n != 2 {
		t.Errorf("profiles after forget without permission = %d, want 2", n)
	}
	run(3, "ingest", env, []string{"forget", ada}, "Nothing was done") // not confirmed
	env = append(env, "NATS_URL="+natsURL("operator", s.natsAddr))
	outputs += run(0, "ingest", env, forget, "1 waiting, 1 dead", delivered.SessionID)
	outputs += run(1, "ingest", env, forget) // nothing is left
	if strings.Contains(outputs, ada) {
		t.Errorf("the output contains the address:\n%s", outputs)
	}
	places := map[string]string{
		"the ledger": s.everything(), "the queue's files": contents(t, s.natsDir), "ingest's log": s.ingest.log(),
	}
	for place, text := range places {
		for _, trace := range traces {
			// Random ids in the log refer to nothing any more.
			random := trace == profile || trace == testProfile || strings.HasPrefix(trace, "cus_")
			if place == "ingest's log" && random {
				continue
			}
			if strings.Contains(text, trace) || strings.Contains(text, hex.EncodeToString([]byte(trace))) {
				t.Errorf("%q is still in %s", trace, place)
			}
		}
	}
	for trace, place := range map[string]string{
		bob: "the ledger", "cus_bob": "the ledger", "clickofbob": "the queue's files",
	} {
		if !strings.Contains(places[place], trace) {
			t.Errorf("%q of another person is gone from %s", trace, place)
		}
	}

	// The trial's first invoice finds no trial, a repeated event is a duplicate, and nothing more is sent.
	s.post(invoices[1].Event(), http.StatusOK, `"held"`)
	s.post(waiting.Event(), http.StatusOK, `"duplicate"`)
	s.startWorker()
	s.awaitStatus(buy(bob, "bob").SessionID, "delivered")
	s.checkPurchase(waiting.SessionID, "skipped", "forgotten")
	events := s.received()
	for _, id := range []string{
		waiting.SessionID, trial.SessionID, invoices[1].InvoiceID, invoices[2].InvoiceID,
	} {
		if _, sent := events[id]; sent {
			t.Errorf("TikTok has %s, want nothing of a forgotten person", id)
		}
	}
}
