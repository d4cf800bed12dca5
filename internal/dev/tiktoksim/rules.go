package tiktoksim

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
)

type request struct {
	pixel, testCode string
	events          []parsed
}

type parsed struct {
	name, id string
	time     int64
	body     json.RawMessage
}

// refusal is a code of TikTok and its words; code 0: none.
type refusal struct {
	code    int
	message string
}

func refuse(format string, args ...any) refusal { return refusal{40002, fmt.Sprintf(format, args...)} }

// fields is a JSON object, its values not looked at yet.
type fields = map[string]json.RawMessage

// read judges a body. One bad event refuses the whole request.
func read(body []byte, pixelShape bool, now time.Time) (request, refusal) {
	var top fields
	if json.Unmarshal(body, &top) != nil || top == nil {
		return request{}, refusal{40000, "The request body is not a JSON object"}
	}
	if pixelShape {
		return readPixel(body, top, now)
	}
	return readEvents(top, now)
}

func readEvents(top fields, now time.Time) (request, refusal) {
	var req request
	source, ok := text(top["event_source"])
	if !ok || !slices.Contains([]string{"web", "app", "offline", "crm"}, source) {
		return req, refuse("event_source: Must be one of web, app, offline, crm")
	}
	if req.pixel, ok = text(top["event_source_id"]); !ok || req.pixel == "" {
		return req, refuse("event_source_id: Missing data for required field")
	}
	if raw, there := top["test_event_code"]; there {
		if req.testCode, ok = text(raw); !ok || req.testCode == "" {
			return req, refuse("test_event_code: Not a valid string")
		}
	}
	var data []json.RawMessage
	if json.Unmarshal(top["data"], &data) != nil || len(data) == 0 || len(data) > maxBatch {
		return req, refuse("data: Length must be between 1 and %d", maxBatch)
	}
	for i, raw := range data {
		var e fields
		if json.Unmarshal(raw, &e) != nil || e == nil {
			return req, refuse("Batch.%d: Not a valid object", i)
		}
		p, wrong := readEvent(e, e["user"], e["page"], "event_time", now)
		if wrong != "" {
			return req, refuse("Batch.%d.%s", i, wrong)
		}
		p.body = compact(raw)
		req.events = append(req.events, p)
	}
	return req, refusal{}
}

// readPixel reads the older one-event shape.
func readPixel(body []byte, top fields, now time.Time) (request, refusal) {
	var req request
	var ok bool
	if req.pixel, ok = text(top["pixel_code"]); !ok || req.pixel == "" {
		return req, refuse("pixel_code: Missing data for required field")
	}
	if raw, there := top["test_event_code"]; there {
		if req.testCode, ok = text(raw); !ok || req.testCode == "" {
			return req, refuse("test_event_code: Not a valid string")
		}
	}
	var context fields
	if json.Unmarshal(top["context"], &context) != nil || context == nil {
		return req, refuse("context: Not a valid object")
	}
	p, wrong := readEvent(top, context["user"], context["page"], "timestamp", now)
	if wrong != "" {
		return req, refuse("%s", wrong)
	}
	p.body = compact(body)
	req.events = []parsed{p}
	return req, refusal{}
}

// eventNames are those that TikTok knows; they are case-sensitive.
var eventNames = strings.Fields(`AddPaymentInfo AddToCart AddToWishlist ApplicationApproval ClickButton CompletePayment CompleteRegistration
	Contact CustomizeProduct Download FindLocation InitiateCheckout PlaceAnOrder Purchase Schedule Search StartTrial SubmitApplication
	SubmitForm Subscribe ViewContent`)

// readEvent judges one event; wrong is "" or "field: what is the matter".
func readEvent(e fields, rawUser, rawPage json.RawMessage, timeField string, now time.Time) (p parsed, wrong string) {
	var ok bool
	if p.name, ok = text(e["event"]); !ok || !slices.Contains(eventNames, p.name) {
		return p, "event: Not a supported event"
	}
	if p.id, ok = text(e["event_id"]); !ok || p.id == "" || len(p.id) > 256 {
		return p, "event_id: Not a valid string"
	}
	if p.time, ok = whole(e[timeField]); !ok || p.time < 1_000_000_000 || p.time > now.Add(time.Hour).Unix() {
		return p, timeField + ": Not a valid Unix time in seconds"
	}
	if raw, there := e["limited_data_use"]; there && string(raw) != "true" && string(raw) != "false" {
		return p, "limited_data_use: Not a valid boolean"
	}
	pageURL, wrong := readPage(rawPage)
	if wrong != "" {
		return p, wrong
	}
	if wrong := readUser(rawUser, pageURL); wrong != "" {
		return p, wrong
	}
	return p, readProperties(e["properties"])
}

func readPage(raw json.RawMessage) (pageURL, wrong string) {
	if raw == nil {
		return "", ""
	}
	var page fields
	if json.Unmarshal(raw, &page) != nil || page == nil {
		return "", "page: Not a valid object"
	}
	for _, key := range []string{"url", "referrer"} {
		value, there := page[key]
		if !there {
			continue
		}
		s, ok := text(value)
		u, err := url.Parse(s)
		if !ok || err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return "", "page." + key + ": Not a valid URL"
		}
		if key == "url" {
			pageURL = s
		}
	}
	return pageURL, ""
}

