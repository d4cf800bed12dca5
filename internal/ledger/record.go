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
)

// The group commit of webhooks. Of 64 that come at a time, one writer writes 64 at once where two would write 32 each: a fifth less of
// Postgres's time for each. A commit takes a few milliseconds; one that takes recordLong waits for a lock or a lost connection.
const (
	recordFlushers = 4
	recordMost     = 128
	recordRoom     = 4096
	recordLong     = 30 * time.Millisecond
	recordTimeout  = 5 * time.Second
)

// Record writes one webhook event: its id, and, where it moves its session forward, the profile and the purchase with its
// encoded message. It returns after the commit, which it shares with the events that arrived meanwhile. An error leaves
// nothing behind or, when the commit's answer was lost, everything: then the same event is a duplicate next time.
func (db *DB) Record(ctx context.Context, r purchase.Receipt) (purchase.Recorded, error) {
	if r.DryRun {
		disposition, err := db.Foresee(ctx, r)
		return purchase.Recorded{Disposition: disposition}, err
	}
	recorded, err := db.records.do(ctx, r)
	if err != nil {
		return purchase.Recorded{}, fmt.Errorf("record session %s: %w", r.Purchase.ID, err)
	}
	return recorded, nil
}

// record writes receipts in one transaction of two round trips: lock and read, decide, write and commit.
func (db *DB) record(ctx context.Context, receipts []purchase.Receipt) ([]purchase.Recorded, error) {
	conn, err := db.pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Release() // and, with a transaction still open, close it
	b, err := readBooks(ctx, conn.Conn(), receipts, subscriptionsOf(receipts))
	if err != nil {
		return nil, err
	}
	results := make([]purchase.Recorded, len(receipts))
	for i := range receipts {
		if results[i], err = b.enter(&receipts[i]); err != nil {
			return nil, fmt.Errorf("%w: %w", errContent, err)
		}
	}
	return results, b.write(ctx, conn.Conn())
}

// session is where a checkout session stands.
type session struct {
	status purchase.Status
	reason purchase.Reason
}

// profileKey identifies a profile: test purchases have profiles of their own.
type profileKey struct {
	livemode bool
	email    string
}

// keyOf returns the key of a purchase's profile.
func keyOf(p *purchase.Purchase) profileKey { return profileKey{p.Livemode, p.Email} }

