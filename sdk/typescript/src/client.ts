/// <reference lib="esnext.disposable" preserve="true" />

import { setMaxListeners } from 'node:events';

import type { Answer } from './answer.js';
import { clockOffsetMs, describeClock, serverTimeMs } from './clock.js';
import { checkConversationId, encodeCreate, encodeDelete, encodeTraced, encodeUpdate, type Encoded, type Encoding } from './encode.js';
import { ApiError, ClockError, ClosedError, QueueFullError, SluiceError, TimeoutError, ValidationError } from './errors.js';
import { unwatchExit, watchExit, writesAre, type ExitHooks } from './exit.js';
import { followServer } from './ids.js';
import { bounded, timeoutMsMax, wholeSeconds } from './options.js';
import { Queue, Write } from './queue.js';
import { Reader } from './reads.js';
import { codeOf, warn, warnHeld } from './report.js';
import { Sender, type Outcome } from './sender.js';
import { Spool } from './spool.js';
import type { Watcher } from './streams.js';
import { Span, traceCall } from './trace.js';
import { Transport } from './transport.js';
import type {
  ClientOptions,
  ConversationList,
  ConversationOptions,
  ConversationPage,
  ConversationPageOptions,
  ConversationRow,
  ConversationsOptions,
  ConversationSummary,
  ErrorCount,
  EventOptions,
  EventPage,
  EventUpdate,
  ExportOptions,
  FilterOptions,
  Funnel,
  FunnelOptions,
  Insights,
  InsightsOptions,
  LatencyOptions,
  LatencyRow,
  ListConversationsOptions,
  ListEventsOptions,
  NewEvent,
  Op,
  ReadOptions,
  RetentionOptions,
  RetentionRow,
  SearchOptions,
  SearchPage,
  SearchResult,
  SqlResult,
  StoredEvent,
  StreamSqlOptions,
  TimeoutOptions,
  TimeSeriesOptions,
  TimeSeriesRow,
  TraceOptions,
  WriteFailure,
} from './types.js';

const closeTimeoutMs = 10_000;

/**
 * A client of one Sluice server. Make one client for the whole program: it has a queue, a background sender and connections of its own.
 *
 * Writes are queued, and sent in batches in the background. When the process has nothing else to do, it sends the queued writes before
 * it ends, for at most 10 s. A program that ends in another way (`process.exit`, a signal, an exception) must call {@link Client.close}
 * first. Otherwise the writes that are still queued are lost, and a warning says how many, unless the client has a spool.
 *
 * Requests go through the proxy that HTTPS_PROXY or HTTP_PROXY names. Requests to this machine and to the hosts in NO_PROXY do not.
 */
export class Client implements AsyncDisposable {
  readonly #queue: Queue;
  readonly #spool: Spool | undefined;
  readonly #sender: Sender;
  readonly #reader: Reader;
  readonly #transport: Transport;
  readonly #traceEventName: string;
  readonly #encoding: Encoding;
  readonly #onError: (failure: WriteFailure) => void;
  /** Whether `onError` is the caller's, not the default. */
  readonly #ownOnError: boolean;
  /** Whether the wrong clock was reported. It is reset when the clock is right again. */
  #toldClock = false;
  /** Aborts all requests under way when the client is closed. */
  readonly #abort = new AbortController();
  #closed: Promise<void> | undefined;
  /** The streams of traced calls that have not ended. */
  readonly #streams = new Set<Watcher>();

  /** The size in bytes of the last write that the full queue refused; 0 once the queue took a write. */
  #refusedBytes = 0;
  #roomWaiters: (() => void)[] = [];

