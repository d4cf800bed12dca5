package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
)

// tally counts by group and name.
type tally struct {
	mu     sync.Mutex
	counts map[string]map[string]int
}

func (t *tally) add(group, name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.counts == nil {
		t.counts = make(map[string]map[string]int)
	}
	if t.counts[group] == nil {
		t.counts[group] = make(map[string]int)
	}
	t.counts[group][name]++
}

// report returns a line for each group, and the sum.
func (t *tally) report() (lines []string, total int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, group := range slices.Sorted(maps.Keys(t.counts)) {
		var names []string
		sum := 0
		for _, name := range slices.Sorted(maps.Keys(t.counts[group])) {
			names = append(names, fmt.Sprintf("%s %d", name, t.counts[group][name]))
			sum += t.counts[group][name]
		}
		lines = append(lines, fmt.Sprintf("%5d  %-16s %s", sum, group, strings.Join(names, " · ")))
		total += sum
	}
	return lines, total
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
	lines, total := x.injected.report()
	x.say("\nFaults injected: %d; skipped, as their target was down or busy: %d", total, x.skipped.Load())
	x.say("%s", strings.Join(lines, "\n"))
	lines, _ = x.load.answers.report()
	x.say("\nWebhooks, by status (0: no answer)\n%s", strings.Join(lines, "\n"))
	found := x.findings.lines()
	if len(found) == 0 {
		x.say("\nNothing was lost, nothing doubled, nothing is left. Repeat it: %s", x.repeat())
		return nil
	}
	x.say("\nBROKEN:\n  - %s", strings.Join(found, "\n  - "))
	x.say("\nLogs: %s\nRepeat it: %s", x.dir, x.repeat())
	return errBroken
}
