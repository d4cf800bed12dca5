package main

import (
	"encoding/json"
	"fmt"
	"html"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"purchase-relay/internal/testkit/try"
)

// series are the values of one quantity, round by round.
type series []float64

func (s series) median() float64 {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	half := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[half]
	}
	return (sorted[half-1] + sorted[half]) / 2
}

// over divides round by round: a disturbance of the machine in a round affects both values. It leaves out
// rounds in which base is 0.
func (s series) over(base series) series {
	ratios := series{}
	for i := range min(len(s), len(base)) {
		if base[i] != 0 {
			ratios = append(ratios, s[i]/base[i])
		}
	}
	return ratios
}

// plus adds round by round.
func (s series) plus(other series) series {
	sum := series{}
	for i := range min(len(s), len(other)) {
		sum = append(sum, s[i]+other[i])
	}
	return sum
}

// minus subtracts round by round.
func (s series) minus(base series) series {
	difference := series{}
	for i := range min(len(s), len(base)) {
		difference = append(difference, s[i]-base[i])
	}
	return difference
}

// figure summarises a series.
type figure struct {
	Median float64 `json:"median"`
	Low    float64 `json:"low"`
	High   float64 `json:"high"`
	Rounds series  `json:"rounds"`
}

func newFigure(s series) figure {
	if len(s) == 0 {
		return figure{Rounds: series{}}
	}
	return figure{Median: s.median(), Low: slices.Min(s), High: slices.Max(s), Rounds: s}
}

// spread is empty after a single round.
func (f *figure) spread() string {
	if len(f.Rounds) < 2 {
		return ""
	}
	return number(f.Low) + " … " + number(f.High)
}

// row is a line of the table. A target is about Ratio where there is one, else about Figure.
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

// against adds the ratio to a baseline of the same rounds.
func (r *row) against(name string, base series) *row {
	ratio := newFigure(r.Figure.Rounds.over(base))
	r.Against, r.Ratio = name, &ratio
	return r
}

// atLeast sets the target. It comes after against.
func (r *row) atLeast(target float64) *row {
	met := r.subject() >= target
	r.Target, r.Met = target, &met
	return r
}

// atMost sets the target. It comes after against.
func (r *row) atMost(target float64) *row {
	met := r.subject() <= target
	r.Target, r.AtMost, r.Met = target, true, &met
	return r
}

func (r *row) subject() float64 {
	if r.Ratio != nil {
		return r.Ratio.Median
	}
	return r.Figure.Median
}

func (r *row) note(format string, args ...any) *row {
	r.Note = fmt.Sprintf(format, args...)
	return r
}

func (r *row) String() string {
	text := fmt.Sprintf("  %-50s %9s %-6s %-19s", r.Name, number(r.Figure.Median), r.Unit, r.Figure.spread())
	if r.Ratio != nil {
		text += fmt.Sprintf("  %s × %s", number(r.Ratio.Median), r.Against)
		if spread := r.Ratio.spread(); spread != "" {
			text += " (" + spread + ")"
		}
	}
	if r.Met != nil {
		text += "  " + r.verdict()
	}
	if r.Note != "" {
		text += "  " + r.Note
	}
	return strings.TrimRight(text, " ")
}

func (r *row) verdict() string {
	limit, verdict := "≥", "met"
	if r.AtMost {
		limit = "≤"
	}
	if !*r.Met {
		verdict = "NOT MET"
	}
	return fmt.Sprintf("[%s %s: %s]", limit, number(r.Target), verdict)
}

// number prints three digits, or the integer part: more would be noise.
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

// report is the result of a run, as -json keeps it.
type report struct {
	When     time.Time `json:"when"`
	Version  string    `json:"version"`
	Machine  []fact    `json:"machine"`
	Settings []fact    `json:"settings"`
	Rows     []*row    `json:"rows"`
	Skipped  []string  `json:"skipped,omitempty"`

	out     io.Writer
	section string
	printed int // rows so far
}

// fact is a condition under which the figures were taken.
type fact struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

