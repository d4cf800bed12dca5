// Package faultproxy is a TCP proxy for tests. It does to connections what networks and crashing peers do: it
// cuts, delays, pauses and silently drops. It also holds the responses after a certain request, so that a
// process can be killed at the moment when its peer has done the work and the confirmation is still missing.
package faultproxy

import (
	"bytes"
	"errors"
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
	delay   time.Duration
	paused  bool
	drop    directions // of new connections
	closed  bool
}

// directions are the two of a connection.
type directions struct{ requests, responses bool }

// conn is a client's connection with the one to the target. The proxy's mutex guards holding and drop.
type conn struct {
	client, server net.Conn
	ended          chan struct{}
	close          func()
	holding        bool // responses
	drop           directions
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
// from that moment the connection's responses are held. The channel is then closed.
func (p *Proxy) HoldAnswersAfter(match []byte) (held <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.match, p.held = bytes.Clone(match), make(chan struct{})
	return p.held
}

// Release forwards held responses.
func (p *Proxy) Release() {
	p.change(func() {
		for c := range p.conns {
			c.holding = false
		}
	})
}

// Delay delays all data by a duration, each way; 0 ends it.
func (p *Proxy) Delay(delay time.Duration) { p.change(func() { p.delay = delay }) }

// Pause holds all data, each way, on present and new connections, until Resume. Nothing is lost.
func (p *Proxy) Pause() { p.change(func() { p.paused = true }) }

// Resume ends a Pause.
func (p *Proxy) Resume() { p.change(func() { p.paused = false }) }

// Drop makes connections half-open: requests, responses or both are read and dropped, on the present
// connections for good, on new ones until the next Drop. No side gets an error, and the target is not
// notified when the client closes.
func (p *Proxy) Drop(requests, responses bool) {
	p.change(func() {
		p.drop = directions{requests, responses}
		for c := range p.conns {
			c.drop = directions{c.drop.requests || requests, c.drop.responses || responses}
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
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
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
	server, err := p.dial()
	if err != nil {
		_ = client.Close() // as if nothing listened
		return
	}
	c := &conn{client: client, server: server, ended: make(chan struct{})}
	c.close = sync.OnceFunc(func() {
		close(c.ended)
		_ = client.Close()
		_ = server.Close()
	})
	p.change(func() {
		p.conns[c], c.drop = struct{}{}, p.drop
		if p.closed {
			c.close()
		}
	})
	var both sync.WaitGroup
	both.Go(func() {
		p.forward(c, client, server, false)
		p.change(func() {
			if !c.drop.requests { // else the target is not notified
				c.close()
			}
		})
	})
	both.Go(func() {
		p.forward(c, server, client, true)
		p.change(c.close)
	})
	both.Wait()
	p.change(func() { delete(p.conns, c) })
}

// dial connects to the target. A connection that drops everything gets a silent peer instead.
func (p *Proxy) dial() (net.Conn, error) {
	p.mu.Lock()
	drop := p.drop
	p.mu.Unlock()
	if drop.requests && drop.responses {
		silent, _ := net.Pipe()
		return silent, nil
	}
	network := "tcp"
	if strings.HasPrefix(p.target, "/") {
		network = "unix"
	}
	return net.DialTimeout(network, p.target, dialTimeout) //nolint:noctx // bounded
}

// forward copies one direction of a connection.
func (p *Proxy) forward(c *conn, from, to net.Conn, responses bool) {
	buffer := make([]byte, 64<<10)
	var tail []byte
	for {
		n, err := from.Read(buffer)
		if n > 0 && !responses {
			tail = p.look(c, append(tail, buffer[:n]...))
		}
		if n > 0 && p.passes(c, responses) {
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// passes waits until data may be forwarded. False drops it.
func (p *Proxy) passes(c *conn, responses bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.delay > 0 {
		delay := time.After(p.delay)
		p.mu.Unlock()
		select {
		case <-delay:
		case <-c.ended:
		}
		p.mu.Lock()
	}
	for {
		select {
		case <-c.ended:
			return false
		default:
		}
		switch {
		case responses && c.drop.responses, !responses && c.drop.requests:
			return false
		case !p.paused && (!responses || !c.holding):
			return true
		}
		p.changed.Wait()
	}
}

// look searches the requests of a connection for the match, which may be split between two reads. It returns
// the end of data that can be the beginning of a match.
func (p *Proxy) look(c *conn, data []byte) (rest []byte) {
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
