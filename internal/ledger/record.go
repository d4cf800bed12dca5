package ledger

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/relay"
)

// Record writes one event and, if the event advances its session, the profile and the purchase with its
// encoded message. It returns after the commit, which concurrent receipts share. If the response to the
// commit is lost, everything is written despite the error, and the repeated event is a duplicate. A dry run
// makes the same decision under the same locks and is rolled back.
func (db *DB) Record(ctx context.Context, r purchase.Receipt) (recorded purchase.Recorded, err error) {
	if r.DryRun {
		recorded, err = db.dryRun(ctx, r)
	} else {
		recorded, err = db.batcher.record(ctx, r)
	}
	if err != nil {
		return purchase.Recorded{}, fmt.Errorf("record session %s: %w", r.Purchase.ID, err)
	}
	return recorded, nil
}

func (db *DB) record(ctx context.Context, receipts []purchase.Receipt) ([]purchase.Recorded, error) {
	return db.transact(ctx, receipts, (*transaction).commit)
}

func (db *DB) dryRun(ctx context.Context, r purchase.Receipt) (purchase.Recorded, error) {
	recorded, err := db.transact(ctx, []purchase.Receipt{r}, (*transaction).rollback)
	if err != nil {
		return purchase.Recorded{}, err
	}
	return recorded[0], nil
}

// transact needs two round trips: begin locks and reads, end writes and commits or rolls back.
func (db *DB) transact(
	ctx context.Context, receipts []purchase.Receipt, end func(*transaction, context.Context) error,
) ([]purchase.Recorded, error) {
	conn, err := db.pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Release() // closes the connection while a transaction is open
	tx, err := begin(ctx, conn.Conn(), receipts, subscriptionsOf(receipts))
	if err != nil {
		return nil, err
	}
	recorded := make([]purchase.Recorded, len(receipts))
	for i := range receipts {
		if recorded[i], err = tx.decide(&receipts[i]); err != nil {
			return nil, fmt.Errorf("%w: %w", errContent, err)
		}
	}
	return recorded, end(tx, ctx)
}

// transaction is an open transaction with the rows that it has locked and read and the rows to write.
type transaction struct {
	conn *pgx.Conn
	now  time.Time // start of the transaction, by Postgres' clock

	sessionByEvent map[string]string // the sessions of recorded event ids
	sessions       map[string]sessionState
	profiles       map[profileKey]*profile
	subscriptions  map[string]*subscription
	buyers         map[string]*buyer // by profile id

	newEvents []newEvent
	purchases map[string]purchaseRow // to write, by id
}

type sessionState struct {
	status purchase.Status
	reason purchase.Reason
}

type newEvent struct {
	*purchase.Receipt

	id          string
	disposition purchase.Disposition
}

// profileKey identifies a profile: test purchases have profiles of their own.
type profileKey struct {
	livemode bool
	email    string
}

func keyOf(p *purchase.Purchase) profileKey { return profileKey{p.Livemode, p.Email} }

// lockKey returns the string that the advisory lock hashes.
func (k profileKey) lockKey() string {
	if k.livemode {
		return "live " + k.email
	}
	return "test " + k.email
}

// compareKeys orders profiles as the unique index does.
func compareKeys(a, b profileKey) int {
	if a.livemode != b.livemode {
		if a.livemode {
			return 1
		}
		return -1
	}
	return strings.Compare(a.email, b.email)
}

type profile struct {
	id, customer, subscription string
	customerBefore             string // the recorded customer id
	lastPurchase               time.Time
	changed                    bool
}

// buyer is the first sale of a profile.
type buyer struct {
	firstPaid time.Time // zero: none yet
	sale      string    // the first sale, if this transaction writes it
	displaced bool      // a later first sale is on the ledger
}

type purchaseRow struct {
	purchase.Purchase

	profile      string // profile id; "": none
	envelope     []byte // nil: never sent
	trialSession string // the trial's session, for a first payment
	firstSale    bool   // of the profile
	claimed      bool
}

func (row *purchaseRow) lateClick() bool { return row.envelope != nil && row.LateClick() }

const sqlBegin = `BEGIN`

// sqlStart returns the transaction's time and lets its further statements keep their plans: for small batches
// Postgres would plan each one every time, which takes a quarter of a lone webhook's time.
const sqlStart = `SELECT now() FROM set_config('plan_cache_mode', 'force_generic_plan', true)`

