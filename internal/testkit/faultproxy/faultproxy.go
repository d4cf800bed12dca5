// Package faultproxy is a TCP proxy for tests. It does to connections what networks and crashing peers do: it
// cuts, delays, pauses and silently drops. It also holds the responses after a certain request, so that a
// process can be killed at the moment when its peer has done the work and the confirmation is still missing.
package faultproxy

import (
	"bytes"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// dialTimeout bounds the connection to a target whose backlog is full.
const dialTimeout = 30 * time.Second

// Proxy forwards connections to a target. It is safe for concurrent use.
type Proxy struct {
	listener net.Listener
	target   string
	running  sync.WaitGroup

	mu      sync.Mutex
	changed *sync.Cond // signals a change of any field below or of a connection
	conns   map[*conn]struct{}
	match   []byte // a request after which responses are held; nil: none
	held    chan struct{}
	fault   Fault
	closed  bool
}

// Fault is what a proxy does to present and new connections. Several at the same time are possible.
type Fault struct {
	Delay  time.Duration // of all data, each way
	Paused bool          // all data is held, each way; nothing is lost

	// Data is read and dropped: the connection is half-open, for good. No side gets an error, and none learns
	// through a dropped direction that the other has closed.
	DropRequests, DropResponses bool
}

// The directions of a connection. A direction's data comes from the end of its number.
const (
	requests = iota
	responses
)

// conn is a client's connection with the one to the target. The proxy's mutex guards the other fields.
type conn struct {
	ends    [2]net.Conn // the client's, the target's
	drop    [2]bool     // by direction
	holding bool        // responses
	closed  bool
}

// applyDrops adds the directions that the fault drops.
func (c *conn) applyDrops(f Fault) {
	c.drop = [2]bool{c.drop[requests] || f.DropRequests, c.drop[responses] || f.DropResponses}
}

func (c *conn) close() {
	c.closed = true
	for _, end := range c.ends {
		_ = end.Close()
	}
}

// Start listens on a free port of loopback. target is host:port or the path of a Unix socket.
func Start(target string) (*Proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // ends with Close
	if err != nil {
		return nil, err
	}
	p := &Proxy{listener: l, target: target, conns: make(map[*conn]struct{})}
	p.changed = sync.NewCond(&p.mu)
	p.running.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			p.running.Go(func() { p.serve(client) })
		}
	})
	return p, nil
}

// ForTest starts a proxy that lives as long as a test.
func ForTest(t *testing.T, target string) *Proxy {
	t.Helper()
	p, err := Start(target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// Addr is the listener's host:port.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// HoldAnswersAfter waits, once, for a connection on which the client sends match. The request passes, but
// from that moment the connection's responses are held until Set. The channel is then closed.
func (p *Proxy) HoldAnswersAfter(match []byte) (held <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.match, p.held = bytes.Clone(match), make(chan struct{})
	return p.held
}

// Set replaces the fault and forwards held responses. The zero value ends a fault. Half-open connections stay
// half-open.
func (p *Proxy) Set(f Fault) {
	p.change(func() {
		p.fault = f
		for c := range p.conns {
			c.holding = false
			c.applyDrops(f)
		}
	})
}

// Cut closes every present connection.
func (p *Proxy) Cut() {
	p.change(func() {
		for c := range p.conns {
			c.close()
		}
	})
}

// Close ends the listener and every connection, and waits for that.
func (p *Proxy) Close() error {
	err := p.listener.Close()
	p.change(func() { p.closed = true })
	p.Cut()
	p.running.Wait()
	return err
}

// change applies a change and wakes what waits for one.
func (p *Proxy) change(apply func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	apply()
	p.changed.Broadcast()
}

// serve forwards a connection until it has ended.
func (p *Proxy) serve(client net.Conn) {
	network := "tcp"
	if strings.HasPrefix(p.target, "/") {
		network = "unix"
	}
	target, err := net.DialTimeout(network, p.target, dialTimeout) //nolint:noctx // bounded
	if err != nil {
		_ = client.Close() // as if nothing listened
		return
	}
	c := &conn{ends: [2]net.Conn{client, target}}
	p.change(func() {
		p.conns[c] = struct{}{}
		c.applyDrops(p.fault)
		if p.closed {
			c.close()
		}
	})
	var both sync.WaitGroup
	for direction := range c.ends {
		both.Go(func() { p.forward(c, direction) })
	}
	both.Wait()
	p.change(func() {
		c.close()
		delete(p.conns, c)
	})
}

// forward copies one direction of a connection.
func (p *Proxy) forward(c *conn, direction int) {
	defer p.change(func() {
		if !c.drop[direction] {
			c.close()
		}
	})
	buffer := make([]byte, 64<<10)
	var tail []byte
	for {
		n, err := c.ends[direction].Read(buffer)
		if direction == requests {
			tail = p.findMatch(c, append(tail, buffer[:n]...))
		}
		if n > 0 && p.awaitForward(c, direction) {
			if _, err := c.ends[1-direction].Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// awaitForward waits until data may be forwarded. False drops it.
func (p *Proxy) awaitForward(c *conn, direction int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if delay := p.fault.Delay; delay > 0 {
		p.mu.Unlock()
		<-time.After(delay)
		p.mu.Lock()
	}
	for {
		switch {
		case c.closed || c.drop[direction]:
			return false
		case !p.fault.Paused && (direction == requests || !c.holding):
			return true
		}
		p.changed.Wait()
	}
}

// findMatch searches the requests of a connection for the match, which may be split between two reads. It
// returns the end of data that can be the beginning of a match.
func (p *Proxy) findMatch(c *conn, data []byte) (rest []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.match == nil {
		return nil
	}
	if bytes.Contains(data, p.match) {
		c.holding, p.match = true, nil
		close(p.held)
		return nil
	}
	return bytes.Clone(data[max(0, len(data)-len(p.match)+1):])
}
