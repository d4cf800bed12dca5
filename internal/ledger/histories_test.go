package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"pgregory.net/rapid"

	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/maintenance"
	"purchase-relay/internal/ops/report"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/relay"
	"purchase-relay/internal/testkit/ledgertest"
)

// Random histories run the real ledger, relay and sweeper against models of Stripe, the queue, the workers
// and TikTok. After every step the promises hold, and once the faults stop every paid purchase ends. A long
// run:
//
//	go test ./internal/ledger -run TestHistories_KeepThePromises -rapid.checks=5000

const (
	retryMaxAge = 47 * time.Hour
	sweepGrace  = 10 * time.Minute
	ackWait     = 30 * time.Second

	streamDedupeWindow  = 2 * time.Minute // for message ids
	tiktokDedupeWindow  = 48 * time.Hour  // for event ids
	stripeResendWindow  = 30 * oneDay
	deadLetterRetention = 30 * oneDay // of PURCHASES_DEAD
)

// buyer is a customer with a paid checkout, one with a delayed payment, and a trial with its invoices.
type buyer struct {
	name, email, customer, subscription, click string
	forgotten                                  bool
}

// traces returns the personal data that must not remain of a forgotten buyer.
func (b *buyer) traces() []string {
	return []string{b.email, purchase.HashEmail(b.email), b.customer, b.subscription, b.click}
}

// event is a Stripe event, the same on each resend.
type event struct {
	buyer   *buyer
	receipt purchase.Receipt
	invoice bool

	created  bool // at Stripe, with its time
	received bool
}

// fakeMessage is a message in PURCHASES.
type fakeMessage struct {
	sequence       uint64
	msgID          string
	data           []byte
	firstPublished time.Time // header
	stored         time.Time
	nextDelivery   time.Time // earliest
}

// delivery is a message that is delivered to a worker until its deadline.
type delivery struct {
	*fakeMessage

	id       string
	deadline time.Time
}

// outcomes is a message in OUTCOMES.
type outcomes struct {
	list []message.Outcome
	at   time.Time
}

// deadLetter is a purchase's last dead letter.
type deadLetter struct {
	data []byte
	at   time.Time
}

// tiktokEvent is TikTok's record of an event id.
type tiktokEvent struct {
	body    []byte
	counted time.Time // when it last counted as a new event
	times   int       // that it counted
	replays int       // since the first send; each may count once more
}

// history is a simulated world with a skewed clock for each process.
type history struct {
	*testLedger

	rt        *rapid.T
	relay     *relay.Relay
	sweeper   *relay.Sweeper
	buyers    []*buyer
	events    []*event
	created   map[string]time.Time // sessions and invoices, at Stripe
	now       time.Time            // by the clocks of NATS and TikTok
	postgres  time.Duration        // skew of Postgres' clock
	ingest    time.Duration
	worker    time.Duration
	faultless bool

	stream      map[string]*fakeMessage // by purchase
	sequence    uint64
	msgIDs      map[string]time.Time // when each was stored
	network     []relay.Claim        // publishes that arrive later
	inFlight    []delivery
	outcomes    []outcomes
	reported    []message.Outcome // all outcomes ever, for repeats
	deadLetters map[string]deadLetter
	stored      map[string]map[int]bool // generations by purchase that a worker may have received
	tiktok      map[string]*tiktokEvent
	accepted    map[string]bool // purchases that were delivered on the ledger
	attempts    int
}

func newHistory(l *testLedger, rt *rapid.T) *history {
	skew := rapid.SampledFrom([]time.Duration{0, -3 * time.Minute, 3 * time.Minute})
	h := &history{
		testLedger: l, rt: rt, now: base, postgres: skew.Draw(rt, "Postgres' clock"),
		ingest: skew.Draw(rt, "ingest's clock"), worker: skew.Draw(rt, "worker's clock"),
		created: make(map[string]time.Time), deadLetters: make(map[string]deadLetter),
		stored: make(map[string]map[int]bool), tiktok: make(map[string]*tiktokEvent),
		accepted: make(map[string]bool),
	}
	h.wipePurchases(rt)
	h.Exec(`TRUNCATE purchases, profiles, stripe_events, attempts, trials,
		rollup_changes, rollup_totals, rollup_sales, rollup_keys, rollup_delays, rollup_statuses`)
	h.advance(0)
	for i := range rapid.IntRange(1, 2).Draw(rt, "buyers") {
		h.addBuyer(string(rune('a' + i)))
	}
	h.restartIngest(rt)
	return h
}

