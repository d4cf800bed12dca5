package main

import "syscall"

// apart gives a child a process namespace and a mount namespace of its own: when the child ends, however,
// everything in them is ended and unmounted.
func apart() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Setpgid: true, Pdeathsig: syscall.SIGKILL, Cloneflags: syscall.CLONE_NEWPID, Unshareflags: syscall.CLONE_NEWNS,
	}
}

// mountProc shows the namespace's own processes under /proc.
func mountProc() error { return syscall.Mount("proc", "/proc", "proc", 0, "") }

// mountSmall mounts a small file system in memory.
func mountSmall(dir, size string) error {
	return syscall.Mount("purchase-relay-chaos", dir, "tmpfs", 0, "mode=0711,size="+size)
}

func unmount(dir string) error { return syscall.Unmount(dir, syscall.MNT_DETACH) }
