package stripegen

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"time"
)

// Listed is how long Stripe lists an event.
const Listed = 30 * 24 * time.Hour

// Shelf is an EventList that a file keeps from one start to the next, with a door of the workshop's own beside Stripe's:
//
//	POST /events        lists the event in the body
//
// It is safe for concurrent use.
type Shelf struct {
	EventList

	mu   sync.Mutex
	file *os.File
	lost error // the first event that could not be kept
}

// OpenShelf opens the list that a file keeps, one event a line; fresh says that there was none. Events that Stripe would not list
// any more are left out.
func OpenShelf(path string, now time.Time) (s *Shelf, fresh bool, err error) {
	_, err = os.Stat(path)
	fresh = errors.Is(err, os.ErrNotExist)
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600) //nolint:gosec // the caller's own folder
	if err != nil {
		return nil, false, err
	}
	s = &Shelf{file: file}
	if err := s.load(now); err != nil {
		return nil, false, errors.Join(fmt.Errorf("%s: %w", path, err), file.Close())
	}
	return s, fresh, nil
}

func (s *Shelf) load(now time.Time) error {
	lines := bufio.NewScanner(s.file)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e listed
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			continue // the last line of one that was killed
		}
		if now.Sub(time.Unix(e.Created, 0)) > Listed {
			continue
		}
		if err := s.EventList.Add(bytes.Clone(lines.Bytes())); err != nil {
			return err
		}
	}
	return lines.Err()
}

// Add lists an event and keeps it.
func (s *Shelf) Add(body []byte) error {
	var line bytes.Buffer
	if err := json.Compact(&line, body); err != nil {
		return err
	}
	if err := s.EventList.Add(bytes.Clone(line.Bytes())); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := fmt.Fprintf(s.file, "\n%s\n", line.Bytes()) // apart from what a killed one may have left
	if s.lost == nil {
		s.lost = err
	}
	return err
}

// Close closes the file.
func (s *Shelf) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(s.lost, s.file.Close())
}

// ServeHTTP implements http.Handler.
func (s *Shelf) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/events" {
		s.EventList.ServeHTTP(w, r)
		return
	}
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "POST an event here; Stripe's list is at "+eventsPath, http.StatusMethodNotAllowed)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
	if err == nil {
		err = s.Add(body)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}
