package intake

import (
	"container/list"
	"errors"
	"io"
	"net/http"
	"sync"
)

// Limits of the in-flight requests on the public listener, and so of their memory.
const (
	maxInFlight  = 256     // requests
	maxBodyBytes = 8 << 20 // memory for their bodies
	// initialBody is the first allocation. Stripe's events have 3 to 10 KB; a larger body allocates as it
	// arrives.
	initialBody = 64 << 10
)

// errEvicted is returned for a body that was evicted for a newer request.
var errEvicted = errors.New("read body: evicted")

// admission limits the in-flight requests. At a limit, a new request evicts one whose body is still being
// read: the oldest at the limit of requests, the largest at the limit of memory. Stripe's bodies are small
// and arrive in milliseconds, so slow and large bodies of other clients cannot block them. Without a body
// to evict, the new request is rejected.
type admission struct {
	mu      sync.Mutex
	slots   int
	bytes   int64
	reading list.List // of *slot, oldest first
}

// slot is one admitted request. Its fields are guarded by admission.mu.
type slot struct {
	admission *admission
	bytes     int64
	abort     func()        // stops reading the body
	reading   *list.Element // nil: body complete, or slot freed
	freed     bool          // evicted or released
}

// admit admits a request that allocates bytes for its body, or returns nil. abort is called at most once,
// before bodyRead.
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
	s := &slot{admission: a, bytes: bytes, abort: abort}
	s.reading = a.reading.PushBack(s)
	a.slots++
	a.bytes += bytes
	return s
}

// largest returns the largest body being read, the oldest of equal ones; nil: none.
func (a *admission) largest() (found *list.Element) {
	var size int64 = -1
	for e := a.reading.Front(); e != nil; e = e.Next() {
		if s, _ := e.Value.(*slot); s.bytes > size {
			found, size = e, s.bytes
		}
	}
	return found
}

// evict evicts a slot and reports whether e has one.
func (a *admission) evict(e *list.Element) bool {
	if e == nil {
		return false
	}
	s, _ := e.Value.(*slot)
	s.free()
	s.abort()
	return true
}

// reserve adds bytes to the body's memory and reports whether the request is still admitted.
func (s *slot) reserve(bytes int64) bool {
	a := s.admission
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

// bodyRead protects the request from eviction and reports whether it is still admitted.
func (s *slot) bodyRead() bool {
	s.admission.mu.Lock()
	defer s.admission.mu.Unlock()
	s.endReading()
	return !s.freed
}

// release frees the slot.
func (s *slot) release() {
	s.admission.mu.Lock()
	defer s.admission.mu.Unlock()
	s.free()
}

func (s *slot) free() {
	if s.freed {
		return
	}
	s.endReading()
	s.freed = true
	s.admission.slots--
	s.admission.bytes -= s.bytes
}

func (s *slot) endReading() {
	if s.reading != nil {
		s.admission.reading.Remove(s.reading)
		s.reading = nil
	}
}

// initialSize returns the bytes first allocated for a body.
func initialSize(r *http.Request) int64 {
	if r.ContentLength >= 0 {
		return min(r.ContentLength, initialBody)
	}
	return initialBody
}

// readBody reads a body of at most MaxBody bytes. It reserves each growth of the buffer.
func readBody(w http.ResponseWriter, r *http.Request, s *slot) ([]byte, error) {
	source := http.MaxBytesReader(w, r.Body, MaxBody)
	body := make([]byte, 0, initialSize(r))
	if r.ContentLength >= 0 && r.ContentLength <= initialBody {
		body = body[:r.ContentLength] // the server returns no more
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
