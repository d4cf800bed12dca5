package report

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/ledger"
	"purchase-relay/internal/purchase"
)

// Scope is what a reconciliation compares: checkouts of some modes, and, where they are taken, first payments
// after trials. A trial is no payment, also where it is sent as an event of its own.
type Scope struct {
	Since, Until  time.Time
	Livemode      bool
	Modes         []string
	FirstPayments bool
}

// Payment is one payment as Stripe lists it: a paid checkout session, or the first invoice with money after a
// trial.
type Payment struct {
	ID          string
	At          time.Time
	AmountMinor *int64 // nil: unknown
	Currency    string // lower case; "": unknown
}

// LedgerPayment is one payment as the ledger has it.
type LedgerPayment struct {
	Payment
	Status    purchase.Status
	Reason    purchase.Reason
	SentMinor *int64 // the value that TikTok accepted; nil: none
}

// Difference is a way in which Stripe, the ledger and TikTok disagree about a purchase.
type Difference string

// The differences. Waiting and skipped ones are expected; an operator must look into the others.
const (
	DiffMissing  Difference = "missing"      // paid at Stripe, not paid on the ledger: a backfill brings it
	DiffUnknown  Difference = "unknown"      // paid on the ledger, not at Stripe: of another account or mode
	DiffAmount   Difference = "other_amount" // amount or currency differ
	DiffRejected Difference = "rejected"     // on the ledger, without a usable e-mail address
	DiffDead     Difference = "dead"         // on the ledger, not at TikTok: dead-lettered
	DiffSkipped  Difference = "skipped"      // on the ledger, not at TikTok, on purpose
	DiffWaiting  Difference = "waiting"      // on the ledger, not yet at TikTok
)

// Differences lists each once, in the order in which they are shown.
func Differences() []Difference {
	return []Difference{
		DiffMissing, DiffUnknown, DiffAmount, DiffRejected, DiffDead, DiffSkipped, DiffWaiting,
	}
}

// Meaning says what a difference is, and what to do about it.
func (d Difference) Meaning() string {
	switch d {
	case DiffMissing:
		return "paid at Stripe, and the ledger does not have it as paid; `ingest backfill` brings it"
	case DiffUnknown:
		return "paid on the ledger, and Stripe does not list it under this key: of another account, or its events were never this account's"
	case DiffAmount:
		return "amount or currency differ; Stripe's is right, TikTok got the ledger's"
	case DiffRejected:
		return "paid without a usable e-mail address; give access by hand"
	case DiffDead:
		return "on the ledger, given up on; see the dashboard's page Dead letters, and replay"
	case DiffSkipped:
		return "on the ledger, not sent to TikTok on purpose; the purchase's page says why"
	case DiffWaiting:
		return "on the ledger, on its way to TikTok"
	}
	return ""
}

// NeedsReview reports whether an operator must look into a difference.
func (d Difference) NeedsReview() bool { return d != DiffSkipped && d != DiffWaiting }

// Reconciliation compares what Stripe lists with the ledger and with what TikTok accepted.
type Reconciliation struct {
	Made     time.Time       `json:"made_at"`
	Since    time.Time       `json:"since"`
	Until    time.Time       `json:"until"`
	Livemode bool            `json:"livemode"`
	Days     []ReconciledDay `json:"days"` // in their order, each day's currencies in theirs
}

// ReconciledDay is one day of UTC in one currency.
type ReconciledDay struct {
	Day      time.Time               `json:"day"`
	Currency string                  `json:"currency"` // upper case; "": unknown
	Paid     Totals                  `json:"paid"`     // at Stripe
	Ledger   Totals                  `json:"ledger"`
	Accepted Totals                  `json:"accepted"` // by TikTok, with the values that were sent
	Differ   map[Difference][]string `json:"differ,omitempty"`
}

// Totals are a number of purchases and their money, in the currency's smallest unit.
type Totals struct {
	Count int   `json:"count"`
	Minor int64 `json:"minor"`
}

