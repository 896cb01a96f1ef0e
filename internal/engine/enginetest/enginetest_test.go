package enginetest_test

import (
	"os"
	"testing"

	"github.com/sluicehq/sluice/internal/engine/enginetest"
)

func TestMain(m *testing.M) { os.Exit(enginetest.Main(m)) }

func TestDatabasePerTest(t *testing.T) {
	server := enginetest.Server(t)
	var names []string
	for range 2 {
		t.Run("Some name: it's 100 %", func(t *testing.T) {
			db := server.Database(t)
			server.Query(t, "CREATE TABLE "+db+".t (n UInt8) ENGINE = MergeTree ORDER BY n")
			server.Query(t, "INSERT INTO "+db+".t VALUES (1)")
			if got := server.Query(t, "SELECT count() FROM "+db+".t"); got != "1" {
				t.Errorf("count = %s, want 1: the database is not this test's alone", got)
			}
			names = append(names, db)
		})
	}
	for _, name := range names {
		if got := server.Query(t, "EXISTS DATABASE "+name); got != "0" {
			t.Errorf("database %s is left behind", name)
		}
	}
	if again := enginetest.Server(t); again != server {
		t.Error("a second server was started")
	}
}
