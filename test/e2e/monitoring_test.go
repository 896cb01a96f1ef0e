package e2e_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluicehq/sluice/internal/engine"
	"github.com/sluicehq/sluice/internal/event"
)

const (
	monitoringDir = "../../deploy/monitoring"
	// prometheusUID and clickhouseUID are of the data sources that Grafana is provisioned with.
	prometheusUID = "sluice-prometheus"
	clickhouseUID = "sluice-clickhouse"

	// prometheusEnv says what to do without the programs that
	// scripts/install-prometheus.sh installs: 1 fails the test, 0 skips it even
	// with them, unset skips it.
	prometheusEnv = "SLUICE_TEST_PROMETHEUS"

	// quotedConversation is a conversation whose id needs care in SQL.
	quotedConversation = "it's"
)

// dashboard is what these tests know of Grafana's format.
type dashboard struct {
	UID           string `json:"uid"`
	SchemaVersion int    `json:"schemaVersion"`
	Templating    struct {
		List []struct {
			Name, Type, Query string
			Datasource        datasource
		}
	}
	Panels []panel
}

type panel struct {
	ID                       int
	Type, Title, Description string
	GridPos                  struct{ H, W, X, Y int }
	Datasource               datasource
	Targets                  []target
	FieldConfig              struct {
		Defaults  struct{ Unit, DisplayName string }
		Overrides []struct {
			Matcher struct{ ID, Options string }
		}
	}
	Options struct {
		ReduceOptions struct{ Fields string }
	}
}

type datasource struct{ Type, UID string }

type target struct {
	RefID, Expr, LegendFormat, QueryType, RawSQL string
	Datasource                                   datasource
}

func monitoringFile(t *testing.T, elem ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(append([]string{monitoringDir}, elem...)...))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func readDashboard(t *testing.T) *dashboard {
	t.Helper()
	var d dashboard
	if err := json.Unmarshal([]byte(monitoringFile(t, "grafana", "dashboards", "sluice.json")), &d); err != nil {
		t.Fatal(err)
	}
	return &d
}

