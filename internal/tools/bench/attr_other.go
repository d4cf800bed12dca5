//go:build !linux

package main

import "syscall"

// attributes put a child into a group of its own, so that Ctrl-C reaches it through us alone.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
