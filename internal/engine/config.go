package engine

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"text/template"
	"time"
)

// Defaults and bounds of [Config].
const (
	DefaultHost         = "127.0.0.1"
	DefaultStartTimeout = 2 * time.Minute
	DefaultStopTimeout  = 30 * time.Second

	DefaultRestartDelayMax = 10 * time.Second

	// MemoryMinBytes is the smallest MemoryMaxBytes that Validate accepts. With less, the
	// server starts but refuses merges and queries of an ordinary size.
	MemoryMinBytes = 512 << 20
)

// Config says where an [Engine] keeps its data and what it may use.
type Config struct {
	// Library is the path of libchdb.so, as returned by [Find]. Required.
	Library string

	// Dir is the directory for the engine's data, configuration and logs. If it does not
	// exist, it is created, readable by its owner only. Only one engine at a time can use
	// it. Required.
	Dir string

	// Host is the loopback IP address to listen on. Default: [DefaultHost]. Other
	// addresses are refused, because the server has no TLS.
	Host string

	// TCPPort and HTTPPort are the ports of the native protocol and of HTTP. With 0, the
	// default, the engine chooses a free port at its first start, and keeps it when the
	// child is started again.
	TCPPort, HTTPPort int

	// MemoryMaxBytes bounds the memory of the server. A query that would need more fails,
	// and the server goes on. The bound is at least [MemoryMinBytes]. 0, the default, is
	// half of the machine's memory.
	MemoryMaxBytes int64

	// SystemLogs turns on system.query_log and system.part_log, which keep their rows for a
	// day. They are for benchmarks and for finding faults, because they cost CPU and disk
	// for every query and part. Default: off.
	SystemLogs bool

	// SQLUser is a second user, [SQLUser], for queries that others write. Default: there
	// is none.
	SQLUser *SQLUserConfig

	// Settings are the query settings of every session of [User], for example
	// "max_threads": "2". Default: the server's own.
	Settings map[string]string

	// ServerSettings are top-level settings of the server, for example
	// "background_pool_size": "8". They replace those that this package chooses, and the
	// server's defaults.
	ServerSettings map[string]string

	// StartTimeout bounds the time from the start of the child to its first answer. A
	// child that takes longer is killed. The time must suffice to load every part of every
	// table. Default: [DefaultStartTimeout].
	StartTimeout time.Duration

	// RestartDelayMax bounds the pause before a child that died is started again. The pause
	// doubles each time, until a child has served for a minute. Default:
	// [DefaultRestartDelayMax].
	RestartDelayMax time.Duration

	// StopTimeout bounds a clean stop. A child that takes longer is killed, which loses
	// nothing that was written with fsync. Default: [DefaultStopTimeout].
	StopTimeout time.Duration
}

// SQLUserConfig says what the second user may do. Nobody but the program knows its
// password.
type SQLUserConfig struct {
	// Grants are the statements of its rights without the user, such as "GRANT SELECT ON
	// database.view". It has no other right.
	Grants []string

	// Settings are those of its sessions. With "readonly": "1" among them a query cannot
	// change any.
	Settings map[string]string
}

// Validate reports everything that is wrong with the configuration, as joined errors, one
// for each field. Zero values that have a default are valid.
func (c Config) Validate() error {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, fmt.Errorf("engine: %s: %w", field, fmt.Errorf(format, args...)))
	}
	if c.Library == "" {
		bad("Library", "is required")
	}
	if c.Dir == "" {
		bad("Dir", "is required")
	}
	if c.Host != "" {
		if addr, err := netip.ParseAddr(c.Host); err != nil || !addr.IsLoopback() {
			bad("Host", "%q is not a loopback IP address", c.Host)
		}
	}
	for _, p := range []struct {
		field string
		port  int
	}{{"TCPPort", c.TCPPort}, {"HTTPPort", c.HTTPPort}} {
		if p.port < 0 || p.port > 65535 {
			bad(p.field, "%d is not a port", p.port)
		}
	}
	if c.TCPPort != 0 && c.TCPPort == c.HTTPPort {
		bad("HTTPPort", "%d is TCPPort too", c.HTTPPort)
	}
	if c.MemoryMaxBytes != 0 && c.MemoryMaxBytes < MemoryMinBytes {
		bad("MemoryMaxBytes", "%d is less than %d", c.MemoryMaxBytes, MemoryMinBytes)
	}
	settings := []struct {
		field    string
		settings map[string]string
	}{{"Settings", c.Settings}, {"ServerSettings", c.ServerSettings}}
	if c.SQLUser != nil {
		settings = append(settings, struct {
			field    string
			settings map[string]string
		}{"SQLUser", c.SQLUser.Settings})
	}
	for _, m := range settings {
		for _, name := range slices.Sorted(maps.Keys(m.settings)) {
			if !settingName.MatchString(name) {
				bad(m.field, "%q is not the name of a setting", name)
			}
		}
	}
	if c.StartTimeout < 0 {
		bad("StartTimeout", "%s is negative", c.StartTimeout)
	}
	if c.RestartDelayMax < 0 {
		bad("RestartDelayMax", "%s is negative", c.RestartDelayMax)
	}
	if c.StopTimeout < 0 {
		bad("StopTimeout", "%s is negative", c.StopTimeout)
	}
	return errors.Join(errs...)
}

