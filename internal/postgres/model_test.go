package postgres_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"purchase-relay/internal/contract"
	"purchase-relay/internal/purchase"
)

// The ledger against a small model of itself, which shares no rule with the product: events of Stripe doubled, out of order and broken
// off; relays and sweepers that answer late; outcomes of any generation in any order, any number of times; replays in between.

// payment is how far a session has come on Stripe's side.
type payment int

const (
	unheard payment = iota
	awaiting
	paymentFailed
	withoutEmail
	free
	bought
)

// proposal is what an event of a payment state proposes.
func (p payment) proposal() (purchase.Status, purchase.Reason) {
	switch p {
	case awaiting:
		return purchase.StatusAwaitingPayment, ""
	case paymentFailed:
		return purchase.StatusPaymentFailed, ""
	case withoutEmail:
		return purchase.StatusRejected, purchase.ReasonInvalidEmail
	case free:
		return purchase.StatusSkipped, purchase.ReasonNoPayment
	default:
		return purchase.StatusPending, ""
	}
}

// told is what one purchase must look like.
type told struct {
	session, email, customer string
	payment                  payment
	status                   purchase.Status
	reason                   purchase.Reason
	generation               int
	at                       time.Time    // when it was paid
	queued                   map[int]bool // generations that may have reached the queue
	claimed                  bool
	attempts                 map[string]*contract.Attempt
}

// world is the model: three sessions, two of them of one customer.
type world struct {
	*ledger
	sessions map[string]*told
	names    []string
	events   map[string]bool
	profiles map[string]*told // by e-mail: the customer of the latest purchase
	latest   map[string]time.Time
	claims   []contract.Claim   // handed out, perhaps long ago
	overdue  []contract.Claim   // the same of the sweeper
	outcomes []contract.Outcome // ever told
	clock    int
}

func newWorld(l *ledger) *world {
	w := &world{ledger: l, sessions: make(map[string]*told), events: make(map[string]bool), profiles: make(map[string]*told), latest: make(map[string]time.Time)}
	for i, email := range []string{"a@example.com", "a@example.com", "b@example.com"} {
		name := fmt.Sprintf("cs_%d", i)
		w.names = append(w.names, name)
		w.sessions[name] = &told{
			session: name, email: email, customer: fmt.Sprintf("cus_%d", i), generation: 1, queued: make(map[int]bool), attempts: make(map[string]*contract.Attempt),
		}
	}
	if _, err := l.conn.Exec(l.t.Context(), `TRUNCATE purchases, profiles, stripe_events, attempts`); err != nil {
		l.t.Fatal(err)
	}
	return w
}

func (w *world) exec(t *rapid.T, sql string, args ...any) {
	if _, err := w.conn.Exec(w.t.Context(), sql, args...); err != nil {
		t.Fatal(err)
	}
}

func (w *world) draw(t *rapid.T) *told {
	return w.sessions[rapid.SampledFrom(w.names).Draw(t, "session")]
}

// event draws one of a few events, so that each comes again and again; an id always says the same.
func (w *world) event(t *rapid.T) (*told, payment, purchase.Receipt) {
	s := w.draw(t)
	p := rapid.SampledFrom([]payment{awaiting, paymentFailed, withoutEmail, free, bought, bought, bought}).Draw(t, "payment")
	copies := rapid.IntRange(0, 1).Draw(t, "which event")
	status, reason := p.proposal()
	r := receipt(fmt.Sprintf("evt_%s_%d_%d", s.session, p, copies), s.session, status, reason)
	r.Purchase.Customer = s.customer
	if p >= free {
		r.Purchase.At, r.Purchase.Email = base.Add(time.Duration(int(p)*10+copies*3+len(s.session)+slices.Index(w.names, s.session))*time.Second), s.email
	}
	return s, p, r
}

// heard is what an event does to the model.
func (w *world) heard(s *told, p payment, r purchase.Receipt) purchase.Disposition {
	known := w.events[r.Event.ID]
	w.events[r.Event.ID] = true
	if known || p <= s.payment {
		return purchase.Duplicate
	}
	s.payment, s.at = p, r.Purchase.At
	s.status, s.reason = p.proposal()
	if p >= free && !r.Purchase.At.Before(w.latest[s.email]) {
		w.latest[s.email], w.profiles[s.email] = r.Purchase.At, s
	}
	return map[payment]purchase.Disposition{awaiting: purchase.AwaitingPayment, withoutEmail: purchase.Rejected, paymentFailed: purchase.Processed, free: purchase.Processed, bought: purchase.Processed}[p]
}

