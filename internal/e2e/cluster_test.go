package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"purchase-relay/internal/message"
	"purchase-relay/internal/testkit/natslocal"
	"purchase-relay/internal/testkit/pglocal/pgtest"
	"purchase-relay/internal/testkit/process"
)

// nodeVariable turns this test binary into a NATS server, which a test can kill. Its value is the file of the
// configuration, the address and the store's folder, separated by |.
const nodeVariable = "E2E_NATS_NODE"

// runNode runs a NATS server until it is killed.
func runNode(options string) int {
	part := strings.Split(options, "|")
	_, err := natslocal.Start(natslocal.Options{
		ConfigFile: part[0], Addr: part[1], StoreDir: part[2], Variables: natsPasswords(),
	})
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, err)
		return 1
	}
	select {}
}

// node is a server of the cluster.
type node struct {
	*process.Process
	t                 *testing.T
	name, addr, route string
	options           string // of runNode
}

func (n *node) start() {
	n.t.Helper()
	var err error
	n.Process, err = process.Start(process.Command{
		Path: os.Args[0], Env: append(os.Environ(), nodeVariable+"="+n.options), Output: os.Stderr,
	})
	if err != nil {
		n.t.Fatal(err)
	}
}

// newCluster starts three servers with the shipped configuration of a cluster.
func newCluster(t *testing.T) []*node {
	t.Helper()
	text, err := os.ReadFile(natsConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	cluster, err := os.ReadFile("../../deploy/nats/cluster.conf")
	if err != nil {
		t.Fatal(err)
	}
	const include = "include 'nats-server.conf'\n"
	if !strings.Contains(string(cluster), include) {
		t.Fatalf("cluster.conf has no line %s", include)
	}
	conf := string(text) + strings.Replace(string(cluster), include, "", 1)
	nodes := make([]*node, 3)
	for i := range nodes {
		nodes[i] = &node{t: t, name: fmt.Sprintf("purchase-relay-%d", i+1), addr: freeAddr(t), route: freeAddr(t)}
	}
	for _, n := range nodes {
		const password = "hunter-route"
		route := func(i int) string { return strconv.Quote("nats://route:" + password + "@" + nodes[i].route) }
		nodeConf := strings.NewReplacer("server_name: purchase-relay-1", "server_name: "+n.name,
			"0.0.0.0:6222", n.route, "$NATS_ROUTE_PASSWORD", password, "$NATS_ROUTE_1", route(0),
			"$NATS_ROUTE_2", route(1), "$NATS_ROUTE_3", route(2)).Replace(conf)
		dir := t.TempDir()
		file := filepath.Join(dir, "nats.conf")
		if err := os.WriteFile(file, []byte(nodeConf), 0o600); err != nil {
			t.Fatal(err)
		}
		n.options = strings.Join([]string{file, n.addr, filepath.Join(dir, "store")}, "|")
		n.start()
		t.Cleanup(func() { n.Kill() }) // the latest process
	}
	return nodes
}

// cluster inspects the cluster's streams as the operator.
type cluster struct {
	s     *stack
	nodes []*node
	js    jetstream.JetStream
}

// leader waits until every replica is current and returns the leader of the stream PURCHASES.
func (c *cluster) leader() (leader *node) {
	c.s.t.Helper()
	streams := []string{message.StreamPurchases, message.StreamOutcomes, message.StreamPurchasesDead}
	c.s.await("all replicas to be current", func() bool {
		for _, name := range streams {
			info, err := c.info(name)
			if err != nil || info.Cluster == nil || len(info.Cluster.Replicas) != 2 {
				return false
			}
			for _, replica := range info.Cluster.Replicas {
				if !replica.Current || replica.Offline {
					return false
				}
			}
			for _, n := range c.nodes {
				if name == message.StreamPurchases && n.name == info.Cluster.Leader {
					leader = n
				}
			}
		}
		return leader != nil
	})
	return leader
}

func (c *cluster) info(name string) (*jetstream.StreamInfo, error) {
	ctx, cancel := context.WithTimeout(c.s.t.Context(), 2*time.Second)
	defer cancel()
	stream, err := c.js.Stream(ctx, name)
	if err != nil {
		return nil, err
	}
	return stream.Info(ctx)
}

// longestGap returns the longest time in seconds between two rows of a table, from 1 s before a kill to 30 s
// after it.
func (c *cluster) longestGap(column, table string, killed time.Time) float64 {
	return query[float64](c.s, `SELECT COALESCE(extract(epoch FROM max(gap)), 0)::float8 FROM (
		SELECT at - lag(at) OVER (ORDER BY at) AS gap
		FROM (SELECT `+column+` AS at FROM `+table+`) t WHERE at BETWEEN $1 AND $2) g`,
		killed.Add(-time.Second), killed.Add(30*time.Second))
}

// Three servers hold three replicas. The leader of the purchases' stream is killed (kill -9) repeatedly under
// load: nothing is lost, webhooks are answered, and publishing resumes after a pause, which is logged.
func TestCluster_LosesNothingWhenLeaderDies(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("part of make test-long")
	}
	nodes := newCluster(t)
	s := newIdleStack(t, pgtest.Database(t))
	urls := func(user string) string {
		var list []string
		for _, n := range nodes {
			list = append(list, natsURL(user, n.addr))
		}
		return strings.Join(list, ",")
	}
	nc, err := nats.Connect(urls("operator"), nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1),
		nats.ReconnectWait(100*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	c := &cluster{s: s, nodes: nodes}
	if c.js, err = jetstream.New(nc); err != nil {
		t.Fatal(err)
	}
	start(t, "ingest provision --every 500ms", "NATS_URL="+urls("provision"), "NATS_REPLICAS=3",
		"NATS_MAX_BYTES=1GiB")
	s.startIngest("NATS_URL="+urls("ingest"), "NATS_REPLICAS=3")
	s.startWorker("NATS_URL=" + urls("worker"))
	s.awaitReadiness(s.worker.admin, http.StatusOK)
	random := newRandom(t)
	l := s.startLoad()
	type kill struct {
		at     time.Time
		leader string
	}
	var kills []kill
	for range max(2, crashes()/3) {
		leader := c.leader()
		randomSleep(random, time.Second)
		kills = append(kills, kill{time.Now(), leader.name})
		published := s.rows(`purchases WHERE published_at IS NOT NULL`)
		leader.Kill()
		s.await("purchases to be published by the two others", func() bool {
			return s.rows(`purchases WHERE published_at IS NOT NULL`) > published+100
		})
		leader.start()
	}
	c.leader()
	l.finish()
	for _, k := range kills {
		t.Logf("leader %s killed: longest gap of publishes %.1f s, attempts %.1f s, webhooks %.1f s", k.leader,
			c.longestGap("published_at", "purchases", k.at), c.longestGap("at", "attempts", k.at),
			c.longestGap("received_at", "stripe_events", k.at))
	}
	for _, name := range []string{message.StreamPurchases, message.StreamOutcomes} {
		s.await(name+" to be empty", func() bool {
			info, err := c.info(name)
			return err == nil && info.State.Msgs == 0
		})
	}
}