// addBuyer adds a buyer and the events that Stripe may send.
func (h *history) addBuyer(name string) {
	b := &buyer{
		name: name, email: name + "@example.com", customer: "cus_" + name, subscription: "sub_" + name,
		click: "click-" + name,
	}
	h.buyers = append(h.buyers, b)
	add := func(id, session string, status purchase.Status, change func(p *purchase.Purchase)) {
		r := receipt("evt_"+id, session, status, "")
		r.Purchase.Customer, r.Purchase.Subscription = b.customer, ""
		if !r.Purchase.At.IsZero() {
			r.Purchase.Email = b.email
			r.Purchase.Keys = purchase.MatchKeys{Email: purchase.HashEmail(b.email), TTCLID: b.click}
		}
		change(&r.Purchase)
		invoice := r.Purchase.Kind == purchase.KindFirstPayment
		h.events = append(h.events, &event{buyer: b, receipt: r, invoice: invoice})
	}
	same := func(*purchase.Purchase) {}
	add("paid_"+name, "cs_paid_"+name, purchase.StatusPending, same)
	add("again_"+name, "cs_paid_"+name, purchase.StatusPending, same) // another event of the same session
	add("unpaid_"+name, "cs_late_"+name, purchase.StatusAwaitingPayment, same)
	add("failed_"+name, "cs_late_"+name, purchase.StatusPaymentFailed, same)
	add("late_"+name, "cs_late_"+name, purchase.StatusPending, same)
	add("trial_"+name, "cs_trial_"+name, purchase.StatusSkipped, func(p *purchase.Purchase) {
		p.Reason, p.Kind, p.Trial = purchase.ReasonNoPayment, purchase.KindTrial, true
		p.Subscription = b.subscription
	})
	for i, period := range []time.Time{base, base.AddDate(0, 1, 0)} {
		id := fmt.Sprintf("%s_%d", name, i)
		add("invoice_"+id, "in_"+id, purchase.StatusPending, func(p *purchase.Purchase) {
			p.Kind, p.Subscription, p.PeriodStart = purchase.KindFirstPayment, b.subscription, period
			p.Email, p.Keys = "", purchase.MatchKeys{}
		})
	}
}

func (h *history) must(err error) {
	if err != nil {
		h.rt.Fatal(err)
	}
}

func (h *history) draw(label string, of ...string) string {
	return rapid.SampledFrom(of).Draw(h.rt, label)
}

// advance advances every clock, delivers delayed publishes and drops what expires.
func (h *history) advance(d time.Duration) {
	if d >= time.Second {
		for _, p := range h.network {
			h.store(p)
		}
		h.network = nil
	}
	h.now = h.now.Add(d + time.Millisecond)
	h.setClock(h.now.Add(h.postgres))
	maps.DeleteFunc(h.deadLetters, func(_ string, l deadLetter) bool {
		return h.now.Sub(l.at) > deadLetterRetention
	})
	h.inFlight = slices.DeleteFunc(h.inFlight, func(d delivery) bool { return !d.deadline.After(h.now) })
}

// start begins an action. Each has a time of its own.
func (h *history) start(rt *rapid.T) {
	h.rt = rt
	h.advance(0)
}

// Stripe.

func (h *history) webhook(rt *rapid.T) {
	h.start(rt)
	ids := make([]string, len(h.events))
	for i, e := range h.events {
		ids[i] = e.receipt.Event.ID
	}
	e := h.events[slices.Index(ids, h.draw("event", ids...))]
	if e.buyer.forgotten && !e.received && !e.invoice {
		rt.Skip("a forgotten buyer who returns is a new buyer")
	}
	if !e.created {
		created, known := h.created[e.receipt.Purchase.ID]
		switch {
		case !known:
			created = h.now.Truncate(time.Second)
			h.created[e.receipt.Purchase.ID] = created
		case h.now.Sub(created) > 14*oneDay:
			rt.Skip("a delayed payment takes at most two weeks")
		}
		e.created, e.receipt.Event.Created = true, created
		if e.receipt.Purchase.Status == purchase.StatusPending {
			e.receipt.Purchase.At = created
		}
	}
	if h.now.Sub(e.receipt.Event.Created) > stripeResendWindow {
		rt.Skip("Stripe does not resend older events")
	}
	r := e.receipt
	r.Received, r.Claim = h.now.Add(h.ingest), rapid.Bool().Draw(rt, "claimed")
	recorded, err := h.Record(h.T.Context(), r)
	h.must(err)
	e.received = true
	if !recorded.Claimed.IsZero() {
		h.relay.Enqueue(r.Purchase, recorded)
	}
}