func (w *world) webhook(t *rapid.T) {
	s, p, r := w.event(t)
	got, err := w.Record(w.t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if want := w.heard(s, p, r); got.Disposition != want {
		t.Fatalf("%s: %s, want %s", r.Event.ID, got.Disposition, want)
	}
}

// brokenOff is a webhook whose time is over in the middle: all of it is on the ledger, or nothing.
func (w *world) brokenOff(t *rapid.T) {
	s, p, r := w.event(t)
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Duration(rapid.IntRange(0, 4000).Draw(t, "microseconds"))*time.Microsecond)
	defer cancel()
	if _, err := w.Record(ctx, r); err != nil {
		// It may be written all the same: on our side a write goes on, at the server a commit, which holds the session's lock.
		w.Settled()
		w.exec(t, `SELECT pg_advisory_xact_lock(hashtextextended($1, 7101))`, s.session)
		if ask[int](w.ledger, `SELECT count(*) FROM stripe_events WHERE event_id = $1`, r.Event.ID) == 0 {
			return // failed, and not stored
		}
		if w.events[r.Event.ID] {
			return // stored before
		}
	}
	w.heard(s, p, r) // stored, whatever was answered
}

func (w *world) claim(t *rapid.T) {
	got, err := w.Claim(w.t.Context(), 10)
	if err != nil {
		t.Fatal(err)
	}
	w.compareClaims(t, got, func(s *told) bool { return s.status == purchase.StatusPending })
	w.claims = append(w.claims, got...)
	for _, c := range got {
		w.sessions[c.ID].queued[c.Generation] = true
	}
}

// handOver is a relay's good day: what is pending is claimed and published.
func (w *world) handOver(t *rapid.T) {
	before := len(w.claims)
	w.claim(t)
	for _, c := range w.claims[before:] {
		w.mark(t, c)
	}
}

// compareClaims checks that all were handed out of which that is true, and nobody else holds.
func (w *world) compareClaims(t *rapid.T, got []contract.Claim, due func(*told) bool) {
	var ids, want []string
	for _, c := range got {
		ids = append(ids, fmt.Sprintf("%s:%d", c.ID, c.Generation))
	}
	for _, s := range w.sessions {
		if due(s) && !s.claimed {
			want = append(want, fmt.Sprintf("%s:%d", s.session, s.generation))
			s.claimed = true
		}
	}
	if !slices.Equal(sorted(ids), sorted(want)) {
		t.Fatalf("claimed %v, want %v", ids, want)
	}
}

// take draws one of those that were handed out; it may be told about again later, as by a replica that was frozen.
func take(t *rapid.T, from []contract.Claim) contract.Claim {
	if len(from) == 0 {
		t.Skip("nothing was handed out")
	}
	return rapid.SampledFrom(from).Draw(t, "claim")
}

func (w *world) published(t *rapid.T) {
	w.mark(t, take(t, w.claims))
}

func (w *world) mark(t *rapid.T, c contract.Claim) {
	if err := w.Published(w.t.Context(), []contract.Mark{{ID: c.ID, Generation: c.Generation, Sequence: 7}}); err != nil {
		t.Fatal(err)
	}
	if s := w.sessions[c.ID]; s.generation == c.Generation {
		s.claimed = false
		if s.status == purchase.StatusPending {
			s.status = purchase.StatusPublished
		}
	}
}

func (w *world) released(t *rapid.T) {
	c := take(t, w.claims)
	if err := w.Released(w.t.Context(), []string{c.ID}); err != nil {
		t.Fatal(err)
	}
	if s := w.sessions[c.ID]; s.open() {
		s.claimed = false
	}
}

func (s *told) open() bool {
	return s.status == purchase.StatusPending || s.status == purchase.StatusPublished || s.status == purchase.StatusRetrying
}

func (s *told) inFlight() bool {
	return s.status == purchase.StatusPublished || s.status == purchase.StatusRetrying
}

// timePasses: every claim runs out, and there was no word for longer than the grace.
func (w *world) timePasses(t *rapid.T) {
	w.exec(t, `UPDATE purchases SET claimed_until = claimed_until - interval '1 hour', updated_at = updated_at - interval '1 hour',
		published_at = published_at - interval '1 hour', swept_at = swept_at - interval '1 hour'`)
	for _, s := range w.sessions {
		s.claimed = false
	}
}

