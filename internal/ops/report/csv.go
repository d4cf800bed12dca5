package report

import (
	"strconv"
	"strings"
	"time"

	"purchase-relay/internal/ledger"
	"purchase-relay/internal/logsafe"
	"purchase-relay/internal/purchase"
)

// CSVHeader returns the column names of Row.CSV.
func CSVHeader() []string {
	return []string{
		"checkout_session_id", "status", "reason", "mode", "livemode", "purchased_at", "amount", "currency",
		"amount_minor", "stripe_customer_id", "stripe_subscription_id", "profile_id", "attempts", "last_code",
		"last_error", "tiktok_request_id", "first_published_at", "published_at", "finished_at", "created_at",
		"kind", "trial_session_id", "sent_minor",
	}
}

// CSV returns the row's fields, safe for spreadsheets.
func (r *Row) CSV() []string {
	amount := ""
	if r.AmountMinor != nil && r.Currency != nil {
		amount = purchase.Major(*r.AmountMinor, *r.Currency)
	}
	fields := []string{
		r.ID, string(r.Status), string(r.Reason), r.Mode, strconv.FormatBool(r.Livemode), isoTime(r.PurchasedAt),
		amount, strings.ToUpper(ledger.OrZero(r.Currency)), integer(r.AmountMinor), ledger.OrZero(r.Customer),
		ledger.OrZero(r.Subscription), ledger.OrZero(r.ProfileID), strconv.Itoa(r.AttemptCount),
		integer(r.LastCode), ledger.OrZero(r.LastError), ledger.OrZero(r.RequestID), isoTime(r.FirstPublished),
		isoTime(r.Published), isoTime(r.Finished), isoTime(&r.Created), string(r.Kind),
		ledger.OrZero(r.TrialSession), integer(r.SentMinor),
	}
	for i := range fields {
		fields[i] = CSVField(fields[i])
	}
	return fields
}

// formulaStarts begin a formula in some spreadsheet; the last four are full-width forms.
const formulaStarts = "=+-@\uff1d\uff0b\uff0d\uff20"

// CSVField escapes a text that a spreadsheet would read as a formula, at the start or behind a semicolon,
// comma or bar, which some spreadsheets take for separators. The text stays on one line.
func CSVField(cell string) string {
	cell = logsafe.Text(cell, len(cell)) // removes NUL, tabs, line ends and invisible characters
	if _, err := strconv.ParseFloat(cell, 64); err == nil {
		return cell
	}
	var b strings.Builder
	atStart := true // only blanks and quotes since the start of the cell
	for _, r := range cell {
		if atStart && strings.ContainsRune(formulaStarts, r) {
			b.WriteByte('\'')
		}
		atStart = r == ';' || r == ',' || r == '|' || atStart && (r == ' ' || r == '"' || r == '\'')
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

func integer[T int | int64](n *T) string {
	if n == nil {
		return ""
	}
	return strconv.FormatInt(int64(*n), 10)
}
