// Package faultproxy is a TCP proxy for tests: it stands between two parts and does to their connections what networks and dying
// neighbours do. It holds back the answers of one part, so that a process can be killed at the very moment when its neighbour
// has done what it was asked and nobody told it so; it cuts, delays, stops for a while, or goes silent for good.
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

// dialTimeout bounds the wait for a target whose queue of connections is full.
const dialTimeout = 30 * time.Second

// Proxy forwards connections to a target. It is safe for concurrent use.
type Proxy struct {
	listener net.Listener
	target   string
	running  sync.WaitGroup

	mu      sync.Mutex
	changed chan struct{} // closed, and made anew, at each change of what follows
	conns   map[*conn]struct{}
	match   []byte // armed: what a client says before its answers are held
	held    chan struct{}
	late    time.Duration
	paused  bool
	deaf    ways // new connections are
}

// ways are the two of a connection: what the client says, and what it is answered.
type ways struct{ requests, answers bool }

// conn is one client's connection and its other half. What is not its own is guarded by the proxy's mutex.
type conn struct {
	proxy          *Proxy
	client, server net.Conn // server is nil for one that came to a deaf proxy
	ended          chan struct{}
	end            func()
	holding        bool // its answers
	deaf           ways
}

// Start listens on a free port of loopback and forwards what comes to target: host:port, or the path of a Unix socket.
func Start(target string) (*Proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // ends with Close
	if err != nil {
		return nil, err
	}
	p := &Proxy{listener: l, target: target, conns: make(map[*conn]struct{}), changed: make(chan struct{})}
	p.running.Go(p.accept)
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

// Addr is where it listens, host:port.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// HoldAnswersAfter arms the proxy once: the answers of the first connection on which a client says match from now on are
// held back from that moment, while what was said goes through. The channel is closed when that has happened.
func (p *Proxy) HoldAnswersAfter(match []byte) (held <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.match, p.held = bytes.Clone(match), make(chan struct{})
	return p.held
}

// Release lets held answers flow again, in their order.
func (p *Proxy) Release() {
	p.change(func() {
		for c := range p.conns {
			c.holding = false
		}
	})
}

// Delay lets everything arrive so much later from now on, each way; 0: at once again.
func (p *Proxy) Delay(late time.Duration) { p.change(func() { p.late = late }) }

// Pause stops everything, each way, on connections old and new, until Resume: a route that is gone for a while. Nothing is lost.
func (p *Proxy) Pause() { p.change(func() { p.paused = true }) }

// Resume ends a Pause.
func (p *Proxy) Resume() { p.change(func() { p.paused = false }) }

// Deafen makes the connections half-open: what is said on the present ones and on those that come is taken and reaches nobody,
// each way, and nobody is told. The target's side of the present ones stays, like that of a machine that lost its power.
func (p *Proxy) Deafen() { p.deafen(ways{requests: true, answers: true}) }

// DeafenServer is the half of Deafen: what clients say reaches nobody, what they are told comes through.
func (p *Proxy) DeafenServer() { p.deafen(ways{requests: true}) }

// DeafenClient is the other half: what clients say is done, and they do not hear of it.
func (p *Proxy) DeafenClient() { p.deafen(ways{answers: true}) }

func (p *Proxy) deafen(w ways) {
	p.change(func() {
		p.deaf = w
		for c := range p.conns {
			c.deaf = ways{c.deaf.requests || w.requests, c.deaf.answers || w.answers}
		}
	})
}

// Hear lets the connections that come from now on work. Those that were deafened stay so: whoever holds one must find out.
func (p *Proxy) Hear() { p.change(func() { p.deaf = ways{} }) }

// Cut drops every present connection.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.end()
	}
}

// Close ends the listener and every connection, and waits until all is over.
func (p *Proxy) Close() error {
	err := p.listener.Close()
	p.Cut()
	p.running.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// change changes what decides over the flow, and lets everybody look at it again.
func (p *Proxy) change(what func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	what()
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			p.Cut() // one may have come in beside Close
			return
		}
		ended := make(chan struct{})
		c := &conn{proxy: p, client: client, ended: ended}
		c.end = sync.OnceFunc(func() { close(ended); _ = client.Close() })
		p.mu.Lock()
		p.conns[c], c.deaf = struct{}{}, p.deaf
		p.mu.Unlock()
		p.running.Go(c.run)
	}
}

// run carries one connection until it has ended.
func (c *conn) run() {
	defer func() {
		c.end()
		c.proxy.mu.Lock()
		defer c.proxy.mu.Unlock()
		delete(c.proxy.conns, c)
	}()
	if deaf := c.isDeaf(); !deaf.requests || !deaf.answers {
		network := "tcp"
		if strings.HasPrefix(c.proxy.target, "/") {
			network = "unix"
		}
		server, err := net.DialTimeout(network, c.proxy.target, dialTimeout) //nolint:noctx // bounded
		if err != nil {
			return // as if nobody listened
		}
		c.server = server
	}
	var ways sync.WaitGroup
	ways.Go(func() { c.carry(c.client, c.server, false) })
	if c.server != nil {
		ways.Go(func() { c.carry(c.server, c.client, true) })
		<-c.ended
		_ = c.server.Close()
	}
	ways.Wait()
}

func (c *conn) isDeaf() ways {
	c.proxy.mu.Lock()
	defer c.proxy.mu.Unlock()
	return c.deaf
}

// carry takes what one side says to the other one, or to nobody.
func (c *conn) carry(from, to net.Conn, answers bool) {
	defer func() {
		if answers || c.server == nil || !c.isDeaf().requests {
			c.end() // a client that gives a deaf connection up tells the target nothing
		}
	}()
	buffer := make([]byte, 64<<10)
	var tail []byte
	for {
		n, err := from.Read(buffer)
		if n > 0 && !answers {
			tail = c.proxy.look(c, append(tail, buffer[:n]...))
		}
		if n > 0 && c.passes(answers) {
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// passes waits until what was read may go on; false: it reaches nobody.
func (c *conn) passes(answer bool) bool {
	waited := false
	for {
		c.proxy.mu.Lock()
		deaf, stopped, late, changed := c.deaf.requests, c.proxy.paused || answer && c.holding, c.proxy.late, c.proxy.changed
		if answer {
			deaf = c.deaf.answers
		}
		c.proxy.mu.Unlock()
		switch {
		case deaf:
			return false
		case stopped:
			select {
			case <-changed:
			case <-c.ended:
				return false
			}
		case waited || late == 0:
			return true
		default:
			waited = true
			timer := time.NewTimer(late)
			select {
			case <-timer.C:
			case <-c.ended:
				timer.Stop()
				return false
			}
		}
	}
}

// look holds the connection's answers where text, what a client said, holds the match, also over the border of two reads; it
// returns the end of text that may be a match's beginning.
func (p *Proxy) look(c *conn, text []byte) (rest []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.match == nil {
		return nil
	}
	if bytes.Contains(text, p.match) {
		c.holding = true
		close(p.held)
		p.match = nil
		return nil
	}
	return bytes.Clone(text[max(0, len(text)-len(p.match)+1):])
}
