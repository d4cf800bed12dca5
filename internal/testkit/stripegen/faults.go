package stripegen

import (
	"encoding/json"
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

const contentJSON = "application/json"

type answer struct {
	status      int
	contentType string
	body        []byte
}

// faults are the answers to requests that fail; Slow, Cut, Huge and Redirect are in handle.
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
	HTML:        {http.StatusOK, "text/html", []byte("<!doctype html><title>Gateway</title>other@example.com")},
	WrongObject: ok([]byte(`{"id":"cus_other","object":"customer","email":"other@example.com"}`)),
	WrongID: ok([]byte(`{"id":"cs_other","object":"checkout.session","mode":"subscription",` +
		`"payment_status":"paid","amount_total":7,"customer_details":{"email":"other@example.com"}}`)),
}

// Faults returns every fault but Slow.
func Faults() []Fault {
	return append(slices.Sorted(maps.Keys(faults)), Cut, Huge, Redirect)
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
	if fault != Slow && !slices.Contains(Faults(), fault) {
		panic(fmt.Sprintf("stripegen: no fault %d", fault))
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.healthy, a.failing, a.fault = after, n, fault
}

// FailShare answers a share of all requests, 0 to 1, with a fault of Faults each. The seed decides which.
func (a *API) FailShare(share float64, seed uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.share, a.random = share, rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // reproducible choices, no secret
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
	case a.share > 0 && a.random.Float64() < a.share:
		a.stats.Failed++
		all := Faults()
		return false, all[a.random.IntN(len(all))]
	}
	return false, 0
}
