package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The stack's folder is refused where another user made it, or may change it.
func TestMakeRoot_RefusesForeignFolder(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		root bool // only root can prepare it
		make func(dir string) error
		want string // "": accepted
	}{
		"missing":                 {false, func(string) error { return nil }, ""},
		"from an earlier start":   {false, func(dir string) error { return os.Mkdir(dir, 0o750) }, ""},
		"made with umask 002":     {false, func(dir string) error { return makeMode(dir, 0o775) }, ""},
		"a symbolic link":         {false, func(dir string) error { return os.Symlink(filepath.Dir(dir), dir) }, "is not a folder"},
		"a file":                  {false, func(dir string) error { return os.WriteFile(dir, nil, 0o600) }, "is not a folder"},
		"writable for every user": {false, func(dir string) error { return makeMode(dir, 0o777) }, "can be changed by every user"},
		"another user's": {true, func(dir string) error {
			if err := os.Mkdir(dir, 0o750); err != nil {
				return err
			}
			return os.Chown(dir, 12345, 12345)
		}, "belongs to another user"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if tc.root && os.Getuid() != 0 {
				t.Skip("needs root")
			}
			dir := filepath.Join(t.TempDir(), "local")
			if err := tc.make(dir); err != nil {
				t.Fatal(err)
			}
			err := makeRoot(dir)
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("error = %v, want %q", err, tc.want)
			}
		})
	}
}

func makeMode(dir string, mode os.FileMode) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	return os.Chmod(dir, mode)
}