// Events of one session are serialised across all replicas, because each decision depends on the previous
// one. So are events of one customer: a new profile's id is chosen before the profile is written. Keys are
// locked in order. Two keys with the same hash only wait for each other.
const sqlLockSessions = `
SELECT count(pg_advisory_xact_lock(hashtextextended(k, ` + lockSessions + `))) FROM unnest($1::text[]) AS k`

const sqlLockEmails = `
SELECT count(pg_advisory_xact_lock(hashtextextended(k, ` + lockEmails + `))) FROM unnest($1::text[]) AS k`

const sqlKnownEvents = `
SELECT event_id, checkout_session_id FROM public.stripe_events WHERE event_id = ANY($1)`

const sqlSessionStates = `
SELECT checkout_session_id, status, reason FROM public.purchases WHERE checkout_session_id = ANY($1)`

// LIMIT keeps the subquery apart, so that each address is one look-up by both columns of the unique index.
// With email = ANY($1), Postgres would read all profiles of a mode until it has analysed the table.
const sqlKnownProfiles = `
SELECT p.livemode, p.email, p.id::text, COALESCE(p.stripe_customer_id, ''), p.first_paid_at
FROM unnest($1::boolean[], $2::text[]) AS u (livemode, email) CROSS JOIN LATERAL (
    SELECT livemode, email, id, stripe_customer_id, first_paid_at FROM public.profiles
    WHERE livemode = u.livemode AND email = u.email LIMIT 1) p`

// begin opens a transaction and locks and reads the sessions, customers and subscriptions of the receipts.
func begin(
	ctx context.Context, conn *pgx.Conn, receipts []purchase.Receipt, subscriptions []string,
) (*transaction, error) {
	tx := &transaction{
		conn: conn, sessionByEvent: make(map[string]string), sessions: make(map[string]sessionState),
		profiles: make(map[profileKey]*profile), subscriptions: make(map[string]*subscription),
		buyers: make(map[string]*buyer), purchases: make(map[string]purchaseRow),
	}
	n := len(receipts)
	events, sessions := make([]string, n), make([]string, n)
	keys := make([]profileKey, 0, n)
	for i := range receipts {
		p := &receipts[i].Purchase
		events[i], sessions[i] = storable(receipts[i].Event.ID), p.ID
		if !provisions(p) {
			continue
		}
		keys = append(keys, keyOf(p))
	}
	slices.SortFunc(keys, compareKeys)
	keys = slices.Compact(keys)
	sessions = sorted(sessions)
	sessionLocks := sessions
	if len(subscriptions) > 0 {
		sessionLocks = sorted(append(sessions, subscriptions...))
	}
	var batch pgx.Batch
	batch.Queue(sqlBegin)
	queueQuery(&batch, func() {}, []any{&tx.now}, sqlStart)
	batch.Queue(sqlLockSessions, sessionLocks)
	batch.Queue(sqlLockEmails, sorted(column(keys, profileKey.lockKey)))
	var id, session, profileID, customer string
	var key profileKey
	var state sessionState
	var firstPaid *time.Time
	queueQuery(&batch, func() { tx.sessionByEvent[id] = session }, []any{&id, &session}, sqlKnownEvents, events)
	queueQuery(&batch, func() { tx.sessions[id] = state }, []any{&id, &state.status, &state.reason},
		sqlSessionStates, sessions)
	queueQuery(&batch, func() {
		tx.profiles[key] = &profile{id: profileID, customerBefore: customer}
		tx.buyers[profileID] = &buyer{firstPaid: OrZero(firstPaid)}
	}, []any{&key.livemode, &key.email, &profileID, &customer, &firstPaid},
		sqlKnownProfiles, column(keys, func(k profileKey) bool { return k.livemode }),
		column(keys, func(k profileKey) string { return k.email }))
	if len(subscriptions) > 0 {
		querySubscriptions(&batch, tx.subscriptions, tx.buyers, subscriptions)
	}
	if err := conn.SendBatch(ctx, &batch).Close(); err != nil {
		return nil, fmt.Errorf("lock and read: %w", err)
	}
	return tx, nil
}

