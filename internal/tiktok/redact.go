package tiktok

import (
	"encoding/json"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"purchase-relay/internal/message"
)

const (
	maxSearched  = 4096 // bytes of a message that are searched; the first maxMessage of the result are kept
	minPartial   = 16   // bytes: a shorter value is matched as a whole word only
	minRedacted  = 4    // bytes: a shorter value (a country, a state) identifies no person
	partStep     = 8    // bytes between the matched parts of a long value
	maxUnmatched = minPartial + partStep
)

// redactValues removes the events' values from TikTok's message: an error may quote the rejected value, and
// an IP address, a user agent or a click ID must not reach logs, ledger and exports. Long values are matched
// in parts, because messages truncate them.
func redactValues(data string, events []message.Envelope) string {
	text := strings.Map(replaceInvisible, strings.ToValidUTF8(data, "?"))
	keep := len(text)
	if len(text) > maxSearched {
		text, keep = text[:maxSearched], maxSearched-maxUnmatched // a value truncated by the limit may not match
	}
	f := newValueFinder(lowerASCII(text))
	for i := range events {
		for _, value := range f.variants(&events[i]) {
			f.find(lowerASCII(strings.Map(replaceInvisible, value)))
		}
	}
	return strings.ToValidUTF8(redactRanges(text[:keep], f.found), "")
}

// valueFinder finds values in a message in lower case.
type valueFinder struct {
	text string
	// All substrings of minRedacted and of minPartial bytes: one lookup rules out most values.
	starts, parts map[string]bool
	found         [][2]int // start and end
}

func newValueFinder(text string) *valueFinder {
	n := len(text)
	f := &valueFinder{text: text, starts: make(map[string]bool, n), parts: make(map[string]bool, n)}
	for i := range len(text) {
		if i+minRedacted <= len(text) {
			f.starts[text[i:i+minRedacted]] = true
		}
		if i+minPartial <= len(text) {
			f.parts[text[i:i+minPartial]] = true
		}
	}
	return f
}

// variants lists the values of an event that identify its buyer, as sent and as the message may encode them.
func (f *valueFinder) variants(event *message.Envelope) []string {
	k := &event.Keys
	inURL, inJSON := strings.Contains(f.text, "%"), strings.Contains(f.text, `\`)
	values := make([]string, 0, 16)
	for _, v := range [...]string{
		k.TTCLID, k.TTP, k.IP, k.UserAgent, k.PageURL, k.Referrer, k.City, k.State,
		k.Email, k.Phone, k.ExternalID, k.FirstName, k.LastName, k.Zip,
	} {
		if len(v) < minRedacted {
			continue
		}
		values = append(values, v)
		if inURL {
			values = append(values, url.QueryEscape(v))
		}
		if quoted, err := json.Marshal(v); inJSON && err == nil {
			values = append(values, string(quoted[1:len(quoted)-1]), strings.ReplaceAll(v, "/", `\/`))
		}
	}
	if ip, err := netip.ParseAddr(k.IP); err == nil && ip.Is6() {
		values = append(values, ip.String(), ip.StringExpanded())
	}
	return values
}

// find records where the message contains a value.
func (f *valueFinder) find(value string) {
	switch {
	case len(value) < minRedacted:
	case len(value) < minPartial:
		if !f.starts[value[:minRedacted]] {
			return
		}
		for at := range occurrences(f.text, value) {
			if end := at + len(value); boundary(f.text, at-1) && boundary(f.text, end) {
				f.found = append(f.found, [2]int{at, end})
			}
		}
	default:
		for part := 0; part+minPartial <= len(value); part += partStep {
			if f.parts[value[part:part+minPartial]] {
				f.extend(value, part)
			}
		}
	}
}

// extend records where the message contains a part of a value, as far as it matches on both sides.
func (f *valueFinder) extend(value string, part int) {
	for start := range occurrences(f.text, value[part:part+minPartial]) {
		end := start + minPartial
		for i := part; i > 0 && start > 0 && f.text[start-1] == value[i-1]; i-- {
			start--
		}
		for i := part + minPartial; i < len(value) && end < len(f.text) && f.text[end] == value[i]; i++ {
			end++
		}
		f.found = append(f.found, [2]int{start, end})
	}
}

// occurrences yields the positions of part in text.
func occurrences(text, part string) func(yield func(int) bool) {
	return func(yield func(int) bool) {
		for from := 0; part != ""; {
			i := strings.Index(text[from:], part)
			if i < 0 || !yield(from+i) {
				return
			}
			from += i + 1
		}
	}
}

// boundary reports whether no word continues at a position.
func boundary(text string, i int) bool {
	if i < 0 || i >= len(text) {
		return true
	}
	c := text[i]
	return (c < 'a' || c > 'z') && (c < '0' || c > '9') && c < 0x80
}

// redactRanges replaces the found ranges of a text.
func redactRanges(text string, found [][2]int) string {
	if len(found) == 0 {
		return text
	}
	slices.SortFunc(found, func(a, b [2]int) int { return a[0] - b[0] })
	var kept strings.Builder
	done := 0
	for _, f := range found {
		start, end := min(f[0], len(text)), min(f[1], len(text))
		if start >= done && start < end {
			kept.WriteString(text[done:start])
			kept.WriteString(redacted)
		}
		done = max(done, end)
	}
	kept.WriteString(text[min(done, len(text)):])
	return kept.String()
}

// lowerASCII keeps every byte's position, unlike strings.ToLower.
func lowerASCII(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}
