// Package tiktok is the client of TikTok's Events API: wire format, requests, and the classification of
// answers. Code 0 means accepted, not attributed.
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

// Config holds the settings that all destinations share.
type Config struct {
	URL       string           // absolute address of the event endpoint
	Payload   string           // PayloadEvents or PayloadPixel
	EventName string           // must equal the browser pixel's
	PageURL   string           // page.url of a purchase without one; "": none
	Timeout   time.Duration    // for one whole request, above 0
	Client    *http.Client     // nil: a new one; its redirect policy is replaced
	Now       func() time.Time // the clock, for a Retry-After that is a date
}

// Pixel is one destination: a pixel and the token that may write to it. It is safe for concurrent use.
type Pixel struct {
	config     Config
	id         string
	token      atomic.Pointer[secret.String]
	testCode   string
	client     *http.Client
	idleClosed atomic.Int64 // when idle connections were last closed, Unix nanoseconds
}

// NewPixel returns a destination. Without a testEventCode its events are real.
func NewPixel(c Config, pixelID string, token secret.String, testEventCode string) *Pixel {
	p := &Pixel{config: c, id: pixelID, testCode: testEventCode, client: newClient(c.Client, c.Timeout)}
	p.SetToken(token)
	p.idleClosed.Store(c.Now().UnixNano())
	return p
}

// newClient returns a bounded client that follows no redirect; given nil, with a transport of its own.
func newClient(given *http.Client, timeout time.Duration) *http.Client {
	client := http.Client{Transport: &http.Transport{
		Proxy: http.ProxyFromEnvironment, MaxIdleConnsPerHost: 64, IdleConnTimeout: 90 * time.Second,
		TLSHandshakeTimeout: 5 * time.Second, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12},
		DialContext:           (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		ResponseHeaderTimeout: timeout, MaxResponseHeaderBytes: 64 << 10,
		DisableCompression: true, // a compressed answer could exhaust memory
		ForceAttemptHTTP2:  true,
		// Pings detect a half-open connection.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 5 * time.Second},
	}}
	if given != nil {
		client = *given
	}
	// A redirect would send the token to another host.
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &client
}

// ID returns the pixel's id.
func (p *Pixel) ID() string { return p.id }

// SetToken replaces the token of later requests.
func (p *Pixel) SetToken(token secret.String) { p.token.Store(&token) }

// idleInterval is how often idle connections are closed, so that DNS changes take effect.
const idleInterval = 5 * time.Minute

// closeIdle closes idle connections after a failure or when due.
func (p *Pixel) closeIdle(failed bool) {
	now, last := p.config.Now().UnixNano(), p.idleClosed.Load()
	if (failed || time.Duration(now-last) > idleInterval) && p.idleClosed.CompareAndSwap(last, now) {
		p.client.CloseIdleConnections()
	}
}

// Bounds of an answer, in bytes.
const (
	maxAnswer    = 1 << 20
	maxMessage   = 300
	maxRequestID = 100
)

// Send sends events in one request and classifies the answer. A request without an answer is retried: TikTok
// may have accepted it.
func (p *Pixel) Send(ctx context.Context, events []message.Envelope) purchase.Answer {
	failed := func(class purchase.Class, message string) purchase.Answer {
		return purchase.Answer{Class: class, Known: true, Message: p.sanitize(message, maxMessage)}
	}
	body, sent, err := encode(p.config, p.id, p.testCode, events)
	if err != nil {
		return failed(purchase.ClassRefused, err.Error())
	}
	ctx, cancel := context.WithTimeout(ctx, p.config.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.config.URL, bytes.NewReader(body))
	if err != nil {
		return failed(purchase.ClassAccess, "invalid TIKTOK_API_URL")
	}
	token := p.token.Load().Reveal()
	if !headerValue.MatchString(token) {
		return failed(purchase.ClassAccess, "access token contains invalid characters")
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Access-Token", token)
	req.Header.Set("User-Agent", "purchase-relay")
	resp, err := p.client.Do(req)
	p.closeIdle(err != nil)
	if err != nil {
		return failed(purchase.ClassRetry, "no answer: "+errorText(err))
	}
	defer func() { _ = resp.Body.Close() }()
	a, _ := readAnswer(resp)
	if a.Class == purchase.ClassDelivered {
		a.Sent = sent
	}
	if a.Code == nil || *a.Code != 0 { // accepted duplicates (40050), too, may quote an event
		a.Message, a.RequestID = redactValues(a.Message, events), redactValues(a.RequestID, events)
	}
	a.Message, a.RequestID = p.sanitize(a.Message, maxMessage), p.sanitize(a.RequestID, maxRequestID)
	a.RetryAfter = RetryAfter(resp.Header.Get("Retry-After"), p.config.Now())
	return a
}

// SendTest sends one event for an operator, up to three times, a second apart: a temporary fault does not
// test the settings.
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

// readAnswer returns the answer and its body, nil if that is truncated.
func readAnswer(resp *http.Response) (purchase.Answer, []byte) {
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		// The status is complete; the truncated body is ignored.
		a := ParseAnswer(resp.StatusCode, nil)
		a.Message = "truncated answer: " + errorText(err)
		return a, nil
	}
	return ParseAnswer(resp.StatusCode, data), data
}

