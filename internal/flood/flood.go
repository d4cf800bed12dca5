// Package flood is the word for log lines that somebody outside can multiply at will: forged signatures, wrong tokens, events sent
// again and again. Some of each are written; the rest is counted, and the count is written, so that a flood neither fills the disk nor goes
// unseen. Lines about what becomes of one purchase are not for here.
package flood

import (
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

const (
	// burst lines with the same message are written within a period.
	burst  = 10
	period = 10 * time.Second
)

// Limit returns an option for log and the loggers made from it: of the lines with the same message, ten in ten seconds are
// written. What was left out is told when the ten seconds are over: once more the same message, with left_out. It is for a closed set of
// messages, and safe for concurrent use.
func Limit(log *zap.Logger) zap.Option {
	s := &state{base: log.Core(), lines: map[string]*line{}}
	return zap.WrapCore(func(c zapcore.Core) zapcore.Core { return &core{Core: c, state: s} })
}

type core struct {
	zapcore.Core
	state *state
}

// With implements zapcore.Core.
func (c *core) With(fields []zapcore.Field) zapcore.Core {
	return &core{Core: c.Core.With(fields), state: c.state}
}

// Check implements zapcore.Core.
func (c *core) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if !c.Enabled(e.Level) || !c.state.pass(e) {
		return ce
	}
	return c.Core.Check(e, ce)
}

type state struct {
	base  zapcore.Core // without the fields of one line's own
	mu    sync.Mutex
	lines map[string]*line
}

type line struct {
	until   time.Time // the period's end
	passed  int
	leftOut int
}

func (s *state) pass(e zapcore.Entry) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.lines[e.Message]
	if l == nil {
		l = &line{}
		s.lines[e.Message] = l
	}
	if !e.Time.Before(l.until) && l.leftOut == 0 {
		l.until, l.passed = e.Time.Add(period), 0
	}
	if l.passed < burst {
		l.passed++
		return true
	}
	if l.leftOut++; l.leftOut == 1 {
		time.AfterFunc(max(0, l.until.Sub(e.Time)), func() { s.tell(e) })
	}
	return false
}

// tell writes how many were left out.
func (s *state) tell(e zapcore.Entry) {
	s.mu.Lock()
	l := s.lines[e.Message]
	n := l.leftOut
	l.leftOut = 0
	s.mu.Unlock()
	e.Time = time.Now()
	if ce := s.base.Check(e, nil); ce != nil {
		ce.Write(zap.Int("left_out", n), zap.Duration("within", period))
	}
}
