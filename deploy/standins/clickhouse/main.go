// Command clickhouse is the entrypoint of the stand-in for ClickHouse's official
// image: the same engine, out of libchdb, with as much of the image's manners as
// the compose files use. It reads CLICKHOUSE_DB, CLICKHOUSE_USER,
// CLICKHOUSE_PASSWORD and CLICKHOUSE_DEFAULT_ACCESS_MANAGEMENT, and the files of
// /etc/clickhouse-server's config.d and users.d, keeps its data in /var/lib/clickhouse, and
// stops on SIGTERM.
package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/xml"
	"errors"
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

// The configuration, and the list of users, for which internal/engine explains
// the user default. ClickHouse itself merges the files of config.d and users.d
// into them.
const (
	serverConfig = `<clickhouse>
    <listen_host>0.0.0.0</listen_host>
    <tcp_port>9000</tcp_port>
    <http_port>8123</http_port>
    <user_directories>
        <users_xml><path>users.xml</path></users_xml>
        <local_directory><path>/var/lib/clickhouse/access/</path></local_directory>
    </user_directories>
    <logger><level>warning</level><console>1</console></logger>
</clickhouse>
`
	usersConfig = `<clickhouse>
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
)

func main() {
	engine.ChildMain()
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "clickhouse:", err)
		os.Exit(1) //nolint:forbidigo // this is main
	}
}

func run() error {
	tmpl, err := template.New("users.xml").Funcs(template.FuncMap{"x": escape}).Parse(usersConfig)
	if err != nil {
		return err
	}
	var users bytes.Buffer
	err = tmpl.Execute(&users, map[string]string{
		"User":             cmp.Or(os.Getenv("CLICKHOUSE_USER"), "sluice"),
		"Password":         os.Getenv("CLICKHOUSE_PASSWORD"),
		"AccessManagement": cmp.Or(os.Getenv("CLICKHOUSE_DEFAULT_ACCESS_MANAGEMENT"), "0"),
	})
	if err != nil {
		return err
	}
	path := filepath.Join(configDir, "config.xml")
	err = errors.Join(
		os.WriteFile(path, []byte(serverConfig), 0o600),
		os.WriteFile(filepath.Join(configDir, "users.xml"), users.Bytes(), 0o600),
	)
	if err != nil {
		return err
	}
	queries := "SYSTEM START LISTEN TCP; SYSTEM START LISTEN HTTP"
	if db := os.Getenv("CLICKHOUSE_DB"); db != "" {
		queries = "CREATE DATABASE IF NOT EXISTS " + db + "; " + queries
	}
	stop, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	// Not ended by a signal, but by the end of its input.
	server := exec.CommandContext(context.WithoutCancel(stop), "/proc/self/exe", //nolint:gosec // this very program
		library, "--config-file="+path, "--path="+dataDir, "--interactive", "--disable_suggestion",
		"--progress=off", "--progress-table=off", "--history_file=/dev/null", "--query="+queries)
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
		<-stop.Done()
		_ = stdin.Close() // a closed pipe says the same
	}()
	return server.Wait()
}

func escape(s string) (string, error) {
	var out bytes.Buffer
	err := xml.EscapeText(&out, []byte(s))
	return out.String(), err
}
