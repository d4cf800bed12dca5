package dashboard

import (
	"encoding/csv"
	"net/http"

	"purchase-relay/internal/ops/report"
)

// reconciliationPage shows the last reconciliation of each mode and TikTok's counts.
type reconciliationPage struct {
	Reconciliations []reconciliationView
	Counts          *countsView
}

type reconciliationView struct {
	report.Reconciliation
	Name, CSV string
	Kinds     []differenceView
	ToReview  int
}

type differenceView struct {
	Kind     report.Difference
	Meaning  string
	Count    int
	IDs      []string // up to maxIDs
	Linked   bool     // the purchases have pages
	Expected bool     // needs no review
}

// maxIDs limits the ids of each difference on the page; the CSV has all.
const maxIDs = 100

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
			p.Reconciliations = append(p.Reconciliations, newReconciliationView(latest))
		}
	}
	var err error
	if p.Counts, err = d.countsView(ctx); err != nil {
		return err
	}
	return d.show(w, r, "reconciliation", frame{
		Title: "Reconciliation", Here: "reconciliation", Path: "/reconciliation", Page: p,
	})
}

func newReconciliationView(latest report.Reconciliation) reconciliationView {
	v := reconciliationView{Reconciliation: latest, Name: "Test mode", CSV: "/reconciliation.csv?mode=test"}
	if latest.Livemode {
		v.Name, v.CSV = "Live mode", "/reconciliation.csv?mode=live"
	}
	v.ToReview = latest.ToReview()
	counts := latest.Counts()
	for _, kind := range report.Differences() {
		if counts[kind] == 0 {
			continue
		}
		k := differenceView{
			Kind: kind, Meaning: kind.Meaning(), Count: counts[kind], Linked: kind != report.DiffMissing,
			Expected: !kind.NeedsReview(),
		}
		for i := range latest.Days {
			ids := latest.Days[i].Differ[kind]
			k.IDs = append(k.IDs, ids[:min(len(ids), maxIDs-len(k.IDs))]...)
		}
		v.Kinds = append(v.Kinds, k)
	}
	return v
}

// reconciliationCSV serves the table with all ids.
func (d *Dashboard) reconciliationCSV(w http.ResponseWriter, r *http.Request) error {
	values, err := query(r, "mode")
	if err != nil {
		return badRequest(err)
	}
	livemode, err := parseMode(values.Get("mode"))
	if err != nil || livemode == nil {
		return &httpError{http.StatusBadRequest, "mode must be live or test"}
	}
	ctx := r.Context()
	latest, err := d.Reports.Reconciliation(ctx, *livemode)
	switch {
	case err != nil:
		return err
	case latest.Made.IsZero():
		return &httpError{http.StatusNotFound, "no reconciliation of this mode yet; run ingest reconcile"}
	}
	w.Header().Set("Content-Type", "text/csv; charset=utf-8")
	w.Header().Set("Content-Disposition", `attachment; filename="reconciliation.csv"`)
	rows := latest.Rows()
	for _, row := range rows {
		for i := range row {
			row[i] = report.CSVField(row[i])
		}
	}
	err = csv.NewWriter(w).WriteAll(rows) // an error: the client is gone
	d.logExport(r, values, len(rows)-1, err == nil)
	return nil
}
