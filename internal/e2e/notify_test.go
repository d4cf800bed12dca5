package e2e

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"purchase-relay/internal/testkit/tiktoksim"
)

// notification is a message to NOTIFY_URL.
type notification struct {
	Text, Reason, State, Remedy string
	Count                       int
	IDs                         []string
}

// receiver serves NOTIFY_URL.
type receiver struct {
	t  *testing.T
	mu sync.Mutex

	fault string // "500", "hang" or ""
	got   []notification
	seen  map[string]int // requests by fault
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	data, err := io.ReadAll(req.Body)
	if err != nil {
		return
	}
	r.mu.Lock()
	fault := r.fault
	r.seen[fault]++
	r.mu.Unlock()
	switch fault {
	case "500":
		w.WriteHeader(http.StatusInternalServerError)
		return
	case "hang":
		<-req.Context().Done()
		return
	}
	var m notification
	if err := json.Unmarshal(data, &m); err != nil || req.URL.Path != "/hook/t0ken" {
		r.t.Errorf("POST %s of %s: %v, want JSON to /hook/t0ken", req.URL.Path, data, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got = append(r.got, m)
}

func (r *receiver) setFault(fault string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fault = fault
}

func (r *receiver) requests(fault string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.seen[fault]
}

// messages returns the received messages with a reason and a state.
func (r *receiver) messages(reason, state string) (list []notification) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range r.got {
		if m.Reason == reason && m.State == state {
			list = append(list, m)
		}
	}
	return list
}

// The keys of advisory locks, as in package ledger.
const (
	lockNotifier        = 7103
	lockBackfillCommand = 7107
)

// locks counts the sessions that hold an advisory lock.
func (s *stack) locks(key int) int {
	s.t.Helper()
	return s.rows(`pg_locks JOIN pg_stat_activity USING (pid) WHERE datname = current_database()
		AND locktype = 'advisory' AND objid::bigint = $1 AND granted`, key)
}

// Each problem is one message when it starts and one when it ends, none twice within ten minutes, all from
// one of two replicas.
func TestNotify_OneMessagePerProblem(t *testing.T) {
	t.Parallel()
	r := &receiver{t: t, seen: map[string]int{}}
	file := filepath.Join(t.TempDir(), "notify")
	if err := os.WriteFile(file, []byte(listen(t, r)+"/hook/t0ken\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	env := []string{"NOTIFY_URL_FILE=" + file, "NOTIFY_SILENCE=25s"}
	s := newStack(t, env...)
	first, firstAdmin := s.ingest, s.admin
	s.startIngest(env...) // the second replica
	// The sender delays messages about problems that are older than its start by ten minutes.
	s.await("a replica to become the sender", func() bool { return s.locks(lockNotifier) == 1 })
	await := func(reason, state string) notification {
		t.Helper()
		s.await(reason+" to be "+state, func() bool { return len(r.messages(reason, state)) == 1 })
		return r.messages(reason, state)[0]
	}
	s.sim.Inject(tiktoksim.Fault{Code: 40002, Message: "no"})
	ids := s.sell(3)
	s.awaitCount("dead", 3)
	s.sim.Clear()
	s.sim.SetToken("another")
	waiting := s.sell(1)[0]
	m := await("dead:refused", "firing")
	// The message lists the purchases that are dead ten seconds after the first: not all on a busy machine.
	if m.Count == 0 || len(m.IDs) != m.Count || !strings.Contains(m.Text, m.IDs[0]) ||
		!strings.Contains(m.Remedy, "ingest replay") {
		t.Errorf("message = %+v, want the purchases with the remedy", m)
	}
	m = await("paused", "firing")
	if !strings.Contains(m.Text, "40105") || !strings.Contains(m.Remedy, "access token") {
		t.Errorf("message = %+v, want code 40105 with the remedy", m)
	}
	await("silence", "firing")

	// All three end, and one with another reason starts.
	s.sim.SetToken("local-token")
	if code, out := s.command("replay", "--session", ids[0], "--yes"); code != 0 {
		t.Fatalf("replay: %d %s", code, out)
	}
	s.exec(`UPDATE purchases SET reason = 'crash' WHERE checkout_session_id = ANY($1)`, ids[1:])
	s.checkDelivered(append(s.sell(1), ids[0], waiting)...)
	for _, reason := range []string{"dead:refused", "paused", "silence"} {
		await(reason, "resolved")
	}
	m = await("dead:crash", "firing")
	both := strings.Contains(m.Text, ids[1]) && strings.Contains(m.Text, ids[2])
	if m.Count != 2 || len(m.IDs) != 2 || !both || !strings.Contains(m.Remedy, "ingest replay") {
		t.Errorf("message = %+v, want both purchases with the remedy", m)
	}
	for _, reason := range []string{"dead:refused", "silence", "paused"} {
		if n := len(r.messages(reason, "firing")); n != 1 {
			t.Errorf("messages about %s = %d, want 1", reason, n)
		}
	}
	if a, b := first.logged("Notification sent"), s.ingest.logged("Notification sent"); a > 0 && b > 0 {
		t.Errorf("messages of the replicas = %d and %d, want all from one", a, b)
	}
	outputs := first.log() + s.ingest.log()
	for _, admin := range []string{firstAdmin, s.admin} {
		_, metrics := httpGet(admin + "/metrics")
		outputs += metrics
	}
	if strings.Contains(outputs, "t0ken") {
		t.Error("the receiver's URL is in the log or the metrics")
	}
}

// A receiver that returns 500 or hangs delays no webhook, no delivery and no shutdown.
func TestNotify_BrokenReceiverDelaysNothing(t *testing.T) {
	t.Parallel()
	r := &receiver{t: t, seen: map[string]int{}, fault: "500"}
	s := newStack(t, "NOTIFY_URL="+listen(t, r)+"/hook/t0ken")
	s.sim.Inject(tiktoksim.Fault{Code: 40002, Message: "no", Count: 1})
	s.sell(1)
	s.await("three attempts", func() bool { return r.requests("500") >= 3 })
	s.await("the failure to be counted", func() bool {
		return s.metric(s.admin, `purchase_relay_notifications_total{result="failed"}`) >= 1
	})
	r.setFault("hang")
	s.sim.SetToken("another")
	id := s.sell(1)[0]
	s.await("the receiver to hang", func() bool { return r.requests("hang") > 0 })
	s.sell(20)
	s.sim.SetToken("local-token")
	s.awaitStatus(id, "delivered")
	if code := s.ingest.stop(); code != 0 {
		t.Errorf("exit code with a hanging receiver = %d, want 0", code)
	}
	if strings.Contains(s.ingest.log(), "t0ken") {
		t.Error("the receiver's URL is in the log")
	}
}
