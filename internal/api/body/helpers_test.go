package body_test

import (
	"time"

	"github.com/sluicehq/sluice/internal/api/body"
	"github.com/sluicehq/sluice/internal/event"
)

// newParser returns a parser with the default rules.
func newParser() *body.Parser {
	return &body.Parser{Rules: &event.Rules{EventNames: event.DefaultEventNames()}}
}

// now is when the tests' requests are received.
var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
