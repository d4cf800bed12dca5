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

// Scope selects the payments of a reconciliation: checkouts of some modes and, if FirstPayments, first
// payments after trials. Trials are no payments, even if they are sent to TikTok.
type Scope struct {
	Since, Until  time.Time
	Livemode      bool
	Modes         []string
	FirstPayments bool
}

// Payment is a paid checkout session, or the first invoice with an amount after a trial.
type Payment struct {
	ID          string
	At          time.Time
	AmountMinor *int64 // nil: unknown
	Currency    string // lower case; "": unknown
}

// LedgerPayment is a payment with its state on the ledger.
type LedgerPayment struct {
	Payment
	Status    purchase.Status
	Reason    purchase.Reason
	SentMinor *int64 // the value that TikTok accepted; nil: none
}

// Difference is a kind of mismatch of Stripe, the ledger and TikTok about a purchase.
type Difference string

// The differences. DiffSkipped and DiffWaiting are expected; the others need a review.
const (
	DiffMissing  Difference = "missing"      // paid at Stripe, not paid on the ledger
	DiffUnknown  Difference = "unknown"      // paid on the ledger, not listed by Stripe
	DiffAmount   Difference = "other_amount" // amount or currency differ
	DiffRejected Difference = "rejected"     // on the ledger, without a usable e-mail address
	DiffDead     Difference = "dead"         // on the ledger, dead-lettered
	DiffSkipped  Difference = "skipped"      // on the ledger, not sent on purpose
	DiffWaiting  Difference = "waiting"      // on the ledger, not yet at TikTok
)

// Differences returns all kinds in display order.
func Differences() []Difference {
	return []Difference{DiffMissing, DiffUnknown, DiffAmount, DiffRejected, DiffDead, DiffSkipped, DiffWaiting}
}

// Meaning returns what a difference means and what to do.
func (d Difference) Meaning() string {
	switch d {
	case DiffMissing:
		return "paid at Stripe, not paid on the ledger; run `ingest backfill`"
	case DiffUnknown:
		return "paid on the ledger, not listed by Stripe under this key; another account's?"
	case DiffAmount:
		return "amount or currency differ; Stripe's is right, TikTok got the ledger's"
	case DiffRejected:
		return "paid without a usable e-mail address; give access by hand"
	case DiffDead:
		return "on the ledger, dead-lettered; see Dead letters on the dashboard, then replay"
	case DiffSkipped:
		return "on the ledger, not sent to TikTok on purpose; the purchase's page has the reason"
	case DiffWaiting:
		return "on the ledger, not delivered to TikTok yet"
	}
	return ""
}

// NeedsReview reports whether an operator must review the difference.
func (d Difference) NeedsReview() bool { return d != DiffSkipped && d != DiffWaiting }

// Reconciliation is the result of comparing Stripe, the ledger and TikTok.
type Reconciliation struct {
	Made     time.Time       `json:"made_at"`
	Since    time.Time       `json:"since"`
	Until    time.Time       `json:"until"`
	Livemode bool            `json:"livemode"`
	Days     []ReconciledDay `json:"days"` // by day and currency
}

// ReconciledDay is one UTC day in one currency.
type ReconciledDay struct {
	Day      time.Time               `json:"day"`
	Currency string                  `json:"currency"` // upper case; "": unknown
	Paid     Totals                  `json:"paid"`     // at Stripe
	Ledger   Totals                  `json:"ledger"`
	Accepted Totals                  `json:"accepted"` // by TikTok, as sent
	Differ   map[Difference][]string `json:"differ,omitempty"`
}

// Totals are a number of purchases and their amount in the currency's smallest unit.
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

// Counts returns the number of purchases per difference.
func (r *Reconciliation) Counts() map[Difference]int {
	counts := make(map[Difference]int)
	for i := range r.Days {
		for d, ids := range r.Days[i].Differ {
			counts[d] += len(ids)
		}
	}
	return counts
}

// ToReview returns the number of differences that need a review.
func (r *Reconciliation) ToReview() (n int) {
	for d, count := range r.Counts() {
		if d.NeedsReview() {
			n += count
		}
	}
	return n
}