// lock returns the key's text for the advisory lock.
func (k profileKey) lock() string {
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

// profile is a customer as far as a batch moves it.
type profile struct {
	id, customer, subscription string
	known                      string // the customer's id before this batch
	at                         time.Time
	moved                      bool
}

// later keeps the ids of the latest purchase, whatever order the events come in; sqlPutProfiles does the same against the ledger.
func (p *profile) later(q *purchase.Purchase) {
	newer := !p.moved || !q.At.Before(p.at)
	for _, id := range []struct {
		have *string
		got  string
	}{{&p.customer, q.Customer}, {&p.subscription, q.Subscription}} {
		if id.got != "" && (newer || *id.have == "") {
			*id.have = id.got
		}
	}
	if newer {
		p.at = q.At
	}
	p.moved = true
}

// entered is a purchase in the state that it reaches in this batch.
type entered struct {
	purchase.Purchase
	profile  string // its id; "": none
	envelope []byte
	keys     *int16 // of what is to be sent; nil: nothing is
	trial    string // of a first payment: its trial's session
	claimed  bool
	finished *time.Time
}

// late says whether a late click id is sent.
func (e *entered) late() bool { return e.envelope != nil && e.LateClick() }

// books are the part of the ledger that one transaction is about: as it was read, then as it is to be.
type books struct {
	events    map[string]string // the session under which an event's id was recorded
	sessions  map[string]session
	profiles  map[profileKey]*profile
	trials    map[string]*trial // by subscription
	heard     []purchase.Receipt
	became    []purchase.Disposition // of heard
	purchases map[string]entered
	now       time.Time // the transaction's, by the ledger's clock
}

const sqlBegin = `BEGIN`

const sqlNow = `SELECT now()` // the transaction's own time

// One session's events are taken one after the other, over all replicas: the decision between them needs the one before. So are
// one customer's: a new profile's id is chosen before it is written. The keys come in order; the locks end with the transaction;
// the hash's rare equal for two keys only makes them wait.
const sqlLockSessions = `SELECT count(pg_advisory_xact_lock(hashtextextended(k, ` + lockSessions + `))) FROM unnest($1::text[]) AS k`

const sqlLockEmails = `SELECT count(pg_advisory_xact_lock(hashtextextended(k, ` + lockEmails + `))) FROM unnest($1::text[]) AS k`

const sqlKnownEvents = `SELECT event_id, checkout_session_id FROM public.stripe_events WHERE event_id = ANY($1)`

const sqlSessionStates = `SELECT checkout_session_id, status, reason FROM public.purchases WHERE checkout_session_id = ANY($1)`

const sqlKnownProfiles = `
SELECT livemode, email, id::text, COALESCE(stripe_customer_id, '')
FROM public.profiles WHERE livemode AND email = ANY($1)
UNION ALL
SELECT livemode, email, id::text, COALESCE(stripe_customer_id, '')
FROM public.profiles WHERE NOT livemode AND email = ANY($2)`

// readBooks opens the transaction, locks what the receipts and the subscriptions are about against everybody else, in the order of
// the keys, and reads it.
func readBooks(ctx context.Context, conn *pgx.Conn, receipts []purchase.Receipt, subscriptions []string) (*books, error) {
	events, sessions := make([]string, len(receipts)), make([]string, len(receipts))
	locks, live, test := make([]string, 0, len(receipts)), make([]string, 0, len(receipts)), []string{}
	for i := range receipts {
		events[i], sessions[i] = storable(receipts[i].Event.ID), receipts[i].Purchase.ID
		if !provisions(&receipts[i].Purchase) {
			continue
		}
		key := keyOf(&receipts[i].Purchase)
		locks = append(locks, key.lock())
		if key.livemode {
			live = append(live, key.email)
		} else {
			test = append(test, key.email)
		}
	}
	sessions = sorted(sessions)
	b := &books{
		events: make(map[string]string), sessions: make(map[string]session), profiles: make(map[profileKey]*profile), purchases: make(map[string]entered),
		trials: make(map[string]*trial),
	}
	locked := sessions
	if len(subscriptions) > 0 {
		locked = sorted(append(sessions, subscriptions...))
	}
	var batch pgx.Batch
	batch.Queue(sqlBegin)
	query(&batch, func() {}, []any{&b.now}, sqlNow)
	batch.Queue(sqlLockSessions, locked)
	batch.Queue(sqlLockEmails, sorted(locks))
	var id, about, profileID, customer string
	var key profileKey
	var s session
	query(&batch, func() { b.events[id] = about }, []any{&id, &about}, sqlKnownEvents, events)
	query(&batch, func() { b.sessions[id] = s }, []any{&id, &s.status, &s.reason}, sqlSessionStates, sessions)
	query(&batch, func() { b.profiles[key] = &profile{id: profileID, known: customer} },
		[]any{&key.livemode, &key.email, &profileID, &customer}, sqlKnownProfiles, sorted(live), sorted(test))
	if len(subscriptions) > 0 {
		b.readTrials(&batch, subscriptions)
	}
	if err := conn.SendBatch(ctx, &batch).Close(); err != nil {
		return nil, fmt.Errorf("lock and read: %w", err)
	}
	return b, nil
}

// query adds a question to a batch; each row is scanned into the fields, and then each is called.
func query(batch *pgx.Batch, each func(), fields []any, sql string, args ...any) {
	batch.Queue(sql, args...).Query(func(rows pgx.Rows) error {
		_, err := pgx.ForEachRow(rows, fields, func() error { each(); return nil })
		return err
	})
}

// sorted returns the values in order, each once.
func sorted(values []string) []string {
	values = slices.Clone(values)
	slices.Sort(values)
	return slices.Compact(values)
}

// provisions says whether a purchase gives its customer access. A first payment's has it since the trial.
func provisions(p *purchase.Purchase) bool {
	return p.Kind != purchase.KindFirstPayment && (p.Status == purchase.StatusPending || p.Status == purchase.StatusSkipped)
}

// enter takes one receipt into the books, after those before it, and says what becomes of it.
func (b *books) enter(r *purchase.Receipt) (purchase.Recorded, error) {
	recorded := purchase.Recorded{Disposition: purchase.Duplicate}
	event := storable(r.Event.ID)
	about, known := b.events[event]
	if known && about == r.Purchase.ID {
		return recorded, nil
	}
	if !known {
		b.events[event] = r.Purchase.ID
	}
	var err error
	if r.Purchase.Kind == purchase.KindFirstPayment {
		recorded, err = b.enterInvoice(r)
	} else {
		recorded, err = b.enterCheckout(r)
	}
	heard := *r
	if known { // another session's sale must not be lost: its state alone decides, and its row has a key of its own
		recorded.Conflict, heard.Event.ID = about, event+"."+r.Purchase.ID
	}
	if err == nil && recorded.Disposition != purchase.Ignored { // a renewal leaves no trace
		b.heard, b.became = append(b.heard, heard), append(b.became, recorded.Disposition)
	}
	return recorded, err
}

func (b *books) enterCheckout(r *purchase.Receipt) (recorded purchase.Recorded, err error) {
	p := r.Purchase
	recorded.Disposition = purchase.Duplicate
	at := b.sessions[p.ID]
	if !purchase.Advances(at.status, at.reason, p.Status, p.Reason) {
		return recorded, nil
	}
	b.sessions[p.ID] = session{p.Status, p.Reason}
	recorded.Disposition = r.Disposition()
	if provisions(&p) {
		b.provision(&p, &recorded)
	}
	e, err := newEntered(p, recorded.ProfileID, r.Received)
	if err != nil {
		return recorded, err
	}
	b.claim(&e, r, &recorded)
	if p.Trial {
		recorded.FirstPayment, err = b.begin(&e, r.Received)
		first := b.purchases[recorded.FirstPayment]
		recorded.LateClick = recorded.LateClick || first.late()
	}
	return recorded, err
}

func (b *books) enterInvoice(r *purchase.Receipt) (recorded purchase.Recorded, err error) {
	if recorded.Disposition, err = b.pay(r); err == nil && recorded.Disposition == purchase.Processed {
		e := b.purchases[r.Purchase.ID]
		b.claim(&e, r, &recorded)
		recorded.FirstPayment = e.ID
	}
	return recorded, err
}

// claim enters a purchase, claimed by who records it where there is something to send and they publish at once.
func (b *books) claim(e *entered, r *purchase.Receipt, recorded *purchase.Recorded) {
	if e.claimed = r.Claim && e.envelope != nil; e.claimed {
		recorded.Message, recorded.Claimed = e.envelope, b.now
	}
	recorded.LateClick = e.late()
	b.purchases[e.ID] = *e
}

// provision creates or updates the profile of a purchase's buyer. A customer id that differs from the
// profile's is reported: Stripe may have made a second customer, or somebody else typed the address.
func (b *books) provision(p *purchase.Purchase, recorded *purchase.Recorded) {
	owner := b.profiles[keyOf(p)]
	if owner == nil {
		owner, recorded.ProfileCreated = &profile{id: newUUID()}, true
		b.profiles[keyOf(p)] = owner
	}
	if before := cmp.Or(owner.customer, owner.known); before != "" && p.Customer != "" && before != p.Customer {
		recorded.CustomerBefore = before
	}
	owner.later(p)
	recorded.ProfileID = owner.id
}

// newEntered prepares a purchase's row, with its message where it is to be sent.
func newEntered(p purchase.Purchase, profileID string, received time.Time) (e entered, err error) {
	e.profile = profileID
	switch p.Status {
	case purchase.StatusPending:
		p.Keys.ExternalID = purchase.HashExternalID(profileID)
		if e.envelope, err = message.EncodeEnvelope(&p); err != nil {
			return e, err
		}
		e.keys = new(p.Mask())
	case purchase.StatusSkipped, purchase.StatusRejected:
		e.finished = &received
	default: // unpaid: nothing to send, nothing ended
	}
	e.Purchase = p
	return e, nil
}

const sqlCommit = `COMMIT`

// write writes what the books have become, and commits.
func (b *books) write(ctx context.Context, conn *pgx.Conn) error {
	var batch pgx.Batch
	b.putEvents(&batch)
	b.putProfiles(&batch)
	b.putPurchases(&batch)
	b.putTrials(&batch)
	batch.Queue(sqlCommit)
	if err := conn.SendBatch(ctx, &batch).Close(); err != nil {
		return fmt.Errorf("write and commit: %w", err)
	}
	return nil
}

// Rows are written in the order of their keys, here and everywhere: two transactions never wait for each other in a circle.

const sqlPutEvents = `
INSERT INTO public.stripe_events (event_id, type, checkout_session_id, livemode, created_at, received_at, disposition, caught_up)
SELECT u.id, u.type, u.session, u.livemode, u.created, u.received, u.disposition, u.caught_up
FROM unnest($1::text[], $2::text[], $3::text[], $4::boolean[], $5::timestamptz[], $6::timestamptz[], $7::text[], $8::boolean[])
    AS u (id, type, session, livemode, created, received, disposition, caught_up)
ON CONFLICT (event_id) DO NOTHING`

func (b *books) putEvents(batch *pgx.Batch) {
	n := len(b.heard)
	if n == 0 {
		return
	}
	order := make([]int, n)
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(i, j int) int { return strings.Compare(b.heard[i].Event.ID, b.heard[j].Event.ID) })
	ids, types, sessions, became := make([]string, n), make([]string, n), make([]string, n), make([]string, n)
	livemodes, created, received, caughtUp := make([]bool, n), make([]*time.Time, n), make([]time.Time, n), make([]bool, n)
	for to, from := range order {
		r := &b.heard[from]
		ids[to], types[to], sessions[to], became[to] = storable(r.Event.ID), r.Event.Type, r.Purchase.ID, string(b.became[from])
		livemodes[to], created[to], received[to], caughtUp[to] = r.Event.Livemode, nullableTime(r.Event.Created), r.Received, r.Source == purchase.SourceBackfill
	}
	batch.Queue(sqlPutEvents, ids, types, sessions, livemodes, created, received, became, caughtUp)
}

