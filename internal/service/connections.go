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

// Connection limits of the listeners. A connection takes a file descriptor and up to 25 KB.
const (
	PublicConnections = 512
	AdminConnections  = 64
)

// Reasons for closing a connection, a label of purchase_relay_connections_dropped_total.
const (
	droppedNewer = "newer" // the longest idle one, in favour of a new one
	droppedFull  = "full"  // a new one, while all others were serving requests
	droppedHead  = "head"  // its request header was too large
)

func newDroppedCounter() *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "purchase_relay_connections_dropped_total",
		Help: "Connections that a listener closed to bound its memory, by listener and reason.",
	}, []string{"listener", "reason"})
}

// connections limits a listener's connections to max. A new one beyond that closes the longest idle one,
// either of those that have sent a byte or of those that have not, whichever are more. So a flood of idle
// connections or of headers that never end only displaces itself. A connection that serves a request is never
// closed.
type connections struct {
	max     int
	log     *zap.Logger
	dropped func(reason string)

	mu      sync.Mutex
	entries map[net.Conn]*entry // nil: serving a request
	unused  list.List           // connections that have sent nothing, the oldest first
	idle    list.List           // connections between or before complete requests, the longest idle first
}

// entry is a connection's place in one of the two lists.
type entry struct {
	list    *list.List
	element *list.Element
}

// limitConnections limits a server's connections and the headers of its requests. variable is the setting
// that holds the listener's address.
func limitConnections(
	server *http.Server, listener net.Listener, variable string, max int, dropped *prometheus.CounterVec,
	log *zap.Logger,
) net.Listener {
	name := strings.ToLower(strings.TrimSuffix(variable, "_ADDR"))
	for _, reason := range []string{droppedNewer, droppedFull, droppedHead} {
		dropped.WithLabelValues(name, reason) // from 0, or the first increase would be invisible
	}
	c := &connections{
		max: max, entries: make(map[net.Conn]*entry),
		log: log.With(zap.String("listener", name)).WithOptions(zap.WrapCore(func(core zapcore.Core) zapcore.Core {
			return zapcore.NewSamplerWithOptions(core, time.Minute, 1, 0)
		})),
		dropped: func(reason string) { dropped.WithLabelValues(name, reason).Inc() },
	}
	server.ConnState = c.stateChanged
	server.ConnContext = func(ctx context.Context, conn net.Conn) context.Context {
		return context.WithValue(ctx, connKey{}, conn)
	}
	server.Handler = c.track(server.Handler)
	server.DisableGeneralOptionsHandler = true // it would bypass track
	return &headerListener{Listener: listener, connections: c}
}

// connKey is the context key of a request's connection.
type connKey struct{}

func (c *connections) stateChanged(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch state {
	case http.StateNew:
		if len(c.entries) >= c.max && !c.dropLongestIdle() {
			_ = conn.Close() // its goroutine ends
			c.dropped(droppedFull)
			c.log.Warn("Connection refused, all others are busy", zap.Int("max", c.max))
			return
		}
		c.entries[conn] = &entry{&c.unused, c.unused.PushBack(conn)}
	case http.StateActive: // also after a part of a header
	case http.StateIdle:
		c.markIdle(conn)
	case http.StateClosed, http.StateHijacked:
		c.remove(conn)
	}
}

// dropLongestIdle reports whether there was an idle connection to close.
func (c *connections) dropLongestIdle() bool {
	candidates := &c.idle
	if c.unused.Len() > c.idle.Len() {
		candidates = &c.unused
	}
	longest := candidates.Front()
	if longest == nil {
		return false
	}
	conn, _ := longest.Value.(net.Conn)
	c.remove(conn)
	_ = conn.Close() // its goroutine ends
	c.dropped(droppedNewer)
	c.log.Warn("Too many connections; closing the longest idle", zap.Int("max", c.max))
	return true
}

func (c *connections) unlist(conn net.Conn) {
	if e := c.entries[conn]; e != nil {
		e.list.Remove(e.element)
	}
}

func (c *connections) remove(conn net.Conn) {
	c.unlist(conn)
	delete(c.entries, conn)
}

// markIdle ignores connections that were dropped.
func (c *connections) markIdle(conn net.Conn) {
	if _, open := c.entries[conn]; open {
		c.unlist(conn)
		c.entries[conn] = &entry{&c.idle, c.idle.PushBack(conn)}
	}
}

// received moves a connection from the unused to the idle ones after its first byte.
func (c *connections) received(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.entries[conn]; e != nil && e.list == &c.unused {
		c.markIdle(conn)
	}
}

// track keeps a request's connection open while h runs and sets the length of the request's body.
func (c *connections) track(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if conn, ok := r.Context().Value(connKey{}).(*headerConn); ok {
			conn.expectBody(r.ContentLength)
			c.markBusy(conn)
			defer func() { // before the end of the response is written
				c.mu.Lock()
				defer c.mu.Unlock()
				c.markIdle(conn)
			}()
		}
		h.ServeHTTP(w, r)
	})
}

func (c *connections) markBusy(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, open := c.entries[conn]; open {
		c.unlist(conn)
		c.entries[conn] = nil
	}
}
