package app

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

const (
	// importBatchBytes and importBatchLines bound a batch of lines.
	importBatchBytes, importBatchLines = 4 << 20, 2000
	// importBatches is how many batches are sent at once.
	importBatches = 4
	// importItemBytes is the largest event that is sent in a batch. One that is larger
	// was made larger by updates, and is created and updated field by field.
	importItemBytes = 1 << 20
	// importLineBytesMax bounds a line.
	importLineBytesMax = 16 << 20
	// importReports bounds the events that are reported one by one.
	importReports = 20
	// importAnswerBytesMax bounds an answer.
	importAnswerBytesMax = 16 << 20
)

// ImportClient creates events in a running Sluice, through its log.
type ImportClient struct {
	Client
	Log *slog.Logger
}

// Imported is what became of the lines of an import.
type Imported struct {
	// Created were created now, and Known were there already.
	Created, Known int
	// Refused were not created: the reasons are in the log.
	Refused int
}

// lineBatch is a batch of lines; first is the number of its first line, from 1.
type lineBatch struct {
	first int
	lines [][]byte
}

// Run creates the events of NDJSON, one a line, in the form of GET /event/{id}. To run it
// again creates nothing twice, because each event has its id. The error says in which line it
// ended; the batches before may not all have been written then.
func (c ImportClient) Run(ctx context.Context, in io.Reader) (Imported, error) {
	i := importing{ImportClient: c}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(importBatches)
	err := eachBatch(bufio.NewReaderSize(in, 64<<10), func(b lineBatch) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		group.Go(func() error { return i.send(ctx, b) })
		return nil
	})
	if sent := group.Wait(); sent != nil {
		err = sent // of which the other is a consequence
	}
	if i.sum.Refused > importReports {
		c.Log.LogAttrs(ctx, slog.LevelWarn, "more events were refused", slog.Int("events", i.sum.Refused-importReports))
	}
	return i.sum, err
}

// eachBatch reads the lines of a file in batches.
func eachBatch(in *bufio.Reader, send func(lineBatch) error) error {
	b, bytesInBatch := lineBatch{first: 1}, 0
	flush := func(next int) error {
		if len(b.lines) > 0 {
			if err := send(b); err != nil {
				return err
			}
		}
		b, bytesInBatch = lineBatch{first: next}, 0
		return nil
	}
	for number := 1; ; number++ {
		line, err := readLine(in)
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("line %d: %w", number, err)
		}
		if errors.Is(err, io.EOF) && len(line) == 0 {
			return flush(number)
		}
		if bytesInBatch+len(line) > importBatchBytes || len(b.lines) == importBatchLines {
			if err := flush(number); err != nil {
				return err
			}
		}
		b.lines, bytesInBatch = append(b.lines, line), bytesInBatch+len(line)
	}
}

// readLine returns the next line without its end. The last one may have none.
func readLine(in *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		piece, err := in.ReadSlice('\n')
		line = append(line, piece...)
		switch {
		case len(line) > importLineBytesMax:
			return nil, fmt.Errorf("is longer than %d bytes", importLineBytesMax)
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && len(line) > 0:
			return line, nil
		default:
			return bytes.TrimRight(line, "\r\n"), err
		}
	}
}

// importing is an import under way.
type importing struct {
	ImportClient
	// answered says that there was an answer.
	answered atomic.Bool
	mu       sync.Mutex
	sum      Imported
}

// itemResult is the result of an item of POST /events.
type itemResult struct {
	Error *itemError `json:"error"`
}

type itemError struct {
	Status int    `json:"status"`
	Code   string `json:"code"`
	Detail string `json:"detail"`
	Field  string `json:"field"`
}

// unavailable is the error of an item that the log did not take; nil if it took it, or
// refused it.
func (r itemResult) unavailable() error {
	if r.Error == nil || r.Error.Status < http.StatusInternalServerError {
		return nil
	}
	return &answerError{status: r.Error.Status, err: fmt.Errorf("%s: %s", printable(r.Error.Code), printable(r.Error.Detail))}
}

