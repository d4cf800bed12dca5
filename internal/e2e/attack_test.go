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
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"purchase-relay/internal/testkit/stripegen"
)

// public is the public listener's address.
func (s *stack) public() string {
	return strings.TrimSuffix(strings.TrimPrefix(s.webhook, "http://"), "/webhooks/stripe")
}

// attack is done again and again by one attacker, over connections of its own; an error (a closed connection, above all) is
// no concern of it.
type attack struct {
	name      string
	attackers int
	once      func(ctx context.Context, s *stack)
}

// rawly opens a connection, sends text, then a byte of more at a time, and reads whatever comes until the other side ends it.
func rawly(text string, more time.Duration) func(ctx context.Context, s *stack) {
	return rawlyTo((*stack).public, text, more)
}

// rawlyTo does so at one of the stack's listeners.
func rawlyTo(listener func(s *stack) string, text string, more time.Duration) func(ctx context.Context, s *stack) {
	return func(ctx context.Context, s *stack) {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", listener(s))
		if err != nil {
			return
		}
		defer func() { _ = c.Close() }()
		defer func() { // an attacker that was driven out comes again after a while
			select {
			case <-ctx.Done():
			case <-time.After(300 * time.Millisecond):
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
			case <-time.After(more):
			}
			if _, err := io.WriteString(c, "x"); err != nil {
				return
			}
		}
	}
}

// tinyHeaders are n headers of a few bytes each: net/http holds fifty times their size once it has parsed
// them.
func tinyHeaders(n int) string {
	var b strings.Builder
	for i := range n {
		_, _ = fmt.Fprintf(&b, "%x:\r\n", i)
	}
	return b.String()
}

// headerFlood are heads of thousands of headers, whole ones with a body that never comes and ones that never
// end, the largest heads that are read, and good requests with such heads behind them: at all three listeners
// in turn.
func headerFlood() func(ctx context.Context, s *stack) {
	const long = "Content-Length: 3000\r\n"
	largest := head
	for i := range 60 {
		largest += fmt.Sprintf("%x: %s\r\n", i, strings.Repeat("a", 120))
	}
	var turns []func(ctx context.Context, s *stack)
	for _, listener := range []func(s *stack) string{
		(*stack).public, func(s *stack) string { return strings.TrimPrefix(s.admin, "http://") }, func(s *stack) string { return strings.TrimPrefix(s.worker.admin, "http://") },
	} {
		for _, text := range []string{
			head + long + tinyHeaders(6000) + "\r\n", head + tinyHeaders(6000), largest, head + long + tinyHeaders(60) + "\r\n",
			"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" + head + tinyHeaders(1000),
		} {
			turns = append(turns, rawlyTo(listener, text, 300*time.Millisecond))
		}
	}
	var turn atomic.Int64
	return func(ctx context.Context, s *stack) { turns[int(turn.Add(1))%len(turns)](ctx, s) }
}

const head = "POST /webhooks/stripe HTTP/1.1\r\nHost: x\r\nStripe-Signature: t=1,v1=00\r\n"

// posting sends one body with a signature over a connection that is kept.
func posting(body []byte, sign func() string) func(ctx context.Context, s *stack) {
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
	return time.Duration(dose(600, 5000)) * time.Millisecond
}

