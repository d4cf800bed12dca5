package tiktoksim

import (
	"bytes"
	"encoding/json"
	"fmt"
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

const (
	sourceWeb  = "web"
	sources    = "web app offline crm"
	maxBatch   = 1000
	maxEventID = 256       // characters
	maxAhead   = time.Hour // how far an event may lie in the future
	emptyHash  = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	eventNames = "AddPaymentInfo AddToCart AddToWishlist ApplicationApproval ClickButton CompletePayment CompleteRegistration" +
		" Contact CustomizeProduct Download FindLocation InitiateCheckout Lead PlaceAnOrder Purchase Schedule Search StartTrial" +
		" SubmitApplication SubmitForm Subscribe ViewContent"
	currencies = "AED ARS AUD BDT BHD BIF BOB BRL CAD CHF CLP CNY COP CRC CZK DKK DZD EGP EUR GBP GTQ HKD HNL HUF IDR ILS" +
		" INR ISK JPY KES KHR KRW KWD KZT MAD MOP MXN MYR NGN NIO NOK NZD OMR PEN PHP PKR PLN PYG QAR RON RUB SAR SEK SGD THB" +
		" TRY TWD UAH USD VES VND ZAR"
)

// TikTok's sentences.
const (
	saysMissing = "Missing data for required field"
	saysNull    = "Field may not be null"
	saysObject  = "Not a valid object"
	saysList    = "Not a valid list"
	saysString  = "Not a valid string"
	saysNumber  = "Not a valid number"
	saysInteger = "Not a valid integer"
	saysBoolean = "Not a valid boolean"
	saysEmpty   = "Field may not be empty"
	saysHash    = "Not a valid SHA256 hash"
)

// verdict is what TikTok says of a request.
type verdict struct {
	code    int
	message string
}

// submission is one request's body, opened but not judged.
type submission struct {
	source, pixel, testCode string
	events                  []offered
	batch                   bool     // the events stand in a list, so that a message names the place
	refused                 *verdict // nil, or what is wrong around the events
}

// offered is one event as it came.
type offered struct {
	raw    json.RawMessage
	fields any // decoded, numbers as json.Number
}

// text returns a string field, "" when it is none.
func (o offered) text(name string) string { return text(o.fields, name) }

func text(v any, name string) string {
	fields, _ := v.(map[string]any)
	s, _ := fields[name].(string)
	return s
}

// openEvents opens the body of event/track. It decodes into maps, because Go's structs would also match names written in
// another case.
func openEvents(body []byte) (sub submission) {
	sub.batch = true
	var top map[string]json.RawMessage
	if !utf8.Valid(body) || json.Unmarshal(body, &top) != nil || top == nil {
		sub.refused = &verdict{codeMalformed, "The request body is not a valid JSON object"}
		return sub
	}
	var bad *flaw
	refuse := func(name, says string) {
		if bad == nil {
			bad = &flaw{name, says}
		}
	}
	get := func(name string, required bool) string {
		raw, there := top[name]
		if !there && !required {
			return ""
		}
		var s *string
		switch err := json.Unmarshal(raw, &s); {
		case !there:
			refuse(name, saysMissing)
		case err != nil || s == nil:
			refuse(name, saysString)
		case *s == "":
			refuse(name, saysEmpty)
		default:
			return *s
		}
		return ""
	}
	if sub.source = get("event_source", true); sub.source != "" && !slices.Contains(strings.Fields(sources), sub.source) {
		refuse("event_source", "Must be one of: "+sources)
	}
	sub.pixel, sub.testCode = get("event_source_id", true), get("test_event_code", false)
	var data []json.RawMessage
	switch raw, there := top["data"]; {
	case !there:
		refuse("data", saysMissing)
	case json.Unmarshal(raw, &data) != nil || data == nil:
		refuse("data", saysList)
	case len(data) == 0 || len(data) > maxBatch:
		refuse("data", "Length must be between 1 and "+strconv.Itoa(maxBatch))
	}
	sub.events = make([]offered, len(data))
	for i, raw := range data {
		sub.events[i].raw = raw
		if len(data) <= maxBatch {
			sub.events[i].fields = decode(raw)
		}
	}
	if bad != nil {
		sub.refused = &verdict{codeInvalid, bad.String()}
	}
	return sub
}

// openPixel opens the body of pixel/track: one event, which says itself where it belongs.
func openPixel(body []byte) (sub submission) {
	if !utf8.Valid(body) || !json.Valid(body) {
		sub.refused = &verdict{codeMalformed, "The request body is not a valid JSON object"}
		return sub
	}
	o := offered{raw: bytes.Clone(body), fields: decode(body)}
	sub = submission{source: sourceWeb, pixel: o.text("pixel_code"), testCode: o.text("test_event_code"), events: []offered{o}}
	around := object(must("pixel_code", all(anyString, notEmpty)), may("test_event_code", all(anyString, notEmpty)))
	if bad := around(o.fields); bad != nil {
		sub.refused = &verdict{codeInvalid, bad.String()}
	}
	return sub
}

// decode decodes JSON that is known to be valid.
func decode(raw []byte) (v any) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	_ = d.Decode(&v) // nil stays, and is refused, should it be invalid after all
	return v
}

