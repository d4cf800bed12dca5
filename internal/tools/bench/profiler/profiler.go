// Package profiler serves a binary's profiles. The production binaries do not import it: `make profile` adds
// a file that calls Serve by the compiler's -overlay.
package profiler

import (
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"runtime"
	"time"
)

// Serve serves the program's profiles on a loopback address until it ends. It turns on the profiles of
// blocking from 10 µs and of one in five contended locks. Without an address it does nothing.
func Serve(addr string) error {
	if addr == "" {
		return nil
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil || !net.ParseIP(host).IsLoopback() {
		return fmt.Errorf("serve profiles: %q is not a loopback address", addr)
	}
	l, err := net.Listen("tcp", addr) //nolint:noctx // as long as the program
	if err != nil {
		return err
	}
	runtime.SetBlockProfileRate(int(10 * time.Microsecond))
	runtime.SetMutexProfileFraction(5)
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = server.Serve(l) }() // ends with the program
	return nil
}
