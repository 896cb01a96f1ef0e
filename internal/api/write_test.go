package api_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/sluicehq/sluice/internal/event"
)

const small = `{"conversation_id":"c1","event_name":"event_a"}`

func decode(tb testing.TB, body string, into any) {
	tb.Helper()
	if err := json.Unmarshal([]byte(body), into); err != nil {
		tb.Fatalf("%v: %s", err, body)
	}
}

func TestCreateMintsAnID(t *testing.T) {
	h := newHarness(t)
	a := h.do(t, "POST", "/event", small)
	a.expect(t, http.StatusAccepted, "")
	var got struct{ ID, Receipt string }
	decode(t, a.body, &got)
	if got.Receipt != "1.3.0" {
		t.Errorf("receipt %q", got.Receipt)
	}
	if want := "/event/" + got.ID; a.header.Get("Location") != want {
		t.Errorf("Location %q, want %q", a.header.Get("Location"), want)
	}
	ref, err := event.ParseRef(got.ID, now)
	if err != nil || ref.ID.IsZero() {
		t.Fatalf("id %q is not minted: %v", got.ID, err)
	}
	want := []event.Write{{Op: event.OpCreate, ID: ref.ID, Fresh: true, ConversationID: "c1", EventName: "event_a"}}
	if diff := cmp.Diff(want, h.writes, cmpopts.EquateEmpty(), cmpopts.IgnoreFields(event.Write{}, "Set", "Null")); diff != "" {
		t.Errorf("written (-want +got):\n%s", diff)
	}
	if ref.ID.Micros() != now.UnixMicro() {
		t.Errorf("the id carries %v", ref.ID.Time())
	}
}

func TestWritesByAlias(t *testing.T) {
	ids := []string{"order-1", "a b", "a/b", "a//b", "/", "//", "%2F", "50%", "?x=1#y", "..", ".", "~!@$'()*+,;=:"}
	for _, id := range ids {
		t.Run(id, func(t *testing.T) {
			h := newHarness(t)
			quoted, _ := json.Marshal(id)
			body := `{"id":` + string(quoted) + `,"conversation_id":"c1","event_name":"event_a"}`
			a := h.do(t, "POST", "/event", body, "Content-Type", "application/json; charset=UTF-8")
			a.expect(t, http.StatusAccepted, "")
			location := a.header.Get("Location")
			if back, err := url.PathUnescape(strings.TrimPrefix(location, "/event/")); err != nil || back != id {
				t.Fatalf("Location %q names %q", location, back)
			}
			// By the parameter, which nobody on the way decodes.
			byID := "/event?id=" + url.QueryEscape(id)
			written := func(offset int) string { return fmt.Sprintf(`{"id":%s,"receipt":"1.3.%d"}`, quoted, offset) }
			h.do(t, "PUT", byID, `{"latency":1.5}`).expect(t, http.StatusAccepted, written(1))
			h.do(t, "DELETE", byID, "").expect(t, http.StatusAccepted, written(2))
			h.event = &event.Event{ID: id, ConversationID: "c1", EventName: "event_a"}
			h.do(t, "GET", byID+"&after=1.3.1", "").expect(t, http.StatusOK, "")
			if ref := h.last(t); ref != (event.Ref{Alias: id}) {
				t.Errorf("asked for %v", ref)
			}
			// The Location works as it is.
			h.do(t, "PUT", location, `{"latency":1.5}`).expect(t, http.StatusAccepted, written(3))
			h.do(t, "DELETE", location, "").expect(t, http.StatusAccepted, written(4))
			for i, op := range []event.Op{event.OpCreate, event.OpUpdate, event.OpDelete, event.OpUpdate, event.OpDelete} {
				if h.writes[i].Op != op || h.writes[i].Alias != id {
					t.Errorf("write %d: %v of %q", i, h.writes[i].Op, h.writes[i].Alias)
				}
			}
		})
	}
}

