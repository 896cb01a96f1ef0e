import { isAnyArrayBuffer } from 'node:util/types';

import { writeBytesMax } from './encode.js';
import { encodeValue, marked } from './payload.js';

/**
 * Streams: what a traced call returned and its caller still takes parts of. The caller gets the stream's own parts, in its own order
 * and at its own pace; the event of the call ends with the stream.
 */

/** What is kept of a stream; the rest of a write is for the other fields. */
export const streamBytesMax = writeBytesMax - (64 << 10);

/** What takes note of a stream. Its methods never throw. */
export interface Watcher {
  /** Notes a part, before the caller gets it. */
  add(part: unknown): void;
  /** Notes that the stream ended, failed or was closed; all but the first call do nothing. */
  end(failure?: { error: unknown }): void;
}

/** Ends the events of streams that are dropped without being closed. */
const dropped = new FinalizationRegistry<Watcher>((watcher) => { watcher.end(); });

/**
 * Has the watcher told of what passes through the value, if it is a stream. It returns the stream to hand on: the value itself, but
 * for a `ReadableStream` another one; undefined where the value is no stream, or cannot be watched.
 */
export function watch(value: unknown, watcher: Watcher, mayReplace: boolean): object | undefined {
  if (typeof value !== 'object' || value === null) {
    return undefined;
  }
  const watched = watchObject(value, watcher, mayReplace);
  if (watched !== undefined) {
    dropped.register(watched, watcher);
  }
  return watched;
}

function watchObject(value: object, watcher: Watcher, mayReplace: boolean): object | undefined {
  if (isResponse(value)) {
    return watchResponse(value, watcher);
  }
  if (isReadableStream(value)) {
    return mayReplace && !value.locked ? watchedStream(value, watcher, undefined) : undefined;
  }
  if (isNodeStream(value)) {
    return watchNodeStream(value, watcher);
  }
  const isIterator = typeof (value as Partial<Iterator<unknown>>).next === 'function';
  if (Symbol.asyncIterator in value) {
    return isIterator ? watchIterator(value as unknown as AnyIterator, watcher, value, true) : watchIterable(value as AsyncIterable<unknown>, watcher);
  }
  return isIterator && Symbol.iterator in value ? watchIterator(value as unknown as AnyIterator, watcher, value, false) : undefined;
}

/** Whether the value is a stream, as far as it may be one that cannot be watched. */
export function isStream(value: unknown): boolean {
  return typeof value === 'object' && value !== null && (isResponse(value) || isReadableStream(value));
}

function tagOf(value: object): string {
  return Object.prototype.toString.call(value);
}

function isResponse(value: object): value is Response {
  return tagOf(value) === '[object Response]' && typeof (value as Partial<Response>).clone === 'function';
}

function isReadableStream(value: object): value is ReadableStream<unknown> {
  return tagOf(value) === '[object ReadableStream]' && typeof (value as Partial<ReadableStream>).getReader === 'function';
}

function isNodeStream(value: object): value is NodeJS.ReadableStream {
  const { pipe, read, emit } = value as Partial<NodeJS.ReadableStream>;
  return typeof pipe === 'function' && typeof read === 'function' && typeof emit === 'function';
}

function define(object: object, name: PropertyKey, value: unknown): void {
  Object.defineProperty(object, name, { value, writable: true, configurable: true, enumerable: false });
}

type AnyIterator = Record<'next' | 'return' | 'throw', ((...args: unknown[]) => unknown) | undefined>;

