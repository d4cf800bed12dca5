// Package safedir makes folders that no other user can prepare. Under root, a folder of another user could
// lead later writes elsewhere.
package safedir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"syscall"
)

// Make makes a folder of mode 0700. An existing folder must belong to the current user or one of owners,
// and have none of the forbidden mode bits.
func Make(dir string, forbidden fs.FileMode, owners ...int) error {
	if err := os.Mkdir(dir, 0o700); !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	switch mode := info.Mode().Perm(); {
	case !info.IsDir():
		return fmt.Errorf("%s is not a folder: remove it and start again", dir)
	case !ok || !slices.Contains(append(owners, os.Getuid()), int(stat.Uid)):
		return fmt.Errorf("%s belongs to another user: remove it and start again", dir)
	case mode&forbidden != 0:
		return fmt.Errorf("%s is open to other users (mode %04o): remove it and start again", dir, mode)
	}
	return nil
}
