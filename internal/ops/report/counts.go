package report

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/ledger"
)

// CountedDays is how many UTC days of TikTok's counts are reported, today included.
const CountedDays = 31

// Counts compares the ledger with what TikTok counts, by UTC day.
type Counts struct {
	Livemode bool         `json:"livemode"` // live purchases are compared; without any, tests
	Event    string       `json:"event"`    // the event type of purchases, as TikTok lists it; "": see Findings
	AskedAt  time.Time    `json:"asked_at"` // the latest answer; zero: none
	Days     []CountedDay `json:"days"`     // those that TikTok was asked about, oldest first
	Types    []TypeCount  `json:"event_types"`
	Findings []Finding    `json:"findings"`
}

// CountedDay is one UTC day.
type CountedDay struct {
	Day        time.Time `json:"day"`
	Stripe     *int      `json:"stripe"`   // paid, by the last reconciliation; nil: unknown
	Ledger     int       `json:"ledger"`   // paid
	Accepted   int       `json:"accepted"` // by TikTok
	Server     int       `json:"server"`   // counted by TikTok
	Browser    int       `json:"browser"`  // counted by TikTok
	Total      int       `json:"total"`    // counted by TikTok
	Attributed int       `json:"attributed"`
	AskedAt    time.Time `json:"asked_at"`
	ChangedAt  time.Time `json:"changed_at"` // the last change of a count; zero: longer than 30 days ago
}

// TypeCount is an event type that TikTok lists, with its sums over the days.
type TypeCount struct {
	Event      string `json:"event"`
	Total      int    `json:"total"`
	Browser    int    `json:"browser"`
	Server     int    `json:"server"`
	Attributed int    `json:"attributed"`
}

// FindingKind is a kind of difference between the ledger and TikTok's counts.
type FindingKind string

// The kinds. CountAttributed is no difference.
const (
	CountNone       FindingKind = "counts_none"  // TikTok counts nothing that it accepted
	CountFewer      FindingKind = "counts_fewer" // TikTok counts fewer than it accepted
	CountMore       FindingKind = "counts_more"  // TikTok counts more from servers than it accepted
	CountBrowser    FindingKind = "browser_more" // the browser pixel reports more than there were sales
	CountType       FindingKind = "event_type"   // the event type of purchases is unknown
	CountStale      FindingKind = "stale"        // no answer for a day
	CountAttributed FindingKind = "attributed"
)

// FindingKinds returns the kinds in display order.
func FindingKinds() []FindingKind {
	return []FindingKind{CountType, CountStale, CountNone, CountFewer, CountMore, CountBrowser, CountAttributed}
}

// Finding is what a comparison shows, in words.
type Finding struct {
	Kind   FindingKind `json:"kind"`
	Text   string      `json:"text"`   // a sentence without full stop
	Remedy string      `json:"remedy"` // sentences, or ""
	Days   []time.Time `json:"days"`
}

// Difference reports whether the finding needs a look.
func (f *Finding) Difference() bool { return f.Kind != CountAttributed }

// CountRow is what TikTok counts of one event type on one UTC day.
type CountRow struct {
	Event                              string
	Day                                time.Time
	Total, Browser, Server, Attributed int
	AskedAt, ChangedAt                 time.Time
}

// SalesDay is the ledger's side of one UTC day, without trials.
type SalesDay struct {
	Day            time.Time
	Livemode       bool
	Paid, Accepted int
}

// EventNames say under which event type TikTok lists purchases.
type EventNames struct {
	Setting string // TIKTOK_STATS_EVENT; "": one of TikTok's names for purchases, or Sent
	Sent    string // TIKTOK_EVENT_NAME
}

// matches reports whether an event type is the purchases', case, blanks and underscores apart.
func (n EventNames) matches(event string) bool {
	names := []string{"SHOPPING", "COMPLETE_PAYMENT", "PURCHASE", n.Sent}
	if n.Setting != "" {
		names = []string{n.Setting}
	}
	return slices.ContainsFunc(names, func(name string) bool {
		return name != "" && plainName(name) == plainName(event)
	})
}

