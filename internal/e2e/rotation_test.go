package e2e

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"purchase-relay/internal/testkit/stripegen"
)

// The signing secret is rotated under traffic, with every mistake on the way: no webhook is rejected, and the
// old secret is valid until the file no longer has it.
func TestIngest_RotatesSigningSecretUnderTraffic(t *testing.T) {
	t.Parallel()
	const first, second = "whsec_HunterOld-0123456789", "whsec_HunterNew-0123456789"
	file := filepath.Join(t.TempDir(), "signing")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(first + "\n")
	s := newStack(t, "STRIPE_WEBHOOK_SECRET=", "STRIPE_WEBHOOK_SECRET_FILE="+file,
		"TIKTOK_TEST_MODE=skip")

	sendSigned := func(event []byte, key string, want int) stripegen.Answer {
		answer, _ := s.sendUntilAnswered(want, func(ctx context.Context) (stripegen.Answer, error) {
			return s.sender.Post(ctx, event, stripegen.Sign(event, key, time.Now()))
		})
		return answer
	}
	// Sales in a steady flow, signed with Stripe's secret of the moment, which does not change during a request.
	var signing sync.Mutex
	signingKey := first
	sell := func() (id string) {
		signing.Lock()
		defer signing.Unlock()
		c := stripegen.NewCheckout().Live()
		if answer := sendSigned(c.Event(), signingKey, http.StatusOK); answer.Status != http.StatusOK {
			t.Errorf("answer = %+v, want 200", answer)
		}
		return c.SessionID
	}
	var sales atomic.Int64
	stop, sold := make(chan struct{}), make(chan []string)
	go func() {
		var ids []string
		defer func() { sold <- ids }()
		pace := time.NewTicker(20 * time.Millisecond)
		defer pace.Stop()
		for {
			select {
			case <-stop:
				return
			case <-pace.C:
			}
			ids = append(ids, sell())
			sales.Add(1)
		}
	}()
	post := func(key string, want int) {
		t.Helper()
		body := stripegen.NewCheckout().Event() // a test purchase, which is skipped
		if answer := sendSigned(body, key, want); answer.Status != want {
			t.Errorf("signed with %s: answer = %+v, want %d", key, answer, want)
		}
	}
	awaitLog := func(message string, count int) {
		t.Helper()
		s.await(message, func() bool { return s.ingest.logged(message) == count })
	}
	const unusable, usable = "Secret file unusable; keeping the old secret", "Secret file usable again"

	for i, mistake := range []string{"", first + ",whsec_", "whsec_local-only", first + "\n" + second} {
		write(mistake)
		awaitLog(unusable, i+1)
		post(first, http.StatusOK)
		post(second, http.StatusBadRequest)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	awaitLog(unusable, 5)
	post(first, http.StatusOK)

	write(first + "," + second)
	s.awaitIngestLog(`"Signing secrets changed","secrets":2`)
	awaitLog(usable, 1)
	post(first, http.StatusOK)
	post(second, http.StatusOK)
	signing.Lock()
	signingKey = second
	signing.Unlock()

	write(second)
	s.awaitIngestLog(`"Signing secrets changed","secrets":1`)
	post(first, http.StatusBadRequest)
	post(second, http.StatusOK)
	s.await("20 sales", func() bool { return sales.Load() >= 20 })
	close(stop)
	s.checkOnlyDelivered(<-sold...)
	if strings.Contains(strings.ToLower(s.ingest.log()), "hunter") {
		t.Error("the log contains a secret")
	}
	if n := s.ingest.logged(unusable) + s.ingest.logged(usable); n != 6 {
		t.Errorf("lines about the file = %d, want 6", n)
	}
}
