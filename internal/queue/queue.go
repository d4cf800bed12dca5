// Package queue is the client of NATS JetStream: the streams, the consumers and the messages on them.
//
// A publish acknowledgement means that the message is in the server's page cache: it survives a killed
// server, but a power cut may lose seconds of messages. The ledger and its sweeper guarantee that nothing is
// lost.
package queue

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"purchase-relay/internal/logsafe"
	"purchase-relay/internal/secret"
)

// DefaultURL is the default of NATS_URL.
const DefaultURL secret.String = "nats://127.0.0.1:4222"

// Config is the connection to NATS, a part of both binaries' configurations.
type Config struct {
	// Comma-separated, with user and password; tls:// for TLS.
	NATSURL secret.String `name:"nats-url" default:"nats://127.0.0.1:4222" help:"NATS servers."`

	// JWT and nkey, instead of user and password.
	NATSCredsFile string `name:"nats-creds-file" example:"nats.creds" help:"Credentials file."`

	NATSCAFile string `name:"nats-ca-file" example:"ca.crt" help:"Certificate authority of NATS."`

	// If the servers require one, with NATS_KEY_FILE.
	NATSCertFile string `name:"nats-cert-file" example:"client.crt" help:"Client certificate for NATS."`

	NATSKeyFile string `name:"nats-key-file" example:"client.key" help:"Key of the client certificate."`
}

// Problems lists the errors of the configuration, without its secrets.
func (c Config) Problems() (list []string) {
	for server := range strings.SplitSeq(c.NATSURL.Reveal(), ",") {
		u, err := url.Parse(strings.TrimSpace(server))
		if err != nil || u.Host == "" || !slices.Contains([]string{"nats", "tls", "ws", "wss"}, u.Scheme) {
			list = append(list, "NATS_URL must list servers as nats://host:4222 or tls://host:4222")
		}
	}
	for name, file := range map[string]string{
		"NATS_CREDS_FILE": c.NATSCredsFile, "NATS_CA_FILE": c.NATSCAFile,
		"NATS_CERT_FILE": c.NATSCertFile, "NATS_KEY_FILE": c.NATSKeyFile,
	} {
		if file == "" {
			continue
		}
		if f, err := os.Open(file); err != nil { //nolint:gosec // the operator names the file
			list = append(list, fmt.Sprintf("%s cannot be read: %v", name, errors.Unwrap(err)))
		} else {
			_ = f.Close()
		}
	}
	if (c.NATSCertFile == "") != (c.NATSKeyFile == "") {
		list = append(list, "NATS_CERT_FILE and NATS_KEY_FILE must be set together")
	}
	slices.Sort(list)
	return list
}

// Timeouts of the connection.
const (
	reconnectWait  = 500 * time.Millisecond
	publishTimeout = 5 * time.Second // for the acknowledgement; afterwards the message may still be stored
	requestTimeout = 5 * time.Second
)

// reconnects ends the remedy of a connection error.
const reconnects = "the connection is retried"

// Conn is a process's connection. It is safe for concurrent use.
type Conn struct {
	nc  *nats.Conn
	js  jetstream.JetStream
	log *zap.Logger

	mu        sync.Mutex
	onConnect []func()
	closed    chan struct{}
	cancels   map[string]context.CancelCauseFunc // by subject: requests that the server may deny
	optional  logsafe.Changes                    // logged failures of optional streams

	up            bool           // guarded by mu, as its handlers reported
	changed       time.Time      // guarded by mu: when up changed
	failureLogged atomic.Bool    // since the last connection
	watch         sync.WaitGroup // watchConnectErrors
}

// credentials returns the options for the client's credentials and the trusted authorities.
func (c Config) credentials() (options []nats.Option) {
	for _, o := range []struct {
		set    bool
		option nats.Option
	}{
		{c.NATSCredsFile != "", nats.UserCredentials(c.NATSCredsFile)},
		{c.NATSCAFile != "", nats.RootCAs(c.NATSCAFile)},
		{c.NATSCertFile != "", nats.ClientCert(c.NATSCertFile, c.NATSKeyFile)},
	} {
		if o.set {
			options = append(options, o.option)
		}
	}
	return options
}

