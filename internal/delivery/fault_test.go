package delivery

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"pgregory.net/rapid"

	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
)

// firewall returns a block page for each request with a blocked event.
func firewall(blocked func(id string) bool, status int) func(ids []string) purchase.Answer {
	return func(ids []string) purchase.Answer {
		if slices.ContainsFunc(ids, blocked) {
			return answer(purchase.ClassBlocked, status)
		}
		return answer(purchase.ClassDelivered, 0)
	}
}

// rejectAll rejects every request with the same wording.
func rejectAll(ids []string) purchase.Answer {
	a := answer(purchase.ClassRefused, 40002)
	a.Message = "Invalid parameter in request of " + ids[0]
	return a
}

func isBlocked(id string) bool { return strings.HasSuffix(id, "_page") }

// probes returns the IDs of each request after the first n.
func (b *harness) probes(n int) (ids []string) {
	for _, e := range b.q.entries() {
		if sent, ok := strings.CutPrefix(e, "send live "); ok {
			if n--; n < 0 {
				ids = append(ids, sent)
			}
		}
	}
	return ids
}

// TikTok rejects every event with the same wording.
func TestWorker_SettingsFaultDeadLettersAtMostTen(t *testing.T) {
	t.Parallel()
	for concurrency, batches := range map[int][]int{1: {500}, 4: {1, 500}, 16: {500}} {
		for _, batch := range batches {
			t.Run(fmt.Sprintf("%d senders, batches of %d", concurrency, batch), func(t *testing.T) {
				var fault atomic.Bool
				fault.Store(true)
				bubble(t, func(b *harness, c *Config) {
					c.BatchSize, c.Concurrency, c.Test = batch, concurrency, nil
					b.live.respond = func(ids []string) purchase.Answer {
						<-time.After(50 * time.Millisecond)
						return failWhile(&fault, rejectAll(ids))(ids)
					}
					b.add(2000, -1)
				}, func(t *testing.T, b *harness) {
					wait(15 * time.Second)
					before := b.live.count()
					if dead := len(b.r.letters()); dead > rejectionStreak || before > 20*concurrency+30 {
						t.Errorf("%d dead after %d requests, want at most %d after %d",
							dead, before, rejectionStreak, 20*concurrency+30)
					}
					if err := b.Ready(); err == nil || !strings.Contains(err.Error(), "Invalid parameter") ||
						b.State().State != message.WorkerPaused {
						t.Errorf("ready: %v, state %+v", err, b.State())
					}
					cause := zap.String("cause", "TikTok rejects every event")
					if n := b.log.FilterMessage("Delivery paused").FilterField(cause).Len(); n != 1 {
						t.Errorf("the pause was logged %d times, want once", n)
					}
					wait(30 * time.Minute)
					probes := b.probes(before)
					if len(probes) < 8 || len(probes) > 25 {
						t.Errorf("probes in half an hour = %d, want 8 to 25", len(probes))
					}
					for i := 1; i < len(probes); i++ {
						if strings.Contains(probes[i], " ") || probes[i] == probes[i-1] {
							t.Errorf("probe %d = %s after %s, want a single, different event", i, probes[i], probes[i-1])
						}
					}
					fault.Store(false)
					wait(40 * time.Minute)
					dead := len(b.r.letters())
					if dead > rejectionStreak || b.count("ack ") != 2000-dead || b.Ready() != nil {
						t.Errorf("%d dead, %d delivered, ready: %v", dead, b.count("ack "), b.Ready())
					}
					t.Logf("%d dead, %d requests until the pause, %d probes", dead, before, len(probes))
				})
			})
		}
	}
}