func (t *Totals) add(minor *int64) {
	t.Count++
	if minor != nil {
		t.Minor += *minor
	}
}

// Counts says how many purchases differ, by how.
func (r *Reconciliation) Counts() map[Difference]int {
	counts := make(map[Difference]int)
	for i := range r.Days {
		for d, ids := range r.Days[i].Differ {
			counts[d] += len(ids)
		}
	}
	return counts
}

// ToReview counts the differences that an operator must look into.
func (r *Reconciliation) ToReview() (n int) {
	for d, count := range r.Counts() {
		if d.NeedsReview() {
			n += count
		}
	}
	return n
}

// Reconcile compares Stripe's payments since a time with the ledger's of that time, and those of Stripe's
// payments whatever their time, each id once.
func Reconcile(listed []Payment, recorded []LedgerPayment) []ReconciledDay {
	b := make(comparison)
	at := make(map[string]*LedgerPayment, len(recorded))
	for i := range recorded {
		// A scope holds no trials.
		if s := &recorded[i]; purchase.Paid(s.Status, s.Reason, purchase.KindCheckout) {
			at[s.ID] = s
			b.of(&s.Payment).Ledger.add(s.AmountMinor)
			if s.Status == purchase.StatusDelivered {
				b.of(&s.Payment).Accepted.add(s.SentMinor)
			}
		}
	}
	known := make(map[string]bool, len(listed))
	for i := range listed {
		p := &listed[i]
		if known[p.ID] {
			continue // two events may concern one payment
		}
		known[p.ID] = true
		b.of(p).Paid.add(p.AmountMinor)
		s := at[p.ID]
		switch {
		case s == nil:
			b.differ(p, DiffMissing)
			continue
		case s.Currency != p.Currency || !equal(s.AmountMinor, p.AmountMinor):
			b.differ(p, DiffAmount)
		}
		if d := undelivered(s.Status); d != "" {
			b.differ(p, d)
		}
	}
	for id, s := range at {
		if !known[id] {
			b.differ(&s.Payment, DiffUnknown)
		}
	}
	return b.sorted()
}

func equal(a, b *int64) bool { return a == b || a != nil && b != nil && *a == *b }

// undelivered says why a paid purchase is not at TikTok; "": it is.
func undelivered(s purchase.Status) Difference {
	switch s {
	case purchase.StatusDelivered:
		return ""
	case purchase.StatusDead:
		return DiffDead
	case purchase.StatusSkipped:
		return DiffSkipped
	case purchase.StatusRejected:
		return DiffRejected
	default:
		return DiffWaiting
	}
}

// comparison is what Reconcile has found so far, by day and currency.
type comparison map[cell]*ReconciledDay

type cell struct {
	day      int64
	currency string
}

func (c comparison) of(p *Payment) *ReconciledDay {
	day := p.At.UTC().Truncate(24 * time.Hour)
	key := cell{day.Unix(), p.Currency}
	if c[key] == nil {
		c[key] = &ReconciledDay{
			Day: day, Currency: strings.ToUpper(p.Currency), Differ: make(map[Difference][]string),
		}
	}
	return c[key]
}

func (c comparison) differ(p *Payment, d Difference) {
	day := c.of(p)
	day.Differ[d] = append(day.Differ[d], p.ID)
}

func (c comparison) sorted() []ReconciledDay {
	days := make([]ReconciledDay, 0, len(c))
	for _, key := range slices.SortedFunc(maps.Keys(c), func(a, b cell) int {
		return cmp.Or(cmp.Compare(a.day, b.day), cmp.Compare(a.currency, b.currency))
	}) {
		for _, ids := range c[key].Differ {
			slices.Sort(ids)
		}
		days = append(days, *c[key])
	}
	return days
}

