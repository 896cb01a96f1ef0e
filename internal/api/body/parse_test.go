package body_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/sluicehq/sluice/internal/api/body"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/record"
)

// The calls of a parse case.
const (
	callCreate = "create" // POST /event
	callUpdate = "update" // PUT /event/order-1
	callItem   = "item"   // an item of POST /events
)

// parseCase is one request body and what becomes of it: either it is refused
// with the code and field, or its write has the members of want.
type parseCase struct {
	name, call, body string
	code             event.Code
	field            string
	// want is a JSON object in the shape of an event, or of a delete.
	want string
}

const head = `{"conversation_id":"c1","event_name":"event_a"`

// with is the body of a create with more members.
func with(members string) string { return head + "," + members + "}" }

func nested(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }

func floats(values ...float32) string {
	var b []byte
	for _, v := range values {
		u := math.Float32bits(v)
		b = append(b, byte(u), byte(u>>8), byte(u>>16), byte(u>>24))
	}
	return base64.StdEncoding.EncodeToString(b)
}

func parseCases() []parseCase {
	at := int64(1_767_323_045_678_901) // 2026-01-02T03:04:05.678901Z
	minted := event.MakeID(at, event.ConversationHash("c1"), 1).String()
	internal := event.MakeID(at, event.ConversationHash("c1"), 1).AsInternal().String()
	const (
		c, u, i = callCreate, callUpdate, callItem
		inf     = float32(math.MaxFloat32)
	)
	badJSON, badType, badValue := event.CodeInvalidJSON, event.CodeInvalidType, event.CodeInvalidValue
	long := strings.Repeat("x", 257)
	return []parseCase{
		// What is accepted.
		{"smallest create", c, head + `}`, "", "", `{"conversation_id":"c1","event_name":"event_a","error":null,"input":null}`},
		{"white space everywhere", c, " \t\r\n{ \"conversation_id\" : \"c1\" ,\n\"event_name\":\t\"event_a\" , \"input\" : [ 1 , \" a b \" , { } ] }\r\n ", "", "", `{"input":[1," a b ",{}]}`},
		{"byte order mark", c, "\ufeff" + head + `}`, "", "", `{"conversation_id":"c1"}`},
		{"byte order mark before an update", u, "\ufeff\r\n" + `{"latency":1}`, "", "", `{"latency":1}`},
		{"escaped member name", c, `{"conversation\u005fid":"c1","event_name":"event_a"}`, "", "", `{"conversation_id":"c1"}`},
		{"escaped event name", c, `{"conversation_id":"c1","event_name":"event\u005fa"}`, "", "", `{"event_name":"event_a"}`},
		{"unicode conversation", c, `{"conversation_id":"漢字 😀","event_name":"event_a"}`, "", "", `{"conversation_id":"漢字 😀"}`},
		{"surrogate pair", c, with(`"input":"\ud83d\ude00"`), "", "", `{"input":"😀"}`},
		{"NUL and noncharacters", c, with(`"input":"\u0000\uffff\u2028"`), "", "", `{"input":"\u0000\uffff\u2028"}`},
		{"every escape", c, with(`"input":"\"\\\/\b\f\n\r\t"`), "", "", `{"input":"\"\\/\b\f\n\r\t"}`},
		{"DEL is no control character in JSON", c, with("\"input\":\"\x7f\""), "", "", `{"input":"\u007f"}`},
		{"null is absent in a create", c, with(`"id":null,"conversation_metadata":null,"timestamp":null,"error":null,"latency":null,"input":null,"output":null,"input_embeddings":null,"output_embeddings":null`), "", "", `{"error":null,"latency":null,"input":null,"output":null,"input_embeddings":null,"conversation_metadata":null}`},
		{"empty error is none", c, with(`"error":""`), "", "", `{"error":null}`},
		{"error", c, with(`"error":"timeout"`), "", "", `{"error":"timeout"}`},
		{"empty input is a value", c, with(`"input":""`), "", "", `{"input":""}`},
		{"input of every type", c, with(`"input":false,"output":0`), "", "", `{"input":false,"output":0}`},
		{"numbers as written", c, with(`"input":[1.0,1E5,-0,12345678901234567890.10]`), "", "", `{"input":[1.0,1E5,-0,12345678901234567890.10]}`},
		{"order of members kept", c, with(`"input":{"b":1,"a":2,"":3}`), "", "", `{"input":{"b":1,"a":2,"":3}}`},
		{"32 levels", c, with(`"input":` + nested(31)), "", "", `{"input":` + nested(31) + `}`},
		{"brackets in text are no levels", c, with(`"input":["` + strings.Repeat("[", 40) + `\"{{{","\\"]`), "", "", `{}`},
		{"latency zero", c, with(`"latency":0`), "", "", `{"latency":0}`},
		{"latency minus zero", c, with(`"latency":-0.0`), "", "", `{"latency":0}`},
		{"latency fraction and exponent", c, with(`"latency":12.5e-1`), "", "", `{"latency":1.25}`},
		{"latency too small to tell from zero", c, with(`"latency":1e-999`), "", "", `{"latency":0}`},
		{"timestamp in ms", c, with(`"timestamp":1767323045678`), "", "", `{"timestamp":"2026-01-02T03:04:05.678Z"}`},
		{"timestamp with offset", c, with(`"timestamp":"2026-01-02T05:34:05.678901+02:30"`), "", "", `{"timestamp":"2026-01-02T03:04:05.678901Z"}`},
		{"timestamp with offset to the west", c, with(`"timestamp":"2026-01-01T19:04:05-08:00"`), "", "", `{"timestamp":"2026-01-02T03:04:05Z"}`},
		{"timestamp in nanoseconds is cut", c, with(`"timestamp":"2026-01-02T03:04:05.678901999Z"`), "", "", `{"timestamp":"2026-01-02T03:04:05.678901Z"}`},
		{"timestamp in lower case", c, with(`"timestamp":"2026-01-02t03:04:05z"`), "", "", `{"timestamp":"2026-01-02T03:04:05Z"}`},
		{"timestamp on a leap day", c, with(`"timestamp":"2024-02-29T00:00:00Z"`), "", "", `{"timestamp":"2024-02-29T00:00:00Z"}`},
		{"earliest timestamp", c, with(`"timestamp":946684800000`), "", "", `{"timestamp":"2000-01-01T00:00:00Z"}`},
		{"metadata", c, with(`"conversation_metadata":{ "a" : {"b":[1, 2]} }`), "", "", `{"conversation_metadata":{"a":{"b":[1,2]}}}`},
		{"large numbers in metadata", c, with(`"conversation_metadata":{"a":[1e308,-1E+3,123456789012345678901234567890],"1e999":"1e999"}`), "", "", `{"conversation_metadata":{"a":[1e308,-1E+3,123456789012345678901234567890],"1e999":"1e999"}}`},
		{"empty metadata", c, with(`"conversation_metadata":{}`), "", "", `{"conversation_metadata":{}}`},
		{"metadata of 16 KiB", c, with(`"conversation_metadata":{ "a":"` + strings.Repeat("x", event.MetadataBytesMax-8) + `"}`), "", "", `{}`},
		{"embeddings as numbers", c, with(`"input_embeddings":[ 1, -2.5 ,3e-1,0,-0 ]`), "", "", `{"input_embeddings":[1,-2.5,0.3,0,-0]}`},
		{"embeddings as base64", c, with(`"input_embeddings":"` + floats(1, -2.5) + `","output_embeddings":"` + floats(inf) + `"`), "", "", `{"input_embeddings":[1,-2.5],"output_embeddings":[3.4028235e+38]}`},
		{"base64 with escaped slashes", c, with(`"input_embeddings":"` + strings.ReplaceAll(floats(-math.MaxFloat32), "/", `\/`) + `"`), "", "", `{"input_embeddings":[-3.4028235e+38]}`},
		{"number too small for float32", c, with(`"input_embeddings":[1e-60]`), "", "", `{"input_embeddings":[0]}`},
		{"minted id", c, with(`"id":"` + minted + `"`), "", "", `{"id":"` + minted + `","timestamp":"2026-01-02T03:04:05.678901Z"}`},
		{"minted id and its timestamp", c, with(`"id":"` + minted + `","timestamp":"2026-01-02T03:04:05.678901Z"`), "", "", `{"id":"` + minted + `"}`},
		{"alias", c, with(`"id":"order-1","timestamp":1767323045678`), "", "", `{"id":"order-1","timestamp":"2026-01-02T03:04:05.678Z"}`},
		{"alias with a space and a quote", c, with(`"id":" \"a/b\" "`), "", "", `{"id":" \"a/b\" "}`},
		{"alias of 128 bytes", c, with(`"id":"` + long[:128] + `"`), "", "", `{"id":"` + long[:128] + `"}`},
		{"UUIDv4 is an alias", c, with(`"id":"3f0d3a4e-7c1b-4d5e-9a2f-0123456789ab"`), "", "", `{"id":"3f0d3a4e-7c1b-4d5e-9a2f-0123456789ab"}`},
		{"update of one field", u, `{"latency":1}`, "", "", `{"latency":1}`},
		{"update that clears", u, `{"error":null,"input":null,"input_embeddings":null,"conversation_metadata":null,"latency":null}`, "", "", `{"error":null,"input":null,"input_embeddings":null,"conversation_metadata":null,"latency":null}`},
		{"update with an empty error clears it", u, `{"error":""}`, "", "", `{"error":null}`},
		{"update may repeat the id", u, `{"id":"order-1","event_name":"event_b"}`, "", "", `{"event_name":"event_b"}`},
		{"item without op is a create", i, head + `}`, "", "", `{"conversation_id":"c1"}`},
		{"item with op null is a create", i, with(`"op":null`), "", "", `{"conversation_id":"c1"}`},
		{"item that creates", i, with(`"op":"create"`), "", "", `{"conversation_id":"c1"}`},
		{"item that updates", i, `{"op":"update","id":"order-1","output":"x"}`, "", "", `{"id":"order-1","output":"x"}`},
		{"item that updates a minted id", i, `{"output":"x","id":"` + minted + `","op":"update"}`, "", "", `{"id":"` + minted + `","output":"x"}`},
		{"item that deletes", i, `{"op":"delete","id":"` + minted + `"}`, "", "", `{"id":"` + minted + `"}`},

		// JSON that is none.
		{"empty", c, ``, badJSON, "", ""},
		{"only white space", c, " \n", badJSON, "", ""},
		{"cut short", c, head, badJSON, "", ""},
		{"cut in a string", c, `{"conversation_id":"c1`, badJSON, "conversation_id", ""},
		{"cut in an escape", c, `{"conversation_id":"c1\u00`, badJSON, "conversation_id", ""},
		{"cut in a literal", c, `{"input":tru`, badJSON, "input", ""},
		{"two values", c, head + `}{}`, badJSON, "", ""},
		{"two values, one per line", c, head + "}\n" + head + "}", badJSON, "", ""},
		{"trailing comma in object", c, head + `,}`, badJSON, "", ""},
		{"trailing comma in array", c, with(`"input":[1,]`), badJSON, "input", ""},
		{"trailing bracket", c, head + `}]`, badJSON, "", ""},
		{"wrong bracket", c, with(`"input":[1}`), badJSON, "input", ""},
		{"missing colon", c, with(`"input" 1`), badJSON, "input", ""},
		{"missing comma", c, `{"conversation_id":"c1" "event_name":"event_a"}`, badJSON, "", ""},
		{"double comma", c, with(`,"input":1`), badJSON, "", ""},
		{"single quotes", c, `{'conversation_id':'c1'}`, badJSON, "", ""},
		{"bare name", c, `{conversation_id:"c1"}`, badJSON, "", ""},
		{"number as name", c, `{1:"c1"}`, badJSON, "", ""},
		{"comment", c, with(`"input":1/* */`), badJSON, "", ""},
		{"byte order mark twice", c, "\ufeff\ufeff" + head + `}`, badJSON, "", ""},
		{"form feed as white space", c, "\f" + head + `}`, badJSON, "", ""},
		{"NUL after the value", c, head + "}\x00", badJSON, "", ""},
		{"NaN", c, with(`"latency":NaN`), badJSON, "latency", ""},
		{"Infinity", c, with(`"latency":Infinity`), badJSON, "latency", ""},
		{"minus Infinity in metadata", c, with(`"conversation_metadata":{"a":-Infinity}`), badJSON, "conversation_metadata.a", ""},
		{"NaN in embeddings", c, with(`"input_embeddings":[1,NaN]`), badJSON, "input_embeddings[1]", ""},
		{"upper-case literal", c, with(`"input":TRUE`), badJSON, "input", ""},
		{"leading zero", c, with(`"latency":012`), badJSON, "", ""},
		{"leading plus", c, with(`"latency":+1`), badJSON, "latency", ""},
		{"leading point", c, with(`"latency":.5`), badJSON, "latency", ""},
		{"trailing point", c, with(`"latency":5.`), badJSON, "latency", ""},
		{"exponent without digits", c, with(`"latency":1e`), badJSON, "latency", ""},
		{"hexadecimal number", c, with(`"latency":0x10`), badJSON, "", ""},
		{"minus alone", c, with(`"latency":-`), badJSON, "latency", ""},
		{"raw line break in text", c, with("\"input\":\"a\nb\""), badJSON, "input", ""},
		{"raw tab in text", c, with("\"input\":\"a\tb\""), badJSON, "input", ""},
		{"unknown escape", c, with(`"input":"\x41"`), badJSON, "input", ""},
		{"short unicode escape", c, with(`"input":"\u12"`), badJSON, "input", ""},
		{"high surrogate alone", c, with(`"input":"\ud83d"`), badJSON, "input", ""},
		{"low surrogate alone", c, with(`"input":"\ude00"`), badJSON, "input", ""},
		{"surrogates in the wrong order", c, with(`"input":"\ude00\ud83d"`), badJSON, "input", ""},
		{"high surrogate and a letter", c, with(`"input":"\ud83d\u0041"`), badJSON, "input", ""},
		{"lone surrogate in metadata", c, with(`"conversation_metadata":{"a":["\udfff"]}`), badJSON, "conversation_metadata.a[0]", ""},
		{"lone surrogate in a name", c, with(`"conversation_metadata":{"\ud800":1}`), badJSON, "conversation_metadata", ""},
		{"invalid UTF-8", c, with("\"input\":\"\xff\""), badJSON, "input", ""},
		{"overlong UTF-8", c, with("\"input\":\"\xc0\xaf\""), badJSON, "input", ""},
		{"surrogate in UTF-8", c, with("\"input\":\"\xed\xa0\x80\""), badJSON, "input", ""},
		{"UTF-8 beyond Unicode", c, with("\"input\":\"\xf4\x90\x80\x80\""), badJSON, "input", ""},
		{"cut UTF-8 in a name", c, with("\"conversation_metadata\":{\"a\xc3\":1}"), badJSON, "conversation_metadata", ""},
		{"UTF-16", c, "{\x00\"\x00i\x00d\x00\"\x00", badJSON, "", ""},

		// Objects that name a member twice.
		{"duplicate member", c, with(`"event_name":"event_b"`), event.CodeDuplicateField, "event_name", ""},
		{"duplicate member with the same value", c, with(`"conversation_id":"c1"`), event.CodeDuplicateField, "conversation_id", ""},
		{"duplicate member, escaped", c, with(`"event\u005fname":"event_b"`), event.CodeDuplicateField, "event_name", ""},
		{"duplicate in metadata", c, with(`"conversation_metadata":{"a":1,"b":{"c":1,"c":2}}`), event.CodeDuplicateField, "conversation_metadata.b.c", ""},
		{"duplicate in input", c, with(`"input":[{},{"role":"a","r\u006fle":"b"}]`), event.CodeDuplicateField, "input[1].role", ""},
		{"duplicate unknown member", c, with(`"x":1,"x":1`), event.CodeDuplicateField, "x", ""},

		// Objects nested too deep.
		{"33 levels", c, with(`"input":` + nested(32)), event.CodeTooDeep, "input", ""},
		{"33 levels in metadata", c, with(`"conversation_metadata":{"a":` + nested(31) + `}`), event.CodeTooDeep, "conversation_metadata", ""},
		{"33 levels in the wrong place", c, with(`"id":` + nested(32)), event.CodeTooDeep, "id", ""},
		{"33 levels in embeddings", c, with(`"input_embeddings":` + nested(32)), event.CodeTooDeep, "input_embeddings", ""},
		{"levels that never close", c, strings.Repeat("[", 100), event.CodeTooDeep, "", ""},
		{"10 MB of brackets", c, strings.Repeat("[", 10<<20), event.CodeTooDeep, "", ""},
		{"10 MB of brackets in a member", c, with(`"input":` + strings.Repeat(`{"a":[`, 2<<20)), event.CodeTooDeep, "", ""},

		// Members that are unknown or of a wrong type.
		{"unknown member", c, with(`"latencies":1`), event.CodeUnknownField, "latencies", ""},
		{"names are case-sensitive", c, with(`"Input":1`), event.CodeUnknownField, "Input", ""},
		{"empty member name", c, with(`"":1`), event.CodeUnknownField, "", ""},
		{"member name with a backslash", c, with(`"in\\put":1`), event.CodeUnknownField, `in\put`, ""},
		{"long unknown name is cut", c, with(`"` + long + `":1`), event.CodeUnknownField, long[:64] + "…", ""},
		{"op outside of a batch", c, with(`"op":"create"`), event.CodeUnknownField, "op", ""},
		{"op in an update", u, `{"op":"update","latency":1}`, event.CodeUnknownField, "op", ""},
		{"array", c, `[` + head + `}]`, badType, "", ""},
		{"string", c, `"c1"`, badType, "", ""},
		{"null", c, `null`, badType, "", ""},
		{"number", u, `1`, badType, "", ""},
		{"conversation_id a number", c, `{"conversation_id":1,"event_name":"event_a"}`, badType, "conversation_id", ""},
		{"event_name an array", c, `{"conversation_id":"c1","event_name":["event_a"]}`, badType, "event_name", ""},
		{"id a number", c, with(`"id":1`), badType, "id", ""},
		{"timestamp a boolean", c, with(`"timestamp":true`), badType, "timestamp", ""},
		{"timestamp an object", c, with(`"timestamp":{}`), badType, "timestamp", ""},
		{"error an object", c, with(`"error":{"message":"x"}`), badType, "error", ""},
		{"error false", c, with(`"error":false`), badType, "error", ""},
		{"latency a string", c, with(`"latency":"1"`), badType, "latency", ""},
		{"metadata a string", c, with(`"conversation_metadata":"{}"`), badType, "conversation_metadata", ""},
		{"metadata an array", c, with(`"conversation_metadata":[]`), badType, "conversation_metadata", ""},
		{"embeddings a number", c, with(`"input_embeddings":1`), badType, "input_embeddings", ""},
		{"embeddings an object", c, with(`"output_embeddings":{"0":1}`), badType, "output_embeddings", ""},
		{"embeddings with a string", c, with(`"input_embeddings":[1,2,3,"4"]`), badType, "input_embeddings[3]", ""},
		{"embeddings with null", c, with(`"output_embeddings":[null]`), badType, "output_embeddings[0]", ""},
		{"embeddings nested", c, with(`"input_embeddings":[1,[2]]`), badType, "input_embeddings[1]", ""},
		{"op a number", i, with(`"op":1`), badType, "op", ""},

		// Values that are missing.
		{"no conversation_id", c, `{"event_name":"event_a"}`, event.CodeRequired, "conversation_id", ""},
		{"conversation_id null", c, `{"conversation_id":null,"event_name":"event_a"}`, event.CodeRequired, "conversation_id", ""},
		{"no event_name", c, `{"conversation_id":"c1"}`, event.CodeRequired, "event_name", ""},
		{"event_name null", c, `{"conversation_id":"c1","event_name":null}`, event.CodeRequired, "event_name", ""},
		{"event_name null in an update", u, `{"event_name":null}`, event.CodeRequired, "event_name", ""},
		{"update of nothing", u, `{}`, event.CodeRequired, "", ""},
		{"update of nothing but the id", u, `{"id":"order-1"}`, event.CodeRequired, "", ""},
		{"item that updates nothing", i, `{"op":"update","id":"order-1"}`, event.CodeRequired, "", ""},
		{"item that updates without id", i, `{"op":"update","latency":1}`, event.CodeRequired, "id", ""},
		{"item that deletes without id", i, `{"op":"delete"}`, event.CodeRequired, "id", ""},
		{"item that deletes id null", i, `{"op":"delete","id":null}`, event.CodeRequired, "id", ""},
		{"id empty", c, with(`"id":""`), event.CodeRequired, "id", ""},

		// Values outside of what is allowed.
		{"conversation_id empty", c, `{"conversation_id":"","event_name":"event_a"}`, badValue, "conversation_id", ""},
		{"conversation_id of 257 bytes", c, `{"conversation_id":"` + long + `","event_name":"event_a"}`, event.CodeTooLarge, "conversation_id", ""},
		{"conversation_id of 86 characters, 258 bytes", c, `{"conversation_id":"` + strings.Repeat("漢", 86) + `","event_name":"event_a"}`, event.CodeTooLarge, "conversation_id", ""},
		{"event_name not configured", c, `{"conversation_id":"c1","event_name":"event_d"}`, badValue, "event_name", ""},
		{"event_name empty", u, `{"event_name":""}`, badValue, "event_name", ""},
		{"event_name in another case", u, `{"event_name":"Event_a"}`, badValue, "event_name", ""},
		{"id of 129 bytes", c, with(`"id":"` + long[:129] + `"`), event.CodeTooLarge, "id", ""},
		{"id not ASCII", c, with(`"id":"bestellung-ä"`), badValue, "id", ""},
		{"id with a line break", c, with(`"id":"a\nb"`), badValue, "id", ""},
		{"UUIDv8 in upper case", c, with(`"id":"` + strings.ToUpper(minted) + `"`), badValue, "id", ""},
		{"UUIDv8 with 1000 microseconds", c, with(`"id":"` + minted[:14] + "83e8" + minted[18:] + `"`), badValue, "id", ""},
		{"UUIDv8 of 1970", c, with(`"id":"00000000-0000-8000-8000-000000000000"`), badValue, "id", ""},
		{"UUIDv8 far ahead", c, with(`"id":"ffffffff-ffff-8000-8000-000000000000"`), badValue, "id", ""},
		{"internal id", c, with(`"id":"` + internal + `"`), badValue, "id", ""},
		{"internal id in an update", i, `{"op":"update","id":"` + internal + `","latency":1}`, badValue, "id", ""},
		{"internal id in a delete", i, `{"op":"delete","id":"` + internal + `"}`, badValue, "id", ""},
		{"minted id of another conversation", c, `{"conversation_id":"c2","event_name":"event_a","id":"` + minted + `"}`, event.CodeIDMismatch, "id", ""},
		{"minted id of another time", c, with(`"id":"` + minted + `","timestamp":"2026-01-02T03:04:05.678902Z"`), event.CodeIDMismatch, "id", ""},
		{"minted id and its time cut to ms", c, with(`"id":"` + minted + `","timestamp":1767323045678`), event.CodeIDMismatch, "id", ""},
		{"timestamp before 2000", c, with(`"timestamp":946684799999`), badValue, "timestamp", ""},
		{"timestamp before 2000 by its offset", c, with(`"timestamp":"2000-01-01T00:00:00+00:01"`), badValue, "timestamp", ""},
		{"timestamp in seconds", c, with(`"timestamp":1767323045`), badValue, "timestamp", ""},
		{"timestamp in seconds with a fraction", c, with(`"timestamp":1767323045.678`), badValue, "timestamp", ""},
		{"timestamp in seconds as text", c, with(`"timestamp":"1767323045"`), badValue, "timestamp", ""},
		{"timestamp in microseconds", c, with(`"timestamp":1767323045678901`), badValue, "timestamp", ""},
		{"timestamp far ahead", c, with(`"timestamp":"9999-12-31T23:59:59Z"`), badValue, "timestamp", ""},
		{"timestamp beyond int64", c, with(`"timestamp":99999999999999999999`), badValue, "timestamp", ""},
		{"timestamp beyond int64 in us", c, with(`"timestamp":9223372036854775807`), badValue, "timestamp", ""},
		{"timestamp negative", c, with(`"timestamp":-1`), badValue, "timestamp", ""},
		{"timestamp with a fraction", c, with(`"timestamp":1767323045678.5`), badValue, "timestamp", ""},
		{"timestamp with an exponent", c, with(`"timestamp":1.767323045678e12`), badValue, "timestamp", ""},
		{"timestamp empty", c, with(`"timestamp":""`), badValue, "timestamp", ""},
		{"timestamp a date", c, with(`"timestamp":"2026-01-02"`), badValue, "timestamp", ""},
		{"timestamp without offset", c, with(`"timestamp":"2026-01-02T03:04:05"`), badValue, "timestamp", ""},
		{"timestamp with a space", c, with(`"timestamp":"2026-01-02 03:04:05Z"`), badValue, "timestamp", ""},
		{"timestamp with a comma", c, with(`"timestamp":"2026-01-02T03:04:05,5Z"`), badValue, "timestamp", ""},
		{"timestamp with an empty fraction", c, with(`"timestamp":"2026-01-02T03:04:05.Z"`), badValue, "timestamp", ""},
		{"timestamp with an unterminated fraction", c, with(`"timestamp":"2026-01-02T03:04:05.5"`), badValue, "timestamp", ""},
		{"timestamp at 24:00", c, with(`"timestamp":"2026-01-02T24:00:00Z"`), badValue, "timestamp", ""},
		{"timestamp in a leap second", c, with(`"timestamp":"2016-12-31T23:59:60Z"`), badValue, "timestamp", ""},
		{"timestamp on February 30", c, with(`"timestamp":"2026-02-30T00:00:00Z"`), badValue, "timestamp", ""},
		{"timestamp in month 13", c, with(`"timestamp":"2026-13-01T00:00:00Z"`), badValue, "timestamp", ""},
		{"timestamp on day 0", c, with(`"timestamp":"2026-01-00T00:00:00Z"`), badValue, "timestamp", ""},
		{"timestamp with offset 24:00", c, with(`"timestamp":"2026-01-02T03:04:05+24:00"`), badValue, "timestamp", ""},
		{"timestamp with a short offset", c, with(`"timestamp":"2026-01-02T03:04:05+0100"`), badValue, "timestamp", ""},
		{"timestamp with a digit too few", c, with(`"timestamp":"2026-1-02T03:04:05.00Z"`), badValue, "timestamp", ""},
		{"timestamp with text after it", c, with(`"timestamp":"2026-01-02T03:04:05Z "`), badValue, "timestamp", ""},
		{"latency negative", c, with(`"latency":-0.001`), badValue, "latency", ""},
		{"latency infinite", c, with(`"latency":1e999`), badValue, "latency", ""},
		{"metadata number beyond a double", c, with(`"conversation_metadata":{"a":{"b":[1,-1e999]}}`), event.CodeInvalidValue, "conversation_metadata", ""},
		{"metadata number of 400 digits", c, with(`"conversation_metadata":{"a":` + strings.Repeat("9", 400) + `}`), event.CodeInvalidValue, "conversation_metadata", ""},
		{"metadata above 16 KiB", c, with(`"conversation_metadata":{"a":"` + strings.Repeat("x", event.MetadataBytesMax-7) + `"}`), event.CodeTooLarge, "conversation_metadata", ""},
		{"embeddings empty", c, with(`"input_embeddings":[ ]`), badValue, "input_embeddings", ""},
		{"embeddings of no bytes", c, with(`"output_embeddings":""`), badValue, "output_embeddings", ""},
		{"embeddings beyond float32", c, with(`"input_embeddings":[0,3.5e38]`), badValue, "input_embeddings[1]", ""},
		{"embeddings of 4097 numbers", c, with(`"input_embeddings":[0` + strings.Repeat(",0", 4096) + `]`), event.CodeTooLarge, "input_embeddings", ""},
		{"embeddings of 4097 values in base64", c, with(`"input_embeddings":"` + floats(make([]float32, 4097)...) + `"`), event.CodeTooLarge, "input_embeddings", ""},
		{"base64 of 5 bytes", c, with(`"input_embeddings":"AAAAAAA="`), badValue, "input_embeddings", ""},
		{"base64 without padding", c, with(`"input_embeddings":"AAAAAA"`), badValue, "input_embeddings", ""},
		{"base64 for URLs", c, with(`"input_embeddings":"__9_fw=="`), badValue, "input_embeddings", ""},
		{"base64 with a line break", c, with(`"input_embeddings":"AAAA\nAA=="`), badValue, "input_embeddings", ""},
		{"base64 with a space", c, with(`"input_embeddings":"AAAA AA=="`), badValue, "input_embeddings", ""},
		{"base64 with stray bits", c, with(`"input_embeddings":"AAAAAB=="`), badValue, "input_embeddings", ""},
		{"NaN in base64", c, with(`"input_embeddings":"` + floats(0, float32(math.NaN())) + `"`), badValue, "input_embeddings[1]", ""},
		{"infinity in base64", u, `{"output_embeddings":"` + floats(float32(math.Inf(-1)), 0) + `"}`, badValue, "output_embeddings[0]", ""},
		{"op unknown", i, with(`"op":"upsert"`), badValue, "op", ""},
		{"op in upper case", i, with(`"op":"CREATE"`), badValue, "op", ""},
		{"op empty", i, with(`"op":""`), badValue, "op", ""},
		{"item that deletes and sets", i, `{"op":"delete","id":"order-1","error":null}`, event.CodeUnknownField, "error", ""},

		// What an update may not change.
		{"update of conversation_id", u, `{"conversation_id":"c2"}`, event.CodeImmutable, "conversation_id", ""},
		{"update of conversation_id to null", u, `{"conversation_id":null}`, event.CodeImmutable, "conversation_id", ""},
		{"update of timestamp", u, `{"timestamp":1767323045678}`, event.CodeImmutable, "timestamp", ""},
		{"update of id", u, `{"id":"order-2","latency":1}`, event.CodeImmutable, "id", ""},
		{"update of id to null", u, `{"id":null,"latency":1}`, event.CodeImmutable, "id", ""},
		{"item that updates timestamp", i, `{"op":"update","id":"order-1","timestamp":1767323045678}`, event.CodeImmutable, "timestamp", ""},
	}
}

