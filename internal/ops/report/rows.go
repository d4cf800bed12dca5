package report

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/ledger"
	"purchase-relay/internal/purchase"
)

// ErrNotFound reports that the ledger has no such purchase or customer.
var ErrNotFound = errors.New("not found in the ledger")

// Row is one purchase. In JSON it has the ledger's columns as field names. The buyer's address is left out.
type Row struct {
	ID             string          `json:"checkout_session_id"`
	Status         purchase.Status `json:"status"`
	Reason         purchase.Reason `json:"reason"`
	ProfileID      *string         `json:"profile_id"`
	Mode           string          `json:"mode"`
	Livemode       bool            `json:"livemode"`
	AmountMinor    *int64          `json:"amount_minor"`
	Currency       *string         `json:"currency"`
	PurchasedAt    *time.Time      `json:"purchased_at"`
	Customer       *string         `json:"stripe_customer_id"`
	Subscription   *string         `json:"stripe_subscription_id"`
	Payment        *string         `json:"stripe_payment_id"` // payment intent, or a subscription's invoice
	Generation     int             `json:"generation"`        // from 1; raised by replays and the sweeper
	FirstPublished *time.Time      `json:"first_published_at"`
	Published      *time.Time      `json:"published_at"`
	Sequence       *int64          `json:"stream_sequence"`
	Swept          *time.Time      `json:"swept_at"`
	AttemptCount   int             `json:"attempts"`
	LastAttempt    *time.Time      `json:"last_attempt_at"`
	NextAttempt    *time.Time      `json:"next_attempt_at"` // while retrying; nil: unknown
	LastClass      *string         `json:"last_class"`
	LastCode       *int            `json:"last_code"`
	LastError      *string         `json:"last_error"`
	RequestID      *string         `json:"tiktok_request_id"` // of the accepting attempt, else of the last one
	Finished       *time.Time      `json:"finished_at"`
	Created        time.Time       `json:"created_at"`
	Updated        time.Time       `json:"updated_at"`
	Kind           purchase.Kind   `json:"kind"`
	TrialSession   *string         `json:"trial_session_id"`
	SentMinor      *int64          `json:"sent_minor"` // the value that TikTok accepted

	KeyMask  *int16  `json:"-"` // match keys of the message, by Mask's bits; nil: never a message
	SentPage *string `json:"-"` // the worker's default page, if sent

	// Only Get and Search fill these.
	Envelope     []byte     `json:"-"` // the stored message; nil: never one, or dropped
	FirstPayment *string    `json:"-"` // a trial's first payment
	Converted    *time.Time `json:"-"` // when the first payment was recorded
	Events       []Event    `json:"-"` // by time of receipt
	Attempts     []Attempt  `json:"-"` // by time
}

// Event is a Stripe event about a purchase and its disposition.
type Event struct {
	ID          string               `json:"event_id"`
	Type        string               `json:"type"`
	Created     *time.Time           `json:"created_at"` // Stripe's own time, whole seconds
	Received    time.Time            `json:"received_at"`
	Disposition purchase.Disposition `json:"disposition"`
	Backfilled  bool                 `json:"caught_up"` // found by a backfill, not received by webhook
	Account     *string              `json:"account"`   // connected account; nil: the endpoint's own
}

// Attempt is one call to TikTok for a purchase.
type Attempt struct {
	ID         string         `json:"attempt_id"`
	Generation int            `json:"generation"`
	At         time.Time      `json:"at"`
	TookMS     int64          `json:"took_ms"`
	Class      purchase.Class `json:"class"`
	Code       *int           `json:"code"`
	Message    string         `json:"message"`
	RequestID  string         `json:"request_id"`
}

// Took returns the duration of the call.
func (a *Attempt) Took() time.Duration { return time.Duration(a.TookMS) * time.Millisecond }

// At returns when the purchase was paid or, while unpaid, first received.
func (r *Row) At() time.Time {
	if r.PurchasedAt != nil {
		return *r.PurchasedAt
	}
	return r.Created
}

// Sent returns what TikTok accepted; nil: nothing.
func (r *Row) Sent() *purchase.Sent {
	if r.Status != purchase.StatusDelivered {
		return nil
	}
	keys := ledger.OrZero(r.KeyMask) &^ purchase.LateClickMask
	return &purchase.Sent{Keys: keys, Minor: r.SentMinor, Page: ledger.OrZero(r.SentPage)}
}

// Position returns the row's position in a list.
func (r *Row) Position() Position { return Position{At: r.At(), ID: r.ID} }

