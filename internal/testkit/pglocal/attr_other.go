//go:build !linux

package pglocal

import "syscall"

// attributes put the server into a group of its own, so that Ctrl-C reaches it through us alone.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
