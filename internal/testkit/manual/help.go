package manual

import (
	"regexp"
	"slices"
	"strings"
	"testing"
)

// CheckHelp compares a binary's help, which comes from its parser, with the variables read from its source.
func CheckHelp(t *testing.T, root, binary, help string) {
	t.Helper()
	known, err := Variables(root, binary)
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, v := range known {
		want = append(want, "$"+v.Name)
		if v.File {
			want = append(want, "$"+v.Name+"_FILE")
		}
	}
	_, settings, _ := strings.Cut(help, "\nSettings:\n")
	got := regexp.MustCompile(`\$[A-Z_]+`).FindAllString(settings, -1)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%s --help names %v, want %v", binary, got, want)
	}
}
