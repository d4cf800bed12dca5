package dashboard_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"purchase-relay/internal/ops/dashboard"
	"purchase-relay/internal/secret"
)

const (
	adminToken = "0123456789abcdef"
	annasToken = "annas-own-token-1"
)

// tally counts refusals by reason.
type tally struct {
	mu     sync.Mutex
	counts map[string]int
}

func (c *tally) add(reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.counts == nil {
		c.counts = map[string]int{}
	}
	c.counts[reason]++
}

func (c *tally) of(reason string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.counts[reason]
}

func tokens(t *testing.T, admin, named secret.String) []dashboard.Token {
	t.Helper()
	list, err := dashboard.ParseTokens(admin, named)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestParseTokens_RejectsInvalidEntries(t *testing.T) {
	t.Parallel()
	list, err := dashboard.ParseTokens("short",
		"anna:"+annasToken+", bob:bobs-own-token:with-a-colon\nci.job:token-of-the-job-1\n")
	want := "[{admin [redacted]} {anna [redacted]} {bob [redacted]} {ci.job [redacted]}] <nil>"
	if got := fmt.Sprint(list, err); got != want {
		t.Errorf("ParseTokens = %s, want %s", got, want)
	}
	if got := list[2].Secret.Reveal(); got != "bobs-own-token:with-a-colon" {
		t.Errorf("token = %q", got)
	}
	for named, want := range map[secret.String]string{
		"anna":                                    "entry 1 is not name:token",
		"annas-own-token-1":                       "entry 1 is not name:token",
		":annas-own-token-1":                      "entry 1 is not name:token",
		"an na:annas-own-token-1":                 "entry 1 is not name:token",
		"<b>:annas-own-token-1":                   "entry 1 is not name:token",
		"anna:123456789012345":                    "anna has fewer than 16 characters",
		"anna:":                                   "anna has fewer than 16 characters",
		"anna:annas own token 1":                  "anna has characters",
		"anna:ännas-own-token-1":                  "anna has characters",
		"admin:annas-own-token-1":                 "the name admin is reserved for ADMIN_TOKEN",
		"a:annas-own-token-1,a:annas-own-token-2": "duplicate name a",
		"a:annas-own-token-1,b:annas-own-token-1": "a and b have the same token",
		"a:" + adminToken:                         "admin and a have the same token",
	} {
		_, err := dashboard.ParseTokens(adminToken, named)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "own-token") {
			t.Errorf("ParseTokens(%q): error = %v, want %q", named.Reveal(), err, want)
		}
	}
}

func TestAccess_AnyTokenOpens(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := dashboard.NewAccess(tokens(t, "tok:en", "anna:"+annasToken), newAPI(newLedger()), (&tally{}).add,
			zap.NewNop())
		for header, want := range map[string]int{
			"":                            401,
			"Bearer tok:en":               200,
			"Bearer " + annasToken:        200,
			"Bearer anna:" + annasToken:   401,
			"Bearer tok":                  401,
			"Bearer ":                     401,
			"Digest tok:en":               401,
			basic("", "tok:en"):           200,
			basic("bob", annasToken):      200,
			basic("tok", "en"):            401,
			basic("anna", "annas-own-to"): 401,
		} {
			w := get(t, h, "/api/v1/summary", func(r *http.Request) {
				if header != "" {
					r.Header.Set("Authorization", header)
				}
			})
			if w.Code != want || want == 401 && w.Header().Get("WWW-Authenticate") == "" {
				t.Errorf("%q: status = %d, want %d", header, w.Code, want)
			}
		}
	})
}

// guess sends a token from an address and returns the status and how long the answer took.
func guess(t *testing.T, h http.Handler, from, token string) (status int, took time.Duration) {
	t.Helper()
	began := time.Now()
	w := get(t, h, "/api/v1/summary", func(r *http.Request) {
		r.RemoteAddr = from
		r.Header.Set("Authorization", "Bearer "+token)
	})
	return w.Code, time.Since(began)
}

