package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
)

// tally counts by name. It is safe for concurrent use.
type tally struct {
	mu     sync.Mutex
	counts map[string]int
}

func (t *tally) add(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.counts == nil {
		t.counts = make(map[string]int)
	}
	t.counts[name]++
}

func (t *tally) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(t.counts)) {
		parts = append(parts, fmt.Sprintf("%s %d", name, t.counts[name]))
	}
	return strings.Join(parts, " · ")
}

// findings are broken promises, one sentence each, by the sentence's format.
type findings struct {
	mu       sync.Mutex
	byFormat map[string][]string
}

func (f *findings) add(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.byFormat == nil {
		f.byFormat = make(map[string][]string)
	}
	f.byFormat[format] = append(f.byFormat[format], fmt.Sprintf(format, args...))
}

// lines returns a few findings of each format, and the number of the others.
func (f *findings) lines() (lines []string) {
	const limit = 5
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, format := range slices.Sorted(maps.Keys(f.byFormat)) {
		list := f.byFormat[format]
		lines = append(lines, list[:min(limit, len(list))]...)
		if len(list) > limit {
			lines = append(lines, fmt.Sprintf("… and %d more like: %s", len(list)-limit, format))
		}
	}
	return lines
}

// errBroken is a broken promise; the report names it.
var errBroken = errors.New("a promise was broken")

// report prints the faults, the answers and the findings.
func (x *experiment) report() error {
	x.say("\nFaults injected:      %s", &x.injected)
	x.say("Skipped, target busy: %s", &x.skipped)
	x.say("Webhooks by status:   %s", &x.load.answers)
	found := x.findings.lines()
	if len(found) == 0 {
		x.say("\nNothing was lost, nothing doubled, nothing is left. Repeat it: %s", x.repeat())
		return nil
	}
	x.say("\nBROKEN:\n  - %s", strings.Join(found, "\n  - "))
	x.say("\nLogs: %s\nRepeat it: %s", x.dir, x.repeat())
	return errBroken
}
