package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluicehq/sluice/internal/engine/enginetest"
	"github.com/sluicehq/sluice/internal/kafka"
	"github.com/sluicehq/sluice/internal/kafka/kafkatest"
	"github.com/sluicehq/sluice/test/checker"
)

// TestCluster runs two APIs and two consumers on three brokers and two shards
// of ClickHouse, and kills a broker under load. The log, folded in plain Go, is
// then what the tables have, row for row, and all that was acknowledged is in
// it; each shard has its own conversations alone.
func TestCluster(t *testing.T) {
	t.Parallel()
	const database = "sluice"
	began := time.Now()
	took := func(what string) {
		t.Logf("%s: %s", what, time.Since(began).Round(time.Millisecond))
		began = time.Now()
	}
	brokers := kafkatest.Start(t, kafkatest.Options{Brokers: 3, QuickStart: true})
	clickhouse := enginetest.StartCluster(t, enginetest.ClusterOptions{})
	took("three brokers and two shards started")
	urlOf := func(i int) string {
		s := clickhouse.Servers[i]
		u := url.URL{Scheme: "clickhouse", User: url.UserPassword(s.User, s.Password), Host: s.Addr, Path: "/" + database}
		return u.String()
	}
	// One that is told of the cluster waits for its tables; it makes none.
	flags := func(i int) []string {
		return []string{"--clickhouse-url", urlOf(i), "--cluster", enginetest.Shards, "--kafka-brokers", strings.Join(brokers.Addrs, ",")}
	}
	var (
		apis, consumers []*process
		clients         []*client
	)
	for i := range 2 {
		apis = append(apis, start(t, append([]string{"api", "--listen", "127.0.0.1:0"}, flags(i)...)...))
		consumers = append(consumers, startConsumer(t, flags(i)))
	}
	eventually(t, startBound, "a consumer to wait for the tables", func() error {
		if !strings.Contains(string(consumers[0].log.bytes()), "sluice migrate --cluster") {
			return errors.New("its log does not say so")
		}
		return nil
	})
	if code := start(t, "migrate", "--clickhouse-url", urlOf(1), "--cluster", enginetest.Shards).wait(t, startBound); code != 0 {
		t.Fatalf("migrate exited %d", code)
	}
	history := checker.NewHistory()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	loaded := make(chan struct{})
	for i, p := range apis {
		c := newClient(p.addr(t))
		c.waitReady(t)
		clients = append(clients, c)
		l := &checker.Load{URL: c.base, Clients: 4, Pause: 20 * time.Millisecond, Seed: uint64(i), History: history}
		go func() {
			l.Run(ctx)
			loaded <- struct{}{}
		}()
	}
	for _, p := range consumers {
		eventually(t, startBound, "both consumers to work", func() error { return hasFlushed(t, p) })
	}
	took("two APIs and two consumers work")
	acknowledged := func() int { return history.Count(checker.Acknowledged) + history.Count(checker.Applied) }
	more := func(what string) {
		t.Helper()
		want := acknowledged() + 300
		eventually(t, startBound, "300 more writes "+what, func() error {
			if now := acknowledged(); now < want {
				return fmt.Errorf("%d are missing", want-now)
			}
			return nil
		})
		took("300 more writes " + what)
	}
	more("on three brokers")
	brokers.Kill(1)
	more("on two brokers")
	if err := brokers.Restart(1); err != nil {
		t.Fatal(err)
	}
	took("the broker started again")
	more("on three brokers again")
	stop()
	<-loaded
	<-loaded

	cfg := kafka.Config{Brokers: brokers.Addrs}.WithDefaults()
	eventually(t, applyBound, "the consumers to apply all", func() error { return drained(t, cfg) })
	took("all applied")
	bounded, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	log, err := checker.ReadLog(bounded, cfg)
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range clickhouse.Servers {
		db := checker.Database{Addr: s.HTTPAddr, Name: database, User: s.User, Password: s.Password}
		tables, err := db.ReadTables(bounded)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("by server %d: %s; log: %d records, %d dead letters; tables: %s", i, history.Summary(), len(log.Records), len(log.Letters), tables)
		if err := history.Check(log, tables); err != nil {
			t.Errorf("by server %d: %v", i, err)
		}
		for _, table := range []string{"events", "event_contents", "event_embeddings"} {
			rows, err := db.Query(bounded, "SELECT count() > 0, countIf(conversation_hash % 2 != "+strconv.Itoa(i)+") FROM "+database+"_shard."+table)
			if err != nil {
				t.Fatal(err)
			}
			if rows[0][0] != "1" || rows[0][1] != "0" {
				t.Errorf("shard %d, %s: some rows, and those of the other shard: %q", i, table, rows[0])
			}
		}
	}
	compareAPIs(t, clients)
	requireReplicas(t, cfg)
	took("compared")
	for _, p := range append(consumers, apis...) {
		p.stop(t)
	}
	took("stopped")
}

// compareAPIs has all answer the same questions.
func compareAPIs(t *testing.T, clients []*client) {
	t.Helper()
	now := time.Now()
	for _, path := range []string{
		"/analytics/errors?", "/analytics/conversations?limit=50&",
		"/analytics/latency?q=0.95&q=0.5&group_by=conversation,event_name&limit=50&", "/analytics/timeseries?interval=24h&",
	} {
		// Not "100d", which is before the moment that each is asked.
		path += fmt.Sprintf("since=%d&until=%d", now.AddDate(0, 0, -100).UnixMilli(), now.UnixMilli())
		var first string
		for i, c := range clients {
			a, err := c.do("GET", path, nil, "")
			if err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				first = string(a.body)
			}
			if a.status != 200 || string(a.body) != first || len(a.body) < 20 {
				t.Errorf("GET %s: status %d: API %d answers\n%s\nand the first\n%s", path, a.status, i, a.body, first)
			}
		}
	}
}

// askBrokers asks with a client of its own.
func askBrokers(t *testing.T, cfg kafka.Config, ask func(ctx context.Context, adm *kadm.Client) error) error {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(cfg.Brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	return ask(ctx, kadm.NewClient(cl))
}

// drained returns nil when all of the log is applied.
func drained(t *testing.T, cfg kafka.Config) error {
	t.Helper()
	return askBrokers(t, cfg, func(ctx context.Context, adm *kadm.Client) error {
		lags, err := adm.Lag(ctx, cfg.Group)
		if err == nil {
			err = lags.Error()
		}
		if err != nil {
			return err
		}
		if left := lags[cfg.Group].Lag.Total(); left > 0 {
			return fmt.Errorf("%d records are left", left)
		}
		return nil
	})
}

// requireReplicas checks that the topics are on three brokers, two of which
// acknowledge.
func requireReplicas(t *testing.T, cfg kafka.Config) {
	t.Helper()
	topics := []string{cfg.EventsTopic(), cfg.DeadLetterTopic()}
	err := askBrokers(t, cfg, func(ctx context.Context, adm *kadm.Client) error {
		details, err := adm.ListTopics(ctx, topics...)
		if err != nil {
			return err
		}
		configs, err := adm.DescribeTopicConfigs(ctx, topics...)
		if err != nil {
			return err
		}
		for _, topic := range topics {
			if n := details[topic].Partitions.NumReplicas(); n != 3 {
				t.Errorf("%s has %d replicas, want 3", topic, n)
			}
			described, err := configs.On(topic, nil)
			if err != nil {
				return err
			}
			for _, c := range described.Configs {
				if c.Key == "min.insync.replicas" && c.MaybeValue() != "2" {
					t.Errorf("%s has min.insync.replicas=%s, want 2", topic, c.MaybeValue())
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
