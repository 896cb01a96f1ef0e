package kafka_test

import (
	"context"
	"testing"
	"time"

	"github.com/sluicehq/sluice/internal/kafka"
	"github.com/sluicehq/sluice/internal/kafka/kafkatest"
)

// All that speaks to the brokers does so over TLS and SASL.
func TestApacheKafkaSecure(t *testing.T) {
	broker := apacheKafka(t)
	b := &backend{addr: broker.SecureAddrs[0]}
	good := func(mechanism string) kafka.Config {
		cfg := b.config()
		cfg.TLS = kafka.TLSConfig{Enabled: true, CAFile: broker.CAFile}
		cfg.SASL = kafka.SASLConfig{Mechanism: mechanism, User: kafkatest.User, Password: kafkatest.Password}
		return cfg
	}
	for _, mechanism := range []string{kafka.MechanismScramSHA256, kafka.MechanismScramSHA512, kafka.MechanismPlain} {
		t.Run(mechanism, func(t *testing.T) {
			cfg := good(mechanism)
			if _, err := kafka.EnsureTopics(t.Context(), cfg, kafkatest.Log(t)); err != nil {
				t.Fatal(err)
			}
			receipts := kafkatest.Produce(t, kafkatest.NewProducer(t, cfg), kafkatest.Updates(0, 50, 50))
			c := kafkatest.NewConsumer(t, cfg, nil)
			if err := c.Commit(t.Context(), kafkatest.Offsets(kafkatest.Collect(t, c, 50))); err != nil {
				t.Fatal(err)
			}
			w, err := kafka.NewWatcher(cfg, kafkatest.Log(t))
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), kafkatest.Timeout)
			defer cancel()
			ended := make(chan error)
			go func() { ended <- w.Run(ctx) }()
			if err := w.Wait(ctx, receipts); err != nil {
				t.Error(err)
			}
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
	for _, tt := range []struct {
		name   string
		change func(*kafka.Config)
	}{
		{"wrong password", func(c *kafka.Config) { c.SASL.Password = "wrong" }},
		{"unknown user", func(c *kafka.Config) { c.SASL.User = "nobody" }},
		{"no login", func(c *kafka.Config) { c.SASL = kafka.SASLConfig{} }},
		{"untrusted authority", func(c *kafka.Config) { c.TLS.CAFile = "" }},
		{"another name", func(c *kafka.Config) { c.TLS.ServerName = "kafka.example" }},
		{"no TLS", func(c *kafka.Config) { c.TLS = kafka.TLSConfig{} }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := good(kafka.MechanismScramSHA256)
			tt.change(&cfg)
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			if _, err := kafka.EnsureTopics(ctx, cfg, kafkatest.Log(t)); err == nil {
				t.Error("accepted")
			}
		})
	}
	t.Run("unverified, as asked for", func(t *testing.T) {
		cfg := good(kafka.MechanismScramSHA512)
		cfg.TLS = kafka.TLSConfig{Enabled: true, InsecureSkipVerify: true}
		if _, err := kafka.EnsureTopics(t.Context(), cfg, kafkatest.Log(t)); err != nil {
			t.Error(err)
		}
	})
}
