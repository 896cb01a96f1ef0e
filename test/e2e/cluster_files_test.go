package e2e_test

import (
	"context"
	"encoding/xml"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluicehq/sluice/internal/engine"
	"github.com/sluicehq/sluice/test/checker"
)

const clusterFiles = "../../deploy/cluster/"

func readFile(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// allOf are the first groups of all matches, in order.
func allOf(pattern, text string) []string {
	var all []string
	for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
		all = append(all, m[1])
	}
	return all
}

// TestClusterFiles has a real ClickHouse read the configuration of
// deploy/cluster, and holds the files there together.
func TestClusterFiles(t *testing.T) {
	compose := readFile(t, clusterFiles+"compose.yaml")
	config := readFile(t, clusterFiles+"clickhouse.xml")
	_, services, _ := strings.Cut(compose, "\nservices:\n")
	services, _, _ = strings.Cut(services, "\nvolumes:\n")
	names := allOf(`(?m)^  ([a-z0-9-]+):$`, services)

	t.Run("keepers", func(t *testing.T) {
		keeper := readFile(t, clusterFiles+"keeper.xml")
		if err := xml.Unmarshal([]byte(keeper), new(struct{})); err != nil {
			t.Error(err)
		}
		members := allOf(`<hostname>([^<]+)</hostname>`, keeper)
		asked := allOf(`<node><host>([^<]+)</host><port>9181</port>`, config)
		if diff := cmp.Diff(members, asked); diff != "" || len(members) != 3 {
			t.Errorf("keepers (-of themselves +of the servers):\n%s", diff)
		}
		for i, name := range members {
			if want := "  " + name + ":\n    <<: *keeper\n    environment: {KEEPER_ID: " + string(rune('1'+i)) + "}"; !strings.Contains(services, want) {
				t.Errorf("compose.yaml does not have\n%s", want)
			}
		}
	})
	t.Run("brokers", func(t *testing.T) {
		brokers := slices.DeleteFunc(slices.Clone(names), func(name string) bool { return !strings.HasPrefix(name, "kafka-") })
		for i, name := range brokers {
			for _, want := range []string{"PLAINTEXT://" + name + ":9092", string(rune('1'+i)) + "@" + name + ":9093"} {
				if !strings.Contains(compose, want) {
					t.Errorf("compose.yaml does not have %s", want)
				}
			}
		}
		if want := "SLUICE_KAFKA_BROKERS: " + strings.Join(brokers, ":9092,") + ":9092\n"; !strings.Contains(compose, want) {
			t.Errorf("compose.yaml does not have %s", want)
		}
	})
	t.Run("servers", func(t *testing.T) {
		// The engine's child has no variables of ours.
		values := map[string]string{"SLUICE_SHARD": "2", "SLUICE_REPLICA": "b", "SLUICE_SECRET": "secret"}
		fromEnv := regexp.MustCompile(`<(\w+) from_env="(\w+)"/>`)
		db := engineWith(t, fromEnv.ReplaceAllStringFunc(config, func(element string) string {
			m := fromEnv.FindStringSubmatch(element)
			return "<" + m[1] + ">" + values[m[2]] + "</" + m[1] + ">"
		}))
		rows, err := db.Query(t.Context(), `SELECT shard_num, replica_num, host_name, toString(port), toString(internal_replication)
			FROM system.clusters WHERE cluster = 'sluice' ORDER BY shard_num, replica_num`)
		if err != nil {
			t.Fatal(err)
		}
		want := [][]string{
			{"1", "1", "clickhouse-1a", "9000", "1"},
			{"1", "2", "clickhouse-1b", "9000", "1"},
			{"2", "1", "clickhouse-2a", "9000", "1"},
			{"2", "2", "clickhouse-2b", "9000", "1"},
		}
		if diff := cmp.Diff(want, rows); diff != "" {
			t.Errorf("the cluster (-want +got):\n%s", diff)
		}
		for _, row := range rows {
			name := strings.TrimPrefix(row[2], "clickhouse-")
			if want := "  " + row[2] + ":\n    <<: *clickhouse\n    hostname: " + row[2] + "\n    environment: {<<: *clickhouse-environment, SLUICE_SHARD: \"" +
				name[:1] + "\", SLUICE_REPLICA: " + name[1:] + "}"; !strings.Contains(services, want) {
				t.Errorf("compose.yaml does not have\n%s", want)
			}
		}
		if rows, err = db.Query(t.Context(), "SELECT macro, substitution FROM system.macros ORDER BY macro"); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([][]string{{"replica", "b"}, {"shard", "2"}}, rows); diff != "" {
			t.Errorf("macros (-want +got):\n%s", diff)
		}
	})
}

// engineWith starts a ClickHouse with more configuration.
func engineWith(t *testing.T, config string) checker.Database {
	t.Helper()
	library, err := engine.Find("")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "config.d"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.d", "more.xml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	e, err := engine.New(engine.Config{Library: library, Dir: dir}, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	if err := e.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	return checker.Database{Addr: e.HTTPAddr(), Name: "system", User: engine.User, Password: e.Password()}
}