// TestDashboard holds the dashboard to what Grafana does not complain about, but shows wrong.
func TestDashboard(t *testing.T) {
	d := readDashboard(t)
	if d.UID == "" || d.SchemaVersion < 42 {
		t.Errorf("uid %q, schema version %d, want a uid and 42 or later", d.UID, d.SchemaVersion)
	}
	provisioned := monitoringFile(t, "grafana", "provisioning", "datasources", "sluice.yml")
	kinds := map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^    uid: (\S+)\n    type: (\S+)$`).FindAllStringSubmatch(provisioned, -1) {
		kinds[m[1]] = m[2]
	}
	known := func(what string, ds datasource) {
		if ds.Type == "" || kinds[ds.UID] != ds.Type {
			t.Errorf("%s: data source %+v is not provisioned: %v", what, ds, kinds)
		}
	}
	for _, v := range d.Templating.List {
		if v.Type == "query" {
			known("variable "+v.Name, v.Datasource)
		}
	}
	var rows []string
	ids, titles, taken := map[int]bool{}, map[string]bool{}, map[[2]int]string{}
	for _, p := range d.Panels {
		if p.ID == 0 || ids[p.ID] || p.Title == "" || titles[p.Title] {
			t.Errorf("panel %q: its id %d or its title is missing or taken", p.Title, p.ID)
		}
		ids[p.ID], titles[p.Title] = true, true
		g := p.GridPos
		if g.H < 1 || g.W < 1 || g.X < 0 || g.Y < 0 || g.X+g.W > 24 {
			t.Errorf("panel %q is not on the grid: %+v", p.Title, g)
		}
		for x := g.X; x < g.X+g.W; x++ {
			for y := g.Y; y < g.Y+g.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" {
					t.Fatalf("panel %q covers %q", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		if p.Type == "row" {
			rows = append(rows, p.Title)
			continue
		}
		known("panel "+p.Title, p.Datasource)
		if p.FieldConfig.Defaults.Unit == "" || p.Description == "" || len(p.Targets) == 0 {
			t.Errorf("panel %q has no unit, no description or no query", p.Title)
		}
		refs := map[string]bool{}
		for _, q := range p.Targets {
			if q.RefID == "" || refs[q.RefID] || q.Datasource != p.Datasource {
				t.Errorf("panel %q: query %+v: its refId is missing or taken, or its data source is not the panel's", p.Title, q)
			}
			refs[q.RefID] = true
			if (q.Expr == "") == (q.RawSQL == "") || (q.Expr != "") != (q.Datasource.UID == prometheusUID) {
				t.Errorf("panel %q: query %+v does not fit its data source", p.Title, q)
			}
			if q.Expr != "" && q.LegendFormat == "" {
				t.Errorf("panel %q: query %s has no legend", p.Title, q.RefID)
			}
		}
	}
	if want := []string{"Ingest", "Log and consumer", "ClickHouse", "Analytics"}; !slices.Equal(rows, want) {
		t.Errorf("rows %q, want %q", rows, want)
	}
}

// alerts are the names of all alerts.
func alerts(t *testing.T) []string {
	t.Helper()
	var names []string
	for _, m := range regexp.MustCompile(`(?m)^      - alert: (\S+)$`).FindAllStringSubmatch(monitoringFile(t, "alerts.yml"), -1) {
		names = append(names, m[1])
	}
	if len(names) < 10 {
		t.Fatalf("alerts %q", names)
	}
	return names
}

// TestAlerts checks that each alert says what it is and is tested both ways;
// TestMonitoringPrometheus runs these tests.
func TestAlerts(t *testing.T) {
	rules, tests := monitoringFile(t, "alerts.yml"), monitoringFile(t, "alerts_test.yml")
	operations := monitoringFile(t, "..", "..", "docs", "operations.md")
	for _, name := range alerts(t) {
		_, rule, _ := strings.Cut(rules, "- alert: "+name+"\n")
		rule, _, _ = strings.Cut(rule, "- alert: ")
		for _, want := range []string{
			`severity: (critical|warning)\}`, `summary: ".+\."\n`, `runbook: docs/operations\.md#` + strings.ToLower(name) + `\n`,
		} {
			if !regexp.MustCompile(want).MatchString(rule) {
				t.Errorf("alert %s does not match %s", name, want)
			}
		}
		if !strings.Contains(operations, "# "+name+"\n") {
			t.Errorf("docs/operations.md does not say what %s means", name)
		}
		fires := strings.Contains(tests, "alertname: "+name+"\n        exp_alerts:\n          - exp_labels:")
		silent := strings.Contains(tests, "alertname: "+name+"\n        exp_alerts: []\n")
		if !fires || !silent {
			t.Errorf("alert %s: tested to fire: %v, to be silent: %v", name, fires, silent)
		}
	}
}

// monitored is a Sluice that has done a little of everything, on a ClickHouse
// of its own that has Grafana's user.
type monitored struct {
	client     *client
	clickhouse string // address of its HTTP interface
	password   string // of Grafana's user
	since      time.Time

	mu     sync.Mutex
	rounds int
	// live and failed count the events that are to be seen, by name, and those of them with an error.
	live, failed map[string]int
}

func startMonitored(t *testing.T) *monitored {
	t.Helper()
	m := &monitored{
		password: "read only", since: time.Now().Add(-time.Minute),
		live: map[string]int{}, failed: map[string]int{},
	}
	dir := t.TempDir()
	// What is in config.d is merged, as what is in users.d of an installed server.
	users := strings.Replace(monitoringFile(t, "clickhouse-grafana.xml"),
		`<password from_env="SLUICE_GRAFANA_CLICKHOUSE_PASSWORD"/>`, "<password>"+m.password+"</password>", 1)
	if err := os.MkdirAll(filepath.Join(dir, "config.d"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.d", "grafana.xml"), []byte(users), 0o600); err != nil {
		t.Fatal(err)
	}
	library, err := engine.Find("")
	if err != nil {
		t.Fatal(err)
	}
	db, err := engine.New(engine.Config{Library: library, Dir: dir}, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- db.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("ClickHouse: %v", err)
		}
	})
	if err := db.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	m.clickhouse = db.HTTPAddr()
	at := url.URL{Scheme: "clickhouse", User: url.UserPassword(engine.User, db.Password()), Host: db.Addr(), Path: "/" + engine.Database}
	_, m.client = serve(t, t.TempDir(), "--clickhouse-url", at.String())
	return m
}

