package api_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
)

// FuzzBatchArray holds the splitting of arrays to a real parser: a body that is
// an array gets one result for each element, one that is not is refused whole.
func FuzzBatchArray(f *testing.F) {
	for _, s := range []string{
		`[]`, `[{}]`, `[,]`, `[1,"a,b]",[2,{"c":","}],null]`, `["\\",{"\"":"]"}]`, `[{"a":1,"a":2}`, `[[[]]`, `["\`, `[1]]`, "[1\n,\t2 ]", `[{]}]`, "[\"\xff\"]",
		`[{"x":1,"y":}]`, `[` + small + `,` + small + `]`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, body string) {
		body = "[" + strings.TrimPrefix(body, "[")
		if strings.Count(body, "[")+strings.Count(body, "{") > 5000 {
			return // beyond what the reference parser nests
		}
		h := newHarness(t)
		a := serve(h, request("POST", "/events", body))
		if !jsontext.Value(body).IsValid(jsontext.AllowDuplicateNames(true)) {
			if a.status != 400 || h.calls > 0 {
				t.Fatalf("%q is no JSON: status %d, %d calls", body, a.status, h.calls)
			}
			return
		}
		var elements []json.RawMessage
		if err := json.Unmarshal([]byte(body), &elements); err != nil {
			t.Skip() // the two parsers differ on depth
		}
		if len(elements) == 0 {
			a.problem(t, 422, "required", "")
			return
		}
		var got struct{ Results []json.RawMessage }
		decode(t, a.body, &got)
		if len(got.Results) != len(elements) || a.status != 202 && a.status != 207 {
			t.Fatalf("%q: status %d, %d results for %d elements", body, a.status, len(got.Results), len(elements))
		}
	})
}