// The others are delivered without a pause.
func TestWorker_DeadLettersOneBlockedEvent(t *testing.T) {
	t.Parallel()
	for _, at := range []int{0, 499, 731, 999} {
		for _, batch := range []int{1, 500} {
			t.Run(fmt.Sprintf("at %d, batches of %d", at, batch), func(t *testing.T) {
				bubble(t, func(b *harness, c *Config) {
					c.BatchSize = batch
					b.live.respond = func(ids []string) purchase.Answer {
						<-time.After(20 * time.Millisecond)
						return firewall(isBad, 401)(ids)
					}
					b.add(1000, at)
				}, func(t *testing.T, b *harness) {
					wait(10 * time.Second)
					if n := b.count("ack "); n != 999 {
						t.Errorf("%d delivered, want 999", n)
					}
					if batch == 500 && b.live.count() > 40 {
						t.Errorf("%d requests, want at most 40", b.live.count())
					}
					wait(time.Minute)
					if at == 999 && batch == 1 { // the bad event waits until another passes
						b.q.add("cs_next", true, 0)
						wait(15 * time.Minute)
					}
					letters := b.r.letters()
					if len(letters) != 1 || letters[0].EventID != "cs_bad" ||
						letters[0].Reason != purchase.ReasonRefused || *letters[0].Code != 401 {
						t.Errorf("dead letters = %+v, want one of cs_bad, 401", letters)
					}
					if n := b.log.FilterMessage("Delivery paused").Len(); n > 0 && (at != 999 || batch > 1) {
						t.Errorf("%d pauses, want 0", n)
					}
					for _, line := range b.log.All() {
						fields := line.ContextMap()
						if strings.Contains(fmt.Sprint(fields["cause"]), "access") ||
							strings.Contains(fmt.Sprint(fields["remedy"]), "check the access token") {
							t.Errorf("the log blames the token: %s %v", line.Message, fields)
						}
					}
				})
			})
		}
	}
}

// Every event gets a block page: nothing is dead, and each probe is another event.
func TestWorker_PausesOnBlockedDestination(t *testing.T) {
	t.Parallel()
	for _, batch := range []int{1, 500} {
		t.Run(fmt.Sprintf("batches of %d", batch), func(t *testing.T) {
			var block atomic.Bool
			block.Store(true)
			bubble(t, func(b *harness, c *Config) {
				c.BatchSize, c.Test = batch, nil
				b.live.respond = func(ids []string) purchase.Answer {
					<-time.After(50 * time.Millisecond)
					return failWhile(&block, answer(purchase.ClassBlocked, 403))(ids)
				}
				b.add(2000, -1)
			}, func(t *testing.T, b *harness) {
				wait(2 * time.Second)
				if b.Ready() == nil {
					t.Fatal("ready = nil, want paused")
				}
				before := b.live.count()
				if before > 2*9+6 {
					t.Errorf("requests until the pause = %d, want at most %d", before, 2*9+6)
				}
				wait(time.Hour)
				probes := b.probes(before)
				if len(probes) < 15 || len(probes) > 30 || len(b.r.letters()) > 0 {
					t.Errorf("%d probes, %d dead; want 15 to 30, 0", len(probes), len(b.r.letters()))
				}
				for i := 1; i < len(probes); i++ {
					if strings.Contains(probes[i], " ") || probes[i] == probes[i-1] {
						t.Errorf("probe %d = %s after %s, want a single, different event", i, probes[i], probes[i-1])
					}
				}
				paused := b.log.FilterMessage("Delivery paused").
					FilterField(zap.String("cause", "every event gets a block page")).
					FilterField(zap.String("destination", "live"))
				if n := paused.Len(); n != 1 {
					t.Errorf("the pause was logged %d times, want once", n)
				}
				block.Store(false)
				wait(40 * time.Minute)
				if n, dead := b.count("ack "), len(b.r.letters()); n != 2000 || dead > 0 || b.Ready() != nil {
					t.Errorf("%d delivered, %d dead, ready: %v; want 2000, 0, nil", n, dead, b.Ready())
				}
				t.Logf("%d requests until the pause, %d probes", before, len(probes))
			})
		})
	}
}

// A firewall begins to block everything while a batch is split for one event. Another event then gets block
// pages alone, but earlier passes do not count against it.
func TestWorker_BlockDuringSplit(t *testing.T) {
	t.Parallel()
	var block atomic.Bool
	bubble(t, func(b *harness, c *Config) {
		c.BatchSize, c.Concurrency, c.Test = 500, 1, nil
		b.live.respond = func(ids []string) purchase.Answer {
			defer func() {
				if len(ids) == 1 && isBad(ids[0]) {
					block.Store(true)
				}
			}()
			return firewall(func(id string) bool { return block.Load() || isBad(id) }, 403)(ids)
		}
		b.add(16, 14)
	}, func(t *testing.T, b *harness) {
		wait(20 * time.Minute)
		if n := len(b.r.letters()); n > 0 || b.Ready() == nil {
			t.Errorf("%d dead while everything is blocked, ready: %v; want 0, paused", n, b.Ready())
		}
	})
}