func (c parseCase) parse(p *body.Parser, text []byte) (event.Write, error) {
	switch c.call {
	case callCreate:
		return p.ParseCreate(text, now)
	case callUpdate:
		return p.ParseUpdate(event.Ref{Alias: "order-1"}, text)
	default:
		return p.ParseItem(text, now)
	}
}

func TestParse(t *testing.T) {
	parser := newParser()
	names := map[string]bool{}
	for _, c := range parseCases() {
		if names[c.name] {
			t.Errorf("two cases are named %q", c.name)
		}
		names[c.name] = true
		t.Run(c.name, func(t *testing.T) {
			body := []byte(c.body)
			w, err := c.parse(parser, body)
			if string(body) != c.body {
				t.Error("the body was changed")
			}
			if c.code != "" {
				var got *event.Error
				if !errors.As(err, &got) || got.Code != c.code || got.Field != c.field {
					t.Fatalf("got %#v, want code %s, field %q", err, c.code, c.field)
				}
				if got.Message == "" || !utf8.ValidString(got.Error()) || len(got.Error()) > 400 {
					t.Errorf("bad message: %q", got.Error())
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			checkWrite(t, w)
			checkMembers(t, w, c.want)
		})
	}
}

// checkWrite checks what holds for every write that was parsed.
func checkWrite(t *testing.T, w event.Write) {
	t.Helper()
	if err := w.Validate(now); err != nil {
		t.Fatalf("accepted but invalid: %v", err)
	}
	got, err := record.Read(&record.Record{
		Key: []byte(w.Ref().String()), Value: record.AppendWrite(nil, &w),
		Version: record.FormatVersion, AppendTime: now,
	})
	if err != nil {
		t.Fatalf("accepted but refused as a record: %v", err)
	}
	if diff := cmp.Diff(w, got, cmpopts.EquateEmpty()); diff != "" {
		t.Fatalf("through the log (-want +got):\n%s", diff)
	}
}

// checkMembers compares the write, shown as an event, with the members of want.
func checkMembers(t *testing.T, w event.Write, want string) {
	t.Helper()
	shown := event.Event{
		ID: w.Ref().String(), ConversationID: w.ConversationID, EventName: w.EventName, Micros: w.ID.Micros(),
		Metadata: string(w.Metadata), Error: w.Error, Input: w.Input, Output: w.Output,
		InputEmbeddings: w.InputEmbeddings, OutputEmbeddings: w.OutputEmbeddings,
	}
	if (w.Set &^ w.Null).Has(event.FieldLatency) {
		shown.Latency = &w.Latency
	}
	var got, wanted map[string]json.RawMessage
	if err := json.Unmarshal(shown.AppendJSON(nil, true), &got); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(want), &wanted); err != nil {
		t.Fatal(err)
	}
	for name, value := range wanted {
		g, v := string(got[name]), string(value)
		if v != "" && v[0] == '"' { // texts are compared, not their escapes
			g, v = text(t, g), text(t, v)
		}
		if g != v {
			t.Errorf("%s: got %s, want %s", name, g, v)
		}
		if f, ok := fieldNamed(name); ok && w.Op == event.OpUpdate {
			if !w.Set.Has(f) || w.Null.Has(f) != (string(value) == "null") {
				t.Errorf("%s: set %t, null %t", name, w.Set.Has(f), w.Null.Has(f))
			}
		} else if ok && w.Op == event.OpCreate && w.Set.Has(f) != (string(value) != "null") {
			t.Errorf("%s: set %t", name, w.Set.Has(f))
		}
	}
}

func text(t *testing.T, quoted string) (s string) {
	t.Helper()
	if err := json.Unmarshal([]byte(quoted), &s); err != nil {
		t.Fatalf("%s: %v", quoted, err)
	}
	return s
}

func fieldNamed(name string) (event.Field, bool) {
	for f := event.FieldEventName; f <= event.FieldOutputEmbeddings; f++ {
		if f.String() == name {
			return f, true
		}
	}
	return 0, false
}

func TestParseMints(t *testing.T) {
	parser := newParser()
	receipt := now.Add(123_456 * time.Microsecond)
	for _, c := range []struct {
		name, body      string
		fresh, internal bool
		at              time.Time
	}{
		{"no id", head + `}`, true, false, receipt},
		{"no id, with timestamp", with(`"timestamp":"2026-01-02T03:04:05.000001Z"`), true, false, time.Date(2026, 1, 2, 3, 4, 5, 1000, time.UTC)},
		{"alias", with(`"id":"a"`), false, true, receipt},
		{"alias, with timestamp", with(`"id":"a","timestamp":1767323045000`), false, true, time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, err := parser.ParseCreate([]byte(c.body), receipt)
			if err != nil {
				t.Fatal(err)
			}
			b, err := parser.ParseItem([]byte(c.body), receipt)
			if err != nil {
				t.Fatal(err)
			}
			if a.Fresh != c.fresh || a.ID.IsInternal() != c.internal || !a.ID.Time().Equal(c.at) {
				t.Errorf("fresh %t, internal %t, time %s", a.Fresh, a.ID.IsInternal(), a.ID.Time())
			}
			if a.ID.ConversationHash() != event.ConversationHash("c1") {
				t.Error("the id is not of the conversation")
			}
			if a.ID == b.ID {
				t.Error("two creates got the same id")
			}
		})
	}
}

