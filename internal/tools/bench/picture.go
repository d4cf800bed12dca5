package main

import (
	"fmt"
	"html"
	"os"
	"strings"

	"purchase-relay/internal/testkit/try"
)

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
