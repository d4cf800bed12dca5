package service_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"purchase-relay/internal/secret"
	"purchase-relay/internal/service"
)

// followed is a followed file in a folder of its own.
type followed struct {
	t       *testing.T
	path    string
	log     *observer.ObservedLogs
	applied []string
	stop    func()
}

// follow follows a file whose content was "one" at the start. "bad" and "worse" are unusable. It must be
// called in a bubble of synctest.
func follow(t *testing.T, path string) *followed {
	t.Helper()
	core, log := observer.New(zap.DebugLevel)
	f := &followed{t: t, path: path, log: log}
	apply := func(s secret.String) error {
		if strings.HasPrefix(s.Reveal(), "bad") {
			return errors.New("does not look like a secret")
		}
		f.applied = append(f.applied, s.Reveal())
		return nil
	}
	getenv := func(name string) string {
		return map[string]string{"TOKEN_FILE": path}[name]
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		service.FollowSecret(ctx, getenv, "TOKEN", "one", apply, "correct the file", zap.New(core))
	}()
	f.stop = func() { cancel(); <-ended }
	return f
}

// poll waits for n reads of the file.
func (f *followed) poll(n int) {
	for range n {
		<-time.After(service.FollowInterval)
		synctest.Wait()
	}
}

func (f *followed) write(text string) {
	f.t.Helper()
	if err := os.WriteFile(f.path, []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// lines returns each log line with its error, without the secret's name.
func (f *followed) lines() (lines []string) {
	for _, e := range f.log.All() {
		fields := e.ContextMap()
		line := e.Message
		if problem := fields["error"]; problem != nil {
			line = fmt.Sprint(problem, "; ", fields["remedy"])
		}
		if fields["file"] != "TOKEN_FILE" {
			f.t.Errorf("log line %q names the file %v, want TOKEN_FILE", line, fields["file"])
		}
		lines = append(lines, line)
	}
	return lines
}

func TestFollowSecret_ReportsEachStateOnce(t *testing.T) {
	const again, remedy = "Secret file usable again", "; correct the file"
	const empty, bad = "the file is empty" + remedy, "does not look like a secret" + remedy
	const missing = "read the file: no such file or directory" + remedy
	const notRegular, large = "not a regular file" + remedy, "the file is larger than 64 KiB" + remedy
	pipe := func(f *followed) {
		_ = os.Remove(f.path)
		if err := syscall.Mkfifo(f.path, 0o600); err != nil {
			f.t.Fatal(err)
		}
	}
	text := func(texts ...string) func(f *followed) {
		return func(f *followed) {
			for _, text := range texts {
				f.write(text)
				f.poll(3)
			}
		}
	}
	for name, tc := range map[string]struct {
		change        func(f *followed)
		applied, want []string
	}{
		"unchanged":           {text("one", "one\r\n"), nil, nil},
		"new":                 {text("two\n", "three\r\n", "one"), []string{"two", "three", "one"}, nil},
		"empty, then as was":  {text("", "\n", "one"), nil, []string{empty, again}},
		"empty, then new":     {text("", "two"), []string{"two"}, []string{empty, again}},
		"unusable, then new":  {text("bad", "two"), []string{"two"}, []string{bad, again}},
		"two unusable":        {text("bad", "bad2", "one"), nil, []string{bad, bad, again}},
		"unusable after good": {text("two", "bad", "two"), []string{"two"}, []string{bad, again}},
		"removed": {
			func(f *followed) { _ = os.Remove(f.path); f.poll(3); text("one")(f) },
			nil,
			[]string{missing, again},
		},
		"a pipe": {func(f *followed) { pipe(f); f.poll(3) }, nil, []string{notRegular}},
		"a folder": {
			func(f *followed) { _ = os.Remove(f.path); _ = os.Mkdir(f.path, 0o700); f.poll(3) },
			nil,
			[]string{notRegular},
		},
		"huge": {text(strings.Repeat("x", 1<<16+1)), nil, []string{large}},
		"a write in progress": {
			func(f *followed) {
				for _, part := range []string{"", "t", "tw", "bad", "two"} {
					f.write(part)
					f.poll(1)
				}
				f.poll(1)
			}, []string{"two"}, nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "token")
			synctest.Test(t, func(t *testing.T) {
				f := follow(t, path)
				f.write("one\n")
				f.poll(2)
				tc.change(f)
				f.stop()
				if lines := f.lines(); !slices.Equal(f.applied, tc.applied) || !slices.Equal(lines, tc.want) {
					t.Errorf("applied = %q, log = %q, want %q and %q", f.applied, lines, tc.applied, tc.want)
				}
			})
		})
	}
}

// Kubernetes writes a new folder and switches a link to it; the file itself is a link into that link.
func TestFollowSecret_FollowsSwitchedLink(t *testing.T) {
	mount := t.TempDir()
	publish := func(version, text string) {
		dir := filepath.Join(mount, version)
		if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, "token"), []byte(text), 0o600),
			os.Symlink(version, filepath.Join(mount, "..data_tmp")),
			os.Rename(filepath.Join(mount, "..data_tmp"), filepath.Join(mount, "..data"))); err != nil {
			t.Fatal(err)
		}
	}
	publish("..1", "one")
	path := filepath.Join(mount, "token")
	if err := os.Symlink("..data/token", path); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		f := follow(t, path)
		f.poll(2)
		publish("..2", "two")
		_ = os.RemoveAll(filepath.Join(mount, "..1"))
		f.poll(3)
		f.stop()
		if want := []string{"two"}; !slices.Equal(f.applied, want) || len(f.lines()) > 0 {
			t.Errorf("applied = %q, log = %q, want %q and none", f.applied, f.lines(), want)
		}
	})
}

// A secret in the variable itself has no file to follow.
func TestFollowSecret_ReturnsWithoutFile(t *testing.T) {
	t.Parallel()
	none := func(string) string { return "" }
	service.FollowSecret(t.Context(), none, "TOKEN", "one", nil, "", zap.NewNop())
}
