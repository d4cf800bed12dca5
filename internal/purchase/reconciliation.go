package purchase

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
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

// Standing is one payment as the ledger has it.
type Standing struct {
	Payment
	Status    Status
	Reason    Reason
	SentMinor *int64 // the value that TikTok accepted; nil: none
}

// Difference is a way in which the three books, Stripe's, the ledger's and TikTok's, disagree about a purchase.
type Difference string

// The differences. Waiting and skipped ones are as they should be, so far; the others need somebody.
const (
	Missing     Difference = "missing"      // paid at Stripe, not paid on the ledger: a backfill brings it
	Unheard     Difference = "unknown"      // paid on the ledger, not at Stripe: of another account, or the key's other mode
	OtherAmount Difference = "other_amount" // amount or currency differ
	NoAddress   Difference = "rejected"     // on the ledger, without a usable e-mail address
	GivenUp     Difference = "dead"         // on the ledger, not at TikTok: given up on
	LeftOut     Difference = "skipped"      // on the ledger, not at TikTok, on purpose
	UnderWay    Difference = "waiting"      // on the ledger, not yet at TikTok
)

// Differences lists each once, in the order in which people are told.
func Differences() []Difference {
	return []Difference{Missing, Unheard, OtherAmount, NoAddress, GivenUp, LeftOut, UnderWay}
}

// Meaning says what a difference is, and what to do about it.
func (d Difference) Meaning() string {
	switch d {
	case Missing:
		return "paid at Stripe, and the ledger does not have it as paid; `ingest backfill` brings it"
	case Unheard:
		return "paid on the ledger, and Stripe does not list it under this key: of another account, or its events were never this account's"
	case OtherAmount:
		return "amount or currency differ; Stripe's is right, TikTok got the ledger's"
	case NoAddress:
		return "paid without a usable e-mail address; give access by hand"
	case GivenUp:
		return "on the ledger, given up on; see the dashboard's page Dead letters, and replay"
	case LeftOut:
		return "on the ledger, not sent to TikTok on purpose; the purchase's page says why"
	case UnderWay:
		return "on the ledger, on its way to TikTok"
	}
	return ""
}

// Needs says whether somebody must look after a difference.
func (d Difference) Needs() bool { return d != LeftOut && d != UnderWay }

// Reconciliation holds Stripe's book against the ledger's against TikTok's acceptances.
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
	Paid     Takings                 `json:"paid"`     // at Stripe
	Ledger   Takings                 `json:"ledger"`
	Accepted Takings                 `json:"accepted"` // by TikTok, with the values that were sent
	Differ   map[Difference][]string `json:"differ,omitempty"`
}

// Takings are purchases and their money, in the currency's smallest unit.
type Takings struct {
	Count int   `json:"count"`
	Minor int64 `json:"minor"`
}

func (t *Takings) add(minor *int64) {
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

// Open counts the differences that somebody must look after.
func (r *Reconciliation) Open() (n int) {
	for d, count := range r.Counts() {
		if d.Needs() {
			n += count
		}
	}
	return n
}

// Reconcile compares the books. paid are Stripe's payments since a time; standings are the ledger's rows of that time, and those of
// the payments whatever their time, each id once.
func Reconcile(paid []Payment, standings []Standing) []ReconciledDay {
	b := make(comparison)
	at := make(map[string]*Standing, len(standings))
	for i := range standings {
		if s := &standings[i]; rank(s.Status, s.Reason) == 5 || s.Status == StatusRejected {
			at[s.ID] = s
			b.of(&s.Payment).Ledger.add(s.AmountMinor)
			if s.Status == StatusDelivered {
				b.of(&s.Payment).Accepted.add(s.SentMinor)
			}
		}
	}
	known := make(map[string]bool, len(paid))
	for i := range paid {
		p := &paid[i]
		if known[p.ID] {
			continue // two events may tell of one payment
		}
		known[p.ID] = true
		b.of(p).Paid.add(p.AmountMinor)
		s := at[p.ID]
		switch {
		case s == nil:
			b.differ(p, Missing)
			continue
		case s.Currency != p.Currency || !equal(s.AmountMinor, p.AmountMinor):
			b.differ(p, OtherAmount)
		}
		if d := undelivered(s.Status); d != "" {
			b.differ(p, d)
		}
	}
	for id, s := range at {
		if !known[id] {
			b.differ(&s.Payment, Unheard)
		}
	}
	return b.sorted()
}

func equal(a, b *int64) bool { return a == b || a != nil && b != nil && *a == *b }

// undelivered says why a paid purchase is not at TikTok; "": it is.
func undelivered(s Status) Difference {
	switch s {
	case StatusDelivered:
		return ""
	case StatusDead:
		return GivenUp
	case StatusSkipped:
		return LeftOut
	case StatusRejected:
		return NoAddress
	default:
		return UnderWay
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
		c[key] = &ReconciledDay{Day: day, Currency: strings.ToUpper(p.Currency), Differ: make(map[Difference][]string)}
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

// Rows are the table for machines: a header, then one row a day and currency. The ids of each difference stand in a column of their own,
// apart by blanks; an id has none.
func (r *Reconciliation) Rows() [][]string {
	header := []string{"day", "currency", "stripe_count", "stripe_amount", "ledger_count", "ledger_amount", "accepted_count", "accepted_amount"}
	for _, kind := range Differences() {
		header = append(header, string(kind))
	}
	rows := [][]string{header}
	for i := range r.Days {
		d := &r.Days[i]
		row := []string{d.Day.Format(time.DateOnly), d.Currency}
		for _, t := range []Takings{d.Paid, d.Ledger, d.Accepted} {
			row = append(row, strconv.Itoa(t.Count), Major(t.Minor, d.Currency))
		}
		for _, kind := range Differences() {
			row = append(row, strings.Join(d.Differ[kind], " "))
		}
		rows = append(rows, row)
	}
	return rows
}