func (w *world) sweep(t *rapid.T) {
	w.timePasses(t)
	got, err := w.Overdue(w.t.Context(), time.Minute, 10)
	if err != nil {
		t.Fatal(err)
	}
	w.compareClaims(t, got, (*told).inFlight)
	w.overdue = append(w.overdue, got...)
}

// swept is the queue's word about what was overdue, perhaps a late one.
func (w *world) swept(t *rapid.T) {
	c := take(t, w.overdue)
	s := w.sessions[c.ID]
	var err error
	switch answer := rapid.SampledFrom([]string{"taken", "queued", "no answer", "too old"}).Draw(t, "answer"); answer {
	case "taken":
		s.queued[c.Generation+1] = true
		err = w.Swept(w.t.Context(), []contract.Mark{{ID: c.ID, Generation: c.Generation + 1, Sequence: 8}}, nil, nil)
		if s.generation <= c.Generation && s.inFlight() {
			s.status, s.generation, s.claimed = purchase.StatusPublished, c.Generation+1, false
		}
	case "queued":
		err = w.Swept(w.t.Context(), nil, []string{c.ID}, nil)
		s.claimed = s.claimed && !s.inFlight()
	case "no answer":
		s.queued[c.Generation+1] = true // stored all the same, perhaps
		err = w.Swept(w.t.Context(), nil, nil, []string{c.ID})
		s.claimed = s.claimed && !s.open()
	default:
		err = w.Expire(w.t.Context(), []contract.Mark{{ID: c.ID, Generation: c.Generation}})
		if s.inFlight() && s.generation == c.Generation {
			s.status, s.reason, s.claimed = purchase.StatusDead, purchase.ReasonExpired, false
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

// tell makes an outcome of any generation that may have been in the queue.
func (w *world) tell(t *rapid.T) (o contract.Outcome, ok bool) {
	s := w.draw(t)
	if len(s.queued) == 0 {
		return o, false
	}
	w.clock++
	kind := rapid.SampledFrom([]string{"retrying", "retrying", "delivered", "refused", "expired", "off"}).Draw(t, "outcome")
	// A worker's clock may be anywhere.
	at := base.Add(time.Duration(rapid.IntRange(0, 100).Draw(t, "clock"))*time.Minute + time.Duration(w.clock)*time.Second)
	generation := rapid.SampledFrom(slices.Sorted(maps.Keys(s.queued))).Draw(t, "generation")
	attempt := fmt.Sprintf("a%d", w.clock)
	switch kind {
	case "retrying":
		return outcome(s.session, generation, purchase.StatusRetrying, attempt, at), true
	case "delivered":
		return outcome(s.session, generation, purchase.StatusDelivered, attempt, at), true
	case "refused":
		return outcome(s.session, generation, purchase.StatusDead, attempt, at), true
	case "expired":
		o = outcome(s.session, generation, purchase.StatusDead, "", at)
		o.Reason = purchase.ReasonExpired
	default:
		o = outcome(s.session, generation, purchase.StatusSkipped, "", at)
		o.Reason = purchase.ReasonNotConfigured
	}
	return o, true
}

// settle records new outcomes together with some that were recorded before, in any order.
func (w *world) settle(t *rapid.T) {
	var batch []contract.Outcome
	for range rapid.IntRange(1, 4).Draw(t, "outcomes") {
		if o, ok := w.tell(t); ok {
			batch = append(batch, o)
		}
	}
	w.outcomes = append(w.outcomes, batch...)
	if len(w.outcomes) == 0 {
		t.Skip("nothing was told")
	}
	for range rapid.IntRange(0, 3).Draw(t, "again") {
		batch = append(batch, rapid.SampledFrom(w.outcomes).Draw(t, "the same"))
	}
	if len(batch) == 0 {
		t.Skip("nothing to record")
	}
	batch = rapid.Permutation(batch).Draw(t, "order")
	unknown, err := w.Settle(w.t.Context(), batch)
	if err != nil || len(unknown) > 0 {
		t.Fatalf("%v, %v", unknown, err)
	}
	for _, o := range batch {
		w.sessions[o.EventID].hear(o)
	}
}

// hear is what an outcome does to the model: delivered is final and always wins; a word from before the present generation says
// nothing else; an end stands.
func (s *told) hear(o contract.Outcome) {
	switch {
	case s.status == purchase.StatusDelivered:
	case o.Result == purchase.StatusDelivered:
		s.status, s.reason = purchase.StatusDelivered, ""
	case o.Generation >= s.generation && s.open():
		s.status, s.reason = o.Result, o.Reason
	}
	s.generation = max(s.generation, o.Generation)
	if o.Attempt != nil {
		s.attempts[o.Attempt.ID] = o.Attempt
	}
}

func (w *world) replay(t *rapid.T) {
	s := w.draw(t)
	may := s.payment == bought && (s.status == purchase.StatusDead || s.status == purchase.StatusSkipped)
	n, err := w.Replay(w.t.Context(), purchase.Selection{ID: s.session}, func(int) {})
	if (n == 1 && err == nil) != may {
		t.Fatalf("replay of a %s one: %d, %v", s.status, n, err)
	}
	if may {
		s.status, s.reason, s.claimed = purchase.StatusPending, "", false
		s.generation++
	}
}

// same compares the ledger with the model.
func (w *world) same(t *rapid.T) {
	for _, s := range w.sessions {
		var accepted []string
		var last *contract.Attempt
		for _, a := range s.attempts {
			if a.Class == purchase.ClassDelivered {
				accepted = append(accepted, a.RequestID)
			}
			if last == nil || a.At.After(last.At) {
				last = a
			}
		}
		want := ""
		if s.payment > unheard {
			ended := s.status == purchase.StatusDelivered || s.status == purchase.StatusDead || s.status == purchase.StatusSkipped || s.status == purchase.StatusRejected
			want = fmt.Sprintf("%s/%s gen %d, %d attempts of %d, ended %t, profile %t, message %t", s.status, s.reason, s.generation,
				len(s.attempts), len(s.attempts), ended, s.payment >= free, s.payment == bought)
			if last != nil {
				want += fmt.Sprintf(", last %d", *last.Code)
			}
		}
		var got string
		var request *string
		var envelope []byte
		err := w.conn.QueryRow(w.t.Context(), `SELECT format('%s/%s gen %s, %s attempts of %s, ended %s, profile %s, message %s', status, reason, generation, attempts,
			(SELECT count(*) FROM attempts a WHERE a.checkout_session_id = p.checkout_session_id), (finished_at IS NOT NULL)::text, (profile_id IS NOT NULL)::text,
			(envelope IS NOT NULL)::text) || COALESCE(', last ' || last_code, ''), tiktok_request_id, envelope FROM purchases p WHERE checkout_session_id = $1`, s.session).
			Scan(&got, &request, &envelope)
		if err != nil && (err != pgx.ErrNoRows || s.payment > unheard) { //nolint:errorlint // as it comes from pgx
			t.Fatalf("%s: %v", s.session, err)
		}
		if got != want {
			t.Fatalf("%s is %s\nwant %s", s.session, got, want)
		}
		switch {
		case len(accepted) > 0 && (request == nil || !slices.Contains(accepted, *request)):
			t.Fatalf("%s was accepted as %v, and the ledger says %v", s.session, accepted, request)
		case len(accepted) == 0 && last != nil && (request == nil || *request != last.RequestID):
			t.Fatalf("%s was last answered %s, and the ledger says %v", s.session, last.RequestID, request)
		}
		if s.payment != bought {
			continue
		}
		// The message is that of the paying event, whatever came after it.
		if e, err := contract.DecodeEnvelope(envelope); err != nil || e.EventID != s.session || e.PurchasedAt != s.at.Unix() {
			t.Fatalf("%s has the message %s, %v", s.session, envelope, err)
		}
	}
	var want []string
	for email, s := range w.profiles {
		want = append(want, email+" "+s.customer)
	}
	if got := ask[string](w.ledger, `SELECT COALESCE(string_agg(email || ' ' || stripe_customer_id, ', ' ORDER BY email), '') FROM profiles`); got != strings.Join(sorted(want), ", ") {
		t.Fatalf("profiles: %s\nwant %s", got, want)
	}
}

func TestLedgerAgainstItsModel(t *testing.T) {
	l := newLedger(t)
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(l)
		t.Repeat(map[string]func(*rapid.T){
			"webhook": w.webhook, "webhook again": w.webhook, "webhook broken off": w.brokenOff, "claim": w.claim, "hand over": w.handOver, "hand over more": w.handOver, "published": w.published, "released": w.released,
			"time passes": w.timePasses, "sweep": w.sweep, "swept": w.swept, "swept more": w.swept, "settle": w.settle, "settle more": w.settle, "replay": w.replay, "": w.same,
		})
	})
}
