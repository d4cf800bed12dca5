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

	"purchase-relay/internal/testkit/stripegen"
	"purchase-relay/internal/testkit/tiktoksim"
)

// told is a message as NOTIFY_URL's receiver gets it.
type told struct {
	Text, Reason, State, Remedy string
	Count                       int
	IDs                         []string
}

// receiver is somebody who is to be told.
type receiver struct {
	t  *testing.T
	mu sync.Mutex

	how  string // "": takes what comes, and looks at it; 500, hang, taken
	got  []told
	seen map[string]int // requests, by how they were answered
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	data, err := io.ReadAll(req.Body)
	if err != nil {
		return
	}
	r.mu.Lock()
	how := r.how
	r.seen[how]++
	r.mu.Unlock()
	switch how {
	case "500":
		w.WriteHeader(http.StatusInternalServerError)
		return
	case "hang":
		<-req.Context().Done()
		return
	case "taken":
		return
	}
	var m told
	if err := json.Unmarshal(data, &m); err != nil || req.URL.Path != "/hook/t0ken" {
		r.t.Errorf("%s got %s: %v", req.URL.Path, data, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got = append(r.got, m)
}

func (r *receiver) answer(how string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.how = how
}

func (r *receiver) requests(how string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.seen[how]
}

// about returns the messages about a reason.
func (r *receiver) about(reason, state string) (list []told) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range r.got {
		if m.Reason == reason && m.State == state {
			list = append(list, m)
		}
	}
	return list
}

// One message for each trouble and one when it is over, none of a kind twice in ten minutes, from one of two replicas.
func TestBeingTold(t *testing.T) {
	t.Parallel() // it waits most of its time
	r := &receiver{t: t, seen: map[string]int{}}
	file := filepath.Join(t.TempDir(), "notify")
	if err := os.WriteFile(file, []byte(listen(t, r)+"/hook/t0ken\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := newStack(t, "NOTIFY_URL_FILE="+file, "NOTIFY_SILENCE=25s")
	admin := s.admin
	first := s.ingest
	s.startIngest("NOTIFY_URL_FILE="+file, "NOTIFY_SILENCE=25s") // the second replica
	s.sim.Inject(tiktoksim.Fault{Code: 40002, Message: "no"})
	one, two := stripegen.NewCheckout().Live(), stripegen.NewCheckout().Live()
	s.send(one)
	s.send(two)
	s.await("the deaths to be told", func() bool { return len(r.about("dead:refused", "firing")) == 1 })
	m := r.about("dead:refused", "firing")[0]
	if m.Count != 2 || !strings.Contains(m.Text, one.SessionID) || !strings.Contains(m.Text, two.SessionID) || !strings.Contains(m.Remedy, "ingest replay") || len(m.IDs) != 2 {
		t.Errorf("%+v", m)
	}
	s.await("the silence to be told", func() bool { return len(r.about("silence", "firing")) == 1 })
	s.sim.Clear()
	s.sim.SetToken("another")
	if code, out := s.command("replay", "--status", "dead", "--yes"); code != 0 {
		t.Fatalf("replay: %d %s", code, out)
	}
	s.await("the end of the deaths to be told", func() bool { return len(r.about("dead:refused", "resolved")) == 1 })
	s.await("the pause to be told", func() bool { return len(r.about("paused", "firing")) == 1 })
	if m := r.about("paused", "firing")[0]; !strings.Contains(m.Text, "40105") || !strings.Contains(m.Remedy, "access token") {
		t.Errorf("%+v", m)
	}
	s.sim.SetToken("local-token")
	s.awaitStatus(one.SessionID, "delivered")
	s.await("the end of the pause to be told", func() bool { return len(r.about("paused", "resolved")) == 1 })

	// More of what was told: it waits for the ten minutes, and what is new meanwhile does not.
	s.sim.Inject(tiktoksim.Fault{Code: 40002, Message: "no"})
	three := stripegen.NewCheckout().Live()
	s.send(three)
	s.awaitStatus(three.SessionID, "dead")
	s.await("the end of the silence to be told", func() bool { return len(r.about("silence", "resolved")) == 1 })
	s.exec(`UPDATE purchases SET reason = 'crash' WHERE checkout_session_id = $1`, three.SessionID)
	s.await("another reason to be told", func() bool { return len(r.about("dead:crash", "firing")) == 1 })
	for _, reason := range []string{"dead:refused", "silence", "paused"} {
		if n := len(r.about(reason, "firing")); n != 1 {
			t.Errorf("%s was told %d times", reason, n)
		}
	}
	if a, b := first.said("Notification sent"), s.ingest.said("Notification sent"); a > 0 && b > 0 {
		t.Errorf("both replicas tell: %d and %d", a, b)
	}
	log := strings.Join(append(first.lines(), s.ingest.lines()...), "\n")
	for _, address := range []string{s.admin, admin} {
		_, metrics := get(address + "/metrics")
		log += metrics
	}
	if strings.Contains(log, "t0ken") {
		t.Error("the receiver's address is in the log or in the metrics")
	}
}

// A receiver that answers 500 or hangs disturbs neither webhooks nor deliveries nor the end of the program.
func TestReceiverInTrouble(t *testing.T) {
	t.Parallel()
	r := &receiver{t: t, seen: map[string]int{}, how: "500"}
	s := newStack(t, "NOTIFY_URL="+listen(t, r)+"/hook/t0ken")
	s.sim.Inject(tiktoksim.Fault{Code: 40002, Message: "no", Count: 1})
	s.send(stripegen.NewCheckout().Live())
	s.await("the receiver to be asked three times", func() bool { return r.requests("500") == 3 })
	s.await("the failure to be counted", func() bool { return s.ingestFigure(`purchase_relay_notifications_total{result="failed"}`) == 1 })
	r.answer("hang")
	s.sim.SetToken("another")
	held := stripegen.NewCheckout().Live()
	s.send(held)
	s.await("the receiver to hang", func() bool { return r.requests("hang") > 0 })
	for range 20 {
		if answer := s.send(stripegen.NewCheckout().Live()); answer.Status != http.StatusOK {
			t.Fatalf("a webhook was answered %+v", answer)
		}
	}
	s.sim.SetToken("local-token")
	s.awaitStatus(held.SessionID, "delivered")
	if code := s.ingest.stop(); code != 0 {
		t.Errorf("ingest ended with %d while its receiver hung", code)
	}
	if strings.Contains(strings.Join(s.ingest.lines(), "\n"), "t0ken") {
		t.Error("the receiver's address is in the log")
	}
}
