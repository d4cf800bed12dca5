package stripe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/tidwall/gjson"

	"purchase-relay/internal/purchase"
)

// maxObject is the largest object that is read, in bytes.
const maxObject = 1 << 20

// objectTypes are the types of the objects that events of ours are about.
var objectTypes = map[string]string{
	purchase.TypeCompleted: "checkout.session", purchase.TypeAsyncSucceeded: "checkout.session",
	purchase.TypeAsyncFailed: "checkout.session", purchase.TypeInvoicePaid: "invoice",
}

// Fetch returns a thin event with its object in its present state. The error is purchase.ErrReference, or a
// *Refusal where Stripe's API did not return the object; neither holds the key or a buyer's data.
func (a *API) Fetch(ctx context.Context, e purchase.Event) (purchase.Event, error) {
	kind, known := objectTypes[e.Type]
	account := e.Account != ""
	switch r := e.Related; {
	case !known, r.Type != kind, !purchase.ValidID(r.ID), !fetchable(r.URL),
		account && !purchase.ValidID(e.Account):
		return e, purchase.ErrReference
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.url+e.Related.URL, http.NoBody)
	if err != nil {
		return e, purchase.ErrReference
	}
	req.Header.Set("Authorization", "Bearer "+a.key)
	if account {
		req.Header.Set("Stripe-Account", e.Account)
	}
	object, refusal := a.object(req)
	if refusal != nil {
		return e, refusal
	}
	if text(object.Get("object")) != kind || text(object.Get("id")) != e.Related.ID {
		return e, &Refusal{message: "Stripe's API returned another object than the thin event's"}
	}
	livemode := setObject(&e, object)
	e.Livemode = e.Livemode || livemode
	return e, nil
}

// fetchable reports whether a URL is relative and below /v1/, of plain segments: the key must go nowhere
// else.
func fetchable(raw string) bool {
	rest, ok := strings.CutPrefix(raw, "/v1/")
	if !ok || len(raw) > maxReference {
		return false
	}
	for segment := range strings.SplitSeq(rest, "/") {
		if !purchase.ValidID(segment) {
			return false
		}
	}
	return true
}

// maxReference bounds such a URL, in bytes.
const maxReference = 1000

// object fetches one object.
func (a *API) object(req *http.Request) (object gjson.Result, refusal *Refusal) {
	resp, err := a.objects.Do(req)
	if err != nil {
		if failed := new(url.Error); errors.As(err, &failed) {
			err = failed.Err // without the address
		}
		return object, &Refusal{message: "Stripe's API cannot be reached: " + err.Error(), err: err}
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return object, refusalOf(resp)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxObject+1))
	switch {
	case err != nil:
		return object, &Refusal{message: "Stripe's API broke its answer off: " + err.Error(), err: err}
	case len(body) > maxObject:
		return object, &Refusal{message: "Stripe's API sent an answer of more than 1 MiB"}
	case !shallow(body) || !gjson.ValidBytes(body):
		return object, &Refusal{message: "Stripe's API sent an answer that cannot be read"}
	}
	return gjson.ParseBytes(body), nil
}

// refusalOf returns the error of a status other than 200. The body stays out: it may hold any text.
func refusalOf(resp *http.Response) *Refusal {
	remedy := map[int]string{
		http.StatusUnauthorized:    ": STRIPE_API_KEY is not known to Stripe",
		http.StatusForbidden:       ": STRIPE_API_KEY may not read this object",
		http.StatusNotFound:        ": STRIPE_API_KEY does not see this object (other mode, or another account)",
		http.StatusTooManyRequests: ": too many requests of this account",
	}[resp.StatusCode]
	return &Refusal{
		Status: resp.StatusCode,
		message: fmt.Sprintf("Stripe's API answered %d%s (request %s)", resp.StatusCode, remedy,
			purchase.LogSafe(resp.Header.Get("Request-Id"))),
	}
}

func noRedirect(*http.Request, []*http.Request) error { return errRedirect }
