package sluice

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluicehq/sluice/sdk/go/internal/id"
)

// closeTimeout is how long Close flushes where its context has no deadline.
const closeTimeout = 10 * time.Second

// A Client sends events to Sluice in the background, and reads them. All its
// methods may be called concurrently. Whoever made it closes it.
type Client struct {
	opts     Options
	queue    *queue
	spool    *spool // nil without SpoolDir
	receipts receipts
	encoders sync.Pool // of *encoder
	streams  sync.Map  // of *stream, those that are open, to struct{}

	http    *http.Client // which leaves redirects to do
	ownHTTP bool         // whether its connections are the client's own
	// lastFailure is why the last batch was not acknowledged, nil within if it was.
	lastFailure atomic.Pointer[error]
	// toldClock says whether it was told that the clock is wrong.
	toldClock atomic.Bool

	gzip   *gzip.Writer       // of the sender
	stop   context.CancelFunc // ends the sender
	sender sync.WaitGroup
}

// New returns a client, which sends what its spool directory still has before
// anything else. The error joins the [*FieldError] of each wrong option, is
// [ErrSpoolInUse], or is the file system's. The server need not be there.
func New(o Options) (*Client, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	authorities, err := o.authorities()
	if err != nil {
		return nil, err
	}
	// Fast, as a body is on its way once; the level is one that gzip has.
	zip, _ := gzip.NewWriterLevel(nil, gzip.BestSpeed)
	c := &Client{
		ownHTTP:  o.HTTPClient == nil,
		opts:     o.withDefaults(authorities),
		gzip:     zip,
		encoders: sync.Pool{New: func() any { return newEncoder() }},
	}
	c.http = new(http.Client)
	*c.http = *c.opts.HTTPClient
	// By itself it would make a GET of a POST, or take the writes to another host.
	c.http.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	c.queue = newQueue(&c.opts)
	var corrupt []error
	if o.SpoolDir != "" {
		spool, writes, bad, err := openSpool(o.SpoolDir)
		if err != nil {
			return nil, fmt.Errorf("open the spool %s: %w", o.SpoolDir, err)
		}
		c.spool, corrupt = spool, bad
		c.queue.restore(writes, time.Now())
	}
	ctx, cancel := context.WithCancel(context.Background())
	c.stop = cancel
	c.sender.Go(func() { c.run(ctx, corrupt) })
	return c, nil
}

// TrackEvent queues the event and returns its id. It does not wait for the
// network; with a spool the event is in a file when it returns. ctx bounds the
// wait for room in a full queue and nothing else, so an event can be tracked
// though the request that it is about was cancelled.
//
// The error is a [*FieldError], [ErrQueueFull], [ErrClosed], or the file
// system's where there is a spool; nothing was queued then. What becomes of
// the event later is told to [Options].OnError alone.
func (c *Client) TrackEvent(ctx context.Context, e Event) (string, error) {
	return c.track(ctx, &e, "", c.opts.Strict)
}

// track queues an event, whose id was minted before unless that is empty.
func (c *Client) track(ctx context.Context, e *Event, minted string, strict bool) (string, error) {
	now := time.Now()
	if err := e.check(id.Current().Now(now)); err != nil {
		return "", err
	}
	eventID := cmp.Or(e.ID, minted)
	if eventID == "" {
		micros := e.Timestamp.UnixMicro()
		if e.Timestamp.IsZero() {
			micros = id.Current().Time(now)
		}
		eventID = id.Current().Mint(e.ConversationID, micros)
	}
	enc := c.encoders.Get().(*encoder)
	enc.strict = strict
	enc.create(e, eventID)
	if err := c.enqueue(ctx, &write{op: OpCreate, id: eventID, minted: e.ID == ""}, enc); err != nil {
		return "", err
	}
	return eventID, nil
}

