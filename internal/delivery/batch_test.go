package delivery

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"pgregory.net/rapid"

	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
)

// strict rejects a request with a bad event. hint returns the start of the message from the index of the
// first bad event.
func strict(bad func(id string) bool, hint func(first int) string) func(ids []string) purchase.Answer {
	return func(ids []string) purchase.Answer {
		if i := slices.IndexFunc(ids, bad); i >= 0 {
			a := answer(purchase.ClassRefused, 40002)
			a.Message = hint(i) + ids[i] + " is not valid" + wordingFor(ids[i])
			return a
		}
		return answer(purchase.ClassDelivered, 0)
	}
}

// wordingFor returns a wording for each "_odd" event, so that their rejections make no streak: "cs_12_odd" is
// "b c".
func wordingFor(id string) (words string) {
	if !strings.HasSuffix(id, "_odd") {
		return ""
	}
	for _, r := range id {
		if r >= '0' && r <= '9' {
			words += " " + string('a'+r-'0')
		}
	}
	return words
}

func indexHint(i int) string { return fmt.Sprintf("Batch.%d.properties.value: ", i) }

func isBad(id string) bool { return strings.Contains(id, "bad") }

// count counts journal entries with a prefix.
func (b *harness) count(prefix string) (n int) {
	for _, e := range b.q.entries() {
		if strings.HasPrefix(e, prefix) {
			n++
		}
	}
	return n
}

func TestWorker_BatchesWaitingPurchases(t *testing.T) {
	t.Parallel()
	bubble(t, func(b *harness, c *Config) {
		c.BatchSize, c.Concurrency = 500, 1
		for i := range 3 {
			b.q.add(fmt.Sprintf("cs_%d", i), true, 0)
			b.q.add(fmt.Sprintf("cs_test_%d", i), false, 0)
		}
	}, func(t *testing.T, b *harness) {
		wait(time.Second)
		wantJournal(t, b,
			"send live cs_0 cs_1 cs_2",
			"outcome cs_0 delivered", "outcome cs_1 delivered", "outcome cs_2 delivered",
			"ack cs_0", "ack cs_1", "ack cs_2",
			"send test cs_test_0 cs_test_1 cs_test_2",
			"outcome cs_test_0 delivered", "outcome cs_test_1 delivered", "outcome cs_test_2 delivered",
			"ack cs_test_0", "ack cs_test_1", "ack cs_test_2")
		if outcomes := b.r.published(); outcomes[0].Attempt.ID != outcomes[2].Attempt.ID ||
			outcomes[0].Attempt.ID == outcomes[3].Attempt.ID {
			t.Error("attempt IDs do not match the requests")
		}
	})
}

func TestWorker_SendsBacklogInFullBatches(t *testing.T) {
	t.Parallel()
	bubble(t, func(b *harness, c *Config) {
		c.BatchSize, c.Concurrency = 100, 1
		b.add(950, -1)
	}, func(t *testing.T, b *harness) {
		wait(time.Minute)
		if b.live.count() != 10 || slices.Max(b.live.requests()) != 100 || b.count("ack ") != 950 {
			t.Errorf("requests of %v, %d acknowledged; want 10 of at most 100, 950",
				b.live.requests(), b.count("ack "))
		}
	})
}

// TikTok's message may name the bad event by a right or a wrong index, or not at all.
func TestWorker_SplitsRejectedBatch(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		hint  func(int) string
		limit int // requests for one bad event in 512
	}{
		"right index":      {indexHint, 3},
		"no index":         {func(int) string { return "" }, 2*9 + 1},
		"wrong index":      {func(i int) string { return indexHint(i + 1) }, 2*9 + 3},
		"index too high":   {func(int) string { return "Batch.99999.event: " }, 2*9 + 1},
		"always the first": {func(int) string { return indexHint(0) }, 2*9 + 3},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(b *harness, c *Config) {
				c.BatchSize, c.Concurrency = 512, 1
				b.live.respond = strict(isBad, tc.hint)
				b.add(512, 300)
			}, func(t *testing.T, b *harness) {
				wait(time.Minute)
				if b.count("ack ") != 511 || b.count("term cs_bad refused") != 1 || len(b.r.published()) != 512 {
					t.Errorf("%d delivered, %d outcomes, dead: %v", b.count("ack "), len(b.r.published()), b.r.letters())
				}
				if d := b.r.letters()[0]; d.EventID != "cs_bad" || !strings.HasSuffix(d.Message, "cs_bad is not valid") ||
					*d.Code != 40002 {
					t.Errorf("dead letter: %+v", d)
				}
				if n := b.live.count(); n > tc.limit {
					t.Errorf("%d requests, want at most %d", n, tc.limit)
				}
			})
		})
	}
}

