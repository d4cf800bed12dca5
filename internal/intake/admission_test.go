package intake_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"purchase-relay/internal/intake"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/secret"
	"purchase-relay/internal/stripe"
	"purchase-relay/internal/testkit/stripegen"
)

// blockingLedger blocks in Record, without regard to the context.
type blockingLedger struct {
	blocked chan struct{} // receives one value a call
	release chan struct{}
}

func (l *blockingLedger) Record(context.Context, purchase.Receipt) (purchase.Recorded, error) {
	l.blocked <- struct{}{}
	<-l.release
	return purchase.Recorded{Disposition: purchase.Processed}, nil
}

// server is an HTTP server with a handler and its log.
type server struct {
	t      *testing.T
	http   *httptest.Server
	sender *stripegen.Sender
	log    *observer.ObservedLogs
}

func newServer(t *testing.T, l intake.Ledger) *server {
	t.Helper()
	core, log := observer.New(zapcore.DebugLevel)
	s := httptest.NewServer(newHandler(l, zap.New(core)))
	t.Cleanup(s.Close)
	sender := &stripegen.Sender{URL: s.URL, Secret: key, Client: &http.Client{Timeout: time.Minute}}
	return &server{t: t, http: s, log: log, sender: sender}
}

func newHandler(l intake.Ledger, log *zap.Logger) *intake.Handler {
	rules := purchase.Rules{Modes: map[string]bool{"subscription": true}}
	s := intake.NewService(intake.Config{Ledger: l, Rules: rules, Now: time.Now}, log, nil)
	return intake.NewHandler(stripe.NewWebhook([]secret.String{key, "whsec_old"}, time.Now), s, log, nil)
}

// sendSlowly sends the header for a body and the beginning of the body, and nothing more. The channel
// receives the status and Retry-After of the response; "": none.
func (s *server) sendSlowly(header, beginning string) <-chan string {
	s.t.Helper()
	c, err := net.Dial("tcp", s.http.Listener.Addr().String())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close() })
	responses := make(chan string, 1)
	go func() {
		const head = "POST / HTTP/1.1\r\nHost: x\r\nStripe-Signature: t=1,v1=00\r\n"
		_, _ = fmt.Fprintf(c, "%s%s\r\n\r\n%s", head, header, beginning)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			responses <- ""
			return
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		responses <- fmt.Sprint(resp.StatusCode, " ", resp.Header.Get("Retry-After"))
	}()
	return responses
}

// Many slow bodies, and large ones, do not block webhooks.
func TestHandler_EvictsSlowBodies(t *testing.T) {
	nearlyAll := strings.Repeat("a", 1<<20-1)
	for name, tc := range map[string]struct {
		header, beginning string
		limit             int // concurrent requests
	}{
		"many small":            {"Content-Length: 1000", "{", 256},
		"64 KiB":                {"Content-Length: 65536", nearlyAll[:65535], 128},
		"only the length large": {"Content-Length: 1048576", "{", 128},
		"large":                 {"Content-Length: 1048576", nearlyAll, 8},
		"chunked":               {"Transfer-Encoding: chunked", "1\r\n{", 128},
		"chunked, large":        {"Transfer-Encoding: chunked", "fffff\r\n" + nearlyAll, 8},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, &ledger{recorded: purchase.Recorded{Disposition: purchase.Processed}})
			const excess = 20
			responses := make(chan string, tc.limit+excess)
			for range cap(responses) {
				response := s.sendSlowly(tc.header, tc.beginning)
				go func() { responses <- <-response }()
			}
			for range excess {
				if got := <-responses; got != "503 10" {
					t.Errorf("response to a slow body = %q, want 503 10", got)
				}
			}
			for range 30 {
				answer, err := s.sender.Send(t.Context(), stripegen.NewCheckout().Event())
				if err != nil || answer.Status != http.StatusOK {
					t.Fatalf("response to a webhook = %+v, error = %v, want 200", answer, err)
				}
			}
			if s.log.FilterMessage("Evicted slow request body").Len() == 0 {
				t.Error("evictions were not logged")
			}
			s.http.CloseClientConnections()
		})
	}
}

// At the limit of requests with a complete body, a new request is rejected. Its retry succeeds.
func TestHandler_RejectsOverMaxInFlight(t *testing.T) {
	l := &blockingLedger{blocked: make(chan struct{}), release: make(chan struct{})}
	s := newServer(t, l)
	const limit = 256
	var group sync.WaitGroup
	for range limit {
		group.Go(func() {
			answer, err := s.sender.Send(t.Context(), stripegen.NewCheckout().Event())
			if err != nil || answer.Status != http.StatusOK {
				t.Errorf("response = %+v, error = %v, want 200", answer, err)
			}
		})
	}
	for range limit {
		<-l.blocked
	}
	body := stripegen.NewCheckout().Event()
	req, err := http.NewRequest(http.MethodPost, s.http.URL, strings.NewReader(string(body)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Stripe-Signature", stripegen.Sign(body, key, time.Now()))
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") != "10" {
		t.Errorf("over the limit: response = %d %v, want 503 with Retry-After 10", resp.StatusCode, resp.Header)
	}
	if n := s.log.FilterMessage("Too many concurrent webhooks").Len(); n != 1 {
		t.Errorf("over the limit: %d log lines, want 1", n)
	}
	close(l.release)
	group.Wait()
	go func() { <-l.blocked }()
	if answer, err := s.sender.Send(t.Context(), body); err != nil || answer.Status != http.StatusOK {
		t.Errorf("retry: response = %+v, error = %v, want 200", answer, err)
	}
}

// An invalid request is rejected before its body arrives.
func TestHandler_RejectsBeforeBody(t *testing.T) {
	s := newServer(t, &ledger{})
	for head, want := range map[string]int{
		"Stripe-Signature: t=1,v1=00\r\nContent-Length: 1048577": http.StatusRequestEntityTooLarge,
		"Content-Length: 1000":       http.StatusBadRequest,
		"Transfer-Encoding: chunked": http.StatusBadRequest,
	} {
		c, err := net.Dial("tcp", s.http.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n", head); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		_ = c.Close()
		if resp.StatusCode != want {
			t.Errorf("%q: status = %d, want %d", head, resp.StatusCode, want)
		}
	}
}

func BenchmarkHandler_InvalidSignature(b *testing.B) {
	h := newHandler(&ledger{}, zap.NewNop())
	body := string(stripegen.NewCheckout().Event())
	signature := stripegen.Sign([]byte(body), "whsec_wrong", time.Now())
	b.ReportAllocs()
	for b.Loop() {
		r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body))
		r.Header.Set("Stripe-Signature", signature)
		h.ServeHTTP(httptest.NewRecorder(), r)
	}
}
