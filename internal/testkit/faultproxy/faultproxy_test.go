package faultproxy_test

import (
	"bufio"
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"purchase-relay/internal/testkit/faultproxy"
)

// echo answers each line with itself in upper case brackets, and tells what it heard.
func echo(t *testing.T) (addr string, heard chan string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	heard = make(chan string, 100)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				for lines := bufio.NewScanner(c); lines.Scan(); {
					heard <- lines.Text()
					if _, err := fmt.Fprintf(c, "<%s>\n", lines.Text()); err != nil {
						return
					}
				}
			}()
		}
	}()
	return l.Addr().String(), heard
}

type client struct {
	t *testing.T
	net.Conn
	lines *bufio.Reader
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

func (c client) say(text string) {
	c.t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		c.t.Fatal(err)
	}
}

func (c client) expect(line string) {
	c.t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		c.t.Fatal(err)
	}
	if got, err := c.lines.ReadString('\n'); err != nil || got != line+"\n" {
		c.t.Errorf("got %q, %v; want %q", got, err, line)
	}
}

// The request goes through, its answer does not until it is released; other connections flow.
func TestHoldAnswersAfter(t *testing.T) {
	addr, heard := echo(t)
	p := faultproxy.ForTest(t, addr)
	a, b := dial(t, p), dial(t, p)
	a.say("one\n")
	a.expect("<one>")
	held := p.HoldAnswersAfter([]byte("commit"))
	b.say("two\n")
	b.expect("<two>")
	a.say("please com") // over two writes
	a.say("mit now\n")
	<-held
	for _, want := range []string{"one", "two", "please commit now"} {
		if got := <-heard; got != want {
			t.Errorf("the target heard %q, want %q", got, want)
		}
	}
	b.say("three\n")
	b.expect("<three>")
	a.say("four\n")
	if got := []string{<-heard, <-heard}; got[0] != "three" || got[1] != "four" {
		t.Errorf("the target heard %q", got)
	}
	if err := a.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := a.lines.Peek(1); err == nil {
		t.Errorf("a held answer came through: %q", n)
	}
	p.Release()
	a.expect("<please commit now>")
	a.expect("<four>")
	b.say("commit\n") // it was armed once
	b.expect("<commit>")
}

func TestCutWakesTheHeld(t *testing.T) {
	addr, heard := echo(t)
	p := faultproxy.ForTest(t, addr)
	c := dial(t, p)
	held := p.HoldAnswersAfter([]byte("x"))
	c.say("x\n")
	<-held
	<-heard
	p.Cut()
	if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if line, err := c.lines.ReadString('\n'); err == nil {
		t.Errorf("a cut connection said %q", line)
	} else if timeout, ok := err.(net.Error); ok && timeout.Timeout() { //nolint:errorlint // as it comes from the socket
		t.Error("it was not cut")
	}
	d := dial(t, p) // the next one is whole
	d.say("y\n")
	d.expect("<y>")
}

func TestTargetAway(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	c := dial(t, faultproxy.ForTest(t, addr))
	if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.lines.ReadByte(); err == nil {
		t.Error("nobody answered")
	}
}

func (c client) silent(sentence string) {
	c.t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		c.t.Fatal(err)
	}
	if n, err := c.lines.Peek(1); err == nil {
		c.t.Errorf("%s: %q came through", sentence, n)
	} else if timeout, ok := err.(net.Error); !ok || !timeout.Timeout() { //nolint:errorlint // as it comes from the socket
		c.t.Errorf("%s: it ended: %v", sentence, err)
	}
}

func TestPauseLosesNothing(t *testing.T) {
	addr, heard := echo(t)
	p := faultproxy.ForTest(t, addr)
	a := dial(t, p)
	a.say("one\n")
	a.expect("<one>")
	p.Pause()
	b := dial(t, p)
	a.say("two\n")
	b.say("three\n")
	a.silent("an old connection")
	b.silent("a new connection")
	if len(heard) != 1 {
		t.Errorf("the target heard %d lines", len(heard))
	}
	p.Resume()
	a.expect("<two>")
	b.expect("<three>")
}

func TestDelay(t *testing.T) {
	addr, _ := echo(t)
	p := faultproxy.ForTest(t, addr)
	a := dial(t, p)
	p.Delay(30 * time.Millisecond)
	began := time.Now()
	a.say("one\n")
	a.expect("<one>")
	if took := time.Since(began); took < 60*time.Millisecond {
		t.Errorf("there and back in %s", took)
	}
	p.Delay(0)
	a.say("two\n")
	a.expect("<two>")
}

// What is deaf stays deaf, and the target is not told; what comes later works.
func TestDeafenIsHalfOpen(t *testing.T) {
	addr, heard := echo(t)
	p := faultproxy.ForTest(t, addr)
	a := dial(t, p)
	a.say("one\n")
	a.expect("<one>")
	p.Deafen()
	b := dial(t, p)
	a.say("two\n")
	b.say("three\n")
	a.silent("an old connection")
	b.silent("a new connection")
	p.Hear()
	a.say("four\n")
	b.say("five\n")
	a.silent("an old connection, later")
	b.silent("a new connection, later")
	c := dial(t, p)
	c.say("six\n")
	c.expect("<six>")
	if got := []string{<-heard, <-heard}; got[0] != "one" || got[1] != "six" || len(heard) > 0 {
		t.Errorf("the target heard %q and %d more", got, len(heard))
	}
	p.Cut()
	if err := a.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := a.lines.ReadByte(); err == nil {
		t.Error("a deaf connection spoke")
	} else if timeout, ok := err.(net.Error); ok && timeout.Timeout() { //nolint:errorlint // as it comes from the socket
		t.Error("a deaf connection cannot be cut")
	}
}

// Half of it: what is said is done and not answered; or what is said is lost, and what comes by itself is heard.
func TestDeafenOneWay(t *testing.T) {
	addr, heard := echo(t)
	p := faultproxy.ForTest(t, addr)
	a := dial(t, p)
	p.DeafenClient()
	b := dial(t, p)
	a.say("one\n")
	b.say("two\n")
	got := []string{<-heard, <-heard}
	if slices.Sort(got); got[0] != "one" || got[1] != "two" {
		t.Errorf("the target heard %q", got)
	}
	a.silent("an old connection")
	b.silent("a new connection")
	p.Hear()
	p.DeafenServer()
	c := dial(t, p)
	c.say("three\n")
	a.say("four\n") // deaf both ways by now
	c.silent("a connection to a deaf server")
	a.silent("one that is deaf both ways")
	if len(heard) > 0 {
		t.Errorf("a deaf target heard %q", <-heard)
	}
}
