package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"purchase-relay/internal/testkit/try"
)

// tiny is one run with the smallest doses. Its binaries have the profiler, which is off outside of
// TestProfiles.
var (
	tiny     *bench
	out      bytes.Buffer
	prepared sync.Once
)

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "benchtest")
	try.Check(err)
	tiny = try.Must(parse([]string{
		"-rounds", "1", "-for", "50ms", "-latency", "1ms", "-million", "500", "-backlog", "100", "-single", "10",
		"-json", filepath.Join(dir, "bench.json"), "-svg", filepath.Join(dir, "time.svg"), "-profiles", dir,
	}, &out))
	// npm takes longer than all other sections together.
	tiny.sections = slices.DeleteFunc(tiny.sections, func(s section) bool { return s.name == "node" })
	tiny.progress = io.Discard
	var code int
	if err := tiny.Scoped(func() { code = m.Run() }); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	try.Check(os.RemoveAll(dir))
	os.Exit(code)
}

// prepare builds and starts what both tests need.
func prepare(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("part of make test-long")
	}
	// A cached "ok" depends on the files that a test opens, not on those that a child process compiles.
	const sources = "../../../cmd/*/*.go ../../*/*.go ../../ops/*/*.go ../../../migrations/*"
	for pattern := range strings.FieldsSeq(sources) {
		for _, file := range try.Must(filepath.Glob(pattern)) {
			try.Must(os.ReadFile(file))
		}
	}
	prepared.Do(func() { tiny.prepare(t.Context()) })
}

// The figures are not checked: machines are shared.
func TestEverySection(t *testing.T) {
	prepare(t)
	if err := tiny.Scoped(func() { tiny.measure(t.Context()) }); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	t.Logf("\n%s", &out)
	var r report
	if err := json.Unmarshal(try.Must(os.ReadFile(tiny.json)), &r); err != nil {
		t.Fatal(err)
	}
	rows := make(map[string]int)
	for _, row := range r.Rows {
		rows[row.Section]++
		mayBeZero := row.Section == "one" || strings.HasPrefix(row.Name, "processor of ") || row.Unit == "%"
		if f := row.Figure; math.IsNaN(f.Median) || f.Median <= 0 && !mayBeZero {
			t.Errorf("%s: median = %v, want more than 0", row.Name, f.Median)
		}
		if !strings.Contains(out.String(), row.String()) {
			t.Errorf("%s is not in the table", row.Name)
		}
	}
	for _, s := range tiny.sections {
		if rows[s.name] == 0 {
			t.Errorf("section %s has no rows", s.name)
		}
	}
	for _, setting := range []string{"fsync", "synchronous_commit", "full_page_writes"} {
		if !slices.Contains(r.Machine, fact{setting, "on"}) {
			t.Errorf("machine = %v, want %s on", r.Machine, setting)
		}
	}
	if err := xml.Unmarshal(try.Must(os.ReadFile(tiny.svg)), new(struct{})); err != nil {
		t.Errorf("picture: %v", err)
	}
}

func TestProfiles(t *testing.T) {
	prepare(t)
	out.Reset()
	if err := tiny.Scoped(func() { tiny.writeProfiles(t.Context()) }); err != nil {
		t.Fatal(err)
	}
	for _, program := range []string{"ingest", "tiktok-worker"} {
		for _, kind := range []string{"cpu", "heap", "allocs", "block", "mutex", "goroutine"} {
			file := filepath.Join(tiny.profiles, program+"-"+kind+".pprof")
			unpacked, err := gzip.NewReader(bytes.NewReader(try.Must(os.ReadFile(file))))
			if err != nil {
				t.Errorf("%s: %v", file, err)
				continue
			}
			text, err := io.ReadAll(unpacked)
			if err != nil || kind == "goroutine" && !bytes.Contains(text, []byte("purchase-relay/")) {
				t.Errorf("%s: %d bytes without a function of the product: %v", file, len(text), err)
			}
		}
	}
	if !strings.Contains(out.String(), "go tool pprof -http") {
		t.Errorf("output = %s, want the command that opens a profile", &out)
	}
}

func TestRun_RejectsFlags(t *testing.T) {
	t.Parallel()
	for _, args := range []string{"-only one,nothing", "-rounds 0", "-for -1s", "-million 0", "x", "-nonsense"} {
		if err := run(t.Context(), strings.Fields(args), io.Discard, io.Discard); err == nil {
			t.Errorf("run(%s) succeeds", args)
		}
	}
}

func TestRun_Help(t *testing.T) {
	t.Parallel()
	var help bytes.Buffer
	if err := run(t.Context(), []string{"-h"}, &help, io.Discard); err != nil {
		t.Fatal(err)
	}
	for _, s := range sections() {
		if !strings.Contains(help.String(), s.name) {
			t.Errorf("help = %s, want section %s", &help, s.name)
		}
	}
}

