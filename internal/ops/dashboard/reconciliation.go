package dashboard

import (
	"context"
	"encoding/csv"
	"net/http"

	"purchase-relay/internal/purchase"
)

// reconciliationPage is what the last reconciliation of each mode found.
type reconciliationPage struct{ Books []bookView }

type bookView struct {
	purchase.Reconciliation
	Name, CSV string
	Kinds     []differenceView
	Open      int
}

type differenceView struct {
	Kind    purchase.Difference
	What    string
	Count   int
	IDs     []string // the first ones
	Linked  bool     // the ledger has a page of them
	Nothing bool     // that must be done
}

// fewIDs is how many purchases of each difference are named on the page; the CSV names all.
const fewIDs = 100

func (d *Dashboard) reconciliation(w http.ResponseWriter, r *http.Request) {
	if _, err := query(r); err != nil {
		d.refuse(w, r, http.StatusBadRequest, "there are no parameters here")
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), queryTimeout)
	defer cancel()
	var p reconciliationPage
	for _, livemode := range []bool{true, false} {
		report, err := d.Ledger.Reconciliation(ctx, livemode)
		if err != nil {
			d.unavailable(w, r, err)
			return
		}
		if !report.Made.IsZero() {
			p.Books = append(p.Books, bookViewOf(report))
		}
	}
	d.show(w, r, "reconciliation", frame{Title: "Reconciliation", Here: "reconciliation", Path: "/reconciliation", Page: p})
}

func bookViewOf(report purchase.Reconciliation) bookView {
	v := bookView{Reconciliation: report, Name: "Test mode", CSV: "/reconciliation.csv?mode=test", Open: report.Open()}
	if report.Livemode {
		v.Name, v.CSV = "Live mode", "/reconciliation.csv?mode=live"
	}
	counts := report.Counts()
	for _, kind := range purchase.Differences() {
		if counts[kind] == 0 {
			continue
		}
		k := differenceView{Kind: kind, What: kind.Meaning(), Count: counts[kind], Linked: kind != purchase.Missing, Nothing: !kind.Needs()}
		for i := range report.Days {
			ids := report.Days[i].Differ[kind]
			k.IDs = append(k.IDs, ids[:min(len(ids), fewIDs-len(k.IDs))]...)
		}
		v.Kinds = append(v.Kinds, k)
	}
	return v
}

// reconciliationCSV is the table with every id.
func (d *Dashboard) reconciliationCSV(w http.ResponseWriter, r *http.Request) {
	values, err := query(r, "mode")
	if err != nil {
		d.refuse(w, r, http.StatusBadRequest, err.Error())
		return
	}
	livemode, err := parseMode(values.Get("mode"))
	if err != nil || livemode == nil {
		d.refuse(w, r, http.StatusBadRequest, "mode is one of live, test")
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), queryTimeout)
	defer cancel()
	report, err := d.Ledger.Reconciliation(ctx, *livemode)
	switch {
	case err != nil:
		d.unavailable(w, r, err)
		return
	case report.Made.IsZero():
		d.refuse(w, r, http.StatusNotFound, "nothing was reconciled in this mode yet: ingest reconcile")
		return
	}
	w.Header().Set("Content-Type", "text/csv; charset=utf-8")
	w.Header().Set("Content-Disposition", `attachment; filename="reconciliation.csv"`)
	rows := report.Rows()
	for _, row := range rows {
		for i := range row {
			row[i] = harmless(row[i])
		}
	}
	err = csv.NewWriter(w).WriteAll(rows) // an error: the reader is gone
	d.exported(r, values, len(rows)-1, err == nil)
}
