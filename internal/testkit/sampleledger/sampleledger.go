// Package sampleledger fills a migrated, empty ledger with made-up purchases of some weeks, as a shop would have them: quiet
// nights, an outage of TikTok, a wrong setting, trials, tests. Nobody in it exists.
package sampleledger

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"

	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
)

// Options say how much of it. The same seed makes the same ledger, relative to Now.
type Options struct {
	Purchases int
	Days      int
	Now       time.Time
	Seed      uint64
}

// batch is how many purchases are copied at a time.
const batch = 50_000

// Fill writes the ledger.
func Fill(ctx context.Context, url string, o Options) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	s := &shop{Options: o, random: rand.New(rand.NewPCG(o.Seed, 7))} //nolint:gosec // made-up people need no secrets
	for done := 0; done < o.Purchases; done += batch {
		s.profiles, s.purchases, s.events, s.attempts = nil, nil, nil, nil
		for i := done; i < min(o.Purchases, done+batch); i++ {
			if err := s.sell(i); err != nil {
				return err
			}
		}
		for _, t := range []struct {
			name    string
			columns []string
			rows    [][]any
		}{
			{"profiles", []string{
				"id", "livemode", "email", "stripe_customer_id", "stripe_subscription_id",
				"last_purchase_at", "created_at",
			}, s.profiles},
			{"purchases", []string{
				"checkout_session_id", "status", "reason", "profile_id", "mode", "livemode", "amount_minor", "currency", "purchased_at", "stripe_customer_id",
				"stripe_subscription_id", "envelope", "first_published_at", "published_at", "stream_sequence", "attempts", "last_attempt_at", "last_class", "last_code",
				"last_error", "tiktok_request_id", "finished_at", "created_at", "match_keys", "kind",
				"sent_minor",
			}, s.purchases},
			{"stripe_events", []string{"event_id", "type", "checkout_session_id", "livemode", "created_at", "received_at", "disposition"}, s.events},
			{"attempts", []string{"checkout_session_id", "attempt_id", "generation", "at", "took_ms", "class", "code", "message", "request_id"}, s.attempts},
		} {
			if _, err := conn.CopyFrom(ctx, pgx.Identifier{t.name}, t.columns, pgx.CopyFromRows(t.rows)); err != nil {
				return fmt.Errorf("copy %s: %w", t.name, err)
			}
		}
	}
	_, err = conn.Exec(ctx, "ANALYZE")
	return err
}

// Email is the address of the customer who made a purchase.
func Email(i int) string { return fmt.Sprintf("customer%d@shop.example", i) }

type shop struct {
	Options
	random                                *rand.Rand
	profiles, purchases, events, attempts [][]any
}

func (s *shop) chance(p float64) bool { return s.random.Float64() < p }

const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

func (s *shop) id(prefix string, n int) string {
	text := make([]byte, n)
	for i := range text {
		text[i] = letters[s.random.IntN(len(letters))]
	}
	return prefix + string(text)
}

// moment is when somebody buys: seldom at night, more at weekends, a little more each week.
func (s *shop) moment() time.Time {
	for {
		ago := time.Duration(s.random.Float64() * float64(s.Days) * 24 * float64(time.Hour))
		at := s.Now.Add(-ago).Truncate(time.Second)
		weight := 0.2 + 0.45*(1+math.Sin(float64(at.Hour()-9)/24*2*math.Pi))/2
		if at.Weekday() == time.Saturday || at.Weekday() == time.Sunday {
			weight += 0.15
		}
		if s.chance(weight * (1 - 0.3*ago.Hours()/24/float64(s.Days))) {
			return at
		}
	}
}

// outage says whether TikTok was down at a time, and until when.
func (s *shop) outage(at time.Time) (until time.Time, down bool) {
	until = s.Now.AddDate(0, 0, -5).Truncate(24 * time.Hour).Add(17 * time.Hour)
	return until, at.Before(until) && at.After(until.Add(-4*time.Hour))
}

