//go:build !linux

package chaos

import (
	"errors"
	"syscall"
)

// attributes put a child into a group of its own, so that Ctrl-C reaches it through us alone.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// Apart is Linux' alone; here a child stays in this world.
func Apart() *syscall.SysProcAttr { return nil }

// Settle has nothing to do here.
func Settle() error { return nil }

func mountSmall(string, string) error { return errors.ErrUnsupported }

func unmount(string) error { return nil }