// UpdateEvent queues a change of an event's fields, to be made after all that
// this client wrote of the event before. See [Client.TrackEvent] for the rest.
// An update of an event that was never created has no effect.
func (c *Client) UpdateEvent(ctx context.Context, id string, fields Fields) error {
	return c.change(ctx, OpUpdate, id, fields)
}

// PatchEvent is [Client.UpdateEvent], but ConversationMetadata is a merge patch
// (RFC 7396) of the metadata that the event has: the keys that it names are set,
// those that are null in it are taken away, objects are merged, and everything
// else stays. So writers of different keys do not overwrite one another.
func (c *Client) PatchEvent(ctx context.Context, id string, fields Fields) error {
	return c.change(ctx, OpPatch, id, fields)
}

func (c *Client) change(ctx context.Context, op Op, id string, fields Fields) error {
	if err := checkID(id); err != nil {
		return err
	}
	if err := checkEventName(fields.EventName); err != nil {
		return err
	}
	enc := c.encoders.Get().(*encoder)
	enc.strict = c.opts.Strict
	enc.update(op, &fields, id)
	return c.enqueue(ctx, &write{op: op, id: id}, enc)
}

// DeleteEvent queues the delete of an event, which is final: nothing revives an
// id. See [Client.TrackEvent] for the rest.
func (c *Client) DeleteEvent(ctx context.Context, id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	enc := c.encoders.Get().(*encoder)
	enc.delete(id)
	return c.enqueue(ctx, &write{op: OpDelete, id: id}, enc)
}

// enqueue queues the write w with the item that enc has, and gives enc back.
func (c *Client) enqueue(ctx context.Context, w *write, enc *encoder) error {
	defer func() {
		if enc.reusable() {
			c.encoders.Put(enc)
		}
	}()
	item, err := enc.end()
	if err != nil {
		return err
	}
	if err := c.queue.reserve(ctx, len(item)); err != nil {
		return err
	}
	w.item = bytes.Clone(item)
	if c.spool == nil {
		return c.queue.push(w, time.Now())
	}
	return c.spool.append(c.queue, w, enc.line)
}

// Flush sends what is queued and returns when all of it was acknowledged or
// reported to [Options].OnError. When ctx ends first, the error says how many
// writes are left and wraps ctx.Err(); they stay queued. After Close it is
// [ErrClosed].
func (c *Client) Flush(ctx context.Context) error {
	if c.queue.isClosed() {
		return ErrClosed
	}
	return c.leftError(ctx, "flush", c.queue.flush(ctx))
}

// Close flushes and gives up all that the client has: its goroutine, its
// connections, its spool directory. It takes until ctx ends, and 10 s where ctx
// has no deadline. Then the error says how many writes are left and wraps the
// context's: with a spool they are sent by the next client, else they are lost.
// Calls after Close, or that still wait for room, return [ErrClosed].
func (c *Client) Close(ctx context.Context) error {
	for open := range c.streams.Range {
		open.(*stream).end() // as far as it came
	}
	if c.spool != nil {
		c.spool.stop()
	}
	if err := c.queue.close(); err != nil {
		return err
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, closeTimeout)
		defer cancel()
	}
	c.queue.flush(ctx)
	c.stop()
	c.sender.Wait()
	err := c.leftError(ctx, "close", c.queue.abandoned())
	if c.spool != nil {
		if cleanup := c.spool.close(); cleanup != nil {
			err = errors.Join(err, fmt.Errorf("sluice: close the spool: %w", cleanup))
		}
	}
	if c.ownHTTP {
		c.http.CloseIdleConnections()
	}
	return err
}

func (c *Client) leftError(ctx context.Context, call string, left int) error {
	if left == 0 {
		return nil
	}
	if last := c.lastFailure.Load(); last != nil && *last != nil {
		return fmt.Errorf("sluice: %s: %d writes left: %w (the last attempt: %s)", call, left, ctx.Err(), withoutDetail(*last))
	}
	return fmt.Errorf("sluice: %s: %d writes left: %w", call, left, ctx.Err())
}
