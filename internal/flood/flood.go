// Package flood limits log lines that a client can multiply: forged signatures, wrong tokens, events sent
// again and again. A flood of them neither fills the disk nor stays unseen. Lines about what becomes of one
// purchase are never limited.
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
// one level and message, ten in ten seconds are written. Ten seconds after the first line that was left out,
// log gets one line with their number, left_out. Messages must come from a small closed set: zap counts by
// their hash.
func Limit(log *zap.Logger) zap.Option {
	var leftOut atomic.Int64
	report := func() {
		log.Warn("Log lines left out", zap.Int64("left_out", leftOut.Swap(0)), zap.Duration("within", period))
	}
	count := func(_ zapcore.Entry, decision zapcore.SamplingDecision) {
		if decision&zapcore.LogDropped != 0 && leftOut.Add(1) == 1 {
			time.AfterFunc(period, report)
		}
	}
	// The sampler decides alone: on a core that writes, it could not be shared by loggers with other fields.
	encoder := zapcore.NewJSONEncoder(zapcore.EncoderConfig{})
	nowhere := zapcore.NewCore(encoder, zapcore.AddSync(io.Discard), zapcore.DebugLevel)
	sampler := zapcore.NewSamplerWithOptions(nowhere, period, burst, 0, zapcore.SamplerHook(count))
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
