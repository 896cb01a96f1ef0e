/// <reference lib="esnext.disposable" preserve="true" />

import { setMaxListeners } from 'node:events';

import { clockOffsetMs, describeClock, serverTimeMs } from './clock.js';
import { checkConversationId, encodeCreate, encodeDelete, encodeTraced, encodeUpdate, type Encoded, type Encoding } from './encode.js';
import { ApiError, ClockError, ClosedError, NetworkError, QueueFullError, SluiceError, TimeoutError, ValidationError } from './errors.js';
import { followServer } from './ids.js';
import { Queue, Write } from './queue.js';
import { Reader } from './reads.js';
import { Sender, type Outcome } from './sender.js';
import { Spool } from './spool.js';
import type { Watcher } from './streams.js';
import { Span, traceCall } from './trace.js';
import { Transport, type Answer } from './transport.js';
import type {
  ClientOptions,
  ConversationOptions,
  ConversationPage,
  ConversationPageOptions,
  ConversationRow,
  ConversationsOptions,
  ErrorCount,
  EventOptions,
  EventUpdate,
  FilterOptions,
  LatencyOptions,
  LatencyRow,
  NewEvent,
  Op,
  StoredEvent,
  TimeoutOptions,
  TimeSeriesOptions,
  TimeSeriesRow,
  TraceOptions,
  WriteFailure,
} from './types.js';

const closeTimeoutMs = 10_000;
/** The longest time that Node's timers know. */
const timeoutMsMax = 2 ** 31 - 1;

