package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"purchase-relay/internal/testkit/stripegen"
)

// publicAddr returns the address of the public listener.
func (s *stack) publicAddr() string {
	return strings.TrimSuffix(strings.TrimPrefix(s.webhook, "http://"), "/webhooks/stripe")
}

// attempt is one request of an attacker. Its errors, mostly closed connections, are ignored.
type attempt func(ctx context.Context, s *stack)

// attack is a number of attackers that repeat an attempt.
type attack struct {
	name      string
	attackers int
	attempt   attempt
}

const drip = 300 * time.Millisecond // between two bytes of a slow sender, and before a closed one returns

// slow connects to the public listener, sends text, then one byte per interval until the server closes.
func slow(text string, interval time.Duration) attempt {
	return slowTo((*stack).publicAddr, text, interval)
}

// slowTo is slow for any listener.
func slowTo(listener func(s *stack) string, text string, interval time.Duration) attempt {
	return func(ctx context.Context, s *stack) {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", listener(s))
		if err != nil {
			return
		}
		defer func() { _ = c.Close() }()
		defer func() {
			select {
			case <-ctx.Done():
			case <-time.After(drip):
			}
		}()
		defer context.AfterFunc(ctx, func() { _ = c.Close() })()
		if _, err := io.WriteString(c, text); err != nil {
			return
		}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_, _ = io.Copy(io.Discard, c)
		}()
		for {
			select {
			case <-ended:
				return
			case <-time.After(interval):
			}
			if _, err := io.WriteString(c, "x"); err != nil {
				return
			}
		}
	}
}

// tinyHeaders returns n headers of a few bytes. net/http uses fifty times their size after parsing.
func tinyHeaders(n int) string {
	var b strings.Builder
	for i := range n {
		_, _ = fmt.Fprintf(&b, "%x:\r\n", i)
	}
	return b.String()
}

// headerFlood sends thousands of headers, complete without a body and incomplete, the largest accepted heads,
// and good requests with such heads behind them, to all three listeners in turn.
func headerFlood() attempt {
	const length = "Content-Length: 3000\r\n"
	largest := head
	for i := range 60 {
		largest += fmt.Sprintf("%x: %s\r\n", i, strings.Repeat("a", 120))
	}
	var attempts []attempt
	for _, listener := range []func(s *stack) string{
		(*stack).publicAddr,
		func(s *stack) string { return strings.TrimPrefix(s.admin, "http://") },
		func(s *stack) string { return strings.TrimPrefix(s.worker.admin, "http://") },
	} {
		for _, text := range []string{
			head + length + tinyHeaders(6000) + "\r\n", head + tinyHeaders(6000), largest,
			head + length + tinyHeaders(60) + "\r\n",
			"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" + head + tinyHeaders(1000),
		} {
			attempts = append(attempts, slowTo(listener, text, drip))
		}
	}
	var turn atomic.Int64
	return func(ctx context.Context, s *stack) { attempts[int(turn.Add(1))%len(attempts)](ctx, s) }
}

const (
	requestLine = "POST /webhooks/stripe HTTP/1.1\r\nHost: x\r\n"
	head        = requestLine + "Stripe-Signature: t=1,v1=00\r\n"
)

// signed posts a body with a signature over a kept connection.
func signed(body []byte, sign func() string) attempt {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	return func(ctx context.Context, s *stack) {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.webhook, bytes.NewReader(body))
		if err != nil {
			return
		}
		req.Header.Set("Stripe-Signature", sign())
		if resp, err := client.Do(req); err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		}
	}
}

// attackTime is how long each attack lasts. ATTACK overrides it.
func attackTime() time.Duration {
	if d, err := time.ParseDuration(os.Getenv("ATTACK")); err == nil {
		return d
	}
	return time.Duration(scale(250, 5000)) * time.Millisecond
}

