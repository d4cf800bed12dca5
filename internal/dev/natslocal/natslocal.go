// Package natslocal runs a nats-server with JetStream inside the process: for tests and the local stack. The production
// binaries hold the client alone.
package natslocal

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// Options say how to run a server. The zero value is a throw-away one for tests.
type Options struct {
	Addr         string // "": a free port on 127.0.0.1
	StoreDir     string // kept between starts; "": a temporary folder that Stop removes
	MaxFileStore int64  // bytes for all streams; 0: 8 GiB
	ConfigFile   string // a nats-server configuration; Addr and StoreDir win over it
}

// Server is a running nats-server.
type Server struct {
	server    *server.Server
	dir       string
	temporary bool
}

const startTimeout = 20 * time.Second

// Start runs a server and returns when it takes connections.
func Start(o Options) (*Server, error) {
	options := &server.Options{}
	if o.ConfigFile != "" {
		if err := options.ProcessConfigFile(o.ConfigFile); err != nil {
			return nil, fmt.Errorf("natslocal: %w", err)
		}
	}
	options.NoSigs, options.NoLog, options.JetStream = true, true, true
	options.Host, options.Port = "127.0.0.1", server.RANDOM_PORT
	if options.JetStreamMaxStore = o.MaxFileStore; o.MaxFileStore == 0 {
		options.JetStreamMaxStore = 8 << 30
	}
	if o.Addr != "" {
		host, port, err := net.SplitHostPort(o.Addr)
		if err != nil {
			return nil, fmt.Errorf("natslocal: %w", err)
		}
		options.Host = host
		if options.Port, err = strconv.Atoi(port); err != nil {
			return nil, fmt.Errorf("natslocal: %w", err)
		}
		l, err := net.Listen("tcp", o.Addr) //nolint:noctx // a look at a port of this machine
		if err != nil {
			return nil, fmt.Errorf("NATS cannot listen on %s, something else does: stop that or choose another address", o.Addr)
		}
		if err := l.Close(); err != nil {
			return nil, err
		}
	}
	s := &Server{dir: o.StoreDir, temporary: o.StoreDir == ""}
	if s.temporary {
		dir, err := os.MkdirTemp("", "natslocal")
		if err != nil {
			return nil, err
		}
		s.dir = dir
	}
	options.StoreDir = s.dir
	var err error
	if s.server, err = server.NewServer(options); err != nil {
		return nil, errors.Join(fmt.Errorf("natslocal: %w", err), s.remove())
	}
	s.server.Start()
	if !s.server.ReadyForConnections(startTimeout) {
		return nil, errors.Join(errors.New("natslocal: the server takes no connections"), s.Stop())
	}
	return s, nil
}

// URL is where clients connect.
func (s *Server) URL() string { return s.server.ClientURL() }

// Addr is the listener's address, to start again on.
func (s *Server) Addr() string { return s.server.Addr().String() }

// StoreDir holds the streams.
func (s *Server) StoreDir() string { return s.dir }

// Stop ends the server and waits. A later Start on the same address and folder has the same streams.
func (s *Server) Stop() error {
	s.server.Shutdown()
	s.server.WaitForShutdown()
	return s.remove()
}

func (s *Server) remove() error {
	if !s.temporary {
		return nil
	}
	return os.RemoveAll(s.dir)
}
