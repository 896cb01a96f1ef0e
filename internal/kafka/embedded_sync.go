package kafka

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sluicehq/sluice/internal/fault"
)

const (
	// responsesMax bounds the responses of a connection that wait for a sync;
	// the broker does not go on with the connection's requests meanwhile. The
	// client has at most five in flight.
	responsesMax = 16
	// syncsMax bounds the files that are synced at a time.
	syncsMax = 32
	// indexExt is of the files beside the segments, which are not synced. They
	// hold leader epochs, of which a lone broker has one, and which batches are
	// of transactions, which Sluice has none of; all else is in the segments.
	indexExt = ".idx"
	// mtimeGrain is more than the coarsest clock of a file system's times that
	// the broker is expected to meet: within it, a change may not show.
	mtimeGrain = 100 * time.Millisecond
)

// groupCommit holds back what the broker answers until all that it wrote before
// is on disk. One round of syncs serves every response that waits for it, and
// the responses that come meanwhile wait for the next, so that a disk's slow
// syncs make rounds larger instead of clients slower.
//
// All responses wait, not those to produce requests alone: a record that was
// fetched and applied, and then lost with the power, would leave its offset,
// from which the row's version is made, to another record.
type groupCommit struct {
	sync func() error
	// wake has room for one: whoever opens a round sends.
	wake chan struct{}
	// failed is closed at the first error, done when run returns.
	failed, done chan struct{}

	mu     sync.Mutex
	open   *round // has not begun; nil: nobody waits
	err    error  // the first one; see fail
	closed bool
}

// round is one run of syncs; err is valid when done is closed.
type round struct {
	done chan struct{}
	err  error
}

func newGroupCommit(sync func() error) *groupCommit {
	return &groupCommit{
		sync: sync, wake: make(chan struct{}, 1),
		failed: make(chan struct{}), done: make(chan struct{}),
	}
}

// run does the rounds until close.
func (g *groupCommit) run() {
	defer close(g.done)
	for range g.wake {
		g.mu.Lock()
		r := g.open
		g.open = nil
		r.err = g.err
		g.mu.Unlock()
		if r.err == nil {
			if err := g.sync(); err != nil {
				r.err = g.fail(fmt.Errorf("sync: %w", err))
			}
		}
		fault.Point(fault.BrokerSynced)
		close(r.done)
	}
}

// join returns a round that begins after now.
func (g *groupCommit) join() *round {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open == nil {
		g.open = &round{done: make(chan struct{})}
		if g.closed {
			g.open.err = net.ErrClosed
			close(g.open.done)
		} else {
			g.wake <- struct{}{}
		}
	}
	return g.open
}

// commit returns when all that was written before is on disk.
func (g *groupCommit) commit() error {
	r := g.join()
	<-r.done
	return r.err
}

// fail makes err the end of every round from now on. Nothing is tried again:
// after a failed sync the operating system may have dropped the pages, and
// report success for the next.
func (g *groupCommit) fail(err error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err == nil {
		g.err = err
		close(g.failed)
	}
	return g.err
}

// close does a last round, and ends run. Who joins later has an error.
func (g *groupCommit) close() error {
	last := g.join()
	g.mu.Lock()
	g.closed = true
	close(g.wake)
	g.mu.Unlock()
	<-g.done
	return last.err
}

// listen has the signature of [net.Listen]; the responses of its connections
// wait for their round.
func (g *groupCommit) listen(network, address string) (net.Listener, error) {
	l, err := net.Listen(network, address) //nolint:noctx // the broker has none to give
	if err != nil {
		return nil, err
	}
	return commitListener{l, g}, nil
}

type commitListener struct {
	net.Listener
	commits *groupCommit
}

func (l commitListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &commitConn{
		Conn: conn, commits: l.commits,
		responses: make(chan response, responsesMax), closed: make(chan struct{}),
	}
	go c.send()
	return c, nil
}

// commitConn sends what is written to it after the round of that time. Write
// itself does not wait, so that the broker appends the connection's next
// request while the one before is synced.
type commitConn struct {
	net.Conn
	commits   *groupCommit
	responses chan response
	closed    chan struct{}
	once      sync.Once
}

type response struct {
	bytes []byte
	round *round
}

func (c *commitConn) Write(b []byte) (int, error) {
	r := response{bytes.Clone(b), c.commits.join()}
	select {
	case c.responses <- r:
		return len(b), nil
	case <-c.closed:
		return 0, net.ErrClosed
	}
}

// send ends at Close, at the first error of the connection, or of its round:
// then the client has no answer, which tells it nothing, rather than a wrong one.
func (c *commitConn) send() {
	defer c.Close()
	for {
		select {
		case r := <-c.responses:
			if <-r.round.done; r.round.err != nil {
				return
			}
			if _, err := c.Conn.Write(r.bytes); err != nil {
				return
			}
		case <-c.closed:
			return
		}
	}
}

func (c *commitConn) Close() error {
	err := net.ErrClosed
	c.once.Do(func() {
		close(c.closed)
		err = c.Conn.Close()
	})
	return err
}

// tree makes the broker's files durable. It knows what it found when it last
// did: what looks different since, or is new, is synced, and so is each
// directory whose entries changed. It knows nothing at first, and so syncs
// everything, as what a killed process wrote may not be on disk yet.
//
// syncfs(2) would be one call, but waits for what everybody else has written to
// the file system too, the database's merges among them.
type tree struct {
	root *dir
	// fsync is (*os.File).Sync, but for tests.
	fsync func(*os.File) error
}

// dir is a directory as of the last sync.
type dir struct {
	path string
	// info is nil where the entries may have changed since without its telling:
	// at first, and within mtimeGrain of a change.
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

// sync returns when all that was written before it is on disk. What is removed
// meanwhile is not missed. After an error the tree is of no more use.
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
	f, err := os.Open(path) //nolint:gosec // found in the broker's directory
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(t.fsync(f), f.Close())
}

// scan appends the paths of what changed under d.
func (d *dir) scan(dirty []string) ([]string, error) {
	info, err := os.Lstat(d.path)
	if errors.Is(err, fs.ErrNotExist) {
		return dirty, nil // its parent's entries have changed
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

// list reads the entries, and keeps what is known of those that were there.
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

// same reports whether a file looks the same. The broker only appends to files
// and replaces them, both of which show.
func same(a, b fs.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}