func TestAccess_ThrottlesGuessesPerPeer(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		peers  []string // all one peer
		others []string
	}{
		"IPv4": {
			[]string{"192.0.2.1:1", "192.0.2.1:2", "[::ffff:192.0.2.1]:3"},
			[]string{"192.0.2.2:1", "[2001:db8::1]:1"},
		},
		"IPv6 by its 64": {
			[]string{"[2001:db8::1]:1", "[2001:db8::ffff:1:2]:2", "[2001:db8::1%eth0]:3"},
			[]string{"[2001:db8:0:1::1]:1", "192.0.2.2:1"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				refused := &tally{}
				h := dashboard.NewAccess(tokens(t, adminToken, ""), newAPI(newLedger()), refused.add, zap.NewNop())
				// One after the other: ten at once, then four a second and one more every six seconds.
				const guesses = 300
				began := time.Now()
				for i := range guesses {
					if status, _ := guess(t, h, tc.peers[i%len(tc.peers)], "wrong"); status != 401 {
						t.Fatalf("guess %d: status = %d, want 401", i, status)
					}
				}
				if took := time.Since(began); took < 60*time.Second {
					t.Errorf("%d guesses took %s, want a minute at least", guesses, took)
				}
				// The right token is taken from the same peer within its turn, and from every other one at
				// once.
				if status, took := guess(t, h, tc.peers[0], adminToken); status != 200 || took > 4*time.Second {
					t.Errorf("the right token from the same peer: status = %d after %s, want 200 within 4s", status, took)
				}
				for _, other := range tc.others {
					if status, took := guess(t, h, other, adminToken); status != 200 || took > 0 {
						t.Errorf("the right token from %s: status = %d after %s, want 200 at once", other, status, took)
					}
				}
				if got := refused.of("token"); got != guesses {
					t.Errorf("refused as wrong: %d, want %d", got, guesses)
				}
			})
		})
	}
}

// Concurrent requests get no more comparisons than the free guesses and the waiting places.
func TestAccess_LimitsConcurrentGuesses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		refused := &tally{}
		h := dashboard.NewAccess(tokens(t, adminToken, ""), newAPI(newLedger()), refused.add, zap.NewNop())
		const guesses = 500
		var group sync.WaitGroup
		var mu sync.Mutex
		answers, slowest := map[int]int{}, time.Duration(0)
		for range guesses {
			group.Go(func() {
				status, took := guess(t, h, "192.0.2.1:1", "wrong")
				mu.Lock()
				defer mu.Unlock()
				answers[status]++
				slowest = max(slowest, took)
			})
		}
		synctest.Wait()
		if status, took := guess(t, h, "192.0.2.2:1", adminToken); status != 200 || took > 0 {
			t.Errorf("the right token from another peer: status = %d after %s, want 200 at once", status, took)
		}
		group.Wait()
		if got, want := fmt.Sprint(answers), "map[401:26 429:474]"; got != want || slowest != 4*time.Second {
			t.Errorf("answers = %s, the last after %s; want %s, 4s", got, slowest, want)
		}
		if got := refused.of("throttled"); got != 474 {
			t.Errorf("throttled: %d, want 474", got)
		}
		// A burst of good requests is not slowed down: what was right takes no guess.
		time.Sleep(time.Minute) //nolint:forbidigo // virtual time
		for range 200 {
			if status, took := guess(t, h, "192.0.2.1:1", adminToken); status != 200 || took > 0 {
				t.Fatalf("a right token: status = %d after %s, want 200 at once", status, took)
			}
		}
	})
}

// Half of the listener's connections stay free for other peers.
func TestAccess_LimitsWaitingOfAllPeers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := dashboard.NewAccess(tokens(t, adminToken, ""), newAPI(newLedger()), (&tally{}).add, zap.NewNop())
		var group sync.WaitGroup
		var mu sync.Mutex
		answers := map[int]int{}
		for p := range 5 {
			for range 26 {
				group.Go(func() {
					status, _ := guess(t, h, fmt.Sprintf("192.0.2.%d:1", p), "wrong")
					mu.Lock()
					defer mu.Unlock()
					answers[status]++
				})
			}
		}
		group.Wait()
		if got, want := fmt.Sprint(answers), "map[401:82 429:48]"; got != want {
			t.Errorf("answers = %s, want %s", got, want)
		}
	})
}

