package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"encoding/xml"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// readSources opens what is measured: the test cache sees the files that a test opens, not those that a child process compiles,
// and would repeat an old "ok" after the product changed.
func readSources(t *testing.T) {
	t.Helper()
	for _, pattern := range []string{"../../../cmd/*/*.go", "../../*/*.go", "../../ops/*/*.go", "../../../migrations/*"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %d files, %v", pattern, len(files), err)
		}
		for _, file := range files {
			if _, err := os.ReadFile(file); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// The harness itself: every section runs to its end on this machine and leaves its figures. What the figures are is not
// asked: machines are shared.
func TestEverySection(t *testing.T) {
	readSources(t)
	file := filepath.Join(t.TempDir(), "bench.json")
	t.Setenv("TMPDIR", t.TempDir())
	var out, told bytes.Buffer
	if err := run(t.Context(), []string{"-short", "-json", file}, &out, &told); err != nil {
		t.Fatalf("%v\n%s\n%s", err, &out, &told)
	}
	t.Logf("\n%s", &out)
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var r report
	if err := json.Unmarshal(data, &r); err != nil {
		t.Fatal(err)
	}
	left := make(map[string]int)
	for _, line := range r.Rows {
		left[line.Section]++
		if f := line.Figure; math.IsNaN(f.Median) || f.Median <= 0 && line.Section != "one" || f.Low > f.Median || f.High < f.Median || len(f.Rounds) == 0 {
			t.Errorf("%s: %+v", line.Name, f)
		}
		if (line.Target != 0) != (line.Met != nil) || (line.Ratio != nil) != (line.Against != "") {
			t.Errorf("%s: %+v", line.Name, line)
		}
		if !strings.Contains(out.String(), line.text()) {
			t.Errorf("%s is not in the table", line.Name)
		}
	}
	for _, name := range names() {
		if left[name] == 0 && !slices.ContainsFunc(r.Skipped, func(s string) bool { return strings.HasPrefix(s, name+": "+errNoNode.Error()) }) {
			t.Errorf("%s left no figure", name)
		}
	}
	if facts := append(r.Machine, r.Settings...); !slices.Contains(facts, fact{"fsync", "on"}) || !slices.Contains(facts, fact{"synchronous_commit", "on"}) {
		t.Errorf("facts: %v", facts)
	}
	if leftovers, err := filepath.Glob(filepath.Join(os.TempDir(), "bench*")); err != nil || len(leftovers) > 0 {
		t.Errorf("left behind: %v, %v", leftovers, err)
	}
}

func TestProfiles(t *testing.T) {
	readSources(t)
	dir := t.TempDir()
	var out, told bytes.Buffer
	if err := run(t.Context(), []string{"-short", "-profiles", dir}, &out, &told); err != nil {
		t.Fatalf("%v\n%s\n%s", err, &out, &told)
	}
	for _, name := range []string{"ingest", "tiktok-worker"} {
		for _, kind := range []string{"cpu", "heap", "allocs", "block", "mutex", "goroutine"} {
			file, err := os.Open(filepath.Join(dir, name+"-"+kind+".pprof"))
			if err != nil {
				t.Error(err)
				continue
			}
			unpacked, err := gzip.NewReader(file)
			if err != nil {
				t.Fatalf("%s: %v", file.Name(), err)
			}
			text, err := io.ReadAll(unpacked)
			if err != nil || len(text) == 0 {
				t.Errorf("%s: %d bytes, %v", file.Name(), len(text), err)
			}
			if kind == "goroutine" && !bytes.Contains(text, []byte("purchase-relay/")) {
				t.Errorf("%s knows nothing of ours", file.Name())
			}
			_ = file.Close()
		}
	}
	if !strings.Contains(out.String(), "go tool pprof -http") {
		t.Errorf("it does not say how to open them: %s", &out)
	}
}

func TestFlags(t *testing.T) {
	var out bytes.Buffer
	for _, args := range [][]string{{"-only", "webhooks,nothing"}, {"-rounds", "0"}, {"-for", "-1s"}, {"-million", "0"}, {"x"}, {"-nonsense"}} {
		if err := run(t.Context(), args, &out, &out); err == nil {
			t.Errorf("%v was taken", args)
		}
	}
	if err := run(t.Context(), []string{"-h"}, &out, &out); err != nil || !strings.Contains(out.String(), strings.Join(names(), ", ")) {
		t.Errorf("%v: %s", err, &out)
	}
	chosen, err := choose("drain,webhooks")
	if err != nil || len(chosen) != 2 || chosen[0].name != "webhooks" {
		t.Errorf("%v, %v", chosen, err)
	}
}

func TestSeries(t *testing.T) {
	for _, c := range []struct {
		s    series
		want float64
	}{{nil, 0}, {series{3}, 3}, {series{9, 1, 5}, 5}, {series{4, 1, 2, 9}, 3}} {
		if got := c.s.median(); got != c.want {
			t.Errorf("median of %v: %f", c.s, got)
		}
	}
	s := series{10, 30, 20}
	if got := s.over(series{5, 10, 0}); !slices.Equal(got, series{2, 3}) {
		t.Errorf("round by round: %v", got)
	}
	if got := s.minus(series{1, 40}); !slices.Equal(got, series{9, -10}) {
		t.Errorf("minus: %v", got)
	}
	if got := s.times(2); !slices.Equal(got, series{20, 60, 40}) || s[0] != 10 {
		t.Errorf("times: %v", got)
	}
}

func TestVerdicts(t *testing.T) {
	var out bytes.Buffer
	r := report{out: &out, section: "s"}
	r.add("slow", "/s", series{10}, atLeast(11))
	r.add("quick", "/s", series{11}, atLeast(11))
	r.add("small", "MiB", series{64, 64}, atMost(64))
	r.add("large", "MiB", series{65}, atMost(64), note("alas"))
	// The ratio decides where there is one: the median of the rounds' own ratios.
	r.add("twice", "/s", series{20, 30, 1}, against("base", nil, nil))
	r.add("ratio", "/s", series{20, 30, 1000}, against("base", series{20, 30, 1000}, series{10, 10, 250}), atLeast(3))
	r.add("no target", "/s", series{math.Pi})
	var met []string
	for _, line := range r.Rows {
		if line.Met != nil && *line.Met {
			met = append(met, line.Name)
		}
	}
	if want := []string{"quick", "small", "ratio"}; !slices.Equal(met, want) {
		t.Errorf("met: %v, want %v", met, want)
	}
	r.end()
	for _, want := range []string{"[≥ 11.0: NOT MET]", "[≤ 64.0: met]", "alas", "3.00 × base (2.00 … 4.00)  [≥ 3.00: met]", "Targets: 3 of 5 met", "3.14 /s"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, &out)
		}
	}
}