// Good webhooks are taken while strangers do their worst, and how many compared with before is printed. Each is sent as Stripe
// sends it: again when it is told to come back or its connection is lost. (The attackers run on the same machine, under the race
// detector, too: most of what is missing is theirs.)
func TestIntakeUnderAttack(t *testing.T) {
	t.Parallel()
	s := newPlainStack(t)
	small, big := stripegen.NewCheckout().Event(), bytes.Repeat([]byte("a"), 1<<20)
	wrong := func() string { return stripegen.Sign(small, "whsec_wrong", time.Now()) }
	attacks := []attack{
		{"nobody", 0, nil},
		{"3000 idle connections", 3000, rawly("", time.Hour)},
		{"1500 headers that never end", 1500, rawly("POST /webhooks/stripe HTTP/1.1\r\nHost: x\r\nX: ", 300*time.Millisecond)},
		{"600 slow bodies", 600, rawly(head+"Content-Length: 3000\r\n\r\n", 300*time.Millisecond)},
		{"300 slow bodies of 1 MiB", 300, rawly(head+"Content-Length: 1048576\r\n\r\n", 300*time.Millisecond)},
		{"100 bodies of nearly 1 MiB", 100, rawly(head+"Content-Length: 1048576\r\n\r\n"+strings.Repeat("a", 1<<20-1000), 300*time.Millisecond)},
		{"300 bodies of nearly 64 KiB", 300, rawly(head+"Content-Length: 65536\r\n\r\n"+strings.Repeat("a", 1<<16-1000), 300*time.Millisecond)},
		{"1000 heads of thousands of headers", 1000, headerFlood()},
		{"300 chunked bodies without an end", 300, rawly(head+"Transfer-Encoding: chunked\r\n\r\nfffff\r\n", 300*time.Millisecond)},
		{"wrong signatures", 8, posting(small, wrong)},
		{"no signatures", 8, posting(small, func() string { return "" })},
		{"wrong signatures over 1 MiB", 4, posting(big, wrong)},
		{"bodies over the limit", 4, posting(append(big, 'a'), wrong)},
		{"huge headers", 8, func(ctx context.Context, s *stack) {
			rawly("POST /webhooks/stripe HTTP/1.1\r\nHost: x\r\nX: "+strings.Repeat("a", 1<<20)+"\r\n\r\n", time.Hour)(ctx, s)
		}},
		{"good events of old, signed long ago", 8, posting(small, func() string { return stripegen.Sign(small, signingSecret, time.Now().Add(-time.Hour)) })},
	}
	var calm float64
	for _, a := range attacks {
		done, again, tries := s.besiege(a)
		rate := float64(done) / attackTime().Seconds()
		if a.once == nil {
			calm = rate
		}
		t.Logf("%-36s %6.0f good webhooks a second, %4.0f %% of those in peace; %3d were sent again; %6d attacks; at most %d MiB in ingest, %d in the worker",
			a.name, rate, 100*rate/calm, again, tries, s.ingest.peak()>>20, s.worker.peak()>>20)
		s.checkMemory(a.name)
		if done == 0 {
			t.Errorf("%s: not one good webhook was taken", a.name)
		}
	}
	if status(s.admin+"/readyz") != http.StatusOK {
		t.Error("ingest is not ready afterwards")
	}
	s.await("everything that was taken to be delivered", func() bool {
		return query[int](s, `SELECT count(*) FROM purchases WHERE status <> 'delivered'`) == 0
	})
}

// maxResident is what either binary may hold in any attack. The containers have 128 MiB.
const maxResident = 64 << 20

// checkMemory holds the binaries' memory since the last look against the bound.
func (s *stack) checkMemory(attack string) {
	s.t.Helper()
	for name, p := range map[string]*program{"ingest": s.ingest, "tiktok-worker": s.worker} {
		if peak := p.peak(); peak > maxResident {
			s.t.Errorf("%s: %s held %d MiB, want %d at most", attack, name, peak>>20, maxResident>>20)
		}
		p.forgetPeak()
	}
}

