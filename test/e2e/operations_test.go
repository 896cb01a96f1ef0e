package e2e_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluicehq/sluice/internal/engine/enginetest"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/kafka/kafkatest"
)

// What docs/operations.md says is done here, by the same commands.

// installation is a Sluice of several processes on Apache Kafka and ClickHouse.
type installation struct {
	*testing.T
	server   *enginetest.Instance
	database string
	flags    []string
}

func newInstallation(t *testing.T) *installation {
	t.Helper()
	broker := kafkatest.Start(t, kafkatest.Options{QuickStart: true})
	u := databaseURL(t)
	if code := start(t, "migrate", "--clickhouse-url", u).wait(t, startBound); code != 0 {
		t.Fatalf("migrate exited %d", code)
	}
	return &installation{
		T: t, server: enginetest.Server(t), database: u[strings.LastIndexByte(u, '/')+1:],
		flags: []string{"--clickhouse-url", u, "--kafka-brokers", broker.Addrs[0]},
	}
}

func (i *installation) api(more ...string) (*process, *client) {
	i.Helper()
	p := start(i.T, slices.Concat([]string{"api", "--listen", "127.0.0.1:0"}, i.flags, more)...)
	c := newClient(p.addr(i.T))
	c.waitReady(i.T)
	return p, c
}

func (i *installation) consumer(more ...string) *process {
	i.Helper()
	return startConsumer(i.T, slices.Concat(i.flags, more))
}

// command runs a command to its end, and returns what it printed.
func (i *installation) command(args ...string) string {
	i.Helper()
	p := start(i.T, slices.Concat(args, i.flags[2:])...)
	if code := p.wait(i.T, startBound); code != 0 {
		i.Fatalf("sluice %s exited %d: %s", strings.Join(args, " "), code, p.log.tail(logTailBytes))
	}
	return string(p.out.bytes())
}

// refused runs a process that must not start, and why it says it does not.
func (i *installation) refused(flags []string, words []string, args ...string) {
	i.Helper()
	p := start(i.T, append(args, flags...)...)
	if code := p.wait(i.T, startBound); code != 1 {
		i.Errorf("sluice %s exited %d, want 1", strings.Join(args, " "), code)
	}
	last := strings.TrimSpace(p.log.tail(1000))
	last = last[strings.LastIndexByte(last, '\n')+1:]
	for _, word := range words {
		if !strings.Contains(last, word) {
			i.Errorf("sluice %s ended with %q, want it to say %q", strings.Join(args, " "), last, word)
		}
	}
}

// lag is what "sluice offsets show" says is not applied.
func (i *installation) lag(more ...string) int64 {
	i.Helper()
	var lag int64
	for line := range strings.Lines(i.command(append([]string{"offsets", "show"}, more...)...)) {
		var p struct{ Committed, End, Lag int64 }
		if err := json.Unmarshal([]byte(line), &p); err != nil || p.Lag != p.End-p.Committed {
			i.Fatalf("offsets show printed %q, error %v", line, err)
		}
		lag += p.Lag
	}
	return lag
}

func (i *installation) drain(more ...string) {
	i.Helper()
	eventually(i.T, applyBound, "the log to be applied", func() error {
		if n := i.lag(more...); n > 0 {
			return fmt.Errorf("%d records are left", n)
		}
		return nil
	})
}

// contents is a digest of all rows that count, with their versions, but for
// those of a conversation.
func (i *installation) contents(without string) string {
	i.Helper()
	other := " WHERE conversation_hash != bitShiftRight(xxHash64('" + without + "'), 40)"
	var all []string
	for table, rows := range map[string]string{
		"events": " FINAL" + other, "event_contents": " FINAL" + other, "event_embeddings": " FINAL" + other,
		"event_aliases": " FINAL WHERE NOT startsWith(alias, '" + without + "')",
		"live_events":   other, "live_event_contents": other, "live_event_embeddings": other,
	} {
		all = append(all, table+": "+i.server.Query(i.T, "SELECT count(), groupBitXor(cityHash64(*)) FROM "+i.database+"."+table+rows))
	}
	slices.Sort(all)
	return strings.Join(all, "\n")
}

