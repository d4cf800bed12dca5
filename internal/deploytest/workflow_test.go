package deploytest

import (
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// workflows returns the names of the workflows' files.
func workflows(t *testing.T) (names []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, ".github/workflows/*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 3 {
		t.Errorf("workflows = %q, want at least three", files)
	}
	for _, file := range files {
		names = append(names, strings.TrimPrefix(file, root))
	}
	return names
}

// A tag of an action can be moved: workflows name its commit. A workflow has no permission, and each job the
// ones that it names. `make check` runs actionlint.
func TestWorkflows_PinActionsAndPermissions(t *testing.T) {
	t.Parallel()
	pinned := regexp.MustCompile(`^(\./\S+|[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+)$`)
	uses := regexp.MustCompile(`(?m)\buses: *(.+)$`)
	for _, name := range workflows(t) {
		for _, m := range uses.FindAllStringSubmatch(read(t, name), -1) {
			if !pinned.MatchString(m[1]) {
				t.Errorf("%s: uses %s, want a commit and its version", name, m[1])
			}
		}
		workflow := decode(t, name)[0]
		if rights, ok := workflow["permissions"].(map[string]any); !ok || len(rights) > 0 {
			t.Errorf("%s: permissions = %v, want none", name, workflow["permissions"])
		}
		for job, definition := range workflow["jobs"].(map[string]any) {
			rights, _ := at(definition, "permissions").(map[string]any)
			if len(rights) == 0 {
				t.Errorf("%s: job %s names no permissions", name, job)
			}
			for right, value := range rights {
				if value == "write" && (name != "/.github/workflows/release.yaml" || job != "release") {
					t.Errorf("%s: job %s may write %s", name, job, right)
				}
			}
			for _, step := range list(definition, "steps") {
				checkout := strings.HasPrefix(text(step, "uses"), "actions/checkout@")
				if checkout && text(step, "with persist-credentials") != "false" {
					t.Errorf("%s: job %s leaves its token in the clone", name, job)
				}
			}
		}
	}
}

// A workflow that names a make target names one that exists.
func TestWorkflows_CallExistingTargets(t *testing.T) {
	t.Parallel()
	var called []string
	for _, name := range workflows(t) {
		for _, m := range regexp.MustCompile(`run: make (\S+)`).FindAllStringSubmatch(read(t, name), -1) {
			called = append(called, m[1])
			if !strings.Contains(read(t, "Makefile"), "\n"+m[1]+": ") {
				t.Errorf("%s: make %s does not exist", name, m[1])
			}
		}
	}
	if !slices.Contains(called, "release") || !slices.Contains(called, "vuln") {
		t.Errorf("workflows call %q, want release and vuln", called)
	}
}
