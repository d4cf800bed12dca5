package main

import (
	"cmp"
	"image"
	"image/color"
	"maps"
	"slices"
)

// frequent returns a picture's most frequent colours, as many as a palette holds.
func frequent(picture image.Image) color.Palette {
	counts := make(map[color.RGBA]int)
	bounds := picture.Bounds()
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			r, g, b, _ := picture.At(x, y).RGBA()
			counts[color.RGBA{uint8(r >> 8), uint8(g >> 8), uint8(b >> 8), 255}]++ //nolint:gosec // 16 bits, shifted by 8, are 8
		}
	}
	colours := slices.SortedFunc(maps.Keys(counts), func(a, b color.RGBA) int { return cmp.Compare(counts[b], counts[a]) })
	few := make(color.Palette, 0, 256)
	for _, c := range colours[:min(len(colours), 256)] {
		few = append(few, c)
	}
	return few
}