// round does a little of everything, and waits until it is visible.
func (m *monitored) round() error {
	m.mu.Lock()
	m.rounds++
	n := m.rounds
	m.mu.Unlock()
	var lines [][]byte
	created, failed := map[string]int{}, map[string]int{}
	for i, conversation := range []string{"c-0", "c-1", "c-2", quotedConversation} {
		for j, name := range []string{"event_a", "event_b", "event_c"} {
			e := object{"conversation_id": conversation, "event_name": name, "latency": 100*i + 10*j + n%7, "input": "hello"}
			created[name]++
			if j == (i+1)%3 {
				e["error"] = "tool timeout"
				failed[name]++
			}
			line, err := json.Marshal(e)
			if err != nil {
				return err
			}
			lines = append(lines, line)
		}
	}
	results, err := m.client.post(lines)
	if err != nil {
		return err
	}
	alias := "order/" + strconv.Itoa(n)
	minted := event.NewID(time.Now().UnixMicro(), "c-0").String()
	for _, r := range []struct {
		method, path, body string
		status             int
	}{
		// Each is waited for; the embedded broker's only partition has the batch before them.
		{http.MethodPost, "/event", `{"id":"` + alias + `","conversation_id":"c-0","event_name":"event_a"}`, http.StatusCreated},
		{http.MethodPut, eventPath(alias), `{"error":"late"}`, http.StatusOK},
		{http.MethodDelete, eventPath(alias), "", http.StatusOK},
		{http.MethodGet, eventPath(alias), "", http.StatusNotFound},
		{http.MethodPut, eventPath(minted), `{"output":"of what?"}`, http.StatusNotFound}, // a dead letter
		{http.MethodPost, "/event", `{"conversation_id":"c-0","event_name":"event_a","latency":-1}`, http.StatusUnprocessableEntity},
		{http.MethodGet, "/event/" + results[0].ID, "", http.StatusOK},
		{http.MethodGet, "/conversations/c-1/events", "", http.StatusOK},
		{http.MethodGet, "/analytics/errors?since=1h", "", http.StatusOK},
		{http.MethodGet, "/analytics/latency?since=1h", "", http.StatusOK},
	} {
		a, err := m.client.do(r.method, r.path, []byte(r.body), "wait=20")
		if err != nil {
			return err
		}
		if a.status != r.status {
			return fmt.Errorf("%s %s: status %d, want %d: %.300s", r.method, r.path, a.status, r.status, a.body)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for name := range created {
		m.live[name] += created[name]
		m.failed[name] += failed[name]
	}
	return nil
}

// names of metrics in what Prometheus or Grafana is to ask.
var metricNames = regexp.MustCompile(`\b(?:sluice|process)_\w+`)

// TestMonitoring starts a Sluice, checks that it has every metric that the
// dashboard and the alerts are about, and runs the dashboard's SQL as Grafana's user.
func TestMonitoring(t *testing.T) {
	t.Parallel()
	m := startMonitored(t)
	for range 3 {
		if err := m.round(); err != nil {
			t.Fatal(err)
		}
	}
	d := readDashboard(t)
	t.Run("metrics", func(t *testing.T) {
		asked := map[string]bool{}
		for _, p := range d.Panels {
			for _, q := range p.Targets {
				for _, name := range metricNames.FindAllString(q.Expr, -1) {
					asked[name] = true
				}
			}
		}
		for line := range strings.Lines(monitoringFile(t, "alerts.yml")) {
			if !strings.Contains(line, "//") && !strings.HasPrefix(strings.TrimSpace(line), "#") {
				for _, name := range metricNames.FindAllString(line, -1) {
					asked[name] = true
				}
			}
		}
		if len(asked) < 20 {
			t.Errorf("only %d metrics are asked for", len(asked))
		}
		// The gauges of the lag and the parts come with their first measurement.
		eventually(t, startBound, "all metrics", func() error {
			a, err := m.client.do(http.MethodGet, "/metrics", nil, "")
			if err != nil {
				return err
			}
			var errs []error
			for name := range asked {
				if !regexp.MustCompile(`(?m)^` + name + `[ {]`).Match(a.body) {
					errs = append(errs, fmt.Errorf("there is no %s", name))
				}
			}
			return errors.Join(errs...)
		})
	})
	t.Run("sql", func(t *testing.T) { m.checkSQL(t, d) })
	t.Run("rights", func(t *testing.T) {
		refused := regexp.MustCompile(`Code: (497|452|164)\b`)
		for _, statement := range []string{
			"INSERT INTO events (conversation_id) VALUES ('x')",
			"ALTER TABLE events DELETE WHERE 1",
			"DROP TABLE events",
			"CREATE TABLE mine (n UInt8) ENGINE = Memory",
			"SELECT * FROM system.users",
			"SELECT content FROM event_contents",
			"SELECT content FROM live_event_contents",
			"SELECT vector FROM event_embeddings",
			"SELECT * FROM url('http://127.0.0.1:1/', LineAsString)",
			"SELECT 1 SETTINGS max_memory_usage = 0",
			"SELECT 1 SETTINGS max_execution_time = 3600",
			"SELECT 1 SETTINGS max_execution_time = 0",
			"SET readonly = 0",
		} {
			// ACCESS_DENIED, SETTING_CONSTRAINT_VIOLATION, READONLY
			if _, err := m.query(statement); !refused.MatchString(fmt.Sprint(err)) {
				t.Errorf("Grafana's user and %s: %v", statement, err)
			}
		}
	})
}

// table is the answer to a query.
type table struct {
	Meta []struct{ Name, Type string }
	Data [][]any
}

// column returns the place of a column, -1 if there is none.
func (r *table) column(name string) int {
	return slices.IndexFunc(r.Meta, func(c struct{ Name, Type string }) bool { return c.Name == name })
}

// query runs a statement as Grafana's user, with the setting that the data
// source's client makes of the time it has.
func (m *monitored) query(sql string) (*table, error) {
	query := url.Values{
		"database": {engine.Database}, "default_format": {"JSONCompact"},
		"max_execution_time": {"35"}, "output_format_json_quote_64bit_integers": {"0"},
	}
	req, err := http.NewRequest(http.MethodPost, "http://"+m.clickhouse+"/?"+query.Encode(), strings.NewReader(sql))
	if err != nil {
		return nil, err
	}
	req.SetBasicAuth("grafana", m.password)
	req.Close = true // a kept connection holds up the stop
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", resp.Status, body)
	}
	var r table
	if err := json.Unmarshal(body, &r); err != nil {
		return nil, fmt.Errorf("%w: %.300s", err, body)
	}
	return &r, nil
}

// choice is what somebody chose on the dashboard; no names are all of them.
type choice struct {
	names        []string
	conversation string
}

var (
	conditionalAll = regexp.MustCompile(`\$__conditionalAll\((.*), \$(\w+)\)`)
	timeFilter     = regexp.MustCompile(`\$__timeFilter\((\w+)\)`)
	timeInterval   = regexp.MustCompile(`\$__timeInterval\((\w+)\)`)
)

// expand replaces variables and macros as Grafana and its ClickHouse data
// source document it, for the time since the start, by the minute.
func (m *monitored) expand(sql string, c choice) (string, error) {
	quote := func(values ...string) string {
		for i, v := range values {
			values[i] = "'" + strings.ReplaceAll(v, "'", `\'`) + "'"
		}
		return strings.Join(values, ",")
	}
	condition := "$1"
	if len(c.names) == 0 {
		condition = "1=1"
	}
	sql = conditionalAll.ReplaceAllString(sql, condition)
	sql = strings.ReplaceAll(sql, "${event_name:singlequote}", quote(slices.Clone(c.names)...))
	sql = strings.ReplaceAll(sql, "${conversation:singlequote}", quote(c.conversation))
	sql = timeFilter.ReplaceAllString(sql, fmt.Sprintf("$1 >= toDateTime(%d) AND $1 <= toDateTime(%d)", m.since.Unix(), time.Now().Unix()+1))
	sql = timeInterval.ReplaceAllString(sql, "toStartOfInterval(toDateTime($1), INTERVAL 60 second)")
	if strings.Contains(sql, "$") {
		return "", fmt.Errorf("this test does not know a macro or variable of: %s", sql)
	}
	return sql, nil
}

// checkSQL runs every query of the dashboard that is for ClickHouse.
func (m *monitored) checkSQL(t *testing.T, d *dashboard) {
	ask := func(t *testing.T, sql string, c choice) *table {
		t.Helper()
		sql, err := m.expand(sql, c)
		if err != nil {
			t.Fatal(err)
		}
		r, err := m.query(sql)
		if err != nil {
			t.Fatalf("%v\n%s", err, sql)
		}
		if len(r.Data) == 0 {
			t.Fatalf("no rows\n%s", sql)
		}
		return r
	}
	for _, v := range d.Templating.List {
		if v.Type != "query" {
			continue
		}
		t.Run("variable "+v.Name, func(t *testing.T) {
			r := ask(t, v.Query, choice{})
			if got := fmt.Sprint(r.Data); got != "[[event_a] [event_b] [event_c]]" {
				t.Errorf("got %s", got)
			}
		})
	}
	ran := 0
	for _, p := range d.Panels {
		for _, q := range p.Targets {
			if q.RawSQL == "" {
				continue
			}
			ran++
			t.Run(p.Title, func(t *testing.T) {
				all := ask(t, q.RawSQL, choice{})
				p.requireColumns(t, q, all)
				m.requireTotals(t, all)
				if i := all.column("table"); i >= 0 && !slices.ContainsFunc(all.Data, func(row []any) bool { return row[i] == "event_contents" }) {
					t.Errorf("event_contents is missing: %v", all.Data)
				}
				if !strings.Contains(q.RawSQL, "conversation") {
					return
				}
				for _, conversation := range []string{"c-0", quotedConversation} {
					r := ask(t, q.RawSQL, choice{[]string{"event_b", "event_c"}, conversation})
					p.requireColumns(t, q, r)
					for _, row := range r.Data {
						if i := r.column("conversation_id"); i >= 0 && row[i] != conversation {
							t.Errorf("conversation %s: row %v", conversation, row)
						}
						if i := r.column("event_name"); i >= 0 && row[i] == "event_a" {
							t.Errorf("event_b and event_c: row %v", row)
						}
					}
				}
			})
		}
	}
	if ran < 7 {
		t.Errorf("only %d queries were run", ran)
	}
}

var (
	numeric = regexp.MustCompile(`^(Nullable\()?(U?Int|Float)\d+\)?$`)
	textual = regexp.MustCompile(`^(LowCardinality\()?String\)?$`)
)

// requireColumns checks that the panel can show the answer.
func (p *panel) requireColumns(t *testing.T, q target, r *table) {
	t.Helper()
	switch p.Type {
	case "timeseries":
		// A time, a label for each line, a value, in order of time.
		if q.QueryType != "timeseries" || len(r.Meta) != 3 || r.Meta[0].Name != "time" || !strings.HasPrefix(r.Meta[0].Type, "DateTime") ||
			!textual.MatchString(r.Meta[1].Type) || !numeric.MatchString(r.Meta[2].Type) {
			t.Fatalf("columns %v as %s", r.Meta, q.QueryType)
		}
		if want := "${__field.labels." + r.Meta[1].Name + "}"; p.FieldConfig.Defaults.DisplayName != want {
			t.Errorf("lines are named %s, want %s", p.FieldConfig.Defaults.DisplayName, want)
		}
		if !slices.IsSortedFunc(r.Data, func(a, b []any) int { return cmp.Compare(fmt.Sprint(a[0]), fmt.Sprint(b[0])) }) {
			t.Error("rows are not in order of time")
		}
	case "bargauge":
		fields := strings.Trim(p.Options.ReduceOptions.Fields, "/^$")
		if q.QueryType != "table" || len(r.Meta) != 2 || !textual.MatchString(r.Meta[0].Type) || r.Meta[1].Name != fields || !numeric.MatchString(r.Meta[1].Type) {
			t.Fatalf("columns %v as %s, bars of %s", r.Meta, q.QueryType, fields)
		}
	case "table":
		if q.QueryType != "table" || len(p.FieldConfig.Overrides) == 0 {
			t.Fatalf("columns %v as %s", r.Meta, q.QueryType)
		}
		for _, o := range p.FieldConfig.Overrides {
			if o.Matcher.ID != "byName" || r.column(o.Matcher.Options) < 0 {
				t.Errorf("columns %v, but the panel is about %s", r.Meta, o.Matcher.Options)
			}
		}
	default:
		t.Errorf("this test does not know what a panel of type %s needs", p.Type)
	}
}

// requireTotals checks the sums of the columns that count live events.
func (m *monitored) requireTotals(t *testing.T, r *table) {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	name := r.column("event_name")
	for column, want := range map[string]map[string]int{"events": m.live, "errors": m.failed} {
		i := r.column(column)
		if i < 0 {
			continue
		}
		got := map[string]int{}
		for _, row := range r.Data {
			key := ""
			if name >= 0 {
				key = row[name].(string)
			}
			got[key] += int(row[i].(float64))
		}
		for key, n := range got {
			expected := want[key]
			if name < 0 {
				for _, k := range want {
					expected += k
				}
			}
			if n != expected {
				t.Errorf("%s of %q: %d, want %d", column, key, n, expected)
			}
		}
	}
}

// prometheusPrograms are the paths of prometheus and promtool. The test is
// skipped or fails where they are not to be, or cannot be, run.
func prometheusPrograms(t *testing.T) (server, tool string) {
	t.Helper()
	mode := os.Getenv(prometheusEnv)
	if mode == "0" {
		t.Skipf("%s=0", prometheusEnv)
	}
	module := regexp.MustCompile(`(?m)^require github\.com/prometheus/prometheus (v\S+)$`).FindStringSubmatch(monitoringFile(t, "tools", "go.mod"))
	if module == nil {
		t.Fatal("tools/go.mod names no version of Prometheus")
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(cache, "sluice", "prometheus-"+module[1])
	server, tool = filepath.Join(dir, "prometheus"), filepath.Join(dir, "promtool")
	if _, err := os.Stat(dir); err != nil {
		if mode == "1" {
			t.Fatalf("%s=1: %v", prometheusEnv, err)
		}
		t.Skipf("no Prometheus, which scripts/install-prometheus.sh installs: %v", err)
	}
	return server, tool
}

// TestMonitoringRules has promtool check the configuration and run the tests of the alerts.
func TestMonitoringRules(t *testing.T) {
	_, promtool := prometheusPrograms(t)
	for _, args := range [][]string{
		// The key's file is there in the container alone.
		{"check", "config", "--syntax-only", "prometheus.yml"},
		{"check", "rules", "--lint=all", "--lint-fatal", "alerts.yml"},
		{"test", "rules", "alerts_test.yml"},
	} {
		cmd := exec.Command(promtool, args...)
		cmd.Dir = monitoringDir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// TestMonitoringPrometheus has a real Prometheus, with the configuration as it
// is but for addresses and intervals, scrape a Sluice under load, and asks it
// everything that the dashboard asks.
func TestMonitoringPrometheus(t *testing.T) {
	server, _ := prometheusPrograms(t)
	m := startMonitored(t)
	ctx, cancel := context.WithCancel(t.Context())
	loaded := make(chan error, 1)
	go func() {
		for ctx.Err() == nil {
			if err := m.round(); err != nil {
				loaded <- err
				return
			}
		}
		loaded <- nil
	}()
	defer func() {
		cancel()
		if err := <-loaded; err != nil {
			t.Errorf("load: %v", err)
		}
	}()

	const scrapeSeconds = 1
	dir, addr := t.TempDir(), freeAddr(t)
	key := filepath.Join(dir, "key")
	api := strings.TrimPrefix(m.client.base, "http://")
	cfg := monitoringFile(t, "prometheus.yml")
	discovery := regexp.MustCompile(`(?m)^    dns_sd_configs:\n(?:      .*\n)+`)
	if n := len(discovery.FindAllString(cfg, -1)); n != 2 {
		t.Fatalf("%d jobs, want 2", n)
	}
	cfg = discovery.ReplaceAllString(cfg, "    static_configs: [{targets: ['"+api+"']}]\n")
	for _, change := range [][2]string{
		{"scrape_interval: 5s", "scrape_interval: 1s"},
		{"scrape_timeout: 4s", "scrape_timeout: 1s"},
		{"evaluation_interval: 15s", "evaluation_interval: 1s"},
		{"/run/secrets/sluice-metrics-key", key},
	} {
		if !strings.Contains(cfg, change[0]) {
			t.Fatalf("prometheus.yml has no %s", change[0])
		}
		cfg = strings.Replace(cfg, change[0], change[1], 1)
	}
	for path, text := range map[string]string{
		key: "", filepath.Join(dir, "prometheus.yml"): cfg, filepath.Join(dir, "alerts.yml"): monitoringFile(t, "alerts.yml"),
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := launch(t, server, dir, nil, "--config.file=prometheus.yml", "--storage.tsdb.path=data", "--web.listen-address="+addr)
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("end of the log of Prometheus:\n%s", p.log.tail(logTailBytes))
		}
	})
	prometheus := newClient(addr)
	eventually(t, startBound, "Prometheus", func() error {
		if p.ended() {
			t.Fatal("Prometheus has ended")
		}
		a, err := prometheus.do(http.MethodGet, "/-/ready", nil, "")
		if err == nil && a.status != http.StatusOK {
			err = fmt.Errorf("status %d", a.status)
		}
		return err
	})

	began := time.Now()
	asked := 0
	for _, panel := range readDashboard(t).Panels {
		for _, q := range panel.Targets {
			if q.Expr == "" {
				continue
			}
			asked++
			// Grafana takes at least four scrapes for the one, and the time range for the other.
			expr := strings.NewReplacer("$__rate_interval", strconv.Itoa(4*scrapeSeconds)+"s", "$__range", "1m").Replace(q.Expr)
			eventually(t, startBound, "data of panel "+panel.Title+", query "+q.RefID, func() error {
				return hasData(prometheus, expr, began)
			})
		}
	}
	if asked < 30 {
		t.Errorf("only %d queries", asked)
	}
	checkRules(t, prometheus)
}

// hasData returns nil once a query over the time since then has a value.
func hasData(prometheus *client, expr string, since time.Time) error {
	var answered struct {
		Data struct {
			Result []struct{ Values [][2]any }
		}
	}
	query := url.Values{
		"query": {expr}, "step": {"1"},
		"start": {strconv.FormatInt(since.Unix(), 10)}, "end": {strconv.FormatInt(time.Now().Unix(), 10)},
	}
	if err := prometheus.get("/api/v1/query_range?"+query.Encode(), &answered); err != nil {
		return err
	}
	for _, series := range answered.Data.Result {
		for _, point := range series.Values {
			text, _ := point[1].(string)
			if v, err := strconv.ParseFloat(text, 64); err == nil && !math.IsNaN(v) && !math.IsInf(v, 0) {
				return nil
			}
		}
	}
	return fmt.Errorf("no value in %d series of %s", len(answered.Data.Result), expr)
}

// checkRules checks that Prometheus evaluates all alerts, that the one about
// dead letters, of which there are some, fires, and that none of those that
// wake somebody does.
func checkRules(t *testing.T, prometheus *client) {
	t.Helper()
	eventually(t, startBound, "the alerts", func() error {
		var answered struct {
			Data struct {
				Groups []struct {
					Rules []struct {
						Name, State, Health, LastError string
						Labels                         map[string]string
					}
				}
			}
		}
		if err := prometheus.get("/api/v1/rules", &answered); err != nil {
			return err
		}
		var names []string
		for _, g := range answered.Data.Groups {
			for _, r := range g.Rules {
				names = append(names, r.Name)
				if r.Health == "err" || r.State != "inactive" && r.Labels["severity"] == "critical" {
					t.Fatalf("alert %s is %s: %s", r.Name, r.State, r.LastError)
				}
				if r.Health != "ok" || (r.State == "firing") != (r.Name == "SluiceDeadLetters") {
					return fmt.Errorf("alert %s: health %s, state %s", r.Name, r.Health, r.State)
				}
			}
		}
		if want := alerts(t); !slices.Equal(names, want) {
			return fmt.Errorf("alerts %q, want %q", names, want)
		}
		return nil
	})
}
