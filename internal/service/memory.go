package service

import (
	"math"
	"runtime/debug"
)

// memoryLimit limits Go's memory in bytes. The process takes some 12 MB more.
const memoryLimit = 40 << 20

// gcPercent replaces Go's 100. With a heap of a few megabytes, 100 would collect dozens of times a second and
// take a tenth of the processor time.
const gcPercent = 400

// LimitMemory keeps the process under 64 MiB, unless GOMEMLIMIT and GOGC are set.
func LimitMemory() {
	if debug.SetMemoryLimit(-1) == math.MaxInt64 {
		debug.SetMemoryLimit(memoryLimit)
	}
	if old := debug.SetGCPercent(gcPercent); old != 100 {
		debug.SetGCPercent(old)
	}
}
