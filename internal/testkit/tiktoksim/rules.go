package tiktoksim

import (
	"encoding/json"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
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

// The rules of both request shapes. A violation is answered with 40002, the field's path and a message.
// Fields that no rule names are accepted, as TikTok accepts them.
var (
	batchEnvelope = compile([]row{
		{"", "event_source", required, append(text, check{"Must be one of: " + sources, oneOf(sources)})},
		{"", "event_source_id", required, text},
		{"", "test_event_code", optional, text},
		{"", "data", required, append(list, check{"Length must be between 1 and 1000", isBatch})},
	})
	pixelEnvelope = compile([]row{
		{"", "pixel_code", required, text},
		{"", "test_event_code", optional, text},
	})
	batchEvent = eventRules("event_time", "")
	pixelEvent = eventRules("timestamp", "context")
)

// eventRules returns the rules of an event whose user and page are in the object at the path context.
func eventRules(timeField, context string) []rule {
	user, page := context+".user", context+".page"
	return compile([]row{
		{"", ".", required, object},
		{"", "event", required, append(anyText, check{"Not a valid choice", oneOf(eventNames)})},
		{"", "event_id", required, append(text, check{"Longer than maximum length 256", isShort})},
		{"", timeField, required, append(count, check{"Not a valid Unix timestamp in seconds", isPast})},
		{"", "limited_data_use", optional, checks{{"Not a valid boolean", is[bool]}}},

		{context, ".", required, object},
		{context, "user page", optional, object},
		{user, "email phone external_id first_name last_name zip_code", optional, hashes},
		{user, "city state country", optional, append(text, check{"Must be lower-case letters only", isLower})},
		{user, "ip", optional, append(anyText, check{"Not a valid IPv4 or IPv6 address", isIP})},
		{user, "user_agent ttclid ttp locale", optional, text},
		{user, ".", optional, checks{{"Contains an empty field", hasNoEmptyString}}},
		{page, "url", optional, append(anyText, check{"Not a valid URL", isWebURL})},
		{page, "referrer", optional, anyText},

		{"", "properties", optional, append(object, check{"Missing currency of the value", hasCurrency})},
		{"properties", "value", optional, amount},
		{"properties", "currency", optional, append(anyText, check{"Not a valid choice", oneOf(currencies)})},
		{"properties", "content_type order_id description", optional, anyText},
		{"properties", "num_items", optional, count},
		{"properties", "contents content_ids", optional, list},
		{"properties.content_ids", "*", optional, text},
		{"properties.contents", "*", optional, object},
		{"properties.contents.*", "content_id", optional, text},
		{"properties.contents.*", "content_name content_category brand", optional, anyText},
		{"properties.contents.*", "quantity", optional, count},
		{"properties.contents.*", "price", optional, amount},
	})
}

// check is a condition and TikTok's message where it is not met. A check may assume the ones before it.
type check struct {
	message string
	ok      func(v any) bool
}

type checks = []check

// emptyHash is the SHA-256 of "".
const emptyHash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

var (
	object  = checks{{"Not a valid object", is[map[string]any]}}
	list    = checks{{"Not a valid list", is[[]any]}}
	anyText = checks{{"Not a valid string", is[string]}}
	text    = checks{anyText[0], {"Field may not be empty", isNotEmpty}}
	count   = checks{{"Not a valid integer", isInteger}, {"Must be greater than or equal to 1", isAtLeast(1)}}
	amount  = checks{{"Not a valid number", isNumber}, {"Must be greater than or equal to 0", isAtLeast(0)}}
	hashes  = checks{
		{"Not a valid SHA256 hash", oneOrMany(isHash)},
		{"Hash of an empty value", oneOrMany(func(v any) bool { return v != emptyHash })},
	}
)

func is[T any](v any) bool { _, ok := v.(T); return ok }

func isNotEmpty(v any) bool { return v != "" }

func isShort(v any) bool { return utf8.RuneCountInString(v.(string)) <= 256 }

func isBatch(v any) bool { n := len(v.([]any)); return 1 <= n && n <= 1000 }

func oneOf(words string) func(v any) bool {
	known := map[any]bool{}
	for word := range strings.FieldsSeq(words) {
		known[word] = true
	}
	return func(v any) bool { return known[v] }
}

// oneOrMany accepts one value or a list of at least one.
func oneOrMany(ok func(v any) bool) func(v any) bool {
	return func(v any) bool {
		if many, isList := v.([]any); isList && len(many) > 0 {
			return !slices.ContainsFunc(many, func(v any) bool { return !ok(v) })
		}
		return ok(v)
	}
}

// isHash accepts a SHA-256 in lower-case hex.
func isHash(v any) bool {
	s, _ := v.(string)
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}

func isLower(v any) bool {
	other := func(r rune) bool { return !unicode.IsLetter(r) || unicode.ToLower(r) != r }
	return !strings.ContainsFunc(v.(string), other)
}

func isIP(v any) bool {
	ip, err := netip.ParseAddr(v.(string))
	return err == nil && ip.Zone() == ""
}

func isWebURL(v any) bool {
	u, err := url.Parse(v.(string))
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Hostname() != ""
}

func isNumber(v any) bool {
	n, _ := v.(json.Number)
	_, err := n.Float64()
	return err == nil
}

// isInteger accepts a number without fraction or exponent.
func isInteger(v any) bool {
	n, _ := v.(json.Number)
	_, err := n.Int64()
	return err == nil
}

func isAtLeast(least float64) func(v any) bool {
	return func(v any) bool {
		n, _ := v.(json.Number).Float64()
		return n >= least
	}
}

// isPast tolerates a clock that is an hour fast. It also rejects milliseconds.
func isPast(v any) bool {
	at, _ := v.(json.Number).Int64()
	return at <= time.Now().Add(time.Hour).Unix()
}

func hasCurrency(v any) bool {
	fields := v.(map[string]any)
	_, value := fields["value"]
	_, currency := fields["currency"]
	return currency || !value
}

// hasNoEmptyString rejects "" at any depth: a field that is not known must be left out.
func hasNoEmptyString(v any) bool { return !anyString(v, func(s string) bool { return s == "" }) }

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

const (
	required = true
	optional = false
)

// row is a line of the tables above: fields of one object that have the same rule.
type row struct {
	in       string // path of the object; * is each element of a list
	names    string // separated by spaces; "." is the object itself
	required bool
	checks   checks
}

// rule is what one field must fulfil.
type rule struct {
	path     []string
	required bool
	checks   checks
}

func compile(rows []row) (rules []rule) {
	for _, r := range rows {
		for name := range strings.FieldsSeq(r.names) {
			path := strings.FieldsFunc(r.in+"."+name, func(c rune) bool { return c == '.' })
			rules = append(rules, rule{path, r.required, r.checks})
		}
	}
	return rules
}

// violation returns the first violation, such as ".user.ip: Field may not be null", and "" if there is none.
func violation(rules []rule, v any) string {
	for _, r := range rules {
		if found := r.apply(v, r.path); found != "" {
			return found
		}
	}
	return ""
}

// apply checks what is at a path below v.
func (r rule) apply(v any, path []string) string {
	if len(path) == 0 {
		return r.test(v)
	}
	switch v := v.(type) {
	case map[string]any:
		field, exists := v[path[0]]
		switch {
		case !exists && r.required:
			return "." + path[0] + ": Missing data for required field"
		case exists:
			if found := r.apply(field, path[1:]); found != "" {
				return "." + path[0] + found
			}
		}
	case []any:
		for i, element := range v {
			if found := r.apply(element, path[1:]); found != "" {
				return "." + strconv.Itoa(i) + found
			}
		}
	}
	return "" // the object is missing, or the rule of its type reports it
}

func (r rule) test(v any) string {
	if v == nil {
		return ": Field may not be null"
	}
	for _, c := range r.checks {
		if !c.ok(v) {
			return ": " + c.message
		}
	}
	return ""
}
