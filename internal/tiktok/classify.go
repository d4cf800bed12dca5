package tiktok

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"purchase-relay/internal/purchase"
)

// The Events API's return codes, by what they ask of the sender. Names and meanings: TikTok's business-api-sdk and the
// field text of its documentation. What stands in no line is unknown.
var ( //nolint:gochecknoglobals // a table, never written
	deliveredCodes = span{{0, 0}, {40050, 40050}}
	refusedCodes   = span{{20001, 20001}, {40000, 40000}, {40002, 40003}, {40006, 40013}, {40051, 40051}, {40061, 40063}}
	accessCodes    = span{{40001, 40001}, {40101, 40109}, {40113, 40113}, {40117, 40118}, {40130, 40130}, {40300, 40301}, {41000, 41000}}
	rateCodes      = span{{40100, 40100}, {40132, 40132}, {40016, 40016}, {61000, 61000}}
	retryCodes     = span{{50000, 53999}, {60001, 60001}}
)

// span is a list of ranges, both ends included.
type span [][2]int

func (s span) has(code int) bool {
	for _, r := range s {
		if code >= r[0] && code <= r[1] {
			return true
		}
	}
	return false
}

// Classify says what an answer means: status is the HTTP status (0: no answer), code the body's code (nil: none). A body
// code, where present, wins over the HTTP status, because TikTok's errors normally arrive with HTTP 200; success needs a 2xx
// besides the code. known is false for a code that stands in no table: it is tried again, and told.
func Classify(status int, code *int) (class purchase.Class, known bool) {
	if code == nil {
		return classifyStatus(status), true
	}
	switch c := *code; {
	case c == 0 && (status < 200 || status > 299):
		return purchase.ClassRetry, true
	case deliveredCodes.has(c):
		return purchase.ClassDelivered, true
	case refusedCodes.has(c):
		return purchase.ClassRefused, true
	case accessCodes.has(c):
		return purchase.ClassAccess, true
	case rateCodes.has(c):
		return purchase.ClassRate, true
	case retryCodes.has(c):
		return purchase.ClassRetry, true
	}
	return purchase.ClassRetry, false
}

// classifyStatus judges an answer that is not TikTok's JSON: a gateway's page, a wrong path, no answer at all.
func classifyStatus(status int) purchase.Class {
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return purchase.ClassAccess
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusGone:
		return purchase.ClassAccess // the address is wrong: an operator's matter, not the event's
	case http.StatusTooManyRequests:
		return purchase.ClassRate
	default:
		return purchase.ClassRetry
	}
}

// maxRetryAfter bounds what a server may ask for.
const maxRetryAfter = time.Hour

// RetryAfter reads a Retry-After header, seconds or an HTTP date, as a wait from 0 to one hour; 0 when it is missing or
// unreadable.
func RetryAfter(header string, now time.Time) time.Duration {
	header = strings.TrimSpace(header)
	// A number beyond its range comes back as the range's end: it is a long wait all the same.
	if seconds, err := strconv.ParseInt(header, 10, 64); err == nil || errors.Is(err, strconv.ErrRange) {
		return time.Duration(min(max(0, seconds), int64(maxRetryAfter/time.Second))) * time.Second
	}
	if at, err := http.ParseTime(header); err == nil {
		return min(max(0, at.Sub(now)), maxRetryAfter)
	}
	return 0
}