func plainName(s string) string {
	return strings.ToUpper(strings.NewReplacer("_", "", " ", "", "-", "").Replace(s))
}

// CompareCounts compares TikTok's counts with the ledger and with Stripe's payments by day, nil where
// unknown. Several pixels' counts of one event type and day are added up.
func CompareCounts(
	rows []CountRow, sales []SalesDay, stripe map[time.Time]int, names EventNames, now time.Time,
) Counts {
	c := Counts{Days: []CountedDay{}, Findings: []Finding{}, Types: typesOf(rows)}
	if len(rows) == 0 {
		return c
	}
	c.Livemode = slices.ContainsFunc(sales, func(s SalesDay) bool { return s.Livemode && s.Paid > 0 })
	event, unknown := purchasesType(c.Types, names)
	c.Event = event
	days := make(map[time.Time]*CountedDay)
	for _, r := range rows {
		d := days[r.Day]
		if d == nil {
			d = &CountedDay{Day: r.Day}
			if n, known := stripe[r.Day]; known {
				d.Stripe = &n
			}
			days[r.Day] = d
		}
		if r.AskedAt.After(d.AskedAt) {
			d.AskedAt = r.AskedAt
		}
		if r.AskedAt.After(c.AskedAt) {
			c.AskedAt = r.AskedAt
		}
		if event == "" || plainName(r.Event) != plainName(event) {
			continue
		}
		d.Total, d.Browser, d.Server = d.Total+r.Total, d.Browser+r.Browser, d.Server+r.Server
		d.Attributed += r.Attributed
		if r.ChangedAt.After(d.ChangedAt) {
			d.ChangedAt = r.ChangedAt
		}
	}
	for _, s := range sales {
		if d := days[s.Day]; d != nil && s.Livemode == c.Livemode {
			d.Ledger, d.Accepted = d.Ledger+s.Paid, d.Accepted+s.Accepted
		}
	}
	for _, day := range slices.SortedFunc(maps.Keys(days), time.Time.Compare) {
		c.Days = append(c.Days, *days[day])
	}
	if unknown != nil {
		c.Findings = append(c.Findings, *unknown)
	}
	if age := now.Sub(c.AskedAt); age > staleAfter {
		c.Findings = append(c.Findings, Finding{
			Kind: CountStale, Text: fmt.Sprintf("TikTok's counts are %d hours old", int(age.Hours())),
			Remedy: "Check that a worker runs with TIKTOK_ADVERTISER_ID, and its log.", Days: []time.Time{},
		})
	}
	if event != "" {
		c.Findings = append(c.Findings, findDifferences(c.Days)...)
	}
	return c
}

// typesOf sums the rows by event type, largest first. Names that differ in case or underscores are one.
func typesOf(rows []CountRow) []TypeCount {
	sums := make(map[string]*TypeCount)
	for _, r := range rows {
		t := sums[plainName(r.Event)]
		if t == nil {
			t = &TypeCount{Event: r.Event}
			sums[plainName(r.Event)] = t
		}
		t.Total, t.Browser, t.Server = t.Total+r.Total, t.Browser+r.Browser, t.Server+r.Server
		t.Attributed += r.Attributed
	}
	list := make([]TypeCount, 0, len(sums))
	for _, t := range sums {
		list = append(list, *t)
	}
	slices.SortFunc(list, func(a, b TypeCount) int {
		return cmp.Or(cmp.Compare(b.Total, a.Total), cmp.Compare(a.Event, b.Event))
	})
	return list
}

