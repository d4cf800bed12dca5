package dashboard

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"go.uber.org/zap"

	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
)

// openapi describes the API. A test compares it with every path's response.
//
//go:embed openapi.json
var openapi []byte //nolint:gochecknoglobals // embedded, never written

func (d *Dashboard) apiDescription(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(openapi) // the client is gone
}

// summary is the body of GET /api/v1/summary.
type summary struct {
	Range     string                  `json:"range"`
	Mode      string                  `json:"mode"`
	From      time.Time               `json:"from"`
	Until     time.Time               `json:"until"`
	Zone      string                  `json:"timezone"`
	Purchases map[purchase.Status]int `json:"purchases"`
	Attention int                     `json:"attention"`
	Oldest    int64                   `json:"oldest_waiting_seconds"`
	Value     []report.Value          `json:"value"`
	NoValue   int                     `json:"accepted_without_value"`
	Days      []summaryDay            `json:"days"`
	Health    Health                  `json:"health"`
}

// summaryDay counts the sales of a day, or of the part of it that the range covers.
type summaryDay struct {
	Date          string         `json:"date"`
	Paid          int            `json:"paid"`
	Accepted      int            `json:"accepted"`
	Waiting       int            `json:"waiting"`
	NotAccepted   int            `json:"not_accepted"`
	LeftOut       int            `json:"left_out"`
	NewBuyers     int            `json:"new_buyers"`
	Returning     int            `json:"returning_buyers"`
	FirstPayments int            `json:"trials_converted"`
	Value         []report.Value `json:"value"`
}

func (d *Dashboard) apiSummary(w http.ResponseWriter, r *http.Request) error {
	values, err := query(r, "range", "from", "to", "mode")
	if err != nil {
		return badRequest(err)
	}
	now := d.Now()
	v, err := parseView(values, "all", now, d.days)
	if err != nil {
		return badRequest(err)
	}
	ctx := r.Context()
	s, err := d.Reports.Summary(ctx, v.period, v.livemode)
	if err != nil {
		return err
	}
	body := summary{
		Range: v.Range, Mode: v.Mode, Purchases: make(map[purchase.Status]int), Attention: s.Attention,
		From: v.period.From.UTC(), Until: v.period.Until.UTC(), Zone: d.days.Zone.String(),
		Value: []report.Value{}, NoValue: s.NoValue, Days: []summaryDay{}, Health: d.health(ctx),
	}
	for _, day := range v.byDay(s.Steps, d.days) {
		sum := report.SumSales(day.Steps)
		body.Days = append(body.Days, summaryDay{
			Date: day.At.In(d.days.Zone).Format(time.DateOnly), Paid: sum.Paid, Accepted: sum.Accepted,
			Waiting: sum.Waiting, NotAccepted: sum.NotAccepted(), LeftOut: sum.LeftOut, NewBuyers: sum.NewBuyers,
			Returning: sum.Returning, FirstPayments: sum.FirstPayments, Value: append([]report.Value{}, sum.Values...),
		})
	}
	for _, status := range purchase.Statuses() {
		body.Purchases[status] = s.Counts[status]
	}
	if !s.Oldest.IsZero() {
		body.Oldest = max(0, int64(now.Sub(s.Oldest).Seconds()))
	}
	if s.Values != nil {
		body.Value = s.Values
	}
	writeJSON(w, http.StatusOK, body)
	return nil
}

// apiProblems answers even while the ledger is unreadable: that is one of the problems.
func (d *Dashboard) apiProblems(w http.ResponseWriter, r *http.Request) error {
	if _, err := query(r); err != nil {
		return badRequest(err)
	}
	writeJSON(w, http.StatusOK, map[string][]report.Problem{"problems": d.Problems(r.Context()).List})
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
	Next  *string      `json:"next"` // the cursor of the next page; null: last page
}

func (d *Dashboard) apiPurchases(w http.ResponseWriter, r *http.Request) error {
	values, err := query(r, append(filterNames(), "cursor", "limit")...)
	if err != nil {
		return badRequest(err)
	}
	f, err := d.parseFilter(values)
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
	writeJSON(w, http.StatusOK, body)
	return nil
}

// page returns a page, never nil, and the cursor of the next one; "": last page.
func (d *Dashboard) page(ctx context.Context, f report.Filter) (rows []report.Row, next string, err error) {
	limit := f.Limit
	f.Limit++ // one more row shows whether there is another page
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

// details is the body of GET /api/v1/purchases/{id}. Attempts replaces the row's number of attempts.
type details struct {
	report.Row
	Attempts []report.Attempt `json:"attempts"`
	Events   []report.Event   `json:"events"`
	Payment  *string          `json:"first_payment_id"` // of a trial
	Keys     []string         `json:"match_keys"`
	Body     json.RawMessage  `json:"body"` // of TikTok's request; null: never sent, or dropped
}

func (d *Dashboard) apiPurchase(w http.ResponseWriter, r *http.Request) error {
	if _, err := query(r); err != nil {
		return badRequest(err)
	}
	ctx := r.Context()
	row, err := d.Reports.Get(ctx, r.PathValue("id"))
	switch {
	case errors.Is(err, report.ErrNotFound):
		return &httpError{http.StatusNotFound, report.ErrNotFound.Error()}
	case err != nil:
		return err
	}
	body := details{
		Row: row, Attempts: append([]report.Attempt{}, row.Attempts...),
		Events: append([]report.Event{}, row.Events...), Payment: row.FirstPayment, Keys: []string{},
		Body: d.body(&row),
	}
	if row.KeyMask != nil {
		body.Keys = append(body.Keys, purchase.KeyNames(*row.KeyMask)...)
	}
	writeJSON(w, http.StatusOK, body)
	return nil
}

// body renders TikTok's request body from the stored message; nil: none, or unreadable.
func (d *Dashboard) body(row *report.Row) []byte {
	if len(row.Envelope) == 0 {
		return nil
	}
	body, err := d.Body(row.Envelope, row.Sent())
	if err != nil {
		d.Log.Warn("Stored message unreadable", zap.String("checkout_session_id", row.ID))
		return nil
	}
	return body
}