// send creates the events of a batch.
func (i *importing) send(ctx context.Context, b lineBatch) error {
	var (
		body    bytes.Buffer
		numbers []int // of the lines in the body
	)
	for n, line := range b.lines {
		switch {
		case len(bytes.TrimSpace(line)) == 0:
		case isChange(line):
			i.count(ctx, b.first+n, itemResult{Error: &itemError{Code: "refused", Field: "op", Detail: "an import only creates events"}})
		case len(line) > importItemBytes:
			if err := i.sendLarge(ctx, b.first+n, line); err != nil {
				return err
			}
		default:
			body.Write(line)
			body.WriteByte('\n')
			numbers = append(numbers, b.first+n)
		}
	}
	err := i.tried(ctx, func() error {
		if len(numbers) == 0 {
			return nil
		}
		results, err := i.post(ctx, body.Bytes(), len(numbers))
		if err != nil {
			return err
		}
		// What the log did not take is sent again.
		var (
			rest      bytes.Buffer
			remaining []int
		)
		lines := bytes.Split(body.Bytes(), []byte("\n"))
		for n, result := range results {
			if failure := result.unavailable(); failure != nil {
				err = failure
				rest.Write(lines[n])
				rest.WriteByte('\n')
				remaining = append(remaining, numbers[n])
				continue
			}
			i.count(ctx, numbers[n], result)
		}
		body, numbers = rest, remaining
		return err
	})
	if err != nil {
		return fmt.Errorf("lines %d to %d: %w", numbers[0], numbers[len(numbers)-1], err)
	}
	return nil
}

