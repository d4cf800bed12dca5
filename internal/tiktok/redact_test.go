package tiktok

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
)

const agent = "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X) AppleWebKit/605.1.15 " +
	"(KHTML, like Gecko) Version/17.4 Mobile/15E148"

func buyer() message.Envelope {
	return message.Envelope{EventID: "cs_live_a1", Keys: purchase.MatchKeys{
		Email: purchase.HashEmail("ada@example.com"), Phone: purchase.HashPhone("+12133734253"),
		TTCLID: "E.C.P.CqBAdaClick", TTP: "2QkWada", IP: "203.0.113.77", UserAgent: agent,
		PageURL:  "https://shop.example/checkout?plan=pro&ref=a&ttclid=E.C.P.CqBAdaClick",
		Referrer: "https://news.example/ada-byron", City: "reading", State: "brk", Country: "us",
	}}
}

func TestRedactValues_RemovesEchoedValues(t *testing.T) {
	t.Parallel()
	v6 := buyer()
	v6.Keys.IP = "2001:db8::7:1"
	other := message.Envelope{EventID: "cs_live_b2", Keys: purchase.MatchKeys{IP: "198.51.100.9"}}
	for name, tc := range map[string]struct {
		message string
		event   message.Envelope
		want    string
	}{
		"ip": {
			"Batch.0.user.ip: 203.0.113.77 is not valid", buyer(),
			"Batch.0.user.ip: [redacted] is not valid",
		},
		"ip, longer number": {"code 203.0.113.770", buyer(), "code 203.0.113.770"},
		"v6 as sent":        {"ip=2001:DB8::7:1;", v6, "ip=[redacted];"},
		"v6 written out":    {"ip 2001:0db8:0000:0000:0000:0000:0007:0001 refused", v6, "ip [redacted] refused"},
		"click id":          {`Invalid callback "E.C.P.CqBAdaClick"`, buyer(), `Invalid callback "[redacted]"`},
		"other case":        {"invalid callback e.c.p.cqbadaclick", buyer(), "invalid callback [redacted]"},
		"cookie":            {"ttp: 2QkWada", buyer(), "ttp: [redacted]"},
		"agent":             {"user_agent " + agent + " too long", buyer(), "user_agent [redacted] too long"},
		"agent, start": {
			"user_agent " + agent[:40] + "... too long", buyer(),
			"user_agent [redacted]... too long",
		},
		"agent, end":    {"bad: ..." + agent[30:], buyer(), "bad: ...[redacted]"},
		"phone as sent": {"phone " + purchase.HashPhone("+12133734253"), buyer(), "phone [redacted]"},
		"upper-case hash": {
			"email " + strings.ToUpper(purchase.HashEmail("ada@example.com")), buyer(),
			"email [redacted]",
		},
		"url": {
			"page.url: https://shop.example/checkout?plan=pro&ref=a&ttclid=E.C.P.CqBAdaClick",
			buyer(), "page.url: [redacted]",
		},
		"url, escaped": {"url=https%3A%2F%2Fnews.example%2Fada-byron", buyer(), "url=[redacted]"},
		"url, in JSON": {
			`{"url":"https://shop.example/checkout?plan=pro\u0026ref=a\u0026ttclid=E.C.P.CqBAdaClick"}`,
			buyer(), `{"url":"[redacted]"}`,
		},
		"invisible inside":  {"ip 203.0.\u200b113.77", buyer(), "ip [redacted]"},
		"twice":             {"203.0.113.77, 203.0.113.77", buyer(), "[redacted], [redacted]"},
		"city":              {"city reading unknown", buyer(), "city [redacted] unknown"},
		"city in a word":    {"proofreading failed", buyer(), "proofreading failed"},
		"short values stay": {"user.country us, brk", buyer(), "user.country us, brk"},
		"another's value":   {"ip 203.0.113.77", other, "ip 203.0.113.77"},
		"no echo": {
			"Batch.3.properties.contents.0.content_id: Not a valid string", buyer(),
			"Batch.3.properties.contents.0.content_id: Not a valid string",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := redactValues(tc.message, []message.Envelope{other, tc.event}); got != tc.want {
				t.Errorf("redactValues(%q) = %q, want %q", tc.message, got, tc.want)
			}
			if got := redactValues(tc.message, []message.Envelope{tc.event}); got != tc.want {
				t.Errorf("redactValues(%q) of one event = %q, want %q", tc.message, got, tc.want)
			}
		})
	}
}

