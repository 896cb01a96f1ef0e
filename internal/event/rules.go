package event

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"
)

// DefaultEventNames returns the event names that are allowed where none are
// configured: event_a, event_b and event_c.
func DefaultEventNames() []string { return []string{"event_a", "event_b", "event_c"} }

// Rules are the configured rules of events. They must not be changed once in use;
// their methods may then be called concurrently.
type Rules struct {
	// EventNames are the allowed event names: at least one, each of 1 to
	// [EventNameBytesMax] bytes of UTF-8. One that ends in "*" is a pattern, and
	// allows every name that begins with what is before it. See
	// [DefaultEventNames].
	EventNames []string
	// EventNamesMax bounds the distinct names that patterns let in, over the
	// whole life of the rules. Default: [DefaultEventNamesMax].
	EventNamesMax int

	matched matchedNames
}

// DefaultEventNamesMax is the default of Rules.EventNamesMax. It is well below
// the 8,192 values of a part up to which ClickHouse keeps names in a dictionary.
const DefaultEventNamesMax = 1000

// matchedNames are the names that patterns have let in.
type matchedNames struct {
	mu    sync.RWMutex
	names map[string]string // to themselves
}

// find returns the name, if it was let in before.
func (m *matchedNames) find(text []byte) (name string, ok bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	name, ok = m.names[string(text)]
	return name, ok
}

// add lets the name in, and reports whether there is room for it.
func (m *matchedNames) add(name string, namesMax int) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.names[name]; ok {
		return true
	}
	if len(m.names) >= namesMax {
		return false
	}
	if m.names == nil {
		m.names = make(map[string]string)
	}
	m.names[name] = name
	return true
}

// Validate reports everything that is wrong with the rules.
func (r *Rules) Validate() error {
	var errs []error
	if len(r.EventNames) == 0 {
		errs = append(errs, errors.New("EventNames: must name at least one event"))
	}
	for i, name := range r.EventNames {
		if name == "" || len(name) > EventNameBytesMax || !utf8.ValidString(name) {
			errs = append(errs, fmt.Errorf("EventNames[%d]: must be 1 to %d bytes of UTF-8", i, EventNameBytesMax))
		}
		if star := strings.IndexByte(name, '*'); star >= 0 && star < len(name)-1 {
			errs = append(errs, fmt.Errorf("EventNames[%d]: has a * that is not at its end, as that of a pattern is", i))
		}
		if slices.Contains(r.EventNames[:i], name) {
			errs = append(errs, fmt.Errorf("EventNames[%d]: repeats %q", i, name))
		}
	}
	if r.EventNamesMax < 0 {
		errs = append(errs, errors.New("EventNamesMax: must not be negative"))
	}
	return errors.Join(errs...)
}

// EventName returns the text as an event name, if the rules allow it. No copy is
// made of a name that is configured or was let in by a pattern before. A new name
// that a pattern matches must be let in with [Rules.AdmitEventName].
//
// The error is an [*Error] of the field "event_name".
func (r *Rules) EventName(text []byte) (string, error) {
	matches := false
	for _, name := range r.EventNames {
		prefix, isPattern := strings.CutSuffix(name, "*")
		if !isPattern && string(text) == name {
			return name, nil
		}
		matches = matches || isPattern && len(text) >= len(prefix) && string(text[:len(prefix)]) == prefix
	}
	if matches {
		switch name, known := r.matched.find(text); {
		case known:
			return name, nil
		case len(text) == 0:
			return "", Errorf(CodeInvalidValue, "event_name", "must not be empty")
		case len(text) > EventNameBytesMax:
			return "", Errorf(CodeTooLarge, "event_name", "is longer than %d bytes", EventNameBytesMax)
		}
		return string(text), nil
	}
	const namesMax = 10 // what an error message has room for
	if len(r.EventNames) > namesMax {
		return "", Errorf(CodeInvalidValue, "event_name", "is none of the %d configured names", len(r.EventNames))
	}
	return "", Errorf(CodeInvalidValue, "event_name", "must be one of %s", strings.Join(r.EventNames, ", "))
}

// AdmitEventName lets in the name of a write that is valid otherwise. A new name
// that only a pattern allows counts against EventNamesMax; so a write that is
// refused for something else does not use up names. An empty name, of a write that
// sets none, is always fine.
//
// The error is an [*Error] of the field "event_name".
func (r *Rules) AdmitEventName(name string) error {
	if name == "" || slices.Contains(r.EventNames, name) {
		return nil
	}
	namesMax := cmp.Or(r.EventNamesMax, DefaultEventNamesMax)
	if _, known := r.matched.find([]byte(name)); known || r.matched.add(name, namesMax) {
		return nil
	}
	return Errorf(CodeInvalidValue, "event_name",
		"is a new name, and this server has taken as many as it may beside those that are listed: %d", namesMax)
}
