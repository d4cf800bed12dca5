package dashboard

import (
	"context"
	"encoding/csv"
	"net/http"
	"net/url"
	"time"

	"go.uber.org/zap"

	"purchase-relay/internal/logsafe"
	"purchase-relay/internal/ops/report"
)

const (
	csvPage    = 1000             // rows per query
	csvTimeout = 30 * time.Second // for the client to read a page
)

// csv streams all purchases of a filter, page by page, in constant memory.
func (d *Dashboard) csv(w http.ResponseWriter, r *http.Request) error {
	values, err := query(r, filterNames()...)
	if err != nil {
		return badRequest(err)
	}
	f, err := d.parseFilter(values)
	if err != nil {
		return badRequest(err)
	}
	f.Limit = csvPage
	list, err := d.list(r.Context(), f)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/csv; charset=utf-8")
	w.Header().Set("Content-Disposition", `attachment; filename="purchases.csv"`)
	table := csv.NewWriter(w)
	_ = table.Write(report.CSVHeader()) // table.Error returns the first error
	connection := http.NewResponseController(w)
	rows, complete := 0, false
	defer func() { d.logExport(r, values, rows, complete) }()
	for {
		for i := range list {
			_ = table.Write(list[i].CSV())
		}
		if table.Flush(); table.Error() != nil {
			return nil // the client is gone
		}
		rows += len(list)
		if complete = len(list) < csvPage; complete {
			return nil
		}
		_ = connection.SetWriteDeadline(time.Now().Add(csvTimeout)) // if unsupported, the listener's applies
		f.After = list[len(list)-1].Position()
		if list, err = d.list(r.Context(), f); err != nil {
			d.Log.Warn("Export aborted", zap.Error(err))
			panic(http.ErrAbortHandler) // the client must see that the file is incomplete
		}
	}
}

func (d *Dashboard) list(ctx context.Context, f report.Filter) ([]report.Row, error) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	return d.Reports.List(ctx, f)
}

// logExport writes the audit log of an export. The search is left out: it may be an e-mail address.
func (d *Dashboard) logExport(r *http.Request, filter url.Values, rows int, complete bool) {
	fields := []zap.Field{
		zap.String("by", tokenName(r)), zap.String("remote", r.RemoteAddr),
		zap.String("path", logsafe.Text(r.URL.Path, 80)), zap.Bool("search", filter.Get("q") != ""),
		zap.Int("rows", rows), zap.Bool("whole", complete),
	}
	for _, name := range filterNames() {
		if value := filter.Get(name); name != "q" && value != "" {
			fields = append(fields, zap.String(name, logsafe.Text(value, 100)))
		}
	}
	d.Log.Info("Export", fields...)
}
