//go:build !linux

package process

import "syscall"

// attributes leaves out the signal: only Linux has one for a parent's death.
func attributes(syscall.Signal) *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
