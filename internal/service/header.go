package service

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// Limits of a request's header, with the request line. net/http limits only its bytes: thousands of tiny
// headers take fifty times their size once parsed. Stripe sends a dozen headers in 700 bytes, proxies add a
// few.
const (
	maxHeaderBytes = 8 << 10
	maxHeaderLines = 65
)

// headerConn limits the headers of requests before net/http parses them. It returns each header and each body
// from a separate Read, so that pipelined requests are not parsed early and not counted as part of the
// request before them.
type headerConn struct {
	net.Conn
	connections *connections

	mu           sync.Mutex
	receivedByte bool
	state        headerState
	bodyLeft     int64       // bytes of the body that were not returned yet; negative: until the connection ends
	bytes        int         // of the header so far
	lines        int         // complete lines of the header
	lineBytes    int         // of the current line
	last         byte        // the previous byte
	preBody      []byte      // returned after a header, before the length of its body was known
	pending      []byte      // received, but not returned yet
	buffer       *[4096]byte // holds pending
	rejected     bool
}

type headerState int

const (
	inHeader headerState = iota
	afterHeader
	inBody
)

var (
	errHeaderTooLarge  = errors.New("request header too large")
	errHeaderAmbiguous = errors.New("end of request header is ambiguous")
)

const responseTooLarge = "HTTP/1.1 431 Request Header Fields Too Large\r\n" +
	"Content-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n431 Request Header Fields Too Large"

//nolint:gochecknoglobals // shared by all connections
var buffers = sync.Pool{New: func() any { return new([4096]byte) }}

// Read implements net.Conn.
func (c *headerConn) Read(p []byte) (int, error) {
	if n, err := c.readPending(p); n > 0 || err != nil || len(p) == 0 {
		return n, err
	}
	n, err := c.Conn.Read(p)
	c.mu.Lock()
	defer c.mu.Unlock()
	if n > 0 && !c.receivedByte {
		c.receivedByte = true
		c.connections.received(c)
	}
	allowed, invalid := c.allow(p[:n])
	if invalid != nil {
		return 0, c.reject(invalid)
	}
	if allowed < n {
		c.setPending(p[allowed:n])
		return allowed, nil // the next Read returns err again
	}
	return n, err
}

func (c *headerConn) readPending(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rejected {
		return 0, &net.OpError{Op: "read", Net: "tcp", Err: net.ErrClosed}
	}
	if len(c.pending) == 0 {
		return 0, nil
	}
	n, invalid := c.allow(c.pending[:min(len(p), len(c.pending))])
	if invalid != nil {
		return 0, c.reject(invalid)
	}
	copy(p, c.pending[:n])
	if c.pending = c.pending[n:]; len(c.pending) == 0 {
		c.releasePending()
	}
	return n, nil
}

// setPending copies rest, which fits: the server reads at most 4 KiB.
func (c *headerConn) setPending(rest []byte) {
	if c.buffer == nil {
		c.buffer, _ = buffers.Get().(*[4096]byte)
	}
	c.pending = append(c.buffer[:0], rest...)
}

func (c *headerConn) releasePending() {
	if c.pending = nil; c.buffer != nil {
		buffers.Put(c.buffer)
		c.buffer = nil
	}
}

// allow returns how many bytes of p, at least one, may be returned now.
func (c *headerConn) allow(p []byte) (n int, err error) {
	if len(p) == 0 {
		return 0, nil
	}
	switch c.state {
	case inBody:
		if c.bodyLeft < 0 {
			return len(p), nil
		}
		n = int(min(int64(len(p)), c.bodyLeft))
		c.consumeBody(n)
		return n, nil
	case afterHeader:
		// The server reads one byte to detect a closed connection. A second one means that it did not find the
		// header's end where scanHeader did.
		if len(c.preBody) > 0 {
			return 0, errHeaderAmbiguous
		}
		c.preBody = append(c.preBody, p[0])
		return 1, nil
	default:
		return c.scanHeader(p)
	}
}

// scanHeader stops after a blank line. Its rules for line ends and blank lines are those of net/textproto.
func (c *headerConn) scanHeader(p []byte) (n int, err error) {
	for i, b := range p {
		if c.bytes++; c.bytes > maxHeaderBytes {
			return 0, errHeaderTooLarge
		}
		previous := c.last
		c.last = b
		if b != '\n' {
			c.lineBytes++
			continue
		}
		blank := c.lineBytes == 0 || c.lineBytes == 1 && previous == '\r'
		c.lineBytes = 0
		switch {
		case blank && c.lines > 0:
			c.state = afterHeader
			return i + 1, nil
		case blank: // before the request line: the server decides
		case c.lines == maxHeaderLines:
			return 0, errHeaderTooLarge
		default:
			c.lines++
		}
	}
	return len(p), nil
}

// consumeBody counts n bytes of the body. A header follows its end.
func (c *headerConn) consumeBody(n int) {
	if c.bodyLeft -= int64(n); c.bodyLeft == 0 {
		c.state, c.bytes, c.lines, c.lineBytes, c.last = inHeader, 0, 0, 0, 0
	}
}

// expectBody sets the length of the body that follows the header; negative: until the connection ends.
func (c *headerConn) expectBody(length int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	preBody := c.preBody
	c.state, c.bodyLeft, c.preBody = inBody, length, nil
	if length < 0 {
		return
	}
	c.consumeBody(0)
	for len(preBody) > 0 && !c.rejected {
		n, err := c.allow(preBody)
		if err != nil {
			c.rejected = true // unreachable: one byte is within the limits
		}
		preBody = preBody[n:]
	}
}

// reject responds with 431 to a header that is too large. The server takes the error for a lost connection
// and does not respond itself.
func (c *headerConn) reject(cause error) error {
	c.rejected = true
	c.releasePending()
	c.connections.dropped(droppedHead)
	if errors.Is(cause, errHeaderTooLarge) {
		_ = c.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = io.WriteString(c.Conn, responseTooLarge) // the client may be gone
		_ = c.CloseWrite()
	}
	return &net.OpError{Op: "read", Net: "tcp", Err: cause}
}

// CloseWrite closes the sending side, as the server does before it closes the connection.
func (c *headerConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// headerListener accepts connections as headerConn.
type headerListener struct {
	net.Listener
	connections *connections
}

// Accept implements net.Listener.
func (l *headerListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &headerConn{Conn: c, connections: l.connections}, nil
}