type sale struct {
	id, status, reason     string
	live                   bool
	at                     time.Time
	amount                 int64
	currency               string
	tries                  []try
	finished               *time.Time
	envelope               []byte
	keys                   *int16
	profile, customer, sub string
}

type try struct {
	at      time.Time
	took    time.Duration
	class   string
	code    int
	message string
}

func (s *shop) sell(i int) error {
	p := sale{id: s.id("cs_live_a1", 56), status: "delivered", live: true, at: s.moment(), customer: s.id("cus_", 14), sub: s.id("sub_", 24)}
	if s.chance(0.04) {
		p.id, p.live = s.id("cs_test_a1", 56), false
	}
	prices := map[string][]int64{"usd": {999, 2999, 2999, 9900}, "eur": {999, 2799, 9500}, "gbp": {899, 2499}, "jpy": {1480, 4380}}
	p.currency = []string{"usd", "usd", "usd", "usd", "usd", "usd", "eur", "eur", "eur", "gbp", "jpy"}[s.random.IntN(11)]
	p.amount = prices[p.currency][s.random.IntN(len(prices[p.currency]))]
	s.fate(i, &p)
	p.profile = fmt.Sprintf("%08x-0000-4000-8000-%012x", s.random.Uint32(), i)
	if err := s.pack(i, &p); err != nil {
		return err
	}
	s.write(i, &p)
	return nil
}

// fate decides how a sale ends.
func (s *shop) fate(i int, p *sale) {
	at := p.at.Add(time.Duration(900+s.random.IntN(2200)) * time.Millisecond)
	end := func(status, reason string) {
		p.status, p.reason = status, reason
		p.finished = new(at.Add(60 * time.Millisecond))
	}
	attempt := func(class string, code int, data string) {
		p.tries = append(p.tries, try{at, time.Duration(40+s.random.IntN(220)) * time.Millisecond, class, code, data})
	}
	switch dice := s.random.Float64(); {
	case i < 3: // right now
		p.at, p.live = s.Now.Add(-time.Duration(40+i*50)*time.Second).Truncate(time.Second), true
		at = p.at.Add(2 * time.Second)
		attempt("retry", 50002, "Internal error")
		p.status = "retrying"
	case !p.live && dice < 0.5:
		end("skipped", "test_purchase")
	case dice < 0.012:
		p.amount = 0
		end("skipped", "no_payment")
	case dice < 0.0145:
		end("rejected", "invalid_email")
	case dice < 0.018:
		attempt("refused", 40002, "Batch.0.page.url: Not a valid URL")
		end("dead", "refused")
	case dice < 0.0195 && s.Now.Sub(p.at) > 72*time.Hour:
		for range 3 {
			attempt("retry", 504, "no answer: timeout")
			at = at.Add(15 * time.Hour)
		}
		at = p.at.Add(47 * time.Hour)
		end("dead", "expired")
	case dice < 0.022 && s.Now.Sub(p.at) < 72*time.Hour:
		p.status = "awaiting_payment"
	case dice < 0.023:
		p.status = "payment_failed"
	default:
		if until, down := s.outage(p.at); down {
			for at.Before(until) && len(p.tries) < 9 {
				attempt("retry", 503, "Service Unavailable")
				at = at.Add(time.Duration(1<<len(p.tries)) * time.Minute)
			}
			at = until.Add(time.Duration(s.random.IntN(90)) * time.Second)
		} else if s.chance(0.03) {
			attempt("retry", 50002, "Internal error")
			at = at.Add(time.Duration(1000+s.random.IntN(1500)) * time.Millisecond)
		}
		attempt("delivered", 0, "OK")
		end("delivered", "")
	}
}