// post sends a batch, and returns a result for each of its items.
func (i *importing) post(ctx context.Context, body []byte, items int) ([]itemResult, error) {
	resp, err := i.do(ctx, http.MethodPost, "events", nil, http.Header{
		"Content-Type": {"application/x-ndjson"}, "Prefer": {"wait=30"},
	}, body, http.StatusBadRequest, http.StatusNotFound, http.StatusConflict, http.StatusGone, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }() // it is only read
	if resp.Header.Get("Content-Type") != "application/json" {
		return nil, &answerError{status: resp.StatusCode, err: problemOf(resp)}
	}
	var answer struct {
		Results []itemResult `json:"results"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, importAnswerBytesMax)).Decode(&answer); err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	i.answered.Store(true)
	if len(answer.Results) != items {
		return nil, &answerError{status: resp.StatusCode, err: fmt.Errorf("the answer has %d results for %d events", len(answer.Results), items)}
	}
	return answer.Results, nil
}

// count counts what became of a line.
func (i *importing) count(ctx context.Context, line int, result itemResult) {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch {
	case result.Error == nil:
		i.sum.Created++
	case result.Error.Code == "id_taken":
		i.sum.Known++
	default:
		if i.sum.Refused++; i.sum.Refused <= importReports {
			i.Log.LogAttrs(ctx, slog.LevelWarn, "event refused", slog.Int("line", line), slog.String("code", printable(result.Error.Code)),
				slog.String("field", printable(result.Error.Field)), slog.String("detail", printable(result.Error.Detail)))
		}
	}
}

// largeFields are the fields of an event of which each may be as large as a request.
var largeFields = [...]string{"conversation_metadata", "error", "input", "output", "input_embeddings", "output_embeddings"} //nolint:gochecknoglobals // a constant list

// sendLarge creates an event that is larger than a create may be: first without its large
// fields, which are then set one by one. It is one line, and counts as one.
func (i *importing) sendLarge(ctx context.Context, number int, line []byte) error {
	var members map[string]json.RawMessage
	var id string
	if err := json.Unmarshal(line, &members); err != nil {
		return fmt.Errorf("line %d: %w", number, err)
	}
	if err := json.Unmarshal(members["id"], &id); err != nil || id == "" {
		return fmt.Errorf("line %d is longer than %d bytes and has no id", number, importItemBytes)
	}
	large := make(map[string]json.RawMessage)
	for _, field := range largeFields {
		if isSet(members[field]) {
			large[field] = members[field]
		}
		delete(members, field)
	}
	there, err := i.known(ctx, id)
	if err != nil {
		return fmt.Errorf("line %d: %w", number, err)
	}
	if there {
		i.count(ctx, number, itemResult{Error: &itemError{Code: "id_taken"}})
		return nil
	}
	// One request has all of it, if each field fits into an item, so that no other write of
	// the event comes between.
	create, err := json.Marshal(members)
	if err != nil {
		return fmt.Errorf("line %d: %w", number, err)
	}
	items := [][]byte{create}
	var alone [][]byte
	for _, field := range largeFields {
		value, ok := large[field]
		if !ok {
			continue
		}
		item := slices.Concat([]byte(`{"op":"update","id":`), members["id"], []byte(`,"`+field+`":`), value, []byte("}"))
		if len(item) <= importItemBytes {
			items = append(items, item)
		} else {
			alone = append(alone, slices.Concat([]byte(`{"`+field+`":`), value, []byte("}")))
		}
	}
	var failed itemResult
	err = i.tried(ctx, func() error {
		results, err := i.post(ctx, append(bytes.Join(items, []byte("\n")), '\n'), len(items))
		failed = itemResult{}
		for n := 0; err == nil && n < len(results); n++ {
			err = results[n].unavailable()
			// The create of an attempt whose answer was lost has the id.
			if e := results[n].Error; e != nil && failed.Error == nil && (n > 0 || e.Code != "id_taken") {
				failed = results[n]
			}
		}
		return err
	})
	for _, body := range alone {
		if err != nil || failed.Error != nil {
			break
		}
		err = i.tried(ctx, func() error {
			resp, err := i.do(ctx, http.MethodPut, "event", url.Values{"id": {id}}, http.Header{"Content-Type": {"application/json"}, "Prefer": {"wait=30"}}, body)
			if err == nil {
				_ = resp.Body.Close() // the status says it all
			}
			return err
		})
	}
	var answer *answerError
	switch {
	case errors.As(err, &answer) && answer.status < http.StatusInternalServerError:
		failed.Error = &itemError{Status: answer.status, Code: "refused", Detail: err.Error()}
	case err != nil:
		return fmt.Errorf("line %d: %w", number, err)
	}
	i.count(ctx, number, failed)
	return nil
}

// known reports whether there is an event with the id.
func (i *importing) known(ctx context.Context, id string) (there bool, err error) {
	err = i.tried(ctx, func() error {
		resp, err := i.do(ctx, http.MethodGet, "event", url.Values{"id": {id}}, nil, nil, http.StatusNotFound)
		if err != nil {
			return err
		}
		there = resp.StatusCode == http.StatusOK
		return resp.Body.Close()
	})
	return there, err
}

// isChange reports whether a line is an update, patch or delete, as POST /events takes it.
func isChange(line []byte) bool {
	if !bytes.Contains(line, []byte(`"op"`)) && !bytes.Contains(line, []byte(`\u`)) { // the name may be escaped
		return false
	}
	var item struct{ Op *string }
	return json.Unmarshal(line, &item) == nil && item.Op != nil && *item.Op != "create"
}

func isSet(value json.RawMessage) bool { return len(value) > 0 && string(value) != "null" }

// tried makes a request, and makes it again while that can help.
func (i *importing) tried(ctx context.Context, request func() error) error {
	for failures := 1; ; failures++ {
		err := request()
		if err == nil {
			return nil
		}
		if err := again(ctx, failures, err, i.answered.Load()); err != nil {
			return err
		}
		i.Log.LogAttrs(ctx, slog.LevelWarn, "a batch was not taken and is sent again", slog.Any("error", err))
	}
}
