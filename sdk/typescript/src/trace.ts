import { writeBytesMax } from './encode.js';
import { conversationHash, mintId, nowMicros } from './ids.js';
import { Parts } from './parts.js';
import { encodeObject, encodeValue, messageOf, Snapshot } from './payload.js';
import { isStream, watch, type Watcher } from './streams.js';
import { fit } from './truncate.js';
import type { Embedding, NewEvent, TraceOptions } from './types.js';

/** The metadata key for the milliseconds from the start of the call to the first part of its stream. */
const firstPart = 'time_to_first_token_ms';

/** A traced call. The properties that are set on it before the call ends become the fields of its event. */
export class Span {
  /** The id of the event, for later updates or links. */
  readonly id: string;
  /** A string, or any other JSON. Default: what the call returns. */
  output: unknown;
  inputEmbeddings: Embedding | null | undefined;
  outputEmbeddings: Embedding | null | undefined;
  /** The error: a message or an Error. Default: what the call throws. */
  error: unknown;

  #input: unknown;
  #inputJson: Snapshot | undefined;
  #metadata: object | null | undefined;
  #metadataJson: Snapshot | undefined;
  readonly #conversationId: string;
  readonly #eventName: string;
  readonly #start = performance.now();

  /** @internal The conversation's id must have been checked. */
  constructor(conversationId: string, eventName: string, options: TraceOptions) {
    this.id = mintId(nowMicros(), conversationHash(conversationId) ?? 0);
    this.conversationMetadata = options.conversationMetadata;
    this.#conversationId = conversationId;
    this.#eventName = options.eventName ?? eventName;
  }

  /** Any value. It is encoded when it is set, so that later changes to the value do not show. */
  get input(): unknown {
    return this.#input;
  }

  set input(value: unknown) {
    this.#input = value;
    this.#inputJson = snapshot(encodeValue(value ?? undefined, true), writeBytesMax);
  }

  /** A JSON object of up to 16 KiB. It is encoded when it is set. */
  get conversationMetadata(): object | null | undefined {
    return this.#metadata;
  }

  set conversationMetadata(value: object | null | undefined) {
    this.#metadata = value;
    this.#metadataJson = snapshot(encodeObject(value ?? undefined), Infinity);
  }

  /** @internal Returns the event of the ended call. */
  end({ at, firstAt, output }: Ended): NewEvent {
    return {
      conversationId: this.#conversationId,
      eventName: this.#eventName,
      conversationMetadata: firstAt === undefined ? this.#metadataJson : this.#metadataWith(firstAt),
      latency: this.#millis(at),
      error: this.error === undefined || this.error === null ? undefined : messageOf(this.error),
      input: this.#inputJson,
      output: this.output === undefined ? output : this.output,
      inputEmbeddings: this.inputEmbeddings,
      outputEmbeddings: this.outputEmbeddings,
    };
  }

  #millis(at: number): number {
    return Math.round((at - this.#start) * 1000) / 1000;
  }

  /**
   * Returns the metadata with the time to the first part. That comes first, because metadata that is too large loses its last members. A
   * member of the caller's with the same name wins.
   */
  #metadataWith(firstAt: number): Snapshot {
    const json = this.#metadataJson?.json ?? '{}';
    if (!json.startsWith('{') || firstPart in (JSON.parse(json) as object)) {
      return new Snapshot(json);
    }
    return new Snapshot(`{"${firstPart}":${this.#millis(firstAt)}${json === '{}' ? '}' : `,${json.slice(1)}`}`);
  }
}

/** The end of a call. Times are in milliseconds of the performance clock. */
export interface Ended {
  at: number;
  /** When the first part of a stream came. */
  firstAt?: number | undefined;
  /** The return value, or the parts of the stream. */
  output: unknown;
}

/** Collects a stream that a traced call returned, and ends the call with the stream. */
class StreamWatcher implements Watcher {
  readonly #span: Span;
  readonly #open: Set<Watcher>;
  readonly #done: (ended: Ended) => void;
  readonly #parts = new Parts();
  #firstAt: number | undefined;
  #lastAt: number | undefined;

  constructor(span: Span, open: Set<Watcher>, done: (ended: Ended) => void) {
    this.#span = span;
    this.#open = open;
    this.#done = done;
    open.add(this);
  }

  add(part: unknown): void {
    if (!this.#open.has(this)) {
      return;
    }
    this.#lastAt = performance.now();
    this.#firstAt ??= this.#lastAt;
    this.#parts.add(part);
  }

  end(failure?: { error: unknown }): void {
    if (!this.#open.delete(this)) {
      return;
    }
    if (failure !== undefined) {
      noteError(this.#span, failure.error);
    }
    const json = this.#parts.joined();
    // A failed stream ends now. Otherwise the call ended with the last part.
    const at = failure === undefined ? this.#lastAt : undefined;
    this.#done({ at: at ?? performance.now(), firstAt: this.#firstAt, output: json === undefined ? undefined : new Snapshot(json) });
  }
}

function noteError(span: Span, error: unknown): void {
  if (span.error === undefined) {
    span.error = messageOf(error) || 'error'; // an empty error would mean success
  }
}

function snapshot(json: string | undefined, room: number): Snapshot | undefined {
  if (json === undefined) {
    return undefined;
  }
  return new Snapshot(Buffer.byteLength(json) > room ? (fit(new Map([['input', json]]), room).get('input') ?? '') : json);
}

/**
 * Calls the function with the span. It calls `done` when the call ends: the function returned or threw, its promise was settled, or its
 * stream ended. `open` has the streams that have not ended.
 */
export function traceCall<T>(span: Span, fn: (span: Span) => T, open: Set<Watcher>, done: (ended: Ended) => void): T {
  const returned = <V>(value: V, mayReplace: boolean): V => {
    const watcher = new StreamWatcher(span, open, done);
    let stream: object | undefined;
    try {
      stream = watch(value, watcher, mayReplace);
    } catch {
      // The value's own methods threw, so it cannot be watched.
    }
    if (stream !== undefined) {
      return stream as V;
    }
    open.delete(watcher);
    done({ at: performance.now(), output: isStream(value) ? undefined : value });
    return value;
  };
  const threw = (error: unknown): void => {
    noteError(span, error);
    done({ at: performance.now(), output: undefined });
  };
  const rejected = (error: unknown): never => {
    threw(error);
    throw error;
  };
  let result: T;
  try {
    result = fn(span);
  } catch (error) {
    return rejected(error);
  }
  if (result instanceof Promise && result.constructor !== Promise) {
    // The caller gets the promise itself, because a promise of another class may have more methods.
    result.then((value) => returned(value as unknown, false), threw);
    return result;
  }
  if (isThenable(result)) {
    // `then` is called only once, because a query builder would run its query twice.
    return result.then((value) => returned(value, true), rejected) as T;
  }
  return returned(result, true);
}

function isThenable(value: unknown): value is PromiseLike<unknown> {
  return typeof (value as PromiseLike<unknown> | null | undefined)?.then === 'function';
}