// rules are what an event has to fulfil, in each shape.
type rules struct {
	event, pixel rule
}

func newRules(now func() time.Time) rules {
	hashes := oneOrMany(hash)
	user := all(object(
		may("email", hashes), may("phone", hashes), may("external_id", hashes),
		may("first_name", hashes), may("last_name", hashes), may("zip_code", hashes),
		may("city", lowerLetters), may("state", lowerLetters), may("country", lowerLetters),
		may("ip", address), may("user_agent", anyString), may("ttclid", anyString), may("ttp", anyString), may("locale", anyString),
	), noEmptyString)
	page := object(may("url", webAddress), may("referrer", anyString))
	content := object(
		may("content_id", all(anyString, notEmpty)), may("content_name", anyString), may("content_category", anyString),
		may("brand", anyString), may("quantity", wholeFrom(1)), may("price", numberFromZero),
	)
	contentIDs := list(all(anyString, notEmpty))
	properties := all(object(
		may("value", numberFromZero), may("currency", oneOf(currencies)), may("contents", list(content)),
		may("content_ids", contentIDs), may("num_items", wholeFrom(1)), may("content_type", anyString),
		may("order_id", anyString), may("description", anyString),
	), valueNeedsCurrency)
	name, id, at := oneOf(eventNames), all(anyString, notEmpty, atMost(maxEventID)), seconds(now)
	return rules{
		event: object(
			must("event", name), must("event_id", id), must("event_time", at),
			may("user", user), may("properties", properties), may("page", page), may("limited_data_use", boolean),
		),
		pixel: object(
			must("event", name), must("event_id", id), must("timestamp", at),
			may("properties", properties), may("limited_data_use", boolean),
			must("context", object(may("user", user), may("page", page))),
		),
	}
}

// judge returns why a submission is refused, or nil. One bad event refuses all of them.
func (r rules) judge(sub submission) *verdict {
	for i, e := range sub.events {
		apply := r.pixel
		if sub.batch {
			apply = r.event
		}
		bad := apply(e.fields)
		if bad == nil {
			continue
		}
		if sub.batch {
			bad = bad.in("Batch." + strconv.Itoa(i))
		}
		return &verdict{codeInvalid, bad.String()}
	}
	return nil
}

// at returns when an event that was judged good happened, in either shape.
func (o offered) at() int64 {
	fields, _ := o.fields.(map[string]any)
	n, ok := fields["event_time"].(json.Number)
	if !ok {
		n, _ = fields["timestamp"].(json.Number)
	}
	at, _ := n.Int64()
	return at
}

// flaw is what is wrong, and where.
type flaw struct{ path, says string }

// in returns the flaw as seen from outside the object or list that holds it under a name.
func (f *flaw) in(name string) *flaw {
	if f.path != "" {
		name += "." + f.path
	}
	return &flaw{name, f.says}
}

// String says it as TikTok does.
func (f *flaw) String() string {
	if f.path == "" {
		return f.says
	}
	return f.path + ": " + f.says
}

// rule judges a decoded JSON value: nil when it is good.
type rule func(v any) *flaw

// all is the first flaw that any of the rules finds.
func all(rules ...rule) rule {
	return func(v any) *flaw {
		for _, r := range rules {
			if bad := r(v); bad != nil {
				return bad
			}
		}
		return nil
	}
}

// field is a rule for what an object holds under a name.
type field struct {
	name     string
	required bool
	rule     rule
}

func must(name string, r rule) field { return field{name, true, r} }
func may(name string, r rule) field  { return field{name, false, r} }

// object judges the fields in the order in which they are written here. It lets others pass, as TikTok does.
func object(fields ...field) rule {
	return func(v any) *flaw {
		o, ok := v.(map[string]any)
		if !ok {
			return &flaw{"", saysObject}
		}
		for _, f := range fields {
			v, there := o[f.name]
			switch {
			case !there && f.required:
				return &flaw{f.name, saysMissing}
			case !there:
				continue
			case v == nil:
				return &flaw{f.name, saysNull}
			}
			if bad := f.rule(v); bad != nil {
				return bad.in(f.name)
			}
		}
		return nil
	}
}

func list(of rule) rule {
	return func(v any) *flaw {
		l, ok := v.([]any)
		if !ok {
			return &flaw{"", saysList}
		}
		for i, v := range l {
			if bad := of(v); bad != nil {
				return bad.in(strconv.Itoa(i))
			}
		}
		return nil
	}
}

