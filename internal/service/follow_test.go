package service_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"purchase-relay/internal/secret"
	"purchase-relay/internal/service"
)

func TestFollowSecret_ReportsEachChangeOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("one\n")
	synctest.Test(t, func(t *testing.T) {
		var got []string
		changed := func(s secret.String) { got = append(got, s.Reveal()) }
		failed := func(err error) { got = append(got, err.Error()) }
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			service.FollowSecret(ctx, path, "one", time.Second, changed, failed)
		}()
		poll := func() { <-time.After(time.Second); synctest.Wait() }
		poll()
		for _, text := range []string{"two\n", "", "", "two", "", "three\r\n"} {
			write(text)
			poll()
		}
		_ = os.Remove(path)
		poll()
		poll()
		stop()
		<-ended
		want := []string{
			"two", "the file is empty", "the file is empty", "three", "read the file: no such file or directory",
		}
		if !slices.Equal(got, want) {
			t.Errorf("reported = %q, want %q", got, want)
		}
	})
}
