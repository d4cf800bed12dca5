package service

import (
	"math"
	"runtime/debug"
)

// memoryLimit is what Go's heap and stacks may take before the collector works harder. The program itself
// takes some 12 MB more.
const memoryLimit = 40 << 20

// collectAt is how much the heap may grow before it is collected, in percent of what is in use. These
// programs hold a few megabytes: at Go's usual 100 the collector runs dozens of times a second under load, a
// tenth of the processor time.
const collectAt = 400

// LimitMemory keeps the program under 64 MiB under load and under attack. GOMEMLIMIT and GOGC of the
// environment win.
func LimitMemory() {
	if debug.SetMemoryLimit(-1) == math.MaxInt64 {
		debug.SetMemoryLimit(memoryLimit)
	}
	if old := debug.SetGCPercent(collectAt); old != 100 {
		debug.SetGCPercent(old)
	}
}
