package service

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// The bounds of a request's head. net/http bounds its bytes alone, and parses whatever fits into them:
// thousands of headers of a few bytes each take fifty times their size, for as long as the request lasts.
// Stripe sends a dozen headers in 700 bytes, and the proxies on the way some more.
const (
	maxHeadBytes = 8 << 10 // the request line and the headers
	maxHeadLines = 65      // the request line and 64 headers
)

// headConn is a connection that bounds the heads of its requests before net/http parses them. It hands over
// each head and each body apart, so that what a client sends ahead is not parsed, and not counted as a part
// of the request before it.
type headConn struct {
	net.Conn
	connections *connections

	mu      sync.Mutex
	spoke   bool        // it sent a byte
	part    part        // what is read next
	body    int64       // bytes of the body that were not handed over yet; negative: all that comes
	bytes   int         // of the head, up to here
	lines   int         // of the head, complete ones
	line    int         // bytes of its present line
	last    byte        // the byte before
	early   []byte      // handed over after a head's end, before the body's length was known
	ahead   []byte      // read from the client and not handed over yet
	buffer  *[4096]byte // holds ahead
	refused bool
}

type part int

const (
	inHead part = iota
	afterHead
	inBody
)

var (
	errHeadTooLarge = errors.New("the head of the request is too large")
	errHeadUnclear  = errors.New("the end of the head is unclear")
)

const answerTooLarge = "HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: text/plain; charset=utf-8\r\n" +
	"Connection: close\r\n\r\n431 Request Header Fields Too Large"

var buffers = sync.Pool{New: func() any { return new([4096]byte) }} //nolint:gochecknoglobals // shared by all connections

// Read implements net.Conn.
func (c *headConn) Read(p []byte) (int, error) {
	if n, err := c.readAhead(p); n > 0 || err != nil || len(p) == 0 {
		return n, err
	}
	n, err := c.Conn.Read(p)
	c.mu.Lock()
	defer c.mu.Unlock()
	if n > 0 && !c.spoke {
		c.spoke = true
		c.connections.spoke(c)
	}
	taken, wrong := c.take(p[:n])
	if wrong != nil {
		return 0, c.refuse(wrong)
	}
	if taken < n {
		c.keep(p[taken:n])
		return taken, nil // an error would come again after them
	}
	return n, err
}

// readAhead hands over what was read before.
func (c *headConn) readAhead(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refused {
		return 0, &net.OpError{Op: "read", Net: "tcp", Err: net.ErrClosed}
	}
	if len(c.ahead) == 0 {
		return 0, nil
	}
	n, wrong := c.take(c.ahead[:min(len(p), len(c.ahead))])
	if wrong != nil {
		return 0, c.refuse(wrong)
	}
	copy(p, c.ahead[:n])
	if c.ahead = c.ahead[n:]; len(c.ahead) == 0 {
		c.release()
	}
	return n, nil
}

// keep copies what is not to be handed over yet. One read of the server fills 4 KiB at most.
func (c *headConn) keep(rest []byte) {
	if c.buffer == nil {
		c.buffer, _ = buffers.Get().(*[4096]byte)
	}
	c.ahead = append(c.buffer[:0], rest...)
}

func (c *headConn) release() {
	if c.ahead = nil; c.buffer != nil {
		buffers.Put(c.buffer)
		c.buffer = nil
	}
}

// take returns how many of the bytes may be handed over now, at least one.
func (c *headConn) take(p []byte) (n int, err error) {
	if len(p) == 0 {
		return 0, nil
	}
	switch c.part {
	case inBody:
		if c.body < 0 {
			return len(p), nil
		}
		n = int(min(int64(len(p)), c.body))
		c.spend(n)
		return n, nil
	case afterHead:
		// The server watches for the connection's end by reading one byte. Had it not found the end of the
		// head where take did, it would read on here: neither of the two may then be believed.
		if len(c.early) > 0 {
			return 0, errHeadUnclear
		}
		c.early = append(c.early, p[0])
		return 1, nil
	default:
		return c.takeHead(p)
	}
}

// takeHead ends behind a blank line. Lines end and blank ones are known as by net/textproto.
func (c *headConn) takeHead(p []byte) (n int, err error) {
	for i, b := range p {
		if c.bytes++; c.bytes > maxHeadBytes {
			return 0, errHeadTooLarge
		}
		before := c.last
		c.last = b
		if b != '\n' {
			c.line++
			continue
		}
		blank := c.line == 0 || c.line == 1 && before == '\r'
		c.line = 0
		switch {
		case blank && c.lines > 0:
			c.part = afterHead
			return i + 1, nil
		case blank: // before a request line: the server decides
		case c.lines == maxHeadLines:
			return 0, errHeadTooLarge
		default:
			c.lines++
		}
	}
	return len(p), nil
}

// spend takes bytes off the body; behind its end there is the next head.
func (c *headConn) spend(n int) {
	if c.body -= int64(n); c.body == 0 {
		c.part, c.bytes, c.lines, c.line, c.last = inHead, 0, 0, 0, 0
	}
}

// expectBody sets the length of the body that follows the head; negative: it ends with the connection.
func (c *headConn) expectBody(length int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	early := c.early
	c.part, c.body, c.early = inBody, length, nil
	if length < 0 {
		return
	}
	c.spend(0)
	for len(early) > 0 && !c.refused {
		n, err := c.take(early)
		if err != nil {
			c.refused = true // one byte is no head: this cannot be
		}
		early = early[n:]
	}
}

// refuse answers a head that is not read on. The server takes the error for a lost connection and adds
// nothing.
func (c *headConn) refuse(cause error) error {
	c.refused = true
	c.release()
	c.connections.dropped(droppedHead)
	if errors.Is(cause, errHeadTooLarge) {
		_ = c.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = io.WriteString(c.Conn, answerTooLarge) // the client may be gone
		_ = c.CloseWrite()
	}
	return &net.OpError{Op: "read", Net: "tcp", Err: cause}
}

// CloseWrite ends the sending side, as the server does before it closes.
func (c *headConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// headListener accepts connections as headConn.
type headListener struct {
	net.Listener
	connections *connections
}

// Accept implements net.Listener.
func (l *headListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &headConn{Conn: c, connections: l.connections}, nil
}
