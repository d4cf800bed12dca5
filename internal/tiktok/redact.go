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
	echoMax   = 4096 // bytes of a message that are looked through; only the first maxMessage of what remains are kept
	echoWhole = 16   // bytes: a shorter value is found as a whole word alone
	echoLeast = 4    // bytes: a shorter value (a country, a state's code) names nobody
	echoStep  = 8    // bytes between the parts of a long value that are looked for
	echoTail  = echoWhole + echoStep
)

// redactValues removes from TikTok's message what it repeats of the events: an error may quote the value that
// it refuses, and an IP address, a user agent or a click id must not reach logs, ledger and exports. Long
// values are found in parts, because messages cut them short.
func redactValues(data string, events []message.Envelope) string {
	text := strings.Map(visible, strings.ToValidUTF8(data, "?"))
	keep := len(text)
	if len(text) > echoMax {
		text, keep = text[:echoMax], echoMax-echoTail // a value that is cut by the limit may not be found
	}
	e := newEcho(lowerASCII(text))
	for i := range events {
		for _, value := range e.personal(&events[i]) {
			e.find(lowerASCII(strings.Map(visible, value)))
		}
	}
	return strings.ToValidUTF8(without(text[:keep], e.found), "")
}

// echo is a message, in lower case, and what was found in it.
type echo struct {
	text string
	// all runs of echoLeast and of echoWhole bytes: most values are ruled out by one look
	starts, parts map[string]bool
	found         [][2]int // start and end
}

func newEcho(text string) *echo {
	e := &echo{text: text, starts: make(map[string]bool, len(text)), parts: make(map[string]bool, len(text))}
	for i := range len(text) {
		if i+echoLeast <= len(text) {
			e.starts[text[i:i+echoLeast]] = true
		}
		if i+echoWhole <= len(text) {
			e.parts[text[i:i+echoWhole]] = true
		}
	}
	return e
}

// personal lists what of an event could be traced to its buyer, as it was sent and as the message might write
// it.
func (e *echo) personal(event *message.Envelope) []string {
	k := &event.Keys
	inURL, inJSON := strings.Contains(e.text, "%"), strings.Contains(e.text, `\`)
	values := make([]string, 0, 16)
	for _, v := range [...]string{
		k.TTCLID, k.TTP, k.IP, k.UserAgent, k.PageURL, k.Referrer, k.City, k.State, k.Email, k.Phone, k.ExternalID, k.FirstName, k.LastName, k.Zip,
	} {
		if len(v) < echoLeast {
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

// find notes where the message repeats a value.
func (e *echo) find(value string) {
	switch {
	case len(value) < echoLeast:
	case len(value) < echoWhole:
		if !e.starts[value[:echoLeast]] {
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

// extend notes where the message repeats a part of a value, with what it repeats on both sides of the part.
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

// occurrences yields where part begins in text.
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

// boundary reports whether no word goes on at a place.
func boundary(text string, i int) bool {
	if i < 0 || i >= len(text) {
		return true
	}
	c := text[i]
	return (c < 'a' || c > 'z') && (c < '0' || c > '9') && c < 0x80
}

// without replaces the found parts of a text.
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

// lowerASCII keeps every byte in its place, unlike strings.ToLower.
func lowerASCII(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}