// A single blocked purchase is not dead before another one passes.
func TestWorker_SingleBlockedEventWaitsForAnother(t *testing.T) {
	t.Parallel()
	bubble(t, func(b *harness, c *Config) {
		c.Test = nil
		b.live.respond = firewall(isBad, 403)
		b.add(1, 0)
	}, func(t *testing.T, b *harness) {
		wait(time.Hour)
		if b.Ready() == nil || len(b.r.letters()) > 0 {
			t.Fatalf("ready: %v, %d dead", b.Ready(), len(b.r.letters()))
		}
		for i, at := range b.live.times()[1:] {
			if gap := at.Sub(b.live.times()[i]); gap > 5*time.Minute {
				t.Errorf("%s between two probes", gap)
			}
		}
		b.q.add("cs_1", true, 0)
		wait(12 * time.Minute)
		if b.count("ack cs_1") != 1 || len(b.r.letters()) != 1 || b.Ready() != nil {
			t.Errorf("%d delivered, %d dead, ready: %v", b.count("ack "), len(b.r.letters()), b.Ready())
		}
	})
}

// A gateway that rejects large bodies causes no pause.
func TestWorker_SplitsLargeBody(t *testing.T) {
	t.Parallel()
	bubble(t, func(b *harness, c *Config) {
		c.BatchSize = 500
		b.live.respond = func(ids []string) purchase.Answer {
			if len(ids) > 100 {
				return answer(purchase.ClassBlocked, 413)
			}
			return answer(purchase.ClassDelivered, 0)
		}
		b.add(2000, -1)
	}, func(t *testing.T, b *harness) {
		wait(time.Minute)
		if b.count("ack ") != 2000 || b.log.FilterMessage("Delivery paused").Len() > 0 {
			t.Errorf("%d delivered", b.count("ack "))
		}
	})
}

// After an outage a probe of ten gets a 413 for one of them. If the delays' jitter puts the bad event into a
// probe after the others, nothing has passed since: it waits for the next purchase.
func TestWorker_SplitsProbe(t *testing.T) {
	t.Parallel()
	var down atomic.Bool
	down.Store(true)
	bubble(t, func(b *harness, c *Config) {
		c.BatchSize, c.Concurrency = 500, 1
		b.live.respond = func(ids []string) purchase.Answer {
			if down.Load() {
				return answer(purchase.ClassRetry, 503)
			}
			return firewall(isBad, 413)(ids)
		}
		b.add(10, 3)
	}, func(t *testing.T, b *harness) {
		wait(10 * time.Minute)
		if b.State().State != message.WorkerOpen {
			t.Fatalf("state: %+v", b.State())
		}
		down.Store(false)
		wait(time.Hour)
		b.q.add("cs_next", true, 0)
		wait(15 * time.Minute)
		letters := b.r.letters()
		if n := b.count("ack "); n != 10 || len(letters) != 1 || *letters[0].Code != 413 {
			t.Errorf("%d delivered, dead letters %+v; want 10, one with 413", n, letters)
		}
	})
}

// A batch with a duplicate (40050) is split until each event has an answer of its own.
func TestWorker_SplitsBatchWithDuplicate(t *testing.T) {
	t.Parallel()
	bubble(t, func(b *harness, c *Config) {
		c.BatchSize, c.Concurrency = 500, 1
		b.live.respond = func(ids []string) purchase.Answer {
			if slices.Contains(ids, "cs_bad") {
				return answer(purchase.ClassDelivered, codeDuplicate)
			}
			return answer(purchase.ClassDelivered, 0)
		}
		b.add(64, 40)
	}, func(t *testing.T, b *harness) {
		wait(time.Minute)
		codes := map[int]int{}
		for _, o := range b.r.published() {
			if o.Result != purchase.StatusDelivered {
				t.Errorf("%s ended %s", o.EventID, o.Result)
			}
			codes[*o.Attempt.Code]++
		}
		if codes[0] != 63 || codes[codeDuplicate] != 1 {
			t.Errorf("answers by code = %v, want 63 of 0, 1 of %d", codes, codeDuplicate)
		}
	})
}

