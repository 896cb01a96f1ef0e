package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// LibraryVersion is the version of libchdb that Sluice is built and tested for. It holds
// ClickHouse 26.7. scripts/install-libchdb.sh installs this version.
const LibraryVersion = "26.7.3-stable.1"

// libraryName is the file's name on every platform: the npm packages for darwin call it
// .so as well.
const libraryName = "libchdb.so"

// ErrNoLibrary is returned by [Find] when libchdb is in none of the places it looks in.
var ErrNoLibrary = errors.New("libchdb not found")

// ErrNotBuilt is returned by [Find] in a program that was built with the tag noengine.
var ErrNotBuilt = errors.New("this program was built without the embedded ClickHouse: give it a server's --clickhouse-url")

// Find returns the absolute path of libchdb: explicit, when it is not empty; otherwise
// libchdb.so beside the running program; otherwise where scripts/install-libchdb.sh puts
// it, in sluice/libchdb-<[LibraryVersion]>/ under the user's cache directory.
//
// The error wraps [ErrNoLibrary], names the places and says how to install it. An explicit
// path that does not exist is an error too, never a reason to look elsewhere.
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
