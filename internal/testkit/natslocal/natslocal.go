// Package natslocal runs a nats-server with JetStream inside the process: for tests and the local stack. The production
// binaries hold the client alone.
package natslocal

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// Options say how to run a server. The zero value is a throw-away one for tests.
type Options struct {
	Addr         string // "": a free port on 127.0.0.1
	StoreDir     string // kept between starts; "": a temporary folder that Stop removes
	MaxFileStore int64  // bytes for all streams; 0: the configuration's, else 8 GiB
	ConfigFile   string // a nats-server configuration; Addr and StoreDir win over it, and its monitoring port is not opened
	// Variables are those of the configuration, before the environment's.
	Variables map[string]string
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
	options, err := o.read()
	if err != nil {
		return nil, fmt.Errorf("natslocal: %w", err)
	}
	options.NoSigs, options.NoLog, options.JetStream = true, true, true
	options.Host, options.Port, options.HTTPPort = "127.0.0.1", server.RANDOM_PORT, 0
	switch {
	case o.MaxFileStore != 0:
		options.JetStreamMaxStore = o.MaxFileStore
	case options.JetStreamMaxStore <= 0:
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
	if s.server, err = server.NewServer(options); err != nil {
		return nil, errors.Join(fmt.Errorf("natslocal: %w", err), s.remove())
	}
	s.server.Start()
	if !s.server.ReadyForConnections(startTimeout) {
		return nil, errors.Join(errors.New("natslocal: the server takes no connections"), s.Stop())
	}
	return s, nil
}

// read returns what the configuration file says, if there is one.
func (o Options) read() (*server.Options, error) {
	options := &server.Options{}
	if o.ConfigFile == "" {
		return options, nil
	}
	text, err := os.ReadFile(o.ConfigFile)
	if err != nil {
		return nil, err
	}
	var variables strings.Builder
	for name, value := range o.Variables {
		_, _ = fmt.Fprintf(&variables, "%s: %q\n", name, value)
	}
	return options, options.ProcessConfigString(variables.String() + string(text))
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