func TestWorker_TestFaultsDoNotStopLive(t *testing.T) {
	t.Parallel()
	for name, respond := range map[string]func([]string) purchase.Answer{
		"block pages":     always(answer(purchase.ClassBlocked, 403)),
		"rejections":      rejectAll,
		"a revoked token": always(answer(purchase.ClassAccess, 40105)),
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(b *harness, c *Config) {
				c.BatchSize = 50
				b.test.respond = respond
			}, func(t *testing.T, b *harness) {
				for i := range 200 {
					b.q.add(fmt.Sprintf("cs_test_%d", i), false, 0)
				}
				wait(10 * time.Second)
				b.add(200, -1)
				wait(10 * time.Second)
				live := b.count("ack ")
				if live != 200 || b.Ready() != nil || len(b.r.letters()) > rejectionStreak ||
					b.State().State != message.WorkerRunning ||
					!strings.Contains(b.State().Reason, "test purchases wait") {
					t.Errorf("%d live delivered, %d dead, state %+v", live, len(b.r.letters()), b.State())
				}
			})
		})
	}
}

// A purchase's age is counted by the queue's clock, whatever the worker's clock.
func TestWorker_ExpiresByQueueClock(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		ahead time.Duration // this machine's clock
		age   time.Duration
		dead  bool
	}{
		"ahead: not too early":  {20 * time.Minute, 47*time.Hour - 5*time.Minute, false},
		"ahead: on time":        {20 * time.Minute, 47*time.Hour + time.Second, true},
		"behind: not too late":  {-90 * time.Minute, 47*time.Hour + time.Second, true},
		"behind: not too early": {-90 * time.Minute, 47*time.Hour - 5*time.Minute, false},
	} {
		t.Run(name, func(t *testing.T) {
			var offset atomic.Int64
			offset.Store(int64(-tc.ahead))
			bubble(t, func(_ *harness, c *Config) {
				c.Now = func() time.Time { return time.Now().Add(-time.Duration(offset.Load())) }
				c.ClockOffset = func() time.Duration { return time.Duration(offset.Load()) }
			}, func(t *testing.T, b *harness) {
				b.q.add("cs_1", true, tc.age)
				wait(time.Second)
				if dead := b.count("outcome cs_1 dead expired") == 1; dead != tc.dead ||
					dead == (b.live.count() == 1) {
					t.Errorf("dead = %t, want %t", dead, tc.dead)
				}
				for range 5 {
					b.q.add("cs_2", true, 0)
					wait(time.Second)
				}
				const line = "Clock offset exceeds tolerance"
				if n := b.log.FilterMessage(line).FilterField(zap.Duration("offset", -tc.ahead)).Len(); n != 1 {
					t.Errorf("logged %d times, want once", n)
				}
				if got := b.gauge("purchase_relay_clock_offset_seconds"); got != -tc.ahead.Seconds() {
					t.Errorf("gauge = %v, want %v", got, -tc.ahead.Seconds())
				}
				offset.Store(int64(3 * time.Second))
				wait(10 * time.Second)
				if n := b.log.FilterMessage("Clock offset is within tolerance").Len(); n != 1 {
					t.Errorf("the recovery was logged %d times, want once", n)
				}
			})
		})
	}
}

func TestWorker_RetriesWithinAgeByQueueClock(t *testing.T) {
	t.Parallel()
	const behind = 30 * time.Minute
	bubble(t, func(b *harness, c *Config) {
		c.Now = func() time.Time { return time.Now().Add(-behind) }
		c.ClockOffset = func() time.Duration { return behind }
		b.live.respond = always(answer(purchase.ClassRetry, 503))
	}, func(t *testing.T, b *harness) {
		b.q.add("cs_1", true, 46*time.Hour)
		wait(2 * time.Hour)
		times := b.live.times()
		if last := times[len(times)-1].Sub(times[0]); last > time.Hour || len(b.r.letters()) != 1 {
			t.Errorf("last sent after %s, %d dead; want at most 1h, 1", last, len(b.r.letters()))
		}
	})
}