func (h *history) convertHeld(rt *rapid.T) {
	h.start(rt)
	_, err := h.ConvertHeld(h.T.Context(), purchase.InvoiceHoldTime)
	h.must(err)
}

// Ingest.

// restartIngest loses the relay's enqueued purchases and unwritten marks.
func (h *history) restartIngest(rt *rapid.T) {
	h.rt = rt
	clock := func() time.Time { return h.now.Add(h.ingest) }
	h.relay = relay.New(h.DB, h, clock, zap.NewNop(), prometheus.NewRegistry())
	config := relay.SweeperConfig{Interval: time.Minute, Grace: sweepGrace, MaxAge: retryMaxAge}
	h.sweeper = relay.NewSweeper(config, h.DB, h, clock, zap.NewNop(), prometheus.NewRegistry())
}

func (h *history) publish(rt *rapid.T) {
	h.start(rt)
	_, err := h.relay.Pass(h.T.Context(), true)
	h.mayFail(err)
	if rapid.Bool().Draw(rt, "marks are written") {
		h.advance(time.Second)
		_, err := h.relay.Pass(h.T.Context(), false)
		h.mayFail(err)
	}
}

// mayFail fails the test unless err is a fault of the queue's model.
func (h *history) mayFail(err error) {
	if err != nil && (h.faultless || !errors.Is(err, errNoAck) && !errors.Is(err, relay.ErrStreamFull)) {
		h.rt.Fatal(err)
	}
}

func (h *history) sweep(rt *rapid.T) {
	h.start(rt)
	if !rapid.Bool().Draw(rt, "immediately") {
		h.advance(sweepGrace + time.Minute)
	}
	err := h.sweeper.Sweep(h.T.Context())
	if err != nil && h.lag() > sweepGrace/2 {
		return // postponed
	}
	h.mayFail(err)
}

// loseQueue wipes PURCHASES and sweeps.
func (h *history) loseQueue(rt *rapid.T) {
	h.wipePurchases(rt)
	h.sweep(rt)
}

func (h *history) replay(rt *rapid.T) {
	statuses := []purchase.Status{purchase.StatusDead, purchase.StatusSkipped}
	h.replayAll(rt, maintenance.Selection{
		Status: rapid.SampledFrom(statuses).Draw(rt, "replayed"),
		Within: rapid.SampledFrom([]time.Duration{0, time.Minute}).Draw(rt, "within"),
	})
}

func (h *history) replayAll(rt *rapid.T, s maintenance.Selection) (ids []string) {
	h.start(rt)
	// The expected purchases, by the clock that dated their ends.
	ids = ask[[]string](h.testLedger, `
		SELECT COALESCE(array_agg(checkout_session_id ORDER BY 1), '{}') FROM purchases
		WHERE envelope IS NOT NULL AND status = $1 AND ($1 = 'dead' OR reason = 'not_configured')
		AND ($2 = 0 OR finished_at >= (SELECT at FROM history.clock) - make_interval(secs => $2))`,
		s.Status, s.Within.Seconds())
	got, err := h.Replay(h.T.Context(), s, func(int) {})
	h.must(err)
	if got != len(ids) {
		rt.Fatalf("replayed %d, want %v", got, ids)
	}
	for _, id := range ids {
		if p := h.tiktok[id]; p != nil {
			p.replays++
		}
	}
	return ids
}

// replayBeforeOutcome replays, and records outcomes before the relay claims the purchases. They are about
// messages that a sweep stored under the same generation, with a lost acknowledgement.
func (h *history) replayBeforeOutcome(rt *rapid.T) {
	for _, id := range h.replayAll(rt, maintenance.Selection{Status: purchase.StatusDead}) {
		generation := ask[int](h.testLedger, `SELECT generation FROM purchases WHERE checkout_session_id = $1`, id)
		if h.stored[id][generation] {
			h.reportLate(id, generation)
		}
	}
	if len(h.outcomes) > 0 {
		h.record(rt, len(h.outcomes))
	}
}

func (h *history) fold(rt *rapid.T) {
	h.start(rt)
	_, err := h.Fold(h.T.Context())
	h.must(err)
}

