// Package queue is the client of NATS JetStream: the streams, the consumers and the messages on them.
//
// What a publish acknowledgement is worth: the message is in the server's page cache. A killed server loses nothing of
// that, a power cut may lose seconds of it; the ledger and its sweeper make "nothing lost" true, not the queue.
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

	"purchase-relay/internal/secret"
)

// Config is how to reach NATS; both binaries' configurations hold it.
type Config struct {
	NATSURL       secret.Text `name:"nats-url" default:"nats://127.0.0.1:4222" help:"NATS servers, comma-separated; tls:// for TLS."`
	NATSCredsFile string      `name:"nats-creds-file" help:"Credentials file (JWT and nkey)."`
	NATSCAFile    string      `name:"nats-ca-file" help:"Certificate authority of the servers."`
	NATSCertFile  string      `name:"nats-cert-file" help:"Client certificate."`
	NATSKeyFile   string      `name:"nats-key-file" help:"Client certificate's key."`
}

// Problems lists what is wrong with the configuration, without its secrets.
func (c Config) Problems() (list []string) {
	for server := range strings.SplitSeq(c.NATSURL.Reveal(), ",") {
		u, err := url.Parse(strings.TrimSpace(server))
		if err != nil || u.Host == "" || !slices.Contains([]string{"nats", "tls", "ws", "wss"}, u.Scheme) {
			list = append(list, "NATS_URL: a server is not of the form nats://host:4222 or tls://host:4222")
		}
	}
	for name, file := range map[string]string{
		"NATS_CREDS_FILE": c.NATSCredsFile, "NATS_CA_FILE": c.NATSCAFile, "NATS_CERT_FILE": c.NATSCertFile, "NATS_KEY_FILE": c.NATSKeyFile,
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
		list = append(list, "NATS_CERT_FILE and NATS_KEY_FILE go together")
	}
	slices.Sort(list)
	return list
}

// Times of the connection.
const (
	reconnectWait  = 500 * time.Millisecond
	publishTimeout = 5 * time.Second // a publish without an answer for so long has failed, or was stored all the same
	requestTimeout = 5 * time.Second
)

// Conn is one process' connection. It is safe for concurrent use.
type Conn struct {
	nc  *nats.Conn
	js  jetstream.JetStream
	log *zap.Logger

	mu        sync.Mutex
	onConnect []func()
	closed    chan struct{}
	trying    map[string]context.CancelCauseFunc // by subject: requests that the server may refuse

	refused atomic.Bool    // told that the servers refuse us, since the connection last stood
	watch   sync.WaitGroup // watchRefusals
}

// credentials are what a connection shows, and what it believes.
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

// Connect returns a connection that is made, and made again, in the background: a server that is away is waited for. name
// is the user's role (ingest, worker) and makes the inbox prefix, so that one cannot read the other's replies. An error
// says that the configuration is unusable.
func Connect(c Config, name string, log *zap.Logger, reg prometheus.Registerer) (*Conn, error) {
	violations := prometheus.NewCounter(prometheus.CounterOpts{
		Name: "purchase_relay_permission_violations_total", Help: "Requests that NATS refused for lack of permission.",
	})
	reg.MustRegister(violations)
	conn := &Conn{log: log, closed: make(chan struct{}), trying: make(map[string]context.CancelCauseFunc)}
	// A batch may be refused message by message: all are counted, the first few in a minute are told.
	some := log.WithOptions(zap.WrapCore(func(core zapcore.Core) zapcore.Core {
		return zapcore.NewSamplerWithOptions(core, time.Minute, 5, 0)
	}))
	options := []nats.Option{
		nats.Name("purchase-relay " + name), nats.CustomInboxPrefix("_INBOX_" + name),
		nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(reconnectWait),
		// A password is mended, or is rotated on the server first: by default nats.go would close for good at the second refusal.
		nats.IgnoreAuthErrorAbort(),
		nats.ReconnectBufSize(-1), // a publish while away fails at once, instead of failing and being stored later
		nats.Timeout(3 * time.Second), nats.PingInterval(10 * time.Second), nats.MaxPingsOutstanding(2),
		nats.ConnectHandler(func(*nats.Conn) { log.Info("Connected to NATS"); conn.connected() }),
		nats.ReconnectHandler(func(*nats.Conn) { log.Info("Connected to NATS again"); conn.connected() }),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				log.Warn("The connection to NATS is lost; it is tried again until it is back", zap.Error(err))
			}
		}),
		nats.ClosedHandler(func(*nats.Conn) { close(conn.closed) }),
		nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) {
			if isRefusal(err) {
				conn.tellRefused(err)
				return
			}
			if conn.endRefused(err) {
				return
			}
			if strings.Contains(err.Error(), advisoryNak) {
				log.Info("Not permitted to hear what other workers hand back: such purchases are sent alone, which is slower and no less safe",
					zap.String("remedy", "let the worker's user subscribe to "+advisoryNak+"PURCHASES.worker"))
				return
			}
			fields := []zap.Field{zap.Error(err)}
			if sub != nil {
				fields = append(fields, zap.String("subject", sub.Subject))
			}
			if errors.Is(err, nats.ErrPermissionViolation) {
				violations.Inc()
				some.Error("NATS refuses a request for lack of permission: it will time out; compare the user's permissions with the documentation", fields...)
				return
			}
			log.Warn("NATS reports an error", fields...)
		}),
	}
	nc, err := nats.Connect(c.NATSURL.Reveal(), append(options, c.credentials()...)...)
	if err != nil {
		return nil, fmt.Errorf("connect to NATS: %w", err)
	}
	if !nc.IsConnected() {
		log.Warn("NATS is away; it is tried until it answers")
	}
	js, err := jetstream.New(nc, jetstream.WithPublishAsyncTimeout(publishTimeout), jetstream.WithPublishAsyncMaxPending(4000))
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("open JetStream: %w", err)
	}
	conn.nc, conn.js = nc, js
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "purchase_relay_nats_connected", Help: "1 while the connection to NATS stands.",
	}, conn.connectedGauge))
	conn.watch.Go(conn.watchRefusals)
	return conn, nil
}

