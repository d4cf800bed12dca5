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

// logs returns a logger without a limit, the option that limits it, and what was written.
func logs() (base *zap.Logger, limit zap.Option, lines *observer.ObservedLogs) {
	core, lines := observer.New(zapcore.InfoLevel)
	base = zap.New(core)
	return base, flood.Limit(base), lines
}

func leftOut(lines *observer.ObservedLogs) (sum int64) {
	for _, e := range lines.FilterMessage("Log lines left out").All() {
		n, _ := e.ContextMap()["left_out"].(int64)
		sum += n
	}
	return sum
}

func wait(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func TestLimit_WritesTenOfEachMessage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		base, limit, lines := logs()
		log := base.WithOptions(limit)
		for i := range 1000 {
			log.Warn("forged", zap.Int("i", i))
			base.With(zap.Int("i", i)).WithOptions(limit).Info("derived") // shares the limit
			log.Debug("hidden")
			base.Warn("unlimited")
		}
		log.Warn("another")
		wait(11 * time.Second)
		log.Warn("forged")
		for message, want := range map[string]int{
			"forged": 11, "derived": 10, "hidden": 0, "unlimited": 1000, "another": 1, "Log lines left out": 1,
		} {
			if got := lines.FilterMessage(message).Len(); got != want {
				t.Errorf("%q written %d times, want %d", message, got, want)
			}
		}
		if got := leftOut(lines); got != 2*990 {
			t.Errorf("left out = %d, want %d", got, 2*990)
		}
	})
}

func TestLimit_CountsSteadyFlood(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		base, limit, lines := logs()
		log := base.WithOptions(limit)
		for range 60 { // ten a second for a minute
			for range 10 {
				log.Warn("steady")
			}
			wait(time.Second)
		}
		wait(20 * time.Second)
		written := lines.FilterMessage("steady").Len()
		if got := written + int(leftOut(lines)); got != 600 {
			t.Errorf("written and left out = %d, want 600", got)
		}
		if written < 60 || written > 80 {
			t.Errorf("written = %d, want about ten in ten seconds", written)
		}
	})
}
