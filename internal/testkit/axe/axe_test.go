package axe

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSource_RejectsAnotherPackage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "axe-core-"+version+".tgz"), []byte("evil"), 0o600); err != nil {
		t.Fatal(err)
	}
	if script, err := Source(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "hash") {
		t.Errorf("Source = %.20q, %v, want the hash refused", script, err)
	}
}