// Beside a flood of the kind that held half a MiB for each connection, at every listener, 30 good webhooks a
// second are answered 200, and neither binary holds more than 64 MiB.
func TestFloodOfHeaders_GoodWebhooksAreAnswered(t *testing.T) {
	t.Parallel()
	const rate, connections = 30, 1000
	s := newPlainStack(t)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	once := headerFlood()
	var attackers, buyers sync.WaitGroup
	var attacks, again atomic.Int64
	for range connections {
		attackers.Go(func() {
			for ctx.Err() == nil {
				once(ctx, s)
				attacks.Add(1)
			}
		})
	}
	sender := *s.sender
	sender.Client = &http.Client{Timeout: patience, Transport: &http.Transport{MaxIdleConnsPerHost: rate}}
	tick := time.NewTicker(time.Second / rate)
	defer tick.Stop()
	var sent []stripegen.Checkout
	for over := time.Now().Add(2 * attackTime()); time.Now().Before(over) || len(sent) < rate; <-tick.C {
		c := stripegen.NewCheckout().Live()
		sent = append(sent, c)
		buyers.Go(func() {
			for range 10 { // as Stripe does
				answer, err := sender.Send(t.Context(), c.Event())
				if err == nil && answer.Status == http.StatusOK {
					return
				}
				again.Add(1)
			}
			t.Errorf("%s was not answered 200 in ten tries", c.SessionID)
		})
	}
	buyers.Wait()
	stop()
	attackers.Wait()
	t.Logf("%d good webhooks, %d sends more; %d attacks over %d connections; at most %d MiB in ingest, %d in the worker",
		len(sent), again.Load(), attacks.Load(), connections, s.ingest.peak()>>20, s.worker.peak()>>20)
	s.checkMemory("a flood of headers")
	s.await("every good webhook to be delivered", func() bool {
		return query[int](s, `SELECT count(*) FROM purchases WHERE status = 'delivered'`) == len(sent)
	})
}

// besiege sends good webhooks, four at a time, while the attackers are at it: how many were taken, and how many sends were in
// vain. Every one that was begun is taken in the end.
func (s *stack) besiege(a attack) (done, again, tries int64) {
	s.t.Helper()
	ctx, stop := context.WithCancel(s.t.Context())
	defer stop()
	var attackers, buyers sync.WaitGroup
	var taken, vain, tried atomic.Int64
	for range a.attackers {
		attackers.Go(func() {
			for ctx.Err() == nil {
				a.once(ctx, s)
				tried.Add(1)
			}
		})
	}
	over := time.Now().Add(attackTime())
	for i := range 4 {
		buyers.Go(func() {
			sender := *s.sender
			sender.Client = &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: i%2 == 0}}
			for time.Now().Before(over) {
				for body, first := stripegen.NewCheckout().Live().Event(), true; ; first = false {
					answer, err := sender.Send(s.t.Context(), body)
					if err == nil && answer.Status == http.StatusOK {
						break
					}
					if vain.Add(1); err == nil && answer.Status != http.StatusServiceUnavailable || vain.Load() > 100_000 {
						s.t.Errorf("%s: a good webhook (first time: %t) was answered %+v", a.name, first, answer)
						return
					}
				}
				taken.Add(1)
			}
		})
	}
	buyers.Wait()
	stop()
	attackers.Wait()
	return taken.Load(), vain.Load(), tried.Load()
}

// peak is the most memory that a program held since forgetPeak, in bytes; 0 where the system does not say.
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

// forgetPeak has Linux count from what is held now.
func (p *program) forgetPeak() {
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", p.PID()), []byte("5"), 0o600)
}

// buildPlain builds the binaries as they are shipped: the race detector takes several times the memory.
var buildPlain = sync.OnceValue(func() error {
	for _, name := range []string{"ingest", "tiktok-worker"} {
		out, err := exec.Command("go", "build", "-o", filepath.Join(binaries, "plain-"+name), "../../cmd/"+name).CombinedOutput()
		if err != nil {
			return fmt.Errorf("build: %w\n%s", err, out)
		}
	}
	return nil
})

// newPlainStack starts the binaries without the race detector.
func newPlainStack(t *testing.T, env ...string) *stack {
	t.Helper()
	if err := buildPlain(); err != nil {
		t.Fatal(err)
	}
	return newStackOf(t, "plain-", env...)
}

