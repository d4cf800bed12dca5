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

// Random histories: the real ledger, relay and sweeper between models of Stripe, the queue, the workers and
// TikTok. Whatever happens in whatever order, the promises hold at every step, and every paid purchase ends
// once the faults stop.
//
//	go test ./internal/ledger -run TestHistories_KeepThePromises -rapid.checks=5000     a long run

const (
	retryMaxAge = 47 * time.Hour
	sweepGrace  = 10 * time.Minute
	ackWait     = 30 * time.Second
	dedupeFor   = 2 * time.Minute // of message ids, by the stream
	tiktokFor   = 48 * time.Hour  // of event ids, by TikTok
	stripeFor   = 30 * oneDay     // for which Stripe repeats an event
	letterFor   = 30 * oneDay     // for which PURCHASES_DEAD keeps a dead letter
)

// buyer is a customer with a paid checkout, one by a delayed method, and a trial with its invoices.
type buyer struct {
	name, email, customer, subscription, click string
	forgotten                                  bool
}

// traces are what must not be left of a forgotten buyer.
func (b *buyer) traces() []string {
	return []string{b.email, purchase.HashEmail(b.email), b.customer, b.subscription, b.click}
}

// event is one of Stripe's: it is the same each time that it comes.
type event struct {
	buyer   *buyer
	receipt purchase.Receipt
	invoice bool

	happened bool // at Stripe: it has its time
	heard    bool
}

// message is one in PURCHASES.
type fakeMessage struct {
	sequence  uint64
	msgID     string
	data      []byte
	first     time.Time // its header
	taken     time.Time // when the stream stored it
	from      time.Time // when it may be delivered next
	delivered int
}

// delivery is a message in a worker's hands, until its deadline.
type delivery struct {
	*fakeMessage

	id       string
	deadline time.Time
}

// outcomes is one message in OUTCOMES.
type outcomes struct {
	list []message.Outcome
	at   time.Time
}

// letter is a purchase's last dead letter.
type letter struct {
	data []byte
	at   time.Time
}

// pixel is what TikTok knows of an event id.
type pixel struct {
	body    []byte
	counted time.Time // when it last counted as a new event
	times   int
	replays int // since the first send: each may count once more
}

// history is one world. Its clocks are apart.
type history struct {
	*testLedger

	rt       *rapid.T
	relay    *relay.Relay
	sweeper  *relay.Sweeper
	buyers   []*buyer
	events   []*event
	began    map[string]time.Time // sessions and invoices, at Stripe
	now      time.Time            // the true time, and that of NATS and TikTok
	database time.Duration
	ingest   time.Duration
	worker   time.Duration
	calm     bool // no faults any more

	stream   map[string]*fakeMessage // by purchase
	sequence uint64
	ids      map[string]time.Time // message ids, and when they were stored
	network  []relay.Claim
	inFlight []delivery
	outcomes []outcomes
	told     []message.Outcome // ever published, for repeats
	letters  map[string]letter
	stored   map[string]map[int]bool // generations that a worker may have had
	tiktok   map[string]*pixel
	accepted map[string]bool // purchases that were delivered on the ledger
	attempts int
}

func newHistory(l *testLedger, rt *rapid.T) *history {
	skew := rapid.SampledFrom([]time.Duration{0, -3 * time.Minute, 3 * time.Minute})
	h := &history{
		testLedger: l, rt: rt, now: base, database: skew.Draw(rt, "database's clock"), ingest: skew.Draw(rt, "ingest's clock"), worker: skew.Draw(rt, "worker's clock"),
		began: make(
			map[string]time.Time,
		), letters: make(map[string]letter), stored: make(map[string]map[int]bool), tiktok: make(map[string]*pixel), accepted: make(map[string]bool),
	}
	h.wipePurchases(rt)
	h.do(
		`TRUNCATE purchases, profiles, stripe_events, attempts, trials, rollup_changes, rollup_totals, rollup_delays, rollup_hours, rollup_statuses`,
	)
	h.pass(0)
	for i := range rapid.IntRange(1, 2).Draw(rt, "buyers") {
		h.arrive(string(rune('a' + i)))
	}
	h.restartIngest(rt)
	return h
}

