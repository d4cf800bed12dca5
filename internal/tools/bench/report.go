package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"purchase-relay/internal/testkit/try"
)

// series are the values of one quantity, round by round.
type series []float64

// median is 0 for an empty series.
func (s series) median() float64 {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	return (sorted[(len(s)-1)/2] + sorted[len(s)/2]) / 2
}

// over divides round by round: a disturbance of the machine in a round affects both values. It leaves out
// rounds in which base is 0.
func (s series) over(base series) (ratios series) {
	for i := range min(len(s), len(base)) {
		if base[i] != 0 {
			ratios = append(ratios, s[i]/base[i])
		}
	}
	return ratios
}

// spread is empty after a single round.
func (s series) spread() string {
	if len(s) < 2 {
		return ""
	}
	return number(slices.Min(s)) + " … " + number(slices.Max(s))
}

// MarshalJSON adds the median.
func (s series) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]any{"median": s.median(), "rounds": []float64(s)})
}

// row is a line of the table: a quantity, measured once a round.
type row struct {
	Section string `json:"section"`
	Name    string `json:"name"`
	Unit    string `json:"unit"`
	Figure  series `json:"figure"`
	Against string `json:"against,omitempty"`
	Ratio   series `json:"ratio,omitempty"`
	P99     series `json:"p99_ms,omitempty"` // of the responses
	Target  string `json:"target,omitempty"` // of Ratio where there is one, else of Figure
	Met     bool   `json:"met,omitempty"`
	Note    string `json:"note,omitempty"`
}

func (r *row) add(value float64) { r.Figure = append(r.Figure, value) }

// against adds the ratio to a baseline of the same rounds.
func (r *row) against(name string, base series) *row {
	r.Against, r.Ratio = name, r.Figure.over(base)
	return r
}

// atLeast and atMost set the target, after against. What could not be measured here is not judged.
func (r *row) atLeast(target float64) *row { return r.judge("≥ ", target, 1) }

func (r *row) atMost(target float64) *row { return r.judge("≤ ", target, -1) }

// judge sets a target. sign is 1 where more is better, else -1.
func (r *row) judge(relation string, target float64, sign int) *row {
	s := r.Figure
	if r.Against != "" {
		s = r.Ratio
	}
	if len(s) > 0 {
		r.Target, r.Met = relation+number(target), cmp.Compare(s.median(), target)*sign >= 0
	}
	return r
}

func (r *row) note(format string, args ...any) { r.Note = fmt.Sprintf(format, args...) }

func (r *row) String() string {
	text := fmt.Sprintf("  %-56s %9s %-4s %-19s", r.Name, number(r.Figure.median()), r.Unit, r.Figure.spread())
	if r.Against != "" {
		text += fmt.Sprintf("  %s × %s", number(r.Ratio.median()), r.Against)
		if spread := r.Ratio.spread(); spread != "" {
			text += " (" + spread + ")"
		}
	}
	if len(r.P99) > 0 {
		text += fmt.Sprintf("  p99 %s ms", number(r.P99.median()))
	}
	if r.Target != "" {
		text += fmt.Sprintf("  [%s: %s]", r.Target, map[bool]string{true: "met", false: "NOT MET"}[r.Met])
	}
	return strings.TrimRight(text+"  "+r.Note, " ")
}

// number prints three digits, or the integer part, and at most four decimals: more would be noise.
func number(v float64) string {
	magnitude := int(math.Floor(math.Log10(max(math.Abs(v), 0.01))))
	return fmt.Sprintf("%.*f", max(0, 2-magnitude), v)
}

// report is the result of a run, as -json keeps it.
type report struct {
	When       time.Time `json:"when"`
	Conditions []string  `json:"conditions"` // under which the figures were taken
	Rows       []*row    `json:"rows"`

	out     io.Writer
	section string // the current one
}

// row adds a row to the current section, with the values that are already known.
func (r *report) row(name, unit string, values ...float64) *row {
	line := &row{Section: r.section, Name: name, Unit: unit, Figure: values}
	r.Rows = append(r.Rows, line)
	return line
}

// printRows prints the selected rows and counts them, and those that met their target.
func (r *report) printRows(selected func(*row) bool) (n, met int) {
	for _, line := range r.Rows {
		if !selected(line) {
			continue
		}
		_, _ = fmt.Fprintln(r.out, line)
		n++
		if line.Met {
			met++
		}
	}
	return n, met
}

// save writes the report as JSON.
func (r *report) save(file string) {
	data := try.Must(json.MarshalIndent(r, "", "  "))
	try.Check(os.WriteFile(file, append(data, '\n'), 0o644)) //nolint:gosec // figures, no secrets
}
