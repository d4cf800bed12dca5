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

// echo responds with what it read of a request. It does not read the body at /unread.
func echo(w http.ResponseWriter, r *http.Request) {
	body := "unread"
	if r.URL.Path != "/unread" {
		data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
		body = fmt.Sprintf("%q %t", data, err == nil)
	}
	_, _ = fmt.Fprintf(w, "%s %s %d %s", r.Method, r.URL.Path, len(r.Header), body)
}

// servePlain serves without limits.
func servePlain(tb testing.TB) net.Addr {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	server := &http.Server{
		Handler: closeAfterChunks(http.HandlerFunc(echo)), DisableGeneralOptionsHandler: true,
		ReadHeaderTimeout: time.Minute, ErrorLog: zap.NewStdLog(zap.NewNop()),
	}
	go func() { _ = server.Serve(l) }()
	tb.Cleanup(func() { _ = server.Close() })
	return l.Addr()
}

// serveLimited serves with the limits of connections and headers, without timeouts.
func serveLimited(tb testing.TB, max int, h http.HandlerFunc) (*Lifecycle, net.Addr) {
	tb.Helper()
	life := NewLifecycle(zap.NewNop())
	addr, err := life.Serve("SOME_ADDR", "127.0.0.1:0", max, h, withoutTimeouts)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := life.Stop(time.Minute); err != nil {
			tb.Error(err)
		}
	})
	return life, addr
}

// exchange writes data in pieces, closes the sending side, and returns status and body of each response until
// the server closes the connection.
func exchange(tb testing.TB, addr net.Addr, data []byte, piece int) (responses []string) {
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
			tb.Fatalf("the connection stays open after %q", responses)
		}
		if err != nil {
			return responses
		}
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		responses = append(responses, fmt.Sprintf("%d %s", resp.StatusCode, body))
	}
}

func headers(n int) string {
	var b strings.Builder
	for i := range n {
		_, _ = fmt.Fprintf(&b, "%x:\r\n", i)
	}
	return b.String()
}

func TestServe_LimitsHeaders(t *testing.T) {
	t.Parallel()
	const (
		get, host, end = "GET / HTTP/1.1\r\n", "Host: x\r\n", "\r\n"
		post           = "POST / HTTP/1.1\r\nHost: x\r\n"
		one            = post + "Content-Length: 1\r\n\r\nx"
		chunked        = post + "Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"
		expect         = post + "Expect: 100-continue\r\nContent-Length: 1\r\n\r\nx"
		options        = "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n"
		tooLarge       = "431 431 Request Header Fields Too Large"
		badRequest     = "400 400 Bad Request"
		gotOne         = `200 POST / 1 "x" true`
	)
	ok := func(n int) string { return fmt.Sprintf(`200 GET / %d "" true`, n) }
	sized := func(size int) string {
		return get + host + "A: " + strings.Repeat("a", size-len(get+host+"A: \r\n\r\n")) + "\r\n\r\n"
	}
	again := get + host + end
	tooMany := get + host + headers(65) + end
	unread := "POST /unread HTTP/1.1\r\nHost: x\r\nContent-Length: 300\r\n\r\n" + strings.Repeat("x", 300)
	blankLines := post + "Content-Length: 2000\r\n\r\n" + strings.Repeat("\r\n", 1000)
	gotBlankLines := `200 POST / 1 "` + strings.Repeat(`\r\n`, 1000) + `" true`
	for name, tc := range map[string]struct {
		data string
		want []string
	}{
		"64 headers":                  {get + host + headers(63) + end, []string{ok(63)}},
		"65 headers":                  {get + host + headers(64) + end, []string{tooLarge}},
		"6000 headers":                {get + host + headers(6000) + end, []string{tooLarge}},
		"one header 500 times":        {get + host + strings.Repeat("a:\r\n", 500) + end, []string{tooLarge}},
		"500 folded lines":            {get + "a: b\r\n" + strings.Repeat(" c\r\n", 500), []string{tooLarge}},
		"500 lines without CR":        {get + host + strings.Repeat("a:\n", 500) + "\n", []string{tooLarge}},
		"no end":                      {get + host + headers(3000), []string{tooLarge}},
		"8 KiB":                       {sized(8 << 10), []string{ok(1)}},
		"8 KiB and a byte":            {sized(8<<10 + 1), []string{tooLarge}},
		"a request line without end":  {"GET /" + strings.Repeat("a", 1<<20), []string{tooLarge}},
		"only blank lines":            {strings.Repeat("\r\n", 1<<16), []string{badRequest}},
		"a good request before":       {again + get + host + headers(4000) + end, []string{ok(0), tooLarge}},
		"two good requests":           {again + get + host + headers(60) + end, []string{ok(0), ok(60)}},
		"a body of blank lines":       {blankLines + again, []string{gotBlankLines, ok(0)}},
		"an unread body before":       {unread + tooMany, []string{"200 POST /unread 1 unread", tooLarge}},
		"a body before":               {one + tooMany, []string{gotOne, tooLarge}},
		"a blank line after the body": {one + end + again, []string{gotOne, ok(0)}},
		"a chunked body before":       {chunked + tooMany, []string{`200 POST / 0 "x" true`}},
		"100-continue":                {expect + again, []string{"100 ", `200 POST / 2 "x" true`, ok(0)}},
		"OPTIONS * before":            {options + tooMany, []string{`200 OPTIONS * 0 "" true`, tooLarge}},
		"a second CR in a blank line": {get + host + "\r\r\n\r\n", []string{badRequest}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			life, addr := serveLimited(t, 20, echo)
			last, rejected := tc.want[len(tc.want)-1], 0
			for _, piece := range []int{1 << 20, 1000, 7, 1} {
				if piece < 1000 && len(tc.data) > 20_000 {
					continue
				}
				// A client that is still sending when the connection is closed may not receive the last response.
				got := fmt.Sprintf("%q", exchange(t, addr, []byte(tc.data), piece))
				all, fewer := fmt.Sprintf("%q", tc.want), fmt.Sprintf("%q", tc.want[:len(tc.want)-1])
				if got != all && (last != tooLarge || got != fewer) {
					t.Errorf("in pieces of %d: responses = %.300s, want %.300s", piece, got, all)
				}
				if last == tooLarge {
					rejected++
				}
			}
			if got := int(testutil.ToFloat64(life.dropped.WithLabelValues("some", droppedHead))); got != rejected {
				t.Errorf("dropped{reason=%q} = %d, want %d", droppedHead, got, rejected)
			}
		})
	}
}

