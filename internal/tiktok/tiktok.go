// Package tiktok is the client of TikTok's Events API: wire form, requests, and the meaning of answers. A
// code of 0 means accepted, never attributed.
package tiktok

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/secret"
)

// Config is what all destinations share.
type Config struct {
	URL       string           // where events are sent, absolute
	Payload   string           // PayloadEvents or PayloadPixel
	EventName string           // the event's name, the same as the browser pixel's
	PageURL   string           // page.url of a purchase without one; "": none
	Timeout   time.Duration    // for one whole request, above 0
	Client    *http.Client     // nil: a new one; its redirect policy is replaced
	Now       func() time.Time // the clock, for a Retry-After that is a date
}

// Pixel is one destination: a pixel and the token that may write to it. It is safe for concurrent use.
type Pixel struct {
	config   Config
	id       string
	token    atomic.Pointer[secret.String]
	testCode string
	client   *http.Client
	renewed  atomic.Int64 // when idle connections were last closed, Unix nanoseconds
}

// NewPixel returns a destination. testEventCode "" sends real events.
func NewPixel(c Config, pixelID string, token secret.String, testEventCode string) *Pixel {
	client := http.Client{Transport: &http.Transport{
		Proxy: http.ProxyFromEnvironment, MaxIdleConnsPerHost: 64, IdleConnTimeout: 90 * time.Second,
		TLSHandshakeTimeout: 5 * time.Second, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12},
		DialContext:           (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		ResponseHeaderTimeout: c.Timeout, MaxResponseHeaderBytes: 64 << 10,
		DisableCompression: true, // bounds memory: a compressed answer could expand
		ForceAttemptHTTP2:  true,
		// Pings detect a half-open connection.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 5 * time.Second},
	}}
	if c.Client != nil {
		client = *c.Client
	}
	// A redirect would send the token to another host.
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	p := &Pixel{config: c, id: pixelID, testCode: testEventCode, client: &client}
	p.SetToken(token)
	p.renewed.Store(c.Now().UnixNano())
	return p
}

// SetToken replaces the token of later requests.
func (p *Pixel) SetToken(token secret.String) { p.token.Store(&token) }

// renewAfter is how often idle connections are closed, so that a change of DNS takes effect.
const renewAfter = 5 * time.Minute

// renew closes idle connections, after a failure or when due.
func (p *Pixel) renew(failed bool) {
	now, last := p.config.Now().UnixNano(), p.renewed.Load()
	if (failed || time.Duration(now-last) > renewAfter) && p.renewed.CompareAndSwap(last, now) {
		p.client.CloseIdleConnections()
	}
}

// Bounds of an answer, in bytes.
const (
	maxAnswer    = 1 << 20
	maxMessage   = 300
	maxRequestID = 100
)

// Send sends events in one request and classifies the answer. A request without an answer is classified as
// one to retry: TikTok may have accepted it.
func (p *Pixel) Send(ctx context.Context, events []message.Envelope) purchase.Answer {
	body, sent, err := bodyAndSent(p.config, p.id, p.testCode, events)
	if err != nil {
		return purchase.Answer{Class: purchase.ClassRefused, Known: true, Message: p.clean(err.Error(), maxMessage)}
	}
	ctx, cancel := context.WithTimeout(ctx, p.config.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.config.URL, bytes.NewReader(body))
	if err != nil {
		return purchase.Answer{Class: purchase.ClassAccess, Known: true, Message: "TIKTOK_API_URL cannot be used"}
	}
	token := p.token.Load().Reveal()
	if !headerValue.MatchString(token) {
		const message = "the access token holds characters that no request can carry"
		return purchase.Answer{Class: purchase.ClassAccess, Known: true, Message: message}
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Access-Token", token)
	req.Header.Set("User-Agent", "purchase-relay")
	resp, err := p.client.Do(req)
	p.renew(err != nil)
	if err != nil {
		message := p.clean("no answer: "+reason(err), maxMessage)
		return purchase.Answer{Class: purchase.ClassRetry, Known: true, Message: message}
	}
	defer func() { _ = resp.Body.Close() }()
	a := p.read(resp)
	if a.Class == purchase.ClassDelivered {
		a.Sent = sent
	} else {
		a.Message, a.RequestID = redactValues(a.Message, events), redactValues(a.RequestID, events)
	}
	a.Message, a.RequestID = p.clean(a.Message, maxMessage), p.clean(a.RequestID, maxRequestID)
	a.RetryAfter = RetryAfter(resp.Header.Get("Retry-After"), p.config.Now())
	return a
}

// SendTest sends one event for an operator, with at most three tries a second apart: a passing fault says
// nothing about the settings.
func (p *Pixel) SendTest(ctx context.Context, event message.Envelope) purchase.Answer {
	for try := 1; ; try++ {
		a := p.Send(ctx, []message.Envelope{event})
		if a.Class != purchase.ClassRetry || try == 3 {
			return a
		}
		select {
		case <-ctx.Done():
			return a
		case <-time.After(time.Second):
		}
	}
}

func (p *Pixel) read(resp *http.Response) purchase.Answer {
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		// The status is complete, the body is not and is ignored.
		a := Read(resp.StatusCode, nil)
		a.Message = "the answer broke off: " + reason(err)
		return a
	}
	return Read(resp.StatusCode, data)
}