/**
 * A client of one Sluice server. Make one and keep it: it has a queue, a background sender and connections.
 *
 * Writes are queued and sent in batches behind your back. A process that has nothing else to do sends what is queued before it ends, for
 * at most 10 s. One that ends otherwise (`process.exit`, a signal, an exception) calls {@link Client.close} before, or what is still queued
 * is lost (which is logged), unless there is a spool.
 *
 * Requests go through the proxy that HTTPS_PROXY or HTTP_PROXY names, but for NO_PROXY and this machine itself.
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
  readonly #ownOnError: boolean;
  #toldClock = false;
  /** Ends what is under way when the client is closed. */
  readonly #abort = new AbortController();
  #closed: Promise<void> | undefined;
  /** What traced calls returned and has not ended. */
  readonly #streams = new Set<Watcher>();

  /** The bytes of the write that was refused last for lack of room; 0 once one was taken. */
  #refusedBytes = 0;
  #roomWaiters: (() => void)[] = [];

  /**
   * Opens a client. Nothing is connected to yet, but what a spool holds is sent from now on.
   *
   * @throws {@link ValidationError} for an option that cannot be.
   * @throws {@link SpoolInUseError} where another client has the spool's directory.
   * @throws {@link SluiceError} where the spool's directory cannot be used.
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
    setMaxListeners(0, this.#abort.signal); // one for each request under way
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
    openClients.set(this, this.#leaving());
    listen();
  }

  /**
   * Queues an event to be created.
   *
   * @returns its id: the event's own, or the one that was minted.
   * @throws {@link ValidationError} where the event cannot be.
   * @throws {@link QueueFullError} where the queue has no room; see {@link Client.ready}.
   * @throws {@link ClosedError} after close.
   * @throws {@link SluiceError} where the spool cannot be written.
   */
  trackEvent(event: NewEvent): string {
    this.#checkOpen();
    return this.#push('create', encodeCreate(event, this.#encoding));
  }

  /**
   * Queues an update of an event, whether or not that was sent yet. A field that is null is cleared, one that is undefined or
   * absent is left alone. It throws what {@link Client.trackEvent} does.
   */
  updateEvent(id: string, fields: EventUpdate): void {
    this.#checkOpen();
    this.#push('update', encodeUpdate(id, fields, this.#encoding));
  }

  /**
   * Queues a patch of an event: {@link Client.updateEvent}, but `conversationMetadata` is a merge patch (RFC 7396) of the metadata that
   * the event has. The keys that it names are set, those that are null in it are taken away, objects are merged, and everything else
   * stays, so that writers of different keys do not overwrite one another.
   */
  patchEvent(id: string, fields: EventUpdate): void {
    this.#checkOpen();
    this.#push('patch', encodeUpdate(id, fields, this.#encoding, 'patch'));
  }

  /** Queues the deletion of an event, which is final. It throws what {@link Client.trackEvent} does. */
  deleteEvent(id: string): void {
    this.#checkOpen();
    this.#push('delete', encodeDelete(id));
  }

  /**
   * Waits until the queue has room: for the write that was refused last, if one was.
   *
   * @throws {@link ClosedError} after close, and when the client is closed meanwhile.
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
   * Sends what is queued without waiting for more, and waits until all that was queued before the call is answered for good:
   * taken, refused or given up. What was refused went to `onError` before.
   *
   * @param options - `timeoutMs`: default no limit.
   * @throws {@link TimeoutError} when the time is over. What is left stays queued.
   * @throws {@link ClosedError} after close, and when the client is closed meanwhile.
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
   * Flushes and closes. Calls from now on fail with a {@link ClosedError}; another close waits for the first.
   *
   * @param options - `timeoutMs`: default 10,000.
   * @throws {@link TimeoutError} where writes are left, which are lost, unless there is a spool: the next client that opens it
   * sends them.
   */
  async close(options: TimeoutOptions = {}): Promise<void> {
    this.#closed ??= this.#close(bounded(options, 'timeoutMs', closeTimeoutMs, 0, Infinity));
    await this.#closed;
  }

  /** The same as {@link Client.close}, for `await using`. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /**
   * Reads an event, with its embeddings.
   *
   * This and the other reads are tried again, for up to 30 seconds, when the server cannot answer.
   *
   * @throws {@link ApiError} with the code `unknown_event` where there is none; or what else the server says.
   * @throws {@link NetworkError} where the server cannot be reached.
   * @throws {@link TimeoutError} where it does not answer; or, with `waitSeconds`, where what was queued is not written in time.
   * @throws {@link ValidationError} for an id or option that cannot be.
   * @throws {@link ClosedError} after close.
   */
  event(id: string, options: EventOptions = {}): Promise<StoredEvent> {
    return this.#reader.event(id, options);
  }

  /** Reads a page of a conversation's events, in order of time. It throws what {@link Client.event} does. */
  conversation(id: string, options: ConversationPageOptions = {}): Promise<ConversationPage> {
    return this.#reader.conversation(id, options);
  }

  /**
   * Reads all events of a conversation, in order of time, a page at a time. It throws what {@link Client.event} does. With
   * `waitSeconds`, the first page is waited for.
   */
  async *conversationEvents(id: string, options: ConversationOptions = {}): AsyncGenerator<StoredEvent, void, undefined> {
    const { waitSeconds, ...rest } = options;
    let page = await this.conversation(id, { ...rest, waitSeconds });
    for (;;) {
      yield* page.events;
      if (page.nextCursor === null) {
        return;
      }
      page = await this.conversation(id, { ...rest, cursor: page.nextCursor });
    }
  }

  /** Counts events and errors. It throws what {@link Client.event} does. */
  errors(options: FilterOptions = {}): Promise<ErrorCount> {
    return this.#reader.errors(options);
  }

  /** Reads latency quantiles by group, the highest first. It throws what {@link Client.event} does. */
  latency(options: LatencyOptions = {}): Promise<LatencyRow[]> {
    return this.#reader.latency(options);
  }

  /** Ranks conversations, the highest first. It throws what {@link Client.event} does. */
  conversations(options: ConversationsOptions = {}): Promise<ConversationRow[]> {
    return this.#reader.conversations(options);
  }

  /** Reads events, errors and latency quantiles per interval, in order of time. It throws what {@link Client.event} does. */
  timeSeries(options: TimeSeriesOptions = {}): Promise<TimeSeriesRow[]> {
    return this.#reader.timeSeries(options);
  }

  /**
   * Calls the function and tracks an event for the call: its timestamp is the start, its latency how long it took, its output
   * what was returned and its error what was thrown, unless set on the span.
   *
   * What the function returns or throws goes on to the caller unchanged; where it returns a promise, so does this, and the call
   * ends when that is settled. An event that cannot be queued goes to `onError`.
   *
   * A stream that is returned (an iterator or generator, an async iterable, a `ReadableStream`, a stream of Node's, a `Response`) is
   * passed through, and the call ends with it: the output is its parts (texts and bytes joined, others as an array), the latency
   * the time to the last, and `time_to_first_token_ms` in the metadata the time to the first. One that is closed early, or dropped,
   * is tracked as far as it came. It is the stream itself that is handed on, but for a `ReadableStream` another one that reads it.
   *
   * @throws {@link ValidationError} for a conversation's id that cannot be, and {@link ClosedError} after close, before the
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
   * Sends what is queued, as far as it can be, in requests that have begun when the call returns.
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
      throw new ValidationError('', `the write is ${line.length} bytes, more than the queue ever holds`);
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

  /** Queues what the spool holds of earlier processes. */
  #takeOver(spool: Spool): void {
    for (const write of spool.loaded) {
      write.unsure = true; // the process before may have sent it
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
    openClients.delete(this);
    if (outcome === 'timeout') {
      throw this.#timeoutError('close', timeoutMs);
    }
  }

  /** Tracks the streams that are still open, as far as they came. */
  #endStreams(): void {
    for (const stream of this.#streams) {
      stream.end();
    }
  }

  /** What a process that is about to end has to do with this client. */
  #leaving(): Leaving {
    return {
      lost: () => (this.#spool === undefined ? this.#queue.unanswered : 0),
      send: () => {
        this.#endStreams();
        return this.#queue.unanswered === 0 ? undefined : this.flush({ timeoutMs: closeTimeoutMs });
      },
      giveUp: () => { this.#abort.abort(); }, // or else a request that is out would keep the process
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
   * Learns from an answer of Sluice's whether this machine's clock is right. While it is wrong, events without a timestamp get the
   * server's time. It is told once.
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

/** The event of a traced call. Embeddings that cannot be are left out. */
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

function codeOf(error: SluiceError, write: object | undefined): string | undefined {
  if (error instanceof ApiError) return error.code;
  if (error instanceof NetworkError) return 'network';
  if (error instanceof TimeoutError) return 'timeout';
  if (error instanceof ValidationError) return 'invalid';
  if (error instanceof QueueFullError) return 'queue_full';
  if (error instanceof ClosedError) return 'closed';
  if (error instanceof ClockError) return 'wrong_clock';
  return write === undefined ? 'spool_corrupt' : 'spool';
}

/** What becomes of failures without a callback. Never with contents, which a server's detail may quote. */
function warn({ op, id, status, code, field, error }: WriteFailure): void {
  if (op === undefined) {
    console.warn(`sluice: ${error.message}`);
  } else {
    const why = [status, code, field].filter((part) => part !== undefined && part !== '').join(' ');
    console.warn(`sluice: the ${op} of ${String(id)} failed: ${why}`);
  }
}

/** Tells, once for each cause, that writes wait for somebody to change something. Never with contents. */
function warnHeld(error: SluiceError): void {
  const what = error instanceof ApiError ? describe(error) : error.message;
  console.error(`sluice: writes are held and tried again: what answers is not Sluice, or refuses this client: ${what}`);
}

/** The error without what a server may quote. */
function describe({ status, code, detail }: ApiError): string {
  // The detail of a redirect is this library's.
  return status < 400 ? `${status} ${detail}` : [status, code].filter((part) => part !== undefined).join(' ');
}

function wholeSeconds(seconds: number): number {
  if (!(Number.isInteger(seconds) && seconds >= 1 && seconds <= 30)) {
    throw new ValidationError('waitAppliedSeconds', 'must be a whole number from 1 to 30');
  }
  return seconds;
}

/** What becomes of a client that is not closed when the process ends. */
interface Leaving {
  /** How many writes would be lost now. */
  lost: () => number;
  /** Sends what is queued; undefined where that is nothing. */
  send: () => Promise<void> | undefined;
  /** Ends what is under way. */
  giveUp: () => void;
}

/** Clients that are not closed. */
const openClients = new Map<Client, Leaving>();
/** Clients that could not send all in time when the process had nothing else to do. */
const gaveUp = new WeakSet<Client>();

function listen(): void {
  process.off('exit', warnUnsent).on('exit', warnUnsent); // one listener for all
  process.off('beforeExit', sendUnsent).on('beforeExit', sendUnsent);
}

/** Sends what is queued when the process has nothing else to do, which keeps it from ending meanwhile. */
function sendUnsent(): void {
  for (const [client, leaving] of openClients) {
    if (!gaveUp.has(client)) {
      leaving.send()?.catch(() => {
        gaveUp.add(client);
        leaving.giveUp();
      });
    }
  }
}

function warnUnsent(): void {
  for (const { lost } of openClients.values()) {
    if (lost() > 0) {
      console.warn(`sluice: ${writesAre(lost())} lost, because the process ends without client.close()`);
    }
  }
}

function writesAre(n: number): string {
  return n === 1 ? '1 write is' : `${n} writes are`;
}

/** An option that is a number between the bounds. It throws a {@link ValidationError}. */
function bounded<K extends string>(
  options: Partial<Record<K, number | undefined>>,
  name: K,
  absent: number,
  min: number,
  max: number,
): number {
  const value = options[name] ?? absent;
  if (!(value >= min && value <= max)) {
    throw new ValidationError(name, `must be ${max === Infinity ? `at least ${min}` : `from ${min} to ${max}`}`);
  }
  return value;
}
