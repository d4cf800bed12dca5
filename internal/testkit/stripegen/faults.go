package stripegen

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"golang.org/x/time/rate"
)

// Fault is a way in which the API fails: the status of an error in faults, or one of the constants.
type Fault int

// The faults that are no errors in Stripe's form.
const (
	Slow        Fault = -1 - iota // no answer until the client gives up
	Cut                           // the connection closes in the middle of the answer
	HTML                          // a page with status 200, as from a proxy
	WrongObject                   // another object than the one that was requested
	Huge                          // 17 MiB with status 200
)

const contentJSON = "application/json"

type answer struct {
	status      int
	contentType string
	body        []byte
}

// faults are the answers to requests that fail; Slow, Cut and Huge are in handle.
var faults = map[Fault]answer{
	http.StatusUnauthorized: refuse(http.StatusUnauthorized, "", "",
		"Invalid API key: use a test key, sk_test_… or rk_test_…, as bearer token."),
	http.StatusForbidden: refuse(http.StatusForbidden, "", "",
		"The provided key does not have the required permissions for this endpoint."),
	http.StatusNotFound: refuse(http.StatusNotFound, "resource_missing", "id", "No such object."),
	http.StatusTooManyRequests: refuse(http.StatusTooManyRequests, "rate_limit", "",
		"Request rate limit exceeded."),
	http.StatusInternalServerError: refuse(http.StatusInternalServerError, "", "",
		"An unknown error occurred."),
	HTML:        {http.StatusOK, "text/html", []byte("<!doctype html><title>Gateway</title>")},
	WrongObject: ok([]byte(`{"id":"cus_other","object":"customer"}`)),
}

// huge is made when it is needed, unlike those in faults.
func huge() answer {
	return ok(fmt.Appendf(nil, `{"object":"list","data":[],"a":"%s"}`, bytes.Repeat([]byte("x"), 17<<20)))
}

func ok(body []byte) answer { return answer{http.StatusOK, contentJSON, body} }

func badRequest(code, param, format string, args ...any) answer {
	return refuse(http.StatusBadRequest, code, param, format, args...)
}

// refuse returns an error in Stripe's form. An empty code or param is left out.
func refuse(status int, code, param, format string, args ...any) answer {
	failure := map[string]string{"type": "invalid_request_error", "message": fmt.Sprintf(format, args...)}
	if status >= http.StatusInternalServerError {
		failure["type"] = "api_error"
	}
	if code != "" {
		failure["code"] = code
	}
	if param != "" {
		failure["param"] = param
	}
	body, err := json.Marshal(map[string]any{"error": failure})
	if err != nil {
		panic(err) // strings only: cannot happen
	}
	return answer{status, contentJSON, body}
}

// Fail answers the next n requests, valid or not, with a fault. It replaces an earlier call.
func (a *API) Fail(n int, fault Fault) { a.FailLater(0, n, fault) }

// FailLater is Fail after so many healthy requests, such as in the middle of a list.
func (a *API) FailLater(after, n int, fault Fault) {
	if _, known := faults[fault]; !known && fault != Slow && fault != Cut && fault != Huge {
		panic(fmt.Sprintf("stripegen: no fault %d", fault))
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.healthy, a.failing, a.fault = after, n, fault
}

// Limit sets the rate limit; 0 removes it. After one request too many, all are rejected for a second.
func (a *API) Limit(perSecond float64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.limiter, a.limitedUntil = nil, time.Time{}
	if perSecond > 0 {
		a.limiter = rate.NewLimiter(rate.Limit(perSecond), max(1, int(perSecond)))
	}
}

// Stats counts requests to Stripe's own paths.
type Stats struct {
	Requests  int
	Limited   int // rejected for the rate
	Impatient int // of these, sent before the time in Retry-After
	Failed    int // answered with a fault
}

// Stats returns the counts so far.
func (a *API) Stats() Stats {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.stats
}

// admit counts a request. It reports whether the request exceeds the rate limit, else its fault, 0 for none.
func (a *API) admit(now time.Time) (limited bool, fault Fault) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stats.Requests++
	if early := now.Before(a.limitedUntil); early || a.limiter != nil && !a.limiter.AllowN(now, 1) {
		a.stats.Limited++
		if early {
			a.stats.Impatient++
		} else {
			a.limitedUntil = now.Add(time.Second)
		}
		return true, 0
	}
	switch {
	case a.healthy > 0:
		a.healthy--
	case a.failing > 0:
		a.failing--
		a.stats.Failed++
		return false, a.fault
	}
	return false, 0
}
