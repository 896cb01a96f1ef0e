package event_test

import (
	"strings"
	"testing"

	"github.com/sluicehq/sluice/internal/event"
)

func TestRulesValidate(t *testing.T) {
	for _, c := range []struct {
		name  string
		names []string
		want  string
	}{
		{"default", event.DefaultEventNames(), ""},
		{"none", nil, "EventNames: must name at least one event"},
		{
			"all that is wrong",
			[]string{"a", "", "a", strings.Repeat("x", 129), "\xff"},
			"EventNames[1]: must be 1 to 128 bytes of UTF-8\nEventNames[2]: repeats \"a\"\n" +
				"EventNames[3]: must be 1 to 128 bytes of UTF-8\nEventNames[4]: must be 1 to 128 bytes of UTF-8",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := ""
			if err := (&event.Rules{EventNames: c.names}).Validate(); err != nil {
				got = err.Error()
			}
			if got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}
