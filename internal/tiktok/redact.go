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
	echoMax   = 4096 // bytes of a message that are searched; the first maxMessage of the result are kept
	echoWhole = 16   // bytes: a shorter value is matched as a whole word only
	echoMin   = 4    // bytes: a shorter value (a country, a state) identifies no person
	echoStep  = 8    // bytes between the parts of a long value that are matched
	echoTail  = echoWhole + echoStep
)

// redactValues removes the events' values from TikTok's message: an error may quote the value that it
// rejects, and an IP address, a user agent or a click id must not reach logs, ledger and exports. Long values
// are matched in parts, because messages truncate them.
func redactValues(data string, events []message.Envelope) string {
	text := strings.Map(visible, strings.ToValidUTF8(data, "?"))
	keep := len(text)
	if len(text) > echoMax {
		text, keep = text[:echoMax], echoMax-echoTail // a value that the limit truncates may not match
	}
	e := newEcho(lowerASCII(text))
	for i := range events {
		for _, value := range e.personal(&events[i]) {
			e.find(lowerASCII(strings.Map(visible, value)))
		}
	}
	return strings.ToValidUTF8(without(text[:keep], e.found), "")
}

// echo is a message in lower case and the values found in it.
type echo struct {
	text string
	// All substrings of echoMin and of echoWhole bytes: one lookup rules out most values.
	starts, parts map[string]bool
	found         [][2]int // start and end
}

func newEcho(text string) *echo {
	e := &echo{text: text, starts: make(map[string]bool, len(text)), parts: make(map[string]bool, len(text))}
	for i := range len(text) {
		if i+echoMin <= len(text) {
			e.starts[text[i:i+echoMin]] = true
		}
		if i+echoWhole <= len(text) {
			e.parts[text[i:i+echoWhole]] = true
		}
	}
	return e
}

// personal lists the values of an event that identify its buyer, as sent and as the message might encode
// them.
func (e *echo) personal(event *message.Envelope) []string {
	k := &event.Keys
	inURL, inJSON := strings.Contains(e.text, "%"), strings.Contains(e.text, `\`)
	values := make([]string, 0, 16)
	for _, v := range [...]string{
		k.TTCLID, k.TTP, k.IP, k.UserAgent, k.PageURL, k.Referrer, k.City, k.State,
		k.Email, k.Phone, k.ExternalID, k.FirstName, k.LastName, k.Zip,
	} {
		if len(v) < echoMin {
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

// find records where the message repeats a value.
func (e *echo) find(value string) {
	switch {
	case len(value) < echoMin:
	case len(value) < echoWhole:
		if !e.starts[value[:echoMin]] {
			return
		}
		for at := range occurrences(e.text, value) {
			if end := at + len(value); boundary(e.text, at-1) && boundary(e.text, end) {
				e.found = append(e.found, [2]int{at, end})
			}
		}
	default:
		for part := 0; part+echoWhole <= len(value); part += echoStep {
			if e.parts[value[part:part+echoWhole]] {
				e.extend(value, part)
			}
		}
	}
}

// extend records where the message repeats a part of a value, as far as it matches on both sides.
func (e *echo) extend(value string, part int) {
	for start := range occurrences(e.text, value[part:part+echoWhole]) {
		end := start + echoWhole
		for i := part; i > 0 && start > 0 && e.text[start-1] == value[i-1]; i-- {
			start--
		}
		for i := part + echoWhole; i < len(value) && end < len(e.text) && e.text[end] == value[i]; i++ {
			end++
		}
		e.found = append(e.found, [2]int{start, end})
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

// without replaces the found ranges of a text.
func without(text string, found [][2]int) string {
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
