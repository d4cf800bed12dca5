package queue_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/relay"
)

// occurrences counts a text in all files below a folder.
func occurrences(t *testing.T, dir, text string) (n int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return nil // a file that the server has just removed
		}
		if data, err := os.ReadFile(path); err == nil {
			n += bytes.Count(data, []byte(text))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Erased messages are gone from the streams and from the server's files; other messages remain.
func TestErase_RemovesMessagesOfPurchases(t *testing.T) {
	t.Parallel()
	s := newNATS(t)
	envelope := func(id, click string) []byte {
		keys := purchase.MatchKeys{Email: purchase.HashEmail("a@b.example"), TTCLID: click}
		data, err := message.EncodeEnvelope(&purchase.Purchase{ID: id, Livemode: true, At: time.Now(), Keys: keys})
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	for id, click := range map[string]string{"cs_a1": "click-ada", "cs_a2": "click-ada", "cs_b1": "click-bob"} {
		p := claim(id, 1)
		p.Envelope = envelope(id, click)
		s.store([]relay.Claim{p})
		for generation := range 2 { // dead-lettered, replayed, dead-lettered again
			letter := deadLetter(id, generation+1)
			letter.Envelope = envelope(id, click)
			if _, err := repeat(t, func() error {
				return errors.Join(s.DeadLetters(t.Context(), []message.DeadLetter{letter})...)
			}); err != nil {
				t.Fatal(err)
			}
		}
	}
	check := func(wantAda, wantBob int) {
		t.Helper()
		ada, bob := occurrences(t, s.dir, "click-ada"), occurrences(t, s.dir, "click-bob")
		if ada != wantAda || bob != wantBob {
			t.Errorf("the files contain ada %d and bob %d times, want %d and %d", ada, bob, wantAda, wantBob)
		}
	}
	check(6, 3)
	for _, want := range [][2]int{{2, 4}, {0, 0}} { // the second time nothing is left
		var got [2]int
		timeouts, err := repeat(t, func() error {
			waiting, dead, err := s.Erase(t.Context(), []string{"cs_a1", "cs_a2", "cs_unknown"})
			got[0], got[1] = got[0]+waiting, got[1]+dead
			return err
		})
		if err != nil || got != want && timeouts == 0 { // a deletion that times out is not counted
			t.Errorf("erased %d waiting and dead, error %v; want %d", got, err, want)
		}
	}
	check(0, 3)
	s.stop()
	s.start()
	if ada := occurrences(t, s.dir, "click-ada"); ada != 0 {
		t.Errorf("the files contain ada %d times after a restart, want 0", ada)
	}
}

// Ingest's own user may not read or delete messages.
func TestErase_RequiresOperator(t *testing.T) {
	t.Parallel()
	g := newAuthNATS(t, shippedConf(t))
	ingest, _, _ := g.connect("ingest", "hunter1")
	await(t, "the connection", ingest.Connected)
	g.provision(streamConfig.MaxBytes)
	_, _, err := ingest.Erase(t.Context(), []string{"cs_1"})
	if err == nil || !strings.Contains(err.Error(), "requires an operator's NATS_URL") {
		t.Errorf("error of ingest's own user = %v, want the required user", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := ingest.Erase(ctx, []string{"cs_1"}); err == nil {
		t.Error("error of a canceled Erase = nil, want one")
	}
}
