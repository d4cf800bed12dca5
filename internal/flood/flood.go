// Package flood limits log lines that a client can multiply, such as those about forged signatures, wrong
// tokens or repeated events: they must neither fill the disk nor go unseen. Lines about the outcome of a
// single purchase are never limited.
package flood

import (
	"io"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

const (
	burst  = 10
	period = 10 * time.Second
)

// Limit returns an option for log and for loggers derived from it, which share the limit: of the lines with
// the same level and message, ten in ten seconds are written. Ten seconds after the first line that was
// dropped, log gets one line with their number, left_out. Messages must come from a small closed set: zap
// counts by their hash.
func Limit(log *zap.Logger) zap.Option {
	var dropped atomic.Int64
	report := func() {
		log.Warn("Log lines left out", zap.Int64("left_out", dropped.Swap(0)), zap.Duration("within", period))
	}
	count := func(_ zapcore.Entry, decision zapcore.SamplingDecision) {
		if decision&zapcore.LogDropped != 0 && dropped.Add(1) == 1 {
			time.AfterFunc(period, report)
		}
	}
	// The sampler only decides: if it wrapped the core that writes, each derived logger would have its own.
	discard := zapcore.NewCore(
		zapcore.NewJSONEncoder(zapcore.EncoderConfig{}), zapcore.AddSync(io.Discard), zapcore.DebugLevel,
	)
	sampler := zapcore.NewSamplerWithOptions(discard, period, burst, 0, zapcore.SamplerHook(count))
	return zap.WrapCore(func(c zapcore.Core) zapcore.Core { return &core{c, sampler} })
}

type core struct {
	zapcore.Core
	sampler zapcore.Core
}

// With implements zapcore.Core.
func (c *core) With(fields []zapcore.Field) zapcore.Core {
	return &core{c.Core.With(fields), c.sampler}
}

// Check implements zapcore.Core.
func (c *core) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if !c.Enabled(e.Level) || c.sampler.Check(e, nil) == nil {
		return ce
	}
	return c.Core.Check(e, ce)
}
