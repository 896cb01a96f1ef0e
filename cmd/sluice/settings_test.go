package main

import (
	"io"
	"testing"

	"github.com/sluicehq/sluice/cmd/internal/settingstest"
)

func TestSettingsAreDocumented(t *testing.T) {
	guide, _ := settingstest.Guide(t)
	settingstest.Check(t, newParser(new(cli), io.Discard, io.Discard).Model, guide, 50)
}
