package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// dockerVar says what to do about Docker: 1 must run the tests of the compose
// files on the daemon of DOCKER_HOST, anything else skips them. They are not run
// where it is merely present, because they pull or build images.
const dockerVar = "SLUICE_TEST_DOCKER"

const (
	// composeUpBound is far above a start with images that are there.
	composeUpBound = 5 * time.Minute
	composeBound   = 2 * time.Minute
)

// compose is the repository's compose files, unchanged, as a project of its own.
type compose struct {
	files []string
	env   []string
}

func (c *compose) command(ctx context.Context, args ...string) *exec.Cmd {
	all := []string{"compose"}
	for _, f := range c.files {
		all = append(all, "--file", f)
	}
	cmd := exec.CommandContext(ctx, "docker", append(all, args...)...)
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), c.env...)
	return cmd
}

func (c *compose) run(t *testing.T, bound time.Duration, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), bound)
	defer cancel()
	out, err := c.command(ctx, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("docker compose %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// TestCompose brings the compose files up as the README says, loads real
// conversations, kills each container in turn while more is written, and
// compares every event and every query.
func TestCompose(t *testing.T) {
	if os.Getenv(dockerVar) != "1" {
		t.Skipf("%s is not 1", dockerVar)
	}
	for name, files := range map[string][]string{
		"Kafka":          {"compose.yaml"},
		"with ZooKeeper": {"compose.yaml", "compose.zookeeper.yaml"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // they mostly wait
			testCompose(t, name, files)
		})
	}
}

func testCompose(t *testing.T, name string, files []string) {
	addr := freeAddr(t)
	c := &compose{files: files, env: []string{
		"SLUICE_LISTEN_ADDR=" + addr,
		fmt.Sprintf("COMPOSE_PROJECT_NAME=sluice-%s-%d", strings.ToLower(strings.ReplaceAll(name, " ", "-")), os.Getpid()),
	}}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s\n%s", c.run(t, composeBound, "ps", "--all"), c.run(t, composeBound, "logs", "--no-color", "--tail", "40"))
		}
		c.run(t, composeBound, "down", "--volumes", "--timeout", "20")
	})
	began := time.Now()
	c.run(t, composeUpBound, "up", "--detach", "--wait", "--quiet-pull")
	t.Logf("up: %s", time.Since(began).Round(time.Millisecond))
	requirePublished(t, c, addr)

	requireGrafanaUser(t, c)
	requireBill(t, c)

	records, _ := conversationsFile.read(t)
	records = records[:len(records)/4]
	api := newClient(addr)
	requireSQL(t, api)
	l := &loader{client: api, random: rand.New(rand.NewPCG(5, 5))}
	creates, err := l.creates(records)
	if err != nil {
		t.Fatal(err)
	}
	// Half of the events before the faults, the rest during them.
	half := len(creates) / 2
	l.load(t, creates[:half])
	changes, err := l.changes(creates[:half], 400, false)
	if err != nil {
		t.Fatal(err)
	}
	l.load(t, changes)

	rest := creates[half:]
	services := strings.Fields(c.run(t, composeBound, "ps", "--services"))
	if len(services) < 4 {
		t.Fatalf("running services are %v", services)
	}
	for i, service := range services {
		part := rest[i*len(rest)/len(services) : (i+1)*len(rest)/len(services)]
		loaded := make(chan error, 1)
		go func() { loaded <- l.loadThrough(part) }()
		began := time.Now()
		c.run(t, composeBound, "kill", "--signal", "KILL", service)
		// A broker may be restarted once or twice, until ZooKeeper has forgotten the old one.
		eventually(t, composeBound, "up", func() error {
			ctx, cancel := context.WithTimeout(t.Context(), composeBound)
			defer cancel()
			out, err := c.command(ctx, "up", "--detach", "--wait", "--no-build").CombinedOutput()
			if err != nil {
				err = fmt.Errorf("%w: %s", err, out)
			}
			return err
		})
		if err := <-loaded; err != nil {
			t.Fatalf("%s killed: %v", service, err)
		}
		l.applied.waitApplied(t, api, applyBound)
		t.Logf("%s killed and started again, %d events written meanwhile: all visible after %s", service, len(part), time.Since(began).Round(time.Millisecond))
	}

	events := make([]*modelEvent, len(creates))
	for i := range creates {
		events[i] = creates[i].event
	}
	m := newModel(events)
	checkConversationPages(t, api, m, m.conversations, false)
	checkSingleEvents(t, api, m)
	checkQueries(t, api, m)
	checkRefused(t, api)
}