// The profile keeps the ids of its latest purchase, whatever order the events come in. A row of another id than the one that was
// chosen was written by somebody without our locks: it is left alone, the purchase's reference to the chosen id fails, and the
// whole is done again.
const sqlPutProfiles = `
INSERT INTO public.profiles AS p (id, livemode, email, stripe_customer_id, stripe_subscription_id,
    last_purchase_at)
SELECT u.id::uuid, u.livemode, u.email, u.customer, u.subscription, u.at
FROM unnest($1::text[], $2::boolean[], $3::text[], $4::text[], $5::text[], $6::timestamptz[])
    AS u (id, livemode, email, customer, subscription, at)
ON CONFLICT (livemode, email) DO UPDATE SET
    stripe_customer_id = CASE WHEN excluded.last_purchase_at >= p.last_purchase_at
        THEN COALESCE(excluded.stripe_customer_id, p.stripe_customer_id) ELSE COALESCE(p.stripe_customer_id, excluded.stripe_customer_id) END,
    stripe_subscription_id = CASE WHEN excluded.last_purchase_at >= p.last_purchase_at
        THEN COALESCE(excluded.stripe_subscription_id, p.stripe_subscription_id) ELSE COALESCE(p.stripe_subscription_id, excluded.stripe_subscription_id) END,
    last_purchase_at = GREATEST(p.last_purchase_at, excluded.last_purchase_at),
    updated_at = now()
WHERE p.id = excluded.id`

