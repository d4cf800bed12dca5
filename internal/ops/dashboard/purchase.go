package dashboard

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"purchase-relay/internal/ops/guide"
	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
)

type purchasePage struct {
	report.Row
	Heading      string
	What, Remedy string
	Error        string // TikTok's latest; "": none
	Next         string // when a retrying purchase is sent again; "": unknown
	Replayable   bool
	Steps        []stepView // Folded and Later continue a long timeline
	Folded       []stepView
	Later        []stepView
	Facts        []fact
	Request      requestView
}

// stepView is a step of the timeline. Attempts have a meaning and a request_id, events a page at Stripe.
type stepView struct {
	report.Step
	Meaning, RequestID, Link string
}

// fact is one of a purchase's details.
type fact struct {
	Name, Value string
	At          *time.Time // instead of Value
	Local       string     // page of the dashboard
	Link, Site  string     // page elsewhere, and whose it is
	ID          bool       // offer to copy Value
}

func (d *Dashboard) purchase(w http.ResponseWriter, r *http.Request) error {
	values, err := query(r, "replayed")
	if err != nil {
		return badRequest(err)
	}
	ctx := r.Context()
	row, err := d.Reports.Get(ctx, r.PathValue("id"))
	switch {
	case errors.Is(err, report.ErrNotFound):
		return &httpError{
			http.StatusNotFound,
			"purchase not found; if Stripe shows it as paid, check the endpoint's deliveries and CHECKOUT_MODES",
		}
	case err != nil:
		return err
	}
	group := report.Group{Status: row.Status, Reason: row.Reason}
	if row.Status == purchase.StatusDead || row.Status == purchase.StatusRetrying {
		group.Code = row.LastCode
	}
	advice := guide.Group(group.Status, group.Reason, group.Code)
	testPurchase := row.Status == purchase.StatusSkipped && row.Reason == purchase.ReasonTestPurchase
	p := purchasePage{
		Row: row, Heading: headingOf(&row), What: advice.Meaning, Remedy: advice.Remedy,
		Error: deref(row.LastError), Next: nextAttempt(&row, d.Now()),
		Replayable: len(row.Envelope) > 0 && (group.Replayable() || testPurchase),
		Facts:      d.factsOf(ctx, &row), Request: requestOf(&row, d.body(&row)),
	}
	p.Steps, p.Folded, p.Later = fold(stepsOf(&row))
	return d.show(w, r, "purchase", frame{
		Title: p.Heading + " " + short(row.ID), Here: "purchases", Path: "/purchases/" + row.ID,
		Notice: noticeOf(values), Page: p,
	})
}

// noticeOf returns the result of a replay after its redirect; "": none.
func noticeOf(values url.Values) string {
	n, err := strconv.ParseUint(values.Get("replayed"), 10, 32)
	switch {
	case err != nil:
		return ""
	case n == 0:
		return "Nothing was replayed: the purchases changed meanwhile."
	case n == 1:
		return "1 purchase is pending again and is sent now."
	default:
		return number(n) + " purchases are pending again and are sent now."
	}
}

// headingOf names a purchase for people: its kind and value.
func headingOf(r *report.Row) string {
	var kind string
	switch {
	case r.Kind == purchase.KindTrial:
		return "Trial"
	case r.Status == purchase.StatusSkipped && r.Reason == purchase.ReasonNoPayment:
		return "Checkout without a payment"
	case r.Status == purchase.StatusAwaitingPayment, r.Status == purchase.StatusPaymentFailed:
		kind = "Unpaid checkout"
	case r.Kind == purchase.KindFirstPayment:
		kind = "First payment"
	default:
		kind = "Purchase"
	}
	if r.AmountMinor == nil || deref(r.Currency) == "" {
		return kind + " of unknown value"
	}
	return kind + " of " + money(r.AmountMinor, *r.Currency)
}

// nextAttempt returns when a retrying purchase is sent again; "": it is not retrying, or the time is unknown.
func nextAttempt(r *report.Row, now time.Time) string {
	switch {
	case r.Status != purchase.StatusRetrying || r.NextAttempt == nil:
		return ""
	case r.NextAttempt.After(now):
		return "in " + span(r.NextAttempt.Sub(now))
	default:
		return "due " + ago(*r.NextAttempt, now) + ", as soon as a worker has a free request"
	}
}

func stepsOf(r *report.Row) (steps []stepView) {
	for _, step := range r.Timeline() {
		v := stepView{Step: step}
		if a := step.Attempt; a != nil {
			v.RequestID = a.RequestID
			if a.Code != nil && a.Class != purchase.ClassDelivered {
				v.Meaning = guide.Code(*a.Code).Meaning
			}
		}
		if e := step.Event; e != nil {
			id, _, _ := strings.Cut(e.ID, ".") // a second session's
			v.Link = stripeLink(id, r.Livemode, deref(e.Account))
		}
		steps = append(steps, v)
	}
	return steps
}

// Attempts that a long timeline shows at its beginning and at its end.
const (
	firstAttempts = 3
	lastAttempts  = 3
)

// fold splits a timeline with many attempts, so that the middle ones can be hidden.
func fold(steps []stepView) (first, middle, last []stepView) {
	var attempts []int
	for i := range steps {
		if steps[i].Attempt != nil {
			attempts = append(attempts, i)
		}
	}
	if len(attempts) <= firstAttempts+lastAttempts+1 {
		return steps, nil, nil
	}
	from, to := attempts[firstAttempts], attempts[len(attempts)-lastAttempts]
	return steps[:from], steps[from:to], steps[to:]
}

