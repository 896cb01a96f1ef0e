package enginetest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"text/template"

	"github.com/sluicehq/sluice/internal/engine"
	"github.com/sluicehq/sluice/internal/testport"
)

// Shards is the cluster that every [Cluster] has in remote_servers: each server
// is a shard of its own.
const Shards = "shards"

// ClusterOptions are those of [StartCluster].
type ClusterOptions struct {
	// Servers is their number. Default 2.
	Servers int
	// Clusters are further ones in remote_servers: for each shard the numbers of
	// the servers that are its replicas, from 0; -1 is a host that nobody reaches.
	Clusters map[string][][]int
	// Macros are those of each server. Default: shard, from 1, and replica r1.
	Macros []map[string]string
	// ZooKeeper is host:port of one, for replicated tables. Default: none.
	ZooKeeper string
	// Config is a further file of each server's configuration. Default: none.
	Config string
}

// Cluster is servers that know each other, with one user for all of them.
type Cluster struct {
	Servers []*Instance

	dir     string
	library string
	ports   []int
	engines []*runningEngine
}

type runningEngine struct {
	cancel context.CancelFunc
	done   chan error
}

// sharedCluster is the one of the test binary.
var sharedCluster struct {
	once    sync.Once
	cluster *Cluster
	err     error
}

// SharedCluster returns the cluster of two servers that tests of one binary share,
// which it starts at the first call.
func SharedCluster(tb testing.TB) *Cluster {
	tb.Helper()
	if !shared.inMain.Load() {
		tb.Fatal("enginetest.Main is not called by this package's TestMain")
	}
	sharedCluster.once.Do(func() {
		var dir string
		if dir, sharedCluster.err = os.MkdirTemp("", "sluice-cluster-"); sharedCluster.err != nil { //nolint:usetesting // it outlives the test
			return
		}
		sharedCluster.cluster, sharedCluster.err = newCluster(dir, ClusterOptions{})
		if sharedCluster.err != nil {
			sharedCluster.err = errors.Join(sharedCluster.err, os.RemoveAll(dir))
		}
	})
	if sharedCluster.err != nil {
		tb.Fatal(sharedCluster.err)
	}
	return sharedCluster.cluster
}

// stopCluster stops the shared one, if it was started.
func stopCluster() error {
	if sharedCluster.cluster == nil {
		return nil
	}
	return errors.Join(sharedCluster.cluster.close(), os.RemoveAll(sharedCluster.cluster.dir))
}

// StartCluster starts a cluster of the test's own.
func StartCluster(tb testing.TB, opts ClusterOptions) *Cluster {
	tb.Helper()
	c, err := newCluster(tb.TempDir(), opts)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if tb.Failed() {
			for i := range c.Servers {
				text, _ := os.ReadFile(filepath.Join(c.serverDir(i), "server.log"))
				tb.Logf("end of the log of ClickHouse %d:\n%s", i, text[max(0, len(text)-4000):])
			}
		}
		if err := c.close(); err != nil {
			tb.Errorf("stop ClickHouse: %v", err)
		}
	})
	return c
}

func (c *Cluster) serverDir(i int) string {
	return filepath.Join(c.dir, "server-"+strconv.Itoa(i))
}

func newCluster(dir string, opts ClusterOptions) (*Cluster, error) {
	library, err := engine.Find("")
	if err != nil {
		return nil, err
	}
	n := max(opts.Servers, 1)
	if opts.Servers == 0 {
		n = 2
	}
	c := &Cluster{dir: dir, library: library, engines: make([]*runningEngine, n)}
	// They know each other's ports before they start.
	if c.ports, err = testport.Free(n); err != nil {
		return nil, err
	}
	var b [16]byte
	rand.Read(b[:]) // never fails
	password := hex.EncodeToString(b[:])
	for i := range n {
		c.Servers = append(c.Servers, &Instance{
			Addr: net.JoinHostPort(engine.DefaultHost, strconv.Itoa(c.ports[i])), User: "cluster", Password: password,
		})
		if err := c.configure(i, opts, password); err != nil {
			return nil, err
		}
	}
	for i := range n {
		if err := c.start(i); err != nil {
			return nil, errors.Join(err, c.close())
		}
	}
	return c, nil
}