// Wherever the search limit truncates a value, no recognizable part remains.
func TestRedactValues_RemovesTruncatedValue(t *testing.T) {
	t.Parallel()
	for pad := maxSearched - 200; pad < maxSearched+10; pad++ {
		got := redactValues(strings.Repeat("-", pad)+" "+agent+" 203.0.113.77", []message.Envelope{buyer()})
		if strings.Contains(got, "Mozilla") || strings.Contains(got, "203.") {
			t.Fatalf("redactValues after %d bytes = %q, want no part of a value", pad, strings.Trim(got, "-"))
		}
	}
}

func FuzzRedactValues(f *testing.F) {
	f.Add("Batch.0.user.ip: 203.0.113.77 is not valid", "203.0.113.77", agent)
	f.Add("x"+agent[5:90], "2001:db8::1", agent)
	f.Add("\xff\xfe203.0.113.77", "203.0.113.77", "\xff")
	f.Fuzz(func(t *testing.T, data, ip, userAgent string) {
		e := message.Envelope{Keys: purchase.MatchKeys{IP: ip, UserAgent: userAgent}}
		got := redactValues(data, []message.Envelope{e})
		want := strings.Map(replaceInvisible, strings.ToValidUTF8(userAgent, "?"))
		if len(want) > len(redacted)+maxUnmatched && strings.Contains(lowerASCII(got), lowerASCII(want)) {
			t.Errorf("redactValues(%q) = %q, want no user agent", data, got)
		}
	})
}

func TestPixel_SendRedactsEchoedBody(t *testing.T) {
	t.Parallel()
	for _, code := range []int{40002, 40050} {
		t.Run(strconv.Itoa(code), func(t *testing.T) {
			t.Parallel()
			// The server repeats the whole user in its message.
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				var body struct {
					Data []struct {
						User map[string]any `json:"user"`
					} `json:"data"`
				}
				if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
					t.Error(err)
				}
				echo := fmt.Sprintf("Invalid user: %v", body.Data[len(body.Data)-1].User)
				_ = json.NewEncoder(w).Encode(map[string]any{"code": code, "message": echo, "request_id": "2026"})
			}))
			defer server.Close()
			p := NewPixel(Config{
				URL: server.URL, Payload: PayloadEvents, EventName: "CompletePayment",
				Timeout: time.Minute, Now: time.Now,
			}, "PIXEL", "token", "")
			e := buyer()
			e.PurchasedAt = 1704067200
			a := p.Send(t.Context(), []message.Envelope{{EventID: "cs_0", PurchasedAt: 1704067200}, e})
			if a.Code == nil || *a.Code != code || !strings.HasPrefix(a.Message, "Invalid user: ") ||
				!strings.Contains(a.Message, redacted) {
				t.Errorf("answer = %+v, want %d and a redacted message", a, code)
			}
			k := e.Keys
			for _, value := range []string{k.IP, k.TTCLID, k.TTP, "iPhone", k.Email[:20], k.Phone[:20]} {
				if strings.Contains(a.Message, value) {
					t.Errorf("message = %q, want no %q", a.Message, value)
				}
			}
		})
	}
}

func TestErrorText(t *testing.T) {
	t.Parallel()
	wrap := func(err error) error { return &url.Error{Op: "Post", URL: "https://tiktok.example/", Err: err} }
	for _, tc := range []struct {
		err  error
		want string
	}{
		{wrap(context.DeadlineExceeded), "TIKTOK_TIMEOUT exceeded"},
		{context.DeadlineExceeded, "TIKTOK_TIMEOUT exceeded"},
		{wrap(&net.OpError{Op: "dial", Net: "tcp", Err: os.ErrDeadlineExceeded}), "dial tcp: i/o timeout"},
		{wrap(io.ErrUnexpectedEOF), "unexpected EOF"},
	} {
		if got := errorText(tc.err); got != tc.want {
			t.Errorf("errorText(%v) = %q, want %q", tc.err, got, tc.want)
		}
	}
}

func BenchmarkRedactValues(b *testing.B) {
	events := make([]message.Envelope, 500)
	for i := range events {
		events[i] = buyer()
		events[i].Keys.IP = fmt.Sprintf("203.0.113.%d", i%250)
		events[i].Keys.TTCLID = fmt.Sprintf("E.C.P.%d.click", i)
	}
	for b.Loop() {
		redactValues("Batch.3.properties.contents.0.content_id: Not a valid string", events)
	}
}