// For any bad events and any index in TikTok's message, each event has one correct outcome.
func TestWorker_SplitsAnyBatch(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		n := rapid.IntRange(1, 40).Draw(rt, "n")
		bad := rapid.SliceOfN(rapid.Bool(), n, n).Draw(rt, "bad")
		indexes := rapid.SliceOfN(rapid.IntRange(0, 45), 50, 50).Draw(rt, "hints")
		requests := 0
		synctest.Test(t, func(t *testing.T) {
			b := startWorker(t, func(b *harness, c *Config) {
				c.BatchSize, c.Concurrency = 500, 1
				b.live.respond = strict(isBad, func(int) string {
					requests++
					return indexHint(indexes[requests%len(indexes)])
				})
				for i, is := range bad {
					b.q.add(fmt.Sprintf("cs_%d_%s", i, map[bool]string{true: "bad_odd", false: "good"}[is]), true, 0)
				}
			})
			wait(10 * time.Minute)
			b.stop()
			<-b.ended
			results := map[string]int{}
			for _, o := range b.r.published() {
				results[o.EventID]++
				if (o.Result == purchase.StatusDead) != isBad(o.EventID) {
					rt.Fatalf("%s ended %s", o.EventID, o.Result)
				}
			}
			if len(results) != n || len(b.r.published()) != n {
				rt.Fatalf("%d outcomes of %d purchases out of %d", len(b.r.published()), len(results), n)
			}
		})
	})
}

// A partial rejection does not name the rejected events: accepted ones are sent again under their event_id.
func TestWorker_SplitsPartialRejection(t *testing.T) {
	t.Parallel()
	bubble(t, func(b *harness, c *Config) {
		c.BatchSize, c.Concurrency = 500, 1
		b.live.respond = func(ids []string) purchase.Answer {
			if slices.ContainsFunc(ids, isBad) {
				return answer(purchase.ClassRefused, codePartial)
			}
			return answer(purchase.ClassDelivered, 0)
		}
		b.add(65, 64)
	}, func(t *testing.T, b *harness) {
		wait(time.Minute)
		if b.count("ack ") != 64 || b.count("term cs_bad refused") != 1 || b.live.count() > 2*7+1 {
			t.Errorf("%d delivered, %d requests, dead: %v", b.count("ack "), b.live.count(), b.r.letters())
		}
		// A single event is retried once after a partial rejection.
		b.q.add("cs_bad2", true, 0)
		wait(time.Minute)
		if b.count("send live cs_bad2") != 2 || b.count("term cs_bad2") != 1 {
			t.Errorf("journal: %v", b.q.entries()[len(b.q.entries())-6:])
		}
	})
}

func TestWorker_OutageDuringSplit(t *testing.T) {
	t.Parallel()
	requests := 0
	bubble(t, func(b *harness, c *Config) {
		c.BatchSize, c.Concurrency = 500, 1
		respond := strict(isBad, indexHint)
		b.live.respond = func(ids []string) purchase.Answer {
			if requests++; requests > 2 && requests < 20 {
				return answer(purchase.ClassRetry, 503)
			}
			return respond(ids)
		}
		b.add(101, 100)
		b.q.add("cs_bad2", true, 0)
	}, func(t *testing.T, b *harness) {
		wait(3 * time.Hour)
		if b.count("ack ") != 100 || b.count("term cs_bad") != 2 {
			t.Errorf("%d delivered, %d dead", b.count("ack "), b.count("term"))
		}
	})
}