// logged returns an Access with an observed log.
func logged(t *testing.T, list []dashboard.Token, l *ledger) (http.Handler, *observer.ObservedLogs) {
	t.Helper()
	core, lines := observer.New(zapcore.InfoLevel)
	c := config(l)
	c.Log = zap.New(core)
	return dashboard.NewAccess(list, dashboard.New(c), (&tally{}).add, zap.New(core)), lines
}

// The user name of Basic is not logged.
func TestAudit_LogsTokenName(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		tokens        []dashboard.Token
		authorization string
		want          string
	}{
		"a named token":        {tokens(t, adminToken, "anna:"+annasToken), "Bearer " + annasToken, "anna"},
		"another's name":       {tokens(t, adminToken, "anna:"+annasToken), basic("bob", annasToken), "anna"},
		"the admin's name":     {tokens(t, adminToken, "anna:"+annasToken), basic("admin", annasToken), "anna"},
		"the admin token":      {tokens(t, adminToken, "anna:"+annasToken), basic("anna", adminToken), "admin"},
		"a name without token": {nil, basic("anna", "whatever"), "no token"},
		"an unneeded token":    {nil, "Bearer whatever", "no token"},
		"nothing":              {nil, "", "no token"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLedger()
			h, lines := logged(t, tc.tokens, l)
			for _, do := range []struct{ method, target, line string }{
				{http.MethodPost, "/api/v1/purchases/cs_1/replay", "Replay"},
				{http.MethodGet, "/purchases.csv?status=dead&q=cs_dead", "Export"},
				{http.MethodGet, "/reconciliation.csv?mode=live", "Export"},
			} {
				l.reconciliations = reconciliations()
				w := get(t, h, do.target, func(r *http.Request) {
					r.Method = do.method
					r.Header.Set("Authorization", tc.authorization)
				})
				found := lines.TakeAll()
				if w.Code/100 != 2 || len(found) != 1 || found[0].Message != do.line ||
					found[0].ContextMap()["by"] != tc.want {
					t.Errorf("%s: status = %d, lines = %v, want one by %q", do.target, w.Code, found, tc.want)
					continue
				}
				if fields := found[0].ContextMap(); do.line == "Export" &&
					(fields["whole"] != true || strings.Contains(fmt.Sprint(fields), "cs_dead")) {
					t.Errorf("%s: fields = %v", do.target, fields)
				}
			}
		})
	}
}

// Any website can cause such requests: ten log lines per ten seconds, with escaped fields.
func TestAccess_CrossOriginRefusalsAreLimited(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h, lines := logged(t, nil, newLedger())
		for range 100 {
			w := get(t, h, "/x", func(r *http.Request) {
				r.Method, r.URL.Path = http.MethodPost, "/\u202e\x1b[2J\n"+strings.Repeat("a", 10_000)
				r.Header.Set("Sec-Fetch-Site", "cross-site")
				r.Header.Set("Origin", "https://evil.example/\u202e\x1b"+strings.Repeat("b", 10_000))
			})
			if w.Code != http.StatusForbidden {
				t.Fatalf("status = %d, want 403", w.Code)
			}
		}
		found := lines.FilterMessage("Cross-origin change refused").All()
		if len(found) != 10 {
			t.Errorf("%d lines, want 10", len(found))
		}
		for _, name := range []string{"path", "origin"} {
			text, _ := found[0].ContextMap()[name].(string)
			if len(text) > 100 || strings.ContainsAny(text, "\u202e\x1b\n") || text == "" {
				t.Errorf("%s = %q", name, text)
			}
		}
	})
}
