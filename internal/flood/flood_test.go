package flood_test

import (
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"purchase-relay/internal/flood"
)

func TestLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		seen, lines := observer.New(zapcore.InfoLevel)
		base := zap.New(seen)
		limit := flood.Limit(base)
		log := base.WithOptions(limit)
		wait := func(d time.Duration) { <-time.After(d); synctest.Wait() }
		count := func(msg string) (written, leftOut int) {
			for _, e := range lines.FilterMessage(msg).All() {
				if n, ok := e.ContextMap()["left_out"].(int64); ok {
					leftOut += int(n)
					if len(e.Context) != 2 {
						t.Errorf("the count has the fields of one line: %v", e.ContextMap())
					}
					continue
				}
				written++
			}
			return written, leftOut
		}
		expect := func(msg string, written, leftOut int) {
			t.Helper()
			if w, l := count(msg); w != written || l != leftOut {
				t.Errorf("%s: %d written, %d left out; want %d and %d", msg, w, l, written, leftOut)
			}
		}
		for i := range 1000 {
			log.Warn("forged", zap.Int("i", i))
			base.With(zap.String("checkout_session_id", "cs_1")).WithOptions(limit).Info("again") // a logger of its own each time
			log.Debug("hidden")
		}
		log.Warn("another")
		expect("forged", 10, 0)
		wait(11 * time.Second)
		expect("forged", 10, 990)
		expect("again", 10, 990)
		expect("another", 1, 0)
		expect("hidden", 0, 0)
		log.Warn("forged")
		wait(time.Minute)
		expect("forged", 11, 990)
		for range 60 { // ten a second, for a minute
			for range 10 {
				log.Warn("steady")
			}
			wait(time.Second)
		}
		wait(20 * time.Second)
		if w, l := count("steady"); w+l != 600 || w < 60 || w > 80 {
			t.Errorf("steady: %d written, %d left out of 600", w, l)
		}
		for range 100 {
			base.Warn("unlimited")
		}
		expect("unlimited", 100, 0)
	})
}
