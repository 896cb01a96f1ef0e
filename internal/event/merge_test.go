package event_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/sluicehq/sluice/internal/event"
)

func TestMergeMetadata(t *testing.T) {
	for _, c := range []struct{ metadata, patch, want string }{
		{``, `{}`, `{}`},
		{``, `{"a":1,"b":null}`, `{"a":1}`},
		{`{}`, `{"a":{"b":null}}`, `{"a":{}}`},
		{`{"a":1}`, `{}`, `{"a":1}`},
		{`{"b":1,"a":2}`, `{"a":3,"c":4}`, `{"b":1,"a":3,"c":4}`},
		{`{"a":1,"b":2}`, `{"a":null}`, `{"b":2}`},
		{`{"a":1,"b":2}`, `{"b":null}`, `{"a":1}`},
		{`{"a":1}`, `{"a":null,"x":null}`, `{}`},
		// The examples of RFC 7396, appendix A, whose target and patch are objects.
		{`{"a":"b"}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"b"}`, `{"b":"c"}`, `{"a":"b","b":"c"}`},
		{`{"a":["b"]}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"c"}`, `{"a":["b"]}`, `{"a":["b"]}`},
		{`{"a":{"b":"c"}}`, `{"a":{"b":"d","c":null}}`, `{"a":{"b":"d"}}`},
		{`{"a":[{"b":"c"}]}`, `{"a":[1]}`, `{"a":[1]}`},
		{`{"e":null}`, `{"a":1}`, `{"e":null,"a":1}`},
		{`{}`, `{"a":{"bb":{"ccc":null}}}`, `{"a":{"bb":{}}}`},
		{`{"a":"x"}`, `{"a":{"b":1}}`, `{"a":{"b":1}}`},
		{`{"a":[null,{"b":null}]}`, `{"c":[null]}`, `{"a":[null,{"b":null}],"c":[null]}`},
		// A name is what it says, however it is written; values keep their bytes.
		{`{"a\u0062":1,"é":1.0}`, `{"ab":2E1,"\u00e9":-0}`, `{"a\u0062":2E1,"é":-0}`},
		{`{"\"":"\\\""}`, `{"a":"null"}`, `{"\"":"\\\"","a":"null"}`},
	} {
		got, ok := event.MergeMetadata(c.metadata, []byte(c.patch))
		if string(got) != c.want || !ok {
			t.Errorf("%s with %s: got %s, want %s", c.metadata, c.patch, got, c.want)
		}
	}
	large := `{"a":"` + strings.Repeat("x", event.MetadataBytesMax-8) + `"}`
	if _, ok := event.MergeMetadata(large, []byte(`{"a":"y","b":1}`)); !ok {
		t.Error("refused what became smaller")
	}
	if _, ok := event.MergeMetadata(large, []byte(`{"b":1}`)); ok {
		t.Error("took what became too large")
	}
	if got, ok := event.MergeMetadata(``, []byte(large)); !ok || string(got) != large {
		t.Error("refused the largest metadata")
	}
}

// TestMergeMetadataAgainstModel merges random objects, and compares with the
// algorithm of the RFC on maps.
func TestMergeMetadataAgainstModel(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 396))
	var value func(depth int) string
	object := func(depth int) string {
		var members []string
		for i := range 4 {
			if rng.IntN(2) == 0 {
				members = append(members, fmt.Sprintf(`"k%d":%s`, i, value(depth)))
			}
		}
		rng.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
		return "{" + strings.Join(members, ",") + "}"
	}
	value = func(depth int) string {
		if depth < 4 && rng.IntN(2) == 0 {
			return object(depth + 1)
		}
		return []string{"null", "1", `"x"`, "[null]", "true"}[rng.IntN(5)]
	}
	var apply func(target, patch any) any
	apply = func(target, patch any) any {
		changes, ok := patch.(map[string]any)
		if !ok {
			return patch
		}
		result := map[string]any{}
		if object, ok := target.(map[string]any); ok {
			for name, v := range object {
				result[name] = v
			}
		}
		for name, v := range changes {
			if v == nil {
				delete(result, name)
			} else {
				result[name] = apply(result[name], v)
			}
		}
		return result
	}
	parse := func(text string) (v any) {
		if err := json.Unmarshal([]byte(text), &v); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		return v
	}
	for range 20_000 {
		metadata, patch := object(1), object(1)
		got, ok := event.MergeMetadata(metadata, []byte(patch))
		if want := apply(parse(metadata), parse(patch)); !ok || !reflect.DeepEqual(parse(string(got)), want) {
			t.Fatalf("%s with %s: got %s, want %v", metadata, patch, got, want)
		}
	}
}
