package intake

import (
	"container/list"
	"errors"
	"io"
	"net/http"
	"sync"
)

// The bounds of what is in flight on the public listener, and with it of memory.
const (
	maxInFlight   = 256     // requests
	maxBodiesHeld = 8 << 20 // bytes of their bodies
	// usualBody is what is allocated at once; Stripe's events have 3 to 10 KB. A larger body takes memory as
	// it arrives.
	usualBody = 64 << 10
)

// errEvicted ends the reading of a body whose place a newer request took.
var errEvicted = errors.New("slow body evicted")

// room holds the requests in flight. Bodies that are still on their way make room for newer requests: where
// there are too many, the one that has been read for longest, and where they hold too much memory, the
// largest. Stripe's bodies are small and arrive in milliseconds, so that neither slow nor large ones lock it
// out. Where every body has arrived the newer request is refused.
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
	for r.inside >= maxInFlight {
		if !r.evict(r.readers.Front()) {
			return nil
		}
	}
	for r.bytes+bytes > maxBodiesHeld {
		if !r.evict(r.largest()) {
			return nil
		}
	}
	g := &guest{bytes: bytes, cut: cut}
	g.reading = r.readers.PushBack(g)
	r.inside++
	r.bytes += bytes
	return g
}

// grow charges a body for more memory and reports whether it still has its place.
func (r *room) grow(g *guest, bytes int64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if g.gone {
		return false
	}
	g.bytes += bytes
	r.bytes += bytes
	for r.bytes > maxBodiesHeld && r.evict(r.largest()) {
	}
	return !g.gone
}

// largest returns the body on its way that holds the most, of equal ones the oldest; nil: none is on its way.
func (r *room) largest() (found *list.Element) {
	var most int64 = -1
	for e := r.readers.Front(); e != nil; e = e.Next() {
		if g, _ := e.Value.(*guest); g.bytes > most {
			found, most = e, g.bytes
		}
	}
	return found
}

// evict reports whether there was one to evict.
func (r *room) evict(e *list.Element) bool {
	if e == nil {
		return false
	}
	g, _ := e.Value.(*guest)
	r.remove(g)
	g.cut()
	return true
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

// size is what is allocated for a body at first.
func size(r *http.Request) int64 {
	if r.ContentLength >= 0 {
		return min(r.ContentLength, usualBody)
	}
	return usualBody
}

// read reads a body of at most MaxBody bytes. Its buffer doubles as it fills; grow is asked before.
func read(w http.ResponseWriter, r *http.Request, grow func(bytes int64) bool) ([]byte, error) {
	source := http.MaxBytesReader(w, r.Body, MaxBody)
	body := make([]byte, 0, size(r))
	if r.ContentLength >= 0 && r.ContentLength <= usualBody {
		body = body[:r.ContentLength] // the server hands out no more than was announced
		_, err := io.ReadFull(source, body)
		return body, err
	}
	for {
		n, err := source.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		switch {
		case errors.Is(err, io.EOF):
			return body, nil
		case err != nil:
			return nil, err
		case len(body) < cap(body):
		case !grow(int64(cap(body))):
			return nil, errEvicted
		default:
			body = append(make([]byte, 0, 2*cap(body)), body...)
		}
	}
}