// arrive makes a buyer and the events that Stripe will send.
func (h *history) arrive(name string) {
	b := &buyer{
		name:         name,
		email:        name + "@example.com",
		customer:     "cus_" + name,
		subscription: "sub_" + name,
		click:        "click-" + name,
	}
	h.buyers = append(h.buyers, b)
	add := func(id, session string, status purchase.Status, reason purchase.Reason, change func(r *purchase.Receipt)) {
		r := receipt("evt_"+id, session, status, reason)
		r.Purchase.Customer, r.Purchase.Subscription = b.customer, ""
		if !r.Purchase.At.IsZero() {
			r.Purchase.Email = b.email
			r.Purchase.Keys = purchase.MatchKeys{Email: purchase.HashEmail(b.email), TTCLID: b.click}
		}
		change(&r)
		h.events = append(
			h.events,
			&event{buyer: b, receipt: r, invoice: r.Purchase.Kind == purchase.KindFirstPayment},
		)
	}
	same := func(*purchase.Receipt) {}
	add("paid_"+name, "cs_paid_"+name, purchase.StatusPending, "", same)
	add("again_"+name, "cs_paid_"+name, purchase.StatusPending, "", same) // another event about the same
	add("unpaid_"+name, "cs_late_"+name, purchase.StatusAwaitingPayment, "", same)
	add("failed_"+name, "cs_late_"+name, purchase.StatusPaymentFailed, "", same)
	add("late_"+name, "cs_late_"+name, purchase.StatusPending, "", same)
	add(
		"trial_"+name,
		"cs_trial_"+name,
		purchase.StatusSkipped,
		purchase.ReasonNoPayment,
		func(r *purchase.Receipt) {
			r.Purchase.Kind, r.Purchase.Trial, r.Purchase.Subscription = purchase.KindTrial, true, b.subscription
		},
	)
	for i, period := range []time.Time{base, base.AddDate(0, 1, 0)} {
		add(
			fmt.Sprintf("invoice_%s_%d", name, i),
			fmt.Sprintf("in_%s_%d", name, i),
			purchase.StatusPending,
			"",
			func(r *purchase.Receipt) {
				r.Purchase.Kind, r.Purchase.Subscription, r.Purchase.PeriodStart = purchase.KindFirstPayment, b.subscription, period
				r.Purchase.Email, r.Purchase.Keys = "", purchase.MatchKeys{}
			},
		)
	}
}