// Good webhooks are accepted during each attack; their rate is logged. They are sent as Stripe sends them:
// again after a 503 or a lost connection. The attackers use most of the missing rate: they share the machine.
func TestIngest_AcceptsWebhooksUnderAttack(t *testing.T) {
	t.Parallel()
	s := newPlainStack(t)
	small, big := stripegen.NewCheckout().Event(), bytes.Repeat([]byte("a"), 1<<20)
	wrong := func() string { return stripegen.Sign(small, "whsec_wrong", time.Now()) }
	stale := func() string { return stripegen.Sign(small, signingSecret, time.Now().Add(-time.Hour)) }
	const mebi, kibi64 = head + "Content-Length: 1048576\r\n\r\n", head + "Content-Length: 65536\r\n\r\n"
	attacks := []attack{
		{"none", 0, nil},
		{"3000 idle connections", 3000, slow("", time.Hour)},
		{"1500 endless headers", 1500, slow(requestLine+"X: ", drip)},
		{"600 slow bodies", 600, slow(head+"Content-Length: 3000\r\n\r\n", drip)},
		{"300 slow bodies of 1 MiB", 300, slow(mebi, drip)},
		{"100 bodies of nearly 1 MiB", 100, slow(mebi+strings.Repeat("a", 1<<20-1000), drip)},
		{"300 bodies of nearly 64 KiB", 300, slow(kibi64+strings.Repeat("a", 1<<16-1000), drip)},
		{"1000 heads of thousands of headers", 1000, headerFlood()},
		{"300 endless chunked bodies", 300, slow(head+"Transfer-Encoding: chunked\r\n\r\nfffff\r\n", drip)},
		{"wrong signatures", 8, signed(small, wrong)},
		{"no signatures", 8, signed(small, func() string { return "" })},
		{"wrong signatures over 1 MiB", 4, signed(big, wrong)},
		{"bodies over the limit", 4, signed(append(big, 'a'), wrong)},
		{"huge headers", 8, slow(requestLine+"X: "+strings.Repeat("a", 1<<20)+"\r\n\r\n", time.Hour)},
		{"replayed events with stale signatures", 8, signed(small, stale)},
	}
	var undisturbed float64
	for _, a := range attacks {
		accepted, retries, attempts := s.acceptDuring(a)
		rate := float64(accepted) / attackTime().Seconds()
		if a.attempt == nil {
			undisturbed = rate
		}
		t.Logf("%-38s %6.0f good webhooks/s (%4.0f %%), %3d retries, %6d attempts, ingest %d MiB, worker %d MiB",
			a.name, rate, 100*rate/undisturbed, retries, attempts, s.ingest.peak()>>20, s.worker.peak()>>20)
		s.checkMemory(a.name)
		if accepted == 0 {
			t.Errorf("%s: no good webhook was accepted", a.name)
		}
	}
	s.awaitReadiness(s.admin, http.StatusOK)
	s.awaitNone(`purchases WHERE status <> 'delivered'`)
}

// maxResident bounds the resident memory of each binary during an attack. The containers have 128 MiB.
const maxResident = 64 << 20

// checkMemory checks the binaries' peak memory since the last check.
func (s *stack) checkMemory(attack string) {
	s.t.Helper()
	for name, p := range map[string]*program{"ingest": s.ingest, "tiktok-worker": s.worker} {
		if peak := p.peak(); peak > maxResident {
			s.t.Errorf("%s: %s used %d MiB, want at most %d", attack, name, peak>>20, maxResident>>20)
		}
		p.resetPeak()
	}
}

