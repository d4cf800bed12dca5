// Package tiktok is the neighbour that is told: the Events API's wire form, and what its answers mean. A code of 0 means
// accepted, never attributed.
package tiktok

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"purchase-relay/internal/contract"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/secret"
)

// Config is what all destinations share.
type Config struct {
	URL       string
	Payload   string // PayloadEvents or PayloadPixel
	EventName string
	PageURL   string        // page.url where a purchase has none
	Timeout   time.Duration // for one whole request
	Client    *http.Client  // nil: one of its own; its redirect policy is replaced
	Now       func() time.Time
}

// Pixel is one destination: a pixel and the token that may write to it. It is safe for concurrent use.
type Pixel struct {
	config   Config
	id       string
	token    secret.Text
	testCode string
	client   *http.Client
}

// NewPixel returns a destination. testEventCode "" sends real events.
func NewPixel(c Config, pixelID string, token secret.Text, testEventCode string) *Pixel {
	client := http.Client{Transport: &http.Transport{
		Proxy: http.ProxyFromEnvironment, MaxIdleConnsPerHost: 64, IdleConnTimeout: 90 * time.Second,
		TLSHandshakeTimeout: 5 * time.Second, ForceAttemptHTTP2: true,
		DialContext: (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
	}}
	if c.Client != nil {
		client = *c.Client
	}
	// A redirect would carry the token to whoever it names.
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &Pixel{config: c, id: pixelID, token: token, testCode: testEventCode, client: &client}
}

// maxAnswer bounds what is read of an answer, in bytes.
const maxAnswer = 1 << 20

// Send sends events in one request and classifies the answer. It never fails otherwise: no answer is an answer to be
// tried again, and may have been taken all the same.
func (p *Pixel) Send(ctx context.Context, events []contract.Envelope) purchase.Answer {
	body, err := Body(p.config, p.id, p.testCode, events)
	if err != nil {
		return purchase.Answer{Class: purchase.ClassRefused, Known: true, Message: p.clean(err.Error())}
	}
	ctx, cancel := context.WithTimeout(ctx, p.config.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.config.URL, bytes.NewReader(body))
	if err != nil {
		return purchase.Answer{Class: purchase.ClassAccess, Known: true, Message: "TIKTOK_API_URL cannot be used"}
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Access-Token", p.token.Reveal())
	req.Header.Set("User-Agent", "purchase-relay")
	resp, err := p.client.Do(req)
	if err != nil {
		return purchase.Answer{Class: purchase.ClassRetry, Known: true, Message: p.clean(networkError(err))}
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		// Half an answer is none, whatever its first half says.
		return purchase.Answer{Class: purchase.ClassRetry, Code: &resp.StatusCode, Known: true, Message: p.clean("the answer broke off: " + networkError(err))}
	}
	a := Read(resp.StatusCode, data)
	a.Message = p.clean(a.Message)
	a.RequestID = short(a.RequestID, 100)
	a.RetryAfter = RetryAfter(resp.Header.Get("Retry-After"), p.config.Now())
	return a
}

// Read classifies an answer: its HTTP status and its body as far as it was read.
func Read(status int, body []byte) purchase.Answer {
	var reply struct {
		Code      json.RawMessage `json:"code"`
		Message   string          `json:"message"`
		RequestID string          `json:"request_id"`
	}
	var code *int
	// A message of another type must not hide the code, and a code of another type is none.
	var wrongType *json.UnmarshalTypeError
	if err := json.Unmarshal(body, &reply); err == nil || errors.As(err, &wrongType) {
		var n int
		if len(reply.Code) > 0 && string(reply.Code) != "null" && json.Unmarshal(reply.Code, &n) == nil && n == int(int32(n)) { //nolint:gosec // the conversion is the check
			code = &n
		}
	}
	a := purchase.Answer{Code: code, Message: reply.Message, RequestID: reply.RequestID}
	a.Class, a.Known = Classify(status, code)
	if code == nil {
		a.Code = &status
		if a.Message == "" {
			a.Message = "HTTP " + http.StatusText(status) + " without TikTok's answer"
		}
	}
	return a
}

// networkError says what happened without the URL that http.Client puts before it.
func networkError(err error) string {
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() || errors.Is(err, context.DeadlineExceeded) {
		return "no answer within TIKTOK_TIMEOUT"
	}
	if wrapped := errors.Unwrap(err); wrapped != nil {
		err = wrapped
	}
	return "no answer: " + err.Error()
}

var address = regexp.MustCompile(`[^\s@"'<>]+@[^\s@"'<>]+`)

// clean makes a foreign text fit for logs and the ledger: no token, no address, no control characters, 300 bytes.
func (p *Pixel) clean(s string) string {
	if token := p.token.Reveal(); token != "" {
		s = strings.ReplaceAll(s, token, "[redacted]")
	}
	return short(address.ReplaceAllString(s, "[redacted]"), 300)
}

func short(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > most {
		for most > 0 && !utf8.RuneStart(s[most]) {
			most--
		}
		s = s[:most]
	}
	return s
}