// Filter selects rows, newest first. The zero value selects all. Lists select any of their values, nil lists
// all.
type Filter struct {
	Query       string // see List; "": any
	Statuses    []purchase.Status
	Livemode    *bool
	Reasons     []purchase.Reason
	NotReasons  []purchase.Reason
	Kinds       []purchase.Kind
	FirstSale   *bool     // the profile's first sale
	Code        *int      // TikTok's last code
	NoCode      bool      // only rows without a code
	From, Until time.Time // zero: open; Until is not included
	After       Position  // zero: from the newest
	Limit       int       // above 0
}

// Sales narrows a filter to the sales in a state; "": in any.
func (f *Filter) Sales(state purchase.SaleState) {
	f.Kinds = both(f.Kinds, []purchase.Kind{purchase.KindCheckout, purchase.KindFirstPayment})
	var states []purchase.Status
	for _, s := range purchase.Statuses() {
		for _, r := range []purchase.Reason{purchase.ReasonNone, purchase.ReasonInternal} { // both kinds of skips
			is := purchase.StateOfSale(s, r, purchase.KindCheckout)
			if is != "" && (state == "" || is == state) && !slices.Contains(states, s) {
				states = append(states, s)
			}
		}
	}
	f.Statuses = both(f.Statuses, states)
	f.NotReasons = append(f.NotReasons, purchase.ReasonNoPayment)
	switch state {
	case purchase.SaleNotAccepted:
		f.NotReasons = append(f.NotReasons, purchase.LeftOutReasons()...)
	case purchase.SaleLeftOut:
		f.Reasons = both(f.Reasons, purchase.LeftOutReasons())
	default: // other states have no skipped sales, or all
	}
}

// Buyers narrows a filter to the sales to new or to returning buyers.
func (f *Filter) Buyers(firstSale bool) {
	f.Sales("")
	f.FirstSale = &firstSale
	known := slices.DeleteFunc(slices.Clone(f.Statuses), func(s purchase.Status) bool {
		return s == purchase.StatusRejected
	})
	f.Statuses = known
}

// Between narrows a filter to a period.
func (f *Filter) Between(from, until time.Time) {
	if from.After(f.From) {
		f.From = from
	}
	if f.Until.IsZero() || until.Before(f.Until) {
		f.Until = until
	}
}

// both returns the values of list, nil standing for all, that are in only. It is never nil.
func both[T comparable](list, only []T) []T {
	if list == nil {
		return only
	}
	return slices.DeleteFunc(slices.Clone(list), func(v T) bool { return !slices.Contains(only, v) })
}

// Position is a position in a list, newest first.
type Position struct {
	At time.Time
	ID string
}

// Cursor encodes a position.
func (p Position) Cursor() string {
	return base64.RawURLEncoding.EncodeToString([]byte(strconv.FormatInt(p.At.UnixMicro(), 10) + "." + p.ID))
}

var errCursor = errors.New("invalid cursor")

