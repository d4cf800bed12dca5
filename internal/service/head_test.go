package service

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
)

// echo answers with what it understood of a request. It reads no body at /unread.
func echo(w http.ResponseWriter, r *http.Request) {
	body := "unread"
	if r.URL.Path != "/unread" {
		data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
		body = fmt.Sprintf("%q %t", data, err == nil)
	}
	_, _ = fmt.Fprintf(w, "%s %s %d %s", r.Method, r.URL.Path, len(r.Header), body)
}

// bare serves without any bound, as net/http does.
func bare(tb testing.TB) net.Addr {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	server := &http.Server{
		Handler: closeAfterChunks(http.HandlerFunc(echo)), DisableGeneralOptionsHandler: true, ReadHeaderTimeout: time.Minute, ErrorLog: zap.NewStdLog(zap.NewNop()),
	}
	go func() { _ = server.Serve(l) }()
	tb.Cleanup(func() { _ = server.Close() })
	return l.Addr()
}

func bounded(tb testing.TB, max int, h http.HandlerFunc) (*Lifecycle, net.Addr) {
	tb.Helper()
	life := NewLifecycle(zap.NewNop())
	addr, err := life.Serve("SOME_ADDR", "127.0.0.1:0", max, h)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = life.Stop(time.Minute) })
	return life, addr
}

// transcript writes data in pieces, ends the sending side, and returns the answers until the server closes:
// status and body of each, "broken" for what is no answer.
func transcript(tb testing.TB, addr net.Addr, data []byte, piece int) (answers []string) {
	tb.Helper()
	conn, err := net.Dial("tcp", addr.String())
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	go func() {
		for len(data) > 0 {
			n := min(piece, len(data))
			if _, err := conn.Write(data[:n]); err != nil {
				return
			}
			data = data[n:]
		}
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.CloseWrite()
		}
	}()
	from := bufio.NewReader(conn)
	for {
		resp, err := http.ReadResponse(from, nil)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			tb.Fatalf("the connection stays open after %q", answers)
		}
		if err != nil {
			return answers
		}
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		answers = append(answers, fmt.Sprintf("%d %s", resp.StatusCode, body))
	}
}

func headers(n int) string {
	var b strings.Builder
	for i := range n {
		_, _ = fmt.Fprintf(&b, "%x:\r\n", i)
	}
	return b.String()
}

