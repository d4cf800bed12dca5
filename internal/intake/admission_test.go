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

// gatedLedger holds every receipt until it is let go, whatever time limit it is given.
type gatedLedger struct {
	held chan struct{} // one for each receipt that is held
	gate chan struct{}
}

func (l *gatedLedger) Record(context.Context, purchase.Receipt) (purchase.Recorded, error) {
	l.held <- struct{}{}
	<-l.gate
	return purchase.Recorded{Disposition: purchase.Processed}, nil
}

type site struct {
	t      *testing.T
	server *httptest.Server
	sender *stripegen.Sender
	log    *observer.ObservedLogs
}

func newSite(t *testing.T, l intake.Ledger) *site {
	t.Helper()
	core, log := observer.New(zapcore.DebugLevel)
	server := httptest.NewServer(newHandler(l, zap.New(core)))
	t.Cleanup(server.Close)
	sender := &stripegen.Sender{URL: server.URL, Secret: key, Client: &http.Client{Timeout: time.Minute}}
	return &site{t: t, server: server, log: log, sender: sender}
}

func newHandler(l intake.Ledger, log *zap.Logger) *intake.Handler {
	rules := purchase.Rules{Modes: map[string]bool{"subscription": true}}
	s := intake.NewService(intake.Config{Ledger: l, Rules: rules, Now: time.Now}, log, nil)
	return intake.NewHandler(stripe.NewWebhook([]secret.String{key, "whsec_old"}, time.Now), s, log, nil)
}

// drip opens a request that announces a body, sends the beginning of it and then nothing. The server's answer
// comes back once, "" where there is none.
func (s *site) drip(announce, beginning string) <-chan string {
	s.t.Helper()
	c, err := net.Dial("tcp", s.server.Listener.Addr().String())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close() })
	said := make(chan string, 1)
	go func() {
		const head = "POST / HTTP/1.1\r\nHost: x\r\nStripe-Signature: t=1,v1=00\r\n"
		_, _ = fmt.Fprintf(c, "%s%s\r\n\r\n%s", head, announce, beginning)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			said <- ""
			return
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		said <- fmt.Sprint(resp.StatusCode, " ", resp.Header.Get("Retry-After"))
	}()
	return said
}

// Slow bodies are evicted for newer requests, whether there are many or large ones; good webhooks are still
// taken.
func TestHandler_SlowBodiesMakeRoom(t *testing.T) {
	nearlyAll := strings.Repeat("a", 1<<20-1)
	for name, tc := range map[string]struct {
		announce, beginning string
		fit                 int
	}{
		"many small ones":           {"Content-Length: 1000", "{", 256},
		"of the usual size":         {"Content-Length: 65536", nearlyAll[:65535], 128},
		"announced large":           {"Content-Length: 1048576", "{", 128},
		"large ones":                {"Content-Length: 1048576", nearlyAll, 8},
		"without an end":            {"Transfer-Encoding: chunked", "1\r\n{", 128},
		"large ones without an end": {"Transfer-Encoding: chunked", "fffff\r\n" + nearlyAll, 8},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, &ledger{recorded: purchase.Recorded{Disposition: purchase.Processed}})
			var said []<-chan string
			for range tc.fit + 20 {
				said = append(said, s.drip(tc.announce, tc.beginning))
			}
			// Which of them came first is the server's to know: as many as do not fit are cut.
			cut := make(chan string)
			for _, c := range said {
				go func() { cut <- <-c }()
			}
			for range 20 {
				if text := <-cut; text != "503 10" {
					t.Errorf("a slow body was answered %q", text)
				}
			}
			for range 30 {
				answer, err := s.sender.Send(t.Context(), stripegen.NewCheckout().Event())
				if err != nil || answer.Status != http.StatusOK {
					t.Fatalf("a good webhook: %+v, %v", answer, err)
				}
			}
			if s.log.FilterMessage("Evicted slow request body").Len() == 0 {
				t.Error("no line in the log says so")
			}
			go func() { // those that are still here end with the test
				for range tc.fit {
					<-cut
				}
			}()
			s.server.CloseClientConnections()
		})
	}
}

// Where every place is taken by a request that is being worked on, the next one is told to come again, and
// is taken later.
func TestHandler_RefusesOverMaxInFlight(t *testing.T) {
	l := &gatedLedger{held: make(chan struct{}), gate: make(chan struct{})}
	s := newSite(t, l)
	const places = 256
	var group sync.WaitGroup
	for range places {
		group.Go(func() {
			answer, err := s.sender.Send(t.Context(), stripegen.NewCheckout().Event())
			if err != nil || answer.Status != http.StatusOK {
				t.Errorf("%+v, %v", answer, err)
			}
		})
	}
	for range places {
		<-l.held
	}
	body := stripegen.NewCheckout().Event()
	req, err := http.NewRequest(http.MethodPost, s.server.URL, strings.NewReader(string(body)))
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
		t.Errorf("one too many: answer = %d %v", resp.StatusCode, resp.Header)
	}
	if n := s.log.FilterMessage("Too many webhooks at once; Stripe sends this one again").Len(); n != 1 {
		t.Errorf("one too many: %d lines, want 1", n)
	}
	close(l.gate)
	group.Wait()
	go func() { <-l.held }()
	if answer, err := s.sender.Send(t.Context(), body); err != nil || answer.Status != http.StatusOK {
		t.Errorf("later: %+v, %v", answer, err)
	}
}

// What cannot be good is refused before its body is read: nothing of it was sent here.
func TestHandler_RefusesUnread(t *testing.T) {
	s := newSite(t, &ledger{})
	for head, want := range map[string]int{
		"Stripe-Signature: t=1,v1=00\r\nContent-Length: 1048577": http.StatusRequestEntityTooLarge,
		"Content-Length: 1000":       http.StatusBadRequest,
		"Transfer-Encoding: chunked": http.StatusBadRequest,
	} {
		c, err := net.Dial("tcp", s.server.Listener.Addr().String())
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
			t.Errorf("%q: %d", head, resp.StatusCode)
		}
	}
}

// BenchmarkHandler_InvalidSignature is what one costs, without the network.
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