// ParseCursor decodes a cursor. "" is the zero position.
func ParseCursor(text string) (Position, error) {
	if text == "" {
		return Position{}, nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || len(raw) > 300 {
		return Position{}, errCursor
	}
	micros, id, ok := strings.Cut(string(raw), ".")
	at, err := strconv.ParseInt(micros, 10, 64)
	if !ok || err != nil || !purchase.ValidID(id) || at < 0 || at > maxMicros {
		return Position{}, errCursor
	}
	return Position{At: time.UnixMicro(at).UTC(), ID: id}, nil
}

// maxMicros is the end of the year 9999.
const maxMicros = 253402300799_999999

const columns = `
    checkout_session_id, status, reason, profile_id::text, mode, livemode, amount_minor, currency,
    purchased_at, stripe_customer_id, stripe_subscription_id, stripe_payment_id, generation,
    first_published_at, published_at, stream_sequence, swept_at, attempts, last_attempt_at, next_attempt_at,
    last_class, last_code, last_error, tiktok_request_id, finished_at, created_at, updated_at, kind,
    trial_session_id, sent_minor, match_keys, sent_page`

func scanRow(row pgx.CollectableRow) (r Row, err error) {
	err = row.Scan(&r.ID, &r.Status, &r.Reason, &r.ProfileID, &r.Mode, &r.Livemode, &r.AmountMinor, &r.Currency,
		&r.PurchasedAt, &r.Customer, &r.Subscription, &r.Payment, &r.Generation, &r.FirstPublished, &r.Published,
		&r.Sequence, &r.Swept, &r.AttemptCount, &r.LastAttempt, &r.NextAttempt, &r.LastClass, &r.LastCode,
		&r.LastError, &r.RequestID, &r.Finished, &r.Created, &r.Updated, &r.Kind, &r.TrialSession, &r.SentMinor,
		&r.KeyMask, &r.SentPage)
	for _, at := range []*time.Time{
		r.PurchasedAt, r.FirstPublished, r.Published, r.Swept, r.LastAttempt, r.NextAttempt, r.Finished,
		&r.Created, &r.Updated,
	} {
		if at != nil {
			*at = at.UTC()
		}
	}
	return r, err
}

// A page of a list: $1 modes, $2 to $3 the time, $4 and $5 the position after which the page starts, $6
// reasons, $7 excluded reasons, $8 limit, $9 code, $10 without a code, $11 first sale, $12 kinds, $13
// statuses.
const page = `COALESCE(purchased_at, created_at) >= $2::timestamptz
        AND COALESCE(purchased_at, created_at) < $3::timestamptz
        AND COALESCE(purchased_at, created_at) <= $4::timestamptz
        AND (COALESCE(purchased_at, created_at) < $4::timestamptz OR checkout_session_id < $5)
        AND ($6::text[] IS NULL OR reason = ANY($6)) AND NOT reason = ANY($7::text[])
        AND ($9::int IS NULL OR last_code = $9) AND (NOT $10::boolean OR last_code IS NULL)
        AND ($11::boolean IS NULL OR first_sale = $11)`

const newestFirst = `
    ORDER BY COALESCE(purchased_at, created_at) DESC, checkout_session_id DESC LIMIT $8`

const ofKind = ` AND ($12::text[] IS NULL OR kind = ANY($12))`

const ofStatus = ` AND ($13::text[] IS NULL OR status = ANY($13))`

// Each combination of the values of an index is read in its order, up to the limit, then all are merged.
const sqlList = `
SELECT` + columns + `
FROM unnest($1::boolean[]) m (live) CROSS JOIN LATERAL (SELECT` + columns + `
    FROM public.purchases WHERE livemode = m.live AND ` + page + ofKind + ofStatus + newestFirst + `
) p` + newestFirst

const sqlListByStatus = `
SELECT` + columns + `
FROM unnest($1::boolean[]) m (live) CROSS JOIN unnest($13::text[]) s (one)
CROSS JOIN LATERAL (SELECT` + columns + `
    FROM public.purchases WHERE status = s.one AND livemode = m.live AND ` + page + ofKind + newestFirst + `
) p` + newestFirst

const sqlListByReason = `
SELECT` + columns + `
FROM unnest($6::text[]) r (one) CROSS JOIN LATERAL (SELECT` + columns + `
    FROM public.purchases WHERE reason <> '' AND reason = r.one AND livemode = ANY($1) AND ` + page + ofKind +
	ofStatus + newestFirst + `
) p` + newestFirst

const sqlListByKind = `
SELECT` + columns + `
FROM unnest($12::text[]) k (one) CROSS JOIN LATERAL (SELECT` + columns + `
    FROM public.purchases WHERE kind <> 'checkout' AND kind = k.one AND livemode = ANY($1) AND ` + page +
	ofStatus + newestFirst + `
) p` + newestFirst

const bothModes = `
SELECT` + columns + `
FROM public.purchases WHERE livemode = ANY($1) AND ` + page + ofKind + ofStatus + ` AND `

const sqlListByCode = bothModes + `last_code <> 0` + newestFirst

// Each branch has its own index. A profile also selects the other mode's profile with the same address. $14
// is the pattern of an id's beginning, $15 its end; the limits keep a common beginning cheap.
const sqlListByQuery = bothModes + `checkout_session_id IN (
    SELECT $14 UNION SELECT checkout_session_id FROM public.stripe_events WHERE event_id = $14
    UNION SELECT checkout_session_id FROM public.purchases WHERE stripe_customer_id = $14
    UNION SELECT checkout_session_id FROM public.purchases WHERE tiktok_request_id = $14
    UNION SELECT checkout_session_id FROM public.attempts WHERE request_id <> '' AND request_id = $14
    UNION (SELECT checkout_session_id FROM public.purchases WHERE checkout_session_id LIKE $17 LIMIT 300)
    UNION (SELECT checkout_session_id FROM public.purchases
        WHERE right(checkout_session_id, 6) = right($18, 6) AND right(checkout_session_id, length($18)) = $18
        LIMIT 300)
    UNION SELECT q.checkout_session_id FROM public.profiles p
        JOIN public.profiles o ON o.livemode IN (true, false) AND o.email = p.email
        JOIN public.purchases q ON q.profile_id = o.id WHERE p.id = $16::uuid
    UNION SELECT q.checkout_session_id FROM public.profiles p JOIN public.purchases q ON q.profile_id = p.id
        WHERE p.livemode IN (true, false) AND p.email = $15)` + newestFirst

var uuidForm = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)

