package notify_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"purchase-relay/internal/purchase"
)

// Stripe is asked when silence has begun, and seldom; what it reports is part of the message.
func TestNotifier_NamesSilenceCause(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		what, remedy string
		err          error
		want         string // in the message
		wantRemedy   string
	}{
		"disabled": {"The endpoint is disabled.", "Enable it.", nil, "endpoint is disabled", "Enable it."},
		"quiet":    {"Stripe sends nothing.", "", nil, "sends nothing", "DNS, certificate"},
		"failed":   {"", "", errors.New("rate limit"), "not report the endpoint: rate limit", "DNS, certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			runTest(t, func(f *fixture) {
				asked, since := 0, time.Time{}
				f.cause = func(_ context.Context, at time.Time) (string, string, error) {
					f.set(func() { asked, since = asked+1, at })
					return tc.what, tc.remedy, tc.err
				}
				f.set(func() { f.webhook = time.Now() })
				defer f.run(time.Hour)()
				f.wait(59 * time.Minute)
				f.set(func() {
					if asked != 0 {
						t.Errorf("asked %d times before the silence, want 0", asked)
					}
				})
				f.wait(2 * time.Minute)
				f.expect("silence firing 1")
				m := f.messages()[0]
				if !strings.Contains(m.What, "No webhook for longer") || !strings.Contains(m.What, tc.want) ||
					!strings.Contains(m.Remedy, tc.wantRemedy) {
					t.Errorf("message = %q, remedy %q, want %q, %q", m.What, m.Remedy, tc.want, tc.wantRemedy)
				}
				f.wait(time.Hour)
				f.expect("silence firing 1")
				f.set(func() {
					if asked < 1 || asked > 7 || !since.Equal(f.webhook) {
						t.Errorf("asked %d times in an hour since %s, want 1 to 7 since %s", asked, since, f.webhook)
					}
				})
			})
		})
	}
}

// A Stripe that does not answer delays neither this message nor others by more than its time limit.
func TestNotifier_SilenceCauseHangs(t *testing.T) {
	t.Parallel()
	runTest(t, func(f *fixture) {
		f.cause = func(ctx context.Context, _ time.Time) (string, string, error) {
			<-ctx.Done()
			return "", "", ctx.Err()
		}
		f.set(func() { f.webhook = time.Now() })
		defer f.run(time.Hour)()
		f.wait(time.Hour)
		f.die(purchase.ReasonRefused, "cs_1")
		f.wait(30 * time.Second)
		f.expect("dead:refused firing 1", "silence firing 1")
		if what := f.messages()[1].What; !strings.Contains(what, "deadline exceeded") {
			t.Errorf("message = %q, want the failure", what)
		}
	})
}
