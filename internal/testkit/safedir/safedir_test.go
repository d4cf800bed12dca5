package safedir_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"purchase-relay/internal/testkit/safedir"
)

func TestMake_RefusesForeignFolder(t *testing.T) {
	t.Parallel()
	mkdir := func(mode fs.FileMode) func(dir, target string) error {
		return func(dir, _ string) error { return errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, mode)) }
	}
	link := func(dir, target string) error { return os.Symlink(target, dir) }
	broken := func(dir, target string) error { return os.Symlink(target+"/new", dir) }
	file := func(dir, _ string) error { return os.WriteFile(dir, nil, 0o600) }
	foreign := func(dir, _ string) error {
		return errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, 12345, 12345))
	}
	for name, tc := range map[string]struct {
		root    bool // only root can prepare the case
		prepare func(dir, target string) error
		want    string // "": accepted
	}{
		"missing":            {false, func(string, string) error { return nil }, ""},
		"from before":        {false, mkdir(0o700), ""},
		"readable for group": {false, mkdir(0o750), "is open to other users (mode 0750)"},
		"writable for all":   {false, mkdir(0o777), "is open to other users (mode 0777)"},
		"file":               {false, file, "is not a folder"},
		"link":               {false, link, "is not a folder"},
		"link to nowhere":    {false, broken, "is not a folder"},
		"another user's":     {true, foreign, "belongs to another user"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if tc.root && os.Getuid() != 0 {
				t.Skip("needs root")
			}
			dir, target := filepath.Join(t.TempDir(), "dir"), t.TempDir()
			if err := tc.prepare(dir, target); err != nil {
				t.Fatal(err)
			}
			err := safedir.Make(dir, 0o077)
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error = %v, want %q", err, tc.want)
			}
			if entries, err := os.ReadDir(target); err != nil || len(entries) > 0 {
				t.Errorf("the link's target holds %v, %v, want nothing", entries, err)
			}
		})
	}
}

func TestMake_ForbiddenBitsAndOwners(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "dir")
	if err := errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, 0o775)); err != nil {
		t.Fatal(err)
	}
	if err := safedir.Make(dir, 0o002); err != nil {
		t.Errorf("mode 0775 with 0002 forbidden: %v", err)
	}
	if os.Getuid() == 0 {
		if err := errors.Join(os.Chown(dir, 12345, 12345), safedir.Make(dir, 0o002, 12345)); err != nil {
			t.Errorf("a folder of a named owner: %v", err)
		}
	}
}
