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
	csvTimeout = 30 * time.Second // until a page is with its reader
)

// csv streams every purchase of a filter, page by page: its memory does not grow with the list.
func (d *Dashboard) csv(w http.ResponseWriter, r *http.Request) error {
	values, err := query(r, "q", "status", "mode", "code", "day")
	if err != nil {
		return badRequest(err)
	}
	f, err := parseFilter(values)
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
	_ = table.Write(report.CSVHeader()) // the writer keeps its first error
	connection := http.NewResponseController(w)
	rows, whole := 0, false
	defer func() { d.exported(r, values, rows, whole) }()
	for {
		for i := range list {
			_ = table.Write(list[i].CSV())
		}
		if table.Flush(); table.Error() != nil {
			return nil // the reader is gone
		}
		rows += len(list)
		if whole = len(list) < csvPage; whole {
			return nil
		}
		_ = connection.SetWriteDeadline(time.Now().Add(csvTimeout)) // where it cannot be moved, the listener's own limit holds
		f.After = list[len(list)-1].Position()
		if list, err = d.list(r.Context(), f); err != nil {
			d.Log.Warn("Export broken off", zap.Error(err))
			panic(http.ErrAbortHandler) // the reader must see that it is not whole
		}
	}
}

func (d *Dashboard) list(ctx context.Context, f report.Filter) ([]report.Row, error) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	return d.Reports.List(ctx, f)
}

// exported logs by whose token data left, and which. A search may be somebody's address and is not repeated.
func (d *Dashboard) exported(r *http.Request, filter url.Values, rows int, whole bool) {
	d.Log.Info("Export", zap.String("by", heldBy(r)), zap.String("remote", r.RemoteAddr),
		zap.String("path", logsafe.Text(r.URL.Path, 80)), zap.String("status", filter.Get("status")),
		zap.String("mode", filter.Get("mode")), zap.String("code", filter.Get("code")),
		zap.String("day", filter.Get("day")), zap.Bool("search", filter.Get("q") != ""),
		zap.Int("rows", rows), zap.Bool("whole", whole))
}
