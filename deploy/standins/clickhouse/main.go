// Command clickhouse is the entrypoint of the stand-in for ClickHouse's official
// image: the same engine, out of libchdb, with as much of the image's manners as
// the compose files use. It reads CLICKHOUSE_DB, CLICKHOUSE_USER,
// CLICKHOUSE_PASSWORD and CLICKHOUSE_DEFAULT_ACCESS_MANAGEMENT, and the files of
// /etc/clickhouse-server/config.d, keeps its data in /var/lib/clickhouse, and
// stops on SIGTERM.
package main

import (
	"bytes"
	"cmp"
	"encoding/xml"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"text/template"

	"github.com/sluicehq/sluice/internal/engine"
)

const (
	configDir = "/etc/clickhouse-server"
	dataDir   = "/var/lib/clickhouse"
	library   = "/opt/libchdb.so"
)

// configTemplate is the server's configuration and list of users in one, as in
// internal/engine, which explains the user default. Files of config.d are merged
// into it by ClickHouse itself.
const configTemplate = `<clickhouse>
    <listen_host>0.0.0.0</listen_host>
    <tcp_port>9000</tcp_port>
    <http_port>8123</http_port>
    <users_config>config.xml</users_config>
    <user_directories>
        <users_xml><path>config.xml</path></users_xml>
        <local_directory><path>/var/lib/clickhouse/access/</path></local_directory>
    </user_directories>
    <logger><level>information</level><console>1</console></logger>
    <mark_cache_size>5368709120</mark_cache_size>
    <profiles>
        <default/>
        <launcher><max_sessions_for_user>1</max_sessions_for_user></launcher>
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
                <query>GRANT CREATE DATABASE ON *.*</query>
            </grants>
        </default>
        <{{.User}}>
            <password>{{x .Password}}</password>
            <networks><ip>::/0</ip></networks>
            <profile>default</profile>
            <quota>default</quota>
            <access_management>{{.AccessManagement}}</access_management>
        </{{.User}}>
    </users>
</clickhouse>
`

func main() {
	engine.ChildMain()
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "clickhouse:", err)
		os.Exit(1)
	}
}

func run() error {
	tmpl, err := template.New("config.xml").Funcs(template.FuncMap{"x": escape}).Parse(configTemplate)
	if err != nil {
		return err
	}
	var config bytes.Buffer
	err = tmpl.Execute(&config, map[string]string{
		"User":             cmp.Or(os.Getenv("CLICKHOUSE_USER"), "sluice"),
		"Password":         os.Getenv("CLICKHOUSE_PASSWORD"),
		"AccessManagement": cmp.Or(os.Getenv("CLICKHOUSE_DEFAULT_ACCESS_MANAGEMENT"), "0"),
	})
	if err != nil {
		return err
	}
	path := filepath.Join(configDir, "config.xml")
	if err := os.WriteFile(path, config.Bytes(), 0o600); err != nil {
		return err
	}
	queries := "SYSTEM START LISTEN TCP; SYSTEM START LISTEN HTTP"
	if db := os.Getenv("CLICKHOUSE_DB"); db != "" {
		queries = "CREATE DATABASE IF NOT EXISTS " + db + "; " + queries
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	server := exec.Command("/proc/self/exe", library, "--config-file="+path, "--path="+dataDir,
		"--interactive", "--disable_suggestion", "--progress=off", "--progress-table=off",
		"--history_file=/dev/null", "--query="+queries)
	server.Env = append(os.Environ(), "SLUICE_ENGINE_CHILD=1") // internal/engine knows itself as the child by it
	server.Stdout, server.Stderr = os.Stdout, os.Stderr
	stdin, err := server.StdinPipe() // the server runs until it is closed
	if err != nil {
		return err
	}
	if err := server.Start(); err != nil {
		return err
	}
	go func() {
		<-stop
		_ = stdin.Close() // a closed pipe says the same
	}()
	return server.Wait()
}

func escape(s string) (string, error) {
	var out bytes.Buffer
	err := xml.EscapeText(&out, []byte(s))
	return out.String(), err
}
