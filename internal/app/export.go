package app

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/parquet-go/parquet-go"
)

const (
	// exportLineBytesMax bounds a line of NDJSON, which is an event.
	exportLineBytesMax = 64 << 20
	// exportHeadBytes is how much of a line is kept to find the event's id, which is its
	// first member.
	exportHeadBytes = 1 << 10
	// trailerNextCursor is the trailer of an answer that ends before the last event.
	trailerNextCursor = "Sluice-Next-Cursor"
	// parquetNextCursor is the same in the metadata of a Parquet file.
	parquetNextCursor = "sluice.next_cursor"
)

// ExportClient exports events from a running Sluice.
type ExportClient struct {
	Client
	// Query has the filters, and embeddings, limit and cursor if they are wanted.
	Query url.Values
	Log   *slog.Logger
}

// NDJSON writes one event a line. If the connection breaks, it goes on after the last event
// that it has written. It returns how many events it has written, in whole lines.
func (c ExportClient) NDJSON(ctx context.Context, out io.Writer) (events int, err error) {
	query := cloneValues(c.Query)
	for failures := 0; ; {
		last, n, err := c.lines(ctx, query, out)
		events += n
		if err == nil {
			return events, nil
		}
		if n > 0 {
			failures = 0
			id, idErr := lineID(last)
			if idErr != nil {
				return events, idErr
			}
			query.Set("cursor", id)
			if query.Has("limit") {
				var left int
				if _, err := fmt.Sscan(query.Get("limit"), &left); err == nil {
					if left -= n; left <= 0 {
						return events, nil // it broke off after the last one
					}
					query.Set("limit", strconv.Itoa(left))
				}
			}
		}
		var writing *writeError
		if errors.As(err, &writing) {
			return events, writing.err
		}
		failures++
		if err := again(ctx, failures, err, events > 0); err != nil {
			return events, err
		}
		c.Log.LogAttrs(ctx, slog.LevelWarn, "the export broke off and goes on", slog.Int("events", events), slog.Any("error", err))
	}
}

// writeError is an error of the file that is written, which no other try mends.
type writeError struct{ err error }

func (e *writeError) Error() string { return e.err.Error() }

// lines writes the lines of one answer, and returns the beginning of the last one.
func (c ExportClient) lines(ctx context.Context, query url.Values, out io.Writer) (last []byte, n int, err error) {
	resp, err := c.do(ctx, http.MethodGet, "export", query, nil, nil)
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = resp.Body.Close() }() // it is only read
	in := bufio.NewReaderSize(resp.Body, 64<<10)
	var line []byte
	for {
		piece, err := in.ReadSlice('\n')
		line = append(line, piece...)
		switch {
		case len(line) > exportLineBytesMax:
			return last, n, &writeError{fmt.Errorf("an event takes more than %d bytes", exportLineBytesMax)}
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && len(line) == 0:
			return last, n, nil
		case err != nil:
			return last, n, fmt.Errorf("read the export: %w", err)
		default:
			if _, err := out.Write(line); err != nil {
				return last, n, &writeError{err}
			}
			last, n, line = append(last[:0], line[:min(len(line), exportHeadBytes)]...), n+1, line[:0]
		}
	}
}

// lineID returns the id of the event of a line, of which the beginning suffices.
func lineID(line []byte) (string, error) {
	d := jsontext.NewDecoder(bytes.NewReader(line))
	for _, want := range []string{"{", "id"} {
		token, err := d.ReadToken()
		if err != nil || token.String() != want {
			return "", errors.New("a line does not begin with the id of an event")
		}
	}
	id, err := d.ReadToken()
	if err != nil || id.Kind() != '"' {
		return "", errors.New("a line does not begin with the id of an event")
	}
	return id.String(), nil
}

// Parquet writes a Parquet file. The error of one that is not whole does not wrap that of
// the connection alone: a part of it may have been written, which is of no use. next is the
// cursor of the next file, empty if there is none.
func (c ExportClient) Parquet(ctx context.Context, out io.Writer) (next string, err error) {
	query := cloneValues(c.Query)
	query.Set("format", "parquet")
	for failures := 1; ; failures++ {
		resp, err := c.do(ctx, http.MethodGet, "export", query, nil, nil)
		if err != nil {
			if err := again(ctx, failures, err, false); err != nil {
				return "", err
			}
			continue
		}
		defer func() { _ = resp.Body.Close() }() // it is only read
		if _, err := io.Copy(out, resp.Body); err != nil {
			return "", fmt.Errorf("the Parquet file is not whole: %w", err)
		}
		next := resp.Trailer.Get(trailerNextCursor)
		if next == "" {
			next = resp.Header.Get(trailerNextCursor) // of a small answer
		}
		return url.QueryUnescape(next)
	}
}

// ParquetFile returns how many events a Parquet file has, and the cursor of the next file;
// empty if there is none. A proxy may not have passed the trailer that says the same.
func ParquetFile(name string) (events int64, next string, err error) {
	file, err := os.Open(name) //nolint:gosec // the caller's own file
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = file.Close() }() // it is only read
	info, err := file.Stat()
	if err != nil {
		return 0, "", err
	}
	parsed, err := parquet.OpenFile(file, info.Size())
	if err != nil {
		return 0, "", fmt.Errorf("%s: %w", name, err)
	}
	next, _ = parsed.Lookup(parquetNextCursor)
	return parsed.NumRows(), next, nil
}

// Lines returns how many whole lines a file has, and leaves it at its end.
func Lines(file *os.File) (lines int, err error) {
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return 0, err
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := file.Read(buf)
		lines += bytes.Count(buf[:n], []byte("\n"))
		if errors.Is(err, io.EOF) {
			return lines, nil
		}
		if err != nil {
			return 0, err
		}
	}
}

// Resume prepares a file of NDJSON of an export that broke off: it cuts off a line that is
// not whole, moves to the end, and returns the id of the last event; empty if there is none.
func Resume(file *os.File) (cursor string, err error) {
	end, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return "", fmt.Errorf("resume: %w", err)
	}
	// The last whole line is between the last two line ends; the first one may be the
	// beginning of the file.
	last, ended := int64(0), int64(-1)
	buf := make([]byte, 64<<10)
	for at := end; at > 0; {
		n := min(at, int64(len(buf)))
		at -= n
		if _, err := file.ReadAt(buf[:n], at); err != nil {
			return "", fmt.Errorf("resume: %w", err)
		}
		for found := n; ; {
			found = int64(bytes.LastIndexByte(buf[:found], '\n'))
			if found < 0 {
				break
			}
			if ended < 0 {
				ended = at + found + 1
				continue
			}
			last, at = at+found+1, 0
			break
		}
	}
	ended = max(ended, 0)
	if ended > 0 {
		head := make([]byte, min(ended-last, exportHeadBytes))
		if _, err := file.ReadAt(head, last); err != nil {
			return "", fmt.Errorf("resume: %w", err)
		}
		if cursor, err = lineID(head); err != nil {
			return "", fmt.Errorf("resume: %w", err)
		}
	}
	if err := file.Truncate(ended); err != nil {
		return "", fmt.Errorf("resume: %w", err)
	}
	if _, err := file.Seek(ended, io.SeekStart); err != nil {
		return "", fmt.Errorf("resume: %w", err)
	}
	return cursor, nil
}

func cloneValues(values url.Values) url.Values {
	clone := make(url.Values, len(values))
	for name, v := range values {
		clone[name] = append([]string(nil), v...)
	}
	return clone
}