/** Watches an iterator, and keeps its owner from being collected before. */
function watchIterator(iterator: AnyIterator, watcher: Watcher, owner: object, isAsync: boolean): object | undefined {
  if (!Object.isExtensible(iterator)) {
    return undefined;
  }
  const note = (result: unknown) => {
    const step = (result ?? {}) as { done?: boolean; value?: unknown };
    if (step.done) {
      watcher.end();
    } else {
      watcher.add(step.value);
    }
  };
  for (const name of ['next', 'throw'] as const) {
    const method = iterator[name];
    if (typeof method !== 'function') {
      continue;
    }
    define(iterator, name, (...args: unknown[]): unknown => {
      let result: unknown;
      try {
        result = method.apply(iterator, args);
      } catch (error) {
        watcher.end({ error });
        throw error;
      }
      if (isAsync) {
        // Before the caller, who gets the result itself.
        Promise.resolve(result).then(note, (error: unknown) => { watcher.end({ error }); });
      } else {
        note(result);
      }
      return result;
    });
  }
  const close = iterator.return;
  if (typeof close === 'function') {
    define(iterator, 'return', (...args: unknown[]): unknown => {
      watcher.end();
      return close.apply(iterator, args);
    });
  }
  owners.set(iterator, owner);
  return iterator;
}

/** Keeps what was handed on from being collected while its parts are still taken. */
const owners = new WeakMap<object, object>();

/** Watches what is iterated over first. */
function watchIterable(iterable: AsyncIterable<unknown>, watcher: Watcher): object | undefined {
  if (!Object.isExtensible(iterable)) {
    return undefined;
  }
  const iterate = iterable[Symbol.asyncIterator];
  let first = true;
  define(iterable, Symbol.asyncIterator, (): unknown => {
    const iterator = iterate.call(iterable);
    if (first) {
      first = false;
      watchIterator(iterator as unknown as AnyIterator, watcher, iterable, true);
    }
    return iterator;
  });
  return iterable;
}

/** Watches a stream of Node's, in whichever way its parts are taken. */
function watchNodeStream(stream: NodeJS.ReadableStream, watcher: Watcher): object | undefined {
  if (!Object.isExtensible(stream)) {
    return undefined;
  }
  const emit = stream.emit.bind(stream);
  define(stream, 'emit', (name: string | symbol, ...args: unknown[]): boolean => {
    if (name === 'data') {
      watcher.add(args[0]);
    } else if (name === 'error') {
      watcher.end({ error: args[0] });
    } else if (name === 'end' || name === 'close') {
      watcher.end();
    }
    return emit(name, ...args);
  });
  return stream;
}

/** A stream that gives what the other one does, which it takes over. It is read only as its own reader asks for more. */
function watchedStream(stream: ReadableStream<unknown>, watcher: Watcher, owner: object | undefined): ReadableStream<unknown> {
  const isOfBytes = hasByteReader(stream);
  const reader = stream.getReader();
  const pull = async (controller: ReadableStreamDefaultController<unknown> | ReadableByteStreamController): Promise<void> => {
    for (;;) {
      let result: { done: boolean; value?: unknown };
      try {
        result = await reader.read();
      } catch (error) {
        watcher.end({ error });
        throw error;
      }
      if (result.done) {
        watcher.end();
        controller.close();
        (controller as Partial<ReadableByteStreamController>).byobRequest?.respond(0);
        return;
      }
      watcher.add(result.value);
      // An empty part is none to a stream of bytes.
      if (!isOfBytes || (result.value as Uint8Array).byteLength > 0) {
        controller.enqueue(result.value as Uint8Array<ArrayBuffer>);
        return;
      }
    }
  };
  const cancel = async (reason: unknown): Promise<void> => {
    watcher.end();
    await reader.cancel(reason);
  };
  const watched = isOfBytes
    ? new ReadableStream({ type: 'bytes', pull, cancel })
    : new ReadableStream<unknown>({ pull, cancel }, { highWaterMark: 0 });
  if (owner !== undefined) {
    owners.set(watched, owner);
  }
  return watched;
}

function hasByteReader(stream: ReadableStream<unknown>): boolean {
  try {
    (stream as ReadableStream<Uint8Array>).getReader({ mode: 'byob' }).releaseLock();
    return true;
  } catch {
    return false;
  }
}

