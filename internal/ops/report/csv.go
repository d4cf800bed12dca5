package report

import (
	"strconv"
	"strings"
	"time"

	"purchase-relay/internal/ledger"
	"purchase-relay/internal/logsafe"
	"purchase-relay/internal/purchase"
)

// CSVHeader names the fields of a row's CSV.
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
		ledger.OrZero(r.Subscription), ledger.OrZero(r.ProfileID), strconv.Itoa(r.AttemptCount), integer(r.LastCode),
		ledger.OrZero(r.LastError), ledger.OrZero(r.RequestID), isoTime(r.FirstPublished), isoTime(r.Published),
		isoTime(r.Finished), isoTime(&r.Created), string(r.Kind), ledger.OrZero(r.TrialSession), integer(r.SentMinor),
	}
	for i := range fields {
		fields[i] = CSVField(fields[i])
	}
	return fields
}

// formulaStarts begin a formula in one spreadsheet or another, the last four in those for Chinese, Japanese
// and Korean.
const formulaStarts = "=+-@\uff1d\uff0b\uff0d\uff20"

// CSVField keeps a spreadsheet from taking a foreign text for a formula. The text stays in one line and in
// one cell, also where a semicolon or a tab separates cells: such a spreadsheet may find the beginning of a
// cell in the midst of a text.
func CSVField(cell string) string {
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

func integer[T int | int64](n *T) string {
	if n == nil {
		return ""
	}
	return strconv.FormatInt(int64(*n), 10)
}
