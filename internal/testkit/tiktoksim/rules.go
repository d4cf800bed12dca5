package tiktoksim

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// TikTok's lists, from its documentation.
const (
	sources    = "web app offline crm"
	eventNames = "AddPaymentInfo AddToCart AddToWishlist ApplicationApproval ClickButton CompletePayment" +
		" CompleteRegistration Contact CustomizeProduct Download FindLocation InitiateCheckout Lead PlaceAnOrder" +
		" Purchase Schedule Search StartTrial SubmitApplication SubmitForm Subscribe ViewContent"
	currencies = "AED ARS AUD BDT BHD BIF BOB BRL CAD CHF CLP CNY COP CRC CZK DKK DZD EGP EUR GBP GTQ HKD HNL" +
		" HUF IDR ILS INR ISK JPY KES KHR KRW KWD KZT MAD MOP MXN MYR NGN NIO NOK NZD OMR PEN PHP PKR PLN PYG" +
		" QAR RON RUB SAR SEK SGD THB TRY TWD UAH USD VES VND ZAR"
)

// emptyHash is the SHA-256 of "".
const emptyHash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

const (
	required = true
	optional = false
)

// The rules of single fields.
var (
	anyText = rule("Not a valid string", func(string) bool { return true })
	text    = all(anyText, rule("Field may not be empty", func(s string) bool { return s != "" }))
	integer = rule("Not a valid integer", func(n json.Number) bool { _, err := n.Int64(); return err == nil })
	number  = rule("Not a valid number", func(n json.Number) bool { _, err := n.Float64(); return err == nil })
	count   = all(integer, atLeast(1))
	amount  = all(number, atLeast(0))
	boolean = rule("Not a valid boolean", func(bool) bool { return true })
	hash    = all(rule("Not a valid SHA256 hash", func(s string) bool {
		return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
	}), rule("Hash of an empty value", func(s string) bool { return s != emptyHash }))
	lower = all(text, rule("Must be lower-case letters only", func(s string) bool {
		other := func(r rune) bool { return !unicode.IsLetter(r) || unicode.ToLower(r) != r }
		return !strings.ContainsFunc(s, other)
	}))
	ip = all(anyText, rule("Not a valid IPv4 or IPv6 address", func(s string) bool {
		ip, err := netip.ParseAddr(s)
		return err == nil && ip.Zone() == ""
	}))
	webURL = all(anyText, rule("Not a valid URL", func(s string) bool {
		u, err := url.Parse(s)
		return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Hostname() != ""
	}))
	eventID = all(text, rule("Longer than maximum length 256", func(s string) bool {
		return utf8.RuneCountInString(s) <= 256
	}))
	// It tolerates a clock that is an hour fast, and rejects milliseconds.
	unixTime = all(count, rule("Not a valid Unix timestamp in seconds", func(n json.Number) bool {
		at, _ := n.Int64()
		return at <= time.Now().Add(time.Hour).Unix()
	}))
)

// The rules of objects. Fields that no rule names are accepted, as TikTok accepts them.
var (
	user = all(object(
		field{"email phone external_id first_name last_name zip_code", optional, oneOrMany(hash)},
		field{"city state country", optional, lower},
		field{"ip", optional, ip},
		field{"user_agent ttclid ttp locale", optional, text},
	), func(v any) string {
		if anyString(v, func(s string) bool { return s == "" }) { // what is not known must be left out
			return ": Contains an empty field"
		}
		return ""
	})
	context = []field{
		{"user", optional, user},
		{"page", optional, object(field{"url", optional, webURL}, field{"referrer", optional, anyText})},
	}
	properties = all(object(
		field{"value", optional, amount},
		field{"currency", optional, oneOf("Not a valid choice", currencies)},
		field{"content_type order_id description", optional, anyText},
		field{"num_items", optional, count},
		field{"content_ids", optional, list(text)},
		field{"contents", optional, list(object(
			field{"content_id", optional, text},
			field{"content_name content_category brand", optional, anyText},
			field{"quantity", optional, count},
			field{"price", optional, amount},
		))},
	), rule("Missing currency of the value", func(p map[string]any) bool {
		return p["value"] == nil || p["currency"] != nil
	}))
	event = []field{
		{"event", required, oneOf("Not a valid choice", eventNames)},
		{"event_id", required, eventID},
		{"limited_data_use", optional, boolean},
		{"properties", optional, properties},
	}
)

// shape is one of the two forms of a request.
type shape struct {
	pixel string // name of the pixel's field
	batch bool   // the events are a list in data; otherwise the request is the event
	time  string // name of an event's time field
	check check
}

var (
	batchShape = shape{"event_source_id", true, "event_time", object(
		field{"event_source", required, oneOf("Must be one of: "+sources, sources)},
		field{"event_source_id", required, text},
		field{"test_event_code", optional, text},
		field{"data", required, all(rule("Length must be between 1 and 1000", func(l []any) bool {
			return 1 <= len(l) && len(l) <= 1000
		}), list(object(slices.Concat(event, context, []field{{"event_time", required, unixTime}})...)))},
	)}
	pixelShape = shape{"pixel_code", false, "timestamp", object(slices.Concat([]field{
		{"pixel_code", required, text},
		{"test_event_code", optional, text},
		{"timestamp", required, unixTime},
		{"context", required, object(context...)},
	}, event)...)}
)