func TestParseTimeAhead(t *testing.T) {
	parser := newParser()
	edge := now.Add(event.TimestampAhead)
	for _, c := range []struct {
		name string
		at   time.Time
		ok   bool
	}{
		{"24 h ahead", edge, true},
		{"a microsecond more", edge.Add(time.Microsecond), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			id := event.MakeID(c.at.UnixMicro(), event.ConversationHash("c1"), 0).String()
			for _, body := range []string{
				with(`"timestamp":"` + c.at.Format(time.RFC3339Nano) + `"`),
				with(`"id":"` + id + `"`),
			} {
				_, err := parser.ParseCreate([]byte(body), now)
				if (err == nil) != c.ok {
					t.Errorf("%s: %v", body, err)
				}
			}
		})
	}
}

// TestEventNamePatterns opens the list of names, within a bound.
func TestEventNamePatterns(t *testing.T) {
	rules := &event.Rules{EventNames: []string{"event_a", "checkout.*", "pre*"}, EventNamesMax: 3}
	if err := rules.Validate(); err != nil {
		t.Fatal(err)
	}
	parser := &body.Parser{Rules: rules}
	create := func(name, more string) error {
		w, err := parser.ParseCreate([]byte(`{"conversation_id":"c","event_name":"`+name+`"`+more+`}`), now)
		if err == nil && w.Validate(now) != nil {
			t.Errorf("%q: accepted, and not valid: %v", name, w.Validate(now))
		}
		return err
	}
	long := "pre" + strings.Repeat("x", event.EventNameBytesMax-3)
	for _, c := range []struct {
		name, more string
		code       event.Code // empty where it is accepted
		field      string
	}{
		{"event_a", "", "", ""},
		{"event_b", "", event.CodeInvalidValue, "event_name"},
		{"", "", event.CodeInvalidValue, "event_name"},
		{"checkout", "", event.CodeInvalidValue, "event_name"},
		{"Checkout.pay", "", event.CodeInvalidValue, "event_name"},
		{long + "x", "", event.CodeTooLarge, "event_name"},
		// What is refused for something else takes no room.
		{"checkout.1", `,"latency":-1`, event.CodeInvalidValue, "latency"},
		{"checkout.2", `,"input_embeddings":[]`, event.CodeInvalidValue, "input_embeddings"},
		{"checkout.pay", "", "", ""},
		{"checkout.\u0070ay", "", "", ""}, // the same
		{long, "", "", ""},
		{"pre", "", "", ""},
		{"prefix", "", event.CodeInvalidValue, "event_name"}, // one too many
		{"checkout.refund", "", event.CodeInvalidValue, "event_name"},
		{"checkout.pay", "", "", ""},
		{"event_a", "", "", ""},
	} {
		err := create(c.name, c.more)
		var got *event.Error
		if c.code == "" && err != nil || c.code != "" && (!errors.As(err, &got) || got.Code != c.code || got.Field != c.field) {
			t.Errorf("%q%s: %v, want %s of %s", c.name, c.more, err, c.code, c.field)
		}
	}
	ref, _ := event.ParseRef("a", now)
	if _, err := parser.ParseUpdate(ref, []byte(`{"event_name":"pre"}`)); err != nil {
		t.Error(err)
	}
	for _, body := range []string{`{"event_name":"prelude"}`, `{"event_name":null}`, `{"event_name":""}`} {
		if _, err := parser.ParseUpdate(ref, []byte(body)); err == nil {
			t.Errorf("%s: accepted", body)
		}
	}
	all := &body.Parser{Rules: &event.Rules{EventNames: []string{"*"}}}
	for i := range event.DefaultEventNamesMax + 1 {
		_, err := all.ParseItem([]byte(fmt.Sprintf(`{"conversation_id":"c","event_name":"漢字 %d"}`, i)), now)
		if (err == nil) != (i < event.DefaultEventNamesMax) {
			t.Fatalf("name %d: %v", i, err)
		}
	}
}