// queueQuery adds a query to a batch. Each row is scanned into fields, then handle is called.
func queueQuery(batch *pgx.Batch, handle func(), fields []any, sql string, args ...any) {
	batch.Queue(sql, args...).Query(func(rows pgx.Rows) error {
		_, err := pgx.ForEachRow(rows, fields, func() error { handle(); return nil })
		return err
	})
}

// sorted returns the distinct values in order. It never returns nil, which pgx would encode as null.
func sorted(values []string) []string {
	values = append([]string{}, values...)
	slices.Sort(values)
	return slices.Compact(values)
}

// provisions reports whether a purchase gives its customer access. A first payment does not: its customer has
// had access since the trial.
func provisions(p *purchase.Purchase) bool {
	return p.Kind != purchase.KindFirstPayment &&
		(p.Status == purchase.StatusPending || p.Status == purchase.StatusSkipped)
}

// decide returns the result of a receipt, given those before it, and adds the rows to write.
func (tx *transaction) decide(r *purchase.Receipt) (recorded purchase.Recorded, err error) {
	id := storable(r.Event.ID)
	session, known := tx.sessionByEvent[id]
	if known && session == r.Purchase.ID {
		return purchase.Recorded{Disposition: purchase.Duplicate}, nil
	}
	if r.Purchase.Kind == purchase.KindFirstPayment {
		recorded, err = tx.decideInvoice(r)
	} else {
		recorded, err = tx.decideCheckout(r)
	}
	if err != nil {
		return recorded, err
	}
	if known { // the event id was recorded for another session; this session's sale must not be lost
		recorded.Conflict, id = session, storable(id+"."+r.Purchase.ID)
	} else {
		tx.sessionByEvent[id] = r.Purchase.ID
	}
	if recorded.Disposition != purchase.Ignored { // renewals are not recorded
		tx.newEvents = append(tx.newEvents, newEvent{r, id, recorded.Disposition})
	}
	return recorded, nil
}

func (tx *transaction) decideCheckout(r *purchase.Receipt) (recorded purchase.Recorded, err error) {
	p := &r.Purchase
	recorded.Disposition = purchase.Duplicate
	state := tx.sessions[p.ID]
	if !purchase.Advances(state.status, state.reason, p.Status, p.Reason) {
		return recorded, nil
	}
	tx.sessions[p.ID] = sessionState{p.Status, p.Reason}
	recorded.Disposition = r.Disposition()
	if provisions(p) {
		tx.provision(p, &recorded)
	}
	row, err := newPurchaseRow(*p, recorded.ProfileID)
	if err != nil {
		return recorded, err
	}
	tx.markFirstSale(&row)
	tx.addPurchase(&row, r, &recorded)
	if p.Trial {
		err = tx.addTrial(&row, &recorded)
	}
	return recorded, err
}

// provision creates or updates the buyer's profile. It reports a customer id other than the profile's: Stripe
// created a second customer, or the buyer entered another person's address.
func (tx *transaction) provision(p *purchase.Purchase, recorded *purchase.Recorded) {
	owner := tx.profiles[keyOf(p)]
	if owner == nil {
		owner, recorded.ProfileCreated = &profile{id: newUUID()}, true
		tx.profiles[keyOf(p)] = owner
	}
	before := cmp.Or(owner.customer, owner.customerBefore)
	if before != "" && p.Customer != "" && before != p.Customer {
		recorded.PreviousCustomer = before
	}
	owner.update(p)
	recorded.ProfileID = owner.id
}

// update keeps the ids of the latest purchase in any order of events, as sqlUpsertProfiles does with the row.
func (p *profile) update(q *purchase.Purchase) {
	newer := !p.changed || !q.At.Before(p.lastPurchase)
	if q.Customer != "" && (newer || p.customer == "") {
		p.customer = q.Customer
	}
	if q.Subscription != "" && (newer || p.subscription == "") {
		p.subscription = q.Subscription
	}
	if newer {
		p.lastPurchase = q.At
	}
	p.changed = true
}

func newPurchaseRow(p purchase.Purchase, profileID string) (row purchaseRow, err error) {
	row.profile = profileID
	if p.Status == purchase.StatusPending {
		p.Keys.ExternalID = purchase.HashExternalID(profileID)
		if row.envelope, err = message.EncodeEnvelope(&p); err != nil {
			return row, err
		}
	}
	row.Purchase = p
	return row, nil
}