func TestParse_Short(t *testing.T) {
	t.Parallel()
	b, err := parse([]string{"-short", "-rounds", "2", "-only", "drain,webhooks"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if b.rounds != 2 || b.million != 5000 {
		t.Errorf("rounds = %d, million = %d, want 2 and 5000", b.rounds, b.million)
	}
	if len(b.sections) != 2 || b.sections[0].name != "webhooks" || b.sections[1].name != "drain" {
		t.Errorf("sections = %v, want webhooks and drain", b.sections)
	}
}

func TestSeries(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		s    series
		want float64
	}{{nil, 0}, {series{3}, 3}, {series{9, 1, 5}, 5}, {series{4, 1, 2, 9}, 3}} {
		if got := c.s.median(); got != c.want {
			t.Errorf("median of %v = %v, want %v", c.s, got, c.want)
		}
	}
	s := series{10, 30, 20}
	if got, want := s.over(series{5, 10, 0}), (series{2, 3}); !slices.Equal(got, want) {
		t.Errorf("over = %v, want %v", got, want)
	}
	if got, want := s.minus(series{1, 40}), (series{9, -10}); !slices.Equal(got, want) {
		t.Errorf("minus = %v, want %v", got, want)
	}
}

func TestReport_Targets(t *testing.T) {
	t.Parallel()
	var table bytes.Buffer
	r := report{out: &table, section: "s"}
	for _, c := range []struct {
		row  *row
		want string
	}{
		{r.add("slow", "/s", series{10}).atLeast(11), "[≥ 11.0: NOT MET]"},
		{r.add("fast", "/s", series{11}).atLeast(11), "[≥ 11.0: met]"},
		{r.add("small", "MiB", series{64, 64}).atMost(64), "64.0 … 64.0          [≤ 64.0: met]"},
		{r.add("large", "MiB", series{65}).atMost(64).note("note %d", 1), "[≤ 64.0: NOT MET]  note 1"},
		{
			// The target is about the ratio: the median of the rounds' own ratios.
			r.add("ratio", "/s", series{20, 30, 1000}).against("base", series{10, 10, 250}).atLeast(3),
			"3.00 × base (2.00 … 4.00)  [≥ 3.00: met]",
		},
		{r.add("without target", "/s", series{math.Pi}), "3.14 /s"},
	} {
		if got := c.row.String(); !strings.Contains(got, c.want) {
			t.Errorf("row = %q, want %q in it", got, c.want)
		}
	}
	r.printTargets()
	if got, want := table.String(), "Targets: 3 of 5 met"; !strings.Contains(got, want) {
		t.Errorf("summary = %s, want %s", got, want)
	}
}

func TestDraw(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "time.svg")
	b := bar{title: "a < b", unit: "ms"}
	b.add("one", series{1})
	b.add("three", series{2, 3, 9})
	b.add("none", series{-1})
	draw(file, []bar{b, {title: "nothing"}})
	got := string(try.Must(os.ReadFile(file)))
	for _, want := range []string{
		"a &lt; b: 4.00 ms", "one: 1.00 ms, 25 %", "three: 3.00 ms, 75 %", `width="615.0"`, "none: 0.00 ms, 0 %",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("picture = %s, want %s", got, want)
		}
	}
	if strings.Contains(got, "nothing") {
		t.Error("the picture has a bar without parts")
	}
}

func TestEvents_AreDistinct(t *testing.T) {
	t.Parallel()
	const n = 100
	e := newEvents(order(), n)
	seen := make(map[string]bool)
	for i := range n {
		text := string(e.append(nil, i))
		if strings.Contains(text, mark) || seen[text] {
			t.Errorf("request %d has a mark or is a duplicate: %s", i, text)
		}
		if strings.Contains(string(e.forged(nil, i)), e.signed[i]) {
			t.Errorf("request %d has a valid signature", i)
		}
		seen[text] = true
	}
	if got, want := string(e.append(nil, n+3)), string(e.append(nil, 3)); got != want {
		t.Errorf("request %d = %s, want the duplicate %s", n+3, got, want)
	}
}

// A rate of errors would be worse than no figure.
func TestLoadSeries_RejectsOtherStatus(t *testing.T) {
	t.Parallel()
	var b bench
	var s loadSeries
	err := b.Scoped(func() {
		plan := newEvents(order(), 10).plan(b.startNull(), 2)
		s.run(t.Context(), plan)
		plan.Want = http.StatusServiceUnavailable
		s.run(t.Context(), plan)
	})
	if err == nil || !strings.Contains(err.Error(), "200") || len(s.rate) != 1 {
		t.Errorf("err = %v, figures = %d, want the other status and 1", err, len(s.rate))
	}
}
