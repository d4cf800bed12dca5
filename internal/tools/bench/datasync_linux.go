package main

import (
	"os"
	"syscall"
)

// datasync is what Postgres calls at a commit here.
func datasync(f *os.File) error { return syscall.Fdatasync(int(f.Fd())) }
