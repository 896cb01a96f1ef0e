package kafka_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluicehq/sluice/internal/kafka"
	"github.com/sluicehq/sluice/internal/kafka/kafkatest"
)

func TestConfigValidate(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		change func(*kafka.Config)
		want   []string // empty: valid
	}{
		{"the least", func(*kafka.Config) {}, nil},
		{"no broker", func(c *kafka.Config) { c.Brokers = nil }, []string{"Brokers:"}},
		{"a broker without port", func(c *kafka.Config) { c.Brokers = []string{"localhost"} }, []string{"Brokers:"}},
		{"a topic prefix with a slash", func(c *kafka.Config) { c.TopicPrefix = "a/b" }, []string{"TopicPrefix:"}},
		{"negative numbers", func(c *kafka.Config) {
			c.Generation, c.Partitions, c.PartitionsNew, c.ReplicationFactor, c.Retention, c.DeadLetterRetention, c.DialTimeout = -1, -1, -1, -1, -1, -1, -1
		}, []string{"Generation:", "Partitions:", "PartitionsNew:", "ReplicationFactor:", "Retention:", "DeadLetterRetention:", "DialTimeout:"}},
		{"a generation too high", func(c *kafka.Config) { c.Generation = 1 << 14 }, []string{"Generation:"}},
		{"TLS that is not enabled", func(c *kafka.Config) { c.TLS.CAFile = "ca.pem" }, []string{"TLS:"}},
		{"a certificate without key", func(c *kafka.Config) { c.TLS = kafka.TLSConfig{Enabled: true, CertFile: "c.pem"} }, []string{"TLS.CertFile, TLS.KeyFile:"}},
		{"an unknown mechanism", func(c *kafka.Config) { c.SASL.Mechanism = "GSSAPI" }, []string{"SASL.Mechanism:"}},
		{"a mechanism alone", func(c *kafka.Config) { c.SASL.Mechanism = kafka.MechanismScramSHA512 }, []string{"SASL.User:", "SASL.Password:"}},
		{"a user alone", func(c *kafka.Config) { c.SASL.User = "u" }, []string{"SASL.Mechanism:"}},
		{"an unknown compression", func(c *kafka.Config) { c.Producer.Compression = "gzip" }, []string{"Producer.Compression:"}},
		{"no linger", func(c *kafka.Config) { c.Producer.Linger = -1 }, nil},
		{"a producer out of range", func(c *kafka.Config) {
			c.Producer = kafka.ProducerConfig{AckTimeout: 1, BufferBytesMax: 1, BufferRecordsMax: -1, Linger: time.Hour, BatchBytesMax: 1}
		}, []string{"Producer.AckTimeout:", "Producer.BufferBytesMax:", "Producer.BufferRecordsMax:", "Producer.Linger:", "Producer.BatchBytesMax:"}},
		{"a consumer out of range", func(c *kafka.Config) {
			c.Consumer = kafka.ConsumerConfig{FetchBytesMax: -1, PartitionBytesMax: -1, InflatedBytesMax: 1, RebalanceTimeout: 1, SessionTimeout: 1}
		}, []string{"Consumer.FetchBytesMax:", "Consumer.PartitionBytesMax:", "Consumer.InflatedBytesMax:", "Consumer.RebalanceTimeout:", "Consumer.SessionTimeout:"}},
		{"a watcher out of range", func(c *kafka.Config) {
			c.Watcher = kafka.WatcherConfig{PollInterval: -1, PollIntervalMax: -2, RefusedMax: -1}
		}, []string{"Watcher.PollInterval:", "Watcher.PollIntervalMax:", "Watcher.RefusedMax:"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg := kafka.Config{Brokers: []string{"localhost:9092"}}
			tt.change(&cfg)
			err := cfg.Validate()
			if len(tt.want) == 0 {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil {
				t.Fatal("valid")
			}
			lines := strings.Split(err.Error(), "\n")
			if len(lines) != len(tt.want) {
				t.Errorf("%d mistakes, want %d: %v", len(lines), len(tt.want), err)
			}
			for _, field := range tt.want {
				if !strings.Contains(err.Error(), field) {
					t.Errorf("error does not name %s: %v", field, err)
				}
			}
			if strings.HasPrefix(tt.name, "no broker") {
				if _, err := kafka.NewProducer(cfg, kafkatest.Log(t), prometheus.NewRegistry()); err == nil {
					t.Error("a producer was made of it")
				}
			}
		})
	}
}

func TestTLSFiles(t *testing.T) {
	t.Parallel()
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		tls  kafka.TLSConfig
		want string
	}{
		{"no such authority", kafka.TLSConfig{Enabled: true, CAFile: empty + ".not"}, "TLS.CAFile"},
		{"an empty authority", kafka.TLSConfig{Enabled: true, CAFile: empty}, "TLS.CAFile"},
		{"an empty certificate", kafka.TLSConfig{Enabled: true, CertFile: empty, KeyFile: empty}, "TLS.CertFile"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := kafka.NewDeadLetters(kafka.Config{Brokers: []string{"localhost:9092"}, TLS: tt.tls}, kafkatest.Log(t))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v does not name %s", err, tt.want)
			}
		})
	}
}

// The script that installs the jars and the code that looks for them agree.
func TestInstallScript(t *testing.T) {
	t.Parallel()
	script, err := os.ReadFile("../../scripts/install-kafka.sh")
	if err != nil {
		t.Fatal(err)
	}
	if want := "\nversion=" + kafkatest.Version + "\n"; !strings.Contains(string(script), want) {
		t.Errorf("scripts/install-kafka.sh does not say %q", want)
	}
}