func (b *books) putProfiles(batch *pgx.Batch) {
	var ids, emails []string
	var livemodes []bool
	var customers, subscriptions []*string
	var ats []time.Time
	for _, key := range slices.SortedFunc(maps.Keys(b.profiles), compareKeys) {
		if p := b.profiles[key]; p.moved {
			ids, ats = append(ids, p.id), append(ats, p.at)
			livemodes, emails = append(livemodes, key.livemode), append(emails, key.email)
			customers, subscriptions = append(customers, nullable(p.customer)), append(subscriptions, nullable(p.subscription))
		}
	}
	if len(ids) > 0 {
		batch.Queue(sqlPutProfiles, ids, livemodes, emails, customers, subscriptions, ats)
	}
}

const sqlPutPurchases = `
INSERT INTO public.purchases (checkout_session_id, status, reason, profile_id, mode, livemode, amount_minor, currency, purchased_at,
    stripe_customer_id, stripe_subscription_id, envelope, finished_at, match_keys, kind, trial_session_id, claimed_until, first_published_at)
SELECT u.id, u.status, u.reason, u.profile::uuid, u.mode, u.livemode, u.amount, u.currency, u.at, u.customer, u.subscription, u.envelope,
    CASE WHEN u.finished IS NOT NULL THEN now() END, u.keys, u.kind, u.trial,
    CASE WHEN u.claimed THEN now() + make_interval(secs => $18) END, CASE WHEN u.claimed THEN now() END
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::boolean[], $7::bigint[], $8::text[], $9::timestamptz[], $10::text[],
    $11::text[], $12::bytea[], $13::timestamptz[], $14::smallint[], $15::text[], $16::text[], $17::boolean[])
    AS u (id, status, reason, profile, mode, livemode, amount, currency, at, customer, subscription, envelope, finished, keys, kind, trial, claimed)
ON CONFLICT (checkout_session_id) DO UPDATE SET
    status = excluded.status, reason = excluded.reason, profile_id = excluded.profile_id, mode = excluded.mode,
    livemode = excluded.livemode, amount_minor = excluded.amount_minor, currency = excluded.currency,
    purchased_at = excluded.purchased_at, stripe_customer_id = excluded.stripe_customer_id,
    stripe_subscription_id = excluded.stripe_subscription_id, envelope = excluded.envelope,
    finished_at = excluded.finished_at, match_keys = excluded.match_keys, kind = excluded.kind, trial_session_id = excluded.trial_session_id, claimed_until = excluded.claimed_until,
    first_published_at = excluded.first_published_at, updated_at = now()`