// ParseAnswer classifies an answer by its HTTP status (0: none) and body. Its texts are not redacted.
func ParseAnswer(status int, body []byte) purchase.Answer {
	// A struct would match "CODE" as "code", and fail for all fields if one has an unexpected type.
	var fields map[string]json.RawMessage
	if json.Unmarshal(body, &fields) != nil {
		fields = nil // not TikTok's JSON
	}
	code := integer(fields["code"])
	a := purchase.Answer{Code: code, Message: text(fields["message"]), RequestID: text(fields["request_id"])}
	a.Class, a.Known = Classify(status, code, a.Message)
	if code == nil && status != 0 {
		a.Code = &status
		if a.Message == "" {
			a.Message = "HTTP " + strconv.Itoa(status) + " without TikTok's answer"
		}
	}
	return a
}

// integer returns a code; nil unless it is a 32-bit integer, as in the ledger.
func integer(raw json.RawMessage) *int {
	var n *int
	if json.Unmarshal(raw, &n) != nil || n == nil || int(int32(*n)) != *n { //nolint:gosec // this is the check
		return nil
	}
	return n
}

func text(raw json.RawMessage) (s string) {
	if json.Unmarshal(raw, &s) != nil {
		return ""
	}
	return s
}

// errorText returns a request error's text without the URL that http.Client prepends. Connecting has limits
// of its own, below TIKTOK_TIMEOUT.
func errorText(err error) string {
	if withURL, ok := errors.AsType[*url.Error](err); ok {
		err = withURL.Err
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		return op.Error()
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return "TIKTOK_TIMEOUT exceeded"
	}
	return err.Error()
}

// emailAddress matches an e-mail address, plain or with an escaped '@'.
var emailAddress = regexp.MustCompile(`[^\s@"'<>]+(@|%40)[^\s@"'<>]+`)

// sanitize makes a text log-safe: no control or invisible characters, no token, no e-mail address, at most
// limit bytes. Invisible characters are removed first and the text is truncated last, because both could
// hide a token or an address.
func (p *Pixel) sanitize(s string, limit int) string { return sanitize(s, *p.token.Load(), limit) }

func sanitize(s string, token secret.String, limit int) string {
	s = strings.Map(replaceInvisible, strings.ToValidUTF8(s, "?"))
	if token != "" {
		s = strings.ReplaceAll(s, token.Reveal(), redacted)
	}
	s = emailAddress.ReplaceAllString(s, redacted)
	if len(s) > limit {
		for limit > 0 && !utf8.RuneStart(s[limit]) {
			limit--
		}
		s = s[:limit]
	}
	return s
}

const redacted = "[redacted]"

// replaceInvisible replaces line ends and tabs by blanks and drops other control and format characters.
func replaceInvisible(r rune) rune {
	switch {
	case r == '\n' || r == '\r' || r == '\t':
		return ' '
	case unicode.IsControl(r) || unicode.Is(unicode.Cf, r):
		return -1
	}
	return r
}
