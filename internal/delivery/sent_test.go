package delivery

import (
	"strings"
	"testing"
	"time"

	"purchase-relay/internal/purchase"
)

// Each delivered purchase's outcome has the fields of its own event, also after a batch was split; other
// outcomes have none.
func TestWorker_ReportsSentFields(t *testing.T) {
	t.Parallel()
	bubble(t, func(b *harness, c *Config) {
		c.BatchSize, c.Concurrency = 10, 1
		b.live.respond = func(ids []string) purchase.Answer {
			if strings.Contains(strings.Join(ids, " "), "bad") {
				return answer(purchase.ClassRefused, 40002)
			}
			a := answer(purchase.ClassDelivered, 0)
			for _, id := range ids {
				a.Sent = append(a.Sent, purchase.Sent{Keys: int16(len(id))})
			}
			return a
		}
	}, func(t *testing.T, b *harness) {
		for _, id := range []string{"cs_1", "cs_22", "bad", "cs_333", "cs_4444"} {
			b.q.add(id, true, time.Minute)
		}
		wait(time.Minute)
		outcomes := b.r.published()
		if len(outcomes) != 5 {
			t.Fatalf("%d outcomes, want 5", len(outcomes))
		}
		for _, o := range outcomes {
			switch {
			case o.EventID == "bad":
				if o.Result != purchase.StatusDead || o.Sent != nil {
					t.Errorf("outcome of bad: %s, sent %+v, want dead and none", o.Result, o.Sent)
				}
			case o.Sent == nil || int(o.Sent.Keys) != len(o.EventID):
				t.Errorf("outcome of %s: sent = %+v, want keys %d", o.EventID, o.Sent, len(o.EventID))
			}
		}
	})
}
