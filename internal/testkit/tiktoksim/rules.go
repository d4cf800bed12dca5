package tiktoksim

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/tidwall/gjson"
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

// The rules of single fields. A rule behind the one of the type is about a value of that type.
var (
	anyText = rule("Not a valid string", func(v gjson.Result) bool { return v.Type == gjson.String })
	text    = all(anyText, rule("Field may not be empty", func(v gjson.Result) bool { return v.Str != "" }))
	integer = rule("Not a valid integer", func(v gjson.Result) bool {
		_, err := strconv.ParseInt(v.Raw, 10, 64)
		return err == nil
	})
	number = rule("Not a valid number", func(v gjson.Result) bool {
		_, err := strconv.ParseFloat(v.Raw, 64) // 1e999 is out of range
		return err == nil
	})
	count   = all(integer, atLeast(1))
	amount  = all(number, atLeast(0))
	boolean = rule("Not a valid boolean", gjson.Result.IsBool)
	hash    = all(rule("Not a valid SHA256 hash", func(v gjson.Result) bool {
		return v.Type == gjson.String && len(v.Str) == 64 && strings.Trim(v.Str, "0123456789abcdef") == ""
	}), rule("Hash of an empty value", func(v gjson.Result) bool { return v.Str != emptyHash }))
	lower = all(text, rule("Must be lower-case letters only", func(v gjson.Result) bool {
		other := func(r rune) bool { return !unicode.IsLetter(r) || unicode.ToLower(r) != r }
		return !strings.ContainsFunc(v.Str, other)
	}))
	ip = all(anyText, rule("Not a valid IPv4 or IPv6 address", func(v gjson.Result) bool {
		ip, err := netip.ParseAddr(v.Str)
		return err == nil && ip.Zone() == ""
	}))
	webURL = all(anyText, rule("Not a valid URL", func(v gjson.Result) bool {
		u, err := url.Parse(v.Str)
		return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Hostname() != ""
	}))
	eventID = all(text, rule("Longer than maximum length 256", func(v gjson.Result) bool {
		return utf8.RuneCountInString(v.Str) <= 256
	}))
	// It tolerates a clock that is an hour fast, and rejects milliseconds.
	unixTime = all(count, rule("Not a valid Unix timestamp in seconds", func(v gjson.Result) bool {
		return v.Int() <= time.Now().Add(time.Hour).Unix()
	}))
)

// The rules of objects. Fields that no rule names are accepted, as TikTok accepts them.
var (
	user = all(object(
		field{"email phone external_id first_name last_name zip_code", optional, oneOrMany(hash)},
		field{"city state country", optional, lower},
		field{"ip", optional, ip},
		field{"user_agent ttclid ttp locale", optional, text},
	), rule("Contains an empty field", func(v gjson.Result) bool { // what is not known must be left out
		return !anyString(v, func(s string) bool { return s == "" })
	}))
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
	), rule("Missing currency of the value", func(v gjson.Result) bool {
		return !v.Get("value").Exists() || v.Get("currency").Exists()
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
		field{"data", required, all(rule("Length must be between 1 and 1000", func(v gjson.Result) bool {
			n := len(v.Array())
			return v.IsArray() && 1 <= n && n <= 1000
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
// not.
type check func(v gjson.Result) string

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
	return func(v gjson.Result) string {
		if !v.IsObject() {
			return ": Not a valid object"
		}
		values := v.Map()
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
	return func(v gjson.Result) string {
		if !v.IsArray() {
			return ": Not a valid list"
		}
		for i, e := range v.Array() {
			if found := element.apply(e); found != "" {
				return fmt.Sprint(".", i, found)
			}
		}
		return ""
	}
}

func (c check) apply(v gjson.Result) string {
	if v.Type == gjson.Null {
		return ": Field may not be null"
	}
	return c(v)
}

func all(checks ...check) check {
	return func(v gjson.Result) string {
		for _, c := range checks {
			if found := c(v); found != "" {
				return found
			}
		}
		return ""
	}
}

func rule(message string, ok func(v gjson.Result) bool) check {
	return func(v gjson.Result) string {
		if ok(v) {
			return ""
		}
		return ": " + message
	}
}

func atLeast(least float64) check {
	message := fmt.Sprint("Must be greater than or equal to ", least)
	return rule(message, func(v gjson.Result) bool { return v.Num >= least })
}

func oneOf(message, words string) check {
	known := strings.Fields(words)
	return all(anyText, rule(message, func(v gjson.Result) bool { return slices.Contains(known, v.Str) }))
}

// oneOrMany accepts one value or a list of at least one.
func oneOrMany(c check) check {
	return func(v gjson.Result) string {
		many := v.Array() // of one value: the value
		if len(many) == 0 {
			many = []gjson.Result{v}
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
func anyString(v gjson.Result, match func(s string) bool) (found bool) {
	if v.Type != gjson.JSON {
		return v.Type == gjson.String && match(v.Str)
	}
	v.ForEach(func(_, element gjson.Result) bool {
		found = anyString(element, match)
		return !found
	})
	return found
}

// request is a parsed request.
type request struct {
	source, pixel string
	events        []Event
	violation     answer // Code is 0 if every rule is met
	stats         bool   // asks for counts
}

// parse reads a body and applies the rules. Names are compared with their case, unlike encoding/json's.
func (s shape) parse(body []byte) request {
	top := gjson.ParseBytes(body)
	if !utf8.Valid(body) || !gjson.ValidBytes(body) || !top.IsObject() {
		return request{violation: newAnswer(40000, "The request body is not a valid JSON object")}
	}
	req, events := request{source: "web", pixel: top.Get(s.pixel).String()}, []gjson.Result{top}
	if s.batch {
		req.source, events = top.Get("event_source").String(), top.Get("data").Array()
	}
	for _, e := range events {
		req.events = append(req.events, Event{
			EventID: e.Get("event_id").String(), Event: e.Get("event").String(), Pixel: req.pixel,
			EventTime: e.Get(s.time).Int(), TestEventCode: top.Get("test_event_code").String(),
			Body: []byte(e.Raw),
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
