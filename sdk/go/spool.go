package sluice

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"
)

const (
	segmentBytesMax = 4 << 20
	segmentSuffix   = ".spool"
	// doneFormat has a fixed width, so that the file done is overwritten in place.
	doneFormat = "%010d %010d\n"
)

// A spool is a directory of files that keeps writes until they are answered. Lines
// have the order of the queue. A line is written with one write(2) before the call
// returns. The files are not synced: they survive the process, but not the machine.
type spool struct {
	dir    string
	unlock func() error
	done   *os.File

	// mu is held while a line is written and its write is queued. It is locked
	// before the queue's mu.
	mu     sync.Mutex
	closed bool
	// number is the highest number in use, by a segment or in done.
	number  int64
	current *segment // the segment that lines are appended to; nil before the first line
}

// A segment is one file of the spool.
type segment struct {
	number int64
	path   string
	size   int64
	// unanswered counts the segment's unanswered writes. At 0 the file is removed,
	// unless the segment is the current one.
	unanswered int
	file       *os.File // nil if the segment is not the current one
	// torn is whether the file ends within a line.
	torn bool
}

// openSpool locks the directory and reads its unanswered writes, in order. corrupt
// has an error that wraps [ErrSpoolCorrupt] for each line that cannot be read.
func openSpool(dir string) (s *spool, writes []*write, corrupt []error, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, nil, err
	}
	s = &spool{dir: dir}
	if s.unlock, err = lockFile(filepath.Join(dir, "lock")); err != nil {
		return nil, nil, nil, err
	}
	if writes, corrupt, err = s.load(); err != nil {
		return nil, nil, nil, errors.Join(err, s.unlock())
	}
	return s, writes, corrupt, nil
}

func (s *spool) load() (writes []*write, corrupt []error, err error) {
	donePath := filepath.Join(s.dir, "done")
	text, err := os.ReadFile(donePath) //nolint:gosec // the caller names the directory
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, err
	}
	done := parseDone(text)
	s.number = done.segment

	entries, err := os.ReadDir(s.dir) // sorted by name, and so by number
	if err != nil {
		return nil, nil, err
	}
	for _, entry := range entries {
		number, ok := segmentNumber(entry.Name())
		if !ok {
			continue
		}
		s.number = max(s.number, number)
		seg := &segment{number: number, path: filepath.Join(s.dir, entry.Name())}
		if number >= done.segment {
			data, err := os.ReadFile(seg.path)
			if err != nil {
				return nil, nil, err
			}
			var from int64
			if number == done.segment {
				from = done.offset
			}
			found, bad := seg.read(data, from)
			writes, corrupt = append(writes, found...), append(corrupt, bad...)
		}
		if seg.unanswered == 0 {
			if err := os.Remove(seg.path); err != nil {
				return nil, nil, err
			}
		}
	}

	if s.done, err = os.OpenFile(donePath, os.O_RDWR|os.O_CREATE, 0o600); err != nil { //nolint:gosec // as above
		return nil, nil, err
	}
	return writes, corrupt, nil
}

// read parses the writes of the segment's data, beginning at an offset.
func (seg *segment) read(data []byte, from int64) (writes []*write, corrupt []error) {
	seg.size = int64(len(data))
	for at := max(0, from); at < seg.size; {
		line := data[at:]
		end := bytes.IndexByte(line, '\n')
		if end >= 0 {
			line = line[:end+1]
		}
		if op, id, ok := parseLine(line); ok {
			writes = append(writes, &write{
				op: op, id: id, item: line[checksumBytes:], segment: seg, offset: at,
				unsure: true, // the earlier process may have sent it
			})
			seg.unanswered++
		} else {
			corrupt = append(corrupt, fmt.Errorf("%w: %s at offset %d", ErrSpoolCorrupt, filepath.Base(seg.path), at))
		}
		at += int64(len(line))
	}
	return writes, corrupt
}

// parseLine parses a line with its newline. ok is false if the line is torn, its
// checksum is wrong, or its item is not a write.
func parseLine(line []byte) (op Op, id string, ok bool) {
	if len(line) <= checksumBytes || line[len(line)-1] != '\n' || line[checksumBytes-1] != ' ' {
		return "", "", false
	}
	item := line[checksumBytes : len(line)-1]
	var sum [4]byte
	if _, err := hex.Decode(sum[:], line[:checksumBytes-1]); err != nil || sum != checksum(item) {
		return "", "", false
	}
	head := struct {
		Op Op
		ID string
	}{Op: OpCreate}
	if err := json.Unmarshal(item, &head); err != nil || head.ID == "" {
		return "", "", false
	}
	return head.Op, head.ID, true
}

