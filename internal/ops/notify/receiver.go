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
	sendTimeout = 10 * time.Second // per try
	sendTries   = 3
)

// SendError reports a message that was not delivered.
type SendError struct {
	Cause     error // without the receiver's URL, which is a secret
	Retryable bool  // the message was certainly not accepted, and a retry may succeed
}

// Error implements error.
func (e *SendError) Error() string { return e.Cause.Error() }

// Unwrap returns the cause.
func (e *SendError) Unwrap() error { return e.Cause }

func retryable(err error) bool {
	e, ok := errors.AsType[*SendError](err)
	return ok && e.Retryable
}

// Webhook posts JSON with a text, which Slack and compatible products display, and the same as fields.
type Webhook struct {
	url      secret.String
	textOnly bool // the receiver rejects unknown fields
	slack    bool
	client   *http.Client
}

// CheckURL returns the problem with a receiver's URL, without the URL.
func CheckURL(address secret.String) error {
	u, err := url.Parse(address.Reveal())
	if err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") {
		return errors.New("is not an absolute http(s) URL")
	}
	if secret.InClear(address.Reveal()) {
		return errors.New("is plain http to another machine: use https")
	}
	return nil
}

// NewReceiver returns the receiver at a URL that CheckURL accepts, nil for "".
func NewReceiver(address secret.String) Receiver {
	if address == "" {
		return nil
	}
	return NewWebhook(address)
}

// NewWebhook returns the receiver at a URL that CheckURL accepts.
func NewWebhook(address secret.String) *Webhook {
	host := ""
	if u, err := url.Parse(address.Reveal()); err == nil {
		host = u.Hostname()
	}
	slack := host == "hooks.slack.com" || host == "hooks.slack-gov.com"
	return &Webhook{
		url: address, slack: slack, textOnly: slack || host == "chat.googleapis.com",
		client: &http.Client{
			Timeout: sendTimeout,
			Transport: &http.Transport{
				Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true, TLSHandshakeTimeout: sendTimeout / 2,
			},
			// A redirect would send the message elsewhere.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

type body struct {
	Text string `json:"text"`
	*fields
}

type fields struct {
	Source string    `json:"source"`
	Reason string    `json:"reason"`
	State  string    `json:"state"`
	Since  time.Time `json:"since,omitzero"` // missing: unknown
	Count  int       `json:"count"`

	Purchases *int     `json:"purchases"` // null: unknown
	IDs       []string `json:"ids"`
	What      string   `json:"what"`
	Remedy    string   `json:"remedy,omitempty"`
}

func (w *Webhook) body(m Message) ([]byte, error) {
	b := body{Text: text(m)}
	if w.slack {
		// Foreign text must not mention channels.
		b.Text = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(b.Text)
	}
	if !w.textOnly {
		b.fields = &fields{
			Source: "purchase-relay", Reason: m.Reason, State: m.State, Since: m.Since.UTC().Truncate(time.Second),
			Count: m.Count, Purchases: m.Purchases, IDs: append([]string{}, m.IDs...), What: m.What, Remedy: m.Remedy,
		}
	}
	return json.Marshal(b)
}

func text(m Message) string {
	if m.State == StateResolved {
		return "purchase-relay: resolved. " + m.What
	}
	lines := []string{"purchase-relay: " + m.What}
	var facts []string
	if !m.Since.IsZero() {
		facts = append(facts, "Since "+m.Since.UTC().Format(time.RFC3339)+".")
	}
	if m.Purchases != nil && *m.Purchases > 0 {
		facts = append(facts, fmt.Sprintf("Purchases: %d.", *m.Purchases))
	}
	if len(facts) > 0 {
		lines = append(lines, strings.Join(facts, " "))
	}
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
		return &SendError{Cause: err}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url.Reveal(), bytes.NewReader(data))
	if err != nil {
		return &SendError{Cause: errors.New("NOTIFY_URL is invalid")}
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "purchase-relay")
	resp, err := w.client.Do(req)
	if err != nil {
		return requestError(err)
	}
	defer func() { _ = resp.Body.Close() }()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<16))
	switch resp.StatusCode / 100 {
	case 2:
		return nil
	case 3:
		return &SendError{Cause: fmt.Errorf("receiver returned %s: redirects are not followed", resp.Status)}
	}
	return &SendError{
		Cause: fmt.Errorf("receiver returned %s", resp.Status),
		Retryable: resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests ||
			resp.StatusCode == http.StatusRequestTimeout,
	}
}

// requestError removes the URL from an error. A failure to connect is retryable: nothing was sent.
func requestError(err error) error {
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		err = wrapped.Err
	}
	var timeout interface{ Timeout() bool }
	if errors.As(err, &timeout) && timeout.Timeout() || errors.Is(err, context.DeadlineExceeded) {
		return &SendError{Cause: errors.New("receiver timed out")}
	}
	var network *net.OpError
	return &SendError{
		Cause:     fmt.Errorf("request to receiver: %w", err),
		Retryable: errors.As(err, &network) && network.Op == "dial",
	}
}