/** Watches what the caller reads of the body, by any of the response's methods. */
function watchResponse(response: Response, watcher: Watcher): object | undefined {
  const body = response.body as unknown;
  if (typeof body !== 'object' || body === null || response.bodyUsed || !Object.isExtensible(response)) {
    return undefined;
  }
  if (isNodeStream(body)) {
    return watchNodeStream(body, watcher) && response; // of a package for Node
  }
  if (!isReadableStream(body) || body.locked) {
    return undefined;
  }
  // One of the same contents stands in wherever the body is concerned. It cannot be handed on itself: it has no address.
  const { status, statusText, headers } = response;
  const inner = new Response(watchedStream(body, watcher, response) as ReadableStream<Uint8Array>, { status, statusText, headers });
  for (const name of ['arrayBuffer', 'blob', 'bytes', 'formData', 'json', 'text'] as const) {
    const method = (inner as unknown as Record<string, unknown>)[name];
    if (typeof method === 'function') {
      define(response, name, method.bind(inner));
    }
  }
  define(response, 'clone', () => {
    const copy = inner.clone();
    for (const name of ['url', 'redirected', 'type'] as const) {
      define(copy, name, response[name]);
    }
    return copy;
  });
  for (const name of ['body', 'bodyUsed'] as const) {
    Object.defineProperty(response, name, { get: () => inner[name], configurable: true });
  }
  return response;
}

type Kept = { text: string } | { bytes: Buffer } | { json: string };

/** The parts of a stream, of which so many are kept as an output can have. */
export class Parts {
  readonly #kept: Kept[] = [];
  #texts = 0;
  #binaries = 0;
  #count = 0;
  #bytes = 0;
  #room = streamBytesMax;

  /** Adds a part, as it is now. */
  add(part: unknown): void {
    let kept: Kept;
    let size: number;
    this.#count++;
    if (typeof part === 'string') {
      this.#texts++;
      size = Buffer.byteLength(part);
      kept = { text: part.slice(0, this.#room) };
    } else if (part instanceof Uint8Array || isAnyArrayBuffer(part)) {
      this.#binaries++;
      size = part.byteLength;
      const bytes = part instanceof Uint8Array ? part : new Uint8Array(part);
      kept = { bytes: Buffer.from(bytes.subarray(0, this.#room)) };
    } else {
      const json = encodeValue(part ?? null, true) ?? 'null';
      size = Buffer.byteLength(json);
      kept = { json };
    }
    this.#bytes += size;
    if (size <= this.#room || (this.#room > 0 && !('json' in kept))) {
      this.#kept.push(kept);
    }
    this.#room = size <= this.#room ? this.#room - size : 0;
  }

  /** The parts as JSON: texts and bytes as one text, others as an array; undefined where there are none. */
  joined(): string | undefined {
    if (this.#count === 0) {
      return undefined;
    }
    if (this.#texts === this.#count) {
      return this.#text(this.#kept.map((part) => ('text' in part ? part.text : '')).join(''));
    }
    if (this.#binaries === this.#count) {
      return this.#text(decoded(Buffer.concat(this.#kept.map((part) => ('bytes' in part ? part.bytes : Buffer.alloc(0))))));
    }
    const members = this.#kept.map((part) => ('json' in part ? part.json : (encodeValue('text' in part ? part.text : part.bytes, true) ?? '')));
    if (this.#bytes > streamBytesMax) {
      members.push(JSON.stringify({ sluice_truncated: { bytes: this.#bytes, parts: this.#count } }));
    }
    return `[${members.join(',')}]`;
  }

  #text(text: string): string {
    return JSON.stringify((this.#bytes > streamBytesMax ? marked(text, this.#bytes) : text).toWellFormed());
  }
}

/** Bytes as UTF-8, of which the last character may be cut off; what is none as base64. */
function decoded(bytes: Buffer): string {
  const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
  let text: string;
  try {
    text = decoder.decode(bytes, { stream: true });
  } catch {
    return bytes.toString('base64');
  }
  try {
    return text + decoder.decode();
  } catch {
    return text + '\ufffd';
  }
}
