package e2e_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
)

// sourceRoot is the directory of the product's module.
const sourceRoot = "../.."

// plantedBug is a bug that others have made, as changes of the product's source. The
// fault suite builds a program with it, and must notice.
type plantedBug struct {
	name string
	// changes are applied in order.
	changes []edit
}

// edit replaces a text, which must be in the file exactly once.
type edit struct{ file, old, new string }

const (
	flushFile     = "internal/consumer/flush.go"
	foldFile      = "internal/consumer/fold.go"
	takeoverFile  = "internal/consumer/takeover.go"
	sourceFile    = "internal/kafka/consumer_rebalance.go"
	producerFile  = "internal/kafka/producer.go"
	partitionFile = "internal/kafka/partitioner.go"
)

// plantedBugs returns every bug that the fault suite must notice.
func plantedBugs() []plantedBug {
	return []plantedBug{
		// The offsets of a flush are committed before its rows are inserted.
		{"commit-first", []edit{{
			flushFile,
			"\tif err := c.apply(ctx, b.items); err != nil {\n",
			"\t_ = c.source.Commit(ctx, b.next)\n\tif err := c.apply(ctx, b.items); err != nil {\n",
		}}},
		// Versions come from the clock instead of the offset.
		{"clock-version", []edit{
			{foldFile, "import (\n", "import (\n\t\"time\"\n"},
			{
				foldFile,
				"\treturn event.MakeVersion(class, at)\n",
				"\treturn event.MakeVersion(class, event.Position(time.Now().UnixMilli()))\n",
			},
		}},
		// A record goes to any partition, whatever its key.
		{"random-partition", []edit{
			{partitionFile, "import (\n", "import (\n\t\"math/rand/v2\"\n"},
			{
				partitionFile,
				"\treturn p.TopicPartitioner.Partition(r, p.partitions)\n",
				"\treturn rand.IntN(p.partitions)\n",
			},
		}},
		// Some deletes leave no tombstone.
		{"no-tombstone", []edit{{
			foldFile,
			"\tversion := makeVersion(event.ClassDelete, at)\n",
			"\tif at%8 == 0 {\n\t\treturn\n\t}\n\tversion := makeVersion(event.ClassDelete, at)\n",
		}}},
		// A failed insert passes for a successful one.
		{"insert-error-swallowed", []edit{{
			flushFile,
			"\t\t\t\trejected, err = err, nil\n\t\t\t}\n\t\t\treturn err\n",
			"\t\t\t\trejected = err\n\t\t\t}\n\t\t\treturn nil\n",
		}}},
		// A partition without a commit is read from its end.
		{"reset-to-latest", []edit{{
			sourceFile,
			"\t\tnext := o.EpochOffset().Offset\n",
			"\t\tnext := o.EpochOffset().Offset\n\t\tif next < 0 {\n\t\t\tnext = to.Offset\n\t\t\toffsets[c.topic][p] = kgo.NewOffset().At(next)\n\t\t}\n",
		}}},
		// A write is acknowledged before the brokers have it.
		{"ack-first", []edit{{
			producerFile,
			"\t\tkgo.RequiredAcks(kgo.AllISRAcks()),\n",
			"\t\tkgo.RequiredAcks(kgo.NoAck()), kgo.DisableIdempotentWrite(),\n",
		}}},
		// What is held of a partition that was given up is kept, and updates are
		// applied to old rows when the partition comes back.
		{"stale-core", []edit{{
			takeoverFile,
			"\tc.cache.Drop(partition)\n\tdelete(c.partitions, partition)\n",
			"",
		}}},
	}
}

// overlay writes the changed files to the directory, and the file that go build
// -overlay takes, whose path it returns.
func (m *plantedBug) overlay(dir string) (string, error) {
	root, err := filepath.Abs(sourceRoot)
	if err != nil {
		return "", err
	}
	changed := make(map[string]string)
	for _, c := range m.changes {
		text, ok := changed[c.file]
		if !ok {
			source, err := os.ReadFile(filepath.Join(root, c.file))
			if err != nil {
				return "", err
			}
			text = string(source)
		}
		if n := strings.Count(text, c.old); n != 1 {
			return "", fmt.Errorf("planted bug %s: %s has this text %d times, want once:\n%s", m.name, c.file, n, c.old)
		}
		changed[c.file] = strings.Replace(text, c.old, c.new, 1)
	}
	replace := make(map[string]string)
	for file, text := range changed {
		to := filepath.Join(dir, strings.ReplaceAll(file, "/", "_"))
		if err := os.WriteFile(to, []byte(text), 0o600); err != nil {
			return "", err
		}
		replace[filepath.Join(root, file)] = to
	}
	text, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	overlay := filepath.Join(dir, "overlay.json")
	return overlay, os.WriteFile(overlay, text, 0o600)
}

// TestPlantedBugs has every planted bug apply to the source as it is, and compile.
func TestPlantedBugs(t *testing.T) {
	for _, m := range plantedBugs() {
		t.Run(m.name, func(t *testing.T) {
			overlay, err := m.overlay(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			args := []string{"vet", "-overlay", overlay}
			for _, c := range m.changes {
				args = append(args, "./"+path.Dir(c.file))
			}
			cmd := exec.CommandContext(t.Context(), "go", args...)
			cmd.Dir, cmd.Env = sourceRoot, append(os.Environ(), "CGO_ENABLED=0")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}

// A planted bug whose text is not in the source, or is there twice, is an error.
func TestPlantedBugsRefuse(t *testing.T) {
	for name, old := range map[string]string{"no text": "no such text in this file", "a text that is there twice": "return"} {
		m := plantedBug{"bad", []edit{{foldFile, old, ""}}}
		if _, err := m.overlay(t.TempDir()); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