func TestWorker_SendsCrashedAlone(t *testing.T) {
	t.Parallel()
	bubble(t, func(b *harness, c *Config) {
		c.BatchSize, c.Concurrency = 500, 1
		for i := range 3 {
			b.q.add(fmt.Sprintf("cs_%d", i), true, 0)
			b.q.add(fmt.Sprintf("cs_crashed_%d", i), true, 0)
			b.q.add(fmt.Sprintf("cs_returned_%d", i), true, 0)
		}
		for _, m := range b.q.waiting {
			switch {
			case strings.Contains(m.id, "crashed"):
				m.delivered = 1
			case strings.Contains(m.id, "returned"):
				m.delivered, m.returned = 4, true
			}
		}
	}, func(t *testing.T, b *harness) {
		wait(time.Second)
		if !slices.Equal(b.live.requests(), []int{6, 1, 1, 1}) || b.count("ack ") != 9 {
			t.Errorf("requests of %v, want 6, 1, 1, 1", b.live.requests())
		}
	})
}

// After a panic, each purchase of the batch is redelivered and sent alone; after a second one, the cause is
// dead.
func TestWorker_DeadLettersRepeatedPanic(t *testing.T) {
	t.Parallel()
	bubble(t, func(b *harness, c *Config) {
		c.BatchSize, c.Concurrency = 500, 2
		b.live.respond = func(ids []string) purchase.Answer {
			if slices.ContainsFunc(ids, isBad) {
				panic("cs_bad of buyer@example.com")
			}
			return answer(purchase.ClassDelivered, 0)
		}
		b.add(21, 20)
	}, func(t *testing.T, b *harness) {
		wait(2 * time.Minute)
		if b.count("ack ") != 20 || b.count("outcome cs_bad dead crash") != 1 || b.count("term cs_bad crash") != 1 {
			t.Errorf("journal: %v", b.q.entries())
		}
		if n := testutil.ToFloat64(b.metrics.dead.WithLabelValues("crash")); n != 1 {
			t.Errorf("dead_letters_total = %v, want 1", n)
		}
		for _, entry := range b.log.All() {
			if text := fmt.Sprint(entry.Message, entry.ContextMap()); strings.Contains(text, "buyer") {
				t.Errorf("the panic's text was logged: %s", text)
			}
		}
	})
}

// Shutdown finishes the in-flight request and returns the rest of a split immediately.
func TestWorker_ShutdownDuringSplit(t *testing.T) {
	t.Parallel()
	bubble(t, func(b *harness, c *Config) {
		c.BatchSize, c.Concurrency = 500, 1
		b.live.respond = func(ids []string) purchase.Answer {
			<-time.After(time.Second)
			return strict(isBad, func(int) string { return "" })(ids)
		}
		b.add(8, 7)
	}, func(t *testing.T, b *harness) {
		wait(1500 * time.Millisecond) // in the second request, of the first half
		b.stop()
		<-b.ended
		if b.count("ack ") != 4 || b.count("nak ") != 4 || len(b.r.published()) != 4 ||
			slices.Max(b.q.delays()) != 0 {
			t.Errorf("journal: %v", b.q.entries())
		}
	})
}

func TestWorker_OpenCircuitFetchesNothing(t *testing.T) {
	t.Parallel()
	var down atomic.Bool
	down.Store(true)
	bubble(t, func(b *harness, c *Config) {
		c.BatchSize, c.Concurrency = 500, 1
		b.live.respond = failWhile(&down, answer(purchase.ClassRetry, 502))
	}, func(t *testing.T, b *harness) {
		for i := range tripAfter {
			b.q.add(fmt.Sprintf("cs_%d", i), true, 0)
			wait(10 * time.Millisecond)
		}
		if s := b.State(); s.State != message.WorkerOpen || b.gauge("purchase_relay_circuit_state") != 2 {
			t.Errorf("state: %+v", s)
		}
		for i := range 2000 {
			b.q.add(fmt.Sprintf("cs_new_%d", i), true, 0)
		}
		wait(30 * time.Minute)
		fresh := 0
		b.q.mu.Lock()
		for _, m := range b.q.waiting {
			if m.delivered == 0 {
				fresh++
			}
		}
		b.q.mu.Unlock()
		sizes := b.live.requests()
		probes := len(sizes) - tripAfter
		if probes < 8 || probes > 25 || slices.Max(sizes[tripAfter:]) > outageProbe ||
			fresh < 2000-probes*outageProbe {
			t.Errorf("%d probes of %v, want 8 to 25 of at most %d; %d of 2000 not fetched",
				probes, sizes, outageProbe, fresh)
		}
		if n := b.log.FilterMessage("Circuit opened").Len(); n != 1 {
			t.Errorf("logged %d times, want once", n)
		}
		down.Store(false)
		wait(6 * time.Minute)
		if b.State().State != message.WorkerRunning || b.gauge("purchase_relay_circuit_state") != 0 {
			t.Errorf("state: %+v", b.State())
		}
		wait(20 * time.Minute)
		if b.count("ack ") != 2000+tripAfter || len(b.r.letters()) > 0 {
			t.Errorf("%d delivered", b.count("ack "))
		}
	})
}

