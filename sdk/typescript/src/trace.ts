import { writeBytesMax } from './encode.js';
import { conversationHash, mintId, nowMicros } from './ids.js';
import { encodeObject, encodeValue, fit, messageOf, Snapshot } from './payload.js';
import type { Embedding, NewEvent, TraceOptions } from './types.js';

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

  /** @internal The event, now that the call ended. */
  end(): NewEvent {
    return {
      conversationId: this.#conversationId,
      eventName: this.#eventName,
      conversationMetadata: this.#metadataJson,
      latency: Math.round((performance.now() - this.#start) * 1000) / 1000,
      error: this.error === undefined || this.error === null ? undefined : messageOf(this.error),
      input: this.#inputJson,
      output: this.output,
      inputEmbeddings: this.inputEmbeddings,
      outputEmbeddings: this.outputEmbeddings,
    };
  }
}

function snapshot(json: string | undefined, room: number): Snapshot | undefined {
  if (json === undefined) {
    return undefined;
  }
  return new Snapshot(Buffer.byteLength(json) > room ? (fit(new Map([['input', json]]), room).get('input') ?? '') : json);
}

/** Calls the function with the span, and calls back when it returned, threw, or its promise was settled. */
export function traceCall<T>(span: Span, fn: (span: Span) => T, done: () => void): T {
  const returned = <V>(value: V): V => {
    if (span.output === undefined) {
      span.output = value;
    }
    done();
    return value;
  };
  const threw = (error: unknown): void => {
    if (span.error === undefined) {
      span.error = messageOf(error) || 'error'; // an empty one would be none
    }
    done();
  };
  let result: T;
  try {
    result = fn(span);
  } catch (error) {
    threw(error);
    throw error;
  }
  if (result instanceof Promise) {
    // Watched and handed on itself, as it may be one that can do more.
    result.then(returned, threw);
    return result;
  }
  if (isThenable(result)) {
    // Asked only once: a query builder would run its query twice.
    return result.then(returned, (error: unknown) => {
      threw(error);
      throw error;
    }) as T;
  }
  return returned(result);
}

function isThenable(value: unknown): value is PromiseLike<unknown> {
  return typeof (value as PromiseLike<unknown> | null | undefined)?.then === 'function';
}
