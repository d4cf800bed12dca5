//go:build !linux

package main

import (
	"errors"
	"syscall"
)

// apart is nil: only Linux has namespaces.
func apart() *syscall.SysProcAttr { return nil }

func mountProc() error { return nil }

func mountSmall(string, string) error { return errors.ErrUnsupported }

func unmount(string) error { return nil }
