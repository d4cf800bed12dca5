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
		written := func(msg string) int { return lines.FilterMessage(msg).Len() }
		leftOut := func() (sum int64) {
			for _, e := range lines.FilterMessage("Log lines left out").All() {
				n, _ := e.ContextMap()["left_out"].(int64)
				sum += n
			}
			return sum
		}
		expect := func(msg string, want int) {
			t.Helper()
			if got := written(msg); got != want {
				t.Errorf("%q: written %d times, want %d", msg, got, want)
			}
		}
		for i := range 1000 {
			log.Warn("forged", zap.Int("i", i))
			// A logger of its own each time shares the limit.
			base.With(zap.Int("i", i)).WithOptions(limit).Info("again")
			log.Debug("hidden")
			base.Warn("unlimited")
		}
		log.Warn("another")
		wait(11 * time.Second)
		expect("forged", 10)
		expect("again", 10)
		expect("another", 1)
		expect("hidden", 0)
		expect("unlimited", 1000)
		if got := leftOut(); got != 2*990 {
			t.Errorf("left out = %d, want %d", got, 2*990)
		}
		log.Warn("forged")
		expect("forged", 11)
		for range 60 { // ten a second, for a minute
			for range 10 {
				log.Warn("steady")
			}
			wait(time.Second)
		}
		wait(20 * time.Second)
		if w, l := written("steady"), int(leftOut())-2*990; w+l != 600 || w < 60 || w > 80 {
			t.Errorf("steady: %d written and %d left out of 600", w, l)
		}
	})
}
