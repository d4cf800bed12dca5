package service

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
)

// idle opens connections that ask for nothing, but for the last: its answer says that all were accepted, in their order.
func idle(t *testing.T, addr net.Addr, n int) []net.Conn {
	t.Helper()
	list := make([]net.Conn, n)
	for i := range list {
		c, err := net.Dial("tcp", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		list[i] = c
	}
	if status := ask(t, list[n-1]); status != http.StatusOK {
		t.Errorf("a new client: %d", status)
	}
	return list
}

// ask sends a request over an open connection and returns the answer's status.
func ask(t *testing.T, c net.Conn) int {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		return 0
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	return resp.StatusCode
}

// Idle connections drive out each other, the oldest first, and neither a new client nor one that is being answered.
func TestBoundedConnections(t *testing.T) {
	const most = 20
	life := NewLifecycle(zap.NewNop())
	begun, release := make(chan struct{}), make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("/held", func(http.ResponseWriter, *http.Request) { close(begun); <-release })
	addr, err := life.Serve("SOME_ADDR", "127.0.0.1:0", most, mux)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := life.Stop(time.Minute); err != nil {
			t.Error(err)
		}
	})
	held := make(chan int)
	go func() {
		resp, err := http.Get("http://" + addr.String() + "/held")
		if err != nil {
			held <- 0
			return
		}
		_ = resp.Body.Close()
		held <- resp.StatusCode
	}()
	<-begun
	kept := idle(t, addr, 1)[0]
	list := idle(t, addr, most-2)
	if status := ask(t, kept); status != http.StatusOK { // the bound is reached, not passed; now it is the youngest
		t.Errorf("at the bound: %d", status)
	}
	list = append(list, idle(t, addr, most-3)...)
	for _, c := range list[:most-3] {
		_ = c.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("an idle connection that was too many: %v", err)
		}
	}
	if status := ask(t, kept); status != http.StatusOK {
		t.Errorf("a client that had asked after them: %d", status)
	}
	for range 3 * most { // headers that never end are the larger crowd now, and drive out themselves
		c := idle(t, addr, 1)[0]
		if _, err := c.Write([]byte("GET / HT")); err != nil {
			t.Fatal(err)
		}
	}
	idle(t, addr, 1)
	close(release)
	if status := <-held; status != http.StatusOK {
		t.Errorf("the one that was being answered: %d", status)
	}
	if got := testutil.ToFloat64(life.dropped.WithLabelValues("some", droppedNewer)); got != 4*most-2 {
		t.Errorf("dropped = %v, want %d", got, 4*most-2)
	}
}
