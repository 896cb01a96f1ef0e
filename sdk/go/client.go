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

// closeTimeout is how long Close flushes if its context has no deadline.
const closeTimeout = 10 * time.Second

// A Client sends events to Sluice in the background, and reads them. Its methods
// may be called concurrently. The caller of [New] closes the client.
type Client struct {
	opts     Options
	queue    *queue
	spool    *spool // nil without SpoolDir
	receipts receipts
	encoders sync.Pool // of *encoder
	streams  sync.Map  // the open streams: *stream to struct{}

	http    *http.Client // does not follow redirects; do follows them
	ownHTTP bool         // whether the client made http and closes its connections
	// lastFailure is the error of the last batch; it points to nil if the batch
	// was acknowledged.
	lastFailure atomic.Pointer[error]
	// toldClock is whether the wrong clock was reported. It is reset when the
	// clock is right again.
	toldClock atomic.Bool

	gzip   *gzip.Writer       // used by the sender only
	stop   context.CancelFunc // stops the sender
	sender sync.WaitGroup
}

// New returns a client. The server need not be reachable. If the spool directory
// has writes of an earlier client, they are sent before anything else. The error
// joins a [*FieldError] for each wrong option, or is [ErrSpoolInUse], or an
// error of the file system.
func New(o Options) (*Client, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	authorities, err := o.authorities()
	if err != nil {
		return nil, err
	}
	// A body is sent only once, so speed counts more than size. The level is
	// valid, so there is no error.
	zip, _ := gzip.NewWriterLevel(nil, gzip.BestSpeed)
	c := &Client{
		ownHTTP:  o.HTTPClient == nil,
		opts:     o.withDefaults(authorities),
		gzip:     zip,
		encoders: sync.Pool{New: func() any { return newEncoder() }},
	}
	c.http = new(http.Client)
	*c.http = *c.opts.HTTPClient
	// The default would turn a POST into a GET, or send the writes to another host.
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

// TrackEvent queues the create of an event and returns the event's id. It does
// not wait for the network. With a spool, the event is in a file when TrackEvent
// returns. ctx bounds only the wait for room in a full queue. So the event of a
// cancelled request can still be tracked while there is room.
//
// The error is a [*FieldError], [ErrQueueFull], [ErrClosed], or, with a spool,
// an error of the file system. Nothing was queued then. If the queued event fails
// later, [Options].OnError is called.
func (c *Client) TrackEvent(ctx context.Context, e Event) (string, error) {
	return c.track(ctx, &e, "", c.opts.Strict)
}

// track queues the create of an event. If minted is not empty, it is the id that
// the library minted for the event earlier.
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

// UpdateEvent queues an update of an event's fields. The update is applied after
// all earlier writes of this client to the event. An update of an event that was
// never created has no effect. ctx and the error are as for [Client.TrackEvent].
func (c *Client) UpdateEvent(ctx context.Context, id string, fields Fields) error {
	return c.change(ctx, OpUpdate, id, fields)
}

// PatchEvent queues a patch of an event. It is like [Client.UpdateEvent], except
// that ConversationMetadata is a JSON merge patch (RFC 7396) of the event's
// metadata: the keys of the patch are set, its null keys are removed, its objects
// are merged, and all other keys keep their values. So writers of different keys
// do not overwrite each other.
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

// DeleteEvent queues the delete of an event. A delete is final: the id cannot be
// used again. ctx and the error are as for [Client.TrackEvent].
func (c *Client) DeleteEvent(ctx context.Context, id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	enc := c.encoders.Get().(*encoder)
	enc.delete(id)
	return c.enqueue(ctx, &write{op: OpDelete, id: id}, enc)
}

// enqueue queues the write w with the item that enc encoded, and returns enc to
// the pool.
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

// Flush sends the queued writes without waiting for a full batch. It returns when
// each of them was acknowledged or reported to [Options].OnError. If ctx ends
// first, the error says how many writes are left and wraps ctx.Err(); the writes
// stay queued. After Close, the error is [ErrClosed].
func (c *Client) Flush(ctx context.Context) error {
	if c.queue.isClosed() {
		return ErrClosed
	}
	return c.leftError(ctx, "flush", c.queue.flush(ctx))
}

// Close flushes the queue, and then releases the client's goroutine, connections
// and spool directory. It flushes until ctx ends, or for 10 s if ctx has no
// deadline. If writes are left then, the error says how many and wraps the
// context's error. With a spool, the next client sends them; otherwise they are
// lost. Later calls, and calls that wait for room, return [ErrClosed].
func (c *Client) Close(ctx context.Context) error {
	for open := range c.streams.Range {
		open.(*stream).end() // tracks the parts so far
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
