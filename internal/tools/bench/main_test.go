package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"purchase-relay/internal/testkit/try"
)

// runTiny makes a run with the smallest doses and returns its output.
func runTiny(t *testing.T, args ...string) string {
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
	var out bytes.Buffer
	args = append([]string{"-rounds", "1", "-for", "50ms", "-million", "500"}, args...)
	if err := run(t.Context(), args, &out, io.Discard); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	return out.String()
}

// The figures are not checked: machines are shared.
func TestEverySection(t *testing.T) {
	var names []string
	for _, s := range sections() {
		if s.name != "node" { // npm takes longer than all other sections together
			names = append(names, s.name)
		}
	}
	file := filepath.Join(t.TempDir(), "bench.json")
	out := runTiny(t, "-only", strings.Join(names, ","), "-json", file)
	t.Logf("\n%s", out)
	var r struct {
		Conditions []string
		Rows       []struct {
			Section, Name, Unit string
			Figure              struct{ Median float64 }
		}
	}
	if err := json.Unmarshal(try.Must(os.ReadFile(file)), &r); err != nil {
		t.Fatal(err)
	}
	rows := make(map[string]int)
	for _, row := range r.Rows {
		rows[row.Section]++
		mayBeZero := row.Section == "one" || strings.HasPrefix(row.Name, "processor of ") || row.Unit == "%"
		if got := row.Figure.Median; got <= 0 && !mayBeZero {
			t.Errorf("%s: median = %v, want more than 0", row.Name, got)
		}
		if !strings.Contains(out, row.Name) {
			t.Errorf("%s is not in the table", row.Name)
		}
	}
	for _, name := range names {
		if rows[name] == 0 {
			t.Errorf("section %s has no rows", name)
		}
	}
	for _, want := range []string{"fsync on", "synchronous_commit on", "full_page_writes on"} {
		if !slices.Contains(r.Conditions, want) {
			t.Errorf("conditions = %v, want %s", r.Conditions, want)
		}
	}
}

func TestProfiles(t *testing.T) {
	dir := t.TempDir()
	out := runTiny(t, "-profiles", dir)
	for _, program := range []string{"ingest", "tiktok-worker"} {
		for _, kind := range []string{"cpu", "heap", "allocs", "block", "mutex", "goroutine"} {
			file := filepath.Join(dir, program+"-"+kind+".pprof")
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
	if !strings.Contains(out, "go tool pprof -http") {
		t.Errorf("output = %s, want the command that opens a profile", out)
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

func TestParse_Short(t *testing.T) {
	t.Parallel()
	b, err := parse([]string{"-short", "-rounds", "2", "-only", "drain,webhooks"}, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if b.rounds != 2 || b.million != 10_000 {
		t.Errorf("rounds = %d, million = %d, want 2 and 10000", b.rounds, b.million)
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
}

func TestRow_String(t *testing.T) {
	t.Parallel()
	measured := func(values ...float64) *row { return &row{Figure: values} }
	for _, c := range []struct {
		row  *row
		want string
	}{
		{measured(10).atLeast(11), "[≥ 11.0: NOT MET]"},
		{measured(11).atLeast(11), "[≥ 11.0: met]"},
		{measured(64, 64).atMost(64), "64.0 … 64.0          [≤ 64.0: met]"},
		{measured(65).atMost(64), "[≤ 64.0: NOT MET]"},
		{measured().atMost(64), " 0.0000"}, // no verdict
		// The target is about the ratio: the median of the rounds' own ratios.
		{
			measured(20, 30, 1000).against("base", series{10, 10, 250}).atLeast(3),
			"3.00 × base (2.00 … 4.00)  [≥ 3.00: met]",
		},
		{measured(math.Pi), " 3.14"},
		{measured(0.03862), " 0.0386"},
		{measured(-41234.5), " -41234"},
	} {
		if got := strings.TrimRight(c.row.String(), " "); !strings.HasSuffix(got, c.want) {
			t.Errorf("row = %q, want %q at its end", got, c.want)
		}
	}
}

func TestKind_RequestsAreDistinct(t *testing.T) {
	t.Parallel()
	const n = 100
	tokens := newTokens(n)
	valid, invalid := paid().newLoad("", 1, tokens), forged().newLoad("", 1, tokens)
	seen := make(map[string]bool)
	for i := range n {
		text := string(valid.append(nil, i))
		if strings.Contains(text, mark) || seen[text] {
			t.Errorf("request %d has a mark or is a duplicate: %s", i, text)
		}
		_, signature, _ := strings.Cut(text, ",v1=")
		if strings.Contains(string(invalid.append(nil, i)), signature[:64]) {
			t.Errorf("forged request %d has a valid signature", i)
		}
		seen[text] = true
	}
	if got, want := string(valid.append(nil, n+3)), string(valid.append(nil, 3)); got != want {
		t.Errorf("request %d = %s, want the duplicate %s", n+3, got, want)
	}
}
