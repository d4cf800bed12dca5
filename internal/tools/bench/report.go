package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
)

// series are one figure's values, round by round.
type series []float64

func (s series) median() float64 {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	if half := len(sorted) / 2; len(sorted)%2 == 1 {
		return sorted[half]
	} else {
		return (sorted[half-1] + sorted[half]) / 2
	}
}

// over divides round by round: what disturbs the machine in a round disturbs both.
func (s series) over(base series) series {
	ratios := make(series, 0, len(s))
	for i := range min(len(s), len(base)) {
		if base[i] != 0 {
			ratios = append(ratios, s[i]/base[i])
		}
	}
	return ratios
}

// minus subtracts round by round.
func (s series) minus(base series) series {
	rest := make(series, 0, len(s))
	for i := range min(len(s), len(base)) {
		rest = append(rest, s[i]-base[i])
	}
	return rest
}

func (s series) times(factor float64) series {
	scaled := make(series, len(s))
	for i, v := range s {
		scaled[i] = v * factor
	}
	return scaled
}

// figure is one thing's spread over the rounds.
type figure struct {
	Median float64   `json:"median"`
	Low    float64   `json:"low"`
	High   float64   `json:"high"`
	Rounds []float64 `json:"rounds"`
}

func newFigure(s series) figure {
	if len(s) == 0 {
		return figure{Rounds: []float64{}}
	}
	return figure{Median: s.median(), Low: slices.Min(s), High: slices.Max(s), Rounds: s}
}

// row is a line of the table. Where there is a target, Figure or, with Against, Ratio is what it is about.
type row struct {
	Section string  `json:"section"`
	Name    string  `json:"name"`
	Unit    string  `json:"unit"`
	Figure  figure  `json:"figure"`
	Against string  `json:"against,omitempty"`
	Ratio   *figure `json:"ratio,omitempty"`
	Target  float64 `json:"target,omitempty"`
	AtMost  bool    `json:"at_most,omitempty"` // else at least
	Met     *bool   `json:"met,omitempty"`
	Note    string  `json:"note,omitempty"`
}

// report is the run's outcome: what is printed, and what -json keeps.
type report struct {
	When     time.Time `json:"when"`
	Version  string    `json:"version"`
	Machine  []fact    `json:"machine"`
	Settings []fact    `json:"settings"`
	Rows     []row     `json:"rows"`
	Skipped  []string  `json:"skipped,omitempty"`

	out     io.Writer
	section string
}

// fact is something that a reader of the figures has to know.
type fact struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// begin prints a section's heading.
func (r *report) begin(s section) {
	r.section = s.name
	_, _ = fmt.Fprintf(r.out, "\n%s: %s\n", s.name, s.about)
}

// add prints a figure.
func (r *report) add(name, unit string, s series, options ...func(*row)) {
	line := row{Section: r.section, Name: name, Unit: unit, Figure: newFigure(s)}
	for _, option := range options {
		option(&line)
	}
	if line.Target != 0 {
		subject := line.Figure.Median
		if line.Ratio != nil {
			subject = line.Ratio.Median
		}
		met := subject >= line.Target
		if line.AtMost {
			met = subject <= line.Target
		}
		line.Met = &met
	}
	r.Rows = append(r.Rows, line)
	_, _ = fmt.Fprintln(r.out, line.text())
}

// skip says why a section, or a part of one, was left out.
func (r *report) skip(sentence string) {
	r.Skipped = append(r.Skipped, r.section+": "+sentence)
	_, _ = fmt.Fprintf(r.out, "  skipped: %s\n", sentence)
}

// against compares with a baseline of the same rounds.
func against(name string, s, base series) func(*row) {
	return func(r *row) {
		ratio := newFigure(s.over(base))
		r.Against, r.Ratio = name, &ratio
	}
}

func atLeast(target float64) func(*row) { return func(r *row) { r.Target = target } }

func atMost(target float64) func(*row) { return func(r *row) { r.Target, r.AtMost = target, true } }

func note(text string) func(*row) { return func(r *row) { r.Note = text } }

func (r *row) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "  %-50s %9s %-6s", r.Name, number(r.Figure.Median), r.Unit)
	if len(r.Figure.Rounds) > 1 {
		fmt.Fprintf(&b, " %-19s", number(r.Figure.Low)+" … "+number(r.Figure.High))
	} else {
		fmt.Fprintf(&b, " %-19s", "")
	}
	if r.Ratio != nil {
		fmt.Fprintf(&b, "  %s × %s", number(r.Ratio.Median), r.Against)
		if len(r.Ratio.Rounds) > 1 {
			fmt.Fprintf(&b, " (%s … %s)", number(r.Ratio.Low), number(r.Ratio.High))
		}
	}
	if r.Met != nil {
		fmt.Fprintf(&b, "  %s", r.verdict())
	}
	if r.Note != "" {
		fmt.Fprintf(&b, "  %s", r.Note)
	}
	return strings.TrimRight(b.String(), " ")
}

func (r *row) verdict() string {
	limit, word := "≥", "met"
	if r.AtMost {
		limit = "≤"
	}
	if !*r.Met {
		word = "NOT MET"
	}
	return fmt.Sprintf("[%s %s: %s]", limit, number(r.Target), word)
}

// number prints three or more digits, as many as a noisy figure deserves.
func number(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	case v >= 0.1 || v == 0:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.4f", v)
}

// end prints the targets by themselves.
func (r *report) end() {
	met, all := 0, 0
	for _, line := range r.Rows {
		if line.Met != nil {
			if all++; *line.Met {
				met++
			}
		}
	}
	if all == 0 {
		return
	}
	_, _ = fmt.Fprintf(r.out, "\nTargets: %d of %d met\n", met, all)
	for _, line := range r.Rows {
		if line.Met == nil {
			continue
		}
		value := number(line.Figure.Median) + " " + line.Unit
		if line.Ratio != nil {
			value = number(line.Ratio.Median) + " × " + line.Against
		}
		_, _ = fmt.Fprintf(r.out, "  %-50s %-46s %s\n", line.Name, value, line.verdict())
	}
}

// save writes the report as JSON.
func (r *report) save(file string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(data, '\n'), 0o644) //nolint:gosec // figures, no secrets
}