func (h *history) do(sql string, args ...any) {
	if _, err := h.conn.Exec(h.t.Context(), sql, args...); err != nil {
		h.rt.Fatal(err)
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

// pass moves every clock, and lets happen what had to.
func (h *history) pass(d time.Duration) {
	if d >= time.Second {
		for _, p := range h.network { // it arrives after all
			h.store(p)
		}
		h.network = nil
	}
	h.now = h.now.Add(d + time.Millisecond)
	h.do(`UPDATE history.clock SET at = $1`, h.now.Add(h.database))
	maps.DeleteFunc(h.letters, func(_ string, l letter) bool { return h.now.Sub(l.at) > letterFor })
	h.inFlight = slices.DeleteFunc(
		h.inFlight,
		func(d delivery) bool { return !d.deadline.After(h.now) },
	) // its worker died
}

// tick keeps two actions from happening at one time.
func (h *history) tick(rt *rapid.T) {
	h.rt = rt
	h.pass(0)
}

// Stripe.

func (h *history) webhook(rt *rapid.T) {
	h.tick(rt)
	ids := make([]string, len(h.events))
	for i, e := range h.events {
		ids[i] = e.receipt.Event.ID
	}
	e := h.events[slices.Index(ids, h.draw("event", ids...))]
	if e.buyer.forgotten && !e.heard && !e.invoice {
		rt.Skip("a forgotten buyer who comes back is another one")
	}
	if !e.happened {
		began, known := h.began[e.receipt.Purchase.ID]
		switch {
		case !known:
			began = h.now.Truncate(time.Second)
			h.began[e.receipt.Purchase.ID] = began
		case h.now.Sub(began) > 14*oneDay:
			rt.Skip("a delayed payment takes no longer")
		}
		e.happened, e.receipt.Event.Created = true, began
		if e.receipt.Purchase.Status == purchase.StatusPending {
			e.receipt.Purchase.At = began
		}
	}
	if h.now.Sub(e.receipt.Event.Created) > stripeFor {
		rt.Skip("Stripe sends it no more")
	}
	r := e.receipt
	r.Received, r.Claim = h.now.Add(h.ingest), rapid.Bool().Draw(rt, "claimed")
	recorded, err := h.Record(h.t.Context(), r)
	h.must(err)
	e.heard = true
	if !recorded.Claimed.IsZero() {
		h.relay.Enqueue(r.Purchase, recorded)
	}
}

func (h *history) convertHeld(rt *rapid.T) {
	h.tick(rt)
	_, err := h.ConvertHeld(h.t.Context(), purchase.InvoiceHoldTime)
	h.must(err)
}

// Ingest.

// restartIngest loses what the relay has in memory: offers, and marks that are not written.
func (h *history) restartIngest(rt *rapid.T) {
	h.rt = rt
	clock := func() time.Time { return h.now.Add(h.ingest) }
	h.relay = relay.New(h.DB, h, clock, zap.NewNop(), prometheus.NewRegistry())
	h.sweeper = relay.NewSweeper(
		relay.SweeperConfig{Interval: time.Minute, Grace: sweepGrace, MaxAge: retryMaxAge},
		h.DB,
		h,
		clock,
		zap.NewNop(),
		prometheus.NewRegistry(),
	)
}

func (h *history) publish(rt *rapid.T) {
	h.tick(rt)
	_, err := h.relay.Pass(h.t.Context(), true)
	h.mayFail(err)
	if rapid.Bool().Draw(rt, "marks are written") {
		h.pass(time.Second)
		_, err := h.relay.Pass(h.t.Context(), false)
		h.mayFail(err)
	}
}

// mayFail fails for every error but those that the queue's model made.
func (h *history) mayFail(err error) {
	if err != nil && (h.calm || !errors.Is(err, errUnheard) && !errors.Is(err, relay.ErrStreamFull)) {
		h.rt.Fatal(err)
	}
}

func (h *history) sweep(rt *rapid.T) {
	h.tick(rt)
	if !rapid.Bool().Draw(rt, "at once") {
		h.pass(sweepGrace + time.Minute)
	}
	err := h.sweeper.Sweep(h.t.Context())
	if err != nil && h.lag() > sweepGrace/2 {
		return // put off
	}
	h.mayFail(err)
}

// loseQueue is a store that is wiped, and the sweep that finds out.
func (h *history) loseQueue(rt *rapid.T) {
	h.wipePurchases(rt)
	h.sweep(rt)
}

func (h *history) replay(rt *rapid.T) {
	h.replayMany(rt, maintenance.Selection{
		Status: rapid.SampledFrom([]purchase.Status{purchase.StatusDead, purchase.StatusSkipped}).Draw(rt, "replayed"),
		Within: rapid.SampledFrom([]time.Duration{0, time.Minute}).Draw(rt, "within"),
	})
}

func (h *history) replayMany(rt *rapid.T, s maintenance.Selection) (ids []string) {
	h.tick(rt)
	// What a replay is to find, by the clock that dated the ends.
	ids = ask[[]string](h.testLedger, `SELECT COALESCE(array_agg(checkout_session_id ORDER BY 1), '{}') FROM purchases
		WHERE envelope IS NOT NULL AND status = $1 AND ($1 = 'dead' OR reason = 'not_configured')
		AND ($2 = 0 OR finished_at >= (SELECT at FROM history.clock) - make_interval(secs => $2))`,
		s.Status, s.Within.Seconds())
	got, err := h.Replay(h.t.Context(), s, func(int) {})
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

// overtake is a replay, and outcomes that come before the relay claims what was replayed: of a message that a
// sweep had stored under the same generation, its answer lost.
func (h *history) overtake(rt *rapid.T) {
	for _, id := range h.replayMany(rt, maintenance.Selection{Status: purchase.StatusDead}) {
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
	h.tick(rt)
	_, err := h.Fold(h.t.Context())
	h.must(err)
}

// season is a time in which everything is at work, long enough for a pruning.
func (h *history) season(rt *rapid.T) {
	h.tick(rt)
	h.settleDown(rt)
	h.pass(40 * oneDay)
}

func (h *history) pruneAll(rt *rapid.T) {
	h.tick(rt)
	p := maintenance.Pruning{Before: h.now.Add(h.database - maintenance.LeastPruneAge)}
	if rapid.Bool().Draw(rt, "dead ones, too") {
		p.Also = []purchase.Status{purchase.StatusDead}
	}
	_, err := h.Prune(h.t.Context(), p, func(maintenance.Pruned) {})
	h.must(err)
	left := ask[[]string](h.testLedger, `SELECT COALESCE(array_agg(checkout_session_id), '{}') FROM purchases`)
	maps.DeleteFunc(h.accepted, func(id string, _ bool) bool { return !slices.Contains(left, id) })
	h.CheckRollup(rt, nil, time.Time{})
}

// forget is the command, which may be broken off at each of its steps and begun again later.
func (h *history) forget(rt *rapid.T) {
	h.tick(rt)
	b := h.buyers[rapid.IntRange(0, len(h.buyers)-1).Draw(rt, "forgotten buyer")]
	steps := rapid.SampledFrom([]int{3, 3, 3, 1, 2}).Draw(rt, "steps")
	person, err := h.Forget(h.t.Context(), b.email)
	if errors.Is(err, report.ErrUnknown) {
		rt.Skip("nobody")
	}
	h.must(err)
	if steps < 2 {
		return
	}
	for again := false; ; again = true {
		found := false
		for _, held := range person.Held {
			found = found || h.stream[held.ID] != nil || h.letters[held.ID].data != nil
			delete(h.stream, held.ID)
			delete(h.letters, held.ID)
		}
		if again && !found {
			break
		}
		h.pass(ackWait + 5*time.Second)
	}
	if steps < 3 {
		return
	}
	done, err := h.Unlink(h.t.Context(), b.email, person)
	h.must(err)
	if !done {
		rt.Fatal("a purchase came although nothing happened")
	}
	b.forgotten = true
	h.noTraceOf(b, b.traces())
	h.CheckRollup(rt, nil, time.Time{})
}

// noTraceOf looks through every table, the queue and the dead letters.
func (h *history) noTraceOf(b *buyer, traces []string) {
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
		for id, letter := range h.letters {
			if strings.Contains(string(letter.data), trace) {
				h.rt.Fatalf("a dead letter holds %q of the forgotten %s in %s", trace, b.name, id)
			}
		}
	}
}

// The queue: relay.Queue, with the stream's settings.

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
	// The ledger returns rows in any order; a history that failed must repeat.
	slices.SortFunc(order, func(i, j int) int { return strings.Compare(msgID(batch[i]), msgID(batch[j])) })
	for _, i := range order {
		p := batch[i]
		fault := "none"
		if !h.calm {
			fault = h.draw(
				"answer",
				"none",
				"none",
				"none",
				"lost, and stored",
				"lost, not stored",
				"lost, stored later",
				"full",
			)
		}
		switch fault {
		case "lost, and stored":
			h.store(p)
			results[i].Err = errUnheard
		case "lost, not stored":
			results[i].Err = errUnheard
		case "lost, stored later":
			h.network = append(h.network, p)
			results[i].Err = errUnheard
		case "full":
			results[i].Err, results[i].NotStored = relay.ErrStreamFull, true
		default:
			results[i] = h.store(p)
		}
	}
	return results
}

// store takes a message as the stream does: a known id is a duplicate, a subject holds one message.
func (h *history) store(p relay.Claim) relay.PublishResult {
	id := p.ID
	if at, known := h.ids[msgID(p)]; known && h.now.Sub(at) < dedupeFor {
		return relay.PublishResult{Sequence: h.sequence, Duplicate: true}
	}
	if h.stream[id] != nil {
		return relay.PublishResult{Err: relay.ErrStillQueued}
	}
	h.sequence++
	h.ids[msgID(p)] = h.now
	h.stream[id] = &fakeMessage{
		sequence: h.sequence,
		msgID:    msgID(p),
		data:     p.Envelope,
		first:    p.FirstPublished,
		taken:    h.now,
		from:     h.now,
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
	h.stream, h.ids = make(map[string]*fakeMessage), make(map[string]time.Time)
}

func (h *history) wipeOutcomes(rt *rapid.T) {
	h.tick(rt)
	h.outcomes = nil
}

// The workers.

func (h *history) fetch(rt *rapid.T) {
	h.tick(rt)
	for _, id := range slices.Sorted(maps.Keys(h.stream)) {
		if m := h.stream[id]; !m.from.After(h.now) {
			m.delivered, m.from = m.delivered+1, h.now.Add(ackWait)
			h.inFlight = append(h.inFlight, delivery{fakeMessage: m, id: id, deadline: m.from})
		}
	}
}

// work takes what waits and ends one after the other, perhaps not all of it.
func (h *history) work(rt *rapid.T) {
	h.fetch(rt)
	for len(h.inFlight) > 0 {
		d := h.inFlight[0]
		h.inFlight = h.inFlight[1:]
		h.deliver(d)
	}
}

// deliver is what a worker does with one message, or the part of it that it lives to do.
func (h *history) deliver(d delivery) {
	clock := h.now.Add(h.worker)
	o := message.Outcome{
		EventID: d.id, Generation: message.Generation(d.msgID), At: clock, Sequence: d.sequence, Taken: d.taken,
	}
	result := "accepted"
	switch {
	case clock.Sub(d.first) >= retryMaxAge:
		result = "expired"
	case !h.calm:
		result = h.draw(
			"worker",
			"accepted",
			"accepted",
			"not accepted",
			"not accepted",
			"accepted, answer lost",
			"refused",
			"off",
			"killed before it sends",
		)
	}
	attempt := func(class purchase.Class, code int) {
		h.attempts++
		o.Attempt = &message.Attempt{
			ID:        fmt.Sprintf("a%d", h.attempts),
			At:        clock,
			Class:     class,
			Code:      &code,
			Message:   "m",
			RequestID: fmt.Sprintf("r%d", h.attempts),
		}
	}
	switch result {
	case "killed before it sends":
		return
	case "accepted":
		h.accept(d)
		attempt(purchase.ClassDelivered, 0)
		o.Result = purchase.StatusDelivered
	case "accepted, answer lost":
		h.accept(d)
		fallthrough
	case "not accepted":
		attempt(purchase.ClassRetry, 50000)
		o.Result = purchase.StatusRetrying
	case "refused":
		attempt(purchase.ClassRefused, 40002)
		o.Result, o.Reason = purchase.StatusDead, purchase.ReasonRefused
	case "off":
		o.Result, o.Reason = purchase.StatusSkipped, purchase.ReasonNotConfigured
	default:
		o.Result, o.Reason = purchase.StatusDead, purchase.ReasonExpired
	}
	dies := "never"
	if !h.calm {
		dies = h.draw(
			"worker dies",
			"never",
			"never",
			"never",
			"before the letter",
			"before the outcome",
			"before the acknowledgement",
		)
	}
	if dies == "before the letter" {
		return
	}
	if o.Result == purchase.StatusDead {
		h.letters[d.id] = letter{d.data, h.now}
	}
	if dies == "before the outcome" {
		return
	}
	h.report(o)
	if dies == "before the acknowledgement" || h.stream[d.id] != d.fakeMessage {
		return
	}
	if o.Result == purchase.StatusRetrying {
		d.from = h.now.Add(time.Minute)
		return
	}
	delete(h.stream, d.id)
}

// accept is TikTok's side of a send.
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
		p = &pixel{body: d.data}
		h.tiktok[d.id] = p
	}
	if string(p.body) != string(d.data) {
		h.rt.Fatalf("%s was sent as\n%s\nand as\n%s", d.id, p.body, d.data)
	}
	if p.times > 0 && h.now.Sub(p.counted) < tiktokFor {
		return
	}
	if p.counted, p.times = h.now, p.times+1; p.times > 1+p.replays {
		h.rt.Fatalf("%s counts %d times at TikTok after %d replays", d.id, p.times, p.replays)
	}
}

func (h *history) report(list ...message.Outcome) {
	h.outcomes = append(h.outcomes, outcomes{list, h.now})
	h.told = append(h.told, list...)
}

// thaw is a worker that was frozen after its request and reports only now, about any generation that the
// queue ever held; or an outcome that is published once more.
func (h *history) thaw(rt *rapid.T) {
	h.tick(rt)
	if len(h.stored) == 0 {
		rt.Skip("nothing was ever queued")
	}
	if len(h.told) > 0 && rapid.IntRange(0, 2).Draw(rt, "a repeated one") == 0 {
		h.report(h.told[rapid.IntRange(0, len(h.told)-1).Draw(rt, "outcome")])
	} else {
		id := h.draw("purchase", slices.Sorted(maps.Keys(h.stored))...)
		h.reportLate(id, rapid.SampledFrom(slices.Sorted(maps.Keys(h.stored[id]))).Draw(rt, "generation"))
	}
	if rapid.Bool().Draw(rt, "recorded") {
		h.record(rt, len(h.outcomes))
	}
}

// reportLate reports about a message that a worker may have had.
func (h *history) reportLate(id string, generation int) {
	results := []purchase.Status{purchase.StatusRetrying, purchase.StatusDead}
	if h.tiktok[id] != nil {
		results = append(results, purchase.StatusDelivered)
	}
	result := rapid.SampledFrom(results).Draw(h.rt, "result")
	h.attempts++
	h.report(outcome(id, generation, result, fmt.Sprintf("a%d", h.attempts), h.now.Add(h.worker)))
}

// recordSome records outcomes in any order; what is not acknowledged comes again.
func (h *history) recordSome(rt *rapid.T) {
	h.tick(rt)
	if len(h.outcomes) == 0 {
		rt.Skip("no outcome waits")
	}
	h.record(rt, rapid.IntRange(1, len(h.outcomes)).Draw(rt, "messages"))
}

func (h *history) record(rt *rapid.T, n int) {
	if !h.calm {
		h.outcomes = rapid.Permutation(h.outcomes).Draw(rt, "order")
	}
	var batch []message.Outcome
	for _, m := range h.outcomes[:n] {
		batch = append(batch, m.list...)
	}
	_, err := h.Settle(h.t.Context(), batch)
	h.must(err)
	if h.calm || rapid.IntRange(0, 3).Draw(rt, "acknowledged") > 0 {
		h.outcomes = h.outcomes[n:]
	}
}

func (h *history) timePasses(rt *rapid.T) {
	h.tick(rt)
	h.pass(
		rapid.SampledFrom([]time.Duration{2 * time.Second, relay.ClaimTimeout + time.Second, 3 * time.Minute, 20 * time.Hour, 50 * time.Hour}).
			Draw(rt, "time"),
	)
}

// Promises.

// check holds after every step.
func (h *history) check(rt *rapid.T) {
	h.rt = rt
	wrong := ask[string](
		h.testLedger,
		`SELECT COALESCE(string_agg(checkout_session_id || ' is ' || status || ': ' || what, '; '), '') FROM (
		SELECT p.checkout_session_id, p.status, CASE
			WHEN p.attempts <> (SELECT count(*) FROM attempts a WHERE a.checkout_session_id = p.checkout_session_id) THEN 'attempts are not counted once each'
			WHEN (p.finished_at IS NOT NULL) <> (p.status IN ('delivered', 'dead', 'skipped', 'rejected')) THEN 'the end has no time, or a time no end'
			WHEN p.finished_at > (SELECT at FROM history.clock) THEN 'it ends in the future'
			WHEN p.status IN ('pending', 'published', 'retrying') AND p.envelope IS NULL THEN 'it has no message'
			WHEN p.status = 'delivered' AND p.reason <> '' THEN 'it has the reason ' || p.reason
		END AS what FROM purchases p) w WHERE what IS NOT NULL`,
	)
	if wrong != "" {
		rt.Fatal(wrong)
	}
	delivered := ask[[]string](
		h.testLedger,
		`SELECT COALESCE(array_agg(checkout_session_id), '{}') FROM purchases WHERE status = 'delivered'`,
	)
	for id := range h.accepted {
		if !slices.Contains(delivered, id) {
			rt.Fatalf(
				"%s was delivered, and is %s",
				id,
				ask[string](
					h.testLedger,
					`SELECT COALESCE((SELECT status FROM purchases WHERE checkout_session_id = $1), 'gone')`,
					id,
				),
			)
		}
	}
	for _, id := range delivered {
		h.accepted[id] = true
		if h.tiktok[id] == nil {
			rt.Fatalf("%s is delivered, and TikTok has no such event", id)
		}
	}
}

// settleDown ends the faults until nothing moves any more: then every paid purchase has ended.
func (h *history) settleDown(rt *rapid.T) {
	h.rt, h.calm = rt, true
	defer func() { h.calm = false }()
	state := func() string {
		return ask[string](
			h.testLedger,
			`SELECT COALESCE(string_agg(concat_ws(' ', checkout_session_id, status, generation), ', ' ORDER BY checkout_session_id), '') FROM purchases`,
		)
	}
	const open = `SELECT count(*) FROM purchases WHERE status IN ('pending', 'published', 'retrying')`
	for round := 0; ask[int](h.testLedger, open) > 0 || len(h.stream)+len(h.outcomes)+len(h.network) > 0; round++ {
		if round == 20 {
			rt.Fatalf("it never ends: %s; %d queued, %d outcomes", state(), len(h.stream), len(h.outcomes))
		}
		_, err := h.relay.Pass(h.t.Context(), true)
		h.mayFail(err)
		h.work(rt)
		if len(h.outcomes) > 0 {
			h.record(rt, len(h.outcomes))
		}
		h.pass(20 * time.Minute)
		h.mayFail(h.sweeper.Sweep(h.t.Context()))
	}
	h.check(rt)
	h.CheckRollup(rt, nil, time.Time{})
	for _, b := range h.buyers {
		if b.forgotten {
			h.noTraceOf(b, []string{purchase.HashEmail(b.email), b.click, b.email})
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
			"publish": h.publish, "publish 2": h.publish, "restart ingest": h.restartIngest,
			"sweep": h.sweep, "lose queue": h.loseQueue, "wipe PURCHASES": h.wipePurchases, "wipe OUTCOMES": h.wipeOutcomes,
			"work": h.work, "work 2": h.work, "fetch": h.fetch, "thaw": h.thaw, "thaw 2": h.thaw, "record": h.recordSome, "record 2": h.recordSome,
			"replay": h.replay, "overtaken replay": h.overtake, "fold": h.fold, "season": h.season, "prune": h.pruneAll, "forget": h.forget, "time": h.timePasses,
		})
		h.settleDown(rt)
	})
}
