// Package load sends prepared HTTP requests over kept connections, as fast as they are answered or at a pace,
// and measures the time of each response. It parses only as much of HTTP as it needs, which leaves the
// processor to the measured program.
package load

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
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

// patience bounds a run, beyond Plan.For.
const patience = 5 * time.Minute

// Run opens the connections, then starts the clock. The error is a connection's. Another status is none.
func Run(ctx context.Context, p Plan) (r Result, err error) {
	conns := make([]net.Conn, p.Conns)
	for i := range conns {
		if conns[i], err = (&net.Dialer{}).DialContext(ctx, "tcp", p.Addr); err != nil {
			return r, err
		}
		defer func() { _ = conns[i].Close() }()
		defer context.AfterFunc(ctx, func() { _ = conns[i].Close() })()
	}
	var next atomic.Int64
	var mu sync.Mutex
	var all errgroup.Group
	began := time.Now()
	for _, conn := range conns {
		all.Go(func() error {
			one, err := p.send(conn, &next, began)
			mu.Lock()
			defer mu.Unlock()
			r.Latencies, r.Odd = append(r.Latencies, one.Latencies...), r.Odd+one.Odd
			r.FirstOdd = cmp.Or(r.FirstOdd, one.FirstOdd)
			return err
		})
	}
	err = all.Wait()
	r.Took, r.Answered = time.Since(began), len(r.Latencies)
	slices.Sort(r.Latencies)
	return r, cmp.Or(ctx.Err(), err)
}

// send sends requests over one connection.
func (p *Plan) send(conn net.Conn, next *atomic.Int64, began time.Time) (r Result, err error) {
	if err := conn.SetDeadline(began.Add(p.For + patience)); err != nil {
		return r, err
	}
	responses, buffer := bufio.NewReaderSize(conn, 8<<10), []byte(nil)
	for {
		i := int(next.Add(1) - 1)
		if i >= p.Requests {
			return r, nil
		}
		if p.Every > 0 {
			<-time.After(time.Until(began.Add(time.Duration(i) * p.Every)))
		}
		sent := time.Now()
		if p.For > 0 && sent.Sub(began) >= p.For {
			return r, nil
		}
		buffer = p.Append(buffer[:0], i)
		if _, err := conn.Write(buffer); err != nil {
			return r, fmt.Errorf("send request %d: %w", i, err)
		}
		status, body, err := read(responses)
		if err != nil {
			return r, fmt.Errorf("response to request %d: %w", i, err)
		}
		if status == p.Want {
			r.Latencies = append(r.Latencies, time.Since(sent))
			continue
		}
		if r.Odd++; r.Odd == 1 {
			r.FirstOdd = fmt.Sprintf("%d %.200s", status, body)
		}
	}
}

var errForm = errors.New("no HTTP/1.1 response with a Content-Length")

// read reads one response. The body, its first 1,024 bytes, is valid until the next call.
func read(r *bufio.Reader) (status int, body []byte, err error) {
	length := -1
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return 0, nil, err
		}
		name, value, _ := bytes.Cut(bytes.TrimRight(line, "\r\n"), []byte(" "))
		switch {
		case bytes.Equal(name, []byte("HTTP/1.1")):
			status, err = strconv.Atoi(string(value[:min(3, len(value))]))
		case bytes.EqualFold(name, []byte("Content-Length:")):
			length, err = strconv.Atoi(string(value))
		case len(name) == 0 && (status == 0 || length < 0):
			return 0, nil, errForm
		case len(name) == 0:
			if body, err = r.Peek(min(length, 1024)); err == nil {
				_, err = r.Discard(length)
			}
			return status, body, err
		}
		if err != nil {
			return 0, nil, errForm
		}
	}
}
