import { writeBytesMax } from './encode.js';
import { conversationHash, mintId, nowMicros } from './ids.js';
import { encodeObject, encodeValue, fit, messageOf, Snapshot } from './payload.js';
import { isStream, Parts, watch, type Watcher } from './streams.js';
import type { Embedding, NewEvent, TraceOptions } from './types.js';

/** The member of the metadata of a stream's event that says when its first part came. */
const firstPart = 'time_to_first_token_ms';

/** A call that is traced. What is set on it until the call ends is in its event. */
export class Span {
  /** The id of the event, to update it by or to link it. */
  readonly id: string;
  /** A string, or any other JSON. Default: what the call returns. */
  output: unknown;
  inputEmbeddings: Embedding | null | undefined;
  outputEmbeddings: Embedding | null | undefined;
  /** What went wrong: a message or an Error. Default: what the call throws. */
  error: unknown;

  #input: unknown;
  #inputJson: Snapshot | undefined;
  #metadata: object | null | undefined;
  #metadataJson: Snapshot | undefined;
  readonly #conversationId: string;
  readonly #eventName: string;
  readonly #start = performance.now();

  /** @internal The conversation's id is one that was checked. */
  constructor(conversationId: string, eventName: string, options: TraceOptions) {
    this.id = mintId(nowMicros(), conversationHash(conversationId) ?? 0);
    this.conversationMetadata = options.conversationMetadata;
    this.#conversationId = conversationId;
    this.#eventName = options.eventName ?? eventName;
  }

  /** Anything. It is encoded when it is set, so that what happens to it later does not show. */
  get input(): unknown {
    return this.#input;
  }

  set input(value: unknown) {
    this.#input = value;
    this.#inputJson = snapshot(encodeValue(value ?? undefined, true), writeBytesMax);
  }

  /** Encoded when it is set, too. */
  get conversationMetadata(): object | null | undefined {
    return this.#metadata;
  }

  set conversationMetadata(value: object | null | undefined) {
    this.#metadata = value;
    this.#metadataJson = snapshot(encodeObject(value ?? undefined), Infinity);
  }

  /** @internal The event of a call that has ended, now or with the last part of a stream. */
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

  /** The metadata and the time to the first part: first, as the last members are left out of what is too large. The caller's own wins. */
  #metadataWith(firstAt: number): Snapshot {
    const json = this.#metadataJson?.json ?? '{}';
    if (!json.startsWith('{') || firstPart in (JSON.parse(json) as object)) {
      return new Snapshot(json);
    }
    return new Snapshot(`{"${firstPart}":${this.#millis(firstAt)}${json === '{}' ? '}' : `,${json.slice(1)}`}`);
  }
}

/** How a call ended. Times are of the performance clock. */
export interface Ended {
  at: number;
  /** When the first part of a stream came. */
  firstAt?: number | undefined;
  /** What was returned. */
  output: unknown;
}

/** The event of a call that returned a stream. */
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
    // What failed did so now; else the call ended with its last part.
    const at = failure === undefined ? this.#lastAt : undefined;
    this.#done({ at: at ?? performance.now(), firstAt: this.#firstAt, output: json === undefined ? undefined : new Snapshot(json) });
  }
}

function noteError(span: Span, error: unknown): void {
  if (span.error === undefined) {
    span.error = messageOf(error) || 'error'; // an empty one would be none
  }
}

function snapshot(json: string | undefined, room: number): Snapshot | undefined {
  if (json === undefined) {
    return undefined;
  }
  return new Snapshot(Buffer.byteLength(json) > room ? (fit(new Map([['input', json]]), room).get('input') ?? '') : json);
}

/**
 * Calls the function with the span, and calls back when it returned, threw, its promise was settled, or the stream that it returned
 * ended. Streams that have not are in open.
 */
export function traceCall<T>(span: Span, fn: (span: Span) => T, open: Set<Watcher>, done: (ended: Ended) => void): T {
  const returned = <V>(value: V, mayReplace: boolean): V => {
    const watcher = new StreamWatcher(span, open, done);
    let stream: object | undefined;
    try {
      stream = watch(value, watcher, mayReplace);
    } catch {
      // Its own methods throw.
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
    // Watched and handed on itself, as it may be one that can do more.
    result.then((value) => returned(value as unknown, false), threw);
    return result;
  }
  if (isThenable(result)) {
    // Asked only once: a query builder would run its query twice.
    return result.then((value) => returned(value, true), rejected) as T;
  }
  return returned(result, true);
}

function isThenable(value: unknown): value is PromiseLike<unknown> {
  return typeof (value as PromiseLike<unknown> | null | undefined)?.then === 'function';
}