// purchasesType picks the event type of purchases: the only known one with a count, or one without any if no
// type has a count. Otherwise the finding says what to set.
func purchasesType(types []TypeCount, names EventNames) (event string, unknown *Finding) {
	var counted, empty, all []string
	for _, t := range types {
		switch {
		case names.matches(t.Event) && t.Total > 0:
			counted = append(counted, t.Event)
		case names.matches(t.Event):
			empty = append(empty, t.Event)
		}
		all = append(all, t.Event)
	}
	const remedy = "Set TIKTOK_STATS_EVENT of ingest to the one that Ads Manager uses for purchases."
	switch {
	case len(counted) == 1:
		return counted[0], nil
	case len(counted) > 1:
		return "", &Finding{
			Kind: CountType, Text: "TikTok lists purchases under several event types: " + strings.Join(counted, ", "),
			Remedy: remedy, Days: []time.Time{},
		}
	case len(empty) > 0:
		return empty[0], nil
	}
	return "", &Finding{
		Kind: CountType, Text: "TikTok lists no known event type of purchases, but " + strings.Join(all, ", "),
		Remedy: remedy, Days: []time.Time{},
	}
}

// Limits below which a difference is not reported. Counts of the last days still rise.
const (
	settledAfter = 48 * time.Hour // from the end of a day to the answer
	staleAfter   = 26 * time.Hour

	fewerMin, fewerShare     = 3, 0.02
	moreMin, moreShare       = 5, 0.10 // TikTok may count repeats
	browserMin, browserShare = 5, 0.20
)

// findDifferences names the differences of the days, oldest first.
func findDifferences(days []CountedDay) (list []Finding) {
	over := countSurplus(days)
	var settled, whole []dayFigures
	for i := range days {
		d := &days[i]
		end := d.Day.AddDate(0, 0, 1)
		f := dayFigures{CountedDay: d, over: over[i]}
		if !d.AskedAt.Before(end) {
			whole = append(whole, f)
		}
		if !d.AskedAt.Before(end.Add(settledAfter)) {
			settled = append(settled, f)
		}
	}
	accepted := func(d dayFigures) int { return d.Accepted }
	sales := func(d dayFigures) int { return max(d.Ledger, d.Accepted) }

	missing := unusual(settled, func(d dayFigures) int { return max(0, -d.over) }, accepted,
		fewerMin, fewerShare)
	lost := func(d dayFigures) bool { return -d.over == d.Accepted }
	none := slices.DeleteFunc(slices.Clone(missing), func(d dayFigures) bool { return !lost(d) })
	if len(none) > 0 {
		n := sumOf(none, accepted)
		list = append(list, newFinding(CountNone, none,
			fmt.Sprintf("TikTok counts none of the %s that it accepted", events(n)),
			"See the pixel's diagnostics in Events Manager. TikTok has the events: a replay changes nothing."))
	}
	if fewer := slices.DeleteFunc(missing, lost); len(fewer) > 0 {
		n, of := sumOf(fewer, func(d dayFigures) int { return -d.over }), sumOf(fewer, accepted)
		list = append(list, newFinding(CountFewer, fewer,
			fmt.Sprintf("TikTok counts %d fewer than it accepted (%d of %d)", n, of-n, of),
			"See the pixel's diagnostics in Events Manager. TikTok has the events: a replay changes nothing."))
	}
	more := unusual(whole, func(d dayFigures) int { return d.over }, accepted, moreMin, moreShare)
	if len(more) > 0 {
		list = append(list, newFinding(CountMore, more,
			fmt.Sprintf("TikTok counts %d more from servers than it accepted from here", sumOf(more,
				func(d dayFigures) int { return d.over })),
			"Find what else sends this event to the pixel: another server, an app, a partner integration, a test."))
	}
	browser := unusual(whole, func(d dayFigures) int { return d.Browser - sales(d) }, sales,
		browserMin, browserShare)
	if len(browser) > 0 {
		sent, sold := sumOf(browser, func(d dayFigures) int { return d.Browser }), sumOf(browser, sales)
		text := fmt.Sprintf("The browser pixel sends %s although there were no sales", events(sent))
		if sold > 0 {
			text = fmt.Sprintf("The browser pixel sends %s more than there were sales: "+
				"it fires on a page that reloads", percentOf(sent-sold, sold))
		}
		list = append(list, newFinding(CountBrowser, browser, text,
			"Send the browser's event once an order, with the checkout session's id as its event_id."))
	}
	if total := sumOf(settled, func(d dayFigures) int { return d.Total }); total > 0 {
		attributed := sumOf(settled, func(d dayFigures) int { return d.Attributed })
		list = append(list, newFinding(CountAttributed, settled,
			"TikTok attributes "+percentOf(attributed, total)+" of the events that it counts to your ads", ""))
	}
	return list
}

