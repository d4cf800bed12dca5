package process

import (
	"container/list"
	"context"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// MaxConnections is how many connections a public listener keeps at a time. Each may have a file descriptor of its own and
// some 10 KB; leave room for the neighbours below the process' limit (ulimit -n).
const MaxConnections = 1024

// Bounded keeps a listener's connections under most, as an option of Serve. One too many closes the connection that has been
// without a request for longest, of those that never sent a byte or of all others, whichever are more: a flood of idle ones, or
// of ones that never finish a header, drives out itself and never locks out a new client. A connection whose request is being
// answered is not touched.
func Bounded(most int, log *zap.Logger, reg prometheus.Registerer) func(*http.Server) {
	b := &bounded{
		most: most, all: make(map[net.Conn]*place),
		log: log.WithOptions(zap.WrapCore(func(core zapcore.Core) zapcore.Core { return zapcore.NewSamplerWithOptions(core, time.Minute, 1, 0) })),
		dropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "purchase_relay_connections_dropped_total", Help: "Connections without a request that were closed for newer ones.",
		}),
	}
	reg.MustRegister(b.dropped)
	return func(s *http.Server) {
		s.ConnState = b.changed
		s.ConnContext = func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connection{}, c) }
		s.Handler = b.busy(s.Handler)
	}
}

// connection is the key of a request's connection in its context.
type connection struct{}

type bounded struct {
	most    int
	log     *zap.Logger
	dropped prometheus.Counter

	mu      sync.Mutex
	all     map[net.Conn]*place
	silent  list.List // of net.Conn that sent nothing yet, the oldest first
	waiting list.List // of net.Conn that did, the longest without a request first
}

// place is where a connection stands; nil: its request is being answered.
type place struct {
	line *list.List
	at   *list.Element
}

// changed hears of a connection's states; StateActive begins with a request's first byte, which proves little.
func (b *bounded) changed(c net.Conn, state http.ConnState) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch state {
	case http.StateNew:
		b.all[c] = &place{&b.silent, b.silent.PushBack(c)}
		if len(b.all) > b.most {
			b.dropLongest()
		}
	case http.StateActive:
		if p := b.all[c]; p != nil && p.line == &b.silent {
			b.wait(c)
		}
	case http.StateIdle:
		b.wait(c)
	case http.StateClosed, http.StateHijacked:
		b.forget(c)
	}
}

func (b *bounded) dropLongest() {
	line := &b.waiting
	if b.silent.Len() > b.waiting.Len() {
		line = &b.silent
	}
	longest := line.Front()
	if longest == nil {
		return // every one is being answered
	}
	c, _ := longest.Value.(net.Conn)
	b.forget(c)
	_ = c.Close() // its own goroutine finds out
	b.dropped.Inc()
	b.log.Warn("Too many connections; those that are without a request for longest are closed", zap.Int("kept", b.most))
}

// leave takes a connection out of its line.
func (b *bounded) leave(c net.Conn) {
	if p := b.all[c]; p != nil {
		p.line.Remove(p.at)
	}
}

func (b *bounded) forget(c net.Conn) {
	b.leave(c)
	delete(b.all, c)
}

// wait puts a connection behind all others that wait, unless it is gone.
func (b *bounded) wait(c net.Conn) {
	if _, known := b.all[c]; known {
		b.leave(c)
		b.all[c] = &place{&b.waiting, b.waiting.PushBack(c)}
	}
}

// busy spares a connection while its request is being answered.
func (b *bounded) busy(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, ok := r.Context().Value(connection{}).(net.Conn); ok {
			b.answering(c)
			defer b.answered(c)
		}
		h.ServeHTTP(w, r)
	})
}

func (b *bounded) answering(c net.Conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, known := b.all[c]; known {
		b.leave(c)
		b.all[c] = nil
	}
}

// answered comes before the answer's last bytes are written: for a moment it is the youngest of those that wait.
func (b *bounded) answered(c net.Conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.wait(c)
}