func TestRefusedWritesWriteNothing(t *testing.T) {
	for _, tt := range []struct {
		name, method, target, body string
		headers                    []string
		status                     int
		code                       event.Code
		field                      string
	}{
		{name: "empty body", method: "POST", target: "/event", status: 400, code: "invalid_json"},
		{name: "unknown event name", method: "POST", target: "/event", body: `{"conversation_id":"c","event_name":"x"}`, status: 422, code: "invalid_value", field: "event_name"},
		{name: "query string", method: "POST", target: "/event?wait=1", body: small, status: 400, code: "unknown_field", field: "wait"},
		{name: "broken query string", method: "POST", target: "/event?%zz", body: small, status: 400, code: "invalid_request"},
		{name: "update query string", method: "PUT", target: "/event/a?x", body: `{"error":"e"}`, status: 400, code: "unknown_field", field: "x"},
		{name: "delete query string", method: "DELETE", target: "/event/a?x", status: 400, code: "unknown_field", field: "x"},
		{name: "create by parameter", method: "POST", target: "/event?id=a", body: small, status: 400, code: "unknown_field", field: "id"},
		{name: "update of no id", method: "PUT", target: "/event", body: `{"error":"e"}`, status: 422, code: "required", field: "id"},
		{name: "update of an empty id", method: "PUT", target: "/event?id=", body: `{"error":"e"}`, status: 422, code: "required", field: "id"},
		{name: "delete of no id", method: "DELETE", target: "/event", status: 422, code: "required", field: "id"},
		{name: "delete of two ids", method: "DELETE", target: "/event?id=a&id=b", status: 422, code: "invalid_value", field: "id"},
		{name: "delete of an id in the path and one beside", method: "DELETE", target: "/event/a?id=b", status: 400, code: "unknown_field", field: "id"},
		{name: "delete with another parameter", method: "DELETE", target: "/event?id=a&x", status: 400, code: "unknown_field", field: "x"},
		{name: "update of another id", method: "PUT", target: "/event?id=a", body: `{"id":"b","error":"e"}`, status: 422, code: "immutable", field: "id"},
		{name: "update by a long id as a parameter", method: "PUT", target: "/event?id=" + strings.Repeat("x", 129), body: `{"error":"e"}`, status: 413, code: "too_large", field: "id"},
		{name: "batch query string", method: "POST", target: "/events?x", body: small, status: 400, code: "unknown_field", field: "x"},
		{name: "form", method: "POST", target: "/event", body: small, headers: []string{"Content-Type", "application/x-www-form-urlencoded"}, status: 415, code: "unsupported_media_type"},
		{name: "latin1", method: "POST", target: "/event", body: small, headers: []string{"Content-Type", "application/json; charset=latin1"}, status: 415, code: "unsupported_media_type"},
		{name: "broken type", method: "POST", target: "/event", body: small, headers: []string{"Content-Type", "application/json; ="}, status: 415, code: "unsupported_media_type"},
		{name: "two types", method: "POST", target: "/event", body: small, headers: []string{"Content-Type", "application/json", "Content-Type", "text/plain"}, status: 415, code: "unsupported_media_type"},
		{name: "ndjson for one", method: "POST", target: "/event", body: small, headers: []string{"Content-Type", "application/x-ndjson"}, status: 415, code: "unsupported_media_type"},
		{name: "text for update", method: "PUT", target: "/event/a", body: `{"error":"e"}`, headers: []string{"Content-Type", "text/plain"}, status: 415, code: "unsupported_media_type"},
		{name: "text for batch", method: "POST", target: "/events", body: small, headers: []string{"Content-Type", "text/plain"}, status: 415, code: "unsupported_media_type"},
		{name: "brotli", method: "POST", target: "/event", body: small, headers: []string{"Content-Encoding", "br"}, status: 415, code: "unsupported_encoding"},
		{name: "two encodings", method: "POST", target: "/event", body: small, headers: []string{"Content-Encoding", "gzip, zstd"}, status: 415, code: "unsupported_encoding"},
		{name: "not gzip", method: "POST", target: "/event", body: small, headers: []string{"Content-Encoding", "gzip"}, status: 400, code: "invalid_request"},
		{name: "not zstd", method: "POST", target: "/event", body: small, headers: []string{"Content-Encoding", "zstd"}, status: 400, code: "invalid_request"},
		{name: "update by bad id", method: "PUT", target: "/event/%C3%A9", body: `{"error":"e"}`, status: 422, code: "invalid_value", field: "id"},
		{name: "update by long id", method: "PUT", target: "/event/" + strings.Repeat("x", 129), body: `{"error":"e"}`, status: 413, code: "too_large", field: "id"},
		{name: "delete by upper-case id", method: "DELETE", target: "/event/0197297B-E800-8000-8000-000000000000", status: 422, code: "invalid_value", field: "id"},
		{name: "update of nothing", method: "PUT", target: "/event/a", body: `{}`, status: 422, code: "required"},
		{name: "immutable", method: "PUT", target: "/event/a", body: `{"timestamp":1}`, status: 422, code: "immutable", field: "timestamp"},
		{name: "empty batch", method: "POST", target: "/events", body: " \n\r\n", status: 422, code: "required"},
		{name: "empty array", method: "POST", target: "/events", body: " [ ] ", status: 422, code: "required"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHarness(t)
			h.do(t, tt.method, tt.target, tt.body, tt.headers...).problem(t, tt.status, tt.code, tt.field)
			if h.calls > 0 {
				t.Error("wrote something")
			}
		})
	}
}

// TestVectors sends every shared body where it belongs.
func TestVectors(t *testing.T) {
	content, err := os.ReadFile("../../sdk/spec/vectors/events.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors struct {
		UpdatedID string `json:"updated_id"`
		Cases     []struct {
			Name, Call, Body string
			BodyBase64       []byte `json:"body_base64"`
			Error            *struct {
				Code  event.Code
				Field string
			}
		}
	}
	decode(t, string(content), &vectors)
	if len(vectors.Cases) < 100 {
		t.Fatalf("only %d cases", len(vectors.Cases))
	}
	statuses := map[event.Code]int{
		"invalid_json": 400, "too_deep": 400, "duplicate_field": 400, "unknown_field": 400, "invalid_type": 400,
		"required": 422, "invalid_value": 422, "immutable": 422, "id_mismatch": 422, "too_large": 413,
	}
	for _, tt := range vectors.Cases {
		t.Run(tt.Name, func(t *testing.T) {
			h := newHarness(t)
			body := tt.Body
			if len(tt.BodyBase64) > 0 {
				body = string(tt.BodyBase64)
			}
			var a answer
			switch tt.Call {
			case "create":
				a = h.do(t, "POST", "/event", body)
			case "update":
				a = h.do(t, "PUT", "/event/"+url.PathEscape(vectors.UpdatedID), body)
			case "item":
				a = h.do(t, "POST", "/events", strings.NewReplacer("\n", " ", "\r", " ").Replace(body))
			}
			if tt.Error == nil {
				a.expect(t, http.StatusAccepted, "")
				return
			}
			if h.calls > 0 {
				t.Error("wrote something")
			}
			if tt.Call == "item" && a.header.Get("Content-Type") == "application/json" {
				var got struct {
					Results []struct {
						Error struct {
							Status int
							Code   event.Code
							Field  string
						}
					}
				}
				decode(t, a.body, &got)
				if e := got.Results[0].Error; e.Code != tt.Error.Code || e.Field != tt.Error.Field || e.Status != statuses[e.Code] || a.status != e.Status {
					t.Errorf("got %s", a.body)
				}
				return
			}
			a.problem(t, statuses[tt.Error.Code], tt.Error.Code, tt.Error.Field)
		})
	}
}