  /**
   * Opens a client. It connects when it first sends. The writes that an earlier process left in the spool are sent from now on.
   *
   * @throws {@link ValidationError} if an option is out of its range.
   * @throws {@link SpoolInUseError} if another client has the spool's directory.
   * @throws {@link SluiceError} if the spool's directory cannot be used.
   */
  constructor(options: ClientOptions = {}) {
    const requestTimeoutMs = bounded(options, 'requestTimeoutMs', 30_000, 1, timeoutMsMax);
    this.#traceEventName = options.traceEventName ?? 'event_a';
    this.#onError = options.onError ?? warn;
    this.#ownOnError = options.onError !== undefined;
    this.#encoding = { strict: options.strict ?? false, bigIntegers: options.bigIntegers ?? false };
    this.#queue = new Queue(
      bounded(options, 'queueWritesMax', 10_000, 1, Number.MAX_SAFE_INTEGER),
      bounded(options, 'queueBytesMax', 64 << 20, 1, Number.MAX_SAFE_INTEGER),
    );
    const senderOptions = {
      batchWritesMax: bounded(options, 'batchWritesMax', 500, 1, 50_000),
      batchBytesMax: bounded(options, 'batchBytesMax', 1 << 20, 1, 16 << 20),
      batchAgeMaxMs: bounded(options, 'batchAgeMaxMs', 100, 0, timeoutMsMax),
      retryForMs: bounded(options, 'retryForMs', Infinity, 1, Infinity),
      requestTimeoutMs,
      waitAppliedSeconds: options.waitAppliedSeconds === undefined ? 0 : wholeSeconds(options.waitAppliedSeconds),
      gzip: options.gzip ?? false,
    };
    setMaxListeners(0, this.#abort.signal); // each request under way adds a listener
    this.#transport = new Transport(options.url ?? 'http://127.0.0.1:8080', options.apiKey, this.#abort.signal, { caFile: options.caFile });
    this.#spool = options.spoolDir === undefined ? undefined : new Spool(options.spoolDir);
    this.#sender = new Sender(this.#queue, this.#spool, this.#transport, senderOptions);
    this.#sender.onFailure = (write, error) => { this.#report(error, write); };
    this.#sender.onHeld = warnHeld;
    this.#sender.onAnswer = (answer, refused) => { this.#observe(answer, refused); };
    this.#sender.onRoom = () => { this.#wakeWaiters(); };
    const readerOptions = {
      requestTimeoutMs,
      bigIntegers: options.bigIntegers ?? false,
      checkOpen: () => { this.#checkOpen(); },
      observe: (answer: Answer) => { this.#observe(answer, 0); },
      writes: async (timeoutMs: number) => {
        await this.flush({ timeoutMs });
        return this.#sender.receipts();
      },
    };
    this.#reader = new Reader(this.#transport, readerOptions, this.#abort.signal);
    if (this.#spool !== undefined) {
      this.#takeOver(this.#spool);
    }
    watchExit(this, this.#exitHooks());
  }

  /**
   * Queues the create of an event. It does not wait for the network.
   *
   * @returns the event's id: the id given, or a new one.
   * @throws {@link ValidationError} if the event is invalid.
   * @throws {@link QueueFullError} if the queue has no room; see {@link Client.ready}.
   * @throws {@link ClosedError} after close.
   * @throws {@link SluiceError} if the spool cannot be written.
   */
  trackEvent(event: NewEvent): string {
    this.#checkOpen();
    return this.#push('create', encodeCreate(event, this.#encoding));
  }

  /**
   * Queues an update of an event. The event's create may still be queued. A null field is cleared; an undefined or absent field keeps
   * its value. It throws the same errors as {@link Client.trackEvent}.
   */
  updateEvent(id: string, fields: EventUpdate): void {
    this.#checkOpen();
    this.#push('update', encodeUpdate(id, fields, this.#encoding));
  }

  /**
   * Queues a patch of an event. It is an update, except that `conversationMetadata` is a JSON merge patch (RFC 7396) of the event's
   * metadata: the keys of the patch are set, its null keys are removed, its objects are merged, and all other keys keep their values. So
   * writers of different keys do not overwrite each other. It throws the same errors as {@link Client.trackEvent}.
   */
  patchEvent(id: string, fields: EventUpdate): void {
    this.#checkOpen();
    this.#push('patch', encodeUpdate(id, fields, this.#encoding, 'patch'));
  }

  /** Queues the delete of an event. A delete is final. It throws the same errors as {@link Client.trackEvent}. */
  deleteEvent(id: string): void {
    this.#checkOpen();
    this.#push('delete', encodeDelete(id));
  }

  /**
   * Waits until the queue has room. If the queue refused a write, it waits for room for the last refused write.
   *
   * @throws {@link ClosedError} after close, or if the client is closed during the wait.
   */
  async ready(): Promise<void> {
    const release = this.#sender.hold();
    try {
      this.#checkOpen();
      while (!this.#queue.hasRoom(this.#refusedBytes)) {
        await new Promise<void>((resolve) => this.#roomWaiters.push(resolve));
        this.#checkOpen();
      }
    } finally {
      release();
    }
  }

  /**
   * Sends the queued writes now, without waiting for a full batch. It returns when every write that was queued before the call has its
   * final answer: acknowledged, refused or given up. `onError` is called for the refused and given up ones before it returns.
   *
   * @param options - `timeoutMs`, in milliseconds. Default: no limit.
   * @throws {@link TimeoutError} if the timeout is over. The remaining writes stay queued.
   * @throws {@link ClosedError} after close, or if the client is closed during the flush.
   */
  async flush(options: TimeoutOptions = {}): Promise<void> {
    const timeoutMs = bounded(options, 'timeoutMs', Infinity, 0, Infinity);
    this.#checkOpen();
    const outcome = await this.#flushWithin(timeoutMs);
    if (outcome === 'stopped') {
      throw new ClosedError();
    }
    if (outcome === 'timeout') {
      throw this.#timeoutError('flush', timeoutMs);
    }
  }

  /**
   * Flushes the queue and closes the client. Later calls fail with a {@link ClosedError}; a second close waits for the first.
   *
   * @param options - `timeoutMs` of the flush, in milliseconds. Default 10,000.
   * @throws {@link TimeoutError} if writes remain after the timeout. They are lost, unless the client has a spool: the next client that
   * opens the spool sends them.
   */
  async close(options: TimeoutOptions = {}): Promise<void> {
    this.#closed ??= this.#close(bounded(options, 'timeoutMs', closeTimeoutMs, 0, Infinity));
    await this.#closed;
  }

  /** Closes the client, as {@link Client.close} does. It is for `await using`. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /**
   * Reads an event, with its embeddings.
   *
   * All reads are retried for up to 30 seconds when the server cannot be reached or cannot answer.
   *
   * @throws {@link ApiError} with the code `unknown_event` if there is no such event, or with another code of the server's.
   * @throws {@link NetworkError} if the server cannot be reached.
   * @throws {@link TimeoutError} if the server does not answer; with `waitSeconds`, also if the queued writes cannot be flushed in time.
   * @throws {@link ValidationError} if the id or an option is invalid.
   * @throws {@link ClosedError} after close.
   */
  event(id: string, options: EventOptions = {}): Promise<StoredEvent> {
    return this.#reader.event(id, options);
  }

  /** Reads one page of a conversation's events. It throws the same errors as {@link Client.event}. */
  conversation(id: string, options: ConversationPageOptions = {}): Promise<ConversationPage> {
    return this.#reader.conversation(id, options);
  }

  /**
   * Iterates over all events of a conversation that match the filter. It reads one page at a time. `waitSeconds` applies to the first page
   * only. It throws the same errors as {@link Client.event}.
   */
  async *conversationEvents(id: string, options: ConversationOptions = {}): AsyncGenerator<StoredEvent, void, undefined> {
    yield* over(options, async (page) => {
      const { events, nextCursor } = await this.conversation(id, page);
      return { items: events, nextCursor };
    });
  }

  /** Reads one page of the events of all conversations that match the filter. It throws the same errors as {@link Client.event}. */
  listEvents(options: ListEventsOptions = {}): Promise<EventPage> {
    return this.#reader.listEvents(options);
  }

  /**
   * Iterates over all events that match the filter, beginning at `cursor`. It reads one page at a time. `waitSeconds` applies to the first
   * page only. It throws the same errors as {@link Client.event}.
   */
  async *allEvents(options: ListEventsOptions = {}): AsyncGenerator<StoredEvent, void, undefined> {
    yield* over(options, async (page) => {
      const { events, nextCursor } = await this.listEvents(page);
      return { items: events, nextCursor };
    });
  }

  /**
   * Reads one page of the conversations that have an event which matches the filter, the one with the latest such event first. Everything
   * said about a conversation is about its matching events. It throws the same errors as {@link Client.event}.
   */
  listConversations(options: ListConversationsOptions = {}): Promise<ConversationList> {
    return this.#reader.listConversations(options);
  }

  /**
   * Iterates over all conversations of {@link Client.listConversations}, beginning at `cursor`. It reads one page at a time. `waitSeconds`
   * applies to the first page only. A conversation that gets a new event meanwhile moves to the front, so it may be left out. It throws
   * the same errors as {@link Client.event}.
   */
  async *allConversations(options: ListConversationsOptions = {}): AsyncGenerator<ConversationSummary, void, undefined> {
    yield* over(options, async (page) => {
      const { conversations, nextCursor } = await this.listConversations(page);
      return { items: conversations, nextCursor };
    });
  }

  /** Counts events and errors. It throws the same errors as {@link Client.event}. */
  errors(options: FilterOptions = {}): Promise<ErrorCount> {
    return this.#reader.errors(options);
  }

  /** Reads latency quantiles in milliseconds for each group, the highest first. It throws the same errors as {@link Client.event}. */
  latency(options: LatencyOptions = {}): Promise<LatencyRow[]> {
    return this.#reader.latency(options);
  }

  /** Ranks conversations by `orderBy`, the highest first. It throws the same errors as {@link Client.event}. */
  conversations(options: ConversationsOptions = {}): Promise<ConversationRow[]> {
    return this.#reader.conversations(options);
  }

  /** Reads events, errors and latency quantiles per interval, in order of time. It throws the same errors as {@link Client.event}. */
  timeSeries(options: TimeSeriesOptions = {}): Promise<TimeSeriesRow[]> {
    return this.#reader.timeSeries(options);
  }

  /**
   * Finds events by a text, by the similarity of embeddings, or by both, and reads one page of them. It throws the same errors as
   * {@link Client.event}; `unknown_event` means that `like` names no event.
   */
  search(options: SearchOptions): Promise<SearchPage> {
    return this.#reader.search(options);
  }

  /**
   * Iterates over all results of {@link Client.search}, beginning at `cursor`. It reads one page at a time. `waitSeconds` applies to the
   * first page only. It throws the same errors as {@link Client.search}.
   */
  async *searchAll(options: SearchOptions): AsyncGenerator<SearchResult, void, undefined> {
    yield* over(options, async (page) => {
      const { results, nextCursor } = await this.search(page);
      return { items: results, nextCursor };
    });
  }

  /**
   * Iterates over all events that match the filter, in order of time, however many there are. It reads them from one answer while it comes.
   * If the answer breaks off, also because the loop takes too long for the server, it goes on after the last event. `waitSeconds` applies to
   * the beginning. It throws the same errors as {@link Client.event}.
   */
  exportEvents(options: ExportOptions = {}): AsyncGenerator<StoredEvent, void, undefined> {
    return this.#reader.exportEvents(options);
  }

  /**
   * Computes measures of events, by group and by interval. Groups and intervals without events have no row. Without both there is exactly
   * one row. It throws the same errors as {@link Client.event}.
   */
  insights(options: InsightsOptions): Promise<Insights> {
    return this.#reader.insights(options);
  }

  /**
   * Counts how many subjects (conversations, or what `per` says) do the steps in their order within the window, and how fast. It throws the
   * same errors as {@link Client.event}.
   */
  funnel(options: FunnelOptions): Promise<Funnel> {
    return this.#reader.funnel(options);
  }

  /**
   * Counts, of the subjects (conversations, or what `per` says) that did something in a period, how many return in that period and in those
   * after it. There is a row for each period, in order of time. It throws the same errors as {@link Client.event}.
   */
  retention(options: RetentionOptions): Promise<RetentionRow[]> {
    return this.#reader.retention(options);
  }

  /**
   * Runs a SELECT in ClickHouse's SQL on the live views, which docs/sql.md describes. The whole answer is in memory, which the server
   * bounds; see {@link Client.streamSql}. It throws the same errors as {@link Client.event}. An {@link ApiError} with the code
   * `invalid_query` says what is wrong with the query; `sql_not_set_up` means that the server has no user for SQL.
   */
  sql(query: string, options: ReadOptions = {}): Promise<SqlResult> {
    return this.#reader.sql(query, options);
  }

  /**
   * Runs a query as {@link Client.sql} does, and yields the bytes of the answer while they come, which need little memory:
   *
   *     await pipeline(client.streamSql('SELECT * FROM live_events', { format: 'parquet' }), createWriteStream('events.parquet'));
   *
   * The query begins with the first piece that is asked for, and is retried until the answer begins. After that, a {@link NetworkError} means
   * that the answer broke off, and a {@link TimeoutError} that nothing came for `requestTimeoutMs`.
   */
  async *streamSql(query: string, options: StreamSqlOptions): AsyncGenerator<Uint8Array, void, undefined> {
    yield* await this.#reader.streamSql(query, options);
  }

  /**
   * Calls the function, and tracks one event for the call. The event's timestamp is the start of the call, and its latency the duration
   * in milliseconds. Its output is the return value and its error the thrown error, unless the function sets them on the span.
   *
   * The caller gets the return value or the thrown error unchanged. If the function returns a promise, the call ends when the promise is
   * settled. If the event cannot be queued, the error goes to `onError`.
   *
   * If the function returns a stream (an iterator or generator, an async iterable, a `ReadableStream`, a Node stream, a `Response`), the
   * stream is passed through to the caller, and the call ends when the stream ends. The output is the parts of the stream: texts and bytes
   * joined, other parts as an array. The latency is the time to the last part, and `time_to_first_token_ms` in the metadata is the time to
   * the first part. A stream that is closed early or dropped is tracked up to that point. The caller gets the same stream object, except
   * that a `ReadableStream` is replaced by one that reads from it.
   *
   * @throws {@link ValidationError} if the conversation's id is invalid, and {@link ClosedError} after close. Both are thrown before the
   * function is called.
   */
  trace<T>(conversationId: string, fn: (span: Span) => T, options: TraceOptions = {}): T {
    this.#checkOpen();
    checkConversationId(conversationId);
    const span = new Span(conversationId, this.#traceEventName, options);
    return traceCall(span, fn, this.#streams, (ended) => {
      try {
        this.#checkOpen();
        this.#push('create', encodeSpan(span.id, span.end(ended)));
      } catch (error) {
        queueMicrotask(() => { this.#report(error as SluiceError, { op: 'create', id: span.id }); });
      }
    });
  }

  /**
   * Sends the queued writes at once. All requests have begun when the call returns.
   *
   * @internal
   */
  protected sendNow(): void {
    this.#sender.sendNow();
  }

  #checkOpen(): void {
    if (this.#closed !== undefined) {
      throw new ClosedError();
    }
  }

  #push(op: Op, { id, line, minted }: Encoded): string {
    if (line.length > this.#queue.bytesMax) {
      throw new ValidationError('', `the write is ${line.length} bytes, more than queueBytesMax`);
    }
    if (!this.#queue.hasRoom(line.length)) {
      this.#refusedBytes = line.length;
      throw new QueueFullError('the queue is full');
    }
    this.#refusedBytes = 0;
    const write = new Write(op, id, line, this.#sender.now());
    write.minted = minted;
    this.#spool?.append(write);
    this.#queue.push(write);
    this.#sender.poke();
    return id;
  }

  /** Queues the writes that earlier processes left in the spool, and reports its corrupt lines. */
  #takeOver(spool: Spool): void {
    for (const write of spool.loaded) {
      write.unsure = true; // the earlier process may have sent it
      this.#queue.push(write);
    }
    if (spool.loaded.length > 0) {
      this.#sender.poke();
    }
    for (const detail of spool.corrupt) {
      queueMicrotask(() => { this.#report(new SluiceError(detail)); });
    }
    spool.loaded.length = spool.corrupt.length = 0;
  }

  async #flushWithin(timeoutMs: number): Promise<Outcome | 'timeout'> {
    const { done, cancel } = this.#sender.flush();
    const release = this.#sender.hold();
    let timer: NodeJS.Timeout | undefined;
    const over = new Promise<'timeout'>((resolve) => {
      if (timeoutMs !== Infinity) {
        timer = setTimeout(resolve, Math.min(timeoutMs, timeoutMsMax), 'timeout');
      }
    });
    try {
      return await Promise.race([done, over]);
    } finally {
      clearTimeout(timer);
      cancel();
      release();
    }
  }

  async #close(timeoutMs: number): Promise<void> {
    this.#endStreams();
    const outcome = await this.#flushWithin(timeoutMs);
    this.#abort.abort();
    await this.#sender.stop();
    this.#wakeWaiters();
    this.#transport.close();
    this.#spool?.close();
    unwatchExit(this);
    if (outcome === 'timeout') {
      throw this.#timeoutError('close', timeoutMs);
    }
  }

  /** Ends the streams that are still open, so that their events are tracked with the parts so far. */
  #endStreams(): void {
    for (const stream of this.#streams) {
      stream.end();
    }
  }

  /** The hooks by which the end of the process reaches this client. */
  #exitHooks(): ExitHooks {
    return {
      writesLost: () => (this.#spool === undefined ? this.#queue.unanswered : 0),
      send: () => {
        this.#endStreams();
        return this.#queue.unanswered === 0 ? undefined : this.flush({ timeoutMs: closeTimeoutMs });
      },
      giveUp: () => { this.#abort.abort(); }, // otherwise a request under way would keep the process alive
    };
  }

  #timeoutError(call: string, timeoutMs: number): TimeoutError {
    const left = writesAre(this.#queue.unanswered);
    return new TimeoutError(`${call}: ${left} left after ${timeoutMs} ms`, { cause: this.#sender.lastError });
  }

  #wakeWaiters(): void {
    const waiters = this.#roomWaiters;
    this.#roomWaiters = [];
    for (const wake of waiters) {
      wake();
    }
  }

  /**
   * Compares this machine's clock with the time in an answer of Sluice. While the clock is wrong, events without a timestamp get the
   * server's time. A wrong clock is reported once, until it is right again.
   */
  #observe(answer: Answer, refused: number): void {
    const server = serverTimeMs(answer.headers);
    if (server === undefined) {
      return;
    }
    const local = Date.now();
    const isWrong = clockOffsetMs(server, local) !== 0;
    followServer(isWrong ? server : undefined);
    if (isWrong && !this.#toldClock) {
      const error = new ClockError(describeClock(server, local, refused));
      console.error(`sluice: ${error.message}`);
      if (this.#ownOnError) {
        this.#report(error);
      }
    }
    this.#toldClock = isWrong;
  }

  #report(error: SluiceError, write?: { op: Op; id: string }): void {
    const { status, detail } = error instanceof ApiError ? error : { status: undefined, detail: error.message };
    const field = error instanceof ApiError || error instanceof ValidationError ? error.field : undefined;
    try {
      this.#onError({ op: write?.op, id: write?.id, status, code: codeOf(error, write), detail, field, error });
    } catch (thrown) {
      console.error('sluice: onError threw', thrown); // and the sender goes on
    }
  }
}

/** Iterates over the items of all pages. The first page has the options; the later ones do not wait again. */
async function* over<T, Options extends ReadOptions>(
  options: Options,
  read: (options: Options & { cursor?: string }) => Promise<{ items: T[]; nextCursor: string | null }>,
): AsyncGenerator<T, void, undefined> {
  let { items, nextCursor } = await read(options);
  for (;;) {
    yield* items;
    if (nextCursor === null) {
      return;
    }
    ({ items, nextCursor } = await read({ ...options, waitSeconds: undefined, cursor: nextCursor }));
  }
}

/** Encodes the event of a traced call. Invalid embeddings are left out, and a warning says so. */
function encodeSpan(id: string, event: NewEvent): Encoded {
  try {
    return encodeTraced(id, event);
  } catch (error) {
    if (!(error instanceof ValidationError && /^(input|output)_embeddings/.test(error.field))) {
      throw error;
    }
    console.warn(`sluice: the embeddings of the traced event ${id} are left out: ${error.message}`);
    return encodeTraced(id, { ...event, inputEmbeddings: undefined, outputEmbeddings: undefined });
  }
}