// requirePublished checks that the API is all that is published, on loopback.
func requirePublished(t *testing.T, c *compose, addr string) {
	t.Helper()
	var published []string
	for line := range strings.Lines(c.run(t, composeBound, "ps", "--format", "json")) {
		var container struct {
			Service    string
			Publishers []struct {
				URL           string
				PublishedPort int
			}
		}
		if err := json.Unmarshal([]byte(line), &container); err != nil {
			t.Fatalf("docker compose ps: %v: %s", err, line)
		}
		for _, p := range container.Publishers {
			if p.PublishedPort != 0 {
				published = append(published, fmt.Sprintf("%s %s:%d", container.Service, p.URL, p.PublishedPort))
			}
		}
	}
	if want := "api " + addr; len(published) != 1 || published[0] != want {
		t.Errorf("published are %q, want only %q", published, want)
	}
}

// requireBill checks the bill of materials in the image.
func requireBill(t *testing.T, c *compose) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sbom.cdx.json")
	c.run(t, composeBound, "cp", "api:/sbom.cdx.json", path)
	checkBill(t, path)
}

// requireSQL checks that POST /sql reads the live views, and nothing else.
func requireSQL(t *testing.T, api *client) {
	t.Helper()
	for text, want := range map[string]string{
		"SELECT count() FROM live_events": `"rows":[[0]]`,
		"SELECT count() FROM events":      "query_not_allowed",
	} {
		a, err := api.do(http.MethodPost, "/sql", []byte(text), "")
		if err != nil || !strings.Contains(string(a.body), want) {
			t.Errorf("%s: answered %d %s, error %v; want %s", text, a.status, a.body, err, want)
		}
	}
}

// requireGrafanaUser checks that the dashboard's user reads events, and nothing
// of what was said in them.
func requireGrafanaUser(t *testing.T, c *compose) {
	t.Helper()
	ask := func(table string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), composeBound)
		defer cancel()
		query := "http://127.0.0.1:8123/?user=grafana&password=grafana&query=SELECT+count()+FROM+sluice." + table
		out, err := c.command(ctx, "exec", "-T", "clickhouse", "wget", "-qO-", query).CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	if got, err := ask("live_events"); err != nil || got != "0" {
		t.Errorf("Grafana's user reads of live_events: %q, %v", got, err)
	}
	if got, err := ask("live_event_contents"); err == nil {
		t.Errorf("Grafana's user reads of live_event_contents: %q, want a refusal", got)
	}
}

// loadThrough sends creates through an outage: each again until it is
// acknowledged, which is harmless. Creates whose id the server would mint get
// one first, or a retry would be another event.
func (l *loader) loadThrough(writes []write) error {
	for i := range writes {
		w := &writes[i]
		if w.event.id == "" {
			w.event.id = fmt.Sprintf("through/%s/%d", w.event.conversation, w.index)
			w.body["id"] = quoted(w.event.id)
		}
	}
	pace := time.NewTicker(200 * time.Millisecond) // so that it lasts through the outage
	defer pace.Stop()
	for deadline := time.Now().Add(composeUpBound); len(writes) > 0; {
		n := min(20, len(writes))
		err := l.sendBatch(writes[:n])
		switch {
		case err == nil:
			writes = writes[n:]
		case time.Now().After(deadline):
			return err
		}
		<-pace.C
	}
	return nil
}