// answers sends bytes over one connection and returns the statuses of the answers until the other side closes it. half: the
// sending side is closed first, so that the server sees that no more comes instead of waiting for it.
func (s *stack) answers(text string, half bool) (statuses []int) {
	s.t.Helper()
	c, err := net.Dial("tcp", s.public())
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
	_ = c.SetReadDeadline(time.Now().Add(patience))
	from := bufio.NewReader(c)
	for {
		resp, err := http.ReadResponse(from, nil)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			s.t.Errorf("the connection stays open after %v", statuses)
		}
		if err != nil {
			return statuses
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		statuses = append(statuses, resp.StatusCode)
	}
}

// Shapes that two HTTP servers in a row might read differently (request smuggling), and bodies that lie about their length.
// None but the last few make ingest see an event, and what follows an ambiguous request on its connection is never taken for
// a request of its own.
func TestAmbiguousRequests(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	c := stripegen.NewCheckout().Live()
	body := string(c.Event())
	signature := "Stripe-Signature: " + stripegen.Sign([]byte(body), signingSecret, time.Now())
	other := stripegen.NewCheckout().Live()
	inner := string(other.Event())
	start := "POST /webhooks/stripe HTTP/1.1\r\nHost: x\r\n"
	// What is smuggled is a good webhook that its sender meant as a part of the first one's body.
	smuggled := fmt.Sprintf("%sConnection: close\r\nStripe-Signature: %s\r\nContent-Length: %d\r\n\r\n%s", start, stripegen.Sign([]byte(inner), signingSecret, time.Now()), len(inner), inner)
	length := fmt.Sprintf("Content-Length: %d\r\n", len(body))
	chunked := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(body), body)
	for name, tc := range map[string]struct {
		text string
		want []int
		half bool
	}{
		"two lengths that differ":          {start + signature + "\r\n" + length + "Content-Length: 5\r\n\r\n" + body, []int{400}, false},
		"a list of lengths":                {start + signature + "\r\nContent-Length: 5, 5\r\n\r\nhello", []int{400}, false},
		"a signed length":                  {start + signature + "\r\nContent-Length: +5\r\n\r\nhello", []int{400}, false},
		"a negative length":                {start + signature + "\r\nContent-Length: -5\r\n\r\n", []int{400}, false},
		"a length in hexadecimal":          {start + signature + "\r\nContent-Length: 0x5\r\n\r\nhello", []int{400}, false},
		"a space before the colon":         {start + signature + "\r\nContent-Length : 5\r\n\r\nhello", []int{400}, false},
		"an encoding that is not known":    {start + signature + "\r\nTransfer-Encoding: xchunked\r\n\r\n" + chunked, []int{501}, false},
		"two encodings":                    {start + signature + "\r\nTransfer-Encoding: chunked, identity\r\n\r\n" + chunked, []int{501}, false},
		"two encoding lines":               {start + signature + "\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked, []int{501}, false},
		"an encoding with a tab":           {start + signature + "\r\nTransfer-Encoding:\x0bchunked\r\n\r\n" + chunked, []int{400}, false},
		"a chunk's length that is none":    {start + signature + "\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" + body + "\r\n0\r\n\r\n", []int{400}, false},
		"a chunk's length that overflows":  {start + signature + "\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff1\r\n" + body, []int{400}, false},
		"chunks without an end":            {start + signature + "\r\nTransfer-Encoding: chunked\r\n\r\n" + fmt.Sprintf("%x\r\n%s\r\n", len(body), body), []int{400}, true},
		"chunks over the limit":            {start + signature + "\r\nTransfer-Encoding: chunked\r\n\r\n" + strings.Repeat("10000\r\n"+strings.Repeat("a", 1<<16)+"\r\n", 17), []int{413}, false},
		"a folded header":                  {start + signature + "\r\nX: a\r\n Content-Length: 5\r\n\r\n" + smuggled, []int{400, 200}, false}, // the fold is a part of X; there is no body
		"a header without a colon":         {start + signature + "\r\nhello\r\n\r\n", []int{400}, false},
		"a NUL in a header":                {start + signature + "\r\nX: a\x00b\r\n\r\n", []int{400}, false},
		"two hosts":                        {start + "Host: y\r\n" + signature + "\r\n" + length + "\r\n" + body, []int{400}, false},
		"no host":                          {"POST /webhooks/stripe HTTP/1.1\r\n" + signature + "\r\n" + length + "\r\n" + body, []int{400}, false},
		"another protocol":                 {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", []int{400}, false},
		"a body shorter than it says":      {start + signature + "\r\n" + fmt.Sprintf("Content-Length: %d\r\n\r\n", len(body)+1) + body, []int{400}, true},
		"a body that says it is over":      {start + signature + "\r\nContent-Length: 1048577\r\n\r\n" + body, []int{413}, false},
		"a length beyond counting":         {start + signature + "\r\nContent-Length: 99999999999999999999\r\n\r\n" + body, []int{400}, false},
		"an upgrade":                       {start + signature + "\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nContent-Length: 2\r\n\r\n{}", []int{400}, true},
		"a length shorter than the signed": {start + signature + "\r\nContent-Length: 5\r\n\r\n" + body, []int{400, 431}, false}, // the rest has more lines than a head
		"a length beside an encoding":      {start + signature + "\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n" + "0\r\n\r\n" + smuggled, []int{400}, false},
		"the same, the other way around":   {start + signature + "\r\n" + fmt.Sprintf("Content-Length: %d\r\n", 5+len(smuggled)) + "Transfer-Encoding: chunked\r\n\r\n" + "0\r\n\r\n" + smuggled, []int{400}, false},
	} {
		t.Run(name, func(t *testing.T) {
			before := query[int](s, `SELECT count(*) FROM stripe_events`)
			statuses := s.answers(tc.text, tc.half)
			if fmt.Sprint(statuses) != fmt.Sprint(tc.want) {
				t.Errorf("answers %v, want %v", statuses, tc.want)
			}
			taken := 0
			for _, status := range statuses {
				if status == http.StatusOK {
					taken++
				}
			}
			if after := query[int](s, `SELECT count(*) FROM stripe_events`); after-before != taken {
				t.Errorf("%d events were recorded, %d answered 200", after-before, taken)
			}
		})
	}
	// A body at the limit, and one in chunks, are as good as any.
	padded := stripegen.NewCheckout().Live()
	padded.Metadata = map[string]string{"note": ""}
	padded.Metadata["note"] = strings.Repeat("a", 1<<20-len(padded.Event()))
	if answer := s.send(padded); answer.Body != `{"status":"processed"}` {
		t.Errorf("a body of exactly 1 MiB: %+v", answer)
	}
	fresh := stripegen.NewCheckout().Live()
	text := string(fresh.Event())
	statuses := s.answers(fmt.Sprintf("%sStripe-Signature: %s\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", start,
		stripegen.Sign([]byte(text), signingSecret, time.Now()), len(text), text), false)
	if fmt.Sprint(statuses) != "[200]" {
		t.Errorf("a body in chunks: %v", statuses)
	}
}

// A hundred copies of one event at the same time, each over a connection of its own: one is taken, the others are duplicates.
func TestConcurrentCopies(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	c := stripegen.NewCheckout().Live()
	body := c.Event()
	var group sync.WaitGroup
	var processed, duplicate atomic.Int64
	for range 100 {
		group.Go(func() {
			sender := *s.sender
			sender.Client = &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
			answer, err := sender.Deliver(t.Context(), body, 50, 20*time.Millisecond)
			switch {
			case err == nil && answer.Body == `{"status":"processed"}`:
				processed.Add(1)
			case err == nil && answer.Body == `{"status":"duplicate"}`:
				duplicate.Add(1)
			default:
				t.Errorf("%+v, %v", answer, err)
			}
		})
	}
	group.Wait()
	if processed.Load() != 1 || duplicate.Load() != 99 {
		t.Errorf("%d processed, %d duplicates", processed.Load(), duplicate.Load())
	}
	s.once(c)
}