// season is a period without faults, long enough for pruning.
func (h *history) season(rt *rapid.T) {
	h.start(rt)
	h.finishAll(rt)
	h.advance(40 * oneDay)
}

func (h *history) pruneAll(rt *rapid.T) {
	h.start(rt)
	p := maintenance.Pruning{Before: h.now.Add(h.postgres - maintenance.MinPruneAge)}
	if rapid.Bool().Draw(rt, "dead") {
		p.Also = []purchase.Status{purchase.StatusDead}
	}
	_, err := h.Prune(h.T.Context(), p, func(maintenance.Pruned) {})
	h.must(err)
	left := ask[[]string](h.testLedger, `SELECT COALESCE(array_agg(checkout_session_id), '{}') FROM purchases`)
	maps.DeleteFunc(h.accepted, func(id string, _ bool) bool { return !slices.Contains(left, id) })
	h.CheckRollup(rt, nil, ledgertest.Since(time.Time{}))
}

// forget runs the command, which may be interrupted after each of its steps and repeated later.
func (h *history) forget(rt *rapid.T) {
	h.start(rt)
	b := h.buyers[rapid.IntRange(0, len(h.buyers)-1).Draw(rt, "forgotten buyer")]
	steps := rapid.SampledFrom([]int{3, 3, 3, 1, 2}).Draw(rt, "steps")
	person, err := h.Forget(h.T.Context(), b.email)
	if errors.Is(err, report.ErrNotFound) {
		rt.Skip("the ledger has no data of the buyer")
	}
	h.must(err)
	if steps < 2 {
		return
	}
	for again := false; ; again = true {
		found := false
		for _, bought := range person.Purchases {
			found = found || h.stream[bought.ID] != nil || h.deadLetters[bought.ID].data != nil
			delete(h.stream, bought.ID)
			delete(h.deadLetters, bought.ID)
		}
		if again && !found {
			break
		}
		h.advance(ackWait + 5*time.Second)
	}
	if steps < 3 {
		return
	}
	_, done, err := h.Unlink(h.T.Context(), b.email, person)
	h.must(err)
	if !done {
		rt.Fatal("Unlink found a new purchase, want none")
	}
	b.forgotten = true
	h.checkForgotten(b, b.traces())
	h.CheckRollup(rt, nil, ledgertest.Since(time.Time{}))
}

// checkForgotten searches every table, the queue and the dead letters for traces.
func (h *history) checkForgotten(b *buyer, traces []string) {
	everything := h.Dump()
	for _, trace := range traces {
		if ledgertest.Holds(everything, trace) {
			h.rt.Fatalf("the ledger holds %q of a forgotten buyer", trace)
		}
		for id, m := range h.stream {
			if strings.Contains(string(m.data), trace) {
				h.rt.Fatalf("the queue holds %q of the forgotten %s in %s", trace, b.name, id)
			}
		}
		for id, l := range h.deadLetters {
			if strings.Contains(string(l.data), trace) {
				h.rt.Fatalf("a dead letter holds %q of the forgotten %s in %s", trace, b.name, id)
			}
		}
	}
}

// The queue, as a relay.Queue with the settings of PURCHASES.

// Connected implements relay.Queue.
func (h *history) Connected() bool { return true }

// OutcomeLag implements relay.Queue.
func (h *history) OutcomeLag(context.Context) (time.Duration, error) { return h.lag(), nil }

func (h *history) lag() (lag time.Duration) {
	for _, o := range h.outcomes {
		lag = max(lag, h.now.Sub(o.at))
	}
	return lag
}

// Publish implements relay.Queue.
func (h *history) Publish(_ context.Context, batch []relay.Claim) []relay.PublishResult {
	results := make([]relay.PublishResult, len(batch))
	order := make([]int, len(batch))
	for i := range order {
		order[i] = i
	}
	// The ledger returns rows in any order, but a failed history must be reproducible.
	slices.SortFunc(order, func(i, j int) int { return strings.Compare(msgID(batch[i]), msgID(batch[j])) })
	for _, i := range order {
		p := batch[i]
		fault := "none"
		if !h.faultless {
			fault = h.draw("publish fault", "none", "none", "none", "stored, ack lost", "not stored, timeout",
				"stored later, timeout", "full")
		}
		switch fault {
		case "stored, ack lost":
			h.store(p)
			results[i].Err = errNoAck
		case "not stored, timeout":
			results[i].Err = errNoAck
		case "stored later, timeout":
			h.network = append(h.network, p)
			results[i].Err = errNoAck
		case "full":
			results[i].Err, results[i].NotStored = relay.ErrStreamFull, true
		default:
			results[i] = h.store(p)
		}
	}
	return results
}