// unsettled counts the purchases without a final outcome.
func (b *harness) unsettled() int {
	final := 0
	for _, o := range b.r.published() {
		if o.Result != purchase.StatusRetrying {
			final++
		}
	}
	b.q.mu.Lock()
	defer b.q.mu.Unlock()
	return b.q.added - final
}

// For any combination of bad events, firewalls and outages, each bad event is dead and each good one is
// delivered.
func TestWorker_SettlesUnderAnyFaults(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		n := rapid.IntRange(20, 60).Draw(rt, "events")
		batch := rapid.SampledFrom([]int{1, 7, 500}).Draw(rt, "batch")
		concurrency := rapid.IntRange(1, 4).Draw(rt, "concurrency")
		gap := rapid.SampledFrom([]time.Duration{0, 100 * time.Millisecond, 5 * time.Second}).Draw(rt, "gap")
		// One in eight may be bad, each in its own way; the last ones are good, so that others pass.
		kinds := rapid.SliceOfN(rapid.IntRange(0, 31), n, n).Draw(rt, "kinds")
		fault := rapid.SampledFrom([]string{"none", "page", "refused", "access", "outage"}).Draw(rt, "fault")
		begin := time.Duration(rapid.IntRange(0, 60).Draw(rt, "begin")) * time.Second
		lasts := time.Duration(rapid.IntRange(1, 1200).Draw(rt, "lasts")) * time.Second
		hints := rapid.Bool().Draw(rt, "hints")
		name := func(i int) string {
			switch {
			case i < n-8 && kinds[i] == 0:
				return fmt.Sprintf("cs_%d_bad", i)
			case i < n-8 && kinds[i] == 1:
				return fmt.Sprintf("cs_%d_page", i)
			}
			return fmt.Sprintf("cs_%d", i)
		}
		wrong := ""
		synctest.Test(t, func(t *testing.T) {
			started := time.Now()
			b := startWorker(t, func(b *harness, c *Config) {
				c.BatchSize, c.Concurrency, c.Test = batch, concurrency, nil
				b.live.respond = func(ids []string) purchase.Answer {
					<-time.After(30 * time.Millisecond)
					if since := time.Since(started); since >= begin && since < begin+lasts {
						switch fault {
						case "page":
							return answer(purchase.ClassBlocked, 403)
						case "refused":
							return rejectAll(ids)
						case "access":
							return answer(purchase.ClassAccess, 40105)
						case "outage":
							return answer(purchase.ClassRetry, 503)
						}
					}
					if slices.ContainsFunc(ids, isBlocked) {
						return answer(purchase.ClassBlocked, 403)
					}
					return strict(isBad, func(i int) string {
						if hints {
							return indexHint(i)
						}
						return ""
					})(ids)
				}
			})
			for i := range n {
				b.q.add(name(i), true, 0)
				if gap > 0 {
					<-time.After(gap)
				}
			}
			wait(30 * time.Minute)
			late := 0 // purchases that pass, so that suspects are settled
			for ; late < 8 || (late < 100 && b.unsettled() > 0); late++ {
				b.q.add(fmt.Sprintf("cs_late_%d", late), true, 0)
				wait(5 * time.Minute)
			}
			b.stop()
			<-b.ended
			ended := map[string]purchase.Status{}
			streak := 0 // good events that were rejected before the fault was found
			for _, o := range b.r.published() {
				if o.Result == purchase.StatusRetrying {
					continue
				}
				good := !isBad(o.EventID) && !isBlocked(o.EventID)
				if good && o.Result == purchase.StatusDead {
					if streak++; fault != "refused" || streak > rejectionStreak {
						wrong = fmt.Sprintf("good %s is dead: %+v", o.EventID, o.Attempt)
					}
				}
				if !good && o.Result != purchase.StatusDead {
					wrong = fmt.Sprintf("bad %s ended %s", o.EventID, o.Result)
				}
				if before, twice := ended[o.EventID]; twice {
					wrong = fmt.Sprintf("%s ended %s and %s", o.EventID, before, o.Result)
				}
				ended[o.EventID] = o.Result
			}
			if len(ended) != n+late {
				wrong = fmt.Sprintf("%d of %d ended", len(ended), n+late)
				for i := range n {
					if ended[name(i)] == "" {
						wrong += ", not " + name(i)
					}
				}
			}
		})
		if wrong != "" {
			rt.Fatal(wrong)
		}
	})
}
