package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
)

// tally counts by two names.
type tally struct {
	mu     sync.Mutex
	counts map[string]map[string]int
}

func (t *tally) add(name, of string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.counts == nil {
		t.counts = make(map[string]map[string]int)
	}
	if t.counts[name] == nil {
		t.counts[name] = make(map[string]int)
	}
	t.counts[name][of]++
}

// total is the sum of all counts, or of one name's.
func (t *tally) total(names ...string) (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for name, counts := range t.counts {
		if len(names) > 0 && !slices.Contains(names, name) {
			continue
		}
		for _, count := range counts {
			n += count
		}
	}
	return n
}

// lines is a line for each name.
func (t *tally) lines() (lines []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(t.counts)) {
		var parts []string
		n := 0
		for _, of := range slices.Sorted(maps.Keys(t.counts[name])) {
			count := t.counts[name][of]
			parts, n = append(parts, fmt.Sprintf("%s %d", of, count)), n+count
		}
		lines = append(lines, fmt.Sprintf("%5d  %-16s %s", n, name, strings.Join(parts, " · ")))
	}
	return lines
}

// findings are broken promises, each one sentence.
type findings struct {
	mu    sync.Mutex
	list  []string
	count map[string]int // by the sentence before its figures
}

// most is how many findings of one kind are told in words.
const most = 5

func (f *findings) add(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.count == nil {
		f.count = make(map[string]int)
	}
	if f.count[format]++; f.count[format] <= most {
		f.list = append(f.list, fmt.Sprintf(format, args...))
	}
}

func (f *findings) lines() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	lines := slices.Clone(f.list)
	for _, format := range slices.Sorted(maps.Keys(f.count)) {
		if n := f.count[format] - most; n > 0 {
			lines = append(lines, fmt.Sprintf("… and %d more like: %s", n, format))
		}
	}
	return lines
}

// report prints what was done and found.
func (r *rehearsal) report() error {
	r.say("\nFaults made: %d; %d more came too late: their target was away, or being broken already", r.made.total(), r.missed.total())
	for _, line := range r.made.lines() {
		r.say("%s", line)
	}
	r.say("\nWebhooks, by answer (0: none came)")
	for _, line := range r.load.answers.lines() {
		r.say("%s", line)
	}
	found := r.findings.lines()
	if len(found) == 0 {
		r.say("\nNothing was lost, nothing doubled, nothing is left. Repeat it: %s", repeat(r.config))
		return nil
	}
	r.say("\nBROKEN:")
	for _, line := range found {
		r.say("  - %s", line)
	}
	r.say("\nLogs: %s\nRepeat it: %s", r.dir, repeat(r.config))
	return errBroken
}