// store stores a message as the stream does: a known message id is a duplicate, a subject holds one message.
func (h *history) store(p relay.Claim) relay.PublishResult {
	id := p.ID
	if at, known := h.msgIDs[msgID(p)]; known && h.now.Sub(at) < streamDedupeWindow {
		return relay.PublishResult{Sequence: h.sequence, Duplicate: true}
	}
	if h.stream[id] != nil {
		return relay.PublishResult{Err: relay.ErrStillQueued}
	}
	h.sequence++
	h.msgIDs[msgID(p)] = h.now
	h.stream[id] = &fakeMessage{
		sequence: h.sequence, msgID: msgID(p), data: p.Envelope, firstPublished: p.FirstPublished,
		stored: h.now, nextDelivery: h.now,
	}
	if h.stored[id] == nil {
		h.stored[id] = make(map[int]bool)
	}
	h.stored[id][p.Generation] = true
	return relay.PublishResult{Sequence: h.sequence}
}

func msgID(c relay.Claim) string { return message.MsgID(c.ID, c.Generation) }

func (h *history) wipePurchases(rt *rapid.T) {
	h.rt = rt
	h.stream, h.msgIDs = make(map[string]*fakeMessage), make(map[string]time.Time)
}

func (h *history) wipeOutcomes(rt *rapid.T) {
	h.start(rt)
	h.outcomes = nil
}

// The workers.

func (h *history) fetch(rt *rapid.T) {
	h.start(rt)
	for _, id := range slices.Sorted(maps.Keys(h.stream)) {
		if m := h.stream[id]; !m.nextDelivery.After(h.now) {
			m.nextDelivery = h.now.Add(ackWait)
			h.inFlight = append(h.inFlight, delivery{fakeMessage: m, id: id, deadline: m.nextDelivery})
		}
	}
}

// work fetches the waiting messages and delivers them one by one.
func (h *history) work(rt *rapid.T) {
	h.fetch(rt)
	for len(h.inFlight) > 0 {
		d := h.inFlight[0]
		h.inFlight = h.inFlight[1:]
		h.deliver(d)
	}
}

// deliver processes a message as a worker does, which may crash at any step.
func (h *history) deliver(d delivery) {
	clock := h.now.Add(h.worker)
	o := message.Outcome{
		EventID: d.id, Generation: message.Generation(d.msgID), At: clock, Sequence: d.sequence, Taken: d.stored,
	}
	result := "accepted"
	switch {
	case clock.Sub(d.firstPublished) >= retryMaxAge:
		result = "expired"
	case !h.faultless:
		result = h.draw("worker", "accepted", "accepted", "not accepted", "not accepted",
			"accepted, response lost", "rejected", "off", "crash before the request")
	}
	attempt := func(class purchase.Class, code int) {
		h.attempts++
		o.Attempt = &message.Attempt{
			ID: fmt.Sprintf("a%d", h.attempts), At: clock, Class: class, Code: &code, Message: "m",
			RequestID: fmt.Sprintf("r%d", h.attempts),
		}
	}
	switch result {
	case "crash before the request":
		return
	case "accepted":
		h.accept(d)
		attempt(purchase.ClassDelivered, 0)
		o.Result = purchase.StatusDelivered
	case "accepted, response lost":
		h.accept(d)
		fallthrough
	case "not accepted":
		attempt(purchase.ClassRetry, 50000)
		o.Result = purchase.StatusRetrying
	case "rejected":
		attempt(purchase.ClassRefused, 40002)
		o.Result, o.Reason = purchase.StatusDead, purchase.ReasonRefused
	case "off":
		o.Result, o.Reason = purchase.StatusSkipped, purchase.ReasonNotConfigured
	default:
		o.Result, o.Reason = purchase.StatusDead, purchase.ReasonExpired
	}
	crash := "none"
	if !h.faultless {
		crash = h.draw("crash", "none", "none", "none",
			"before the dead letter", "before the outcome", "before the ack")
	}
	if crash == "before the dead letter" {
		return
	}
	if o.Result == purchase.StatusDead {
		h.deadLetters[d.id] = deadLetter{d.data, h.now}
	}
	if crash == "before the outcome" {
		return
	}
	h.report(o)
	if crash == "before the ack" || h.stream[d.id] != d.fakeMessage {
		return
	}
	if o.Result == purchase.StatusRetrying {
		d.nextDelivery = h.now.Add(time.Minute)
		return
	}
	delete(h.stream, d.id)
}

