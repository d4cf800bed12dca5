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
	"purchase-relay/internal/secret"
	"purchase-relay/internal/service"
	"purchase-relay/internal/tiktok"
)

// An unusable token in the file changes nothing and is logged with a remedy.
func TestPixels_FollowTokens(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	write := func(content string) {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		sent := make(chan string, 1)
		client := &http.Client{Transport: tokens(sent)}
		c := &config{
			AccessToken: "first", PixelID: "P", APIURL: "https://tiktok.test/", Payload: "events",
			EventName: "Purchase", Timeout: time.Second,
		}
		target := c.tiktok()
		target.Client = client
		p := pixels{live: tiktok.NewPixel(target, "P", "first", ""), stats: tiktok.NewStats(tiktok.StatsConfig{
			URL: "https://tiktok.test/stats/", Timeout: time.Second, Client: client, Now: time.Now,
		}, "first")}
		core, log := observer.New(zapcore.InfoLevel)
		ctx, cancel := context.WithCancel(t.Context())
		changes, ended := 0, make(chan struct{})
		go func() {
			defer close(ended)
			getenv := env("TIKTOK_ACCESS_TOKEN_FILE=" + file)
			_ = p.followTokens(ctx, c, getenv, func() { changes++ }, zap.New(core))
		}()
		for _, step := range []struct {
			content, token    string
			changes, problems int
		}{
			{"\ufefffirst\r\n", "first", 0, 0},
			{"two words", "first", 0, 1},
			{"  second\n", "second", 1, 1},
			{"\"third\"", "second", 1, 2},
			{"second", "second", 1, 2},
		} {
			write(step.content)
			<-time.After(3 * service.FollowInterval)
			synctest.Wait()
			p.live.Send(t.Context(), []message.Envelope{testEvent(c, time.Now())})
			if got := <-sent; got != step.token || changes != step.changes {
				t.Errorf("after %q: token = %q, changes = %d, want %+v", step.content, got, changes, step)
			}
			p.stats.Day(t.Context(), time.Now())
			if got := <-sent; got != step.token {
				t.Errorf("after %q: token for counts = %q, want %q", step.content, got, step.token)
			}
			logged := log.FilterMessage("Secret file unusable; keeping the old secret").FilterFieldKey("remedy")
			if n := logged.Len(); n != step.problems {
				t.Errorf("after %q: logged %d times, want %d", step.content, n, step.problems)
			}
		}
		cancel()
		<-ended
	})
}

// tokens gets the token of each request, which it does not send.
type tokens chan<- string

func (t tokens) RoundTrip(r *http.Request) (*http.Response, error) {
	t <- r.Header.Get("Access-Token")
	return nil, errors.New("no network")
}

// The counts have a token of their own, which is followed without a token for deliveries, too.
func TestPixels_FollowStatsToken(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("second\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		sent := make(chan string, 1)
		client := &http.Client{Transport: tokens(sent)}
		c := &config{AdvertiserID: "7", StatsToken: "first", PixelID: "p", StatsURL: "https://tiktok.test/"}
		p := pixels{stats: tiktok.NewStats(tiktok.StatsConfig{
			URL: c.StatsURL, Timeout: time.Second, Client: client, Now: time.Now,
		}, "first")}
		ctx, cancel := context.WithCancel(t.Context())
		changes, ended := 0, make(chan error)
		go func() {
			getenv := env("TIKTOK_STATS_TOKEN_FILE=" + file)
			ended <- p.followTokens(ctx, c, getenv, func() { changes++ }, zap.NewNop())
		}()
		<-time.After(3 * service.FollowInterval)
		p.stats.Day(t.Context(), time.Now())
		if got := <-sent; got != "second" {
			t.Errorf("token = %q, want second", got)
		}
		cancel()
		if err := <-ended; err != nil || changes != 1 {
			t.Errorf("error = %v, changes = %d, want 1", err, changes)
		}
	})
}

func TestPixels_Destinations(t *testing.T) {
	for name, tc := range map[string]struct {
		mode       string
		token      secret.String
		live, test bool
	}{
		"no token":   {"send", "", false, false},
		"skip tests": {"skip", "t", true, false},
		"send tests": {"send", "t", true, true},
	} {
		c := &config{TestMode: tc.mode, AccessToken: tc.token, PixelID: "p", TestEventCode: "T"}
		if live, test := newPixels(c).destinations(); (live != nil) != tc.live || (test != nil) != tc.test {
			t.Errorf("%s: destinations = %v, %v, want live %t, test %t", name, live, test, tc.live, tc.test)
		}
	}
}

// A live token that replaces the simulator's is not used over plain http.
func TestPixels_FollowTokensRejectsLiveTokenOverHTTP(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "token")
		if err := os.WriteFile(file, []byte("0123456789abcdef"), 0o600); err != nil {
			t.Fatal(err)
		}
		c := &config{APIURL: "http://tiktok-simulator:8083/", AccessToken: "local-token", PixelID: "p"}
		core, lines := observer.New(zap.InfoLevel)
		ctx, cancel := context.WithCancel(t.Context())
		changes, ended := 0, make(chan error)
		go func() {
			getenv := env("TIKTOK_ACCESS_TOKEN_FILE=" + file)
			ended <- newPixels(c).followTokens(ctx, c, getenv, func() { changes++ }, zap.New(core))
		}()
		<-time.After(time.Minute)
		cancel()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		refused := lines.FilterField(zap.String("error", "the address is plain http"))
		if n := refused.Len(); n != 1 || changes != 0 {
			t.Errorf("logged = %d, changes = %d, want 1, 0", n, changes)
		}
	})
}
