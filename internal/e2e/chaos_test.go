package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Everything is broken for a short time (`make chaos` does it for longer): once with every fault there is, once without a sweeper and
// with only those by which the queue loses nothing.
func TestChaos(t *testing.T) {
	for _, mode := range []string{"all", "kept"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			if err := readSources(); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			chaos := exec.Command(filepath.Join(binaries, "chaos"), "-binaries", binaries, "-mode", mode, "-duration", "12s", "-rate", "20", "-gap", "400ms")
			chaos.Env = append(os.Environ(), "GORACE=halt_on_error=1")
			text, err := chaos.CombinedOutput()
			if err != nil {
				t.Errorf("%v\n%s", err, text)
			}
			if !strings.Contains(string(text), "Nothing was lost") {
				t.Error("the report does not say that all is well")
			}
			t.Logf("%s\nin %s", text, time.Since(began).Round(time.Second))
		})
	}
}
