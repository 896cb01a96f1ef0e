package conn_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
)

func TestParseURL(t *testing.T) {
	tests := []struct {
		name, url string
		want      conn.Config
	}{
		{"all", "clickhouse://user:p%40ss@host:9001/db?secure=true&ca_file=/ca.pem&server_name=ch&compression=lz4&dial_timeout=2s&pool_size=3", conn.Config{
			Addr: "host:9001", User: "user", Password: "p@ss", Database: "db", TLS: conn.TLS{Enabled: true, CAFile: "/ca.pem", ServerName: "ch"},
			Compression: conn.CompressionLZ4, DialTimeout: 2 * time.Second, WriteConnectionsMax: 3, ReadConnectionsMax: 3,
		}},
		{"host only", "clickhouse://host", conn.Config{Addr: "host:9000"}},
		{"the port of TLS", "clickhouse://host?secure=1", conn.Config{Addr: "host:9440", TLS: conn.TLS{Enabled: true}}},
		{"IPv6", "clickhouse://[::1]:9000/db", conn.Config{Addr: "[::1]:9000", Database: "db"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := conn.ParseURL(test.url)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error("config (-want +got):\n" + diff)
			}
		})
	}
}

func TestParseURLRefuses(t *testing.T) {
	tests := []struct{ name, url, want string }{
		{"another scheme", "http://u:hunter2@host", "scheme"},
		{"no host", "clickhouse:///db", "form"},
		{"a bad port", "clickhouse://u:hunter2@host:hunter2/db", "form"},
		{"a slash in the password", "clickhouse://u:hunter2/x@host/db", "form"},
		{"a slash after a number in the password", "clickhouse://u:12/hunter2@host/db", "percent-encoded"},
		{"a question mark in the password", "clickhouse://u:12?hunter2@host/db", "percent-encoded"},
		{"an unknown setting", "clickhouse://u:hunter2@host?nope=1", "nope"},
		{"a bad setting", "clickhouse://u:hunter2@host?pool_size=x", "pool_size"},
		{"two bad settings", "clickhouse://u:hunter2@host?pool_size=x&dial_timeout=y", "dial_timeout"},
		{"a bad database", "clickhouse://u:hunter2@host/a%20b", "Database"},
		{"a CA without TLS", "clickhouse://u:hunter2@host?ca_file=x", "TLS"},
		{"port 0", "clickhouse://u:hunter2@host:0", "Addr"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := conn.ParseURL(test.url)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("got %v, want an error with %q", err, test.want)
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the error has the password: %v", err)
			}
		})
	}
}

func TestValidateNamesEveryField(t *testing.T) {
	err := conn.Config{
		Addr: "nonsense", Database: "a;b", Cluster: "a'b", DialTimeout: -1, WriteConnectionsMax: -1, ReadConnectionsMax: -1, AnalyticsConnectionsMax: -1, Compression: "gzip", InsertTimeout: -1, LookupTimeout: -1,
		QueryTimeout: -1, QueryMemoryBytesMax: -1, InsertConcurrency: -1, BlockRowsMax: -1, BlockBytesMax: -1, LookupKeysMax: -1, PageBytesMax: -1,
		TLS: conn.TLS{CAFile: "x"},
	}.Validate()
	if err == nil {
		t.Fatal("no error")
	}
	for _, field := range []string{
		"Addr", "Database", "Cluster", "DialTimeout", "WriteConnectionsMax", "ReadConnectionsMax", "AnalyticsConnectionsMax", "Compression", "InsertTimeout", "LookupTimeout", "QueryTimeout",
		"QueryMemoryBytesMax", "InsertConcurrency", "BlockRowsMax", "BlockBytesMax", "LookupKeysMax", "PageBytesMax", "TLS",
	} {
		if !strings.Contains(err.Error(), " "+field+": ") {
			t.Errorf("%s is not named in %v", field, err)
		}
	}
	if err := (conn.Config{Addr: "host:9000"}).Validate(); err != nil {
		t.Error(err)
	}
}