func checksum(item []byte) [4]byte {
	sum := crc32.ChecksumIEEE(item)
	return [4]byte{byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)}
}

// append writes the line and queues the write. The line has the write's item and
// space for the checksum. The write has reserved its room in the queue.
func (s *spool) append(q *queue, w *write, line []byte) error {
	sum := checksum(line[checksumBytes : len(line)-1])
	hex.Encode(line, sum[:])

	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	if err := s.write(w, line); err != nil {
		q.unreserve(len(w.item))
		return fmt.Errorf("sluice: spool a write: %w", err)
	}
	return q.push(w, time.Now()) // the queue is closed after the spool, so push succeeds
}

func (s *spool) write(w *write, line []byte) error {
	seg := s.current
	if seg == nil || seg.torn || seg.size > 0 && seg.size+int64(len(line)) > segmentBytesMax {
		var err error
		if seg, err = s.rotate(); err != nil {
			return err
		}
	}
	if n, err := seg.file.Write(line); err != nil {
		// Without the truncation, the next line would continue this torn line.
		seg.torn = n > 0 && seg.file.Truncate(seg.size) != nil
		return err
	}
	w.segment, w.offset = seg, seg.size
	seg.size += int64(len(line))
	seg.unanswered++
	return nil
}

// rotate begins a new segment.
func (s *spool) rotate() (*segment, error) {
	seg := &segment{number: s.number + 1}
	seg.path = filepath.Join(s.dir, fmt.Sprintf("%010d%s", seg.number, segmentSuffix))
	var err error
	if seg.file, err = os.OpenFile(seg.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return nil, err
	}
	last := s.current
	s.number, s.current = seg.number, seg
	if last != nil {
		_ = last.retire() // if the file stays, the next start removes it, because done is past it
	}
	return seg, nil
}

// retire closes the file of a segment that gets no more lines. It removes the file
// if all its writes are answered.
func (seg *segment) retire() error {
	err := seg.file.Close()
	seg.file = nil
	if seg.unanswered == 0 {
		err = errors.Join(err, os.Remove(seg.path))
	}
	return err
}

// settle settles the batch with the queue, writes the place before which all
// writes are answered to done, and removes the segments before it. It must not be
// called concurrently.
func (s *spool) settle(q *queue, batch []*write) error {
	s.mu.Lock() // otherwise a line that is written but not queued would count as answered
	var unneeded []*segment
	for _, w := range batch {
		if w.retry {
			continue
		}
		w.segment.unanswered--
		if w.segment.unanswered == 0 && w.segment != s.current {
			unneeded = append(unneeded, w.segment)
		}
	}
	done := place{segment: s.number + 1}
	if oldest := q.settle(batch); oldest != nil {
		done = place{oldest.segment.number, oldest.offset}
	} else if s.current != nil {
		done = place{s.current.number, s.current.size}
	}
	s.mu.Unlock()

	_, err := s.done.WriteAt(fmt.Appendf(nil, doneFormat, done.segment, done.offset), 0)
	for _, seg := range unneeded {
		err = errors.Join(err, os.Remove(seg.path))
	}
	return err
}

// stop refuses further lines.
func (s *spool) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
}

// close closes the files and unlocks the directory. It must not be called
// concurrently with other methods.
func (s *spool) close() error {
	var err error
	if s.current != nil {
		err = s.current.retire()
	}
	return errors.Join(err, s.done.Close(), s.unlock())
}

// place is a position in the spool.
type place struct{ segment, offset int64 }

// parseDone parses the file done. If the text is invalid, it returns the beginning
// of the spool, because it is harmless to send a write again.
func parseDone(text []byte) (done place) {
	text, _, _ = bytes.Cut(text, []byte("\n"))
	fields := bytes.Fields(text)
	if len(fields) != 2 {
		return place{}
	}
	var err1, err2 error
	done.segment, err1 = strconv.ParseInt(string(fields[0]), 10, 64)
	done.offset, err2 = strconv.ParseInt(string(fields[1]), 10, 64)
	if err1 != nil || err2 != nil || done.segment < 0 || done.offset < 0 {
		return place{}
	}
	return done
}

func segmentNumber(name string) (int64, bool) {
	if len(name) != 10+len(segmentSuffix) || name[10:] != segmentSuffix {
		return 0, false
	}
	if slices.ContainsFunc([]byte(name[:10]), func(c byte) bool { return c < '0' || c > '9' }) {
		return 0, false
	}
	n, err := strconv.ParseInt(name[:10], 10, 64)
	return n, err == nil
}
