package kafkatest

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/sluicehq/sluice/internal/testport"
)

// ZooKeeperVersion is of the Apache Kafka whose jars have ZooKeeper, the last
// line that has. "make kafka" installs them too.
const ZooKeeperVersion = "3.9.1"

// StartZooKeeper starts ZooKeeper, for what else needs one, and returns its
// address. It ends with the test. It is skipped, or fails the test, as [Start].
func StartZooKeeper(tb testing.TB) (addr string) {
	tb.Helper()
	Require(tb)
	cache, err := os.UserCacheDir()
	if err != nil {
		tb.Fatal(err)
	}
	libs := filepath.Join(cache, "sluice", "kafka-"+ZooKeeperVersion, "libs")
	if _, err := os.Stat(filepath.Join(libs, "kafka_2.13-"+ZooKeeperVersion+".jar")); err != nil {
		err = fmt.Errorf("jars of Kafka, which KAFKA_VERSION=%s scripts/install-kafka.sh installs: %w", ZooKeeperVersion, err)
		if os.Getenv(EnvVar) == "1" {
			tb.Fatal(err)
		}
		tb.Skipf("no ZooKeeper: %v", err)
	}
	ports, err := testport.Free(1)
	if err != nil {
		tb.Fatal(err)
	}
	addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[0]))
	dir := tb.TempDir()
	config := filepath.Join(dir, "zookeeper.properties")
	text := fmt.Sprintf("dataDir=%s\nclientPort=%d\nclientPortAddress=127.0.0.1\nadmin.enableServer=false\ntickTime=500\n", filepath.Join(dir, "data"), ports[0])
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		tb.Fatal(err)
	}
	java, err := exec.LookPath("java")
	if err != nil {
		tb.Fatal(err)
	}
	var log bytes.Buffer
	args := []string{
		"-Xmx256m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", filepath.Join(libs, "*"),
		"org.apache.zookeeper.server.quorum.QuorumPeerMain", config,
	}
	cmd := exec.Command(java, args...) //nolint:noctx // ended by the cleanup
	cmd.Stdout, cmd.Stderr = &log, &log
	p, err := startProcess(cmd)
	if err != nil {
		tb.Fatalf("start ZooKeeper: %v", err)
	}
	tb.Cleanup(func() {
		p.kill()
		if tb.Failed() {
			tb.Logf("ZooKeeper's log:\n%s", log.Bytes()[max(0, log.Len()-4000):])
		}
	})
	for deadline := time.Now().Add(startTimeout); ; {
		conn, err := net.DialTimeout("tcp", addr, time.Second) //nolint:noctx // bounded
		if err == nil {
			_ = conn.Close()
			return addr
		}
		select {
		case <-p.done:
			tb.Fatalf("ZooKeeper ended: %v", errors.Join(p.err, err))
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			tb.Fatalf("ZooKeeper does not answer: %v", err)
		}
	}
}