// The shortest parts of an id that a search accepts. The random part of a session's id begins after ten
// characters; pages show an id's last six.
const (
	minBeginning = 12
	minEnding    = 6
)

// idParts returns the pattern of ids that begin with a search, and the end of those that end with it; nil:
// neither. In the shortened form of pages, cs_live_a1ae9e…defce3, the pattern has both ends.
func idParts(query string) (pattern, ending *string) {
	first, last, shortened := strings.Cut(strings.ReplaceAll(query, "...", "…"), "…")
	if len(first) >= minBeginning && purchase.ValidID(first) {
		pattern = new(strings.ReplaceAll(first+"%", "_", `\_`))
	}
	switch {
	case !shortened && len(first) >= minEnding && purchase.ValidID(first):
		ending = &first
	case shortened && pattern != nil && len(last) >= minEnding && purchase.ValidID(last):
		*pattern += strings.ReplaceAll(last, "_", `\_`)
	case shortened:
		return nil, nil
	}
	return pattern, ending
}

// listStatement returns the statement of a filter and its arguments; limit replaces the filter's.
func listStatement(f *Filter, limit int) (statement string, args []any) {
	until, after := f.Until, f.After
	if until.IsZero() {
		until = time.UnixMicro(maxMicros)
	}
	if after.At.IsZero() {
		after.At = time.UnixMicro(maxMicros)
	}
	modes := []bool{true, false}
	if f.Livemode != nil {
		modes = []bool{*f.Livemode}
	}
	statement, more := f.statement()
	return statement, append([]any{
		pgx.QueryExecModeCacheDescribe, modes, f.From, until, after.At, after.ID, texts(f.Reasons),
		append([]string{}, texts(f.NotReasons)...), limit, f.Code, f.NoCode, f.FirstSale, texts(f.Kinds),
		texts(f.Statuses),
	}, more...)
}

// List returns up to f.Limit purchases, newest first. Every filter has its index; statements are planned
// for the actual values, because a generic plan may choose another index.
//
// A query is the id of a session, an event, a customer or a profile, TikTok's request_id, an e-mail address,
// or a part of a session's id: its first 12 characters or more, its last 6 or more, or both around "…".
func (r *Reader) List(ctx context.Context, f Filter) ([]Row, error) {
	for limit := f.Limit; ; {
		statement, args := listStatement(&f, limit)
		found, err := r.db.Pool().Query(ctx, statement, args...)
		if err != nil {
			return nil, fmt.Errorf("list purchases: %w", err)
		}
		rows, err := ledger.Collect(r.db, "entries", found, scanRow)
		if err != nil {
			return nil, fmt.Errorf("list purchases: %w", err)
		}
		// A short page means the last one: fill the place of an unreadable row.
		read := int(found.CommandTag().RowsAffected())
		if read < limit || len(rows) >= f.Limit {
			return rows[:min(len(rows), f.Limit)], nil
		}
		limit += read - len(rows)
	}
}

// statement returns the statement whose index fits the filter best, and its further arguments.
func (f *Filter) statement() (sql string, more []any) {
	query := strings.TrimSpace(f.Query)
	switch {
	case query != "":
		var profile *string
		if uuidForm.MatchString(query) {
			profile = &query
		}
		pattern, ending := idParts(query)
		return sqlListByQuery, []any{
			validText(query), purchase.NormaliseEmail(query), profile, pattern, ending,
		}
	case f.Code != nil && *f.Code != 0:
		return sqlListByCode, nil
	case f.Reasons != nil && !slices.Contains(f.Reasons, purchase.ReasonNone):
		return sqlListByReason, nil
	case f.Kinds != nil && !slices.Contains(f.Kinds, purchase.KindCheckout):
		return sqlListByKind, nil
	case f.Statuses != nil:
		return sqlListByStatus, nil
	}
	return sqlList, nil
}

// texts returns a list as Postgres takes it; nil is null.
func texts[T ~string](list []T) (out []string) {
	if list == nil {
		return nil
	}
	out = make([]string, len(list))
	for i, v := range list {
		out[i] = string(v)
	}
	return out
}

const sqlGet = `
SELECT` + columns + `
FROM public.purchases WHERE checkout_session_id = $1`

