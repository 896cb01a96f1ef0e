package e2e_test

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// dataVar names a directory with the whole files, to be used instead of the
// slices that come with internal/bench/workload. See its corpus/README.md.
const dataVar = "SLUICE_DATA"

// corpusFile is a file of events in the shape of POST /event.
type corpusFile struct{ whole, slice string }

var (
	conversationsFile = corpusFile{"sgd-train.ndjson.gz", "conversations.ndjson.gz"}
	embeddedFile      = corpusFile{"sgd-train-embedded.ndjson.gz", "embedded.ndjson.gz"}
)

// read returns the events as they are in the file, and whether it is the whole one.
func (f corpusFile) read(t *testing.T) (records []eventObject, whole bool) {
	t.Helper()
	path := filepath.Join("..", "..", "internal", "bench", "workload", "corpus", f.slice)
	if dir := os.Getenv(dataVar); dir != "" {
		path, whole = filepath.Join(dir, f.whole), true
	}
	records, err := readRecords(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(records) == 0 {
		t.Fatalf("%s holds no events", path)
	}
	return records, whole
}

func readRecords(path string) ([]eventObject, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	unzipped, err := gzip.NewReader(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	var records []eventObject
	lines := bufio.NewScanner(unzipped)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var r eventObject
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return nil, fmt.Errorf("%s: event %d: %w", path, len(records), err)
		}
		records = append(records, r)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return records, nil
}