// Rows returns the table for machines: a header, then one row a day and currency. The ids of each difference
// are in a column of their own, separated by blanks.
func (r *Reconciliation) Rows() [][]string {
	header := []string{
		"day", "currency", "stripe_count", "stripe_amount", "ledger_count", "ledger_amount", "accepted_count",
		"accepted_amount",
	}
	for _, kind := range Differences() {
		header = append(header, string(kind))
	}
	rows := [][]string{header}
	for i := range r.Days {
		d := &r.Days[i]
		row := []string{d.Day.Format(time.DateOnly), d.Currency}
		for _, t := range []Totals{d.Paid, d.Ledger, d.Accepted} {
			row = append(row, strconv.Itoa(t.Count), purchase.Major(t.Minor, d.Currency))
		}
		for _, kind := range Differences() {
			row = append(row, strings.Join(d.Differ[kind], " "))
		}
		rows = append(rows, row)
	}
	return rows
}

// One of the index's ranges.
const selectPayments = `
SELECT checkout_session_id, status, reason, amount_minor, COALESCE(currency, ''),
    COALESCE(purchased_at, created_at), sent_minor
FROM public.purchases
WHERE livemode = $1 AND (kind = 'checkout' AND mode = ANY($2) OR kind = 'first_payment' AND $3) AND `

const sqlPayments = selectPayments + `COALESCE(purchased_at, created_at) BETWEEN $4 AND $5`

const sqlPaymentsByID = selectPayments + `checkout_session_id = ANY($4)`

// Payments returns the ledger's payments of a scope, and those of the ids whatever their time, each once.
func (r *Reader) Payments(ctx context.Context, s Scope, ids []string) ([]LedgerPayment, error) {
	read := func(sql string, args ...any) ([]LedgerPayment, error) {
		rows, err := r.db.Pool().Query(ctx, sql, append([]any{s.Livemode, s.Modes, s.FirstPayments}, args...)...)
		if err != nil {
			return nil, fmt.Errorf("read payments: %w", err)
		}
		list, err := ledger.Collect(r.db, "reconcile", rows, scanPayment)
		if err != nil {
			return nil, fmt.Errorf("read payments: %w", err)
		}
		return list, nil
	}
	list, err := read(sqlPayments, s.Since, s.Until)
	if err != nil {
		return nil, err
	}
	seen := make(map[string]bool, len(list))
	for i := range list {
		seen[list[i].ID] = true
	}
	var others []string
	for _, id := range ids {
		if !seen[id] {
			seen[id] = true
			others = append(others, id)
		}
	}
	if len(others) == 0 {
		return list, nil
	}
	more, err := read(sqlPaymentsByID, others)
	return append(list, more...), err
}

func scanPayment(row pgx.CollectableRow) (p LedgerPayment, err error) {
	err = row.Scan(&p.ID, &p.Status, &p.Reason, &p.AmountMinor, &p.Currency, &p.At, &p.SentMinor)
	p.At = p.At.UTC()
	return p, err
}

const sqlReconciliation = `SELECT report FROM public.reconciliations WHERE livemode = $1`

// Reconciliation returns the latest of a mode; its Made is zero where there was none.
func (r *Reader) Reconciliation(ctx context.Context, livemode bool) (latest Reconciliation, err error) {
	var report []byte
	err = r.db.Pool().QueryRow(ctx, sqlReconciliation, livemode).Scan(&report)
	if errors.Is(err, pgx.ErrNoRows) {
		return latest, nil
	}
	if err == nil {
		err = json.Unmarshal(report, &latest)
	}
	if err != nil {
		return latest, fmt.Errorf("read the reconciliation: %w", err)
	}
	return latest, nil
}

const sqlPutReconciliation = `
INSERT INTO public.reconciliations (livemode, made_at, report) VALUES ($1, $2, $3)
ON CONFLICT (livemode) DO UPDATE SET made_at = excluded.made_at, report = excluded.report`

// PutReconciliation stores a reconciliation in place of the one before.
func (r *Reader) PutReconciliation(ctx context.Context, latest Reconciliation) error {
	report, err := json.Marshal(latest)
	if err == nil {
		_, err = r.db.Pool().Exec(ctx, sqlPutReconciliation, latest.Livemode, latest.Made, report)
	}
	if err != nil {
		return fmt.Errorf("store the reconciliation: %w", err)
	}
	return nil
}
