//go:build !linux

package main

import "os"

// datasync keeps a file's content on the disk.
func datasync(f *os.File) error { return f.Sync() }
