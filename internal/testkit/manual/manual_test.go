package manual_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
)

const root = "../../.."

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// The documents name no variable that was renamed or removed.
func TestDocuments_NameExistingVariables(t *testing.T) {
	t.Parallel()
	// Variables of tools and libraries, a stream, and a setting of NATS.
	known := []string{
		"GOMEMLIMIT", "NO_INSTALL", "PGPASSFILE", "WEBHOOK_URL", "PURCHASES_DEAD",
	}
	assigned := regexp.MustCompile(`(?m)^#([A-Z_]+)=`)
	for _, m := range assigned.FindAllStringSubmatch(read(t, ".env.example"), -1) {
		known = append(known, m[1], m[1]+"_FILE")
	}
	documents, err := filepath.Glob(filepath.Join(root, "docs/*.md"))
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`([A-Z]+(?:_[A-Z]+)+)[=`]")
	for _, document := range append(documents, root+"/README.md", root+"/deploy/kubernetes/README.md") {
		for _, m := range named.FindAllStringSubmatch(read(t, document[len(root):]), -1) {
			if !slices.Contains(known, m[1]) {
				t.Errorf("%s names %s, which does not exist", document, m[1])
			}
		}
	}
}
