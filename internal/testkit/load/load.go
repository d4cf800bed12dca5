// Package load sends prepared HTTP requests over kept connections, as fast as they are answered or at a pace,
// and measures the time of each response. It parses only as much of HTTP as it needs, which leaves the
// processor to the measured program.
package load

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// Plan is one run. It ends when all requests are answered or its time is over, whichever comes first.
type Plan struct {
	Addr     string                            // host:port
	Conns    int                               // each sends a request after the response to the last
	Requests int                               // number of requests
	Append   func(buffer []byte, i int) []byte // appends the i-th request; called concurrently
	For      time.Duration                     // 0: until all are answered
	Every    time.Duration                     // interval of requests over all connections; 0: no pace
	Want     int                               // the status of every response
}

// Result is the responses of a run.
type Result struct {
	Answered  int             // responses with the status Want
	Took      time.Duration   // from the first request to the last response
	Latencies []time.Duration // of those responses, sorted
	Odd       int             // responses with another status
	FirstOdd  string          // the first of them on its connection
}

// PerSecond is the rate of the responses with the status Want.
func (r *Result) PerSecond() float64 { return float64(r.Answered) / r.Took.Seconds() }

// Quantile returns a quantile of the latencies in milliseconds; 0 without responses.
func (r *Result) Quantile(q float64) float64 {
	if len(r.Latencies) == 0 {
		return 0
	}
	return r.Latencies[min(len(r.Latencies)-1, int(q*float64(len(r.Latencies))))].Seconds() * 1000
}

// patience bounds the wait for one response.
const patience = time.Minute

// Run opens the connections, then starts the clock. The error is a connection's. Another status is none.
func Run(ctx context.Context, p Plan) (Result, error) {
	senders := make([]*sender, p.Conns)
	for i := range senders {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", p.Addr)
		if err != nil {
			return Result{}, err
		}
		defer func() { _ = conn.Close() }()
		senders[i] = &sender{conn: conn, responses: bufio.NewReaderSize(conn, 8<<10)}
	}
	stop := context.AfterFunc(ctx, func() {
		for _, s := range senders {
			_ = s.conn.Close()
		}
	})
	defer stop()
	var next atomic.Int64
	var all sync.WaitGroup
	began := time.Now()
	for _, s := range senders {
		all.Go(func() { s.err = s.run(&p, &next, began) })
	}
	all.Wait()
	r := Result{Took: time.Since(began)}
	errs := []error{ctx.Err()}
	for _, s := range senders {
		r.Answered, r.Odd = r.Answered+len(s.latencies), r.Odd+s.odd
		r.Latencies = append(r.Latencies, s.latencies...)
		if r.FirstOdd == "" {
			r.FirstOdd = s.firstOdd
		}
		errs = append(errs, s.err)
	}
	slices.Sort(r.Latencies)
	return r, errors.Join(errs...)
}

// sender is one connection.
type sender struct {
	conn      net.Conn
	responses *bufio.Reader
	latencies []time.Duration
	odd       int
	firstOdd  string
	err       error
}

func (s *sender) run(p *Plan, next *atomic.Int64, began time.Time) error {
	var buffer []byte
	if err := s.conn.SetDeadline(began.Add(p.For + patience)); err != nil {
		return err
	}
	for {
		i := int(next.Add(1) - 1)
		if i >= p.Requests {
			return nil
		}
		if p.Every > 0 {
			<-time.After(time.Until(began.Add(time.Duration(i) * p.Every)))
		}
		sent := time.Now()
		if p.For > 0 && sent.Sub(began) >= p.For {
			return nil
		}
		buffer = p.Append(buffer[:0], i)
		if _, err := s.conn.Write(buffer); err != nil {
			return fmt.Errorf("send request %d: %w", i, err)
		}
		status, body, err := s.response()
		if err != nil {
			return fmt.Errorf("response to request %d: %w", i, err)
		}
		if status == p.Want {
			s.latencies = append(s.latencies, time.Since(sent))
			continue
		}
		if s.odd++; s.odd == 1 {
			s.firstOdd = fmt.Sprintf("%d %.200s", status, body)
		}
	}
}

var errForm = errors.New("no HTTP/1.1 response with a Content-Length")

// response reads one response. The body, its first 1,024 bytes, is valid until the next call.
func (s *sender) response() (status int, body []byte, err error) {
	line, err := s.responses.ReadSlice('\n')
	if err != nil {
		return 0, nil, err
	}
	if len(line) < len("HTTP/1.1 200\r\n") || !bytes.HasPrefix(line, []byte("HTTP/1.1 ")) {
		return 0, nil, errForm
	}
	if status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return 0, nil, errForm
	}
	length := -1
	for {
		line, err := s.responses.ReadSlice('\n')
		if err != nil {
			return 0, nil, err
		}
		if line = bytes.TrimRight(line, "\r\n"); len(line) == 0 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		if bytes.EqualFold(name, []byte("Content-Length")) {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return 0, nil, errForm
			}
		}
	}
	if length < 0 {
		return 0, nil, errForm
	}
	if body, err = s.responses.Peek(min(length, 1024)); err != nil {
		return 0, nil, err
	}
	if _, err := io.CopyN(io.Discard, s.responses, int64(length)); err != nil {
		return 0, nil, err
	}
	return status, body, nil
}
