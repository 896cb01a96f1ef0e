/**
 * Watches a stream that a traced call returned, while the caller reads it. The caller gets the same parts in the same order and at its own
 * pace. The event of the call ends with the stream.
 */

/** Records a stream. Its methods never throw. */
export interface Watcher {
  /** Records a part, before the caller gets it. */
  add(part: unknown): void;
  /** Records that the stream ended, failed or was closed. Only the first call counts. */
  end(failure?: { error: unknown }): void;
}

/** Ends the events of streams that the caller dropped without closing them. */
const dropped = new FinalizationRegistry<Watcher>((watcher) => { watcher.end(); });

/**
 * Watches the value if it is a stream: the watcher is told of each part. It returns the stream for the caller, which is the value itself,
 * or a replacement if the value is a `ReadableStream`. It returns undefined if the value is not a stream or cannot be watched.
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

/** Whether the value is of a kind of stream that {@link watch} may be unable to watch. */
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

/** Watches an iterator by replacing its methods. While the iterator lives, its owner is not garbage-collected. */
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
        // The watcher is told first; the caller gets the original promise.
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

/** Keeps the stream that the caller got from being garbage-collected while its iterator or body is still read. */
const owners = new WeakMap<object, object>();

/** Watches the first iteration of an iterable. */
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

/** Watches a Node stream by replacing `emit`, which sees the parts whichever way the caller reads them. */
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

/** Returns a replacement that reads from the given stream, only when its own reader asks for more. */
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
      // A byte stream does not accept empty parts.
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

/** Watches the body of a response, whichever of the response's methods the caller reads it by. */
function watchResponse(response: Response, watcher: Watcher): object | undefined {
  const body = response.body as unknown;
  if (typeof body !== 'object' || body === null || response.bodyUsed || !Object.isExtensible(response)) {
    return undefined;
  }
  if (isNodeStream(body)) {
    return watchNodeStream(body, watcher) && response; // packages such as node-fetch have Node streams as bodies
  }
  if (!isReadableStream(body) || body.locked) {
    return undefined;
  }
  // A second response has the watched body, and replaces every method that reads it. The caller cannot get the second response itself,
  // because it has no url.
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
