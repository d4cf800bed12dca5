// Package tiktok is the neighbour that is told: the Events API's wire form, and what its answers mean. A code of 0 means
// accepted, never attributed.
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
	PageURL   string           // page.url where a purchase has none; "": none
	Timeout   time.Duration    // for one whole request, above 0
	Client    *http.Client     // nil: one of its own; its redirect policy is replaced
	Now       func() time.Time // the clock, for a Retry-After that is a date
}

// Pixel is one destination: a pixel and the token that may write to it. It is safe for concurrent use.
type Pixel struct {
	config   Config
	id       string
	token    atomic.Pointer[secret.Text]
	testCode string
	client   *http.Client
	renewed  atomic.Int64 // when idle connections were last given up, Unix nanoseconds
}

// NewPixel returns a destination. testEventCode "" sends real events.
func NewPixel(c Config, pixelID string, token secret.Text, testEventCode string) *Pixel {
	client := http.Client{Transport: &http.Transport{
		Proxy: http.ProxyFromEnvironment, MaxIdleConnsPerHost: 64, IdleConnTimeout: 90 * time.Second,
		TLSHandshakeTimeout: 5 * time.Second, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12},
		DialContext:           (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		ResponseHeaderTimeout: c.Timeout, MaxResponseHeaderBytes: 64 << 10,
		DisableCompression: true,                                                                                            // an answer that is small on the wire must not be large in memory
		ForceAttemptHTTP2:  true, HTTP2: &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 5 * time.Second}, // a dead connection is noticed
	}}
	if c.Client != nil {
		client = *c.Client
	}
	// A redirect would carry the token to whoever it names.
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	p := &Pixel{config: c, id: pixelID, testCode: testEventCode, client: &client}
	p.SetToken(token)
	p.renewed.Store(c.Now().UnixNano())
	return p
}

// SetToken replaces the token, for the requests that begin from now on.
func (p *Pixel) SetToken(token secret.Text) { p.token.Store(&token) }

// renewAfter is how long connections are kept before idle ones are given up: a name that points elsewhere is followed.
const renewAfter = 5 * time.Minute

// renew gives idle connections up, after a failure at once and else now and then.
func (p *Pixel) renew(failed bool) {
	now, last := p.config.Now().UnixNano(), p.renewed.Load()
	if (failed || time.Duration(now-last) > renewAfter) && p.renewed.CompareAndSwap(last, now) {
		p.client.CloseIdleConnections()
	}
}

// What is read and kept of an answer, in bytes.
const (
	maxAnswer    = 1 << 20
	maxMessage   = 300
	maxRequestID = 100
)

// Send sends events in one request and classifies the answer. It never fails otherwise: no answer is an answer to be
// tried again, and may have been taken all the same.
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
		return purchase.Answer{Class: purchase.ClassAccess, Known: true, Message: "the access token holds characters that no request can carry"}
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Access-Token", token)
	req.Header.Set("User-Agent", "purchase-relay")
	resp, err := p.client.Do(req)
	p.renew(err != nil)
	if err != nil {
		return purchase.Answer{Class: purchase.ClassRetry, Known: true, Message: p.clean("no answer: "+reason(err), maxMessage)}
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

// SendTest sends one event for somebody who waits for the answer. Three tries, a second apart, at most: one answer that means nothing (an
// error of TikTok's own, a connection that broke) says nothing about the settings.
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
		// Half a body is none, whatever its first half says; the status came whole.
		a := Read(resp.StatusCode, nil)
		a.Message = "the answer broke off: " + reason(err)
		return a
	}
	return Read(resp.StatusCode, data)
}

// Read classifies an answer: its HTTP status (0: none came) and its body as far as it was read. The texts are the other
// side's, as they came.
func Read(status int, body []byte) purchase.Answer {
	// A map, and not a struct, because encoding/json would take "CODE" for "code", and because one field of an unexpected
	// type must not hide the others.
	var fields map[string]json.RawMessage
	if json.Unmarshal(body, &fields) != nil {
		fields = nil // a gateway's page
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

// integer reads a code; nil for what is none: missing, null, a text, a fraction, beyond the ledger's 32 bits.
func integer(raw json.RawMessage) *int {
	var n *int
	if json.Unmarshal(raw, &n) != nil || n == nil || int(int32(*n)) != *n { //nolint:gosec // the conversion is the check
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

// reason says what happened to a request, without the URL that http.Client puts before it.
func reason(err error) string {
	if timeout, ok := errors.AsType[net.Error](err); errors.Is(err, context.DeadlineExceeded) || (ok && timeout.Timeout()) {
		return "TIKTOK_TIMEOUT is over"
	}
	if withURL, ok := errors.AsType[*url.Error](err); ok {
		err = withURL.Err
	}
	return err.Error()
}

// address finds an e-mail address, plain or with its '@' escaped.
var address = regexp.MustCompile(`[^\s@"'<>]+(@|%40)[^\s@"'<>]+`)

// clean makes a foreign text fit for logs and the ledger: no control or invisible characters, no token, no address, at most
// so many bytes. The invisible go first, or they would hide the others; the cut comes last, or it would.
func (p *Pixel) clean(s string, most int) string {
	s = strings.Map(visible, strings.ToValidUTF8(s, "?"))
	if token := p.token.Load().Reveal(); token != "" {
		s = strings.ReplaceAll(s, token, redacted)
	}
	s = address.ReplaceAllString(s, redacted)
	if len(s) > most {
		for most > 0 && !utf8.RuneStart(s[most]) {
			most--
		}
		s = s[:most]
	}
	return s
}

const redacted = "[redacted]"

// visible keeps words apart that a line end or a tab kept apart, and drops other control and format characters.
func visible(r rune) rune {
	switch {
	case r == '\n' || r == '\r' || r == '\t':
		return ' '
	case unicode.IsControl(r) || unicode.Is(unicode.Cf, r):
		return -1
	}
	return r
}