// settingName matches the names that may become XML elements in the configuration.
var settingName = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)

// withDefaults returns c with defaults in place of zero values, and with absolute paths,
// because the working directory of the child is another one.
func (c Config) withDefaults() (Config, error) {
	var err error
	if c.Library, err = filepath.Abs(c.Library); err != nil {
		return c, fmt.Errorf("engine: Library: %w", err)
	}
	if c.Dir, err = filepath.Abs(c.Dir); err != nil {
		return c, fmt.Errorf("engine: Dir: %w", err)
	}
	if c.Host == "" {
		c.Host = DefaultHost
	}
	if c.StartTimeout == 0 {
		c.StartTimeout = DefaultStartTimeout
	}
	if c.RestartDelayMax == 0 {
		c.RestartDelayMax = DefaultRestartDelayMax
	}
	if c.StopTimeout == 0 {
		c.StopTimeout = DefaultStopTimeout
	}
	return c, nil
}

// serverSettings returns the top-level settings of the server. They are for an engine that
// shares a machine of a few cores with the rest of the pipeline. Caches hold the index and
// the marks; the rows are left to the page cache.
func (c Config) serverSettings() map[string]string {
	const mib = 1 << 20
	bytes := func(n int64) string { return strconv.FormatInt(n, 10) }
	s := map[string]string{
		"timezone":                             "UTC",
		"max_connections":                      "1024",
		"asynchronous_metrics_update_period_s": "60",
		"mlock_executable":                     "false",

		// Merges. Change the first two together with merge_tree in configTemplate.
		"background_pool_size":                          "4",
		"background_merges_mutations_concurrency_ratio": "2",
		"background_common_pool_size":                   "2",
		"background_fetches_pool_size":                  "1",
		"background_move_pool_size":                     "1",
		"background_schedule_pool_size":                 "8",
		"background_buffer_flush_schedule_pool_size":    "1",
		"background_distributed_schedule_pool_size":     "1",
		"background_message_broker_schedule_pool_size":  "1",

		"mark_cache_size":                bytes(256 * mib),
		"primary_index_cache_size":       bytes(256 * mib),
		"index_mark_cache_size":          bytes(64 * mib),
		"uncompressed_cache_size":        "0",
		"index_uncompressed_cache_size":  "0",
		"mmap_cache_size":                "0",
		"compiled_expression_cache_size": bytes(32 * mib),
	}
	if c.MemoryMaxBytes > 0 {
		s["max_server_memory_usage"] = bytes(c.MemoryMaxBytes)
	} else {
		s["max_server_memory_usage_to_ram_ratio"] = "0.5"
	}
	maps.Copy(s, c.ServerSettings)
	return s
}

// configFile returns the server's configuration. It contains digests of the passwords, but
// not the passwords.
func (c Config) configFile(path string, passwords passwords, tcpPort, httpPort int) ([]byte, error) {
	tmpl, err := template.New("config.xml").Funcs(template.FuncMap{"x": xmlEscape}).Parse(configTemplate)
	if err != nil {
		panic("BUG: engine: " + err.Error())
	}
	var out bytes.Buffer
	err = tmpl.Execute(&out, map[string]any{
		"Path":           path,
		"Dir":            c.Dir,
		"Host":           c.Host,
		"TCPPort":        tcpPort,
		"HTTPPort":       httpPort,
		"User":           User,
		"PasswordSHA256": digest(passwords.user),
		"SQLUser":        c.SQLUser,
		"SQLUserName":    SQLUser,
		"SQLSHA256":      digest(passwords.sqlUser),
		"SystemLogs":     c.SystemLogs,
		"Settings":       c.Settings,
		"ServerSettings": c.serverSettings(),
	})
	if err != nil {
		return nil, fmt.Errorf("render engine configuration: %w", err)
	}
	return out.Bytes(), nil
}

func digest(password string) string {
	sum := sha256.Sum256([]byte(password))
	return hex.EncodeToString(sum[:])
}

func xmlEscape(v any) (string, error) {
	var out bytes.Buffer
	err := xml.EscapeText(&out, fmt.Append(nil, v))
	return out.String(), err
}

