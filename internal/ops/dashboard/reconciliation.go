package dashboard

import (
	"encoding/csv"
	"net/http"

	"purchase-relay/internal/ops/report"
)

// reconciliationPage is what the last reconciliation of each mode found.
type reconciliationPage struct{ Books []bookView }

type bookView struct {
	report.Reconciliation
	Name, CSV string
	Kinds     []differenceView
	Open      int
}

type differenceView struct {
	Kind    report.Difference
	What    string
	Count   int
	IDs     []string // the first ones
	Linked  bool     // the ledger has a page of them
	Nothing bool     // that must be done
}

// fewIDs is how many purchases of each difference are named on the page; the CSV names all.
const fewIDs = 100

func (d *Dashboard) reconciliation(w http.ResponseWriter, r *http.Request) error {
	if _, err := query(r); err != nil {
		return badRequest(err)
	}
	ctx := r.Context()
	var p reconciliationPage
	for _, livemode := range []bool{true, false} {
		latest, err := d.Reports.Reconciliation(ctx, livemode)
		if err != nil {
			return err
		}
		if !latest.Made.IsZero() {
			p.Books = append(p.Books, bookViewOf(latest))
		}
	}
	return d.show(w, r, "reconciliation", frame{Title: "Reconciliation", Here: "reconciliation", Path: "/reconciliation", Page: p})
}

func bookViewOf(latest report.Reconciliation) bookView {
	v := bookView{Reconciliation: latest, Name: "Test mode", CSV: "/reconciliation.csv?mode=test", Open: latest.ToReview()}
	if latest.Livemode {
		v.Name, v.CSV = "Live mode", "/reconciliation.csv?mode=live"
	}
	counts := latest.Counts()
	for _, kind := range report.Differences() {
		if counts[kind] == 0 {
			continue
		}
		k := differenceView{Kind: kind, What: kind.Meaning(), Count: counts[kind], Linked: kind != report.DiffMissing, Nothing: !kind.NeedsReview()}
		for i := range latest.Days {
			ids := latest.Days[i].Differ[kind]
			k.IDs = append(k.IDs, ids[:min(len(ids), fewIDs-len(k.IDs))]...)
		}
		v.Kinds = append(v.Kinds, k)
	}
	return v
}

// reconciliationCSV is the table with every id.
func (d *Dashboard) reconciliationCSV(w http.ResponseWriter, r *http.Request) error {
	values, err := query(r, "mode")
	if err != nil {
		return badRequest(err)
	}
	livemode, err := parseMode(values.Get("mode"))
	if err != nil || livemode == nil {
		return &refusal{http.StatusBadRequest, "mode is one of live, test"}
	}
	ctx := r.Context()
	latest, err := d.Reports.Reconciliation(ctx, *livemode)
	switch {
	case err != nil:
		return err
	case latest.Made.IsZero():
		return &refusal{http.StatusNotFound, "nothing was reconciled in this mode yet: ingest reconcile"}
	}
	w.Header().Set("Content-Type", "text/csv; charset=utf-8")
	w.Header().Set("Content-Disposition", `attachment; filename="reconciliation.csv"`)
	rows := latest.Rows()
	for _, row := range rows {
		for i := range row {
			row[i] = report.CSVField(row[i])
		}
	}
	err = csv.NewWriter(w).WriteAll(rows) // an error: the reader is gone
	d.exported(r, values, len(rows)-1, err == nil)
	return nil
}