// configure writes what the engine's own configuration lacks to where ClickHouse
// merges it with that.
func (c *Cluster) configure(i int, opts ClusterOptions, password string) error {
	clusters := map[string][][]int{}
	for name, shards := range opts.Clusters {
		clusters[name] = shards
	}
	for n := range c.ports {
		clusters[Shards] = append(clusters[Shards], []int{n})
	}
	type replica struct{ Port int }
	configured := map[string][][]replica{}
	for name, shards := range clusters {
		for _, numbers := range shards {
			var replicas []replica
			for _, number := range numbers {
				r := replica{Port: 1} // that nobody listens on
				if number >= 0 {
					r.Port = c.ports[number]
				}
				replicas = append(replicas, r)
			}
			configured[name] = append(configured[name], replicas)
		}
	}
	macros := map[string]string{"shard": strconv.Itoa(i + 1), "replica": "r1"}
	if opts.Macros != nil {
		macros = opts.Macros[i]
	}
	values := map[string]any{
		"Host": engine.DefaultHost, "Clusters": configured, "Macros": macros, "Password": password,
	}
	if opts.ZooKeeper != "" {
		host, port, err := net.SplitHostPort(opts.ZooKeeper)
		if err != nil {
			return fmt.Errorf("ZooKeeper: %w", err)
		}
		values["ZooKeeperHost"], values["ZooKeeperPort"] = host, port
	}
	var out bytes.Buffer
	if err := template.Must(template.New("cluster.xml").Parse(clusterTemplate)).Execute(&out, values); err != nil {
		return fmt.Errorf("configure ClickHouse %d: %w", i, err)
	}
	more := filepath.Join(c.serverDir(i), "config.d")
	if err := os.MkdirAll(more, 0o700); err != nil {
		return err
	}
	if opts.Config != "" {
		if err := os.WriteFile(filepath.Join(more, "more.xml"), []byte(opts.Config), 0o600); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(more, "cluster.xml"), out.Bytes(), 0o600)
}

const clusterTemplate = `<clickhouse>
    <remote_servers>
{{- range $name, $shards := .Clusters}}
        <{{$name}}>
            <secret>{{$.Password}}</secret>
{{- range $shards}}
            <shard>
                <internal_replication>true</internal_replication>
{{- range .}}
                <replica><host>{{$.Host}}</host><port>{{.Port}}</port></replica>
{{- end}}
            </shard>
{{- end}}
        </{{$name}}>
{{- end}}
    </remote_servers>
    <macros>
{{- range $name, $value := .Macros}}
        <{{$name}}>{{$value}}</{{$name}}>
{{- end}}
    </macros>
{{- if .ZooKeeperHost}}
    <zookeeper><node><host>{{.ZooKeeperHost}}</host><port>{{.ZooKeeperPort}}</port></node></zookeeper>
{{- end}}
    <!-- Defaults that a server may have, and that no answer must depend on. -->
    <profiles>
        <cluster>
            <skip_unavailable_shards>1</skip_unavailable_shards>
            <distributed_foreground_insert>0</distributed_foreground_insert>
            <async_insert>1</async_insert>
        </cluster>
    </profiles>
    <users>
        <cluster>
            <password>{{.Password}}</password>
            <networks><ip>::1</ip><ip>127.0.0.0/8</ip></networks>
            <profile>cluster</profile>
            <quota>default</quota>
            <access_management>1</access_management>
            <named_collection_control>1</named_collection_control>
        </cluster>
    </users>
</clickhouse>
`

// start starts a server and waits until it answers.
func (c *Cluster) start(i int) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	e, err := engine.New(engine.Config{Library: c.library, Dir: c.serverDir(i), TCPPort: c.ports[i]}, log, nil)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &runningEngine{cancel: cancel, done: make(chan error, 1)}
	go func() { r.done <- e.Run(ctx) }()
	if err := e.WaitReady(ctx); err != nil {
		cancel()
		return errors.Join(err, <-r.done)
	}
	c.engines[i] = r
	c.Servers[i].HTTPAddr = e.HTTPAddr()
	return nil
}

func (c *Cluster) stop(i int) error {
	r := c.engines[i]
	if r == nil {
		return nil
	}
	c.engines[i] = nil
	r.cancel()
	return <-r.done
}

func (c *Cluster) close() error {
	var errs []error
	// All at once: each waits a while for its connections to the others.
	for _, r := range c.engines {
		if r != nil {
			r.cancel()
		}
	}
	for i := range c.engines {
		errs = append(errs, c.stop(i))
	}
	return errors.Join(errs...)
}

// Stop stops server i, from 0.
func (c *Cluster) Stop(tb testing.TB, i int) {
	tb.Helper()
	if err := c.stop(i); err != nil {
		tb.Fatalf("stop ClickHouse %d: %v", i, err)
	}
}

// Start starts server i again, on the same address and data.
func (c *Cluster) Start(tb testing.TB, i int) {
	tb.Helper()
	if err := c.start(i); err != nil {
		tb.Fatalf("start ClickHouse %d: %v", i, err)
	}
}

// DatabaseName returns the name of a database for this test, which is dropped on
// all servers when the test ends, with that of its shards.
func (c *Cluster) DatabaseName(tb testing.TB) string {
	tb.Helper()
	name := "c" + strconv.FormatInt(c.Servers[0].databases.Add(1), 10) + "_" + identifier(tb.Name())
	name = name[:min(len(name), 40)] // others are derived of it
	tb.Cleanup(func() {
		for i, server := range c.Servers {
			if c.engines[i] == nil {
				continue
			}
			server.Query(tb, "DROP DATABASE IF EXISTS "+name+" SYNC")
			server.Query(tb, "DROP DATABASE IF EXISTS "+name+"_shard SYNC")
		}
	})
	return name
}
