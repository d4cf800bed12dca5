package faultproxy_test

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"purchase-relay/internal/testkit/faultproxy"
)

// echo answers each line x with <x>, and sends it on received.
func echo(t *testing.T) (addr string, received chan string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	received = make(chan string, 100)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				for lines := bufio.NewScanner(c); lines.Scan(); {
					received <- lines.Text()
					_, _ = fmt.Fprintf(c, "<%s>\n", lines.Text())
				}
			}()
		}
	}()
	return l.Addr().String(), received
}

type client struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Reader
}

func dial(t *testing.T, p *faultproxy.Proxy) client {
	t.Helper()
	c, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return client{t, c, bufio.NewReader(c)}
}

func (c client) send(text string) {
	c.t.Helper()
	if _, err := c.conn.Write([]byte(text)); err != nil {
		c.t.Fatal(err)
	}
}

func (c client) read(limit time.Duration) (string, error) {
	c.t.Helper()
	if err := c.conn.SetReadDeadline(time.Now().Add(limit)); err != nil {
		c.t.Fatal(err)
	}
	return c.in.ReadString('\n')
}

func (c client) expect(want string) {
	c.t.Helper()
	if got, err := c.read(time.Minute); err != nil || got != want+"\n" {
		c.t.Errorf("received %q, %v, want %q", got, err, want)
	}
}

// expectSilence looks for a moment: a response that is dropped or held would otherwise come immediately.
func (c client) expectSilence() {
	c.t.Helper()
	if got, err := c.read(30 * time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		c.t.Errorf("received %q, %v, want nothing", got, err)
	}
}

func (c client) expectEnd() {
	c.t.Helper()
	if got, err := c.read(time.Minute); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		c.t.Errorf("received %q, %v, want a closed connection", got, err)
	}
}

func expectReceived(t *testing.T, received chan string, want ...string) {
	t.Helper()
	for _, want := range want {
		if got := <-received; got != want {
			t.Errorf("target received %q, want %q", got, want)
		}
	}
	if n := len(received); n > 0 {
		t.Errorf("target received %d more lines", n)
	}
}

func TestProxy_HoldAnswersAfter(t *testing.T) {
	t.Parallel()
	addr, received := echo(t)
	p := faultproxy.ForTest(t, addr)
	a, b := dial(t, p), dial(t, p)
	held := p.HoldAnswersAfter([]byte("commit"))
	a.send("please com") // split between two writes
	b.send("other\n")
	b.expect("<other>")
	a.send("mit\n")
	<-held
	a.send("later\n")
	expectReceived(t, received, "other", "please commit", "later")
	a.expectSilence()
	p.Set(faultproxy.Fault{})
	a.expect("<please commit>")
	a.expect("<later>")
	b.send("commit\n") // only the first match counts
	b.expect("<commit>")
}

func TestProxy_Cut(t *testing.T) {
	t.Parallel()
	addr, _ := echo(t)
	for name, fault := range map[string]faultproxy.Fault{
		"held": {}, "paused": {Paused: true}, "half-open": {DropRequests: true, DropResponses: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := faultproxy.ForTest(t, addr)
			c := dial(t, p)
			c.send("first\n") // then the connection is one of the proxy's
			c.expect("<first>")
			p.Set(fault)
			p.HoldAnswersAfter([]byte("x"))
			c.send("x\n")
			c.expectSilence()
			p.Cut()
			c.expectEnd()
		})
	}
}

func TestProxy_PauseLosesNothing(t *testing.T) {
	t.Parallel()
	addr, received := echo(t)
	p := faultproxy.ForTest(t, addr)
	present := dial(t, p)
	present.send("one\n")
	present.expect("<one>")
	p.Set(faultproxy.Fault{Paused: true})
	fresh := dial(t, p)
	present.send("two\n")
	fresh.send("three\n")
	present.expectSilence()
	fresh.expectSilence()
	expectReceived(t, received, "one")
	p.Set(faultproxy.Fault{})
	present.expect("<two>")
	fresh.expect("<three>")
}

func TestProxy_Delay(t *testing.T) {
	t.Parallel()
	addr, _ := echo(t)
	p := faultproxy.ForTest(t, addr)
	c := dial(t, p)
	p.Set(faultproxy.Fault{Delay: 30 * time.Millisecond})
	began := time.Now()
	c.send("one\n")
	c.expect("<one>")
	if took := time.Since(began); took < 60*time.Millisecond {
		t.Errorf("there and back in %s, want at least 60ms", took)
	}
}

// Dropping lasts as long as a connection; new ones work after that.
func TestProxy_Drop(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ requests, responses bool }{
		"both":      {true, true},
		"requests":  {true, false},
		"responses": {false, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr, received := echo(t)
			p := faultproxy.ForTest(t, addr)
			present := dial(t, p)
			present.send("before\n")
			present.expect("<before>")
			expectReceived(t, received, "before")
			p.Set(faultproxy.Fault{DropRequests: tc.requests, DropResponses: tc.responses})
			clients := []client{present, dial(t, p)}
			expectDropped := func(c client, text string) {
				t.Helper()
				if !tc.requests {
					expectReceived(t, received, text)
				}
				c.expectSilence()
			}
			for _, c := range clients {
				read := p.HoldAnswersAfter([]byte("dropped"))
				c.send("dropped\n")
				<-read // then the connection is one of the proxy's
				expectDropped(c, "dropped")
			}
			p.Set(faultproxy.Fault{}) // would also forward a held response
			for _, c := range clients {
				c.send("still dropped\n")
				expectDropped(c, "still dropped")
			}
			after := dial(t, p)
			after.send("after\n")
			after.expect("<after>")
			expectReceived(t, received, "after")
		})
	}
}
