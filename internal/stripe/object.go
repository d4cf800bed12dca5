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

// Fetch gives a thin event of one of our types its object, in the object's present state. The error is
// purchase.ErrReference, or a *Refusal where Stripe's API did not return the object; neither holds anything
// of the key or of a buyer.
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
	object, refused := a.object(req)
	if refused != nil {
		return e, refused
	}
	if text(object.Get("object")) != kind || text(object.Get("id")) != e.Related.ID {
		return e, &Refusal{told: "Stripe's API returned another object than the thin event's"}
	}
	of := read(&e, object)
	e.Livemode = e.Livemode || of
	return e, nil
}

// fetchable reports whether a URL is relative and below /v1/, of plain segments: the key must not be sent
// anywhere else.
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
func (a *API) object(req *http.Request) (object gjson.Result, refused *Refusal) {
	resp, err := a.objects.Do(req)
	if err != nil {
		if failed := new(url.Error); errors.As(err, &failed) {
			err = failed.Err // without the address
		}
		return object, &Refusal{told: "Stripe's API cannot be reached: " + err.Error(), err: err}
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return object, objectRefused(resp)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxObject+1))
	switch {
	case err != nil:
		return object, &Refusal{told: "Stripe's API broke its answer off: " + err.Error(), err: err}
	case len(body) > maxObject:
		return object, &Refusal{told: "Stripe's API sent an answer of more than 1 MiB"}
	case !shallow(body) || !gjson.ValidBytes(body):
		return object, &Refusal{told: "Stripe's API sent an answer that cannot be read"}
	}
	return gjson.ParseBytes(body), nil
}

// objectRefused reads an answer with another status than 200. Its text stays out: it might be anybody's.
func objectRefused(resp *http.Response) *Refusal {
	remedy := map[int]string{
		http.StatusUnauthorized:    ": STRIPE_API_KEY is not known to Stripe",
		http.StatusForbidden:       ": STRIPE_API_KEY may not read this object",
		http.StatusNotFound:        ": STRIPE_API_KEY does not see this object (other mode, or another account)",
		http.StatusTooManyRequests: ": too many requests of this account",
	}[resp.StatusCode]
	return &Refusal{
		Status: resp.StatusCode,
		told: fmt.Sprintf("Stripe's API answered %d%s (request %s)", resp.StatusCode, remedy,
			purchase.Tellable(resp.Header.Get("Request-Id"))),
	}
}

func noRedirect(*http.Request, []*http.Request) error { return errRedirect }