// Within the limits, requests are read as by net/http alone.
func FuzzServe_AgreesWithNetHTTP(f *testing.F) {
	for _, seed := range []string{
		"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcGET /unread HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST / HTTP/1.1\nHost: x\nContent-Length: 3\n\nabc\r\nGET / HTTP/1.0\n\n",
		"POST /unread HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n" +
			"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nab\r\n\r\n" +
			"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: x\r\nExpect: other\r\nContent-Length: 2\r\n\r\nab",
		"OPTIONS * HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n\nA\n\n",
		"A\n\nGET / HTTP/1.1\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"CONNECT x:1 HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nabcdGET / HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		f.Add([]byte(seed), 5)
	}
	plain := servePlain(f)
	_, addr := serveLimited(f, 20, echo)
	f.Fuzz(func(t *testing.T, data []byte, piece int) {
		if len(data) > maxHeaderBytes || bytes.Count(data, []byte("\n")) >= maxHeaderLines {
			t.Skip("over the limits")
		}
		piece = max(1, min(piece, 5000))
		want, got := exchange(t, plain, data, piece), exchange(t, addr, data, piece)
		if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
			t.Errorf("in pieces of %d: responses = %q, want %q", piece, got, want)
		}
	})
}

func TestServe_RefusesConnectionWhileAllOthersAreBusy(t *testing.T) {
	t.Parallel()
	started, release := make(chan struct{}), make(chan struct{})
	slow := func(http.ResponseWriter, *http.Request) { started <- struct{}{}; <-release }
	life, addr := serveLimited(t, 2, slow)
	busy := make(chan []string)
	for range 2 {
		go func() { busy <- exchange(t, addr, []byte("GET / HTTP/1.0\r\n\r\n"), 100) }()
		<-started
	}
	for range 3 {
		if got := exchange(t, addr, []byte("GET / HTTP/1.0\r\n\r\n"), 100); len(got) > 0 {
			t.Errorf("responses = %q, want none", got)
		}
	}
	close(release)
	for range 2 {
		if got := <-busy; len(got) != 1 {
			t.Errorf("responses = %q, want one", got)
		}
	}
	if got := testutil.ToFloat64(life.dropped.WithLabelValues("some", droppedFull)); got != 3 {
		t.Errorf("dropped{reason=%q} = %v, want 3", droppedFull, got)
	}
}
