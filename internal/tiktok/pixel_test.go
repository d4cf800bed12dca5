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

// A compressed answer is not requested and not decompressed.
func TestPixel_IgnoresCompression(t *testing.T) {
	a := send(t, func(w http.ResponseWriter, r *http.Request) {
		if e := r.Header.Get("Accept-Encoding"); e != "" {
			t.Errorf("Accept-Encoding: %s", e)
		}
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		_, _ = io.WriteString(z, `{"code":0,"message":"OK"}`)
		_ = z.Close()
	})
	if a.Class != purchase.ClassRetry {
		t.Errorf("answer = %+v, want retry", a)
	}
}

// transport counts how often its idle connections were closed.
type transport struct {
	fail   bool
	closed int
}

func (tr *transport) RoundTrip(*http.Request) (*http.Response, error) {
	if tr.fail {
		return nil, errors.New("connection refused")
	}
	body := io.NopCloser(strings.NewReader(`{"code":0}`))
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: body}, nil
}

func (tr *transport) CloseIdleConnections() { tr.closed++ }

// Idle connections are closed after a failure and every few minutes, so that DNS changes take effect.
func TestPixel_ClosesIdleConnections(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	tr := &transport{}
	c := config()
	c.URL, c.Now = "http://tiktok.example/", func() time.Time { return now }
	c.Client = &http.Client{Transport: tr}
	p := tiktok.NewPixel(c, "P", "token", "")
	for _, step := range []struct {
		after time.Duration
		fail  bool
		want  int
	}{
		{0, false, 0},
		{4 * time.Minute, false, 0},
		{2 * time.Minute, false, 1},
		{time.Second, false, 1},
		{time.Second, true, 2},
		{time.Minute, false, 2},
	} {
		now, tr.fail = now.Add(step.after), step.fail
		p.Send(t.Context(), []message.Envelope{{EventID: "cs_1", PurchasedAt: 1}})
		if tr.closed != step.want {
			t.Errorf("%+v: closed %d times", step, tr.closed)
		}
	}
}

func TestPixel_SetTokenAppliesToLaterRequests(t *testing.T) {
	var seen []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = append(seen, r.Header.Get("Access-Token"))
		_, _ = io.WriteString(w, `{"code":40105,"message":"token two is bad, one was"}`)
	}))
	defer server.Close()
	c := config()
	c.URL = server.URL
	p := tiktok.NewPixel(c, "P", "one", "")
	send := func() purchase.Answer {
		return p.Send(t.Context(), []message.Envelope{{EventID: "cs_1", PurchasedAt: 1}})
	}
	send()
	p.SetToken("two")
	a := send()
	if strings.Join(seen, " ") != "one two" || strings.Contains(a.Message, "two") {
		t.Errorf("tokens = %q, message = %q; want one, two and a redacted message", seen, a.Message)
	}
	if a.Class != purchase.ClassAccess || a.Code == nil || *a.Code != 40105 {
		t.Errorf("answer = %+v, want access, 40105", a)
	}
}