func TestWorker_TestOutageDoesNotDelayLive(t *testing.T) {
	t.Parallel()
	bubble(t, func(b *harness, c *Config) {
		c.BatchSize = 500
		b.test.respond = always(answer(purchase.ClassRetry, 500))
	}, func(t *testing.T, b *harness) {
		for i := range 60 {
			b.q.add(fmt.Sprintf("cs_test_%d", i), false, 0)
			b.q.add(fmt.Sprintf("cs_%d", i), true, 0)
			wait(time.Second)
		}
		wait(time.Second)
		if b.count("ack cs_") != 60 || b.test.count() > 30 || b.State().State != message.WorkerRunning ||
			!strings.Contains(b.State().Reason, "test purchases wait") {
			t.Errorf("%d live delivered, %d test requests, %+v", b.count("ack cs_"), b.test.count(), b.State())
		}
	})
}

// Without a live answer, an outage of the test destination counts for both: it has the same address.
func TestWorker_TestOutageOpensCircuit(t *testing.T) {
	t.Parallel()
	bubble(t, func(b *harness, c *Config) {
		c.BatchSize, c.Concurrency = 500, 1
		b.test.respond = always(answer(purchase.ClassRetry, 503))
	}, func(t *testing.T, b *harness) {
		for i := range tripAfter {
			b.q.add(fmt.Sprintf("cs_test_%d", i), false, 0)
			wait(10 * time.Millisecond)
		}
		for i := range 2000 {
			b.q.add(fmt.Sprintf("cs_test_new_%d", i), false, 0)
		}
		wait(10 * time.Minute)
		if s := b.State(); s.State != message.WorkerOpen || !strings.Contains(s.Reason, "test: 503") ||
			b.gauge("purchase_relay_circuit_state") == 0 || b.Ready() != nil {
			t.Errorf("state: %+v", s)
		}
		if n := b.test.count(); n > 15 {
			t.Errorf("%d requests, want at most 15", n)
		}
		if n := b.count("nak"); n > 1000 {
			t.Errorf("%d messages returned, want at most 1000", n)
		}
		b.q.add("cs_live", true, 0)
		b.q.mu.Lock() // in front, as the real queue may order it
		last := len(b.q.waiting) - 1
		b.q.waiting[0], b.q.waiting[last] = b.q.waiting[last], b.q.waiting[0]
		b.q.mu.Unlock()
		wait(testOutageWait + time.Second)
		if b.live.count() != 1 || b.State().State != message.WorkerRunning {
			t.Errorf("%d live requests, %+v", b.live.count(), b.State())
		}
	})
}

func TestWorker_ProbeNow(t *testing.T) {
	t.Parallel()
	var revoked atomic.Bool
	revoked.Store(true)
	bubble(t, func(b *harness, c *Config) {
		c.BatchSize, c.Test = 500, nil
		b.live.respond = failWhile(&revoked, answer(purchase.ClassAccess, 40105))
	}, func(t *testing.T, b *harness) {
		b.q.add("cs_1", true, 0)
		wait(time.Hour)
		before := b.live.count()
		revoked.Store(false)
		b.ProbeNow()
		b.q.add("cs_2", true, 0)
		wait(2 * time.Second)
		if b.live.count() == before || b.State().State != message.WorkerRunning {
			t.Errorf("%d probes, %+v", b.live.count()-before, b.State())
		}
	})
}

