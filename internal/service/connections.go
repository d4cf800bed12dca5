package service

import (
	"container/list"
	"context"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// The connections that a listener keeps. Each takes a file descriptor and, with the largest head that is
// read, some 25 KB.
const (
	PublicConnections = 512
	AdminConnections  = 64
)

// Why a connection was closed, as a label of purchase_relay_connections_dropped_total.
const (
	droppedNewer = "newer" // the longest without a request; a newer one took its place
	droppedFull  = "full"  // new, while a request was being answered on every other one
	droppedHead  = "head"  // its request's head was too large
)

// dropCounter counts the connections that the listeners closed.
func dropCounter() *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "purchase_relay_connections_dropped_total",
		Help: "Connections that a listener closed to bound its memory, by listener and reason.",
	}, []string{"listener", "reason"})
}

// connections keeps a listener's connections under max. One too many closes the connection that has been
// without a request for longest, of those that never sent a byte or of all others, whichever are more: a
// flood of idle connections, or of heads that never end, drives out itself and never locks out a new client.
// A connection whose request is being answered is never closed for another.
type connections struct {
	max     int
	log     *zap.Logger
	dropped func(reason string)

	mu      sync.Mutex
	all     map[net.Conn]*place
	silent  list.List // of net.Conn that sent nothing yet, the oldest first
	waiting list.List // of net.Conn that did, the longest without a request first
}

// place is a connection's entry in one of the two lists; nil: its request is being answered.
type place struct {
	line *list.List
	at   *list.Element
}

// bound limits a server's connections and the heads of its requests. variable is the configuration's name of
// its address.
func bound(server *http.Server, listener net.Listener, variable string, max int, dropped *prometheus.CounterVec,
	log *zap.Logger,
) net.Listener {
	name := strings.ToLower(strings.TrimSuffix(variable, "_ADDR"))
	for _, reason := range []string{droppedNewer, droppedFull, droppedHead} {
		dropped.WithLabelValues(name, reason) // from 0: an increase from nothing at all would not be seen
	}
	b := &connections{
		max: max, all: make(map[net.Conn]*place),
		log: log.With(zap.String("listener", name)).WithOptions(zap.WrapCore(func(core zapcore.Core) zapcore.Core {
			return zapcore.NewSamplerWithOptions(core, time.Minute, 1, 0)
		})),
		dropped: func(reason string) { dropped.WithLabelValues(name, reason).Inc() },
	}
	server.ConnState = b.changed
	server.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		return context.WithValue(ctx, connection{}, c)
	}
	server.Handler = b.answer(server.Handler)
	server.DisableGeneralOptionsHandler = true // it would answer without that handler
	return &headListener{Listener: listener, connections: b}
}

// connection is the key of a request's connection in its context.
type connection struct{}

func (b *connections) changed(c net.Conn, state http.ConnState) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch state {
	case http.StateNew:
		if len(b.all) >= b.max && !b.dropLongest() {
			_ = c.Close() // its own goroutine finds out
			b.dropped(droppedFull)
			b.log.Warn("Connection refused, all others are busy", zap.Int("max", b.max))
			return
		}
		b.all[c] = &place{&b.silent, b.silent.PushBack(c)}
	case http.StateActive: // a head was read, or half of one
	case http.StateIdle:
		b.wait(c)
	case http.StateClosed, http.StateHijacked:
		b.forget(c)
	}
}

// dropLongest reports whether there was a connection without a request to close.
func (b *connections) dropLongest() bool {
	line := &b.waiting
	if b.silent.Len() > b.waiting.Len() {
		line = &b.silent
	}
	longest := line.Front()
	if longest == nil {
		return false
	}
	c, _ := longest.Value.(net.Conn)
	b.forget(c)
	_ = c.Close() // its own goroutine finds out
	b.dropped(droppedNewer)
	b.log.Warn("Too many connections; closing the longest idle", zap.Int("max", b.max))
	return true
}

// leave takes a connection out of its line.
func (b *connections) leave(c net.Conn) {
	if p := b.all[c]; p != nil {
		p.line.Remove(p.at)
	}
}

func (b *connections) forget(c net.Conn) {
	b.leave(c)
	delete(b.all, c)
}

// wait puts a connection behind all others that wait, unless it was dropped.
func (b *connections) wait(c net.Conn) {
	if _, known := b.all[c]; known {
		b.leave(c)
		b.all[c] = &place{&b.waiting, b.waiting.PushBack(c)}
	}
}

// spoke moves a connection that sent its first byte to the others that did.
func (b *connections) spoke(c net.Conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if p := b.all[c]; p != nil && p.line == &b.silent {
		b.wait(c)
	}
}

// answer keeps a connection while its request is being answered, and sets the length of the request's
// body.
func (b *connections) answer(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, ok := r.Context().Value(connection{}).(*headConn); ok {
			c.expectBody(r.ContentLength)
			b.answering(c)
			defer b.answered(c)
		}
		h.ServeHTTP(w, r)
	})
}

func (b *connections) answering(c net.Conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, known := b.all[c]; known {
		b.leave(c)
		b.all[c] = nil
	}
}

// answered comes before the answer's last bytes are written: for a moment the connection is the youngest of
// those that wait.
func (b *connections) answered(c net.Conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.wait(c)
}