// Connect returns a connection that connects and reconnects in the background. name is the user's role
// (ingest, worker) and the inbox prefix, so that one role cannot read the other's replies. An error means
// that the configuration is unusable.
func Connect(c Config, name string, log *zap.Logger, reg prometheus.Registerer) (*Conn, error) {
	violations := prometheus.NewCounter(prometheus.CounterOpts{
		Name: "purchase_relay_permission_violations_total",
		Help: "Requests that NATS denied for lack of permission.",
	})
	reg.MustRegister(violations)
	conn := &Conn{
		log: log, closed: make(chan struct{}), cancels: make(map[string]context.CancelCauseFunc),
		changed: time.Now(),
	}
	// Each message of a batch is denied on its own: all are counted, five per minute are logged.
	sampled := log.WithOptions(zap.WrapCore(func(core zapcore.Core) zapcore.Core {
		return zapcore.NewSamplerWithOptions(core, time.Minute, 5, 0)
	}))
	options := []nats.Option{
		nats.Name("purchase-relay " + name), nats.CustomInboxPrefix("_INBOX_" + name),
		nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(reconnectWait),
		// A password may be fixed, or be rotated on the server first. By default nats.go closes the connection at
		// the second authorization error.
		nats.IgnoreAuthErrorAbort(),
		nats.ReconnectBufSize(-1), // fail a publish while disconnected: a buffered one is stored after it failed
		nats.Timeout(3 * time.Second), nats.PingInterval(10 * time.Second), nats.MaxPingsOutstanding(2),
		nats.ConnectHandler(func(*nats.Conn) { log.Info("Connected to NATS"); conn.connected() }),
		nats.ReconnectHandler(func(*nats.Conn) { log.Info("Reconnected to NATS"); conn.connected() }),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			conn.setUp(false)
			if err != nil {
				log.Warn("Disconnected from NATS", zap.Error(err), zap.String("remedy", reconnects))
			}
		}),
		nats.ClosedHandler(func(*nats.Conn) { close(conn.closed) }),
		nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) {
			if isAuthError(err) {
				conn.logConnectError(err)
				return
			}
			if conn.cancelDenied(err) {
				return
			}
			if strings.Contains(err.Error(), advisoryNak) {
				log.Info("Not permitted to subscribe to NAK advisories", zap.String("remedy",
					"let the worker's user subscribe to "+advisoryNak+"PURCHASES.worker; "+
						"until then, purchases that another worker returned are sent alone"))
				return
			}
			fields := []zap.Field{zap.Error(err)}
			if sub != nil {
				fields = append(fields, zap.String("subject", sub.Subject))
			}
			if errors.Is(err, nats.ErrPermissionViolation) {
				violations.Inc()
				sampled.Error("NATS denied a request", append(fields,
					zap.String("remedy", "compare the user's permissions with the documentation"))...)
				return
			}
			log.Warn("NATS reported an error", fields...)
		}),
	}
	nc, err := nats.Connect(c.NATSURL.Reveal(), append(options, c.credentials()...)...)
	if err != nil {
		return nil, fmt.Errorf("connect to NATS: %w", err)
	}
	if !nc.IsConnected() {
		log.Warn("NATS is down", zap.String("remedy", reconnects))
	}
	js, err := jetstream.New(nc,
		jetstream.WithPublishAsyncTimeout(publishTimeout), jetstream.WithPublishAsyncMaxPending(4000))
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("open JetStream: %w", err)
	}
	conn.nc, conn.js = nc, js
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "purchase_relay_nats_connected", Help: "1 while connected to NATS.",
	}, func() float64 {
		if conn.Connected() {
			return 1
		}
		return 0
	}))
	conn.watch.Go(conn.watchConnectErrors)
	return conn, nil
}

// watchConnectErrors logs why connecting fails. nats.go reports a wrong password only after a first
// connection, and a rejected certificate never.
func (c *Conn) watchConnectErrors() {
	tick := time.NewTicker(reconnectWait / 4)
	defer tick.Stop()
	for {
		if !c.nc.IsConnected() {
			c.logConnectError(c.nc.LastError())
		}
		select {
		case <-c.closed:
			return
		case <-tick.C:
		}
	}
}

func isAuthError(err error) bool {
	return errors.Is(err, nats.ErrAuthorization) || errors.Is(err, nats.ErrAuthExpired) ||
		errors.Is(err, nats.ErrAuthRevoked) || errors.Is(err, nats.ErrAccountAuthExpired)
}

// isTLSError matches texts too: the server's alerts have no type.
func isTLSError(err error) bool {
	return err != nil && (errors.Is(err, nats.ErrSecureConnRequired) ||
		errors.Is(err, nats.ErrSecureConnWanted) || strings.Contains(err.Error(), "tls: ") ||
		strings.Contains(err.Error(), "x509: "))
}

// logConnectError logs an authorization or TLS error once per lost connection, not once per retry.
func (c *Conn) logConnectError(err error) {
	msg, remedy := "NATS rejected the credentials", "check NATS_URL's user and password, or NATS_CREDS_FILE"
	switch {
	case isTLSError(err):
		msg = "TLS handshake with NATS failed"
		remedy = "check tls:// in NATS_URL, NATS_CA_FILE, NATS_CERT_FILE and NATS_KEY_FILE, " +
			"and that no certificate has expired"
	case !isAuthError(err):
		return
	}
	if c.failureLogged.CompareAndSwap(false, true) {
		c.log.Error(msg, zap.Error(err), zap.String("remedy", remedy+"; "+reconnects))
	}
}

// Connected reports whether the process is connected.
func (c *Conn) Connected() bool { return c.nc.IsConnected() }

// OnConnect registers a function that is called after each connect, and immediately when connected. It must
// not block.
func (c *Conn) OnConnect(f func()) {
	c.mu.Lock()
	c.onConnect = append(c.onConnect, f)
	c.mu.Unlock()
	if c.nc.IsConnected() {
		f()
	}
}

func (c *Conn) setUp(up bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.up, c.changed = up, time.Now()
}

// State reports whether the process is connected, and since when that is so.
func (c *Conn) State() (connected bool, since time.Time) {
	connected = c.nc.IsConnected()
	c.mu.Lock()
	defer c.mu.Unlock()
	if connected != c.up {
		return connected, time.Now() // its handler is about to run
	}
	return connected, c.changed
}

func (c *Conn) connected() {
	c.setUp(true)
	c.failureLogged.Store(false)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.onConnect {
		f()
	}
}

// Close flushes and closes the connection, within ctx.
func (c *Conn) Close(ctx context.Context) error {
	defer c.watch.Wait()
	if !c.nc.IsConnected() {
		c.nc.Close()
		return nil
	}
	if err := c.nc.Drain(); err != nil {
		c.nc.Close()
		return fmt.Errorf("drain NATS connection: %w", err)
	}
	select {
	case <-c.closed:
	case <-ctx.Done():
		c.nc.Close()
	}
	return nil
}

var notToken = regexp.MustCompile(`[^A-Za-z0-9_-]+`)

// Instance returns a name for this process: host and random part, valid as a subject token.
func Instance() string {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "worker"
	}
	host = strings.Trim(notToken.ReplaceAllString(host, "-"), "-")
	return host[:min(len(host), 40)] + "-" + strings.ToLower(rand.Text()[:6])
}