// accept receives a request as TikTok does.
func (h *history) accept(d delivery) {
	e, err := message.DecodeEnvelope(d.data)
	h.must(err)
	for _, b := range h.buyers {
		if b.forgotten && e.Keys.TTCLID == b.click {
			h.rt.Fatalf("%s of the forgotten %s was sent", d.id, b.name)
		}
	}
	p := h.tiktok[d.id]
	if p == nil {
		p = &tiktokEvent{body: d.data}
		h.tiktok[d.id] = p
	}
	if string(p.body) != string(d.data) {
		h.rt.Fatalf("%s was sent as\n%s\nand as\n%s", d.id, p.body, d.data)
	}
	if p.times > 0 && h.now.Sub(p.counted) < tiktokDedupeWindow {
		return
	}
	if p.counted, p.times = h.now, p.times+1; p.times > 1+p.replays {
		h.rt.Fatalf("%s counts %d times at TikTok after %d replays", d.id, p.times, p.replays)
	}
}

func (h *history) report(list ...message.Outcome) {
	h.outcomes = append(h.outcomes, outcomes{list, h.now})
	h.reported = append(h.reported, list...)
}

// reportAgain publishes an earlier outcome again, or the delayed outcome of any generation that the queue
// ever held, from a worker that paused after its request.
func (h *history) reportAgain(rt *rapid.T) {
	h.start(rt)
	if len(h.stored) == 0 {
		rt.Skip("nothing was ever queued")
	}
	if len(h.reported) > 0 && rapid.IntRange(0, 2).Draw(rt, "repeat") == 0 {
		h.report(h.reported[rapid.IntRange(0, len(h.reported)-1).Draw(rt, "outcome")])
	} else {
		id := h.draw("purchase", slices.Sorted(maps.Keys(h.stored))...)
		h.reportLate(id, rapid.SampledFrom(slices.Sorted(maps.Keys(h.stored[id]))).Draw(rt, "generation"))
	}
	if rapid.Bool().Draw(rt, "recorded") {
		h.record(rt, len(h.outcomes))
	}
}

// reportLate publishes an outcome of a message that a worker may have received.
func (h *history) reportLate(id string, generation int) {
	results := []purchase.Status{purchase.StatusRetrying, purchase.StatusDead}
	if h.tiktok[id] != nil {
		results = append(results, purchase.StatusDelivered)
	}
	result := rapid.SampledFrom(results).Draw(h.rt, "result")
	h.attempts++
	h.report(outcome(id, generation, result, fmt.Sprintf("a%d", h.attempts), h.now.Add(h.worker)))
}

// recordSome records outcomes in any order. Those that are not acknowledged are redelivered.
func (h *history) recordSome(rt *rapid.T) {
	h.start(rt)
	if len(h.outcomes) == 0 {
		rt.Skip("no outcomes")
	}
	h.record(rt, rapid.IntRange(1, len(h.outcomes)).Draw(rt, "messages"))
}

func (h *history) record(rt *rapid.T, n int) {
	if !h.faultless {
		h.outcomes = rapid.Permutation(h.outcomes).Draw(rt, "order")
	}
	var batch []message.Outcome
	for _, m := range h.outcomes[:n] {
		batch = append(batch, m.list...)
	}
	_, err := h.Settle(h.T.Context(), batch)
	h.must(err)
	if h.faultless || rapid.IntRange(0, 3).Draw(rt, "acknowledged") > 0 {
		h.outcomes = h.outcomes[n:]
	}
}

func (h *history) timePasses(rt *rapid.T) {
	h.start(rt)
	times := []time.Duration{
		2 * time.Second, relay.ClaimTimeout + time.Second, 3 * time.Minute, 20 * time.Hour, 50 * time.Hour,
	}
	h.advance(rapid.SampledFrom(times).Draw(rt, "time"))
}

// The promises.