func (b *books) putPurchases(batch *pgx.Batch) {
	n := len(b.purchases)
	if n == 0 {
		return
	}
	ids := slices.Sorted(maps.Keys(b.purchases))
	statuses, reasons, modes := make([]string, n), make([]string, n), make([]string, n)
	profiles, currencies, customers, subscriptions := make([]*string, n), make([]*string, n), make([]*string, n), make([]*string, n)
	livemodes, claimed, amounts := make([]bool, n), make([]bool, n), make([]*int64, n)
	kinds, trials := make([]string, n), make([]*string, n)
	ats, finished, envelopes, keys := make([]*time.Time, n), make([]*time.Time, n), make([][]byte, n), make([]*int16, n)
	for i, id := range ids {
		p := b.purchases[id]
		statuses[i], reasons[i], modes[i] = string(p.Status), string(p.Reason), p.Mode
		profiles[i], currencies[i] = nullable(p.profile), nullable(p.Currency)
		customers[i], subscriptions[i] = nullable(p.Customer), nullable(p.Subscription)
		livemodes[i], claimed[i], amounts[i] = p.Livemode, p.claimed, p.AmountMinor
		ats[i], finished[i], envelopes[i], keys[i] = nullableTime(p.At), p.finished, p.envelope, p.keys
		kinds[i], trials[i] = string(cmp.Or(p.Kind, purchase.KindCheckout)), nullable(p.trial)
	}
	batch.Queue(sqlPutPurchases, ids, statuses, reasons, profiles, modes, livemodes, amounts, currencies, ats, customers, subscriptions, envelopes, finished, keys,
		kinds, trials, claimed, message.ClaimFor.Seconds())
}

// newUUID returns a UUID, version 7: the time in milliseconds, then 74 random bits. In the order of time, new customers' entries lie
// together in the two indexes that hold them; the hash of a profile's id goes to TikTok and cannot be guessed all the same.
func newUUID() string {
	var u [16]byte
	_, _ = rand.Read(u[:]) // never fails
	copy(u[:6], binary.BigEndian.AppendUint64(nil, uint64(time.Now().UnixMilli()))[2:])
	u[6], u[8] = u[6]&0x0f|0x70, u[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

// storable makes any signed text a value that Postgres can keep: valid UTF-8, no NUL, bounded for the index.
func storable(s string) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
	if len(s) > 500 {
		s = strings.ToValidUTF8(s[:500], "")
	}
	return s
}