// Read classifies an answer by its HTTP status (0: none) and the body that was read. Its texts are
// unredacted.
func Read(status int, body []byte) purchase.Answer {
	// A struct would match "CODE" as "code", and one field of an unexpected type would hide the others.
	var fields map[string]json.RawMessage
	if json.Unmarshal(body, &fields) != nil {
		fields = nil // a gateway's page
	}
	code := integer(fields["code"])
	a := purchase.Answer{Code: code, Message: str(fields["message"]), RequestID: str(fields["request_id"])}
	a.Class, a.Known = Classify(status, code, a.Message)
	if code == nil && status != 0 {
		a.Code = &status
		if a.Message == "" {
			a.Message = "HTTP " + strconv.Itoa(status) + " without TikTok's answer"
		}
	}
	return a
}

// integer returns a code; nil unless it is an integer of 32 bits, as in the ledger.
func integer(raw json.RawMessage) *int {
	var n *int
	if json.Unmarshal(raw, &n) != nil || n == nil || int(int32(*n)) != *n { //nolint:gosec // this is the check
		return nil
	}
	return n
}

func str(raw json.RawMessage) (s string) {
	if json.Unmarshal(raw, &s) != nil {
		return ""
	}
	return s
}

// reason returns the text of a request's error without the URL that http.Client prepends.
func reason(err error) string {
	timeout, ok := errors.AsType[net.Error](err)
	if errors.Is(err, context.DeadlineExceeded) || (ok && timeout.Timeout()) {
		return "TIKTOK_TIMEOUT is over"
	}
	if withURL, ok := errors.AsType[*url.Error](err); ok {
		err = withURL.Err
	}
	return err.Error()
}

// address matches an e-mail address, plain or with its '@' escaped.
var address = regexp.MustCompile(`[^\s@"'<>]+(@|%40)[^\s@"'<>]+`)

// clean makes a text log-safe: no control or invisible characters, no token, no address, at most limit bytes.
// Invisible characters are removed first and the cut comes last, because both could hide a token or an
// address.
func (p *Pixel) clean(s string, limit int) string {
	s = strings.Map(visible, strings.ToValidUTF8(s, "?"))
	if token := p.token.Load().Reveal(); token != "" {
		s = strings.ReplaceAll(s, token, redacted)
	}
	s = address.ReplaceAllString(s, redacted)
	if len(s) > limit {
		for limit > 0 && !utf8.RuneStart(s[limit]) {
			limit--
		}
		s = s[:limit]
	}
	return s
}

const redacted = "[redacted]"

// visible replaces line ends and tabs by blanks and drops other control and format characters.
func visible(r rune) rune {
	switch {
	case r == '\n' || r == '\r' || r == '\t':
		return ' '
	case unicode.IsControl(r) || unicode.Is(unicode.Cf, r):
		return -1
	}
	return r
}
