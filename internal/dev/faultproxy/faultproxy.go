// Package faultproxy is a TCP proxy for tests: it stands between two parts and holds back the answers of one of them, or cuts
// what is between them. So a process can be killed at the very moment when its neighbour has done what it was asked, and
// nobody told it so.
package faultproxy

import (
	"bytes"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
)

// Proxy forwards connections to a target. It is safe for concurrent use.
type Proxy struct {
	listener net.Listener
	target   string
	running  sync.WaitGroup

	mu    sync.Mutex
	conns map[*conn]struct{}
	match []byte // armed: what a client says before its answers are held
	held  chan struct{}
}

// conn is one client's connection and its other half. Its answers flow while holding is false.
type conn struct {
	client, server net.Conn
	flow           *sync.Cond
	holding, ended bool
}

// Start listens on a free port of loopback and forwards what comes to target: host:port, or the path of a Unix socket.
func Start(target string) (*Proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // ends with Close
	if err != nil {
		return nil, err
	}
	p := &Proxy{listener: l, target: target, conns: make(map[*conn]struct{})}
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
	for _, c := range p.open() {
		c.set(func() { c.holding = false })
	}
}

// Cut drops every present connection.
func (p *Proxy) Cut() {
	for _, c := range p.open() {
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

func (p *Proxy) open() []*conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := make([]*conn, 0, len(p.conns))
	for c := range p.conns {
		list = append(list, c)
	}
	return list
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			p.Cut() // one may have come in beside Close
			return
		}
		network := "tcp"
		if strings.HasPrefix(p.target, "/") {
			network = "unix"
		}
		server, err := net.Dial(network, p.target) //nolint:noctx // this machine: it answers at once
		if err != nil {
			_ = client.Close() // as if nobody listened
			continue
		}
		c := &conn{client: client, server: server, flow: sync.NewCond(&sync.Mutex{})}
		p.mu.Lock()
		p.conns[c] = struct{}{}
		p.mu.Unlock()
		p.running.Go(func() { p.requests(c) })
		p.running.Go(func() {
			c.answers()
			p.mu.Lock()
			defer p.mu.Unlock()
			delete(p.conns, c)
		})
	}
}

// requests carries what the client says, and looks for the match in it, also over the border of two reads.
func (p *Proxy) requests(c *conn) {
	defer c.end()
	buffer := make([]byte, 64<<10)
	var tail []byte
	for {
		n, err := c.client.Read(buffer)
		if n > 0 {
			tail = append(tail, buffer[:n]...)
			tail = p.look(c, tail)
			if _, err := c.server.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// look holds the connection's answers where text holds the match, and returns the end of text that may be a match's beginning.
func (p *Proxy) look(c *conn, text []byte) (rest []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.match == nil {
		return nil
	}
	if bytes.Contains(text, p.match) {
		c.set(func() { c.holding = true })
		close(p.held)
		p.match = nil
		return nil
	}
	return bytes.Clone(text[max(0, len(text)-len(p.match)+1):])
}

// answers carries what the server says, while it may.
func (c *conn) answers() {
	defer c.end()
	buffer := make([]byte, 64<<10)
	for {
		n, err := c.server.Read(buffer)
		if n > 0 {
			c.flow.L.Lock()
			for c.holding && !c.ended {
				c.flow.Wait()
			}
			ended := c.ended
			c.flow.L.Unlock()
			if ended {
				return
			}
			if _, err := c.client.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (c *conn) set(change func()) {
	c.flow.L.Lock()
	change()
	c.flow.L.Unlock()
	c.flow.Broadcast()
}

func (c *conn) end() {
	c.set(func() { c.ended = true })
	_ = c.client.Close() // ended is ended
	_ = c.server.Close()
}
