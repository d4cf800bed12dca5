// Package natslocal runs a nats-server with JetStream inside the process: for tests and the local stack. The
// production binaries hold the client alone.
package natslocal

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"purchase-relay/internal/testkit/freeport"
)

// Options configure a server. The zero value is a throw-away one for tests.
type Options struct {
	Addr       string            // "": a free port on 127.0.0.1
	StoreDir   string            // kept between starts; "": a temporary folder that Stop removes
	ConfigFile string            // a nats-server configuration; its listeners are not opened
	Variables  map[string]string // the configuration's; they precede the environment's
}

// Server is a running nats-server.
type Server struct {
	server    *server.Server
	temporary string // the folder that Stop removes; "": none
}

const (
	startTimeout = 2 * time.Minute
	authTimeout  = 60 // seconds; a busy client exceeds the default of 2
)

// Start runs a server and returns when it accepts connections.
func Start(o Options) (s *Server, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("start NATS: %w", err)
		}
	}()
	options := &server.Options{}
	if o.ConfigFile != "" {
		text, err := os.ReadFile(o.ConfigFile)
		if err != nil {
			return nil, err
		}
		var config strings.Builder
		for name, value := range o.Variables {
			_, _ = fmt.Fprintf(&config, "%s: %q\n", name, value)
		}
		if err := options.ProcessConfigString(config.String() + string(text)); err != nil {
			return nil, err
		}
	}
	options.NoSigs, options.NoLog, options.JetStream, options.HTTPPort = true, true, true, 0
	options.JetStreamMaxStore = cmp.Or(max(options.JetStreamMaxStore, 0), 8<<30)
	options.AuthTimeout = authTimeout
	if o.Addr == "" { // not port 0: another process could take it before a restart
		if o.Addr, err = freeport.Addr(); err != nil {
			return nil, err
		}
	}
	if err := freeport.Check(o.Addr); err != nil {
		return nil, err
	}
	host, port, err := net.SplitHostPort(o.Addr)
	if err != nil {
		return nil, err
	}
	options.Host = host
	if options.Port, err = strconv.Atoi(port); err != nil {
		return nil, err
	}
	s = new(Server)
	if options.StoreDir = o.StoreDir; options.StoreDir == "" {
		if s.temporary, err = os.MkdirTemp("", "natslocal"); err != nil {
			return nil, err
		}
		options.StoreDir = s.temporary
	}
	if s.server, err = server.NewServer(options); err != nil {
		return nil, errors.Join(err, os.RemoveAll(s.temporary))
	}
	s.server.Start()
	if !s.server.ReadyForConnections(startTimeout) {
		return nil, errors.Join(errors.New("no connections accepted"), s.Stop())
	}
	return s, nil
}

// URL returns the address for clients.
func (s *Server) URL() string { return s.server.ClientURL() }

// Addr returns the listener's address, to start again on.
func (s *Server) Addr() string { return s.server.Addr().String() }

// Stop ends the server and waits. A later Start on the same address and folder has the same streams.
func (s *Server) Stop() error {
	s.server.Shutdown()
	s.server.WaitForShutdown()
	return os.RemoveAll(s.temporary) // "": nothing
}
