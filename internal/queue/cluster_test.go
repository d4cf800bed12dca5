package queue_test

import (
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"purchase-relay/internal/testkit/freeport"
)

// The shipped cluster's servers find each other by routes from the environment. (No t.Parallel: the
// configuration reads the process's environment.)
func TestClusterConf_RoutesRequirePassword(t *testing.T) {
	for _, name := range []string{"NATS_INGEST_PASSWORD", "NATS_WORKER_PASSWORD", "NATS_PROVISION_PASSWORD"} {
		t.Setenv(name, "hunter1")
	}
	var addrs []string
	for range 3 {
		addr, err := freeport.Addr()
		if err != nil {
			t.Fatal(err)
		}
		addrs = append(addrs, addr)
	}
	t.Setenv("NATS_ROUTE_PASSWORD", "hunter-route")
	for i, addr := range addrs {
		t.Setenv("NATS_ROUTE_"+strconv.Itoa(i+1), "nats://route:hunter-route@"+addr)
	}
	start := func(i int) *server.Server {
		t.Helper()
		options := &server.Options{}
		if err := options.ProcessConfigFile("../../deploy/nats/cluster.conf"); err != nil {
			t.Fatal(err)
		}
		host, port, err := net.SplitHostPort(addrs[i])
		if err != nil {
			t.Fatal(err)
		}
		options.ServerName = "purchase-relay-" + strconv.Itoa(i+1)
		options.NoSigs, options.NoLog, options.HTTPPort = true, true, 0
		options.Host, options.Port = "127.0.0.1", server.RANDOM_PORT
		options.Cluster.Host, options.StoreDir = host, t.TempDir()
		options.Cluster.AuthTimeout = 60 // seconds; a busy client exceeds the configured 3
		if options.Cluster.Port, err = strconv.Atoi(port); err != nil {
			t.Fatal(err)
		}
		s, err := server.NewServer(options)
		if err != nil {
			t.Fatal(err)
		}
		s.Start()
		t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
		if !s.ReadyForConnections(time.Minute) {
			t.Fatal("the server is not ready")
		}
		return s
	}
	servers := []*server.Server{start(0), start(1), start(2)}
	await(t, "the cluster", func() bool {
		for _, s := range servers {
			if len(s.ActivePeers()) != 3 {
				return false
			}
		}
		return true
	})
	for name, connect := range map[string]string{
		"no password":         `{"verbose":false}`,
		"a guessed password":  `{"user":"route","pass":"guessed"}`,
		"a client's password": `{"user":"ingest","pass":"hunter1"}`,
	} {
		conn, err := net.Dial("tcp", addrs[0])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte("CONNECT " + connect + "\r\nPING\r\n")); err != nil {
			t.Fatal(err)
		}
		response, err := io.ReadAll(conn) // the server closes it
		_ = conn.Close()
		if !strings.Contains(string(response), "Authorization Violation") {
			t.Errorf("%s: response = %q, %v; want Authorization Violation", name, response, err)
		}
	}
}
