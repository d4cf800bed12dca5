package pglocal

import "syscall"

// attributes put the server into a group of its own, so that Ctrl-C reaches it through us alone, and end it with us: a
// fast shutdown, whatever becomes of the starter.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGQUIT}
}
