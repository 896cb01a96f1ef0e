package broker

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// syncsMax bounds how many files are synced at once.
	syncsMax = 32
	// indexExt is the extension of the index files beside the segments. They are
	// not synced: they list leader epochs, and a single broker has one; and which
	// batches belong to transactions, and Sluice has none. The rest of their
	// content follows from the segments.
	indexExt = ".idx"
	// mtimeGrain is longer than the coarsest clock of modification times on the
	// file systems that the broker is expected to meet. Two changes within it may
	// have the same modification time.
	mtimeGrain = 100 * time.Millisecond
)

// tree syncs the files of the broker. It remembers how each file looked at the
// last sync, and syncs the files that are new or look different, and each
// directory whose entries changed. A new tree remembers nothing and so syncs
// everything, because the files of a killed process may not be on disk yet.
//
// syncfs(2) would be a single call, but it also waits for what other programs,
// for example the database's merges, have written to the file system.
type tree struct {
	root *dir
	// fsync is (*os.File).Sync, except in tests.
	fsync func(*os.File) error
}

// dir is a directory as of the last sync.
type dir struct {
	path string
	// info is nil when it could not show a change of the entries: before the first
	// sync, and when the directory was younger than mtimeGrain.
	info  fs.FileInfo
	files map[string]fs.FileInfo
	dirs  map[string]*dir
}

func newTree(root string, fsync func(*os.File) error) *tree {
	return &tree{root: newDir(root), fsync: fsync}
}

func newDir(path string) *dir {
	return &dir{path: path, files: make(map[string]fs.FileInfo), dirs: make(map[string]*dir)}
}

// sync returns once everything that was written before the call is on disk. A
// file that is removed meanwhile is not an error. After an error the tree must
// not be used again.
func (t *tree) sync() error {
	dirty, err := t.root.scan(nil)
	if err != nil {
		return err
	}
	if len(dirty) == 1 {
		return t.syncPath(dirty[0])
	}
	var group errgroup.Group
	group.SetLimit(syncsMax)
	for _, path := range dirty {
		group.Go(func() error { return t.syncPath(path) })
	}
	return group.Wait()
}

func (t *tree) syncPath(path string) error {
	f, err := os.Open(path) //nolint:gosec // a path found in the broker's directory
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(t.fsync(f), f.Close())
}

// scan appends the paths of the files and directories under d that changed.
func (d *dir) scan(dirty []string) ([]string, error) {
	info, err := os.Lstat(d.path)
	if errors.Is(err, fs.ErrNotExist) {
		return dirty, nil // removed: the parent is dirty
	}
	if err != nil {
		return nil, err
	}
	if d.info == nil || !same(d.info, info) {
		d.info = info
		if time.Since(info.ModTime()) < mtimeGrain {
			d.info = nil
		}
		if err := d.list(); err != nil {
			return nil, err
		}
		dirty = append(dirty, d.path)
	}
	for path, known := range d.files {
		if filepath.Ext(path) == indexExt {
			continue
		}
		info, err := os.Lstat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return nil, err
		case known == nil || !same(known, info):
			d.files[path] = info
			dirty = append(dirty, path)
		}
	}
	for _, sub := range d.dirs {
		if dirty, err = sub.scan(dirty); err != nil {
			return nil, err
		}
	}
	return dirty, nil
}

// list reads the entries again, and keeps the state of those it knew.
func (d *dir) list() error {
	entries, err := os.ReadDir(d.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	files, dirs := d.files, d.dirs
	d.files, d.dirs = make(map[string]fs.FileInfo, len(entries)), make(map[string]*dir)
	for _, e := range entries {
		path := filepath.Join(d.path, e.Name())
		switch known := dirs[path]; {
		case !e.IsDir():
			d.files[path] = files[path]
		case known != nil:
			d.dirs[path] = known
		default:
			d.dirs[path] = newDir(path)
		}
	}
	return nil
}

// same reports whether a and b show no change. The broker only appends to files
// and replaces them, and both show.
func same(a, b fs.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}