func TestServe_BoundsHeads(t *testing.T) {
	t.Parallel()
	const get, host = "GET / HTTP/1.1\r\n", "Host: x\r\n"
	ok := func(n int) string { return fmt.Sprintf(`200 GET / %d "" true`, n) }
	const tooLarge = "431 431 Request Header Fields Too Large"
	for name, tc := range map[string]struct {
		data string
		want []string
	}{
		"64 headers":                             {get + host + headers(63) + "\r\n", []string{ok(63)}},
		"65 headers":                             {get + host + headers(64) + "\r\n", []string{tooLarge}},
		"thousands of headers":                   {get + host + headers(6000) + "\r\n", []string{tooLarge}},
		"the same header hundreds of times":      {get + host + strings.Repeat("a:\r\n", 500) + "\r\n", []string{tooLarge}},
		"hundreds of folded lines":               {get + host + "a: b\r\n" + strings.Repeat(" c\r\n", 500) + "\r\n", []string{tooLarge}},
		"hundreds of lines without a carriage":   {get + host + strings.Repeat("a:\n", 500) + "\n", []string{tooLarge}},
		"a head that never ends":                 {get + host + headers(3000), []string{tooLarge}},
		"8 KiB":                                  {get + host + "A: " + strings.Repeat("a", 8<<10-len(get+host+"A: \r\n\r\n")) + "\r\n\r\n", []string{ok(1)}},
		"8 KiB and a byte":                       {get + host + "A: " + strings.Repeat("a", 8<<10-len(get+host+"A: \r\n\r\n")+1) + "\r\n\r\n", []string{tooLarge}},
		"a request line without an end":          {"GET /" + strings.Repeat("a", 1<<20), []string{tooLarge}},
		"blank lines without an end":             {strings.Repeat("\r\n", 1<<16), []string{"400 400 Bad Request"}},
		"a good request, then too many headers":  {get + host + "\r\n" + get + host + headers(4000) + "\r\n", []string{ok(0), tooLarge}},
		"two good requests":                      {get + host + "\r\n" + get + host + headers(60) + "\r\n", []string{ok(0), ok(60)}},
		"a body of many lines":                   {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2000\r\n\r\n" + strings.Repeat("\r\n", 1000) + get + host + "\r\n", []string{`200 POST / 1 "` + strings.Repeat(`\r\n`, 1000) + `" true`, ok(0)}},
		"a body that is not read, then headers":  {"POST /unread HTTP/1.1\r\nHost: x\r\nContent-Length: 300\r\n\r\n" + strings.Repeat("x", 300) + get + host + headers(65) + "\r\n", []string{"200 POST /unread 1 unread", tooLarge}},
		"a shorter body than what follows":       {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx" + get + host + headers(65) + "\r\n", []string{`200 POST / 1 "x" true`, tooLarge}},
		"an old client's line after its body":    {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx\r\n" + get + host + "\r\n", []string{`200 POST / 1 "x" true`, ok(0)}},
		"what follows a body in chunks":          {"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n" + get + host + headers(4000) + "\r\n", []string{`200 POST / 0 "x" true`}},
		"an expectation that is answered":        {"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx" + get + host + "\r\n", []string{"100 ", `200 POST / 2 "x" true`, ok(0)}},
		"options for the server":                 {"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n" + get + host + headers(65) + "\r\n", []string{`200 OPTIONS * 0 "" true`, tooLarge}},
		"a carriage return more in a blank line": {get + host + "\r\r\n\r\n", []string{"400 400 Bad Request"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			life, addr := bounded(t, 20, echo)
			last, refused := tc.want[len(tc.want)-1], 0
			for _, piece := range []int{1 << 20, 1000, 7, 1} {
				if piece < 1000 && len(tc.data) > 20_000 {
					continue
				}
				got := transcript(t, addr, []byte(tc.data), piece)
				// A client that goes on sending may lose the last answer: its system drops it with the
				// connection.
				all, fewer := fmt.Sprintf("%q", tc.want), fmt.Sprintf("%q", tc.want[:len(tc.want)-1])
				if text := fmt.Sprintf("%q", got); text != all && (last != tooLarge || text != fewer) {
					t.Errorf("in pieces of %d: answers = %.300s, want %.300s", piece, text, all)
				}
				if last == tooLarge {
					refused++
				}
			}
			if got := int(testutil.ToFloat64(life.dropped.WithLabelValues("some", droppedHead))); got != refused {
				t.Errorf("dropped{reason=%q} = %d, want %d", droppedHead, got, refused)
			}
		})
	}
}

// A listener with bounds reads what is within them as net/http reads it alone.
func FuzzServe_AgreesWithNetHTTP(f *testing.F) {
	for _, seed := range []string{
		"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcGET /unread HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST / HTTP/1.1\nHost: x\nContent-Length: 3\n\nabc\r\nGET / HTTP/1.0\n\n",
		"POST /unread HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nab\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: x\r\nExpect: other\r\nContent-Length: 2\r\n\r\nab",
		"OPTIONS * HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n\nA\n\n",
		"A\n\nGET / HTTP/1.1\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"CONNECT x:1 HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nabcdGET / HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		f.Add([]byte(seed), 5)
	}
	plain := bare(f)
	_, addr := bounded(f, 20, echo)
	f.Fuzz(func(t *testing.T, data []byte, piece int) {
		if len(data) > maxHeadBytes || bytes.Count(data, []byte("\n")) >= maxHeadLines {
			t.Skip("over the bounds")
		}
		piece = max(1, min(piece, 5000))
		want, got := transcript(t, plain, data, piece), transcript(t, addr, data, piece)
		if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
			t.Errorf("in pieces of %d: answers = %q, want %q", piece, got, want)
		}
	})
}

// With a request being answered on every connection there is no one to close: the newest is.
func TestServe_RefusesConnectionsBeyondTheBusyOnes(t *testing.T) {
	t.Parallel()
	begun, release := make(chan struct{}), make(chan struct{})
	life, addr := bounded(t, 2, func(http.ResponseWriter, *http.Request) { begun <- struct{}{}; <-release })
	busy := make(chan []string)
	for range 2 {
		go func() { busy <- transcript(t, addr, []byte("GET / HTTP/1.0\r\n\r\n"), 100) }()
		<-begun
	}
	for range 3 {
		if got := transcript(t, addr, []byte("GET / HTTP/1.0\r\n\r\n"), 100); len(got) > 0 {
			t.Errorf("answers = %q, want none", got)
		}
	}
	close(release)
	for range 2 {
		if got := <-busy; len(got) != 1 {
			t.Errorf("answers = %q, want one", got)
		}
	}
	if got := testutil.ToFloat64(life.dropped.WithLabelValues("some", droppedFull)); got != 3 {
		t.Errorf("dropped{reason=%q} = %v, want 3", droppedFull, got)
	}
}