// addPurchase adds a purchase to write. The row is claimed if the caller publishes it immediately.
func (tx *transaction) addPurchase(row *purchaseRow, r *purchase.Receipt, recorded *purchase.Recorded) {
	if row.claimed = r.Claim && row.envelope != nil; row.claimed {
		recorded.Message, recorded.Claimed = row.envelope, tx.now
	}
	recorded.LateClick = row.lateClick()
	tx.purchases[row.ID] = *row
}

// markFirstSale decides whether a row is its profile's first sale so far, by time of payment. Events arrive
// in any order: an earlier sale displaces a later one.
func (tx *transaction) markFirstSale(row *purchaseRow) {
	if row.profile == "" || row.At.IsZero() || !purchase.Paid(row.Status, row.Reason, row.Kind) {
		return
	}
	b := tx.buyers[row.profile]
	if b == nil {
		b = &buyer{}
		tx.buyers[row.profile] = b
	}
	if !b.firstPaid.IsZero() && !row.At.Before(b.firstPaid) {
		return
	}
	if later, here := tx.purchases[b.sale]; here {
		later.firstSale = false
		tx.purchases[b.sale] = later
	} else if !b.firstPaid.IsZero() {
		b.displaced = true
	}
	b.firstPaid, b.sale, row.firstSale = row.At, row.ID, true
}

const sqlCommit = `COMMIT`

func (tx *transaction) commit(ctx context.Context) error {
	var batch pgx.Batch
	tx.insertEvents(&batch)
	tx.upsertProfiles(&batch)
	tx.updateFirstSales(&batch)
	tx.upsertPurchases(&batch)
	tx.upsertSubscriptions(&batch)
	batch.Queue(sqlCommit)
	if err := tx.conn.SendBatch(ctx, &batch).Close(); err != nil {
		return fmt.Errorf("write and commit: %w", err)
	}
	return nil
}

const sqlRollback = `ROLLBACK`

func (tx *transaction) rollback(ctx context.Context) error {
	if _, err := tx.conn.Exec(ctx, sqlRollback); err != nil {
		return fmt.Errorf("roll back: %w", err)
	}
	return nil
}

// All transactions write rows in key order, so that none deadlock.

const sqlInsertEvents = `
INSERT INTO public.stripe_events (event_id, type, checkout_session_id, livemode, created_at, received_at,
    disposition, caught_up, account)
SELECT u.id, u.type, u.session, u.livemode, u.created, u.received, u.disposition, u.caught_up, u.account
FROM unnest($1::text[], $2::text[], $3::text[], $4::boolean[], $5::timestamptz[], $6::timestamptz[],
    $7::text[], $8::boolean[], $9::text[])
    AS u (id, type, session, livemode, created, received, disposition, caught_up, account)
ON CONFLICT (event_id) DO NOTHING`

func (tx *transaction) insertEvents(batch *pgx.Batch) {
	rows := tx.newEvents
	if len(rows) == 0 {
		return
	}
	slices.SortStableFunc(rows, func(a, b newEvent) int { return strings.Compare(a.id, b.id) })
	batch.Queue(sqlInsertEvents,
		column(rows, func(e newEvent) string { return e.id }),
		column(rows, func(e newEvent) string { return e.Event.Type }),
		column(rows, func(e newEvent) string { return e.Purchase.ID }),
		column(rows, func(e newEvent) bool { return e.Event.Livemode }),
		column(rows, func(e newEvent) *time.Time { return NullTime(e.Event.Created) }),
		column(rows, func(e newEvent) time.Time { return e.Received }),
		column(rows, func(e newEvent) string { return string(e.disposition) }),
		column(rows, func(e newEvent) bool { return e.Source == purchase.SourceBackfill }),
		column(rows, func(e newEvent) *string { return nullable(storable(e.Event.Account)) }))
}

