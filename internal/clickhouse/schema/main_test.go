package schema_test

import (
	"os"
	"testing"

	"github.com/sluicehq/sluice/internal/engine/enginetest"
)

func TestMain(m *testing.M) { os.Exit(enginetest.Main(m)) }
