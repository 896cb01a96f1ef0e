package sluice_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	sluice "github.com/sluicehq/sluice/sdk/go"
)

// dead is a server that acknowledges nothing.
func dead() *fakeAPI {
	return &fakeAPI{answer: func(int, request) answer { return unavailable() }}
}

// copySpool copies a spool, as a crash at this moment would leave it.
func copySpool(t *testing.T, dir string) string {
	t.Helper()
	crashed := t.TempDir()
	if err := os.CopyFS(crashed, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return crashed
}

func segments(t *testing.T, dir string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*.spool"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range paths {
		paths[i] = filepath.Base(paths[i])
	}
	return paths
}

func readFile(t *testing.T, path ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestSpoolIsWrittenBeforeTheCallReturns(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "to", "be", "made")
	client := open(t, dead(), sluice.Options{SpoolDir: dir})
	id := mustTrack(t, client, event("c1"))
	item := fmt.Sprintf(`{"id":%q,"conversation_id":"c1","event_name":"event_a"}`, id)
	want := fmt.Sprintf("%08x %s\n", crc32.ChecksumIEEE([]byte(item)), item)
	if got := readFile(t, dir, "0000000001.spool"); got != want {
		t.Errorf("the segment is %q, want %q", got, want)
	}
	if err := client.DeleteEvent(context.Background(), id); err != nil {
		t.Fatal(err)
	}
	if got := readFile(t, dir, "0000000001.spool"); strings.Count(got, "\n") != 2 || !strings.HasPrefix(got, want) {
		t.Errorf("the segment is %q", got)
	}
}

func TestSpoolIsSentByTheNextStart(t *testing.T) {
	dir := t.TempDir()
	client := open(t, dead(), sluice.Options{SpoolDir: dir})
	ids := []string{mustTrack(t, client, event("c1")), mustTrack(t, client, event("c2"))}
	if err := client.UpdateEvent(context.Background(), ids[0], sluice.Fields{Output: "late"}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := client.Close(ctx); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "3 writes left") {
		t.Fatalf("Close returned %v", err)
	}

	// The second start takes no more than the first, and adds a write.
	client = open(t, dead(), sluice.Options{SpoolDir: dir, QueueWritesMax: 4, FailWhenFull: true})
	ids = append(ids, mustTrack(t, client, event("c3")))
	if _, err := client.TrackEvent(ctx, event("c4")); !errors.Is(err, sluice.ErrQueueFull) {
		t.Errorf("one beyond the bound returned %v", err)
	}
	abandon(client)

	api := new(fakeAPI)
	client = open(t, api, sluice.Options{SpoolDir: dir})
	last := mustTrack(t, client, event("c5"))
	mustFlush(t, client)
	var got []string
	for _, i := range api.items() {
		got = append(got, i.op()+" "+i.id())
	}
	// The update waits for the answer to the create.
	want := []string{"create " + ids[0], "create " + ids[1], "create " + ids[2], "create " + last, "update " + ids[0]}
	if !slices.Equal(got, want) {
		t.Errorf("sent %v, want %v", got, want)
	}
	if err := client.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	if left := segments(t, dir); len(left) != 0 {
		t.Errorf("%v are left", left)
	}

	// Numbers go on, or what done says would be of another file.
	client = open(t, dead(), sluice.Options{SpoolDir: dir})
	mustTrack(t, client, event("c1"))
	number, _ := sluice.ParseDone([]byte(readFile(t, dir, "done")))
	if got, want := segments(t, dir), fmt.Sprintf("%010d.spool", number+1); len(got) != 1 || got[0] != want {
		t.Errorf("after done in segment %d come %v", number, got)
	}
}

func TestSpoolDone(t *testing.T) {
	dir := t.TempDir()
	stuck := ""
	api := &fakeAPI{answer: func(_ int, r request) answer {
		a := answer{status: 207}
		for _, i := range r.items {
			if i.id() == stuck {
				a.results = append(a.results, refusedItem(503, "unavailable"))
			} else {
				a.results = append(a.results, acknowledged)
			}
		}
		return a
	}}
	client := open(t, api, sluice.Options{SpoolDir: dir})
	mustTrack(t, client, event("c1"))
	mustFlush(t, client)
	stuck = "stuck"
	e := event("c1")
	e.ID = stuck
	mustTrack(t, client, e)
	for range 3 {
		mustTrack(t, client, event("c1"))
	}
	waitFor(t, func() bool { return len(api.items()) >= 6 }) // what is stuck, a second time
	abandon(client)

	data := readFile(t, dir, "0000000001.spool")
	number, offset := sluice.ParseDone([]byte(readFile(t, dir, "done")))
	if want := int64(strings.Index(data, "\n") + 1); number != 1 || offset != want {
		t.Errorf("done is %d %d, want 1 %d", number, offset, want)
	}
	again := new(fakeAPI)
	client = open(t, again, sluice.Options{SpoolDir: dir})
	mustFlush(t, client)
	items := again.items()
	if len(items) != 4 || items[0].id() != stuck {
		t.Errorf("sent again were %v", items)
	}
}

