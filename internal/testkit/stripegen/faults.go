package stripegen

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
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
	WrongObject                   // an object of another type than the one that was requested
	WrongID                       // another checkout session
	Huge                          // the answer, and 17 MiB of blanks
	Redirect                      // to the same path under another host name
)

type answer struct {
	status      int
	contentType string
	body        []byte
}

// faults are the answers in place of the right one, which Cut and Huge only spoil.
var faults = map[Fault]answer{
	Slow: {}, Cut: {}, Huge: {},
	Redirect:                       {status: http.StatusTemporaryRedirect},
	http.StatusUnauthorized:        refuse(http.StatusUnauthorized, "", "", "Invalid API key: use a test key."),
	http.StatusForbidden:           refuse(http.StatusForbidden, "", "", "The key lacks the permission."),
	http.StatusNotFound:            refuse(http.StatusNotFound, "resource_missing", "id", "No such object."),
	http.StatusTooManyRequests:     refuse(http.StatusTooManyRequests, "rate_limit", "", "Rate limit exceeded."),
	http.StatusInternalServerError: refuse(http.StatusInternalServerError, "", "", "An unknown error occurred."),

	HTML:        {http.StatusOK, "text/html", []byte("<!doctype html><title>Gateway</title>other@example.com")},
	WrongObject: ok([]byte(`{"id":"cus_other","object":"customer","email":"other@example.com"}`)),
	WrongID: ok([]byte(`{"id":"cs_other","object":"checkout.session","mode":"subscription",` +
		`"payment_status":"paid","amount_total":7,"customer_details":{"email":"other@example.com"}}`)),
}

func ok(body []byte) answer { return answer{http.StatusOK, "application/json", body} }

func badRequest(code, param, message string) answer {
	return refuse(http.StatusBadRequest, code, param, message)
}

// refuse returns an error in Stripe's form. An empty code or param is left out.
func refuse(status int, code, param, message string) answer {
	failure := fields{"type": "invalid_request_error", "message": message}
	if status >= http.StatusInternalServerError {
		failure["type"] = "api_error"
	}
	for name, value := range map[string]string{"code": code, "param": param} {
		if value != "" {
			failure[name] = value
		}
	}
	return answer{status, "application/json", encode(fields{"error": failure})}
}

// Fail answers the next n requests, valid or not, with a fault. It replaces an earlier call.
func (a *API) Fail(n int, fault Fault) { a.FailLater(0, n, fault) }

// FailLater is Fail after so many healthy requests, such as in the middle of a list.
func (a *API) FailLater(after, n int, fault Fault) {
	if _, known := faults[fault]; !known {
		panic(fmt.Sprint("stripegen: no fault ", int(fault)))
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.healthy, a.failing, a.fault = after, n, fault
}

// FailShare answers a share of all requests, 0 to 1, with a random fault each, but never Slow. The seed
// decides which.
func (a *API) FailShare(share float64, seed uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.share, a.random = share, rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // reproducible choices, no secret
}

// Limit sets the rate limit; 0 removes it. After one request too many, all are rejected for a second.
func (a *API) Limit(perSecond float64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.limitedUntil = time.Time{}
	a.limiter = rate.NewLimiter(cmp.Or(rate.Limit(perSecond), rate.Inf), max(1, int(perSecond)))
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

// admit counts a request and returns its fault, 0 for none. The fault of the rate limit is its status.
func (a *API) admit(now time.Time) Fault {
	a.stats.Requests++
	if early := now.Before(a.limitedUntil); early || !a.limiter.AllowN(now, 1) {
		a.stats.Limited++
		if early {
			a.stats.Impatient++
		} else {
			a.limitedUntil = now.Add(time.Second)
		}
		return http.StatusTooManyRequests
	}
	switch {
	case a.healthy > 0:
		a.healthy--
	case a.failing > 0:
		a.failing--
		a.stats.Failed++
		return a.fault
	case a.share > 0 && a.random.Float64() < a.share:
		a.stats.Failed++
		all := slices.Sorted(maps.Keys(faults))
		all = slices.DeleteFunc(all, func(f Fault) bool { return f == Slow })
		return all[a.random.IntN(len(all))]
	}
	return 0
}