func (r *report) printHead() {
	_, _ = fmt.Fprintf(r.out, "purchase-relay %s, %s\n", r.Version, r.When.Format(time.RFC3339))
	for _, facts := range [][]fact{r.Machine, r.Settings} {
		var list []string
		for _, f := range facts {
			list = append(list, f.Name+" "+f.Value)
		}
		_, _ = fmt.Fprintf(r.out, "  %s\n", strings.Join(list, " · "))
	}
	_, _ = fmt.Fprint(r.out, "Medians, lowest … highest of the rounds; ratios are taken round by round; "+
		"[target: met or not].\n")
}

// begin prints the heading of a section.
func (r *report) begin(s section) {
	r.section = s.name
	_, _ = fmt.Fprintf(r.out, "\n%s: %s\n", s.name, s.about)
}

// add adds a row, which is printed at the end of the section.
func (r *report) add(name, unit string, s series) *row {
	line := &row{Section: r.section, Name: name, Unit: unit, Figure: newFigure(s)}
	r.Rows = append(r.Rows, line)
	return line
}

// skip reports why a section was left out.
func (r *report) skip(reason string) {
	r.Skipped = append(r.Skipped, r.section+": "+reason)
	_, _ = fmt.Fprintf(r.out, "  skipped: %s\n", reason)
}

func (r *report) endSection() {
	for _, line := range r.Rows[r.printed:] {
		_, _ = fmt.Fprintln(r.out, line)
	}
	r.printed = len(r.Rows)
}

// printTargets prints the rows with a target once more, as a summary.
func (r *report) printTargets() {
	met, all := 0, 0
	var lines strings.Builder
	for _, line := range r.Rows {
		if line.Met == nil {
			continue
		}
		all++
		if *line.Met {
			met++
		}
		value := number(line.subject()) + " " + line.Unit
		if line.Ratio != nil {
			value = number(line.subject()) + " × " + line.Against
		}
		fmt.Fprintf(&lines, "  %-50s %-46s %s\n", line.Name, value, line.verdict())
	}
	if all > 0 {
		_, _ = fmt.Fprintf(r.out, "\nTargets: %d of %d met\n%s", met, all, &lines)
	}
}

// save writes the report as JSON.
func (r *report) save(file string) {
	data := try.Must(json.MarshalIndent(r, "", "  "))
	try.Check(os.WriteFile(file, append(data, '\n'), 0o644)) //nolint:gosec // figures, no secrets
}

// bar is a quantity and its parts.
type bar struct {
	title, unit string
	parts       []part
}

type part struct {
	name  string
	value float64
}

// add adds a part. A difference that noise made negative has no width.
func (b *bar) add(name string, s series) { b.parts = append(b.parts, part{name, max(0, s.median())}) }

// draw writes bars as an SVG that is legible in light and dark.
func draw(file string, bars []bar) {
	const width = 820
	colours := []string{"#4e79a7", "#f28e2b", "#59a14f", "#b07aa1", "#e15759", "#76b7b2"}
	var svg strings.Builder
	y := 0
	for _, bar := range bars {
		total := 0.0
		for _, p := range bar.parts {
			total += p.value
		}
		if total == 0 {
			continue
		}
		fmt.Fprintf(&svg, `<text x="20" y="%d" font-weight="bold">%s: %s %s</text>`+"\n",
			y+34, html.EscapeString(bar.title), number(total), bar.unit)
		x, legend := 20.0, y+70
		for i, p := range bar.parts {
			colour, share := colours[i%len(colours)], p.value/total
			fmt.Fprintf(&svg, `<rect x="%.1f" y="%d" width="%.1f" height="26" fill="%s"/>`+"\n",
				x, y+44, share*width, colour)
			x += share * width
			legend += 20
			fmt.Fprintf(&svg, `<rect x="20" y="%d" width="12" height="12" fill="%s"/>`, legend-10, colour)
			fmt.Fprintf(&svg, `<text x="40" y="%d">%s: %s %s, %.0f %%</text>`+"\n",
				legend, html.EscapeString(p.name), number(p.value), bar.unit, 100*share)
		}
		y = legend + 12
	}
	const head = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 860 %[1]d" width="860" height="%[1]d"
 role="img" font-family="sans-serif" font-size="14">
<style>text { fill: #222 } @media (prefers-color-scheme: dark) { text { fill: #ddd } }</style>
`
	text := fmt.Sprintf(head, y+10) + svg.String() + "</svg>\n"
	try.Check(os.WriteFile(file, []byte(text), 0o644)) //nolint:gosec // a picture
}
