package tiktok_test

import (
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
	"purchase-relay/internal/tiktok"
)

// A compressed answer is not asked for, and one that comes all the same is not unpacked: it is no answer.
func TestPixel_IgnoresCompression(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if e := r.Header.Get("Accept-Encoding"); e != "" {
			t.Errorf("Accept-Encoding: %s", e)
		}
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		_, _ = io.WriteString(z, `{"code":0,"message":"OK"}`)
		_ = z.Close()
	}))
	defer server.Close()
	p := tiktok.NewPixel(tiktok.Config{URL: server.URL, EventName: "CompletePayment", Timeout: 10 * time.Second, Now: time.Now}, "P", "token", "")
	if a := p.Send(t.Context(), []message.Envelope{{EventID: "cs_1", PurchasedAt: 1}}); a.Class != purchase.ClassRetry {
		t.Errorf("answer: %+v", a)
	}
}

// transport answers from a list and counts how often its idle connections were given up.
type transport struct {
	fail   bool
	closed int
}

func (tr *transport) RoundTrip(*http.Request) (*http.Response, error) {
	if tr.fail {
		return nil, errors.New("connection refused")
	}
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(`{"code":0}`))}, nil
}

func (tr *transport) CloseIdleConnections() { tr.closed++ }

// A name that points elsewhere is followed: connections are given up after a failure, and every few minutes.
func TestPixel_RenewsConnections(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	tr := &transport{}
	p := tiktok.NewPixel(tiktok.Config{
		URL: "http://tiktok.example/", EventName: "CompletePayment", Timeout: time.Second, Now: func() time.Time { return now }, Client: &http.Client{Transport: tr},
	}, "P", "token", "")
	send := func() { p.Send(t.Context(), []message.Envelope{{EventID: "cs_1", PurchasedAt: 1}}) }
	for _, step := range []struct {
		after time.Duration
		fail  bool
		want  int
	}{{0, false, 0}, {4 * time.Minute, false, 0}, {2 * time.Minute, false, 1}, {time.Second, false, 1}, {time.Second, true, 2}, {time.Minute, false, 2}} {
		now, tr.fail = now.Add(step.after), step.fail
		send()
		if tr.closed != step.want {
			t.Errorf("%+v: given up %d times", step, tr.closed)
		}
	}
}

func TestPixel_SetToken(t *testing.T) {
	var seen []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = append(seen, r.Header.Get("Access-Token"))
		_, _ = io.WriteString(w, `{"code":40105,"message":"token two is bad, one was"}`)
	}))
	defer server.Close()
	p := tiktok.NewPixel(tiktok.Config{URL: server.URL, EventName: "CompletePayment", Timeout: 10 * time.Second, Now: time.Now}, "P", "one", "")
	send := func() purchase.Answer {
		return p.Send(t.Context(), []message.Envelope{{EventID: "cs_1", PurchasedAt: 1}})
	}
	send()
	p.SetToken("two")
	a := send()
	if strings.Join(seen, " ") != "one two" || strings.Contains(a.Message, "two") {
		t.Errorf("tokens %q, message %q", seen, a.Message)
	}
	if a.Class != purchase.ClassAccess || a.Code == nil || *a.Code != 40105 {
		t.Errorf("answer = %+v, want access, 40105", a)
	}
}