// Reconcile compares the payments that Stripe lists with those on the ledger. recorded must hold each id
// once, and every listed payment that the ledger has.
func Reconcile(listed []Payment, recorded []LedgerPayment) []ReconciledDay {
	c := make(comparison)
	onLedger := make(map[string]*LedgerPayment, len(recorded))
	for i := range recorded {
		// A scope has no trials.
		if p := &recorded[i]; purchase.Paid(p.Status, p.Reason, purchase.KindCheckout) {
			onLedger[p.ID] = p
			c.day(&p.Payment).Ledger.add(p.AmountMinor)
			if p.Status == purchase.StatusDelivered {
				c.day(&p.Payment).Accepted.add(p.SentMinor)
			}
		}
	}
	seen := make(map[string]bool, len(listed))
	for i := range listed {
		p := &listed[i]
		if seen[p.ID] {
			continue // two events may concern one payment
		}
		seen[p.ID] = true
		c.day(p).Paid.add(p.AmountMinor)
		found := onLedger[p.ID]
		switch {
		case found == nil:
			c.add(p, DiffMissing)
			continue
		case found.Currency != p.Currency || !equal(found.AmountMinor, p.AmountMinor):
			c.add(p, DiffAmount)
		}
		if d := undelivered(found.Status); d != "" {
			c.add(p, d)
		}
	}
	for id, p := range onLedger {
		if !seen[id] {
			c.add(&p.Payment, DiffUnknown)
		}
	}
	return c.sorted()
}

func equal(a, b *int64) bool { return a == b || a != nil && b != nil && *a == *b }

// undelivered returns why a paid purchase is not at TikTok; "": it is.
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

// comparison is the intermediate result of Reconcile.
type comparison map[dayCurrency]*ReconciledDay

type dayCurrency struct {
	day      int64 // Unix time
	currency string
}

// day returns the entry of a payment's day and currency.
func (c comparison) day(p *Payment) *ReconciledDay {
	day := p.At.UTC().Truncate(24 * time.Hour)
	key := dayCurrency{day.Unix(), p.Currency}
	if c[key] == nil {
		differ := make(map[Difference][]string)
		c[key] = &ReconciledDay{Day: day, Currency: strings.ToUpper(p.Currency), Differ: differ}
	}
	return c[key]
}

func (c comparison) add(p *Payment, d Difference) {
	day := c.day(p)
	day.Differ[d] = append(day.Differ[d], p.ID)
}

func (c comparison) sorted() []ReconciledDay {
	days := make([]ReconciledDay, 0, len(c))
	for _, key := range slices.SortedFunc(maps.Keys(c), func(a, b dayCurrency) int {
		return cmp.Or(cmp.Compare(a.day, b.day), cmp.Compare(a.currency, b.currency))
	}) {
		for _, ids := range c[key].Differ {
			slices.Sort(ids)
		}
		days = append(days, *c[key])
	}
	return days
}

// Rows returns the reconciliation as a table: a header, then one row per day and currency. Each difference
// has a column with its ids, separated by blanks.
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

const selectPayments = `
SELECT checkout_session_id, status, reason, amount_minor, COALESCE(currency, ''),
    COALESCE(purchased_at, created_at), sent_minor
FROM public.purchases
WHERE livemode = $1 AND (kind = 'checkout' AND mode = ANY($2) OR kind = 'first_payment' AND $3) AND `

const sqlPayments = selectPayments + `COALESCE(purchased_at, created_at) BETWEEN $4 AND $5`

const sqlPaymentsByID = selectPayments + `checkout_session_id = ANY($4)`

// Payments returns the payments of a scope, and those with the given ids of any time, each once.
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
	var missing []string
	for _, id := range ids {
		if !seen[id] {
			seen[id] = true
			missing = append(missing, id)
		}
	}
	if len(missing) == 0 {
		return list, nil
	}
	more, err := read(sqlPaymentsByID, missing)
	return append(list, more...), err
}

func scanPayment(row pgx.CollectableRow) (p LedgerPayment, err error) {
	err = row.Scan(&p.ID, &p.Status, &p.Reason, &p.AmountMinor, &p.Currency, &p.At, &p.SentMinor)
	p.At = p.At.UTC()
	return p, err
}

const sqlReconciliation = `SELECT report FROM public.reconciliations WHERE livemode = $1`

// Reconciliation returns the latest one of a mode; Made is zero if there is none.
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
		return latest, fmt.Errorf("read reconciliation: %w", err)
	}
	return latest, nil
}

const sqlPutReconciliation = `
INSERT INTO public.reconciliations (livemode, made_at, report) VALUES ($1, $2, $3)
ON CONFLICT (livemode) DO UPDATE SET made_at = excluded.made_at, report = excluded.report`

// PutReconciliation replaces the stored reconciliation of a mode.
func (r *Reader) PutReconciliation(ctx context.Context, latest Reconciliation) error {
	report, err := json.Marshal(latest)
	if err == nil {
		_, err = r.db.Pool().Exec(ctx, sqlPutReconciliation, latest.Livemode, latest.Made, report)
	}
	if err != nil {
		return fmt.Errorf("store reconciliation: %w", err)
	}
	return nil
}
