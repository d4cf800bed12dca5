package queue_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"purchase-relay/internal/queue"
	"purchase-relay/internal/secret"
)

// authority signs certificates.
type authority struct {
	t    *testing.T
	dir  string
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	a.key, a.cert = a.sign("authority", &x509.Certificate{
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	return a
}

// sign creates a certificate and writes it and its key; an authority's first one is self-signed.
func (a *authority) sign(name string, template *x509.Certificate) (*ecdsa.PrivateKey, *x509.Certificate) {
	a.t.Helper()
	must := func(err error) {
		a.t.Helper()
		if err != nil {
			a.t.Fatal(err)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	template.SerialNumber, template.Subject = big.NewInt(time.Now().UnixNano()), pkix.Name{CommonName: name}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := template, key
	if a.cert != nil {
		parent, signer = a.cert, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	must(err)
	cert, err := x509.ParseCertificate(der)
	must(err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	must(err)
	for file, block := range map[string]*pem.Block{
		name + ".crt": {Type: "CERTIFICATE", Bytes: der}, name + ".key": {Type: "PRIVATE KEY", Bytes: private},
	} {
		must(os.WriteFile(a.file(file), pem.EncodeToMemory(block), 0o600))
	}
	return key, cert
}

func (a *authority) file(name string) string { return filepath.Join(a.dir, name) }

// connectTLS connects over TLS, with a client certificate of an authority (nil: none).
func (g *authNATS) connectTLS(
	user, password string, ca, client *authority,
) (*queue.Conn, *observer.ObservedLogs) {
	g.t.Helper()
	config := queue.Config{
		NATSURL:    secret.String("tls://" + user + ":" + password + "@127.0.0.1:" + strconv.Itoa(g.port)),
		NATSCAFile: ca.file("authority.crt"),
	}
	if client != nil {
		client.sign(user, &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		config.NATSCertFile, config.NATSKeyFile = client.file(user+".crt"), client.file(user+".key")
	}
	core, logs := observer.New(zapcore.DebugLevel)
	c, err := queue.Connect(config, user, zap.New(core), prometheus.NewRegistry())
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() {
		if err := c.Close(context.Background()); err != nil {
			g.t.Error(err)
		}
	})
	return c, logs
}

// The shipped configuration has a commented line for mutual TLS: with it, a password alone is not enough.
func TestConnect_MutualTLS(t *testing.T) {
	t.Parallel()
	ca, stranger := newAuthority(t), newAuthority(t)
	ca.sign("server", &x509.Certificate{
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	})
	conf := regexp.MustCompile(`(?m)^# (tls \{.*\})$`).ReplaceAllString(shippedConf(t), "$1")
	conf = strings.NewReplacer("/etc/nats/server.", ca.file("server."),
		"/etc/nats/ca.crt", ca.file("authority.crt")).Replace(conf)
	if !strings.Contains(conf, "\ntls {") {
		t.Fatal("the configuration has no commented tls line")
	}
	g := newAuthNATS(t, conf)
	ingest, _ := g.connectTLS("ingest", "hunter1", ca, ca)
	worker, _ := g.connectTLS("worker", "hunter2", ca, ca)
	other, _ := g.connectTLS("worker", "hunter2", ca, ca)
	provision, _ := g.connectTLS("provision", "hunter3", ca, ca)
	await(t, "the connections", func() bool {
		return ingest.Connected() && worker.Connected() && other.Connected() && provision.Connected()
	})
	g.provisionAs(provision, streamConfig.MaxBytes)
	exercise(t, ingest, worker, other)

	for name, tc := range map[string]struct{ ca, client *authority }{
		"no certificate":         {ca, nil},
		"an unknown client CA":   {ca, stranger},
		"an unknown server's CA": {stranger, ca},
	} {
		c, logs := g.connectTLS("ingest", "hunter1", tc.ca, tc.client)
		await(t, name, func() bool { return logged(logs, "TLS handshake with NATS failed") == 1 })
		if c.Connected() {
			t.Errorf("%s: connected, want a TLS error", name)
		}
	}
}
