package e2e

import (
	"context"
	"errors"
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

// mountedSecret is a folder in which Kubernetes keeps a secret: the file is a link into the link ..data.
type mountedSecret struct {
	t       *testing.T
	dir     string
	version int
}

func (m *mountedSecret) file() string { return filepath.Join(m.dir, "signing") }

// publish replaces the content at one moment, as Kubernetes does.
func (m *mountedSecret) publish(text string) {
	m.t.Helper()
	m.version++
	version := "..v" + string(rune('a'+m.version))
	link := filepath.Join(m.dir, "..data_tmp")
	err := errors.Join(os.Mkdir(filepath.Join(m.dir, version), 0o700),
		os.WriteFile(filepath.Join(m.dir, version, "signing"), []byte(text), 0o600),
		os.Symlink(version, link), os.Rename(link, filepath.Join(m.dir, "..data")))
	if m.version == 1 {
		err = errors.Join(err, os.Symlink("..data/signing", m.file()))
	}
	if err != nil {
		m.t.Fatal(err)
	}
}

// The signing secret is rotated under traffic, with every mistake on the way: no webhook is rejected, and the
// old secret is valid until the file no longer has it.
func TestIngest_RotatesSigningSecretUnderTraffic(t *testing.T) {
	t.Parallel()
	const first, second = "whsec_HunterOld-0123456789", "whsec_HunterNew-0123456789"
	secret := &mountedSecret{t: t, dir: t.TempDir()}
	secret.publish(first + "\n")
	s := newStack(t, "STRIPE_WEBHOOK_SECRET=", "STRIPE_WEBHOOK_SECRET_FILE="+secret.file(),
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
		secret.publish(mistake)
		awaitLog(unusable, i+1)
		post(first, http.StatusOK)
		post(second, http.StatusBadRequest)
	}
	if err := os.Remove(filepath.Join(secret.dir, "..data")); err != nil {
		t.Fatal(err)
	}
	awaitLog(unusable, 5)
	post(first, http.StatusOK)

	secret.publish(first + "," + second)
	s.awaitIngestLog(`"Signing secrets changed","secrets":2`)
	awaitLog(usable, 1)
	post(first, http.StatusOK)
	post(second, http.StatusOK)
	signing.Lock()
	signingKey = second
	signing.Unlock()

	secret.publish(second)
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