// The profile keeps the ids of its latest purchase in any order of events. A row with an id other than the
// chosen one was written by a process without these locks. It is not updated, so the purchase's reference to
// the chosen id fails, and the transaction is retried.
const sqlUpsertProfiles = `
INSERT INTO public.profiles AS p (id, livemode, email, stripe_customer_id, stripe_subscription_id,
    last_purchase_at, first_paid_at)
SELECT u.id::uuid, u.livemode, u.email, u.customer, u.subscription, u.at, u.first_paid
FROM unnest($1::text[], $2::boolean[], $3::text[], $4::text[], $5::text[], $6::timestamptz[],
    $7::timestamptz[]) AS u (id, livemode, email, customer, subscription, at, first_paid)
ON CONFLICT (livemode, email) DO UPDATE SET
    stripe_customer_id = CASE WHEN excluded.last_purchase_at >= p.last_purchase_at
        THEN COALESCE(excluded.stripe_customer_id, p.stripe_customer_id)
        ELSE COALESCE(p.stripe_customer_id, excluded.stripe_customer_id) END,
    stripe_subscription_id = CASE WHEN excluded.last_purchase_at >= p.last_purchase_at
        THEN COALESCE(excluded.stripe_subscription_id, p.stripe_subscription_id)
        ELSE COALESCE(p.stripe_subscription_id, excluded.stripe_subscription_id) END,
    last_purchase_at = GREATEST(p.last_purchase_at, excluded.last_purchase_at),
    first_paid_at = LEAST(p.first_paid_at, excluded.first_paid_at),
    updated_at = now()
WHERE p.id = excluded.id`

func (tx *transaction) upsertProfiles(batch *pgx.Batch) {
	keys := slices.SortedFunc(maps.Keys(tx.profiles), compareKeys)
	keys = slices.DeleteFunc(keys, func(k profileKey) bool { return !tx.profiles[k].changed })
	if len(keys) == 0 {
		return
	}
	batch.Queue(sqlUpsertProfiles,
		column(keys, func(k profileKey) string { return tx.profiles[k].id }),
		column(keys, func(k profileKey) bool { return k.livemode }),
		column(keys, func(k profileKey) string { return k.email }),
		column(keys, func(k profileKey) *string { return nullable(tx.profiles[k].customer) }),
		column(keys, func(k profileKey) *string { return nullable(tx.profiles[k].subscription) }),
		column(keys, func(k profileKey) time.Time { return tx.profiles[k].lastPurchase }),
		column(keys, func(k profileKey) *time.Time {
			b := tx.buyers[tx.profiles[k].id]
			if b == nil {
				return nil
			}
			return NullTime(b.firstPaid)
		}))
}

// The profile of a first payment after a trial is not among the upserted ones.
const sqlFirstPaid = `
UPDATE public.profiles p SET first_paid_at = LEAST(p.first_paid_at, u.at), updated_at = now()
FROM unnest($1::text[], $2::timestamptz[]) AS u (id, at) WHERE p.id = u.id::uuid`

const sqlDisplaceFirstSales = `
UPDATE public.purchases SET first_sale = false, updated_at = now()
WHERE profile_id = ANY($1::text[]::uuid[]) AND first_sale AND NOT checkout_session_id = ANY($2::text[])`

func (tx *transaction) updateFirstSales(batch *pgx.Batch) {
	var converted, displaced, sales []string
	for _, id := range slices.Sorted(maps.Keys(tx.buyers)) {
		b := tx.buyers[id]
		if tx.purchases[b.sale].Kind == purchase.KindFirstPayment {
			converted = append(converted, id)
		}
		if b.displaced {
			displaced, sales = append(displaced, id), append(sales, b.sale)
		}
	}
	if len(converted) > 0 {
		batch.Queue(sqlFirstPaid, converted,
			column(converted, func(id string) time.Time { return tx.buyers[id].firstPaid }))
	}
	if len(displaced) > 0 {
		batch.Queue(sqlDisplaceFirstSales, displaced, sales)
	}
}