// TestEventNamesMaxAtOnce has many requests bring new names.
func TestEventNamesMaxAtOnce(t *testing.T) {
	parser := &body.Parser{Rules: &event.Rules{EventNames: []string{"*"}, EventNamesMax: 100}}
	var accepted atomic.Int64
	var all sync.WaitGroup
	for n := range 8 {
		all.Go(func() {
			for i := range 50 {
				if _, err := parser.ParseCreate([]byte(fmt.Sprintf(`{"conversation_id":"c","event_name":"%d-%d"}`, n, i)), now); err == nil {
					accepted.Add(1)
				}
			}
		})
	}
	all.Wait()
	if n := accepted.Load(); n != 100 {
		t.Errorf("%d names accepted", n)
	}
}

// TestTimestampUnits tells callers who send another unit than milliseconds.
func TestTimestampUnits(t *testing.T) {
	parser := newParser()
	for _, c := range []struct{ timestamp, hint string }{
		{"1767323045", "seconds"},
		{"946684800", "seconds"},
		{"1767323045.678", "seconds"},
		{"1.767323045e9", "seconds"},
		{`"1767323045"`, "seconds"},
		{"1767323045678901", "microseconds"},
		{"1767323045678901234", "nanoseconds"},
		{`"1767323045678901234"`, "nanoseconds"},
		{"1767323045678.5", ""},
		{`"1767323045678"`, ""},
		{"946684799", ""},
		{"0", ""},
		{"-1767323045", ""},
		{"4102444799000", ""}, // in milliseconds, of another year
		{`"yesterday"`, ""},
		{`"9999-12-31T23:59:59Z"`, ""},
	} {
		t.Run(c.timestamp, func(t *testing.T) {
			_, err := parser.ParseCreate([]byte(`{"conversation_id":"c","event_name":"event_a","timestamp":`+c.timestamp+`}`), now)
			var got *event.Error
			if !errors.As(err, &got) || got.Code != event.CodeInvalidValue || got.Field != "timestamp" {
				t.Fatal(err)
			}
			if _, after, asks := strings.Cut(got.Message, "; is it in "); asks != (c.hint != "") || asks && !strings.HasPrefix(after, c.hint+"?") {
				t.Errorf("says %q, want a hint of %q", got.Message, c.hint)
			}
		})
	}
}

