package main

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"purchase-relay/internal/message"
	"purchase-relay/internal/tiktok"
)

// A token file is read again at run time: an unusable token changes nothing and is logged with what to do, a good one is taken.
func TestPixels_FollowTokenFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("\ufefffirst\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		tokens := make(chan string, 1)
		var changes int
		c := &config{AccessToken: "first", PixelID: "P", APIURL: "https://tiktok.test/", Payload: "events", EventName: "Purchase", Timeout: time.Second}
		p := newPixels(c)
		p.live = tiktok.NewPixel(tiktok.Config{
			URL: c.APIURL, Payload: c.Payload, EventName: c.EventName, Timeout: time.Second, Now: time.Now,
			Client: &http.Client{Transport: transport(func(r *http.Request) (*http.Response, error) {
				tokens <- r.Header.Get("Access-Token")
				return nil, errors.New("no network")
			})},
		}, "P", "first", "")
		core, log := observer.New(zapcore.InfoLevel)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_ = p.followTokens(ctx, c, env("TIKTOK_ACCESS_TOKEN_FILE="+file), func() { changes++ }, zap.New(core))
		}()
		look := func(content, want string, changed, problems int) {
			t.Helper()
			if content != "" {
				if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			<-time.After(3 * tokenPoll)
			synctest.Wait()
			p.live.Send(t.Context(), []message.Envelope{testEvent(c, time.Now())})
			if got := <-tokens; got != want || changes != changed {
				t.Errorf("after %q: token %q, want %q; %d changes, want %d", content, got, want, changes, changed)
			}
			if n := log.FilterMessage("Unusable access token; keeping the old one").FilterFieldKey("remedy").Len(); n != problems {
				t.Errorf("after %q: logged %d times, want %d", content, n, problems)
			}
		}
		look("", "first", 0, 0)
		look("two words", "first", 0, 1)
		look("  second\n", "second", 1, 1)
		look("\"third\"", "second", 1, 2)
		look("second", "second", 1, 2)
		cancel()
		<-ended
	})
}

// transport answers in place of the network.
type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestDestinations(t *testing.T) {
	if live, test := newPixels(&config{TestMode: "send", TestEventCode: "T", PixelID: "p"}).destinations(); live != nil || test != nil {
		t.Error("without the live token something could be sent")
	}
	if live, test := newPixels(&config{TestMode: "skip", AccessToken: "t", PixelID: "p"}).destinations(); live == nil || test != nil {
		t.Error("test purchases have somewhere to go")
	}
	if live, test := newPixels(&config{TestMode: "send", AccessToken: "t", PixelID: "p", TestEventCode: "T"}).destinations(); live == nil || test == nil {
		t.Error("a destination is missing")
	}
}

// A token's file that changes from the simulator's to a live one is not taken where it would be sent in the
// clear.
func TestFollowTokens_KeepsALiveTokenFromPlainHTTP(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "token")
		if err := os.WriteFile(file, []byte("0123456789abcdef"), 0o600); err != nil {
			t.Fatal(err)
		}
		c := &config{APIURL: "http://tiktok-simulator:8083/", AccessToken: "local-token", PixelID: "p"}
		core, lines := observer.New(zap.InfoLevel)
		ctx, cancel := context.WithCancel(t.Context())
		changed, ended := 0, make(chan error)
		go func() {
			ended <- newPixels(c).followTokens(ctx, c, env("TIKTOK_ACCESS_TOKEN_FILE="+file), func() { changed++ }, zap.New(core))
		}()
		time.Sleep(time.Minute) //nolint:forbidigo // virtual time
		cancel()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		if n := lines.FilterMessage("Access token not changed, TIKTOK_API_URL is plain http").Len(); n != 1 || changed != 0 {
			t.Errorf("the refusal was logged %d times, the token was changed %d times; want 1 and 0", n, changed)
		}
	})
}