// configTemplate is both the server's configuration and its list of users.
//
// The library opens a session of the child itself, as the user default without a password.
// Neither can be changed. So that nobody else can be that user, it may have one session
// only, and the child's is open before the listeners are and stays open. The user has no
// right but to open the listeners. Its profile is launcher, because all users inherit the
// profile named default.
//
// At the prompt the server would log to the child's standard error, and from there messages
// go into the log of the program. The server's messages may quote queries, so they go to a
// file beside the data instead.
//
// log_queries and the query profilers are off without SystemLogs. They would cost CPU for
// tables that do not exist.
//
// Backups may be written beside the data, and nowhere else.
//
// The improvements of access control are on in the configuration that ClickHouse comes
// with, and off without it: system tables need a grant, but for some that tell each user
// only what it may know, or nothing about this server.
const configTemplate = `<clickhouse>
    <listen_host>{{x .Host}}</listen_host>
    <tcp_port>{{.TCPPort}}</tcp_port>
    <http_port>{{.HTTPPort}}</http_port>
    <users_config>{{x .Path}}</users_config>
    <log-level>warning</log-level>
    <logger>
        <console>0</console>
        <log>{{x .Dir}}/server.log</log>
        <size>16M</size>
        <count>2</count>
    </logger>
{{- range $name, $value := .ServerSettings}}
    <{{$name}}>{{x $value}}</{{$name}}>
{{- end}}
    <merge_tree>
        <number_of_free_entries_in_pool_to_lower_max_size_of_merge>4</number_of_free_entries_in_pool_to_lower_max_size_of_merge>
        <number_of_free_entries_in_pool_to_execute_mutation>4</number_of_free_entries_in_pool_to_execute_mutation>
        <number_of_free_entries_in_pool_to_execute_optimize_entire_partition>4</number_of_free_entries_in_pool_to_execute_optimize_entire_partition>
    </merge_tree>
    <backups>
        <allowed_path>{{x .Dir}}/backups</allowed_path>
    </backups>
{{- if .SystemLogs}}
    <query_log><database>system</database><table>query_log</table><flush_interval_milliseconds>1000</flush_interval_milliseconds><ttl>event_date + INTERVAL 1 DAY DELETE</ttl></query_log>
    <part_log><database>system</database><table>part_log</table><flush_interval_milliseconds>1000</flush_interval_milliseconds><ttl>event_date + INTERVAL 1 DAY DELETE</ttl></part_log>
{{- end}}
    <access_control_improvements>
        <select_from_system_db_requires_grant>true</select_from_system_db_requires_grant>
        <select_from_information_schema_requires_grant>true</select_from_information_schema_requires_grant>
        <table_engines_require_grant>true</table_engines_require_grant>
    </access_control_improvements>
    <profiles>
        <default/>
        <launcher><max_sessions_for_user>1</max_sessions_for_user></launcher>
        <{{.User}}>
            <log_queries>{{if .SystemLogs}}1{{else}}0{{end}}</log_queries>
            <query_profiler_real_time_period_ns>0</query_profiler_real_time_period_ns>
            <query_profiler_cpu_time_period_ns>0</query_profiler_cpu_time_period_ns>
{{- range $name, $value := .Settings}}
            <{{$name}}>{{x $value}}</{{$name}}>
{{- end}}
        </{{.User}}>
{{- if .SQLUser}}
        <{{.SQLUserName}}>
            <log_queries>0</log_queries>
            <query_profiler_real_time_period_ns>0</query_profiler_real_time_period_ns>
            <query_profiler_cpu_time_period_ns>0</query_profiler_cpu_time_period_ns>
{{- range $name, $value := .SQLUser.Settings}}
            <{{$name}}>{{x $value}}</{{$name}}>
{{- end}}
        </{{.SQLUserName}}>
{{- end}}
    </profiles>
    <quotas><default/></quotas>
    <users>
        <default>
            <password/>
            <networks><ip>127.0.0.1</ip></networks>
            <profile>launcher</profile>
            <quota>default</quota>
            <grants>
                <query>GRANT SYSTEM LISTEN ON *.*</query>
            </grants>
        </default>
        <{{.User}}>
            <password_sha256_hex>{{.PasswordSHA256}}</password_sha256_hex>
            <networks><ip>::1</ip><ip>127.0.0.0/8</ip></networks>
            <profile>{{.User}}</profile>
            <quota>default</quota>
            <access_management>1</access_management>
            <named_collection_control>1</named_collection_control>
        </{{.User}}>
{{- if .SQLUser}}
        <{{.SQLUserName}}>
            <password_sha256_hex>{{.SQLSHA256}}</password_sha256_hex>
            <networks><ip>::1</ip><ip>127.0.0.0/8</ip></networks>
            <profile>{{.SQLUserName}}</profile>
            <quota>default</quota>
            <grants>
{{- range .SQLUser.Grants}}
                <query>{{x .}}</query>
{{- end}}
            </grants>
        </{{.SQLUserName}}>
{{- end}}
    </users>
</clickhouse>
`
