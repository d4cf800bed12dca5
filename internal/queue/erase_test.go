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

// What is erased is gone from the streams and from the server's files; what is another's stays.
func TestErase_RemovesMessagesOfPurchases(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	envelope := func(id, click string) []byte {
		data, err := message.EncodeEnvelope(&purchase.Purchase{ID: id, Livemode: true, At: time.Now(), Keys: purchase.MatchKeys{Email: purchase.HashEmail("a@b.example"), TTCLID: click}})
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	for id, click := range map[string]string{"cs_a1": "click-ada", "cs_a2": "click-ada", "cs_b1": "click-bob"} {
		p := claim(id, 1)
		p.Envelope = envelope(id, click)
		if got := s.publish(p); got[0].Err != nil {
			t.Fatal(got[0].Err)
		}
		for generation := range 2 { // died, was replayed, died again
			letter := message.DeadLetter{EventID: id, Generation: generation + 1, Reason: purchase.ReasonRefused, DiedAt: time.Now(), Envelope: envelope(id, click)}
			err := errors.Join(s.DeadLetters(t.Context(), []message.DeadLetter{letter})...)
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if ada, bob := occurrences(t, s.dir, "click-ada"), occurrences(t, s.dir, "click-bob"); ada != 6 || bob != 3 {
		t.Fatalf("the files hold ada %d times, bob %d times", ada, bob)
	}
	for _, want := range [][2]int{{2, 4}, {0, 0}} { // again: nothing is left
		if waiting, dead, err := s.Erase(t.Context(), []string{"cs_a1", "cs_a2", "cs_unknown"}); err != nil || [2]int{waiting, dead} != want {
			t.Errorf("erased %d waiting and %d dead, %v; want %v", waiting, dead, err, want)
		}
	}
	if ada, bob := occurrences(t, s.dir, "click-ada"), occurrences(t, s.dir, "click-bob"); ada != 0 || bob != 3 {
		t.Errorf("the files hold ada %d times, bob %d times", ada, bob)
	}
	s.stop()
	s.start()
	if ada := occurrences(t, s.dir, "click-ada"); ada != 0 {
		t.Errorf("after a restart the files hold ada %d times", ada)
	}
}

// Ingest's own user may not read or delete messages: it is told so, and who may.
func TestErase_NeedsOperator(t *testing.T) {
	t.Parallel()
	g := newGuarded(t, ours(t))
	ingest, _, _ := g.as("ingest", "hunter1")
	await(t, "the connection", ingest.Connected)
	g.provisioned(small.MaxBytes)
	if _, _, err := ingest.Erase(t.Context(), []string{"cs_1"}); err == nil || !strings.Contains(err.Error(), "operator") {
		t.Errorf("ingest's own user: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := ingest.Erase(ctx, []string{"cs_1"}); err == nil {
		t.Error("a cancelled one succeeded")
	}
}
