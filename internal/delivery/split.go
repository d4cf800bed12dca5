package delivery

import (
	"regexp"
	"slices"
	"strconv"
)

// piece is what goes into one request.
type piece struct {
	items []item
	origin
	paged  bool // a larger request with these events met a page
	passed int  // where paged: events of the batch that had passed by then
}

// origin is how a piece came to be.
type origin int

const (
	whole origin = iota // as it was fetched
	half                // of a rejected piece
	named               // the one event that TikTok's message names
	rest                // the others
)

// eventIndex finds which event of a batch TikTok names: "Batch.3.properties.contents.0.content_id: Not a
// valid string".
var eventIndex = regexp.MustCompile(`\bBatch\.(\d{1,6})\.`)

// split divides a rejected piece of two or more: into the event that TikTok's message names and the rest,
// where its index can be trusted, else into halves.
func split(p piece, message string, trustIndex bool) []piece {
	if match := eventIndex.FindStringSubmatch(message); trustIndex && match != nil {
		if i, err := strconv.Atoi(match[1]); err == nil && i < len(p.items) {
			return []piece{
				p.part(named, p.items[i:i+1]),
				p.part(rest, slices.Concat(p.items[:i], p.items[i+1:])),
			}
		}
	}
	return halves(p)
}

// halves divides a piece in two; a single event stays as it is.
func halves(p piece) []piece {
	if len(p.items) < 2 {
		return []piece{p.part(half, p.items)}
	}
	middle := len(p.items) / 2
	return []piece{p.part(half, p.items[:middle]), p.part(half, p.items[middle:])}
}

// cut divides the first piece where it has more than limit events (0: no limit).
func cut(pieces []piece, limit int) []piece {
	p := pieces[0]
	if limit == 0 || len(p.items) <= limit {
		return pieces
	}
	return append(
		[]piece{p.part(p.origin, p.items[:limit]), p.part(p.origin, p.items[limit:])},
		pieces[1:]...)
}

// metPage marks a piece that met a page after passed events of the batch had passed. Only what passes later
// counts against its events: an earlier page may have been another event's fault.
func (p piece) metPage(passed int) piece {
	p.paged, p.passed = true, passed
	return p
}

func (p piece) part(o origin, items []item) piece {
	return piece{items: items, origin: o, paged: p.paged, passed: p.passed}
}

func (p piece) ids() []string {
	ids := make([]string, len(p.items))
	for i, it := range p.items {
		ids[i] = it.envelope.EventID
	}
	return ids
}
