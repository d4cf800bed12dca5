package dashboard

import (
	"context"
	"encoding/csv"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"purchase-relay/internal/logsafe"
	"purchase-relay/internal/purchase"
)

// csvPage is how many rows are asked for at a time; csvPause how long a page may take until it is with its reader.
const (
	csvPage  = 1000
	csvPause = 30 * time.Second
)

// csv streams every purchase of a filter, page by page: what it holds in memory does not grow with the list.
func (d *Dashboard) csv(w http.ResponseWriter, r *http.Request) {
	values, err := query(r, "q", "status", "mode", "code", "day")
	if err != nil {
		d.refuse(w, r, http.StatusBadRequest, err.Error())
		return
	}
	f, err := parseFilter(values)
	if err != nil {
		d.refuse(w, r, http.StatusBadRequest, err.Error())
		return
	}
	f.Limit = csvPage
	entries, err := d.entries(r.Context(), f)
	if err != nil {
		d.unavailable(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "text/csv; charset=utf-8")
	w.Header().Set("Content-Disposition", `attachment; filename="purchases.csv"`)
	table := csv.NewWriter(w)
	_ = table.Write(csvHeader()) // an error stays with the writer until it is asked for
	connection := http.NewResponseController(w)
	rows, whole := 0, false
	defer func() { d.exported(r, values, rows, whole) }()
	for {
		for i := range entries {
			_ = table.Write(csvRow(&entries[i]))
		}
		if table.Flush(); table.Error() != nil {
			return // the reader is gone
		}
		rows += len(entries)
		if whole = len(entries) < csvPage; whole {
			return
		}
		_ = connection.SetWriteDeadline(time.Now().Add(csvPause)) // where it cannot be moved, the listener's own limit holds
		f.After = entries[len(entries)-1].Position()
		if entries, err = d.entries(r.Context(), f); err != nil {
			d.Log.Warn("Export broken off", zap.Error(err))
			panic(http.ErrAbortHandler) // the reader must see that it is not whole
		}
	}
}

// exported logs by whose token data left, and which. A search may be somebody's address and is not repeated.
func (d *Dashboard) exported(r *http.Request, filter url.Values, rows int, whole bool) {
	d.Log.Info("Export", zap.String("by", heldBy(r)), zap.String("remote", r.RemoteAddr), zap.String("path", logsafe.Text(r.URL.Path, 80)),
		zap.String("status", filter.Get("status")), zap.String("mode", filter.Get("mode")), zap.String("code", filter.Get("code")),
		zap.String("day", filter.Get("day")), zap.Bool("search", filter.Get("q") != ""), zap.Int("rows", rows), zap.Bool("whole", whole))
}

func (d *Dashboard) entries(ctx context.Context, f purchase.Filter) ([]purchase.Entry, error) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	return d.Ledger.Entries(ctx, f)
}

func csvHeader() []string {
	return []string{
		"checkout_session_id", "status", "reason", "mode", "livemode", "purchased_at", "amount", "currency",
		"amount_minor", "stripe_customer_id", "stripe_subscription_id", "profile_id", "attempts", "last_code",
		"last_error", "tiktok_request_id", "first_published_at", "published_at", "finished_at", "created_at",
		"kind", "trial_session_id", "sent_minor",
	}
}

func csvRow(e *purchase.Entry) []string {
	amount, minor, sent := "", "", ""
	if e.AmountMinor != nil {
		minor = strconv.FormatInt(*e.AmountMinor, 10)
		if e.Currency != nil {
			amount = purchase.Major(*e.AmountMinor, *e.Currency)
		}
	}
	if e.SentMinor != nil {
		sent = strconv.FormatInt(*e.SentMinor, 10)
	}
	row := []string{
		e.ID, string(e.Status), string(e.Reason), e.Mode, strconv.FormatBool(e.Livemode), isoTime(e.PurchasedAt), amount, strings.ToUpper(deref(e.Currency)), minor, deref(e.Customer),
		deref(e.Subscription), deref(e.ProfileID), strconv.Itoa(e.Attempts), codeText(e.LastCode), deref(e.LastError), deref(e.RequestID),
		isoTime(e.FirstPublished), isoTime(e.Published), isoTime(e.Finished), isoTime(&e.Created),
		string(e.Kind), deref(e.TrialSession), sent,
	}
	for i := range row {
		row[i] = harmless(row[i])
	}
	return row
}

// formulaStarts begin a formula in one spreadsheet or another, the last four in those for Chinese, Japanese
// and Korean.
const formulaStarts = "=+-@\uff1d\uff0b\uff0d\uff20"

// harmless keeps a spreadsheet from taking a foreign text for a formula. The text stays in one line and in
// one cell, also where a semicolon or a tab separates cells: such a spreadsheet may find the beginning of a
// cell in the midst of a text.
func harmless(cell string) string {
	cell = logsafe.Text(cell, len(cell)) // without NUL, tabs, ends of lines and what cannot be seen
	if _, err := strconv.ParseFloat(cell, 64); err == nil {
		return cell
	}
	var b strings.Builder
	begins := true // nothing but blanks and quotes since the cell's beginning
	for _, r := range cell {
		if begins && strings.ContainsRune(formulaStarts, r) {
			b.WriteByte('\'')
		}
		begins = r == ';' || r == ',' || r == '|' || begins && (r == ' ' || r == '"' || r == '\'')
		b.WriteRune(r)
	}
	return b.String()
}

func isoTime(at *time.Time) string {
	if at == nil {
		return ""
	}
	return at.UTC().Format(time.RFC3339)
}