// dayFigures is a day with what TikTok counts from servers beyond what it accepted.
type dayFigures struct {
	*CountedDay
	over int
}

// countSurplus returns, by day, how many more events TikTok counts from servers than it accepted. An event
// may be counted on the day of its arrival: a day's shortage is made up for by the surplus of the next two.
func countSurplus(days []CountedDay) []int {
	over := make([]int, len(days))
	for i := range days {
		over[i] = days[i].Server - days[i].Accepted
	}
	for i := range days {
		for k := i + 1; k < len(days) && days[k].Day.Sub(days[i].Day) <= 48*time.Hour; k++ {
			if over[i] < 0 && over[k] > 0 {
				n := min(-over[i], over[k])
				over[i], over[k] = over[i]+n, over[k]-n
			}
		}
	}
	return over
}

// unusual returns the days whose part is at least the minimum and more than share of the whole. If there is
// none, but the sum of the parts is unusual, it returns the days with a part: few sales a day hide a constant
// difference.
func unusual(days []dayFigures, part, whole func(d dayFigures) int, minimum int, share float64) []dayFigures {
	exceeds := func(n, of int) bool { return n >= minimum && float64(n) > share*float64(of) }
	list := slices.DeleteFunc(slices.Clone(days), func(d dayFigures) bool { return !exceeds(part(d), whole(d)) })
	if len(list) > 0 || !exceeds(sumOf(days, part), sumOf(days, whole)) {
		return list
	}
	return slices.DeleteFunc(slices.Clone(days), func(d dayFigures) bool { return part(d) <= 0 })
}

func sumOf(days []dayFigures, value func(d dayFigures) int) (n int) {
	for _, d := range days {
		n += value(d)
	}
	return n
}

func newFinding(kind FindingKind, days []dayFigures, text, remedy string) Finding {
	f := Finding{Kind: kind, Text: text, Remedy: remedy, Days: []time.Time{}}
	for _, d := range days {
		f.Days = append(f.Days, d.Day)
	}
	return f
}

func events(n int) string {
	if n == 1 {
		return "1 event"
	}
	return strconv.Itoa(n) + " events"
}

// percentOf returns a share in whole percent.
func percentOf(n, of int) string { return fmt.Sprintf("%.0f %%", 100*float64(n)/float64(of)) }

// CountsHeader returns the column names of Counts.CSV.
func CountsHeader() []string {
	return []string{
		"day", "stripe_count", "ledger_count", "accepted_count", "counted_server", "counted_browser",
		"counted_total", "attributed", "asked_at", "findings",
	}
}

// CSV returns a header and one row per UTC day, with the kinds of its differences separated by blanks.
func (c *Counts) CSV() [][]string {
	rows := [][]string{CountsHeader()}
	for i := range c.Days {
		d := &c.Days[i]
		var kinds []string
		for _, f := range c.Findings {
			if f.Difference() && slices.Contains(f.Days, d.Day) {
				kinds = append(kinds, string(f.Kind))
			}
		}
		row := []string{d.Day.Format(time.DateOnly), integer(d.Stripe)}
		for _, n := range []int{d.Ledger, d.Accepted, d.Server, d.Browser, d.Total, d.Attributed} {
			row = append(row, strconv.Itoa(n))
		}
		rows = append(rows, append(row, isoTime(&d.AskedAt), strings.Join(kinds, " ")))
	}
	return rows
}