const sqlUpsertPurchases = `
INSERT INTO public.purchases (checkout_session_id, status, reason, profile_id, mode, livemode, amount_minor,
    currency, purchased_at, stripe_customer_id, stripe_subscription_id, envelope, match_keys, kind,
    trial_session_id, first_sale, stripe_payment_id, finished_at, claimed_until, first_published_at)
SELECT u.id, u.status, u.reason, u.profile::uuid, u.mode, u.livemode, u.amount,
    u.currency, u.at, u.customer, u.subscription, u.envelope, u.keys, u.kind, u.trial, u.first_sale,
    u.payment,
    CASE WHEN u.status IN ('skipped', 'rejected') THEN now() END,
    CASE WHEN u.claimed THEN now() + make_interval(secs => $19) END, CASE WHEN u.claimed THEN now() END
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::boolean[], $7::bigint[],
    $8::text[], $9::timestamptz[], $10::text[], $11::text[], $12::bytea[], $13::smallint[], $14::text[],
    $15::text[], $16::boolean[], $17::boolean[], $18::text[])
    AS u (id, status, reason, profile, mode, livemode, amount,
    currency, at, customer, subscription, envelope, keys, kind, trial, first_sale, claimed, payment)
ON CONFLICT (checkout_session_id) DO UPDATE SET
    status = excluded.status, reason = excluded.reason, profile_id = excluded.profile_id,
    mode = excluded.mode, livemode = excluded.livemode, amount_minor = excluded.amount_minor,
    currency = excluded.currency, purchased_at = excluded.purchased_at,
    stripe_customer_id = excluded.stripe_customer_id,
    stripe_subscription_id = excluded.stripe_subscription_id,
    stripe_payment_id = COALESCE(excluded.stripe_payment_id, purchases.stripe_payment_id),
    envelope = excluded.envelope, match_keys = excluded.match_keys, kind = excluded.kind,
    trial_session_id = excluded.trial_session_id, first_sale = excluded.first_sale,
    finished_at = excluded.finished_at,
    claimed_until = excluded.claimed_until, first_published_at = excluded.first_published_at,
    updated_at = now()`

func (tx *transaction) upsertPurchases(batch *pgx.Batch) {
	ids := slices.Sorted(maps.Keys(tx.purchases))
	if len(ids) == 0 {
		return
	}
	rows := make([]*purchaseRow, len(ids))
	for i, id := range ids {
		rows[i] = new(tx.purchases[id])
	}
	batch.Queue(sqlUpsertPurchases,
		ids,
		column(rows, func(p *purchaseRow) string { return string(p.Status) }),
		column(rows, func(p *purchaseRow) string { return string(p.Reason) }),
		column(rows, func(p *purchaseRow) *string { return nullable(p.profile) }),
		column(rows, func(p *purchaseRow) string { return p.Mode }),
		column(rows, func(p *purchaseRow) bool { return p.Livemode }),
		column(rows, func(p *purchaseRow) *int64 { return p.AmountMinor }),
		column(rows, func(p *purchaseRow) *string { return nullable(p.Currency) }),
		column(rows, func(p *purchaseRow) *time.Time { return NullTime(p.At) }),
		column(rows, func(p *purchaseRow) *string { return nullable(p.Customer) }),
		column(rows, func(p *purchaseRow) *string { return nullable(p.Subscription) }),
		column(rows, func(p *purchaseRow) []byte { return p.envelope }),
		column(rows, (*purchaseRow).sentKeys),
		column(rows, func(p *purchaseRow) string { return string(cmp.Or(p.Kind, purchase.KindCheckout)) }),
		column(rows, func(p *purchaseRow) *string { return nullable(p.trialSession) }),
		column(rows, func(p *purchaseRow) bool { return p.firstSale }),
		column(rows, func(p *purchaseRow) bool { return p.claimed }),
		column(rows, func(p *purchaseRow) *string { return nullable(p.Payment) }),
		relay.ClaimTimeout.Seconds())
}

func (row *purchaseRow) sentKeys() *int16 {
	if row.envelope == nil {
		return nil
	}
	return new(row.Mask())
}

// newUUID returns a version 7 UUID: the time in milliseconds, then 74 random bits. New profiles are adjacent
// in both indexes but not guessable: TikTok receives the hash of the profile's id.
func newUUID() string {
	var u [16]byte
	_, _ = rand.Read(u[:]) // never fails
	copy(u[:6], binary.BigEndian.AppendUint64(nil, uint64(time.Now().UnixMilli()))[2:])
	u[6], u[8] = u[6]&0x0f|0x70, u[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

// storable returns s as Postgres accepts it: valid UTF-8, without NUL, short enough for an index.
func storable(s string) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
	if len(s) > 500 {
		s = strings.ToValidUTF8(s[:500], "")
	}
	return s
}
