package delivery

import (
	"regexp"
	"slices"
	"strconv"
)

// batch holds the events of one request.
type batch struct {
	items []item
	origin
	blocked bool // a larger request with these events got a block page
	passed  int  // where blocked: events of the fetch that had passed by then
}

// origin is how a batch was made.
type origin int

const (
	whole origin = iota // as fetched
	half                // of a rejected batch
	named               // the one event that TikTok's message names
	rest                // the others
)

// eventIndex matches TikTok's index of an event: "Batch.3.properties.contents.0.content_id: Not a valid
// string".
var eventIndex = regexp.MustCompile(`\bBatch\.(\d{1,6})\.`)

// split divides a rejected batch of two or more: into the event that TikTok's message names and the rest, if
// trustIndex, else into halves.
func split(b batch, message string, trustIndex bool) []batch {
	if match := eventIndex.FindStringSubmatch(message); trustIndex && match != nil {
		if i, err := strconv.Atoi(match[1]); err == nil && i < len(b.items) {
			return []batch{
				b.part(named, b.items[i:i+1]),
				b.part(rest, slices.Concat(b.items[:i], b.items[i+1:])),
			}
		}
	}
	return bisect(b)
}

// bisect divides a batch in two; a single event stays as it is.
func bisect(b batch) []batch {
	if len(b.items) < 2 {
		return []batch{b.part(half, b.items)}
	}
	middle := len(b.items) / 2
	return []batch{b.part(half, b.items[:middle]), b.part(half, b.items[middle:])}
}

// limitFirst divides the first batch if it has more than limit events (0: no limit).
func limitFirst(batches []batch, limit int) []batch {
	b := batches[0]
	if limit == 0 || len(b.items) <= limit {
		return batches
	}
	return append([]batch{b.part(b.origin, b.items[:limit]), b.part(b.origin, b.items[limit:])}, batches[1:]...)
}

func (b batch) part(o origin, items []item) batch {
	return batch{items: items, origin: o, blocked: b.blocked, passed: b.passed}
}

func (b batch) ids() []string {
	ids := make([]string, len(b.items))
	for i, it := range b.items {
		ids[i] = it.envelope.EventID
	}
	return ids
}
