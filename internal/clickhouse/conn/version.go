package conn

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/ClickHouse/ch-go/proto"

	"github.com/sluicehq/sluice/internal/event"
)

// serverVersion is a version of ClickHouse by its first two numbers: 26.7 is {26, 7}.
type serverVersion struct{ year, release int }

func (v serverVersion) String() string { return fmt.Sprintf("%d.%d", v.year, v.release) }

func (v serverVersion) compare(other serverVersion) int {
	return cmp.Or(cmp.Compare(v.year, other.year), cmp.Compare(v.release, other.release))
}

// needs lists the newer features of ClickHouse that Sluice uses, each with the first
// version that has it, oldest first. docs/operations.md lists the tested versions.
//
//nolint:gochecknoglobals // a constant list
var needs = []struct {
	since serverVersion
	what  string
}{
	{serverVersion{24, 11}, "table setting merge_selector_base"},
	{serverVersion{25, 1}, "table setting enable_max_bytes_limit_for_min_age_to_force_merge"},
	{serverVersion{25, 5}, "setting use_skip_indexes_if_final_exact_mode"},
	{serverVersion{26, 2}, "setting deduplicate_insert"},
}

// oldestVersion returns the oldest version that has all of needs.
func oldestVersion() serverVersion { return needs[len(needs)-1].since }

// checkVersion checks the version that a server announces when a connection is opened.
// If it is too old, the error wraps [event.ErrDatabaseOld] and names what the server
// lacks.
//
// Every connection is checked, because a server can be replaced by another one while
// this process runs; the check costs nothing. The announced numbers do not include
// what distributions add to the text of a version.
func checkVersion(server proto.ServerHello) error {
	found := serverVersion{server.Major, server.Minor}
	if found.compare(oldestVersion()) >= 0 {
		return nil
	}
	var missing []string
	for _, n := range needs {
		if found.compare(n.since) < 0 {
			missing = append(missing, n.what)
		}
	}
	return fmt.Errorf("ClickHouse %s.%d is too old: it lacks the %s; the oldest version that works is %s: %w",
		found, server.Patch, strings.Join(missing, ", the "), oldestVersion(), event.ErrDatabaseOld)
}
