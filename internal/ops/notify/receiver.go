package notify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"purchase-relay/internal/secret"
)

const (
	sendTimeout = 10 * time.Second // of one try
	sendTries   = 3                // in a row
)

// Refusal is a message that was not delivered.
type Refusal struct {
	Cause error // without the receiver's address: it holds a secret
	Again bool  // it was certainly not taken, and a retry may succeed
}

// Error implements error.
func (r *Refusal) Error() string { return r.Cause.Error() }

// Unwrap gives the cause.
func (r *Refusal) Unwrap() error { return r.Cause }

func again(err error) bool {
	var r *Refusal
	return errors.As(err, &r) && r.Again
}

// Webhook posts JSON: "text" for people, as Slack and its like read it, and the same in fields for programs.
// Receivers that reject unknown fields get the text alone.
type Webhook struct {
	url    secret.String
	simple bool
	slack  bool
	client *http.Client
}

// CheckURL returns what is wrong with a receiver's address, without the address.
func CheckURL(address secret.String) error {
	u, err := url.Parse(address.Reveal())
	if err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") {
		return errors.New("is not an absolute http(s) URL")
	}
	if secret.InClear(address.Reveal()) {
		return errors.New("is plain http to another machine: it is a secret itself, and its messages hold ids; use https")
	}
	return nil
}

// NewReceiver returns the receiver at an address that CheckURL finds good; nil for no address.
func NewReceiver(address secret.String) Receiver {
	if address == "" {
		return nil
	}
	return NewWebhook(address)
}

// NewWebhook returns the receiver at an address that CheckURL finds good.
func NewWebhook(address secret.String) *Webhook {
	host := ""
	if u, err := url.Parse(address.Reveal()); err == nil {
		host = u.Hostname()
	}
	slack := host == "hooks.slack.com" || host == "hooks.slack-gov.com"
	return &Webhook{
		url: address, slack: slack, simple: slack || host == "chat.googleapis.com",
		client: &http.Client{
			Timeout: sendTimeout,
			Transport: &http.Transport{
				Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true, TLSHandshakeTimeout: sendTimeout / 2,
			},
			// A redirect would carry the message elsewhere.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// body is what is posted.
type body struct {
	Text string `json:"text"`
	*fields
}

type fields struct {
	Source string    `json:"source"`
	Reason string    `json:"reason"`
	State  string    `json:"state"`
	Since  time.Time `json:"since"`
	Count  int       `json:"count"`
	IDs    []string  `json:"ids"`
	What   string    `json:"what"`
	Remedy string    `json:"remedy,omitempty"`
}

func (w *Webhook) body(m Message) ([]byte, error) {
	b := body{Text: text(m)}
	if w.slack {
		// A foreign text must not mention everybody.
		b.Text = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(b.Text)
	}
	if !w.simple {
		b.fields = &fields{
			Source: "purchase-relay", Reason: m.Reason, State: m.State, Since: m.Since.UTC().Truncate(time.Second),
			Count: m.Count, IDs: append([]string{}, m.IDs...), What: m.What, Remedy: m.Remedy,
		}
	}
	return json.Marshal(b)
}

// text is a message for people.
func text(m Message) string {
	if m.State == StateResolved {
		return "purchase-relay: over. " + m.What
	}
	lines := []string{"purchase-relay: " + m.What}
	if len(m.IDs) > 0 {
		ids := strings.Join(m.IDs, ", ")
		if more := m.Count - len(m.IDs); more > 0 {
			ids += fmt.Sprintf(" and %d more", more)
		}
		lines = append(lines, ids)
	}
	return strings.Join(append(lines, m.Remedy), "\n")
}

// Send implements Receiver.
func (w *Webhook) Send(ctx context.Context, m Message) error {
	data, err := w.body(m)
	if err != nil {
		return &Refusal{Cause: err}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url.Reveal(), bytes.NewReader(data))
	if err != nil {
		return &Refusal{Cause: errors.New("NOTIFY_URL cannot be used")}
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "purchase-relay")
	resp, err := w.client.Do(req)
	if err != nil {
		return unreached(err)
	}
	defer func() { _ = resp.Body.Close() }()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<16)) // the status is the answer
	switch resp.StatusCode / 100 {
	case 2:
		return nil
	case 3:
		return &Refusal{Cause: fmt.Errorf(
			"the receiver answers %s, and redirects are not followed: name the address itself", resp.Status)}
	}
	return &Refusal{
		Cause: fmt.Errorf("the receiver answers %s", resp.Status),
		Again: resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests ||
			resp.StatusCode == http.StatusRequestTimeout,
	}
}

// unreached removes the address from an error. A connection that was not made has certainly carried nothing.
func unreached(err error) error {
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		err = wrapped.Err
	}
	var dial interface{ Timeout() bool }
	if errors.As(err, &dial) && dial.Timeout() || errors.Is(err, context.DeadlineExceeded) {
		return &Refusal{Cause: errors.New("the receiver does not answer in time")}
	}
	var network *net.OpError
	return &Refusal{
		Cause: fmt.Errorf("the receiver cannot be reached: %w", err),
		Again: errors.As(err, &network) && network.Op == "dial",
	}
}