func TestSpoolSegments(t *testing.T) {
	dir := t.TempDir()
	client := open(t, dead(), sluice.Options{SpoolDir: dir, FailWhenFull: true})
	e := event("c1")
	e.Input = strings.Repeat("x", 500_000)
	const writes = 20 // 8 in a segment
	for range writes {
		mustTrack(t, client, e)
	}
	if got := segments(t, dir); len(got) != 3 {
		t.Errorf("the segments are %v", got)
	}
	for _, name := range segments(t, dir) {
		if n := len(readFile(t, dir, name)); n > sluice.SegmentBytesMax {
			t.Errorf("%s has %d bytes", name, n)
		}
	}
	abandon(client)

	// A crash after the first segment was answered.
	release := make(chan struct{})
	api := &fakeAPI{answer: func(n int, _ request) answer {
		if n >= 9 { // two in a batch
			<-release
			return unavailable()
		}
		return answer{status: 202}
	}}
	client = open(t, api, sluice.Options{SpoolDir: dir})
	waitFor(t, func() bool { return len(api.got()) == 10 })
	if got := segments(t, dir); len(got) != 1 || got[0] != "0000000003.spool" {
		t.Errorf("the segments are %v", got)
	}
	crashed := copySpool(t, dir)
	close(release)
	abandon(client)

	api = new(fakeAPI)
	client = open(t, api, sluice.Options{SpoolDir: crashed})
	mustFlush(t, client)
	if n := len(api.items()); n != writes-18 {
		t.Errorf("%d were sent after the crash, want %d", n, writes-18)
	}
}

func TestSpoolCorrupt(t *testing.T) {
	dir := t.TempDir()
	client := open(t, dead(), sluice.Options{SpoolDir: dir})
	var ids []string
	for range 4 {
		ids = append(ids, mustTrack(t, client, event("c1")))
	}
	abandon(client)
	path := filepath.Join(dir, "0000000001.spool")
	lines := strings.SplitAfter(readFile(t, path), "\n")
	lines[1] = strings.Replace(lines[1], "event_a", "event_b", 1)
	lines[3] = lines[3][:40] // torn
	if err := os.WriteFile(path, []byte(strings.Join(lines, "")), 0o600); err != nil {
		t.Fatal(err)
	}

	api := new(fakeAPI)
	var reported errorLog
	client = open(t, api, sluice.Options{SpoolDir: dir, OnError: reported.add})
	mustFlush(t, client)
	if items := api.items(); len(items) != 2 || items[0].id() != ids[0] || items[1].id() != ids[2] {
		t.Errorf("sent %v", items)
	}
	errs := reported.all()
	if len(errs) != 2 {
		t.Fatalf("reported %v", errs)
	}
	for i, offset := range []int{len(lines[0]), len(lines[0]) + len(lines[1]) + len(lines[2])} {
		want := fmt.Sprintf("sluice: spool_corrupt: 0000000001.spool at offset %d", offset)
		if !errors.Is(errs[i], sluice.ErrSpoolCorrupt) || errs[i].Error() != want {
			t.Errorf("reported %q, want %q", errs[i], want)
		}
	}
	if err := client.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	if left := segments(t, dir); len(left) != 0 {
		t.Errorf("%v are left", left)
	}
}

