package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// syncTime is the median time that the disk below a folder takes to keep 8 KiB.
func syncTime(dir string) (time.Duration, error) {
	file, err := os.CreateTemp(dir, "sync")
	if err != nil {
		return 0, err
	}
	defer func() { _, _ = file.Close(), os.Remove(file.Name()) }()
	page := make([]byte, 8<<10)
	if _, err := file.Write(make([]byte, 1<<20)); err != nil { // what Postgres syncs is there already, too
		return 0, err
	}
	times := make([]time.Duration, 50)
	for i := range times {
		if _, err := file.WriteAt(page, int64(i)*int64(len(page))); err != nil {
			return 0, err
		}
		began := time.Now()
		if err := datasync(file); err != nil {
			return 0, err
		}
		times[i] = time.Since(began)
	}
	slices.Sort(times)
	return times[len(times)/2], nil
}

func loadAverage() string {
	data, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	first, _, _ := strings.Cut(string(data), " ")
	return first
}

// memory reads a process' resident memory and its peak in MiB; 0 where the system does not say.
func memory(pid int) (resident, peak float64) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0
	}
	field := func(name string) float64 {
		_, after, _ := strings.Cut(string(data), "\n"+name+":")
		fields := strings.Fields(after)
		if len(fields) == 0 {
			return 0
		}
		kib, err := strconv.ParseFloat(fields[0], 64)
		if err != nil {
			return 0
		}
		return kib / 1024
	}
	return field("VmRSS"), field("VmHWM")
}

// ticks is how many of the kernel's clock ticks a second has, as /proc tells times: 100 on every Linux that Go runs on.
const ticks = 100

// stat reads a process' parent and its processor time in seconds, with that of its ended children.
func stat(pid string) (parent string, seconds float64) {
	data, err := os.ReadFile(filepath.Join("/proc", pid, "stat")) //nolint:gosec // the kernel's
	if err != nil {
		return "", 0
	}
	_, after, _ := strings.Cut(string(data), ") ")
	fields := strings.Fields(after)
	if len(fields) < 15 {
		return "", 0
	}
	for _, f := range fields[11:15] { // utime, stime, cutime, cstime
		n, err := strconv.ParseFloat(f, 64)
		if err != nil {
			return "", 0
		}
		seconds += n / ticks
	}
	return fields[1], seconds
}

// processor is what a process and its children have used, in seconds; 0 where the system does not say.
func processor(pid int) float64 {
	want := strconv.Itoa(pid)
	_, total := stat(want)
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0
	}
	for _, dir := range all {
		if parent, seconds := stat(filepath.Base(dir)); parent == want {
			total += seconds
		}
	}
	return total
}

// ownProcessor is what this process has used, in seconds: the load generator's share.
func ownProcessor() float64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()).Seconds()
}
