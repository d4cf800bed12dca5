package main

import (
	"fmt"
	"html"
	"os"
	"strings"
)

// bar is a whole and its parts.
type bar struct {
	title, unit string
	parts       []part
}

type part struct {
	name  string
	value float64
}

// partOf is a part from its series; a step that noise made shorter than nothing has no width.
func partOf(name string, s series) part { return part{name, max(0, s.median())} }

const (
	pictureWidth = 860
	barWidth     = 820
	lineHeight   = 20
)

// draw writes bars as an SVG that reads in light and dark.
func draw(file string, bars []bar) error {
	colours := []string{"#4e79a7", "#f28e2b", "#59a14f", "#b07aa1", "#e15759", "#76b7b2"}
	var b strings.Builder
	y := 0
	for _, bar := range bars {
		total := 0.0
		for _, p := range bar.parts {
			total += p.value
		}
		if total == 0 {
			continue
		}
		y += 34
		fmt.Fprintf(&b, `<text x="20" y="%d" font-weight="bold">%s: %s %s</text>`+"\n", y, html.EscapeString(bar.title), number(total), bar.unit)
		y += 10
		x := 20.0
		for i, p := range bar.parts {
			width := p.value / total * barWidth
			fmt.Fprintf(&b, `<rect x="%.1f" y="%d" width="%.1f" height="26" fill="%s"/>`+"\n", x, y, width, colours[i%len(colours)])
			x += width
		}
		y += 26
		for i, p := range bar.parts {
			y += lineHeight
			fmt.Fprintf(&b, `<rect x="20" y="%d" width="12" height="12" fill="%s"/><text x="40" y="%d">%s: %s %s, %.0f %%</text>`+"\n",
				y-10, colours[i%len(colours)], y, html.EscapeString(p.name), number(p.value), bar.unit, 100*p.value/total)
		}
		y += 12
	}
	svg := fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %[1]d %[2]d" width="%[1]d" height="%[2]d" role="img" font-family="sans-serif" font-size="14">
<style>text { fill: #222 } @media (prefers-color-scheme: dark) { text { fill: #ddd } }</style>
%[3]s</svg>
`, pictureWidth, y+10, b.String())
	return os.WriteFile(file, []byte(svg), 0o644) //nolint:gosec // a picture
}
