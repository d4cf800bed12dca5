package tiktok

import (
	"errors"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"purchase-relay/internal/purchase"
)

// The Events API's return codes by class. Sources: TikTok's business-api-sdk and the field descriptions of
// its documentation. Other codes are unknown.
//
//nolint:gochecknoglobals // a table, never written
var codeRanges = map[purchase.Class][][2]int{ // both ends included
	purchase.ClassDelivered: {{0, 0}, {40050, 40050}},
	purchase.ClassRefused: {
		{20001, 20001}, {40000, 40000}, {40002, 40003}, {40006, 40013}, {40051, 40051}, {40061, 40063},
	},
	purchase.ClassAccess: {
		{40001, 40001},
		{40101, 40109},
		{40113, 40113},
		{40117, 40118},
		{40130, 40130},
		{40300, 40301},
		{41000, 41000},
	},
	purchase.ClassRate:  {{40100, 40100}, {40132, 40132}, {40016, 40016}, {61000, 61000}},
	purchase.ClassRetry: {{50000, 53999}, {60001, 60001}},
}

// Classify returns the class of an answer: status is the HTTP status (0: no answer), code the body's code
// (nil: none), message TikTok's message. The body's code overrides the HTTP status, because TikTok's errors
// normally arrive with HTTP 200; success requires a 2xx as well. The message decides where one code reports
// several kinds of faults: faults of the settings and temporary ones have both been observed with 40002.
// known is false for an unknown code, which is retried.
func Classify(status int, code *int, message string) (class purchase.Class, known bool) {
	if code == nil {
		return classifyStatus(status), true
	}
	class, known = classifyCode(status, *code)
	if class == purchase.ClassRefused || (class == purchase.ClassRetry && *code != 0) {
		switch {
		case eventField.MatchString(message): // the event is at fault, even if the message names a setting
		case temporaryFault.MatchString(message):
			return purchase.ClassRetry, known
		case settingsFault.MatchString(quoted.ReplaceAllString(message, "")):
			return purchase.ClassAccess, known
		}
	}
	return class, known
}

func classifyCode(status, code int) (class purchase.Class, known bool) {
	if code == 0 && (status < 200 || status > 299) {
		return purchase.ClassRetry, true
	}
	for class, ranges := range codeRanges {
		if slices.ContainsFunc(ranges, func(r [2]int) bool { return code >= r[0] && code <= r[1] }) {
			return class, true
		}
	}
	return purchase.ClassRetry, false
}

// Wordings of TikTok's messages. Sources: RudderStack's FAQ and tests, issues of stape's tag.
var (
	// eventField matches a path into an event: "Batch.3.properties.value: …", "context.user.email: …".
	eventField = regexp.MustCompile(
		`(?i)\b(batch|data)\.\d+\.\w|(^|[\s"'(])(properties|contents|context|user|page)[.:]`,
	)
	// temporaryFault matches a fault of TikTok itself.
	temporaryFault = regexp.MustCompile(
		`(?i)\bcould not acquire\b|\btime(d|s)?[- ]?out\b|\btry again\b|\bretry\b|\btemporar(y|ily)\b` +
			`|\b(busy|internal|unavailable|overloaded)\b|\btoo many requests\b`,
	)
	// settingsFault matches a fault of the request and not of an event.
	settingsFault = regexp.MustCompile(
		`(?i)\bpixels?([ _-]?(code|id)s?)?\b|\bevent[ _-]?(source|set)s?([ _-]?ids?)?\b` +
			`|\b(permissions?|not (permitted|authori[sz]ed)|unauthori[sz]ed|insufficient scope)\b` +
			`|\badvertisers?([ _-]?(account|id)s?)?\b|\btest[ _-]?event[ _-]?codes?\b|\baccess[ _-]?tokens?\b` +
			`|\btoken (is |has |was )*(been )?(expired|invalid|incorrect|revoked)\b`,
	)
	// quoted matches a quoted value, which may look like a setting's name.
	quoted = regexp.MustCompile(`"[^"]*"|` + "`[^`]*`" + `|(^|[\s:(\[=])'[^']*'`)
)

// classifyStatus classifies an answer without TikTok's JSON: a block page, a wrong path, no answer. A client
// error is ambiguous: a firewall may reject one event for its content, or all events, with the same status.
func classifyStatus(status int) purchase.Class {
	switch {
	case status == http.StatusNotFound:
		return purchase.ClassAccess // the address is wrong
	case status == http.StatusTooManyRequests:
		return purchase.ClassRate
	case status == http.StatusRequestTimeout, status == http.StatusTooEarly:
		return purchase.ClassRetry
	case status >= 400 && status <= 499:
		return purchase.ClassBlocked
	default:
		return purchase.ClassRetry
	}
}

// maxRetryAfter bounds a Retry-After.
const maxRetryAfter = time.Hour

// RetryAfter parses a Retry-After header, seconds or an HTTP date, into a wait from 0 to one hour; 0 when it
// is missing or malformed.
func RetryAfter(header string, now time.Time) time.Duration {
	header = strings.TrimSpace(header)
	// ParseInt returns the nearest limit for a number out of range.
	if seconds, err := strconv.ParseInt(header, 10, 64); err == nil || errors.Is(err, strconv.ErrRange) {
		return time.Duration(min(max(0, seconds), int64(maxRetryAfter/time.Second))) * time.Second
	}
	if at, err := http.ParseTime(header); err == nil {
		return min(max(0, at.Sub(now)), maxRetryAfter)
	}
	return 0
}
