package chaos

import "syscall"

// attributes put a child into a group of its own, so that Ctrl-C reaches it through us alone, and end it with us, frozen or not.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// Apart gives a child a world of its own: in its list of processes it is the first, and when it ends, however, everything in it
// is ended; what it mounts is seen by nobody else and goes with it.
func Apart() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Setpgid: true, Pdeathsig: syscall.SIGKILL, Cloneflags: syscall.CLONE_NEWPID, Unshareflags: syscall.CLONE_NEWNS,
	}
}

// Settle is the first thing to do in a world apart: its own list of processes is shown under /proc.
func Settle() error { return syscall.Mount("proc", "/proc", "proc", 0, "") }

// mountSmall mounts a small file system in memory, of so many bytes.
func mountSmall(dir, size string) error {
	return syscall.Mount("purchase-relay-chaos", dir, "tmpfs", 0, "mode=0711,size="+size)
}

func unmount(dir string) error { return syscall.Unmount(dir, syscall.MNT_DETACH) }
