package aptget_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"purchase-relay/internal/testkit/aptget"
)

// A refused installation runs nothing and names the exact commands.
func TestRequest_RefusedNamesTheCommands(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		variable string
		uid      int
		want     string
	}{
		"NO_INSTALL=1":            {"1", 0, "NO_INSTALL is set"},
		"NO_INSTALL=yes":          {"yes", 0, "NO_INSTALL is set"},
		"NO_INSTALL without root": {"1", 1000, "NO_INSTALL is set"},
		"without root":            {"", 1000, "needs root"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			mark := filepath.Join(t.TempDir(), "ran")
			r := aptget.Request{
				What: "Thing", Commands: append(aptget.Packages("thing"), []string{"touch", mark}), Done: func() bool { return false },
				Getenv: func(string) string { return tc.variable }, UID: func() int { return tc.uid },
			}
			err := r.Run(t.Context(), io.Discard)
			if !errors.Is(err, aptget.ErrRefused) || !strings.Contains(err.Error(), tc.want) ||
				!strings.Contains(err.Error(), "apt-get update -qq && apt-get install -y -qq --no-install-recommends") || !strings.Contains(err.Error(), " thing && touch ") {
				t.Errorf("error = %v, want %q and the commands", err, tc.want)
			}
			if _, err := os.Stat(mark); !os.IsNotExist(err) {
				t.Errorf("a refused command ran: %v", err)
			}
		})
	}
}

// Every command is announced before the first one runs.
func TestRequest_AnnouncesBeforeRunning(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("the lock is root's")
	}
	mark := filepath.Join(t.TempDir(), "ran")
	out := &first{mark: mark}
	r := aptget.Request{
		What: "Thing", Commands: [][]string{{"touch", mark}}, Done: func() bool { return false }, Getenv: func(string) string { return "0" },
	}
	if err := r.Run(t.Context(), out); err != nil && !errors.Is(err, aptget.ErrRefused) { // no apt-get here
		t.Fatal(err)
	} else if err != nil {
		t.Skip(err)
	}
	if !strings.Contains(out.text, "touch "+mark) || out.late {
		t.Errorf("announcement = %q, after the command: %t", out.text, out.late)
	}
	if _, err := os.Stat(mark); err != nil {
		t.Errorf("the command did not run: %v", err)
	}
}

// first records a text and whether mark existed when it was written.
type first struct {
	mark, text string
	late       bool
}

func (f *first) Write(p []byte) (int, error) {
	_, err := os.Stat(f.mark)
	f.late = f.late || err == nil
	f.text += string(p)
	return len(p), nil
}

// A process that waited for another one's installation runs nothing.
func TestRequest_DoneMeanwhileRunsNothing(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("the lock is root's")
	}
	var out strings.Builder
	r := aptget.Request{What: "Thing", Commands: [][]string{{"false"}}, Done: func() bool { return true }, Getenv: func(string) string { return "" }}
	if err := r.Run(t.Context(), &out); err != nil && !errors.Is(err, aptget.ErrRefused) {
		t.Error(err)
	}
	if out.Len() > 0 {
		t.Errorf("announced %q", out.String())
	}
}