func TestSpoolInUse(t *testing.T) {
	dir := t.TempDir()
	client := open(t, new(fakeAPI), sluice.Options{SpoolDir: dir})
	if _, err := sluice.New(sluice.Options{SpoolDir: dir}); !errors.Is(err, sluice.ErrSpoolInUse) {
		t.Errorf("the second client got %v", err)
	}
	abandon(client)
	client, err := sluice.New(sluice.Options{SpoolDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	abandon(client)
}

// If the file system refuses a write, the call returns an error, and the write takes no room.
func TestSpoolThatCannotBeWritten(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	client := open(t, new(fakeAPI), sluice.Options{SpoolDir: dir, QueueWritesMax: 1, FailWhenFull: true})
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if id, err := client.TrackEvent(context.Background(), event("c1")); !errors.Is(err, os.ErrNotExist) || id != "" {
			t.Errorf("returned %q, %v", id, err)
		}
	}
	mustFlush(t, client)
}

const (
	childVariable = "SLUICE_TEST_SPOOL"
	childURL      = "SLUICE_TEST_URL"
)

// child tracks events until it is killed, and prints each event that was queued.
func child() {
	client, err := sluice.New(sluice.Options{
		URL: os.Getenv(childURL), SpoolDir: os.Getenv(childVariable), Logger: quiet(), BatchWritesMax: 50,
	})
	if err != nil {
		fmt.Fprintln(os.Stdout, "error", err)
		return
	}
	ctx := context.Background()
	for n := 0; ; n++ {
		id, err := client.TrackEvent(ctx, event("c1"))
		if err == nil {
			latency := float64(n)
			err = client.UpdateEvent(ctx, "hot", sluice.Fields{Latency: &latency})
		}
		if err != nil {
			fmt.Fprintln(os.Stdout, "error", err)
			return
		}
		fmt.Fprintln(os.Stdout, id)
	}
}

func TestSpoolSurvivesKill(t *testing.T) {
	for _, reachable := range []bool{false, true} {
		t.Run(fmt.Sprintf("server %t", reachable), func(t *testing.T) {
			dir := t.TempDir()
			taken := make(map[string]bool)
			sent := make(map[string]bool)
			for round := range 4 {
				api := &fakeAPI{t: t, answer: func(n int, _ request) answer {
					if !reachable || n%3 == 2 {
						return unavailable()
					}
					return answer{status: 202}
				}}
				server := httptest.NewServer(api)
				cmd := exec.CommandContext(t.Context(), os.Args[0])
				cmd.Env = append(os.Environ(), childVariable+"="+dir, childURL+"="+server.URL)
				out, err := cmd.StdoutPipe()
				if err != nil {
					t.Fatal(err)
				}
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				// Some rounds end before the first batch, some in the midst of many.
				lines, want := bufio.NewScanner(out), []int{3, 500, 70, 1500}[round]
				for n := 0; lines.Scan(); n++ {
					if n == want {
						if err := cmd.Process.Kill(); err != nil {
							t.Fatal(err)
						}
					}
					if strings.HasPrefix(lines.Text(), "error") {
						t.Fatal(lines.Text())
					}
					taken[lines.Text()] = true
				}
				_ = cmd.Wait() // it was killed
				server.Close()
				for n, r := range api.got() {
					for _, i := range r.items {
						if reachable && n%3 != 2 {
							sent[i.id()] = true
						}
					}
				}
			}

			api := new(fakeAPI)
			client := open(t, api, sluice.Options{SpoolDir: dir, BatchWritesMax: 5000})
			mustFlush(t, client)
			updates := 0
			for _, i := range api.items() {
				sent[i.id()] = true
				if i.id() == "hot" {
					updates++
				}
			}
			if !reachable && updates < 2000 {
				t.Errorf("%d updates were sent", updates)
			}
			for id := range taken {
				if !sent[id] {
					t.Fatalf("%s of %d was lost", id, len(taken))
				}
			}
			if len(taken) < 2000 {
				t.Errorf("only %d were taken", len(taken))
			}
			if err := client.Close(context.Background()); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func FuzzReadSegment(f *testing.F) {
	line := func(item string) string { return fmt.Sprintf("%08x %s\n", crc32.ChecksumIEEE([]byte(item)), item) }
	f.Add([]byte(line(`{"id":"x"}`)+line(`{"op":"delete","id":"y"}`)), int64(0))
	f.Add([]byte(line(`{"id":"x"}`)), int64(5))
	f.Add([]byte(line(`{"id":""}`)+line(`[]`)+line(`{"id":1}`)), int64(0))
	f.Add([]byte("00000000 \n\n12345678 {}\nzzzzzzzz {}\n"), int64(-1))
	f.Add([]byte(line(`{"id":"x"}`)[:12]), int64(0))
	f.Fuzz(func(t *testing.T, data []byte, from int64) {
		writes, corrupt := sluice.ReadSegment(data, from)
		found := int64(0)
		last := int64(-1)
		for w := range writes {
			found++
			text := data[w.Offset : w.Offset+9+int64(len(w.Item))]
			item := w.Item[:len(w.Item)-1]
			if !strings.EqualFold(string(text[:9]), fmt.Sprintf("%08x ", crc32.ChecksumIEEE(item))) || text[len(text)-1] != '\n' {
				t.Errorf("%q is no line", text)
			}
			if w.ID == "" || w.Offset <= last || w.Offset < from {
				t.Errorf("the write is %+v", w)
			}
			last = w.Offset
		}
		for _, err := range corrupt {
			if !errors.Is(err, sluice.ErrSpoolCorrupt) {
				t.Errorf("the error is %v", err)
			}
		}
		// Every corrupt line is reported.
		rest := data[min(max(0, from), int64(len(data))):]
		want := int64(strings.Count(string(rest), "\n"))
		if len(rest) > 0 && rest[len(rest)-1] != '\n' {
			want++
		}
		if got := found + int64(len(corrupt)); got != want {
			t.Errorf("%d lines, want %d", got, want)
		}
		// A corrupt segment does not affect the next segment.
		if len(rest) == 0 || rest[len(rest)-1] == '\n' {
			after, _ := sluice.ReadSegment(append(slices.Clone(data), line(`{"id":"after"}`)...), from)
			id := ""
			for w := range after {
				id = w.ID
			}
			if from <= int64(len(data)) && id != "after" {
				t.Error("a line after it is lost")
			}
		}
	})
}

func TestDone(t *testing.T) {
	for text, want := range map[string][2]int64{
		"": {}, "3 12": {3, 12}, "0000000003 0000000012\n": {3, 12}, "3 12\ngarbage": {3, 12},
		"3": {}, "3 x": {}, "-3 12": {}, "3 -1": {}, "3 12 5": {}, "99999999999999999999 1": {},
	} {
		if segment, offset := sluice.ParseDone([]byte(text)); [2]int64{segment, offset} != want {
			t.Errorf("%q is %d %d, want %d", text, segment, offset, want)
		}
	}
}
