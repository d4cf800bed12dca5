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

// Each new content is told once; an empty or missing file is told once and changes nothing.
func TestFollowSecret(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("one\n")
	synctest.Test(t, func(t *testing.T) {
		var log []string
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			service.FollowSecret(ctx, path, "one", time.Second, func(s secret.String) { log = append(log, s.Reveal()) }, func(err error) { log = append(log, err.Error()) })
		}()
		for _, step := range []func(){
			func() {}, func() { write("two\n") }, func() { write("") }, func() {}, func() { write("two") }, func() { write("") }, func() { write("three\r\n") },
			func() { _ = os.Remove(path) }, func() {},
		} {
			step()
			<-time.After(time.Second)
			synctest.Wait()
		}
		stop()
		<-ended
		if want := []string{"two", "the file is empty", "the file is empty", "three", "cannot be read: no such file or directory"}; !slices.Equal(log, want) {
			t.Errorf("told %q, want %q", log, want)
		}
	})
}