// Such a flood once took half a MiB per connection. With one at every listener, 30 good webhooks per second
// are answered 200 within the memory bound.
func TestIngest_AcceptsWebhooksInHeaderFlood(t *testing.T) {
	t.Parallel()
	const rate, connections = 30, 1000
	s := newPlainStack(t)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	flood := headerFlood()
	var attackers, buyers sync.WaitGroup
	var attempts, retries atomic.Int64
	for range connections {
		attackers.Go(func() {
			for ctx.Err() == nil {
				flood(ctx, s)
				attempts.Add(1)
			}
		})
	}
	sender := *s.sender
	sender.Client = &http.Client{Timeout: timeout, Transport: &http.Transport{MaxIdleConnsPerHost: rate}}
	tick := time.NewTicker(time.Second / rate)
	defer tick.Stop()
	var sent []stripegen.Checkout
	end := time.Now().Add(2 * attackTime())
	for ; time.Now().Before(end) || len(sent) < rate; <-tick.C {
		c := stripegen.NewCheckout().Live()
		sent = append(sent, c)
		buyers.Go(func() {
			const limit = 100 // on a busy machine the flood displaces most connections before their request
			for range limit { // as Stripe does
				answer, err := sender.Send(t.Context(), c.Event())
				if err == nil && answer.Status == http.StatusOK {
					return
				}
				retries.Add(1)
			}
			t.Errorf("%s was not answered 200 in %d attempts", c.SessionID, limit)
		})
	}
	buyers.Wait()
	stop()
	attackers.Wait()
	t.Logf("%d good webhooks, %d retries, %d attempts over %d connections, ingest %d MiB, worker %d MiB",
		len(sent), retries.Load(), attempts.Load(), connections, s.ingest.peak()>>20, s.worker.peak()>>20)
	s.checkMemory("header flood")
	s.awaitCount("delivered", len(sent))
}

// acceptDuring sends good webhooks, four concurrently, during an attack. Each is repeated until accepted.
func (s *stack) acceptDuring(a attack) (accepted, retries, attempts int64) {
	s.t.Helper()
	ctx, stop := context.WithCancel(s.t.Context())
	defer stop()
	var attackers, buyers sync.WaitGroup
	var accepts, failures, attacked atomic.Int64
	for range a.attackers {
		attackers.Go(func() {
			for ctx.Err() == nil {
				a.attempt(ctx, s)
				attacked.Add(1)
			}
		})
	}
	end := time.Now().Add(attackTime())
	for i := range 4 {
		buyers.Go(func() {
			sender := *s.sender
			sender.Client = &http.Client{Timeout: timeout, Transport: &http.Transport{DisableKeepAlives: i%2 == 0}}
			// At least one each: on a busy machine the attackers may start later than the end.
			for sent := 0; sent == 0 || time.Now().Before(end); sent++ {
				for body, first := stripegen.NewCheckout().Live().Event(), true; ; first = false {
					answer, err := sender.Send(s.t.Context(), body)
					if err == nil && answer.Status == http.StatusOK {
						break
					}
					n := failures.Add(1)
					refused := answer.Status != http.StatusServiceUnavailable && !exceededLimit(answer)
					if err == nil && refused || n > 100_000 {
						s.t.Errorf("%s: answer = %+v (first attempt: %t), want 200 or 503", a.name, answer, first)
						return
					}
				}
				accepts.Add(1)
			}
		})
	}
	buyers.Wait()
	stop()
	attackers.Wait()
	return accepts.Load(), failures.Load(), attacked.Load()
}

// peak returns the peak resident memory since resetPeak in bytes, or 0 where the system does not report it.
func (p *program) peak() int64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(data), "\nVmHWM:")
	rest, _, _ = strings.Cut(rest, " kB")
	kilobytes, err := strconv.ParseInt(strings.TrimSpace(rest), 10, 64)
	if err != nil {
		return 0
	}
	return kilobytes << 10
}

// resetPeak makes Linux measure the peak from now on.
func (p *program) resetPeak() {
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", p.PID()), []byte("5"), 0o600)
}

// buildPlain builds the binaries as shipped: the race detector needs several times the memory.
var buildPlain = sync.OnceValue(func() error { return buildBinaries(filepath.Join(binaries, "plain")) })

// newPlainStack is newStack without the race detector.
func newPlainStack(t *testing.T, env ...string) *stack {
	t.Helper()
	if err := buildPlain(); err != nil {
		t.Fatal(err)
	}
	return newStackOf(t, "plain/", env...)
}

