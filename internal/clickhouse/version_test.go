package clickhouse_test

import (
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/ClickHouse/ch-go/proto"

	"github.com/sluicehq/sluice/internal/clickhouse"
	"github.com/sluicehq/sluice/internal/clickhouse/clickhousetest"
	"github.com/sluicehq/sluice/internal/event"
)

// greeter is a server that says what version it is, and nothing else.
func greeter(t *testing.T, hello proto.ServerHello) string {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	var greeting proto.Buffer
	hello.EncodeAware(&greeting, hello.Revision)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				_, _ = c.Write(greeting.Buf)
				_ = c.(*net.TCPConn).CloseWrite()
				_, _ = io.Copy(io.Discard, c) // until the client goes
			}()
		}
	}()
	return l.Addr().String()
}

func TestOldServersAreRefused(t *testing.T) {
	for _, tt := range []struct {
		name         string
		major, minor int
		found        string
		has, lacks   []string
	}{
		{name: "of Debian", major: 18, minor: 16, found: "ClickHouse 18.16.9 ", lacks: []string{
			"merge_selector_base", "enable_max_bytes_limit_for_min_age_to_force_merge", "use_skip_indexes_if_final_exact_mode", "deduplicate_insert",
		}},
		{name: "a high number of an early year", major: 24, minor: 12, found: "ClickHouse 24.12.9 ", has: []string{"merge_selector_base"}, lacks: []string{
			"enable_max_bytes_limit_for_min_age_to_force_merge", "use_skip_indexes_if_final_exact_mode", "deduplicate_insert",
		}},
		{name: "of long-term support", major: 25, minor: 8, found: "ClickHouse 25.8.9 ", has: []string{
			"use_skip_indexes_if_final_exact_mode",
		}, lacks: []string{"deduplicate_insert"}},
		{name: "the last that does not do", major: 26, minor: 1, found: "ClickHouse 26.1.9 ", lacks: []string{"deduplicate_insert"}},
		{name: "the oldest that does", major: 26, minor: 2},
		{name: "a later number", major: 26, minor: 11},
		{name: "a later year", major: 27, minor: 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			addr := greeter(t, proto.ServerHello{
				Name: "ClickHouse", Major: tt.major, Minor: tt.minor, Patch: 9, Revision: proto.Version, Timezone: "UTC", DisplayName: "a",
			})
			store := clickhousetest.Open(t, clickhouse.Config{Addr: addr, Database: "sluice"})
			_, migrated := store.Migrate(t.Context())
			_, read := store.Event(t.Context(), event.Ref{Alias: "a"}, 0)
			for name, err := range map[string]error{"migrate": migrated, "read": read, "ready": store.Ready(t.Context())} {
				if err == nil {
					t.Fatalf("%s: no error from a server that answers nothing", name)
				}
				if errors.Is(err, event.ErrDatabaseOld) != (tt.found != "") || clickhouse.IsRetryable(err) == (tt.found != "") {
					t.Errorf("%s: retryable is %v: %v", name, clickhouse.IsRetryable(err), err)
				}
				if !strings.Contains(err.Error(), tt.found) || tt.found != "" && !strings.Contains(err.Error(), "the oldest version that works is 26.2") {
					t.Errorf("%s: %v, want it to name %q and 26.2", name, err, tt.found)
				}
				for _, word := range tt.lacks {
					if !strings.Contains(err.Error(), word) {
						t.Errorf("%s: %v, without %s", name, err, word)
					}
				}
				for _, word := range tt.has {
					if strings.Contains(err.Error(), word) {
						t.Errorf("%s: %v, with %s", name, err, word)
					}
				}
			}
		})
	}
}
