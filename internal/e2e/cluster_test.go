package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"purchase-relay/internal/message"
	"purchase-relay/internal/testkit/natslocal"
	"purchase-relay/internal/testkit/pglocal/pgtest"
	"purchase-relay/internal/testkit/process"
	"purchase-relay/internal/testkit/tiktoksim"
)

// nodeVariable makes this test binary one server of a cluster: its configuration's file, its address, its folder. A server that is
// to be killed has to be a process.
const nodeVariable = "E2E_NATS_NODE"

// runNode runs a server until it is killed.
func runNode(what string) int {
	part := strings.Split(what, "|")
	_, err := natslocal.Start(natslocal.Options{
		ConfigFile: part[0], Addr: part[1], StoreDir: part[2],
		Variables: natsPasswords(),
	})
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, err)
		return 1
	}
	select {}
}

// node is one server of the cluster.
type node struct {
	*process.Process
	t                 *testing.T
	name, addr, route string
	what              string
}

func (n *node) start() {
	n.t.Helper()
	var err error
	n.Process, err = process.Start(process.Command{
		Path: os.Args[0], Env: append(os.Environ(), nodeVariable+"="+n.what), Output: os.Stderr,
	})
	if err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) kill() { n.Kill() }

// newCluster starts three servers with the configuration that is shipped, its cluster's lines uncommented.
func newCluster(t *testing.T) []*node {
	t.Helper()
	text, err := os.ReadFile(natsConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile(`(?m)^# (cluster \{|  name: .*|  routes: .*|\})$`)
	if n := len(block.FindAll(text, -1)); n != 4 {
		t.Fatalf("the configuration shows %d lines of a cluster", n)
	}
	conf := block.ReplaceAllString(string(text), "$1")
	nodes := make([]*node, 3)
	for i := range nodes {
		nodes[i] = &node{t: t, name: fmt.Sprintf("purchase-relay-%d", i+1), addr: freeAddr(t), route: freeAddr(t)}
	}
	for _, n := range nodes {
		own := strings.NewReplacer("server_name: purchase-relay-1", "server_name: "+n.name, "0.0.0.0:6222", n.route,
			"nats-1:6222", nodes[0].route, "nats-2:6222", nodes[1].route, "nats-3:6222", nodes[2].route).Replace(conf)
		dir := t.TempDir()
		file := filepath.Join(dir, "nats.conf")
		if err := os.WriteFile(file, []byte(own), 0o600); err != nil {
			t.Fatal(err)
		}
		n.what = strings.Join([]string{file, n.addr, filepath.Join(dir, "store")}, "|")
		n.start()
		t.Cleanup(n.kill)
	}
	return nodes
}

// cluster watches the cluster as a user for people.
type cluster struct {
	s     *stack
	nodes []*node
	js    jetstream.JetStream
}

// leader returns who leads the purchases' stream, once all three hold all of it.
func (c *cluster) leader() (leader *node) {
	c.s.t.Helper()
	c.s.await("all replicas to be current", func() bool {
		for _, name := range []string{message.StreamPurchases, message.StreamOutcomes, message.StreamPurchasesDead} {
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

// pause is the longest time without one of what a table lists, in the half minute around a moment; in seconds.
func (c *cluster) pause(column, table string, killed time.Time) float64 {
	return query[float64](c.s, `
SELECT COALESCE(extract(epoch FROM max(gap)), 0)::float8 FROM (
    SELECT at - lag(at) OVER (ORDER BY at) AS gap FROM (SELECT `+column+` AS at FROM `+table+` WHERE `+column+` BETWEEN $1 AND $2) t) g`,
		killed.Add(-time.Second), killed.Add(30*time.Second))
}

// Three servers with three replicas, and the leader of the purchases killed (kill -9) again and again while purchases come in:
// nothing is lost, webhooks do not notice, and publishing goes on by itself after a pause, which is printed. CRASHES=30 for a
// long run (a third of them here).
func TestClusterLosesItsLeader(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("part of make test-long")
	}
	nodes := newCluster(t)
	s := &stack{t: t, database: pgtest.Database(t), sim: tiktoksim.New(tiktoksim.Config{})}
	s.simURL = listen(t, s.sim)
	var addrs []string
	for _, n := range nodes {
		addrs = append(addrs, n.addr)
	}
	nc, err := nats.Connect("nats://"+strings.Join(addrs, ",nats://"), nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(100*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	c := &cluster{s: s, nodes: nodes}
	if c.js, err = jetstream.New(nc); err != nil {
		t.Fatal(err)
	}
	urls := func(user string) string {
		var list []string
		for _, addr := range addrs {
			list = append(list, natsURL(user, addr))
		}
		return "NATS_URL=" + strings.Join(list, ",")
	}
	start(t, "ingest provision --every 500ms", urls("provision"), "NATS_REPLICAS=3", "NATS_MAX_BYTES=1GiB")
	s.startIngest(urls("ingest"), "NATS_REPLICAS=3")
	s.startWorker(urls("worker"))
	s.await("the worker to be ready", func() bool { return status(s.worker.admin+"/readyz") == http.StatusOK })
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 3))
	l := s.load()
	type death struct {
		at     time.Time
		leader string
	}
	var deaths []death
	for range max(2, crashes()/3) {
		leader := c.leader()
		someTime(random, time.Second)
		deaths = append(deaths, death{time.Now(), leader.name})
		published := query[int](s, `SELECT count(*) FROM purchases WHERE published_at IS NOT NULL`)
		leader.kill()
		s.await("purchases to be published by the two others", func() bool {
			return query[int](s, `SELECT count(*) FROM purchases WHERE published_at IS NOT NULL`) > published+100
		})
		leader.start()
	}
	c.leader()
	l.end()
	for i, d := range deaths {
		t.Logf("kill %d, of %s: publishing paused for %.1f s, TikTok was told nothing for %.1f s, webhooks for %.1f s at most", i+1, d.leader,
			c.pause("published_at", "purchases", d.at), c.pause("at", "attempts", d.at), c.pause("received_at", "stripe_events", d.at))
	}
	if dead := query[int](s, `SELECT count(*) FROM purchases WHERE status = 'dead'`); dead > 0 {
		t.Errorf("%d are dead", dead)
	}
	for _, name := range []string{message.StreamPurchases, message.StreamOutcomes} {
		s.await(name+" to be empty", func() bool {
			info, err := c.info(name)
			return !errors.Is(err, context.Canceled) && err == nil && info.State.Msgs == 0
		})
	}
}
