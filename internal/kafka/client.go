package kafka

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"
	"github.com/twmb/franz-go/plugin/kprom"
)

// newClient checks the config and returns a client of it; cfg is completed
// with its defaults. It does not connect.
func newClient(cfg *Config, log *slog.Logger, opts ...kgo.Opt) (*kgo.Client, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("kafka config: %w", err)
	}
	*cfg = cfg.WithDefaults()
	base := []kgo.Opt{
		kgo.SeedBrokers(cfg.Brokers...),
		kgo.ClientID(cfg.ClientID),
		kgo.WithLogger(clientLogger{log}),
		kgo.DialTimeout(cfg.DialTimeout),
		// So that a new leader is found soon after the old one is gone.
		kgo.MetadataMinAge(250 * time.Millisecond),
		// A connection that swallows requests is given up when an answer is this much
		// later than the brokers' own timeout.
		kgo.RequestTimeoutOverhead(requestTimeout),
		kgo.RetryBackoffFn(retryPause),
		// A few kilobytes that another producer wrote can inflate to a gigabyte. The
		// consumer of the events topic has a limit of its own.
		kgo.MaxDecompressBatchBytes(inflatedBatchBytesMax),
	}
	if cfg.TLS.Enabled {
		conf, err := cfg.TLS.load()
		if err != nil {
			return nil, err
		}
		dialer := &tls.Dialer{NetDialer: &net.Dialer{Timeout: cfg.DialTimeout}, Config: conf}
		base = append(base, kgo.Dialer(dialer.DialContext))
	}
	if m := cfg.SASL.mechanism(); m != nil {
		base = append(base, kgo.SASL(m))
	}
	cl, err := kgo.NewClient(append(base, opts...)...)
	if err != nil {
		return nil, fmt.Errorf("kafka client: %w", err)
	}
	return cl, nil
}

// clientMetrics is the option that registers a client's metrics under the name.
func clientMetrics(cfg *Config, name string) kgo.Opt {
	if cfg.ClientMetrics == nil {
		return kgo.WithHooks()
	}
	return kgo.WithHooks(kprom.NewMetrics("sluice",
		kprom.Subsystem("kafka_client"),
		kprom.Registerer(cfg.ClientMetrics),
		kprom.WithStaticLabel(prometheus.Labels{"client": name}),
		kprom.FetchAndProduceDetail(kprom.ByTopic, kprom.Batches, kprom.Records, kprom.CompressedBytes, kprom.UncompressedBytes, kprom.ConsistentNaming),
		kprom.Histograms(kprom.RequestDurationE2E, kprom.RequestThrottled),
	))
}

// retryPause returns the client's pause after a number of failures in a row. The
// client's default of up to 5 s is too long for a group without rebalances,
// because it counts each loss of the coordinator, however long ago, as one more
// failure of the row.
func retryPause(failures int) time.Duration {
	const least, most = 250 * time.Millisecond, time.Second
	pause := most
	if failures < 3 {
		pause = least << max(0, failures-1)
	}
	return pause*4/5 + rand.N(pause*2/5) //nolint:gosec // jitter needs no secrecy
}

func (c TLSConfig) load() (*tls.Config, error) {
	conf := &tls.Config{
		MinVersion:         tls.VersionTLS12,
		ServerName:         c.ServerName,
		InsecureSkipVerify: c.InsecureSkipVerify, //nolint:gosec // asked for by name, and off by default
	}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read TLS.CAFile: %w", err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, errors.New("TLS.CAFile: holds no PEM certificate")
		}
	}
	if c.CertFile != "" {
		cert, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("load TLS.CertFile and TLS.KeyFile: %w", err)
		}
		conf.Certificates = []tls.Certificate{cert}
	}
	return conf, nil
}

func (c SASLConfig) mechanism() sasl.Mechanism {
	switch c.Mechanism {
	case MechanismPlain:
		return plain.Auth{User: c.User, Pass: c.Password}.AsMechanism()
	case MechanismScramSHA256:
		return scram.Auth{User: c.User, Pass: c.Password}.AsSha256Mechanism()
	case MechanismScramSHA512:
		return scram.Auth{User: c.User, Pass: c.Password}.AsSha512Mechanism()
	}
	return nil
}

// ClientLogger returns a logger for the Kafka client that writes to log. The
// client's errors become warnings. Its own warnings, several a second and
// partition while a broker is away, become debug lines: whoever needs the broker
// then gets an error from this package.
func ClientLogger(log *slog.Logger) kgo.Logger { return clientLogger{log} }

type clientLogger struct{ log *slog.Logger }

func (l clientLogger) Level() kgo.LogLevel {
	if l.log.Enabled(context.Background(), slog.LevelDebug) {
		return kgo.LogLevelInfo
	}
	return kgo.LogLevelError
}

func (l clientLogger) Log(level kgo.LogLevel, msg string, keyvals ...any) {
	to := slog.LevelDebug
	if level == kgo.LogLevelError {
		to = slog.LevelWarn
	}
	l.log.Log(context.Background(), to, "kafka client", append([]any{"detail", msg}, keyvals...)...)
}
