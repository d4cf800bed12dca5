package intake

import (
	"container/list"
	"sync"
)

// The bounds of what is in flight on the public listener, and with it of memory.
const (
	maxInFlight   = 256      // requests
	maxBodiesHeld = 64 << 20 // bytes of their bodies
)

// room holds the requests in flight. A newcomer that finds it full takes the place of whoever has been sending a body for
// longest: Stripe's bodies arrive in milliseconds, so that slow ones never lock it out. Where every body has arrived and is
// being worked on, the newcomer is refused.
type room struct {
	mu      sync.Mutex
	inside  int
	bytes   int64
	readers list.List // of *guest, the longest first
}

// guest is one request. Its state belongs to room.mu.
type guest struct {
	bytes   int64
	cut     func()        // ends the reading of its body
	reading *list.Element // nil: its body has arrived, or it was cut
	gone    bool          // its place was taken
}

// enter gives a request with a body of so many bytes a place, or nil. cut is called at most once and only until arrived.
func (r *room) enter(bytes int64, cut func()) *guest {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.inside >= maxInFlight || r.bytes+bytes > maxBodiesHeld {
		longest := r.readers.Front()
		if longest == nil {
			return nil
		}
		g, _ := longest.Value.(*guest)
		r.remove(g)
		g.cut()
	}
	g := &guest{bytes: bytes, cut: cut}
	g.reading = r.readers.PushBack(g)
	r.inside++
	r.bytes += bytes
	return g
}

// arrived says that a body is here: the request keeps its place until leave. False: its place was taken meanwhile.
func (r *room) arrived(g *guest) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if g.reading != nil {
		r.readers.Remove(g.reading)
		g.reading = nil
	}
	return !g.gone
}

func (r *room) leave(g *guest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.remove(g)
}

func (r *room) remove(g *guest) {
	if g.gone {
		return
	}
	if g.reading != nil {
		r.readers.Remove(g.reading)
		g.reading = nil
	}
	g.gone = true
	r.inside--
	r.bytes -= g.bytes
}