// check returns how a JSON value violates a rule, such as ".user.ip: Not a valid string", and "" if it does
// not. Numbers are json.Number.
type check func(v any) string

// field is fields of an object that have the same rule.
type field struct {
	names    string // separated by spaces
	required bool
	check    check
}

func object(fields ...field) check {
	var single []field
	for _, f := range fields {
		for name := range strings.FieldsSeq(f.names) {
			single = append(single, field{name, f.required, f.check})
		}
	}
	return func(v any) string {
		values, isObject := v.(map[string]any)
		if !isObject {
			return ": Not a valid object"
		}
		for _, f := range single {
			value, exists := values[f.names]
			if !exists && f.required {
				return "." + f.names + ": Missing data for required field"
			}
			if !exists {
				continue
			}
			if found := f.check.apply(value); found != "" {
				return "." + f.names + found
			}
		}
		return ""
	}
}

func list(element check) check {
	return func(v any) string {
		elements, isList := v.([]any)
		if !isList {
			return ": Not a valid list"
		}
		for i, e := range elements {
			if found := element.apply(e); found != "" {
				return fmt.Sprint(".", i, found)
			}
		}
		return ""
	}
}

func (c check) apply(v any) string {
	if v == nil {
		return ": Field may not be null"
	}
	return c(v)
}

func all(checks ...check) check {
	return func(v any) string {
		for _, c := range checks {
			if found := c(v); found != "" {
				return found
			}
		}
		return ""
	}
}

// rule checks a value; one of another type violates it, too.
func rule[T any](message string, ok func(T) bool) check {
	return func(v any) string {
		if t, isType := v.(T); isType && ok(t) {
			return ""
		}
		return ": " + message
	}
}

func atLeast(least float64) check {
	return rule(fmt.Sprint("Must be greater than or equal to ", least), func(n json.Number) bool {
		f, _ := n.Float64()
		return f >= least
	})
}

func oneOf(message, words string) check {
	known := strings.Fields(words)
	return all(anyText, rule(message, func(s string) bool { return slices.Contains(known, s) }))
}

// oneOrMany accepts one value or a list of at least one.
func oneOrMany(c check) check {
	return func(v any) string {
		many, isList := v.([]any)
		if !isList || len(many) == 0 {
			many = []any{v}
		}
		for _, v := range many {
			if found := c(v); found != "" {
				return found
			}
		}
		return ""
	}
}

// anyString reports whether a string at any depth of a JSON value matches.
func anyString(v any, match func(s string) bool) bool {
	switch v := v.(type) {
	case string:
		return match(v)
	case []any:
		return slices.ContainsFunc(v, func(v any) bool { return anyString(v, match) })
	case map[string]any:
		return anyString(slices.Collect(maps.Values(v)), match)
	}
	return false
}

// request is a parsed request.
type request struct {
	source, pixel string
	events        []Event
	data          []any  // the decoded events
	violation     answer // Code is 0 if every rule is met
	stats         bool   // asks for counts
}

// parse decodes a body and applies the rules. It decodes into maps: structs also match names in another case.
func (s shape) parse(body []byte) request {
	var raw map[string]json.RawMessage
	if !utf8.Valid(body) || json.Unmarshal(body, &raw) != nil || raw == nil {
		return request{violation: newAnswer(40000, "The request body is not a valid JSON object")}
	}
	var top map[string]any
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.UseNumber()
	_ = decoder.Decode(&top) // succeeds as Unmarshal did

	req := request{source: "web", pixel: valueOf[string](top, s.pixel), data: []any{top}}
	bodies := []json.RawMessage{body}
	if s.batch {
		req.source, req.data, bodies = valueOf[string](top, "event_source"), valueOf[[]any](top, "data"), nil
		_ = json.Unmarshal(raw["data"], &bodies) // the rules refuse what is not a list
	}
	for i, fields := range req.data {
		at, _ := valueOf[json.Number](fields, s.time).Int64()
		req.events = append(req.events, Event{
			EventID: valueOf[string](fields, "event_id"), Event: valueOf[string](fields, "event"), Pixel: req.pixel,
			EventTime: at, TestEventCode: valueOf[string](top, "test_event_code"), Body: bodies[i],
		})
	}
	if found := s.check(top); found != "" { // one bad event refuses the whole batch
		if inEvent, isEvent := strings.CutPrefix(found, ".data."); isEvent {
			found = ".Batch." + inEvent
		}
		req.violation = newAnswer(40002, found[1:])
	}
	return req
}

// valueOf returns a field of an object, or the zero value if there is none of that type.
func valueOf[T any](object any, name string) (value T) {
	fields, _ := object.(map[string]any)
	value, _ = fields[name].(T)
	return value
}
