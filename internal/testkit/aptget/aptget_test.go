package aptget

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRefusal(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		variable string
		uid      int
		want     string
	}{
		"NO_INSTALL=1":            {"1", 0, "NO_INSTALL is set"},
		"NO_INSTALL=yes":          {"yes", 0, "NO_INSTALL is set"},
		"NO_INSTALL without root": {"1", 1000, "NO_INSTALL is set"},
		"NO_INSTALL=0":            {"0", 1000, "needs root"},
		"without root":            {"", 1000, "needs root"},
	} {
		if got := refusal(tc.variable, tc.uid); got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

// A refused installation runs nothing and names the exact commands.
func TestProgram_RefusedNamesTheCommands(t *testing.T) {
	t.Setenv("NO_INSTALL", "1")
	mark := filepath.Join(t.TempDir(), "ran")
	commands := append(Packages("thing"), "touch "+mark)
	missing := func() (string, error) { return "", errors.New("no thing") }
	_, err := Program{Name: "Thing", Commands: commands, Find: missing}.Ensure(t.Context(), t.Output())
	want := "apt-get update -qq && apt-get install -y -qq --no-install-recommends" +
		" -o Dpkg::Options::=--force-confold thing && touch " + mark
	if !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), want) {
		t.Errorf("error = %v, want %q", err, want)
	}
	if _, err := os.Stat(mark); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a refused command ran: %v", err)
	}
}

// The announcement holds every command and precedes the first one.
func TestProgram_AnnouncesBeforeRunning(t *testing.T) {
	t.Setenv("NO_INSTALL", "0")
	if why := refusal("0", os.Getuid()); why != "" {
		t.Skip(why)
	}
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	text := func() string {
		data, err := os.ReadFile(log.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	p := Program{
		Name: "Thing", Commands: []string{`echo "the command" >>` + log.Name()},
		Find: func() (string, error) {
			if !strings.HasSuffix(text(), "the command\n") {
				return "", errors.New("no thing")
			}
			return "/thing", nil
		},
	}
	if path, err := p.Ensure(t.Context(), log); err != nil || path != "/thing" {
		t.Fatalf("path = %q, %v, want /thing", path, err)
	}
	if got := text(); !strings.HasPrefix(got, "Thing is missing. Running as root") ||
		!strings.HasSuffix(got, "\nthe command\n") {
		t.Errorf("log = %q, want the announcement, then the command's output", got)
	}
}