// TestTopicGeneration goes to a topic with more partitions.
func TestTopicGeneration(t *testing.T) {
	t.Parallel()
	i := newInstallation(t)
	first := []string{"--kafka-partitions", "2"}
	second := []string{"--kafka-generation", "2", "--kafka-partitions", "5"}
	api, c := i.api(first...)
	consumer := i.consumer(first...)
	before := newLedger("before")
	stop := before.write(c, writers)
	defer stop()
	before.waitForWrites(t, someWrites)
	consumer.stop(t)
	before.waitForWrites(t, someWrites) // that nobody applies
	stop()
	before.requireNoFailures(t)
	created, err := c.post([][]byte{
		[]byte(`{"id":"kept","conversation_id":"old","event_name":"event_a","output":"1"}`),
		[]byte(`{"op":"update","id":"kept","output":"2"}`),
		[]byte(`{"id":"gone","conversation_id":"old","event_name":"event_a"}`),
		[]byte(`{"conversation_id":"old","event_name":"event_a","output":"1"}`),
	})
	if err != nil {
		t.Fatal(err)
	}
	api.stop(t)

	// Not before the first is drained.
	for _, args := range [][]string{{"api", "--listen", "127.0.0.1:0"}, {"consume", "--metrics-listen", ""}} {
		i.refused(slices.Concat(i.flags, second), []string{"generation 2", "not drained", "sluice.events.g1"}, args...)
	}
	if i.lag(first...) == 0 {
		t.Fatal("all is applied, so this test shows nothing")
	}
	consumer = i.consumer(first...)
	i.drain(first...)
	consumer.stop(t)

	api, c = i.api(second...)
	consumers := []*process{i.consumer(second...), i.consumer(second...)}
	before.check(t, c) // with receipts of the generation before
	after := newLedger("after")
	stop = after.write(c, writers)
	defer stop()
	// Writes of this generation are after all of the one before.
	minted := created[3].ID
	results, err := c.post([][]byte{
		[]byte(`{"op":"update","id":"kept","output":"3"}`),
		[]byte(`{"op":"delete","id":"gone"}`),
		[]byte(`{"op":"update","id":"` + minted + `","output":"2"}`),
		[]byte(`{"id":"kept","conversation_id":"new","event_name":"event_b","output":"another create"}`),
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range consumers {
		eventually(t, startBound, "both consumers to work", func() error { return hasFlushed(t, p) })
	}
	after.waitForWrites(t, someWrites)
	stop()
	after.requireNoFailures(t)
	if err := after.applied.add(results...); err != nil {
		t.Fatal(err)
	}
	after.check(t, c)
	before.check(t, c)
	old, err := c.conversation("old", 10, false)
	if err != nil {
		t.Fatal(err)
	}
	outputs := map[string]string{}
	for _, e := range old {
		outputs[e.text("id")] = e.text("output")
	}
	if len(outputs) != 2 || outputs["kept"] != "3" || outputs[minted] != "2" {
		t.Errorf("events of the first generation are %v, want them as the second has updated them", outputs)
	}

	// There is no way back for what writes.
	over := []string{"generation 1", "later generation has begun", "--kafka-generation=2"}
	i.refused(i.flags, over, "api", "--listen", "127.0.0.1:0")
	i.refused(i.flags, over, "serve", "--listen", "127.0.0.1:0")
	i.refused(i.flags[2:], over, "dlq", "replay")
	late := i.consumer() // drains what came late, of which there is nothing
	eventually(t, startBound, "a consumer of the first generation", func() error {
		if !bytes.Contains(late.log.bytes(), []byte("a later generation has begun")) {
			return fmt.Errorf("it does not say that it only drains")
		}
		return nil
	})
	for _, p := range append(consumers, late, api) {
		p.stop(t)
	}
}

// TestBackup takes a backup under load, goes on, loses all tables, and gets
// everything back: what is in the backup from it, and the rest from the log.
func TestBackup(t *testing.T) {
	t.Parallel()
	const meanwhile = "meanwhile" // the conversation of what is written without a database
	i := newInstallation(t)
	i.flags = append(i.flags, "--kafka-session-timeout", "2s")
	api, c := i.api()
	consumer := i.consumer()
	l := newLedger("load")
	stop := l.write(c, writers)
	defer stop()
	l.waitForWrites(t, someWrites)
	eventually(t, startBound, "the consumer to work", func() error { return hasFlushed(t, consumer) })

	// The offsets first: of what is applied after them the backup may have anything.
	offsets := filepath.Join(t.TempDir(), "offsets.jsonl")
	if err := os.WriteFile(offsets, []byte(i.command("offsets", "show")), 0o600); err != nil {
		t.Fatal(err)
	}
	backup := "File('" + i.database + "')"
	i.server.Query(t, "BACKUP DATABASE "+i.database+" TO "+backup)
	l.waitForWrites(t, someWrites)
	stop()
	l.requireNoFailures(t)
	l.check(t, c)
	before := i.contents(meanwhile)

	consumer.kill()
	i.server.Query(t, "DROP DATABASE "+i.database+" SYNC")
	later := newLedger("later")
	if err := later.round(c, meanwhile); err != nil {
		t.Fatal(err)
	}
	if a, err := c.do(http.MethodGet, "/analytics/errors?since=1h", nil, ""); err != nil || a.status != http.StatusServiceUnavailable {
		t.Errorf("without tables a read answers %d, error %v; want 503", a.status, err)
	}
	i.server.Query(t, "RESTORE DATABASE "+i.database+" FROM "+backup)
	if i.contents(meanwhile) == before {
		t.Fatal("the backup has all, so this test shows nothing")
	}
	i.refused(i.flags[2:], []string{"has members"}, "offsets", "rewind", offsets) // the one that was killed
	eventually(t, startBound, "the offsets to be set back", func() error {
		p := start(t, append([]string{"offsets", "rewind", offsets}, i.flags[2:]...)...)
		if code := p.wait(t, startBound); code != 0 {
			return fmt.Errorf("exit code %d: %s", code, p.log.tail(300))
		}
		if !bytes.Contains(p.out.bytes(), []byte(" records of sluice.events.g1 will be applied\n")) {
			t.Errorf("offsets rewind printed %q", p.out.bytes())
		}
		return nil
	})
	i.refused(i.flags[2:], []string{"passed over"}, "offsets", "rewind", forward(t, offsets))
	consumer = i.consumer()
	later.check(t, c)
	l.check(t, c)
	i.drain()
	if after := i.contents(meanwhile); after != before {
		t.Errorf("the tables were\n%s\nand came back as\n%s", before, after)
	}

	// From the first record on, into what is there.
	consumer.stop(t)
	i.command("offsets", "rewind", "--all")
	if i.lag() == 0 {
		t.Error("nothing is to be applied again")
	}
	consumer = i.consumer()
	i.drain()
	if after := i.contents(meanwhile); after != before {
		t.Errorf("the tables were\n%s\nand a replay of the whole log made them\n%s", before, after)
	}
	for _, p := range []*process{consumer, api} {
		p.stop(t)
	}
}

// forward copies a file of offsets with one that is after the group's.
func forward(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	for line := range strings.Lines(string(text)) {
		var p map[string]any
		if err := json.Unmarshal([]byte(line), &p); err != nil {
			t.Fatal(err)
		}
		p["committed"] = p["committed"].(float64) + 1
		if err := encoder.Encode(p); err != nil {
			t.Fatal(err)
		}
	}
	path = filepath.Join(t.TempDir(), "forward.jsonl")
	if err := os.WriteFile(path, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestEmbeddedBackup copies the directory of an embedded pipeline that is
// stopped, goes on, and goes back to the copy.
func TestEmbeddedBackup(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	copied := dir + ".backup"
	p, c := serve(t, dir)
	before := newLedger("before")
	if err := before.round(c, "before"); err != nil {
		t.Fatal(err)
	}
	before.check(t, c)
	p.stop(t)
	if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	p, c = serve(t, dir)
	after := newLedger("after")
	if err := after.round(c, "after"); err != nil {
		t.Fatal(err)
	}
	after.check(t, c)
	p.stop(t)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(copied, dir); err != nil {
		t.Fatal(err)
	}
	p, c = serve(t, dir)
	before.check(t, c)
	if left, err := c.conversation("after", 10, false); err != nil || len(left) > 0 {
		t.Errorf("%d events that the copy cannot have, error %v", len(left), err)
	}
	again := newLedger("again")
	if err := again.round(c, "again"); err != nil {
		t.Fatal(err)
	}
	again.check(t, c)
	p.stop(t)
}

// TestRetention writes events that are older than the retention, and newer.
func TestRetention(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	dir := t.TempDir()
	p, c := serve(t, dir, "--retention", "30d")
	now := time.Now().Truncate(time.Millisecond)
	old, recent := now.Add(-40*day), now.Add(-20*day)
	const wait = "wait=20"
	send := func(method, path, body string, want int) {
		t.Helper()
		a, err := c.do(method, path, []byte(body), wait)
		if err != nil || a.status != want {
			t.Fatalf("%s %s: status %d: %s, error %v; want %d", method, path, a.status, a.body, err, want)
		}
	}
	visible := func(id string, want bool) {
		t.Helper()
		a, err := c.do(http.MethodGet, eventPath(id), nil, "")
		if err != nil || a.status != map[bool]int{true: http.StatusOK, false: http.StatusNotFound}[want] {
			t.Errorf("%s: status %d, error %v; want visible %t", id, a.status, err, want)
		}
	}
	// ID and alias, of either age.
	ids := map[string]bool{ // whether it is recent
		event.NewID(old.UnixMicro(), "c").String(): false, "old": false,
		event.NewID(recent.UnixMicro(), "c").String(): true, "recent": true,
	}
	for id, kept := range ids {
		at, status := recent, http.StatusCreated
		if !kept {
			at, status = old, http.StatusUnprocessableEntity // event_expired
		}
		send(http.MethodPost, "/event", fmt.Sprintf(`{"id":%q,"conversation_id":"c","event_name":"event_a","timestamp":%d}`, id, at.UnixMilli()), status)
		visible(id, kept)
	}
	// The consumer that made the events holds them; another one knows of none
	// that is too old.
	p.stop(t)
	p, c = serve(t, dir)
	for id, kept := range ids {
		visible(id, kept)
		status := http.StatusOK
		if !kept {
			status = http.StatusNotFound // unknown_event
		}
		send(http.MethodPut, eventPath(id), `{"latency":1}`, status)
		visible(id, kept)
	}
	p.stop(t)

	// Longer again: what was out of sight stays so, and the rest is kept.
	p, c = serve(t, dir, "--retention", "60d")
	for id, kept := range ids {
		visible(id, kept)
	}
	p.stop(t)
	p, c = serve(t, dir, "--retention", "10d")
	for id := range ids {
		visible(id, false)
	}
	send(http.MethodPost, "/event", `{"id":"now","conversation_id":"c","event_name":"event_a"}`, http.StatusCreated)
	visible("now", true)
	p.stop(t)
}

// TestDeletedIsErased deletes events whose parts nothing but Sluice merges, and
// looks for their contents in the parts, whichever row is the newest.
func TestDeletedIsErased(t *testing.T) {
	t.Parallel()
	u, dir := databaseURL(t), t.TempDir()
	server, database := enginetest.Server(t), u[strings.LastIndexByte(u, '/')+1:]
	p, c := serve(t, dir, "--clickhouse-url", u)
	for _, table := range []string{"events", "event_contents", "event_embeddings"} {
		server.Query(t, "ALTER TABLE "+database+"."+table+" MODIFY SETTING min_age_to_force_merge_seconds = 0, min_parts_to_merge_at_once = 1000, merge_selector_base = 1000000")
	}
	send := func(method, path, body string, status int) {
		t.Helper()
		a, err := c.do(method, path, []byte(body), "wait=20")
		if err != nil || a.status != status {
			t.Fatalf("%s %s: status %d: %s, error %v; want %d", method, path, a.status, a.body, err, status)
		}
	}
	const deleted = "what nobody is to find"
	found := func() string {
		return server.Query(t, "SELECT (SELECT countIf(conversation_id = '"+deleted+"') FROM "+database+".events) + (SELECT countIf(content = '"+deleted+"') FROM "+database+".event_contents) + (SELECT countIf(has(vector, 1234.5)) FROM "+database+".event_embeddings)")
	}
	makeAndDelete := func(id string) {
		t.Helper()
		send(http.MethodPost, "/event", fmt.Sprintf(`{"id":%q,"conversation_id":%q,"event_name":"event_a","output":%[2]q,"output_embeddings":[1234.5]}`, id, deleted), http.StatusCreated)
		send(http.MethodDelete, eventPath(id), "", http.StatusOK)
		if n := found(); n != "3" {
			t.Fatalf("%s rows have the content right after the delete, want 3: this test would show nothing", n)
		}
	}

	makeAndDelete("by command")
	if code := start(t, "erase", "--clickhouse-url", u).wait(t, applyBound); code != 0 {
		t.Fatalf("sluice erase exited %d", code)
	}
	if n := found(); n != "0" {
		t.Fatalf("%s rows have the content after sluice erase", n)
	}
	// named are the tables with an id in any column, and in any file of a part.
	named := func(id string) string {
		t.Helper()
		var tables []string
		for _, table := range strings.Fields(server.Query(t, "SELECT name FROM system.tables WHERE database = '"+database+"' AND engine LIKE '%MergeTree'")) {
			has := server.Query(t, "SELECT count() > 0 FROM "+database+"."+table+" WHERE position(toString(tuple(*)), '"+id+"') > 0") == "1"
			for _, path := range strings.Fields(server.Query(t, "SELECT path FROM system.parts WHERE active AND database = '"+database+"' AND table = '"+table+"'")) {
				files, err := os.ReadDir(path)
				if err != nil {
					t.Fatal(err)
				}
				for _, file := range files {
					data, err := os.ReadFile(filepath.Join(path, file.Name()))
					if err != nil {
						t.Fatal(err)
					}
					has = has || bytes.Contains(data, []byte(id))
				}
			}
			if has {
				tables = append(tables, table)
			}
		}
		return strings.Join(tables, " ")
	}
	if tables := named("by command"); tables != "event_aliases" {
		t.Errorf("after sluice erase the id is in %q, want event_aliases alone, as it is documented", tables)
	}
	// A delete of what never was has nothing merged, though its month has parts.
	for year := 2001; year < 2004; year++ {
		at := time.Date(year, 5, 1, 0, 0, 0, 0, time.UTC)
		send(http.MethodPost, "/event", fmt.Sprintf(`{"conversation_id":"kept","event_name":"event_a","timestamp":%d,"output":"kept","output_embeddings":[1]}`, at.UnixMilli()), http.StatusCreated)
		send(http.MethodDelete, eventPath(event.NewID(at.UnixMicro(), "never").String()), "", http.StatusOK)
	}
	makeAndDelete("by itself")
	p.stop(t)
	p, c = serve(t, dir, "--clickhouse-url", u, "--erase-after", "2s")
	eventually(t, applyBound, "what was deleted to leave the parts", func() error {
		if n := found(); n != "0" {
			return fmt.Errorf("%s rows have it", n)
		}
		return nil
	})
	addr := p.addr(t)
	eventually(t, applyBound, "the metrics", func() error {
		if merges, waiting := metric(t, addr, "sluice_erasure_merges_total"), metric(t, addr, "sluice_erasure_waiting_seconds"); merges != 3 || waiting != 0 {
			return fmt.Errorf("%v merges, %v s of waiting; want 3 and 0", merges, waiting)
		}
		return nil
	})
	send(http.MethodPost, "/event", `{"id":"still here","conversation_id":"c","event_name":"event_a"}`, http.StatusCreated)
	p.stop(t)

	// What the documents say of ids, at the operator's risk.
	server.Query(t, "INSERT INTO "+database+".events (timestamp, alias, version, deleted) VALUES ('2026-03-01', 'of an earlier build', 1, 1)")
	server.Query(t, "INSERT INTO "+database+".event_aliases (alias, version, deleted) VALUES ('never was', 1, 1)")
	page, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, pattern := range []string{"(?s)ALTER TABLE sluice.event_aliases DELETE.*?mutations_sync = 1", "ALTER TABLE sluice.events UPDATE.*?mutations_sync = 1"} {
		statement := regexp.MustCompile(pattern).FindString(string(page))
		if statement == "" {
			t.Fatalf("docs/operations.md has no statement %q", pattern)
		}
		server.Query(t, strings.ReplaceAll(statement, "sluice.", database+"."))
	}
	for _, id := range []string{"by command", "by itself", "never was", "of an earlier build"} {
		if tables := named(id); tables != "" {
			t.Errorf("%q is in %q, want no table", id, tables)
		}
	}
	p, c = serve(t, dir, "--clickhouse-url", u)
	send(http.MethodGet, eventPath("still here"), "", http.StatusOK)
	send(http.MethodPost, "/event", `{"id":"by command","conversation_id":"c","event_name":"event_a"}`, http.StatusCreated)
	send(http.MethodGet, eventPath("by command"), "", http.StatusOK) // a new event: the id was free again
	p.stop(t)
}

// TestLostLog goes on in another generation when the broker and all that was in
// it are gone.
func TestLostLog(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p, c := serve(t, dir)
	before := newLedger("before")
	if err := before.round(c, "before"); err != nil {
		t.Fatal(err)
	}
	results, err := c.post([][]byte{[]byte(`{"id":"kept","conversation_id":"c","event_name":"event_a","output":"1"}`)})
	if err != nil {
		t.Fatal(err)
	}
	if err := before.applied.add(results...); err != nil {
		t.Fatal(err)
	}
	before.check(t, c)
	p.stop(t)
	if err := os.RemoveAll(filepath.Join(dir, "kafka")); err != nil {
		t.Fatal(err)
	}
	p, c = serve(t, dir, "--kafka-generation", "2")
	before.check(t, c)
	a, err := c.do(http.MethodPut, eventPath("kept"), []byte(`{"output":"2"}`), "wait=20")
	if err != nil || a.status != http.StatusOK {
		t.Errorf("the update answered %d %s, error %v", a.status, a.body, err)
	}
	var e struct{ Output string }
	if err := c.get(eventPath("kept"), &e); err != nil || e.Output != "2" {
		t.Errorf("the event is %+v, error %v", e, err)
	}
	p.stop(t)
}