// TestPatch changes keys of the metadata.
func TestPatch(t *testing.T) {
	h := newHarness(t)
	const body = `{"conversation_metadata":{"score":0.5,"old":null,"a":{"b":null}},"latency":3}`
	h.do(t, "PATCH", "/event/a", body).expect(t, 202, `{"id":"a","receipt":"1.3.0"}`)
	h.do(t, "PATCH", "/event?id=a", body, "Content-Type", "application/merge-patch+json; charset=utf8").expect(t, 202, "")
	h.do(t, "POST", "/events", `{"op":"patch","id":"a",`+body[1:]).expect(t, 202, "")
	h.do(t, "PATCH", "/event/a", `{"conversation_metadata":null}`, "Content-Type", "application/json").expect(t, 202, "")
	h.do(t, "PATCH", "/event/a", `{"error":"e"}`).expect(t, 202, "")
	h.do(t, "PUT", "/event/a", body).expect(t, 202, "")
	metadata := event.Fields(1 << event.FieldMetadata)
	for i, want := range []event.Write{
		{Metadata: []byte(`{"score":0.5,"old":null,"a":{"b":null}}`), MergeMetadata: true, Latency: 3, Set: metadata | 1<<event.FieldLatency},
		{Metadata: []byte(`{"score":0.5,"old":null,"a":{"b":null}}`), MergeMetadata: true, Latency: 3, Set: metadata | 1<<event.FieldLatency},
		{Metadata: []byte(`{"score":0.5,"old":null,"a":{"b":null}}`), MergeMetadata: true, Latency: 3, Set: metadata | 1<<event.FieldLatency},
		{Set: metadata, Null: metadata},
		{Error: "e", Set: 1 << event.FieldError},
		{Metadata: []byte(`{"score":0.5,"old":null,"a":{"b":null}}`), Latency: 3, Set: metadata | 1<<event.FieldLatency},
	} {
		want.Op, want.Alias = event.OpUpdate, "a"
		if diff := cmp.Diff(want, h.writes[i], cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("write %d (-want +got):\n%s", i, diff)
		}
	}
	calls := h.calls
	h.do(t, "PATCH", "/event/a", `{}`).problem(t, 422, "required", "")
	h.do(t, "PATCH", "/event/a", `{"conversation_metadata":[1]}`).problem(t, 400, "invalid_type", "conversation_metadata")
	h.do(t, "PATCH", "/event/a", `{"conversation_metadata":{"a":1,"a":2}}`).problem(t, 400, "duplicate_field", "conversation_metadata.a")
	h.do(t, "PATCH", "/event/a", `{"conversation_metadata":{"a":"`+strings.Repeat("x", 16<<10)+`"}}`).problem(t, 413, "too_large", "conversation_metadata")
	h.do(t, "PATCH", "/event/a", `{"timestamp":1}`).problem(t, 422, "immutable", "timestamp")
	h.do(t, "PATCH", "/event", `{"error":"e"}`).problem(t, 422, "required", "id")
	h.do(t, "PATCH", "/event/a", `{"error":"e"}`, "Content-Type", "application/json-patch+json").problem(t, 415, "unsupported_media_type", "")
	h.do(t, "PUT", "/event/a", `{"error":"e"}`, "Content-Type", "application/merge-patch+json").problem(t, 415, "unsupported_media_type", "")
	h.do(t, "POST", "/events", `{"op":"patch","latency":1}`).expect(t, 422, "")
	if h.calls != calls {
		t.Error("wrote what was refused")
	}
	h.wait = func(context.Context, []event.Receipt) ([]*event.Error, error) {
		return []*event.Error{event.Errorf(event.CodeTooLarge, "", "too large")}, nil
	}
	h.do(t, "PATCH", "/event/a", body, "Prefer", "wait=2").problem(t, 413, "too_large", "")
}