// factsOf returns a purchase's details, with their pages at Stripe and TikTok.
func (d *Dashboard) factsOf(ctx context.Context, r *report.Row) (facts []fact) {
	account, received := "", "Webhook received"
	for i := range r.Events {
		account = deref(r.Events[i].Account)
		if i == 0 && r.Events[i].Backfilled {
			received = "Backfilled"
		}
	}
	id := func(name string, value *string, local string) {
		if value != nil && *value != "" {
			facts = append(facts, fact{
				Name: name, Value: *value, Local: local, ID: true, Site: "Stripe",
				Link: stripeLink(*value, r.Livemode, account),
			})
		}
	}
	if r.PurchasedAt != nil {
		name := "Paid"
		if r.Kind == purchase.KindTrial || r.Reason == purchase.ReasonNoPayment {
			name = "Checked out"
		}
		facts = append(facts, fact{Name: name, At: r.PurchasedAt})
	}
	facts = append(facts, fact{Name: received, At: &r.Created})
	mode := map[bool]string{true: "live", false: "test"}[r.Livemode]
	facts = append(facts, fact{Name: "Checkout mode", Value: r.Mode + ", " + mode})
	payment := r.Payment
	if r.Kind == purchase.KindFirstPayment {
		payment = &r.ID
	}
	id("Payment", payment, "")
	id("Customer", r.Customer, "/purchases?q="+url.QueryEscape(deref(r.Customer)))
	id("Subscription", r.Subscription, "")
	if purchase.ValidID(account) {
		id("Account", &account, "")
	}
	if r.TrialSession != nil {
		id("Trial", r.TrialSession, "/purchases/"+*r.TrialSession)
	}
	if r.FirstPayment != nil {
		id("First payment", r.FirstPayment, "/purchases/"+*r.FirstPayment)
	} else if r.Kind == purchase.KindTrial {
		facts = append(facts, fact{Name: "First payment", Value: "none"})
	}
	id("Profile", r.ProfileID, "/purchases?q="+url.QueryEscape(deref(r.ProfileID)))
	if r.Published != nil || r.Generation > 1 {
		facts = append(facts, fact{Name: "Send round", Value: strconv.Itoa(r.Generation)})
	}
	if r.Sequence != nil {
		facts = append(facts, fact{Name: "Stream sequence", Value: strconv.FormatInt(*r.Sequence, 10)})
	}
	id("TikTok's request_id", r.RequestID, "")
	if r.Published != nil {
		facts = append(facts, d.pixels(ctx, r.Livemode)...)
	}
	return facts
}

// pixels returns the pixels to which the workers send now.
func (d *Dashboard) pixels(ctx context.Context, livemode bool) (facts []fact) {
	seen := map[string]bool{"": true}
	for _, worker := range d.Health(ctx).Workers {
		pixel := worker.TestPixel
		if livemode {
			pixel = worker.Pixel
		}
		if !seen[pixel] {
			seen[pixel] = true
			facts = append(facts, fact{
				Name: "Workers' pixel", Value: pixel, ID: true, Link: pixelLink(pixel), Site: "TikTok",
			})
		}
	}
	return facts
}

// requestView is what the page tells about the request to TikTok.
type requestView struct {
	Title string
	Body  string   // "": see Notes
	Notes []string // sentences
}

// requestOf describes the request; body is nil if there is no readable message.
func requestOf(r *report.Row, body []byte) requestView {
	v := requestView{Title: "Request to TikTok"}
	note := func(format string, args ...any) { v.Notes = append(v.Notes, fmt.Sprintf(format, args...)) }
	delivered := r.Status == purchase.StatusDelivered
	if delivered && r.Kind != purchase.KindTrial && r.SentMinor == nil {
		note("Sent without a value: TikTok does not list the currency, or the amount is unknown.")
	}
	var pretty bytes.Buffer
	if body != nil && json.Indent(&pretty, body, "", "  ") == nil {
		v.Body = pretty.String()
		source := "Rendered from the stored message"
		switch {
		case delivered:
			v.Title = "Request sent"
			source += " and the worker's report"
		case r.AttemptCount > 0:
			v.Title = "Request of each attempt"
		case r.Status == purchase.StatusDead, r.Status == purchase.StatusSkipped:
			v.Title = "Request of a replay"
		default:
			v.Title = "Request to send"
		}
		note("%s. Parts in ‹…›, the event name and TIKTOK_PAYLOAD are worker settings; a request may have "+
			"more events.", source)
		return v
	}
	switch {
	case delivered:
		v.Title = "Request sent"
		if keys := keysOf(r); keys != "" {
			note("Sent with: %s.", keys)
		}
		note("The message is deleted 48 hours after delivery, or with the customer's data.")
	case len(r.Envelope) > 0:
		note("The stored message cannot be rendered; the log of ingest has a line about it.")
	case r.Reason == purchase.ReasonForgotten:
		note("The message was deleted with the customer's data.")
	case r.Status == purchase.StatusAwaitingPayment, r.Status == purchase.StatusPaymentFailed:
		note("There is none yet. It is made when the payment succeeds.")
	case r.Status == purchase.StatusRejected:
		note("There is none: a purchase without a usable e-mail address is not sent.")
	case r.Status == purchase.StatusSkipped && r.FirstPayment != nil:
		note("There is none: the first payment is sent in its place.")
	case r.Status == purchase.StatusSkipped:
		note("There is none: the purchase is not sent.")
	default:
		note("The message is no longer stored.")
	}
	return v
}

// keysOf lists the match keys of the message.
func keysOf(r *report.Row) string {
	if r.KeyMask == nil {
		return ""
	}
	return strings.Join(purchase.KeyNames(*r.KeyMask), ", ")
}