// oneOrMany takes one value, or a list of at least one.
func oneOrMany(of rule) rule {
	many := list(of)
	return func(v any) *flaw {
		l, ok := v.([]any)
		switch {
		case !ok:
			return of(v)
		case len(l) == 0:
			return &flaw{"", saysEmpty}
		}
		return many(v)
	}
}

func anyString(v any) *flaw {
	if _, ok := v.(string); !ok {
		return &flaw{"", saysString}
	}
	return nil
}

func notEmpty(v any) *flaw {
	if v == "" {
		return &flaw{"", saysEmpty}
	}
	return nil
}

func atMost(characters int) rule {
	return func(v any) *flaw {
		if s, _ := v.(string); utf8.RuneCountInString(s) > characters {
			return &flaw{"", "Longer than maximum length " + strconv.Itoa(characters)}
		}
		return nil
	}
}

// oneOf takes one of some words, case-sensitive.
func oneOf(words string) rule {
	known := map[string]bool{}
	for w := range strings.FieldsSeq(words) {
		known[w] = true
	}
	return func(v any) *flaw {
		s, ok := v.(string)
		switch {
		case !ok:
			return &flaw{"", saysString}
		case !known[s]:
			return &flaw{"", "Not a valid choice: " + strconv.Quote(s)}
		}
		return nil
	}
}

func boolean(v any) *flaw {
	if _, ok := v.(bool); !ok {
		return &flaw{"", saysBoolean}
	}
	return nil
}

// wholeFrom takes a number without fraction or exponent.
func wholeFrom(least int64) rule {
	return func(v any) *flaw {
		n, _ := v.(json.Number)
		whole, err := n.Int64()
		switch {
		case err != nil:
			return &flaw{"", saysInteger}
		case whole < least:
			return &flaw{"", fmt.Sprintf("Must be greater than or equal to %d", least)}
		}
		return nil
	}
}

func numberFromZero(v any) *flaw {
	n, _ := v.(json.Number)
	x, err := n.Float64()
	switch {
	case err != nil:
		return &flaw{"", saysNumber}
	case x < 0:
		return &flaw{"", "Must be greater than or equal to 0"}
	}
	return nil
}

// seconds takes a Unix time. Milliseconds end up far in the future, which is how they are found.
func seconds(now func() time.Time) rule {
	whole := wholeFrom(1)
	return func(v any) *flaw {
		if bad := whole(v); bad != nil {
			return bad
		}
		n, _ := v.(json.Number)
		if at, _ := n.Int64(); at > now().Add(maxAhead).Unix() {
			return &flaw{"", "Not a valid Unix timestamp in seconds: it lies in the future"}
		}
		return nil
	}
}

// hash takes a SHA-256 in lower-case hex, unless it is the one of nothing.
func hash(v any) *flaw {
	s, ok := v.(string)
	switch {
	case !ok:
		return &flaw{"", saysString}
	case len(s) != 64 || strings.Trim(s, "0123456789abcdef") != "":
		return &flaw{"", saysHash}
	case s == emptyHash:
		return &flaw{"", "Hash of an empty value"}
	}
	return nil
}

func lowerLetters(v any) *flaw {
	s, ok := v.(string)
	switch {
	case !ok:
		return &flaw{"", saysString}
	case s == "":
		return &flaw{"", saysEmpty}
	case strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsLetter(r) || unicode.ToLower(r) != r }):
		return &flaw{"", "Must be lower-case letters only"}
	}
	return nil
}

func address(v any) *flaw {
	s, ok := v.(string)
	if !ok {
		return &flaw{"", saysString}
	}
	if a, err := netip.ParseAddr(s); err != nil || a.Zone() != "" {
		return &flaw{"", "Not a valid IPv4 or IPv6 address"}
	}
	return nil
}

func webAddress(v any) *flaw {
	s, ok := v.(string)
	if !ok {
		return &flaw{"", saysString}
	}
	if u, err := url.Parse(s); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		return &flaw{"", "Not a valid URL"}
	}
	return nil
}

// noEmptyString finds "" at any depth: what is not known is left out.
func noEmptyString(v any) *flaw {
	switch v := v.(type) {
	case string:
		return notEmpty(v)
	case []any:
		return list(noEmptyString)(v)
	case map[string]any:
		for _, name := range slices.Sorted(maps.Keys(v)) {
			if bad := noEmptyString(v[name]); bad != nil {
				return bad.in(name)
			}
		}
	}
	return nil
}

func valueNeedsCurrency(v any) *flaw {
	o, _ := v.(map[string]any)
	_, value := o["value"]
	if _, currency := o["currency"]; value && !currency {
		return &flaw{"currency", "Missing data for required field: value needs it"}
	}
	return nil
}