func TestBatch(t *testing.T) {
	create := `{"id":"a","conversation_id":"c1","event_name":"event_a"}`
	refused := `{"error":{"status":422,"code":"required","detail":"is required","field":"conversation_id"}}`
	written := func(id string, offset int) string { return fmt.Sprintf(`{"id":%q,"receipt":"1.3.%d"}`, id, offset) }
	results := func(items ...string) string { return `{"results":[` + strings.Join(items, ",") + `]}` }
	type test struct {
		name, body string
		status     int
		want       string
		code       event.Code // of a problem
	}
	for _, tt := range []test{
		{name: "one line", body: create, status: 202, want: results(written("a", 0))},
		{
			name: "all operations", status: 202,
			body: create + "\n" + `{"op":"update","id":"a","error":"e"}` + "\r\n\n \t\n" + `{"op":"delete","id":"a"}` + "\n",
			want: results(written("a", 0), written("a", 1), written("a", 2)),
		},
		{name: "array", body: "\n [" + create + " ,\t" + create + "] \r\n", status: 202, want: results(written("a", 0), written("a", 1))},
		{
			name: "strings that look like structure", status: 202,
			body: `[{"id":"]},{[\"\\","conversation_id":"\\\"],[","event_name":"event_a"},` + create + `]`,
			want: results(`{"id":"]},{[\"\\","receipt":"1.3.0"}`, written("a", 1)),
		},
		{name: "a refused line", body: create + "\n{}\n" + create, status: 207, want: results(written("a", 0), refused, written("a", 1))},
		{name: "a refused element", body: "[" + create + ",{}," + create + "]", status: 207, want: results(written("a", 0), refused, written("a", 1))},
		{name: "only refused", body: "{}\n{}", status: 422, want: results(refused, refused)},
		{name: "one refused", body: "[{}]", status: 422, want: results(refused)},
		{name: "only refused, all with the same status", body: "7\n\"x\"", status: 400},
		{name: "only refused, with statuses that differ", body: "7\n{\"id\":\"" + strings.Repeat("x", 129) + "\",\"conversation_id\":\"c\",\"event_name\":\"event_a\"}", status: 422},
		{name: "only blank lines between", body: "\r\n\r\n" + create + "\r\n \r\n\t\r\n" + create + "\r\n\r\n", status: 202, want: results(written("a", 0), written("a", 1))},
		{name: "array not closed", body: "[" + create, code: "invalid_json", status: 400},
		{name: "string not closed", body: `[{"id":"a`, code: "invalid_json", status: 400},
		{name: "ends in a backslash", body: `["\`, code: "invalid_json", status: 400},
		{name: "trailing comma", body: "[" + create + ",]", code: "invalid_json", status: 400},
		{name: "leading comma", body: "[," + create + "]", code: "invalid_json", status: 400},
		{name: "only a comma", body: "[,]", code: "invalid_json", status: 400},
		{name: "no comma", body: "[" + create + create + "]", code: "invalid_json", status: 400},
		{name: "data after", body: "[" + create + "]x", code: "invalid_json", status: 400},
		{name: "two arrays", body: "[" + create + "][" + create + "]", code: "invalid_json", status: 400},
		{name: "closed by the wrong bracket", body: "[" + create + "}", code: "invalid_json", status: 400},
		{name: "brackets crossed", body: `[` + create + `,{"a":[}]]`, code: "invalid_json", status: 400},
		{name: "broken after the first mistake", body: `[` + create + `,{"x":1,"y":}]`, code: "invalid_json", status: 400},
		{name: "not UTF-8", body: `[` + create + ",{\"x\":\"\xff\"}]", code: "invalid_json", status: 400},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHarness(t)
			a := h.do(t, "POST", "/events", tt.body)
			if tt.code != "" {
				a.problem(t, tt.status, tt.code, "")
				if h.calls > 0 {
					t.Error("wrote something")
				}
				return
			}
			a.expect(t, tt.status, tt.want)
			if h.calls > 1 {
				t.Errorf("%d calls of Produce", h.calls)
			}
		})
	}
	t.Run("content types", func(t *testing.T) {
		h := newHarness(t)
		h.do(t, "POST", "/events", "["+create+"]", "Content-Type", "application/json").expect(t, 202, "")
		h.do(t, "POST", "/events", create, "Content-Type", "application/x-ndjson").expect(t, 202, "")
		for _, charset := range []string{"utf-8", "UTF-8", "utf8", "UTF8", `"utf-8"`, `"Utf8"`} {
			for _, mediaType := range []string{"application/json; charset=", "Application/JSON;CHARSET=", "application/x-ndjson; x=y; charset="} {
				if a := serve(h, request("POST", "/events", create, "Content-Type", mediaType+charset)); a.status != 202 {
					t.Errorf("%s%s: %d %s", mediaType, charset, a.status, a.body)
				}
			}
		}
	})
	t.Run("byte order mark", func(t *testing.T) {
		const bom = "\xef\xbb\xbf"
		for name, body := range map[string]string{
			"lines": bom + create + "\r\n" + create, "a blank line first": bom + "\r\n" + create + "\n" + create,
			"array": bom + "[" + create + "," + create + "]", "array on a line of its own": bom + "\r\n[" + create + "," + create + "]",
		} {
			h := newHarness(t)
			h.do(t, "POST", "/events", body).expect(t, 202, results(written("a", 0), written("a", 1)))
			if a := h.do(t, "POST", "/events", gzipped(t, body), "Content-Encoding", "gzip"); a.status != 202 {
				t.Errorf("%s, compressed: %d %s", name, a.status, a.body)
			}
		}
		h := newHarness(t)
		h.do(t, "POST", "/event", bom+create).expect(t, 202, "")
		h.do(t, "PUT", "/event/a", bom+`{"error":"e"}`).expect(t, 202, "")
		h.do(t, "POST", "/event", bom).problem(t, 400, "invalid_json", "")
		h.do(t, "POST", "/events", bom+"\n").problem(t, 422, "required", "")
		h.do(t, "POST", "/event", bom+bom+create).problem(t, 400, "invalid_json", "")
		h.do(t, "POST", "/event", "\xff\xfe{\x00").problem(t, 400, "invalid_json", "")
	})
	t.Run("a broken line is that line's error", func(t *testing.T) {
		h := newHarness(t)
		a := h.do(t, "POST", "/events", create+"\n{\"id\":\n"+create)
		var got struct {
			Results []struct {
				ID    string
				Error struct{ Code string }
			}
		}
		a.expect(t, 207, "")
		decode(t, a.body, &got)
		if len(got.Results) != 3 || got.Results[1].Error.Code != "invalid_json" || got.Results[2].ID != "a" {
			t.Errorf("got %s", a.body)
		}
	})
}

func TestUnavailable(t *testing.T) {
	away := fmt.Errorf("no broker: %w", event.ErrUnavailable)
	create := `{"id":"a","conversation_id":"c1","event_name":"event_a"}`
	t.Run("single", func(t *testing.T) {
		h := newHarness(t)
		h.ack = func(*event.Write) event.Ack { return event.Ack{Err: away} }
		h.do(t, "POST", "/event", small).problem(t, 503, "unavailable", "")
		h.do(t, "PUT", "/event/a", `{"error":"e"}`).problem(t, 503, "unavailable", "")
		h.do(t, "DELETE", "/event/a", "").problem(t, 503, "unavailable", "")
	})
	t.Run("whole batch", func(t *testing.T) {
		h := newHarness(t)
		h.ack = func(*event.Write) event.Ack { return event.Ack{Err: away} }
		h.do(t, "POST", "/events", create+"\n{}\n"+create).problem(t, 503, "unavailable", "")
	})
	t.Run("part of a batch", func(t *testing.T) {
		h := newHarness(t)
		n := 0
		h.ack = func(*event.Write) event.Ack {
			if n++; n == 2 {
				return event.Ack{Err: away}
			}
			return event.Ack{Receipt: event.Receipt{Generation: 1, Partition: 2, Offset: int64(n)}}
		}
		a := h.do(t, "POST", "/events", create+"\n{}\n"+create+"\n"+create)
		a.expect(t, 207, "")
		var got struct {
			Results []struct {
				Receipt string
				Error   struct {
					Status int
					Code   string
				}
			}
		}
		decode(t, a.body, &got)
		if r := got.Results; len(r) != 4 || r[0].Receipt != "1.2.1" || r[1].Error.Code != "required" ||
			r[2].Error.Code != "unavailable" || r[2].Error.Status != 503 || r[3].Receipt != "1.2.3" {
			t.Errorf("got %s", a.body)
		}
	})
	t.Run("nothing but faults", func(t *testing.T) {
		h := newHarness(t)
		h.ack = func(*event.Write) event.Ack { return event.Ack{Err: errors.New("secret cause")} }
		h.do(t, "POST", "/events", create+"\n{}\n"+create).problem(t, 500, "internal", "")
	})
	t.Run("writes stopped", func(t *testing.T) {
		h := newHarness(t)
		h.ack = func(*event.Write) event.Ack {
			return event.Ack{Err: fmt.Errorf("%w: %w", event.ErrWritesStopped, errors.New("secret cause"))}
		}
		h.do(t, "DELETE", "/event/a", "").problem(t, 503, "writes_stopped", "")
		h.do(t, "POST", "/events", create+"\n"+create).problem(t, 503, "writes_stopped", "")
		a := h.do(t, "POST", "/event", small)
		a.problem(t, 503, "writes_stopped", "")
		if a.header.Get("Retry-After") == "" || strings.Contains(a.body, "secret") {
			t.Errorf("answer %s, headers %v", a.body, a.header)
		}
		if n := h.metric(t, "sluice_api_writes_refused_total", "writes_stopped").GetCounter().GetValue(); n != 4 {
			t.Errorf("%v writes are counted as refused, want 4", n)
		}
	})
	t.Run("record too large", func(t *testing.T) {
		h := newHarness(t)
		h.ack = func(*event.Write) event.Ack {
			return event.Ack{Err: event.Errorf(event.CodeTooLarge, "", "the record is too large")}
		}
		h.do(t, "POST", "/event", small).problem(t, 413, "too_large", "")
	})
	t.Run("fault", func(t *testing.T) {
		h := newHarness(t)
		h.ack = func(*event.Write) event.Ack { return event.Ack{Err: errors.New("secret cause")} }
		a := h.do(t, "POST", "/event", small)
		a.problem(t, 500, "internal", "")
		if strings.Contains(a.body, "secret") || !strings.Contains(h.log.String(), "secret cause") {
			t.Errorf("answer %s log %s", a.body, h.log)
		}
	})
}

func TestPreferWait(t *testing.T) {
	create := `{"id":"a","conversation_id":"c1","event_name":"event_a"}`
	other := `{"id":"c","conversation_id":"c1","event_name":"event_a"}`
	untilEnd := func(ctx context.Context, _ []event.Receipt) ([]*event.Error, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	refuse := func(i int, code event.Code) func(context.Context, []event.Receipt) ([]*event.Error, error) {
		return func(_ context.Context, receipts []event.Receipt) ([]*event.Error, error) {
			refusals := make([]*event.Error, len(receipts))
			refusals[i] = event.Errorf(code, "", "refused")
			return refusals, nil
		}
	}
	for _, tt := range []struct {
		name, method, target, body string
		prefer                     []string
		wait                       func(context.Context, []event.Receipt) ([]*event.Error, error)
		status                     int
		applied                    string
		waited                     time.Duration
		code                       event.Code
	}{
		{name: "create applied", method: "POST", target: "/event", body: create, prefer: []string{"wait=2"}, status: 201, applied: "wait=2"},
		{name: "update applied", method: "PUT", target: "/event/a", body: `{"error":"e"}`, prefer: []string{"wait=2"}, status: 200, applied: "wait=2"},
		{name: "delete applied", method: "DELETE", target: "/event/a", prefer: []string{"wait=2"}, status: 200, applied: "wait=2"},
		{name: "batch applied", method: "POST", target: "/events", body: create + "\n" + other, prefer: []string{"wait=2"}, status: 200, applied: "wait=2"},
		{name: "batch partly refused at the door", method: "POST", target: "/events", body: create + "\n{}", prefer: []string{"wait=2"}, status: 207, applied: "wait=2"},
		{name: "batch wholly refused at the door", method: "POST", target: "/events", body: "{}", prefer: []string{"wait=2"}, wait: untilEnd, status: 422},
		{name: "time runs out", method: "POST", target: "/event", body: create, prefer: []string{"wait=2"}, wait: untilEnd, status: 202, waited: 2 * time.Second},
		{name: "batch's time runs out", method: "POST", target: "/events", body: create, prefer: []string{"wait=2"}, wait: untilEnd, status: 202, waited: 2 * time.Second},
		{name: "bounded", method: "POST", target: "/event", body: create, prefer: []string{"wait=3600"}, wait: untilEnd, status: 202, waited: 30 * time.Second},
		{name: "bounded and said so", method: "POST", target: "/event", body: create, prefer: []string{"wait=3600"}, status: 201, applied: "wait=30"},
		{name: "beyond all numbers", method: "POST", target: "/event", body: create, prefer: []string{"wait=99999999999999999999"}, wait: untilEnd, status: 202},
		{name: "none", method: "POST", target: "/event", body: create, wait: untilEnd, status: 202},
		{name: "zero", method: "POST", target: "/event", body: create, prefer: []string{"wait=0"}, wait: untilEnd, status: 202},
		{name: "among others", method: "POST", target: "/event", body: create, prefer: []string{`respond-async, WAIT = "7" ;x=y`, "wait=9"}, status: 201, applied: "wait=7"},
		{name: "second line", method: "POST", target: "/event", body: create, prefer: []string{"return=minimal", "wait=9"}, status: 201, applied: "wait=9"},
		{name: "not a number", method: "POST", target: "/event", body: create, prefer: []string{"wait=soon"}, wait: untilEnd, status: 202},
		{name: "negative", method: "POST", target: "/event", body: create, prefer: []string{"wait=-1"}, wait: untilEnd, status: 202},
		{name: "no value", method: "POST", target: "/event", body: create, prefer: []string{"wait"}, wait: untilEnd, status: 202},
		{name: "update refused", method: "PUT", target: "/event/a", body: `{"error":"e"}`, prefer: []string{"wait=2"}, wait: refuse(0, "unknown_event"), status: 404, code: "unknown_event", applied: "wait=2"},
		{name: "create refused by the database", method: "POST", target: "/event", body: create, prefer: []string{"wait=2"}, wait: refuse(0, "rejected_by_store"), status: 422, code: "rejected_by_store", applied: "wait=2"},
		{name: "unreadable", method: "POST", target: "/event", body: create, prefer: []string{"wait=2"}, wait: refuse(0, "bad_record"), status: 500, code: "bad_record", applied: "wait=2"},
		{
			name: "nobody can tell", method: "POST", target: "/event", body: create, prefer: []string{"wait=2"}, status: 202,
			wait: func(context.Context, []event.Receipt) ([]*event.Error, error) { return nil, errors.New("no broker") },
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHarness(t)
				h.wait = tt.wait
				var headers []string
				for _, p := range tt.prefer {
					headers = append(headers, "Prefer", p)
				}
				start := time.Now()
				a := h.do(t, tt.method, tt.target, tt.body, headers...)
				if waited := time.Since(start); waited != tt.waited {
					t.Errorf("waited %v, want %v", waited, tt.waited)
				}
				if tt.code != "" {
					a.problem(t, tt.status, tt.code, "")
				} else {
					a.expect(t, tt.status, "")
				}
				if got := a.header.Get("Preference-Applied"); got != tt.applied {
					t.Errorf("Preference-Applied %q, want %q", got, tt.applied)
				}
			})
		})
	}
	for _, tt := range []struct {
		name, method, target, body string
		refused                    bool
		status                     int
		code                       event.Code
	}{
		{"update", "PUT", "/event/a", `{"error":"e"}`, false, 202, ""},
		{"one update of two that was refused", "POST", "/events", `{"op":"update","id":"b","error":"e"}` + "\n" + `{"op":"update","id":"c","error":"e"}`, true, 207, ""},
		{"batch", "POST", "/events", create + "\n" + `{"op":"update","id":"b","error":"e"}`, false, 202, ""},
	} {
		t.Run("refusals may be unknown, "+tt.name, func(t *testing.T) {
			h := newHarness(t)
			h.uncertain = true
			if tt.refused {
				h.wait = refuse(0, "unknown_event")
			}
			a := h.do(t, tt.method, tt.target, tt.body, "Prefer", "wait=2")
			if tt.code != "" {
				a.problem(t, tt.status, tt.code, "")
			} else {
				a.expect(t, tt.status, "")
			}
			if got := a.header.Get("Preference-Applied"); got != "" {
				t.Errorf("Preference-Applied %q", got)
			}
		})
	}
	for _, tt := range []struct {
		name   string
		codes  []event.Code
		status int
	}{
		{"one", []event.Code{"unknown_event"}, 404},
		{"alike", []event.Code{"unknown_event", "unknown_event"}, 404},
		{"for different reasons", []event.Code{"unknown_event", "rejected_by_store"}, 422},
		{"as they cannot be read", []event.Code{"bad_record", "bad_record"}, 422}, // 5xx would have it sent again
		{"all but one", []event.Code{"unknown_event", ""}, 207},
	} {
		t.Run("batch refused by the consumer, "+tt.name, func(t *testing.T) {
			h := newHarness(t)
			h.wait = func(_ context.Context, receipts []event.Receipt) ([]*event.Error, error) {
				refusals := make([]*event.Error, len(receipts))
				for i, code := range tt.codes {
					if code != "" {
						refusals[i] = event.Errorf(code, "", "refused")
					}
				}
				return refusals, nil
			}
			body := strings.Repeat(`{"op":"update","id":"b","error":"e"}`+"\n", len(tt.codes))
			a := h.do(t, "POST", "/events", body, "Prefer", "wait=2")
			a.expect(t, tt.status, "")
			var got struct {
				Results []struct {
					Error struct{ Code event.Code }
				}
			}
			decode(t, a.body, &got)
			if len(got.Results) != len(tt.codes) || a.header.Get("Content-Type") != "application/json" {
				t.Fatalf("got %s", a.body)
			}
			for i, code := range tt.codes {
				if got.Results[i].Error.Code != code {
					t.Errorf("item %d: %s", i, a.body)
				}
			}
		})
	}
	t.Run("batch partly refused by the consumer", func(t *testing.T) {
		h := newHarness(t)
		h.wait = refuse(1, "unknown_event")
		a := h.do(t, "POST", "/events", create+"\n{}\n"+`{"op":"update","id":"b","error":"e"}`+"\n"+other, "Prefer", "wait=2")
		a.expect(t, 207, `{"results":[{"id":"a","receipt":"1.3.0"},`+
			`{"error":{"status":422,"code":"required","detail":"is required","field":"conversation_id"}},`+
			`{"error":{"status":404,"code":"unknown_event","detail":"refused","id":"b","receipt":"1.3.1"}},{"id":"c","receipt":"1.3.2"}]}`)
		want := []any{
			[]event.Receipt{{Generation: 1, Partition: 3}, {Generation: 1, Partition: 3, Offset: 1}, {Generation: 1, Partition: 3, Offset: 2}},
			[]event.Ref{{Alias: "a"}, {Alias: "c"}}, // of what was refused, nothing is to be found out
		}
		if diff := cmp.Diff(want, h.asked); diff != "" {
			t.Errorf("asked (-want +got):\n%s", diff)
		}
	})
}

// TestEffects tells callers who wait what became of writes that were applied.
func TestEffects(t *testing.T) {
	at := func(generation int, offset int64) event.Position { return event.MakePosition(generation, offset) }
	create := `{"id":"a","conversation_id":"c1","event_name":"event_a"}`
	change := `{"error":"e"}`
	type test struct {
		name, method, target, body string
		history                    *event.History // of a; nil for nothing
		status                     int
		want                       string // of the body, but for what every problem of a code has
	}
	run := func(t *testing.T, tt test) {
		t.Helper()
		h := newHarness(t)
		h.writes = make([]event.Write, 10) // so that what is written now has offset 10
		h.histories = func(_ context.Context, refs []event.Ref) (map[event.Ref]event.History, error) {
			if tt.history == nil {
				return nil, nil
			}
			return map[event.Ref]event.History{refs[0]: *tt.history}, nil
		}
		a := h.do(t, tt.method, tt.target, tt.body, "Prefer", "wait=2")
		if a.status != tt.status || !strings.Contains(a.body, tt.want) {
			t.Errorf("answered %d %s, want %d %s", a.status, a.body, tt.status, tt.want)
		}
		if got, want := a.header.Get("Preference-Applied"), map[bool]string{true: "wait=2"}[tt.status != 202]; got != want {
			t.Errorf("Preference-Applied %q, want %q", got, want)
		}
	}
	for _, tt := range []test{
		{"create", "POST", "/event", create, &event.History{Stored: true, Created: at(1, 10)}, 201, `{"id":"a","receipt":"1.3.10"}`},
		{"create, updated since", "POST", "/event", create, &event.History{Stored: true, Created: at(1, 10)}, 201, ""},
		{"create, deleted since", "POST", "/event", create, &event.History{Stored: true, Deleted: at(1, 11)}, 201, ""},
		{"create, taken", "POST", "/event", create, &event.History{Stored: true, Created: at(1, 9)}, 409, `"code":"id_taken","field":"id","id":"a","receipt":"1.3.10","created_by_receipt":"1.3.9"}`},
		{"create, taken in another generation", "POST", "/event", create, &event.History{Stored: true, Created: at(0, 99)}, 409, `"code":"id_taken","field":"id","id":"a","receipt":"1.3.10"}`},
		{"create, taken, and deleted since", "POST", "/event", create, &event.History{Stored: true, Created: at(1, 9), Deleted: at(1, 12)}, 409, `"code":"id_taken"`},
		{"create, taken by one of which only the alias is there", "POST", "/event", create, &event.History{Created: at(1, 9)}, 409, `"code":"id_taken"`},
		{"create, deleted before", "POST", "/event", create, &event.History{Stored: true, Created: at(1, 10), Deleted: at(1, 9)}, 409, `"code":"event_deleted","field":"id","id":"a","receipt":"1.3.10"}`},
		{"create, older than the retention", "POST", "/event", create, &event.History{Stored: true, Created: at(1, 10), Expired: true}, 422, `"code":"event_expired","field":"timestamp","id":"a"`},
		{"create, nothing of it", "POST", "/event", create, nil, 202, `{"id":"a","receipt":"1.3.10"}`},
		{"create, only its alias", "POST", "/event", create, &event.History{Created: at(1, 10)}, 202, ""},
		{"create, and a later one is there", "POST", "/event", create, &event.History{Stored: true, Created: at(1, 11)}, 202, ""},
		{"update", "PUT", "/event/a", change, &event.History{Stored: true, Created: at(1, 3)}, 200, `{"id":"a","receipt":"1.3.10"}`},
		{"update, deleted since", "PUT", "/event/a", change, &event.History{Stored: true, Created: at(1, 3), Deleted: at(1, 11)}, 200, ""},
		{"update, deleted since, and nothing else is left", "PUT", "/event/a", change, &event.History{Stored: true, Deleted: at(1, 11)}, 200, ""},
		{"update, deleted before", "PUT", "/event/a", change, &event.History{Stored: true, Created: at(1, 3), Deleted: at(1, 9)}, 410, `"code":"event_deleted","field":"id","id":"a","receipt":"1.3.10"}`},
		{"update, older than the retention", "PUT", "/event/a", change, &event.History{Stored: true, Created: at(1, 3), Expired: true}, 404, `"code":"unknown_event"`},
		{"update, nothing of it", "PUT", "/event/a", change, nil, 202, ""},
		{"delete", "DELETE", "/event/a", "", &event.History{Stored: true, Created: at(1, 3), Deleted: at(1, 4)}, 200, ""},
		{"delete of nothing", "DELETE", "/event/a", "", nil, 200, ""},
		{
			"one after the other in one request", "POST", "/events",
			create + "\n" + `{"op":"update","id":"a","error":"e"}` + "\n" + create + "\n" + `{"op":"delete","id":"a"}` + "\n" + create + "\n" +
				`{"op":"update","id":"a","error":"e"}` + "\n" + `{"op":"delete","id":"a"}`,
			&event.History{Stored: true, Deleted: at(1, 16)}, 207,
			`{"results":[{"id":"a","receipt":"1.3.10"},{"id":"a","receipt":"1.3.11"},` +
				`{"error":{"status":409,"code":"id_taken","detail":"there was a create of this id before, so that this one had no effect","field":"id","id":"a","receipt":"1.3.12","created_by_receipt":"1.3.10"}},` +
				`{"id":"a","receipt":"1.3.13"},` +
				`{"error":{"status":409,"code":"event_deleted","detail":"the event was deleted before, and nothing revives its id, so that this create had no effect","field":"id","id":"a","receipt":"1.3.14"}},` +
				`{"error":{"status":410,"code":"event_deleted","detail":"the event was deleted before, so that this update had no effect","field":"id","id":"a","receipt":"1.3.15"}},` +
				`{"id":"a","receipt":"1.3.16"}]}`,
		},
	} {
		t.Run(tt.name, func(t *testing.T) { run(t, tt) })
	}

	t.Run("the database does not tell", func(t *testing.T) {
		for _, tt := range []test{
			{"create", "POST", "/event", create, nil, 202, ""},
			{"update", "PUT", "/event/a", change, nil, 202, ""},
			{"batch", "POST", "/events", create + "\n" + create, nil, 202, ""},
			{"delete", "DELETE", "/event/a", "", nil, 200, ""},
			{"id of the server", "POST", "/event", small, nil, 201, ""},
		} {
			for name, err := range map[string]error{"error": errors.New("dial: refused"), "time": context.DeadlineExceeded} {
				h := newHarness(t)
				h.histories = func(ctx context.Context, _ []event.Ref) (map[event.Ref]event.History, error) {
					if _, ok := ctx.Deadline(); !ok {
						t.Error("it may take for ever")
					}
					return nil, err
				}
				a := h.do(t, tt.method, tt.target, tt.body, "Prefer", "wait=2")
				if a.status != tt.status {
					t.Errorf("%s, %s: answered %d %s", tt.name, name, a.status, a.body)
				}
			}
		}
	})
	t.Run("nobody asks where nobody waits", func(t *testing.T) {
		h := newHarness(t)
		h.do(t, "POST", "/event", create).expect(t, 202, "")
		h.do(t, "POST", "/events", create+"\n"+create).expect(t, 202, "")
		if len(h.asked) > 0 {
			t.Errorf("asked %v", h.asked)
		}
	})
	t.Run("a create of the server's id asks nothing, unless it is old", func(t *testing.T) {
		h := newHarness(t)
		h.do(t, "POST", "/event", small, "Prefer", "wait=2").expect(t, 201, "")
		if len(h.asked) != 1 {
			t.Errorf("asked %v", h.asked)
		}
		h.do(t, "POST", "/event", `{"conversation_id":"c1","event_name":"event_a","timestamp":"2026-05-01T00:00:00Z"}`, "Prefer", "wait=2").expect(t, 201, "")
		if len(h.asked) != 3 {
			t.Errorf("asked %v", h.asked)
		}
	})
}

func TestEmbeddingsReachTheLog(t *testing.T) {
	h := newHarness(t)
	vector := base64.StdEncoding.EncodeToString([]byte{0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0})
	h.do(t, "POST", "/event", `{"conversation_id":"c1","event_name":"event_a","input_embeddings":"`+vector+`","output_embeddings":[0.5]}`).expect(t, 202, "")
	if diff := cmp.Diff([]event.Vector{event.VectorOf(1, -2), event.VectorOf(0.5)}, []event.Vector{h.writes[0].InputEmbeddings, h.writes[0].OutputEmbeddings}); diff != "" {
		t.Error(diff)
	}
}
