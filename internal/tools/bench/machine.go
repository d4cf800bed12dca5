package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/prometheus/procfs"

	"purchase-relay/internal/testkit/try"
)

// syncTime returns the median time of writing one page durably, as Postgres does at a commit, on the disk of
// a folder.
func syncTime(dir string) time.Duration {
	flags := os.O_RDWR | os.O_CREATE | syscall.O_DSYNC
	file := try.Must(os.OpenFile(filepath.Join(dir, "sync"), flags, 0o600)) //nolint:gosec // ours
	defer func() { _, _ = file.Close(), os.Remove(file.Name()) }()
	try.Must(file.Write(make([]byte, 1<<20))) // Postgres syncs existing pages, too
	var times series
	for i := range 50 {
		began := time.Now()
		try.Must(file.WriteAt(make([]byte, 8<<10), int64(i)*8<<10))
		times = append(times, float64(time.Since(began)))
	}
	return time.Duration(times.median())
}

// loadAverage, memory and processorTime return zeros on systems without /proc.
func loadAverage() string {
	var load procfs.LoadAvg
	if fs, err := procfs.NewDefaultFS(); err == nil {
		if now, err := fs.LoadAvg(); err == nil {
			load = *now
		}
	}
	return fmt.Sprintf("%.2f", load.Load1)
}

// memory returns a process' resident memory and its peak in MiB.
func memory(pid int) (resident, peak float64) {
	process, err := procfs.NewProc(pid)
	if err != nil {
		return 0, 0
	}
	status, err := process.NewStatus()
	if err != nil {
		return 0, 0
	}
	const mib = 1 << 20
	return float64(status.VmRSS) / mib, float64(status.VmHWM) / mib
}

// processorTime returns the seconds that a process and its children have used, children that ended included.
// It leaves out the children of this process: they are what is measured.
func processorTime(pid int) float64 {
	processes, err := procfs.AllProcs()
	if err != nil {
		return 0
	}
	const ticks = 100 // clock ticks a second in /proc, on every Linux that Go supports
	total := 0.0
	for _, process := range processes {
		stat, err := process.Stat()
		switch {
		case err != nil: // ended meanwhile
		case pid == os.Getpid() && stat.PID == pid:
			return stat.CPUTime()
		case stat.PID == pid || stat.PPID == pid:
			total += stat.CPUTime() + float64(stat.CUTime+stat.CSTime)/ticks
		}
	}
	return total
}

// usage is a process' processor time and memory, round by round.
type usage struct {
	name     string
	pid      int
	atRest   float64 // MiB resident before any load
	each     series  // µs of processor time for one purchase
	resident series  // MiB at the end of the load
}

func newUsage(name string, pid int) *usage {
	resident, _ := memory(pid)
	return &usage{name: name, pid: pid, atRest: resident}
}

// meter begins to measure processor time; end is called after a number of purchases.
func meter(usages ...*usage) (end func(purchases int)) {
	var before series
	for _, u := range usages {
		before = append(before, processorTime(u.pid))
	}
	return func(purchases int) {
		for i, u := range usages {
			u.each = append(u.each, (processorTime(u.pid)-before[i])*1e6/float64(purchases))
		}
	}
}

// size measures the binaries as they are shipped: an image is one of them and the certificate authorities.
func size(_ context.Context, b *bench) {
	for _, name := range []string{"ingest", "tiktok-worker"} {
		info := try.Must(os.Stat(filepath.Join(b.dir, name)))
		b.report.add(name+", static and stripped", "MB", series{float64(info.Size()) / 1e6}).atMost(25)
	}
}
