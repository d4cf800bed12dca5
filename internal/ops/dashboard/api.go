package dashboard

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
)

// openapi describes the API. A test asks every path and compares.
//
//go:embed openapi.json
var openapi []byte //nolint:gochecknoglobals // embedded, never written

func (d *Dashboard) apiDescription(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(openapi) // the reader is gone
}

// summary is the body of GET /api/v1/summary.
type summary struct {
	Range     string                  `json:"range"`
	Mode      string                  `json:"mode"`
	Purchases map[purchase.Status]int `json:"purchases"`
	Attention int                     `json:"attention"`
	Oldest    int64                   `json:"oldest_waiting_seconds"`
	Value     []purchase.Value        `json:"value"`
	NoValue   int                     `json:"accepted_without_value"`
	Health    Health                  `json:"health"`
}

func (d *Dashboard) apiSummary(w http.ResponseWriter, r *http.Request) {
	values, err := query(r, "range", "mode")
	if err != nil {
		fail(w, http.StatusBadRequest, err.Error())
		return
	}
	v, err := parseView(values)
	if err != nil {
		fail(w, http.StatusBadRequest, err.Error())
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), queryTimeout)
	defer cancel()
	now := d.Now()
	s, err := d.Ledger.Summary(ctx, now.Add(-v.span), v.livemode)
	if err != nil {
		d.unavailable(w, r, err)
		return
	}
	body := summary{
		Range:     v.Range,
		Mode:      v.Mode,
		Attention: s.Attention,
		Value:     []purchase.Value{},
		NoValue:   s.NoValue,
		Health:    d.health(ctx),
	}
	body.Purchases = make(map[purchase.Status]int)
	for _, status := range purchase.Statuses() {
		body.Purchases[status] = s.Counts[status]
	}
	if !s.Oldest.IsZero() {
		body.Oldest = max(0, int64(now.Sub(s.Oldest).Seconds()))
	}
	if s.Values != nil {
		body.Value = s.Values
	}
	reply(w, http.StatusOK, body)
}

func (d *Dashboard) health(ctx context.Context) Health {
	h := d.Health(ctx)
	if h.Workers == nil {
		h.Workers = []message.WorkerState{}
	}
	return h
}

// list is the body of GET /api/v1/purchases.
type list struct {
	Items []purchase.Entry `json:"items"`
	Next  *string          `json:"next"` // the cursor of the next page; null: this is the last one
}

func (d *Dashboard) apiPurchases(w http.ResponseWriter, r *http.Request) {
	values, err := query(r, "q", "status", "mode", "code", "day", "cursor", "limit")
	if err != nil {
		fail(w, http.StatusBadRequest, err.Error())
		return
	}
	f, err := parseFilter(values)
	if err != nil {
		fail(w, http.StatusBadRequest, err.Error())
		return
	}
	if f.Limit, err = parseLimit(values.Get("limit")); err != nil {
		fail(w, http.StatusBadRequest, err.Error())
		return
	}
	items, next, err := d.page(r.Context(), f)
	if err != nil {
		d.unavailable(w, r, err)
		return
	}
	body := list{Items: items}
	if next != "" {
		body.Next = &next
	}
	reply(w, http.StatusOK, body)
}

// page returns one page, never nil, and the cursor of the next one, "" where there is none.
func (d *Dashboard) page(ctx context.Context, f purchase.Filter) (entries []purchase.Entry, next string, err error) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	wanted := f.Limit
	f.Limit++ // one more tells whether there is another page
	if entries, err = d.Ledger.Entries(ctx, f); err != nil {
		return nil, "", err
	}
	if len(entries) > wanted {
		entries = entries[:wanted]
		next = entries[wanted-1].Position().Cursor()
	}
	if entries == nil {
		entries = []purchase.Entry{}
	}
	return entries, next, nil
}

// one is the body of GET /api/v1/purchases/{id}: the row, with its attempts and events in the place of their number.
type one struct {
	purchase.Entry
	Attempts []attempt `json:"attempts"`
	Events   []event   `json:"events"`
	Payment  *string   `json:"first_payment_id"` // of a trial
	Keys     []string  `json:"match_keys"`       // the kinds that the message holds or held
	// What TikTok got, or is to get; null where nothing is ever sent, and once it was dropped.
	Body json.RawMessage `json:"body"`
}

type attempt struct {
	ID         string    `json:"attempt_id"`
	Generation int       `json:"generation"`
	At         time.Time `json:"at"`
	TookMS     int64     `json:"took_ms"`
	Class      string    `json:"class"`
	Code       *int      `json:"code"`
	Message    string    `json:"message"`
	RequestID  string    `json:"request_id"`
}

type event struct {
	ID          string     `json:"event_id"`
	Type        string     `json:"type"`
	Created     *time.Time `json:"created_at"`
	Received    time.Time  `json:"received_at"`
	Disposition string     `json:"disposition"`
}

func (d *Dashboard) apiPurchase(w http.ResponseWriter, r *http.Request) {
	if _, err := query(r); err != nil {
		fail(w, http.StatusBadRequest, "there are no parameters here")
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), queryTimeout)
	defer cancel()
	entry, history, err := d.Ledger.Entry(ctx, r.PathValue("id"))
	switch {
	case errors.Is(err, purchase.ErrUnknown):
		fail(w, http.StatusNotFound, purchase.ErrUnknown.Error())
		return
	case err != nil:
		d.unavailable(w, r, err)
		return
	}
	body := one{Entry: entry, Attempts: []attempt{}, Events: []event{}, Keys: []string{}, Body: d.body(&history)}
	if history.KeyMask != nil {
		body.Keys = append(body.Keys, purchase.KeyNames(*history.KeyMask)...)
	}
	if history.FirstPayment != "" {
		body.Payment = &history.FirstPayment
	}
	for _, a := range history.Attempts {
		body.Attempts = append(body.Attempts, attempt{a.ID, a.Generation, a.At.UTC(), a.Took.Milliseconds(), string(a.Class), a.Code, a.Message, a.RequestID})
	}
	for _, e := range history.Events {
		told := event{ID: e.EventID, Type: e.Type, Received: e.Received.UTC(), Disposition: string(e.Disposition)}
		if !e.Created.IsZero() {
			told.Created = new(e.Created.UTC())
		}
		body.Events = append(body.Events, told)
	}
	reply(w, http.StatusOK, body)
}

// body renders the stored message as TikTok got it, or is to get it; nil where there is none, or where it
// cannot be read.
func (d *Dashboard) body(h *purchase.History) []byte {
	if len(h.Envelope) == 0 {
		return nil
	}
	body, err := d.Body(h.Envelope, h.Sent)
	if err != nil {
		d.Log.Warn("A stored message cannot be read") // with the purchase's page the id is known
		return nil
	}
	return body
}
