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
	a.key, a.cert = a.sign("authority", &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

// sign makes a certificate and writes it and its key; an authority's first one signs itself.
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
	must(os.WriteFile(a.file(name+".crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	must(os.WriteFile(a.file(name+".key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600))
	return key, cert
}

func (a *authority) file(name string) string { return filepath.Join(a.dir, name) }

// over connects over TLS, with the client certificate of an authority where one is given.
func (g *guarded) over(user, password string, ca, client *authority) (*queue.Conn, *observer.ObservedLogs) {
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

// The line for mutual TLS that the shipped configuration holds as a comment: with a certificate each user does all of its work;
// without one, or with a stranger's, a good password opens nothing, and the log says that it is TLS.
func TestConnect_MutualTLS(t *testing.T) {
	t.Parallel()
	ca, stranger := newAuthority(t), newAuthority(t)
	ca.sign("server", &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}})
	conf := regexp.MustCompile(`(?m)^# (tls \{.*\})$`).ReplaceAllString(ours(t), "$1")
	conf = strings.NewReplacer("/etc/nats/server.", ca.file("server."), "/etc/nats/ca.crt", ca.file("authority.crt")).Replace(conf)
	if !strings.Contains(conf, "\ntls {") {
		t.Fatal("the configuration shows no line for TLS")
	}
	g := newGuarded(t, conf)
	ingest, _ := g.over("ingest", "hunter1", ca, ca)
	worker, _ := g.over("worker", "hunter2", ca, ca)
	other, _ := g.over("worker", "hunter2", ca, ca)
	provision, _ := g.over("provision", "hunter3", ca, ca)
	await(t, "the connections", func() bool {
		return ingest.Connected() && worker.Connected() && other.Connected() && provision.Connected()
	})
	if err := provision.Provision(t.Context(), small); err != nil {
		t.Fatal(err)
	}
	work(t, ingest, worker, other)

	for name, tc := range map[string]struct{ ca, client *authority }{
		"no certificate": {ca, nil}, "a stranger's certificate": {ca, stranger}, "a server that is not known": {stranger, ca},
	} {
		c, logs := g.over("ingest", "hunter1", tc.ca, tc.client)
		await(t, name+" to be told", func() bool { return logged(logs, "NATS and this process do not agree on TLS") == 1 })
		if c.Connected() {
			t.Errorf("%s is enough to connect", name)
		}
	}
}
