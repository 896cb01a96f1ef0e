package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// LibraryVersion is the version of libchdb that Sluice is built for and tested with. It
// contains ClickHouse 26.7. scripts/install-libchdb.sh installs this version.
const LibraryVersion = "26.7.3-stable.1"

// libraryName is the file's name on every platform. The npm packages for darwin use .so
// too.
const libraryName = "libchdb.so"

// ErrNoLibrary is returned by [Find] when libchdb is in none of the places where Find looks.
var ErrNoLibrary = errors.New("libchdb not found")

// ErrNotBuilt is returned by [Find] in a program that was built with the tag noengine.
var ErrNotBuilt = errors.New("this program was built without the embedded ClickHouse: give it a server's --clickhouse-url")

// Find returns the absolute path of libchdb. If explicit is not empty, it is that path.
// Otherwise Find looks for libchdb.so beside the running program, and then where
// scripts/install-libchdb.sh installs it: in sluice/libchdb-<[LibraryVersion]>/ under the
// user's cache directory.
//
// If there is no file, the error wraps [ErrNoLibrary], names the places and says how to
// install the library. If explicit names no file, Find does not look elsewhere.
func Find(explicit string) (string, error) {
	if !built {
		return "", ErrNotBuilt
	}
	var candidates []string
	if explicit != "" {
		candidates = []string{explicit}
	} else {
		if exe, err := os.Executable(); err == nil {
			candidates = append(candidates, filepath.Join(filepath.Dir(exe), libraryName))
		}
		if cache, err := os.UserCacheDir(); err == nil {
			candidates = append(candidates, filepath.Join(cache, "sluice", "libchdb-"+LibraryVersion, libraryName))
		}
	}
	for _, path := range candidates {
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("find libchdb: %w", err)
		}
		if !info.Mode().IsRegular() {
			return "", fmt.Errorf("find libchdb: %s is not a file", path)
		}
		return filepath.Abs(path)
	}
	return "", fmt.Errorf("%w at %q: run scripts/install-libchdb.sh to install version %s, or use a ClickHouse server of your own",
		ErrNoLibrary, candidates, LibraryVersion)
}
