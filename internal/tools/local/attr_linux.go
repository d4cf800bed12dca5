package main

import "syscall"

// attributes put a child into a group of its own, so that Ctrl-C reaches it through us alone, and end it with us.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}