// answers sends text over one connection and returns the statuses of the answers until the server closes it.
// half closes the sending side, so that the server sees the end of an incomplete request.
func (s *stack) answers(text string, half bool) (statuses []int) {
	s.t.Helper()
	c, err := net.Dial("tcp", s.publicAddr())
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := io.WriteString(c, text); err != nil {
		s.t.Fatal(err)
	}
	if tcp, ok := c.(*net.TCPConn); ok && half {
		_ = tcp.CloseWrite()
	}
	_ = c.SetReadDeadline(time.Now().Add(timeout))
	from := bufio.NewReader(c)
	for {
		resp, err := http.ReadResponse(from, nil)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			s.t.Errorf("the connection is still open after the answers %v", statuses)
		}
		if err != nil {
			return statuses
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		statuses = append(statuses, resp.StatusCode)
	}
}

// Requests that two servers in a row might parse differently (request smuggling), and bodies with a wrong
// length. Only a valid request is recorded, and nothing that follows an ambiguous one on its connection.
func TestIngest_RejectsAmbiguousRequests(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	sign := func(body string) string {
		return "Stripe-Signature: " + stripegen.Sign([]byte(body), signingSecret, time.Now()) + "\r\n"
	}
	body, inner := string(stripegen.NewCheckout().Live().Event()), string(stripegen.NewCheckout().Live().Event())
	head := requestLine + sign(body)
	// smuggled is a valid webhook inside the body of the first request.
	smuggled := fmt.Sprintf("%sConnection: close\r\n%sContent-Length: %d\r\n\r\n%s",
		requestLine, sign(inner), len(inner), inner)
	length := func(n int) string { return fmt.Sprintf("Content-Length: %d\r\n", n) }
	chunk := fmt.Sprintf("%x\r\n%s\r\n", len(body), body)
	chunked := chunk + "0\r\n\r\n"
	tooManyChunks := strings.Repeat("10000\r\n"+strings.Repeat("a", 1<<16)+"\r\n", 17)
	const encoding = "Transfer-Encoding: chunked\r\n"
	const upgrade = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
	type exchange struct {
		text string
		want []int // statuses
		half bool
	}
	full := func(text string, want ...int) exchange { return exchange{text, want, false} }
	// answers repeats an exchange that a time limit of ingest may have ended.
	answers := func(e exchange) (statuses []int) {
		for range 3 {
			began := time.Now()
			statuses = s.answers(e.text, e.half)
			if slices.Equal(statuses, e.want) || time.Since(began) < shortestLimit {
				break
			}
		}
		return statuses
	}
	noHost := "POST /webhooks/stripe HTTP/1.1\r\n" + sign(body) + length(len(body))
	for name, tc := range map[string]exchange{
		"two different lengths":          full(head+length(len(body))+length(5)+"\r\n"+body, 400),
		"a list of lengths":              full(head+"Content-Length: 5, 5\r\n\r\nhello", 400),
		"a length with a plus":           full(head+"Content-Length: +5\r\n\r\nhello", 400),
		"a negative length":              full(head+"Content-Length: -5\r\n\r\n", 400),
		"a hexadecimal length":           full(head+"Content-Length: 0x5\r\n\r\nhello", 400),
		"a space before the colon":       full(head+"Content-Length : 5\r\n\r\nhello", 400),
		"an unknown encoding":            full(head+"Transfer-Encoding: xchunked\r\n\r\n"+chunked, 501),
		"two encodings":                  full(head+"Transfer-Encoding: chunked, identity\r\n\r\n"+chunked, 501),
		"two encoding headers":           full(head+encoding+encoding+"\r\n"+chunked, 501),
		"an encoding with a tab":         full(head+"Transfer-Encoding:\x0bchunked\r\n\r\n"+chunked, 400),
		"an invalid chunk length":        full(head+encoding+"\r\nzz\r\n"+body+"\r\n0\r\n\r\n", 400),
		"an overflowing chunk length":    full(head+encoding+"\r\nffffffffffffffff1\r\n"+body, 400),
		"chunks without an end":          {head + encoding + "\r\n" + chunk, []int{400}, true},
		"chunks over the limit":          full(head+encoding+"\r\n"+tooManyChunks, 413),
		"a folded header":                full(head+"X: a\r\n "+length(5)+"\r\n"+smuggled, 400, 200), // no body
		"a header without a colon":       full(head+"hello\r\n\r\n", 400),
		"a NUL in a header":              full(head+"X: a\x00b\r\n\r\n", 400),
		"two hosts":                      full(head+"Host: y\r\n"+length(len(body))+"\r\n"+body, 400),
		"no host":                        full(noHost+"\r\n"+body, 400),
		"another protocol":               full("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
		"a body shorter than its length": {head + length(len(body)+1) + "\r\n" + body, []int{400}, true},
		"a length over the limit":        full(head+length(1<<20+1)+"\r\n"+body, 413),
		"an overflowing length":          full(head+"Content-Length: 99999999999999999999\r\n\r\n"+body, 400),
		"an upgrade":                     {head + upgrade + length(2) + "\r\n{}", []int{400}, true},
		"a body longer than its length":  full(head+length(5)+"\r\n"+body, 400, 431), // the rest is too long a head
		"an encoding, then a length":     full(head+encoding+length(5)+"\r\n0\r\n\r\n"+smuggled, 400),
		"a length, then an encoding":     full(head+length(5+len(smuggled))+encoding+"\r\n0\r\n\r\n"+smuggled, 400),
	} {
		t.Run(name, func(t *testing.T) {
			before := s.rows("stripe_events")
			statuses := answers(tc)
			if !slices.Equal(statuses, tc.want) {
				t.Errorf("answers = %v, want %v", statuses, tc.want)
			}
			accepted := 0
			for _, status := range statuses {
				if status == http.StatusOK {
					accepted++
				}
			}
			if recorded := s.rows("stripe_events") - before; recorded != accepted {
				t.Errorf("%d events were recorded, want %d", recorded, accepted)
			}
		})
	}
	// A body of exactly the limit and a chunked one are accepted.
	padded := stripegen.NewCheckout().Live()
	padded.Metadata = map[string]string{"note": ""}
	padded.Metadata["note"] = strings.Repeat("a", 1<<20-len(padded.Event()))
	s.post(padded.Event(), http.StatusOK, `{"status":"processed"}`)
	if statuses := answers(full(head+encoding+"\r\n"+chunked, 200)); !slices.Equal(statuses, []int{200}) {
		t.Errorf("answers to a chunked body = %v, want [200]", statuses)
	}
}

// A hundred copies of one purchase arrive together over separate connections, under two event ids: one is
// processed, the others are duplicates.
func TestWebhook_ConcurrentCopiesMakeOnePurchase(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	c := stripegen.NewCheckout().Live()
	second := c
	second.EventID = stripegen.ID("evt_", 24) // Stripe may create two events for one change
	var group sync.WaitGroup
	var processed, duplicate atomic.Int64
	for i := range 100 {
		body := c.Event()
		if i%2 == 1 {
			body = second.Event()
		}
		group.Go(func() {
			sender := *s.sender
			sender.Client = &http.Client{Timeout: timeout, Transport: &http.Transport{DisableKeepAlives: true}}
			answer, err := sender.Deliver(t.Context(), body, 50, 20*time.Millisecond)
			switch {
			case err == nil && answer.Body == `{"status":"processed"}`:
				processed.Add(1)
			case err == nil && answer.Body == `{"status":"duplicate"}`:
				duplicate.Add(1)
			default:
				t.Errorf("answer = %+v, %v", answer, err)
			}
		})
	}
	group.Wait()
	// The first copy is a duplicate if it was recorded in an attempt that was answered 503, at a time limit.
	const unavailable = `purchase_relay_webhooks_total{result="unavailable",type="checkout.session.completed"}`
	n, want := processed.Load(), int64(1)
	if n == 0 && s.metric(s.admin, unavailable) > 0 {
		want = 0
	}
	if n != want || n+duplicate.Load() != 100 {
		t.Errorf("%d processed and %d duplicates, want %d and %d", n, duplicate.Load(), want, 100-want)
	}
	s.checkOnlyDelivered(c.SessionID)
	for _, table := range []string{"profiles", "purchases"} {
		if n := s.rows(table); n != 1 {
			t.Errorf("%s has %d rows, want 1", table, n)
		}
	}
}
