package manual

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// Check asks a binary for its help, with help, and holds everything that is said about its configuration against that. For a test of
// the binary's own package.
func Check(t *testing.T, binary string, help func(args ...string) string) {
	t.Helper()
	const root = "../.."
	text := help("--help")
	takes, seen := Parse(text), make(map[string]bool)
	for _, v := range takes {
		seen[v.Name] = true
	}
	commands := Commands(text)
	if len(takes) < 10 || len(commands) < 2 {
		t.Fatalf("the help of %s cannot be read any more: %d variables, the commands %v", binary, len(takes), commands)
	}
	for _, command := range commands { // flags of their own
		for _, v := range Parse(help(command, "--help")) {
			if !seen[v.Name] {
				seen[v.Name] = true
				takes = append(takes, v)
			}
		}
	}
	for _, problem := range Problems(root, binary, takes) {
		t.Error(problem)
	}
	readme, err := os.ReadFile(root + "/README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(readme), "\n| "+binary+" | default |")
	if !ok {
		t.Fatalf("README.md has no table of %s's variables", binary)
	}
	section, _, _ = strings.Cut(section, "\n\n")
	for _, m := range regexp.MustCompile("(?m)^\\| (`[^|]*`) \\|").FindAllStringSubmatch(section, -1) {
		for name := range strings.SplitSeq(m[1], ",") {
			if name = strings.Trim(strings.TrimSpace(name), "`"); !seen[name] {
				t.Errorf("README.md names %s, which %s does not take", name, binary)
			}
		}
	}
}
