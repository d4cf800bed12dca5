package stripe

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/tidwall/gjson"

	"purchase-relay/internal/purchase"
)

const (
	maxObject = 1 << 20 // bytes
	maxPath   = 1000    // bytes of an object's path
)

// objectTypes maps event types to the types of their objects.
var objectTypes = map[string]string{
	purchase.TypeCompleted: "checkout.session", purchase.TypeAsyncSucceeded: "checkout.session",
	purchase.TypeAsyncFailed: "checkout.session", purchase.TypeInvoicePaid: "invoice",
}

// Fetch returns a thin event with the current state of its object. The error is purchase.ErrReference or an
// *APIError; neither contains the key or personal data.
func (a *API) Fetch(ctx context.Context, e purchase.Event) (purchase.Event, error) {
	objectType, known := objectTypes[e.Type]
	switch r := e.Related; {
	case !known, r.Type != objectType, !purchase.ValidID(r.ID), !validPath(r.URL),
		e.Account != "" && !purchase.ValidID(e.Account):
		return e, purchase.ErrReference
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.url+e.Related.URL, http.NoBody)
	if err != nil {
		return e, purchase.ErrReference
	}
	req.Header.Set("Authorization", "Bearer "+a.key)
	if e.Account != "" {
		req.Header.Set("Stripe-Account", e.Account)
	}
	permission := "Checkout Sessions: Read"
	if e.Type == purchase.TypeInvoicePaid {
		permission = "Invoices: Read"
	}
	const missing = "object is not visible to STRIPE_API_KEY (other mode or account)"
	object, failure := fetch(a.objects, req, permission, missing)
	if failure != nil {
		return e, failure
	}
	fetched := e
	livemode := setObject(&fetched, object)
	if text(object.Get("object")) != objectType || objectID(fetched) != e.Related.ID {
		return e, &APIError{message: "decode Stripe's response: not the requested object"}
	}
	fetched.Livemode = e.Livemode || livemode
	return fetched, nil
}

// objectID returns the id of an event's object as it was decoded: a JSON object may have two fields id.
func objectID(e purchase.Event) string {
	switch {
	case e.Invoice != nil:
		return e.Invoice.ID
	case e.Checkout != nil:
		return e.Checkout.ID
	}
	return ""
}

// validPath reports whether path is below /v1/ and has plain segments only. The API key must not go to
// another host or resource.
func validPath(path string) bool {
	rest, ok := strings.CutPrefix(path, "/v1/")
	if !ok || len(path) > maxPath {
		return false
	}
	for segment := range strings.SplitSeq(rest, "/") {
		if !purchase.ValidID(segment) {
			return false
		}
	}
	return true
}

// fetch fetches one object. missing is the cause of a 404.
func fetch(client *http.Client, req *http.Request, permission, missing string) (gjson.Result, *APIError) {
	resp, err := client.Do(req)
	if err != nil {
		return gjson.Result{}, callError(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		cause := ""
		if resp.StatusCode == http.StatusNotFound {
			cause = missing
		}
		return gjson.Result{}, statusError(resp.StatusCode, cause, permission, resp.Header.Get("Request-Id"))
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxObject+1))
	switch {
	case err != nil:
		return gjson.Result{}, &APIError{message: "read Stripe's response: " + err.Error(), err: err}
	case len(body) > maxObject:
		return gjson.Result{}, &APIError{message: "read Stripe's response: larger than 1 MiB"}
	case !shallow(body) || !gjson.ValidBytes(body):
		return gjson.Result{}, errUnreadable()
	}
	return gjson.ParseBytes(body), nil
}

// callError returns the error of a request without a response, without the request's URL.
func callError(err error) *APIError {
	if failed := new(url.Error); errors.As(err, &failed) {
		err = failed.Err
	}
	return &APIError{message: "call Stripe's API: " + err.Error(), err: err}
}

func errUnreadable() *APIError {
	return &APIError{message: "decode Stripe's response: unexpected content"}
}
