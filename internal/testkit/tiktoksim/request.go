package tiktoksim

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"
	"unicode/utf8"
)

// shape is one of the two forms of a request.
type shape struct {
	pixel    string // name of the pixel's field
	batch    bool   // the events are a list in data; otherwise the request is the event
	time     string // name of an event's time field
	envelope []rule // of the fields around the events
	event    []rule // of each event
}

var (
	batchShape = shape{"event_source_id", true, "event_time", batchEnvelope, batchEvent}
	pixelShape = shape{"pixel_code", false, "timestamp", pixelEnvelope, pixelEvent}
)

// request is a parsed body.
type request struct {
	source, pixel string
	events        []parsedEvent
	refusal       *answer // nil if every rule is met
	stats         bool    // asks for counts
}

type parsedEvent struct {
	Event
	fields any // numbers are json.Number
}

// parse decodes a body and applies the rules. It decodes into maps: structs also match names in another case.
func (s shape) parse(body []byte) request {
	var raw map[string]json.RawMessage
	if !utf8.Valid(body) || json.Unmarshal(body, &raw) != nil || raw == nil {
		return request{refusal: newAnswer(40000, "The request body is not a valid JSON object")}
	}
	var top map[string]any
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.UseNumber()
	_ = decoder.Decode(&top) // succeeds as Unmarshal did

	r := request{source: "web", pixel: textOf(top, s.pixel)}
	bodies, events := []json.RawMessage{body}, []any{top}
	if s.batch {
		r.source = textOf(top, "event_source")
		bodies = nil
		_ = json.Unmarshal(raw["data"], &bodies) // the rules refuse what is not a list
		events, _ = top["data"].([]any)
	}
	for i, fields := range events {
		r.events = append(r.events, parsedEvent{fields: fields, Event: Event{
			EventID: textOf(fields, "event_id"), Event: textOf(fields, "event"), Pixel: r.pixel,
			EventTime: secondsOf(fields, s.time), TestEventCode: textOf(top, "test_event_code"), Body: bodies[i],
		}})
	}

	// One bad event refuses the whole batch.
	found := violation(s.envelope, top)
	for i := 0; found == "" && i < len(events); i++ {
		if found = violation(s.event, events[i]); found != "" && s.batch {
			found = "Batch." + strconv.Itoa(i) + found
		}
	}
	if found != "" {
		r.refusal = newAnswer(40002, strings.TrimPrefix(found, "."))
	}
	return r
}

// textOf returns a string field, "" if there is none.
func textOf(object any, name string) string {
	fields, _ := object.(map[string]any)
	s, _ := fields[name].(string)
	return s
}

// secondsOf returns a field with whole seconds, 0 if there is none.
func secondsOf(object any, name string) int64 {
	fields, _ := object.(map[string]any)
	n, _ := fields[name].(json.Number)
	seconds, _ := n.Int64()
	return seconds
}