// Get returns one purchase with its message, events and attempts. The error is ErrNotFound if there is
// none.
func (r *Reader) Get(ctx context.Context, id string) (Row, error) {
	rows, err := r.readDetails(ctx, func(tx pgx.Tx) ([]Row, error) {
		found, err := tx.Query(ctx, sqlGet, validText(id))
		if err != nil {
			return nil, err
		}
		row, err := pgx.CollectExactlyOneRow(found, scanRow)
		return []Row{row}, err
	})
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return Row{}, fmt.Errorf("purchase %s: %w", id, ErrNotFound)
	case err != nil:
		return Row{}, fmt.Errorf("read purchase %s: %w", id, err)
	}
	return rows[0], nil
}

// Search returns up to limit purchases, newest first, with their messages, events and attempts. term is a
// query of List.
func (r *Reader) Search(ctx context.Context, term string, limit int) ([]Row, error) {
	if strings.TrimSpace(term) == "" {
		return nil, nil
	}
	rows, err := r.readDetails(ctx, func(tx pgx.Tx) ([]Row, error) {
		statement, args := listStatement(&Filter{Query: term}, limit)
		found, err := tx.Query(ctx, statement, args...)
		if err != nil {
			return nil, err
		}
		return ledger.Collect(r.db, "history", found, scanRow)
	})
	if err != nil {
		return nil, fmt.Errorf("search purchases: %w", err)
	}
	return rows, nil
}

// validText replaces what a Postgres text cannot hold: invalid UTF-8 and NUL.
func validText(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

const sqlMessages = `
SELECT p.checkout_session_id, p.envelope, f.checkout_session_id, f.created_at
FROM public.purchases p LEFT JOIN public.purchases f ON f.trial_session_id = p.checkout_session_id
WHERE p.checkout_session_id = ANY($1)`

const sqlEvents = `
SELECT checkout_session_id, event_id, type, created_at, received_at, disposition, caught_up, account
FROM public.stripe_events
WHERE checkout_session_id = ANY($1) ORDER BY received_at, event_id`

const sqlAttempts = `
SELECT checkout_session_id, attempt_id, generation, at, took_ms, class, code, message, request_id
FROM public.purchase_attempts WHERE checkout_session_id = ANY($1) ORDER BY at, attempt_id`

// readDetails reads rows and their messages, events and attempts in one snapshot.
func (r *Reader) readDetails(
	ctx context.Context, read func(tx pgx.Tx) ([]Row, error),
) (rows []Row, err error) {
	err = pgx.BeginTxFunc(ctx, r.db.Pool(), snapshot(), func(tx pgx.Tx) (err error) {
		if rows, err = read(tx); err != nil {
			return err
		}
		byID := make(map[string]*Row, len(rows))
		ids := make([]string, len(rows))
		for i := range rows {
			ids[i], byID[rows[i].ID] = rows[i].ID, &rows[i]
		}
		var id string
		forEach := func(sql string, fields []any, use func(row *Row)) error {
			found, err := tx.Query(ctx, sql, ids)
			if err != nil {
				return err
			}
			return r.db.ForEach("history", found, append([]any{&id}, fields...), func() error {
				use(byID[id])
				return nil
			})
		}
		var m struct {
			envelope     []byte
			firstPayment *string
			converted    *time.Time
		}
		err = forEach(sqlMessages, []any{&m.envelope, &m.firstPayment, &m.converted}, func(row *Row) {
			row.Envelope, row.FirstPayment, row.Converted = m.envelope, m.firstPayment, m.converted
		})
		if err != nil {
			return err
		}
		var e Event
		fields := []any{&e.ID, &e.Type, &e.Created, &e.Received, &e.Disposition, &e.Backfilled, &e.Account}
		err = forEach(sqlEvents, fields, func(row *Row) {
			e.Received = e.Received.UTC()
			if e.Created != nil {
				*e.Created = e.Created.UTC()
			}
			row.Events = append(row.Events, e)
		})
		if err != nil {
			return err
		}
		var a Attempt
		fields = []any{&a.ID, &a.Generation, &a.At, &a.TookMS, &a.Class, &a.Code, &a.Message, &a.RequestID}
		return forEach(sqlAttempts, fields, func(row *Row) {
			a.At = a.At.UTC()
			row.Attempts = append(row.Attempts, a)
		})
	})
	return rows, err
}

const sqlProfileByEmail = `
SELECT id::text FROM public.profiles WHERE livemode IN (true, false) AND email = $1
ORDER BY livemode DESC LIMIT 1`

// ProfileByEmail returns the id of the profile with an address, the live one first; "": none. Errors do not
// contain the address.
func (r *Reader) ProfileByEmail(ctx context.Context, email string) (id string, err error) {
	err = r.db.Pool().QueryRow(ctx, sqlProfileByEmail, purchase.NormaliseEmail(email)).Scan(&id)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return "", fmt.Errorf("find profile: %w", err)
	}
	return id, nil
}