var (
	hashed       = regexp.MustCompile(`^[0-9a-f]{64}$`)
	plainLetters = regexp.MustCompile(`^[\p{Ll}\p{Lo}]+$`)
)

// emptyHash is the SHA-256 of nothing: it would match every buyer without the key.
const emptyHash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func readUser(raw json.RawMessage, pageURL string) (wrong string) {
	var user fields
	if json.Unmarshal(raw, &user) != nil || user == nil {
		return "user: Missing data for required field"
	}
	for key, value := range user {
		list, isList := []json.RawMessage{value}, false
		if slices.Contains([]string{"email", "phone", "external_id"}, key) && json.Unmarshal(value, &list) == nil {
			isList = true
		}
		if isList && len(list) == 0 {
			return "user." + key + ": Shorter than minimum length 1"
		}
		for _, one := range list {
			s, ok := text(one)
			if !ok || s == "" {
				return "user." + key + ": Not a valid string"
			}
			if what := userValue(key, s); what != "" {
				return "user." + key + ": " + what
			}
		}
		if key == "ttclid" && pageURL == "" {
			return "page.url: Missing data for required field with user.ttclid"
		}
	}
	return ""
}

func userValue(key, s string) (wrong string) {
	switch key {
	case "email", "phone", "external_id", "first_name", "last_name", "zip_code":
		if !hashed.MatchString(s) || s == emptyHash {
			return "Not a valid SHA256 hash"
		}
	case "city", "state", "country":
		if !plainLetters.MatchString(s) {
			return "Only lower-case letters are allowed"
		}
	case "ip":
		if _, err := netip.ParseAddr(s); err != nil {
			return "Not a valid IP address"
		}
	case "ttclid", "ttp", "user_agent", "locale", "idfa", "gaid":
	default:
		return "Unknown field"
	}
	return ""
}

var currencies = strings.Fields(`AED ARS AUD BDT BHD BIF BOB BRL CAD CHF CLP CNY COP CRC CZK DKK DZD EGP EUR GBP GTQ HKD HNL HUF IDR ILS
	INR ISK JPY KES KHR KRW KWD KZT MAD MOP MXN MYR NGN NIO NOK NZD OMR PEN PHP PKR PLN PYG QAR RON RUB SAR SEK SGD THB TRY TWD UAH USD
	VES VND ZAR`)

func readProperties(raw json.RawMessage) (wrong string) {
	if raw == nil {
		return ""
	}
	var p fields
	if json.Unmarshal(raw, &p) != nil || p == nil {
		return "properties: Not a valid object"
	}
	if value, there := p["value"]; there {
		if n, ok := number(value); !ok || n < 0 {
			return "properties.value: Not a valid number"
		}
		if _, there := p["currency"]; !there {
			return "properties.currency: Missing data for required field with value"
		}
	}
	if raw, there := p["currency"]; there {
		if s, ok := text(raw); !ok || !slices.Contains(currencies, s) {
			return "properties.currency: Not a supported currency"
		}
	}
	for _, key := range []string{"order_id", "content_type", "description", "query"} {
		if raw, there := p[key]; there {
			if s, ok := text(raw); !ok || s == "" {
				return "properties." + key + ": Not a valid string"
			}
		}
	}
	return readContents(p["contents"])
}

func readContents(raw json.RawMessage) (wrong string) {
	if raw == nil {
		return ""
	}
	var contents []fields
	if json.Unmarshal(raw, &contents) != nil {
		return "properties.contents: Not a valid list"
	}
	for i, c := range contents {
		at := fmt.Sprintf("properties.contents.%d.", i)
		if raw, there := c["content_id"]; there {
			if s, ok := text(raw); !ok || s == "" {
				return at + "content_id: Not a valid string"
			}
		}
		if raw, there := c["quantity"]; there {
			if n, ok := whole(raw); !ok || n < 1 {
				return at + "quantity: Not a valid integer"
			}
		}
		if raw, there := c["price"]; there {
			if n, ok := number(raw); !ok || n < 0 {
				return at + "price: Not a valid number"
			}
		}
	}
	return ""
}

// text reads a JSON string, and nothing else.
func text(raw json.RawMessage) (string, bool) {
	if len(raw) == 0 || raw[0] != '"' {
		return "", false
	}
	var s string
	return s, json.Unmarshal(raw, &s) == nil
}

// number reads a JSON number, and nothing else: not the text of one.
func number(raw json.RawMessage) (float64, bool) {
	var n float64
	if len(raw) == 0 || raw[0] == '"' || raw[0] == 'n' || json.Unmarshal(raw, &n) != nil {
		return 0, false
	}
	return n, true
}

func whole(raw json.RawMessage) (int64, bool) {
	n, ok := number(raw)
	if !ok || n != math.Trunc(n) || math.Abs(n) > 1<<53 || bytes.ContainsAny(raw, ".eE") {
		return 0, false
	}
	return int64(n), true
}

func compact(raw []byte) json.RawMessage {
	var b bytes.Buffer
	if json.Compact(&b, raw) != nil {
		return slices.Clone(raw)
	}
	return b.Bytes()
}