// watchRefusals tells why a connection is not made, where the servers say so: nats.go reports a wrong password only after one
// has stood, and a certificate that is not taken never.
func (c *Conn) watchRefusals() {
	tick := time.NewTicker(reconnectWait / 4)
	defer tick.Stop()
	for {
		if !c.nc.IsConnected() {
			switch err := c.nc.LastError(); {
			case isRefusal(err):
				c.tellRefused(err)
			case isTLS(err):
				c.tellTLS(err)
			}
		}
		select {
		case <-c.closed:
			return
		case <-tick.C:
		}
	}
}

func isRefusal(err error) bool {
	return errors.Is(err, nats.ErrAuthorization) || errors.Is(err, nats.ErrAuthExpired) || errors.Is(err, nats.ErrAuthRevoked) ||
		errors.Is(err, nats.ErrAccountAuthExpired)
}

// isTLS goes by the words, too: what the other side does not take comes back as a text.
func isTLS(err error) bool {
	return err != nil && (errors.Is(err, nats.ErrSecureConnRequired) || errors.Is(err, nats.ErrSecureConnWanted) ||
		strings.Contains(err.Error(), "tls: ") || strings.Contains(err.Error(), "x509: "))
}

// tellRefused tells once, not at each try.
func (c *Conn) tellRefused(err error) {
	if c.refused.CompareAndSwap(false, true) {
		c.log.Error("NATS refuses the credentials; it is tried again until they are good: check NATS_URL's user and password, or NATS_CREDS_FILE", zap.Error(err))
	}
}

func (c *Conn) tellTLS(err error) {
	if c.refused.CompareAndSwap(false, true) {
		c.log.Error("NATS and this process do not agree on TLS; it is tried again until they do: check tls:// in NATS_URL, NATS_CA_FILE, NATS_CERT_FILE and NATS_KEY_FILE, "+
			"and that no certificate has expired", zap.Error(err))
	}
}

// Connected says whether the connection stands now.
func (c *Conn) Connected() bool { return c.nc.IsConnected() }

func (c *Conn) connectedGauge() float64 {
	if c.Connected() {
		return 1
	}
	return 0
}

// OnConnect registers a function to be called whenever the connection has been made; it must not block. Where it stands
// already, the function is called at once.
func (c *Conn) OnConnect(f func()) {
	c.mu.Lock()
	c.onConnect = append(c.onConnect, f)
	c.mu.Unlock()
	if c.nc.IsConnected() {
		f()
	}
}

func (c *Conn) connected() {
	c.refused.Store(false)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.onConnect {
		f()
	}
}

// Close sends what is buffered and closes the connection, within ctx.
func (c *Conn) Close(ctx context.Context) error {
	defer c.watch.Wait()
	if !c.nc.IsConnected() {
		c.nc.Close()
		return nil
	}
	if err := c.nc.Drain(); err != nil {
		c.nc.Close()
		return fmt.Errorf("drain the connection to NATS: %w", err)
	}
	select {
	case <-c.closed:
	case <-ctx.Done():
		c.nc.Close()
	}
	return nil
}

var notToken = regexp.MustCompile(`[^A-Za-z0-9_-]+`)

// Instance names this process: the host and a random part, in the form of a subject token.
func Instance() string {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "worker"
	}
	host = strings.Trim(notToken.ReplaceAllString(host, "-"), "-")
	return host[:min(len(host), 40)] + "-" + strings.ToLower(rand.Text()[:6])
}
