package dashboard

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"net/http"

	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/report"
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
	Value     []report.Value          `json:"value"`
	NoValue   int                     `json:"accepted_without_value"`
	Health    Health                  `json:"health"`
}

func (d *Dashboard) apiSummary(w http.ResponseWriter, r *http.Request) error {
	values, err := query(r, "range", "mode")
	if err != nil {
		return badRequest(err)
	}
	v, err := parseView(values)
	if err != nil {
		return badRequest(err)
	}
	ctx := r.Context()
	now := d.Now()
	s, err := d.Reports.Summary(ctx, now.Add(-v.span), v.livemode)
	if err != nil {
		return err
	}
	body := summary{
		Range:     v.Range,
		Mode:      v.Mode,
		Attention: s.Attention,
		Value:     []report.Value{},
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
	return nil
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
	Items []report.Row `json:"items"`
	Next  *string      `json:"next"` // the cursor of the next page; null: this is the last one
}

func (d *Dashboard) apiPurchases(w http.ResponseWriter, r *http.Request) error {
	values, err := query(r, "q", "status", "mode", "code", "day", "cursor", "limit")
	if err != nil {
		return badRequest(err)
	}
	f, err := parseFilter(values)
	if err != nil {
		return badRequest(err)
	}
	if f.Limit, err = parseLimit(values.Get("limit")); err != nil {
		return badRequest(err)
	}
	items, next, err := d.page(r.Context(), f)
	if err != nil {
		return err
	}
	body := list{Items: items}
	if next != "" {
		body.Next = &next
	}
	reply(w, http.StatusOK, body)
	return nil
}

// page returns one page, never nil, and the cursor of the next one, "" where there is none.
func (d *Dashboard) page(ctx context.Context, f report.Filter) (rows []report.Row, next string, err error) {
	limit := f.Limit
	f.Limit++ // one more: is there another page?
	if rows, err = d.Reports.List(ctx, f); err != nil {
		return nil, "", err
	}
	if len(rows) > limit {
		rows = rows[:limit]
		next = rows[limit-1].Position().Cursor()
	}
	if rows == nil {
		rows = []report.Row{}
	}
	return rows, next, nil
}

// one is the body of GET /api/v1/purchases/{id}: the row, with its attempts in the place of their number.
type one struct {
	report.Row
	Attempts []report.Attempt `json:"attempts"`
	Events   []report.Event   `json:"events"`
	Payment  *string          `json:"first_payment_id"` // of a trial
	Keys     []string         `json:"match_keys"`       // the kinds that the message holds or held
	// What TikTok got, or is to get; null where nothing is ever sent, and once it was dropped.
	Body json.RawMessage `json:"body"`
}

func (d *Dashboard) apiPurchase(w http.ResponseWriter, r *http.Request) error {
	if _, err := query(r); err != nil {
		return badRequest(err)
	}
	ctx := r.Context()
	row, err := d.Reports.Get(ctx, r.PathValue("id"))
	switch {
	case errors.Is(err, report.ErrNotFound):
		return &refusal{http.StatusNotFound, report.ErrNotFound.Error()}
	case err != nil:
		return err
	}
	body := one{
		Row: row, Attempts: append([]report.Attempt{}, row.Attempts...), Events: append([]report.Event{}, row.Events...),
		Payment: row.FirstPayment, Keys: []string{}, Body: d.body(&row),
	}
	if row.KeyMask != nil {
		body.Keys = append(body.Keys, purchase.KeyNames(*row.KeyMask)...)
	}
	reply(w, http.StatusOK, body)
	return nil
}

// body renders the stored message as TikTok got it, or is to get it; nil where there is none, or where it
// cannot be read.
func (d *Dashboard) body(row *report.Row) []byte {
	if len(row.Envelope) == 0 {
		return nil
	}
	body, err := d.Body(row.Envelope, row.Sent())
	if err != nil {
		d.Log.Warn("A stored message cannot be read") // with the purchase's page the id is known
		return nil
	}
	return body
}