const sqlCounts = `
SELECT c.event, c.day, c.total, c.browser, c.server, c.attributed, c.asked_at,
    (SELECT max(h.asked_at) FROM public.tiktok_count_history h
        WHERE h.pixel_id = c.pixel_id AND h.event = c.event AND h.day = c.day)
FROM public.tiktok_counts c WHERE c.day >= $1::date AND c.day <= $2::date
ORDER BY c.day, c.event, c.pixel_id`

// Sales by UTC day: the totals, and the changes that are not folded yet.
const sqlSalesDays = `
SELECT livemode, day, sum(paid)::bigint, sum(accepted)::bigint FROM (
    SELECT livemode, at AS day, paid, accepted FROM public.rollup_sales WHERE daily AND at >= $1
    UNION ALL
    SELECT livemode, date_trunc('day', at, 'UTC'), paid, accepted FROM (
        SELECT at, livemode, ` + saleTerms + ` FROM public.rollup_changes WHERE at >= $1 AND ` + paidState + `
    ) sale
) d GROUP BY livemode, day`

// Counts reads what TikTok counts on the last 31 UTC days and compares it. Without an answer of TikTok it has
// no days and no findings.
func (r *Reader) Counts(ctx context.Context, names EventNames, now time.Time) (Counts, error) {
	today := now.UTC().Truncate(24 * time.Hour)
	since := today.AddDate(0, 0, 1-CountedDays)
	var rows []CountRow
	var sales []SalesDay
	err := pgx.BeginTxFunc(ctx, r.db.Pool(), snapshot(), func(tx pgx.Tx) error {
		var batch pgx.Batch
		batch.Queue(sqlCounts, since, today.AddDate(0, 0, 1)).Query(func(found pgx.Rows) (err error) {
			rows, err = ledger.Collect(r.db, "reconcile", found, scanCount)
			return err
		})
		batch.Queue(sqlSalesDays, since).Query(func(found pgx.Rows) (err error) {
			sales, err = ledger.Collect(r.db, "reconcile", found, scanSales)
			return err
		})
		return tx.SendBatch(ctx, &batch).Close()
	})
	if err != nil {
		return Counts{}, fmt.Errorf("read TikTok's counts: %w", err)
	}
	live := slices.ContainsFunc(sales, func(s SalesDay) bool { return s.Livemode && s.Paid > 0 })
	latest, err := r.Reconciliation(ctx, live)
	if err != nil {
		return Counts{}, err
	}
	return CompareCounts(rows, sales, latest.paidByDay(), names, now), nil
}

func scanSales(row pgx.CollectableRow) (s SalesDay, err error) {
	err = row.Scan(&s.Livemode, &s.Day, &s.Paid, &s.Accepted)
	s.Day = s.Day.UTC()
	return s, err
}

func scanCount(row pgx.CollectableRow) (c CountRow, err error) {
	var changed *time.Time
	err = row.Scan(&c.Event, &c.Day, &c.Total, &c.Browser, &c.Server, &c.Attributed, &c.AskedAt, &changed)
	c.Day, c.AskedAt, c.ChangedAt = c.Day.UTC(), c.AskedAt.UTC(), ledger.OrZero(changed).UTC()
	return c, err
}

// paidByDay returns Stripe's payments of each whole UTC day that was compared.
func (r *Reconciliation) paidByDay() map[time.Time]int {
	paid := make(map[time.Time]int)
	if r.Made.IsZero() {
		return paid
	}
	first := r.Since.UTC().Truncate(24 * time.Hour)
	if first.Before(r.Since) {
		first = first.AddDate(0, 0, 1)
	}
	for day := first; !day.AddDate(0, 0, 1).After(r.Until); day = day.AddDate(0, 0, 1) {
		paid[day] = 0
	}
	for i := range r.Days {
		if _, whole := paid[r.Days[i].Day.UTC()]; whole {
			paid[r.Days[i].Day.UTC()] += r.Days[i].Paid.Count
		}
	}
	return paid
}