func FuzzParseItem(f *testing.F) {
	for _, c := range parseCases() {
		if len(c.body) < 4<<10 {
			f.Add([]byte(c.body))
		}
	}
	parser := newParser()
	f.Fuzz(func(t *testing.T, body []byte) {
		before := string(body)
		w, err := parser.ParseItem(body, now)
		if string(body) != before {
			t.Fatal("the body was changed")
		}
		if err != nil {
			var e *event.Error
			if !errors.As(err, &e) || e.Code == "" || e.Message == "" {
				t.Fatalf("not an error of the contract: %#v", err)
			}
			return
		}
		checkWrite(t, w)
		// A lenient parser must see the same contents.
		var lenient struct{ Input, Output any }
		if err := json.Unmarshal(body, &lenient); err != nil {
			t.Fatalf("accepted what encoding/json refuses: %v", err)
		}
		for _, c := range []struct {
			content event.Content
			want    any
		}{{w.Input, lenient.Input}, {w.Output, lenient.Output}} {
			var got any
			switch c.content.Kind {
			case event.KindString:
				got = string(c.content.Data)
			case event.KindJSON:
				if err := json.Unmarshal(c.content.Data, &got); err != nil {
					t.Fatal(err)
				}
			case event.KindNull:
			}
			if !reflect.DeepEqual(c.want, got) { // cmp takes exponential time for deep arrays
				t.Fatalf("got %v, want %v", got, c.want)
			}
		}
	})
}