// pack makes the message, as far as the sale has one.
func (s *shop) pack(i int, p *sale) error {
	switch p.status {
	case "awaiting_payment", "payment_failed", "rejected":
		return nil
	case "skipped":
		if p.reason == "no_payment" {
			return nil
		}
	}
	keys := purchase.MatchKeys{Email: purchase.HashEmail(Email(i)), ExternalID: purchase.HashExternalID(p.profile)}
	if s.chance(0.41) {
		keys.Phone = purchase.HashPhone(fmt.Sprintf("+1213373%04d", i%10000))
	}
	if s.chance(0.58) {
		keys.TTCLID = s.id("E.C.P.", 24)
		keys.Referrer = "https://www.tiktok.com/"
	}
	if s.chance(0.72) {
		keys.TTP = s.id("", 27)
	}
	if s.chance(0.97) {
		keys.IP, keys.UserAgent = fmt.Sprintf("203.0.113.%d", i%256), "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15"
	}
	if s.chance(0.93) {
		keys.PageURL = "https://shop.example/checkout"
	}
	if s.chance(0.95) {
		keys.FirstName, keys.LastName = purchase.HashExternalID("first"), purchase.HashExternalID("last")
	}
	if s.chance(0.6) {
		keys.Zip, keys.City, keys.Country = purchase.HashZip(fmt.Sprintf("%05d", i)), "springfield", "us"
	}
	p.keys = new(keys.Mask())
	var err error
	p.envelope, err = message.EncodeEnvelope(&purchase.Purchase{ID: p.id, Livemode: p.live, At: p.at, AmountMinor: &p.amount, Currency: p.currency, Keys: keys})
	return err
}

// kind tells trials apart.
func kind(reason string) purchase.Kind {
	if reason == string(purchase.ReasonNoPayment) {
		return purchase.KindTrial
	}
	return purchase.KindCheckout
}

// write adds a sale's rows.
func (s *shop) write(i int, p *sale) {
	received := p.at.Add(time.Duration(500+s.random.IntN(900)) * time.Millisecond)
	var profile, purchased, published, sequence, lastAt, lastClass, lastCode, lastError, request, sent any
	switch p.status {
	case "awaiting_payment", "payment_failed":
	case "rejected":
		purchased = p.at
	default:
		profile, purchased = p.profile, p.at
		s.profiles = append(s.profiles, []any{p.profile, p.live, Email(i), p.customer, p.sub, p.at, received})
	}
	if len(p.tries) > 0 {
		published, sequence = received.Add(4*time.Millisecond), int64(i+1)
		last := p.tries[len(p.tries)-1]
		lastAt, lastClass, lastCode = last.at, last.class, last.code
		if last.class != "delivered" {
			lastError = last.message
		}
	}
	if p.status == "delivered" {
		sent = p.amount
	}
	for n, t := range p.tries {
		id := t.at.UTC().Format("20060102150405") + s.id("", 18)
		if t.code >= 100 && t.code < 600 {
			id = "" // a gateway's answer has none
		} else {
			request = id
		}
		s.attempts = append(s.attempts, []any{p.id, fmt.Sprintf("w1-%d-%d", i, n), 1, t.at, t.took.Milliseconds(), t.class, t.code, t.message, id})
	}
	s.purchases = append(s.purchases, []any{
		p.id, p.status, p.reason, profile, "subscription", p.live, p.amount, p.currency, purchased, p.customer, p.sub, p.envelope, published, published, sequence,
		len(p.tries), lastAt, lastClass, lastCode, lastError, request, p.finished, received, p.keys,
		kind(p.reason), sent,
	})
	kind, disposition := "checkout.session.completed", "processed"
	switch p.status {
	case "awaiting_payment":
		disposition = "awaiting_payment"
	case "payment_failed":
		kind = "checkout.session.async_payment_failed"
	case "rejected":
		disposition = "rejected"
	}
	s.events = append(s.events, []any{s.id("evt_", 24), kind, p.id, p.live, p.at, received, disposition})
}
