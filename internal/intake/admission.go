package intake

import (
	"container/list"
	"errors"
	"io"
	"net/http"
	"sync"
)

// Bounds on the requests in flight on the public listener, and thereby on memory.
const (
	maxInFlight  = 256     // requests
	maxBodyBytes = 8 << 20 // memory for their bodies
	// initialBody is allocated immediately; Stripe's events have 3 to 10 KB. A larger body takes memory as it
	// arrives.
	initialBody = 64 << 10
)

// errEvicted ends the reading of a body that was evicted for a newer request.
var errEvicted = errors.New("slow body evicted")

// admission bounds the requests in flight. Over the limits a newer request evicts one whose body is still
// being read: the oldest where there are too many, the largest where they take too much memory. Stripe's
// bodies are small and arrive in milliseconds, so that neither slow nor large ones lock it out. Where every
// body was read, the newer request is refused.
type admission struct {
	mu      sync.Mutex
	slots   int
	bytes   int64
	reading list.List // of *slot, the oldest first
}

// slot is one admitted request. Its fields are guarded by admission.mu.
type slot struct {
	of      *admission
	bytes   int64
	abort   func()        // ends the reading of its body
	reading *list.Element // nil: its body was read, or it was released
	freed   bool          // evicted or released
}

// admit admits a request with that many bytes of body, or returns nil. abort is called at most once, before
// bodyRead.
func (a *admission) admit(bytes int64, abort func()) *slot {
	a.mu.Lock()
	defer a.mu.Unlock()
	for a.slots >= maxInFlight {
		if !a.evict(a.reading.Front()) {
			return nil
		}
	}
	for a.bytes+bytes > maxBodyBytes {
		if !a.evict(a.largest()) {
			return nil
		}
	}
	s := &slot{of: a, bytes: bytes, abort: abort}
	s.reading = a.reading.PushBack(s)
	a.slots++
	a.bytes += bytes
	return s
}

// largest returns the largest body that is being read, of equal ones the oldest; nil: there is none.
func (a *admission) largest() (found *list.Element) {
	var size int64 = -1
	for e := a.reading.Front(); e != nil; e = e.Next() {
		if s, _ := e.Value.(*slot); s.bytes > size {
			found, size = e, s.bytes
		}
	}
	return found
}

// evict reports whether there was a body to evict.
func (a *admission) evict(e *list.Element) bool {
	if e == nil {
		return false
	}
	s, _ := e.Value.(*slot)
	s.free()
	s.abort()
	return true
}

// reserve charges more memory for the body. It reports false where the request was evicted.
func (s *slot) reserve(bytes int64) bool {
	a := s.of
	a.mu.Lock()
	defer a.mu.Unlock()
	if s.freed {
		return false
	}
	s.bytes += bytes
	a.bytes += bytes
	for a.bytes > maxBodyBytes && a.evict(a.largest()) {
	}
	return !s.freed
}

// bodyRead protects the request from eviction until release. It reports false where the request was evicted
// before.
func (s *slot) bodyRead() bool {
	s.of.mu.Lock()
	defer s.of.mu.Unlock()
	s.endReading()
	return !s.freed
}

// release ends the request.
func (s *slot) release() {
	s.of.mu.Lock()
	defer s.of.mu.Unlock()
	s.free()
}

func (s *slot) free() {
	if s.freed {
		return
	}
	s.endReading()
	s.freed = true
	s.of.slots--
	s.of.bytes -= s.bytes
}

func (s *slot) endReading() {
	if s.reading != nil {
		s.of.reading.Remove(s.reading)
		s.reading = nil
	}
}

// initialSize returns how much is allocated for a body at first, in bytes.
func initialSize(r *http.Request) int64 {
	if r.ContentLength >= 0 {
		return min(r.ContentLength, initialBody)
	}
	return initialBody
}

// readBody reads a body of at most MaxBody bytes. Its buffer doubles as it fills, and each growth is reserved
// first.
func readBody(w http.ResponseWriter, r *http.Request, s *slot) ([]byte, error) {
	source := http.MaxBytesReader(w, r.Body, MaxBody)
	body := make([]byte, 0, initialSize(r))
	if r.ContentLength >= 0 && r.ContentLength <= initialBody {
		body = body[:r.ContentLength] // the server returns no more than was announced
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
		case !s.reserve(int64(cap(body))):
			return nil, errEvicted
		default:
			body = append(make([]byte, 0, 2*cap(body)), body...)
		}
	}
}