const sqlBrokenPromises = `
	SELECT COALESCE(string_agg(checkout_session_id || ' is ' || status || ': ' || what, '; '), '') FROM (
		SELECT p.checkout_session_id, p.status, CASE
			WHEN p.attempts <> (SELECT count(*) FROM purchase_attempts a
				WHERE a.checkout_session_id = p.checkout_session_id)
				THEN 'attempts differs from the number of attempts'
			WHEN p.attempt_id IS NOT NULL AND p.attempts <> 1 THEN 'has an only attempt and others'
			WHEN (p.finished_at IS NOT NULL) <> (p.status IN ('delivered', 'dead', 'skipped', 'rejected'))
				THEN 'finished_at does not match the status'
			WHEN p.finished_at > (SELECT at FROM history.clock) THEN 'finished_at is in the future'
			WHEN p.status IN ('pending', 'published', 'retrying') AND p.envelope IS NULL THEN 'no envelope'
			WHEN p.status = 'delivered' AND p.reason <> '' THEN 'has the reason ' || p.reason
		END AS what FROM purchases p) w
	WHERE what IS NOT NULL`

// check checks the promises after every step.
func (h *history) check(rt *rapid.T) {
	h.rt = rt
	if broken := ask[string](h.testLedger, sqlBrokenPromises); broken != "" {
		rt.Fatal(broken)
	}
	delivered := ask[[]string](h.testLedger, `
		SELECT COALESCE(array_agg(checkout_session_id), '{}') FROM purchases WHERE status = 'delivered'`)
	for id := range h.accepted {
		if !slices.Contains(delivered, id) {
			status := ask[string](h.testLedger, `
				SELECT COALESCE((SELECT status FROM purchases WHERE checkout_session_id = $1), 'missing')`, id)
			rt.Fatalf("%s was delivered and is now %s", id, status)
		}
	}
	for _, id := range delivered {
		h.accepted[id] = true
		if h.tiktok[id] == nil {
			rt.Fatalf("%s is delivered, but TikTok has no such event", id)
		}
	}
}

// finishAll stops the faults until every paid purchase has ended.
func (h *history) finishAll(rt *rapid.T) {
	h.rt, h.faultless = rt, true
	defer func() { h.faultless = false }()
	const state = `SELECT COALESCE(string_agg(concat_ws(' ', checkout_session_id, status, generation), ', '
		ORDER BY checkout_session_id), '') FROM purchases`
	const open = `SELECT count(*) FROM purchases WHERE status IN ('pending', 'published', 'retrying')`
	inFlight := func() int { return len(h.stream) + len(h.outcomes) + len(h.network) }
	for round := 0; ask[int](h.testLedger, open) > 0 || inFlight() > 0; round++ {
		if round == 20 {
			rt.Fatalf("%d queued and %d outcomes left of %s", len(h.stream), len(h.outcomes),
				ask[string](h.testLedger, state))
		}
		_, err := h.relay.Pass(h.T.Context(), true)
		h.mayFail(err)
		h.work(rt)
		if len(h.outcomes) > 0 {
			h.record(rt, len(h.outcomes))
		}
		h.advance(20 * time.Minute)
		h.mayFail(h.sweeper.Sweep(h.T.Context()))
	}
	h.check(rt)
	h.CheckRollup(rt, nil, ledgertest.Since(time.Time{}))
	for _, b := range h.buyers {
		if b.forgotten {
			h.checkForgotten(b, []string{purchase.HashEmail(b.email), b.click, b.email})
		}
	}
}

func TestHistories_KeepThePromises(t *testing.T) {
	t.Parallel()
	l := newTimedLedger(t)
	rapid.Check(t, func(rt *rapid.T) {
		h := newHistory(l, rt)
		rt.Repeat(map[string]func(*rapid.T){
			"":        h.check,
			"webhook": h.webhook, "webhook 2": h.webhook, "webhook 3": h.webhook, "held invoices": h.convertHeld,
			"publish": h.publish, "publish 2": h.publish, "restart ingest": h.restartIngest, "sweep": h.sweep,
			"lose queue": h.loseQueue, "wipe PURCHASES": h.wipePurchases, "wipe OUTCOMES": h.wipeOutcomes,
			"work": h.work, "work 2": h.work, "fetch": h.fetch, "report again": h.reportAgain,
			"report again 2": h.reportAgain, "record": h.recordSome, "record 2": h.recordSome, "replay": h.replay,
			"replay before outcome": h.replayBeforeOutcome, "fold": h.fold, "season": h.season,
			"prune": h.pruneAll, "forget": h.forget, "time": h.timePasses,
		})
		h.finishAll(rt)
	})
}