func TestDraw(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.svg")
	err := draw(file, []bar{{title: "a < b", unit: "ms", parts: []part{{"one", 1}, partOf("three", series{2, 3, 9}), partOf("none", series{-1})}}, {title: "nothing"}})
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := xml.Unmarshal(data, new(struct{})); err != nil {
		t.Errorf("no XML: %v", err)
	}
	for _, want := range []string{"a &lt; b: 4.00 ms", "one: 1.00 ms, 25 %", "three: 3.00 ms, 75 %", `width="615.0"`, "none: 0.00 ms, 0 %"} {
		if !strings.Contains(string(data), want) {
			t.Errorf("the picture lacks %q: %s", want, data)
		}
	}
	if strings.Contains(string(data), "nothing") {
		t.Error("a whole without parts is drawn")
	}
}

func TestEvents(t *testing.T) {
	const n = 100
	e := newEvents(n)
	seen := make(map[string]bool)
	for i := range n {
		text := string(e.append(nil, i))
		if strings.Contains(text, mark) || seen[text] || strings.Contains(string(e.forged(nil, i)), string(e.filled[i].v1[:])) {
			t.Fatalf("request %d: %s", i, text)
		}
		seen[text] = true
	}
	if string(e.append(nil, n+3)) != string(e.append([]byte{}, 3)) {
		t.Error("past the last event there are no duplicates")
	}
	if plan := e.plan("x", 4, time.Second); plan.Requests != n || plan.Conns != 4 {
		t.Errorf("%+v", plan)
	}
}

// A figure that promised what nobody keeps would be worse than none.
func TestUnkeptAnswersAreNoFigure(t *testing.T) {
	null, stop, err := startNull()
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	var s shot
	plan := newEvents(10).plan(null, 2, time.Minute)
	if _, err := s.take(t.Context(), plan); err != nil || len(s.rate) != 1 {
		t.Errorf("%v, %+v", err, s)
	}
	plan.Want = 503
	if _, err := s.take(t.Context(), plan); err == nil || !strings.Contains(err.Error(), "200") || len(s.rate) != 1 {
		t.Errorf("%v, %+v", err, s)
	}
}