// A purchase that had failed as a probe once waited a minute longer, after a pause of seconds as well.
func TestWorker_DeliversSoonAfterShortPause(t *testing.T) {
	t.Parallel()
	bubble(t, func(b *harness, c *Config) {
		c.BatchSize, c.Test = 500, nil
		denied := 0
		b.live.respond = func([]string) purchase.Answer {
			if denied++; denied <= 5 {
				return answer(purchase.ClassAccess, 40105)
			}
			return answer(purchase.ClassDelivered, 0)
		}
		b.add(3, -1)
	}, func(t *testing.T, b *harness) {
		for b.live.count() <= 5 {
			wait(time.Second)
		}
		paused := time.Since(b.live.times()[0])
		wait(paused * 5 / 4)
		if delivered := b.count("ack "); delivered != 3 {
			t.Errorf("delivered soon after a pause of %s = %d, want 3", paused, delivered)
		}
	})
}

// The other destination keeps the fetches large.
func TestWorker_ProbesAreSmall(t *testing.T) {
	t.Parallel()
	for class, limit := range map[purchase.Class]int{purchase.ClassAccess: 1, purchase.ClassRetry: outageProbe} {
		bubble(t, func(b *harness, c *Config) {
			c.BatchSize, c.Concurrency = 500, 1
			b.test.respond = always(answer(class, 40105))
			for i := range 300 {
				b.q.add(fmt.Sprintf("cs_test_%d", i), false, 0)
			}
		}, func(t *testing.T, b *harness) {
			wait(time.Hour)
			sizes := b.test.requests()
			stopped := 1 // one answer pauses, three open the circuit
			if class == purchase.ClassRetry {
				stopped = tripAfter
			}
			if len(sizes) < 10 || slices.Max(sizes[stopped:]) > limit {
				t.Errorf("%s: requests of %v, want probes of at most %d", class, sizes, limit)
			}
		})
	}
}

func TestWorker_RemovesMessageOnForeignSubject(t *testing.T) {
	t.Parallel()
	bubble(t, func(_ *harness, c *Config) { c.Concurrency = 1 }, func(t *testing.T, b *harness) {
		b.q.add("cs_1", true, 0)
		b.q.mu.Lock()
		data := b.q.waiting[0].data
		b.q.mu.Unlock()
		wait(time.Second)
		b.q.put(&fakeMessage{q: b.q, id: "cs_forged", subject: message.Subject("cs_other", true), data: data})
		b.q.put(&fakeMessage{q: b.q, id: "cs_test", subject: message.Subject("cs_1", false), data: data})
		wait(time.Second)
		wantJournal(t, b, "send live cs_1", "outcome cs_1 delivered", "ack cs_1",
			"term cs_forged malformed purchase", "term cs_test malformed purchase")
		if n := testutil.ToFloat64(b.metrics.malformed); n != 2 {
			t.Errorf("junk_total = %v, want 2", n)
		}
	})
}

func TestWorker_OnePercentBadCostsFewRequests(t *testing.T) {
	t.Parallel()
	bubble(t, func(b *harness, c *Config) {
		c.BatchSize = 500
		b.live.respond = strict(isBad, indexHint)
		for i := range 10_000 {
			id := fmt.Sprintf("cs_%d", i)
			if i%100 == 37 {
				id = fmt.Sprintf("cs_bad_%d", i)
			}
			b.q.add(id, true, 0)
		}
	}, func(t *testing.T, b *harness) {
		wait(time.Hour)
		if b.count("ack ") != 9900 || len(b.r.letters()) != 100 || b.live.count() > 300 {
			t.Errorf("%d delivered, %d dead, %d requests; want 9900, 100, at most 300",
				b.count("ack "), len(b.r.letters()), b.live.count())
		}
		t.Logf("%d requests", b.live.count())
	})
}

// gauge reads one gauge of the worker's registry.
func (b *harness) gauge(name string) float64 {
	families, err := b.reg.Gather()
	if err != nil {
		panic(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	return -1
}
