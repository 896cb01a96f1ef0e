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

// needs are what this package uses of ClickHouse that has not been there always,
// and the first version that has it, oldest first. docs/operations.md says which
// versions were tried.
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

// oldestVersion is the oldest version that has all of needs.
func oldestVersion() serverVersion { return needs[len(needs)-1].since }

// checkVersion compares the version that a server announces when a connection is
// opened with the oldest that works. The error wraps [event.ErrDatabaseOld], and
// says what the server lacks.
//
// Every connection is checked, at no cost, and not only the first: a server can be
// replaced by another one while this process runs. The numbers are announced apart
// from what distributions add to the text of a version.
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
