import { mediaTypeOf, type Answer } from '../src/answer.js';
import { ClosedError, NetworkError, TimeoutError, ValidationError, type SluiceError } from '../src/errors.js';
import type { OpenAnswer, Request } from '../src/transport.js';
import { Buffer } from './node.js';

/**
 * The maximum size in bytes of all bodies under way in requests that outlive the page. Browsers allow 64 KiB for all scripts of a page
 * together.
 */
const keepaliveBytesMax = 60 << 10;
let keepaliveBytes = 0;

/** A request that was answered. */
interface Begun {
  response: Response;
  /** Ends the request. */
  abort: AbortController;
  /** Ends the request after its time. */
  timer: ReturnType<typeof globalThis.setTimeout>;
  /** Returns the error of this library for an error of fetch. */
  failure: (error: Error) => SluiceError;
}

function empty(): Answer['body'] {
  return Buffer.alloc(0) as unknown as Answer['body'];
}

/** Sends requests to one server by fetch. It takes the place of src/transport.ts in the browser bundle. */
export class Transport {
  readonly #base: string;
  readonly #headers: Record<string, string> = { Accept: 'application/json' };
  readonly #signal: AbortSignal;

  /** The abort signal ends the requests under way with a {@link ClosedError}. It throws a {@link ValidationError}. */
  constructor(url: string, apiKey: string | undefined, signal: AbortSignal) {
    if (!URL.canParse(url) || !/^https?:$/.test(new URL(url).protocol)) {
      throw new ValidationError('url', 'must be an address such as https://events.example');
    }
    const { origin, pathname } = new URL(url);
    this.#base = origin + pathname.replace(/\/+$/, '');
    if (apiKey !== undefined) {
      if (!/^[!-~]+$/.test(apiKey)) {
        throw new ValidationError('apiKey', 'must be printable ASCII characters'); // the message never contains the key
      }
      this.#headers.Authorization = `Bearer ${apiKey}`;
    }
    this.#signal = signal;
  }

  /**
   * Sends a request and returns the answer, whatever its status. It does not follow redirects. It throws a {@link NetworkError},
   * {@link TimeoutError} or {@link ClosedError}. The request has begun when the call returns, because a page that is left runs no code
   * afterwards.
   */
  async send(request: Request): Promise<Answer> {
    return this.#whole(await this.#begin(request));
  }

  /**
   * Sends a request as {@link Transport.send} does, and returns the answer when it begins, if it has the media type. `idleMs` is how long
   * nothing may come then.
   */
  async open(request: Request, mediaType: string, idleMs: number): Promise<OpenAnswer> {
    const begun = await this.#begin(request);
    const { response, abort, timer, failure } = begun;
    if (response.status !== 200 || response.body === null || mediaTypeOf(response.headers.get('content-type')) !== mediaType) {
      return this.#whole(begun);
    }
    globalThis.clearTimeout(timer);
    const reader = response.body.getReader();
    async function* pieces(): AsyncGenerator<Uint8Array, void, undefined> {
      try {
        for (;;) {
          // The timer runs while this waits for the server, not while the caller has a piece.
          const idle = globalThis.setTimeout(() => { abort.abort(); }, idleMs);
          const { done, value } = await reader.read().finally(() => { globalThis.clearTimeout(idle); });
          if (done) {
            return;
          }
          yield value;
        }
      } catch (error) {
        throw failure(error as Error);
      } finally {
        abort.abort();
      }
    }
    return { status: 200, headers: Object.fromEntries(response.headers), body: empty(), pieces: pieces() };
  }

  /** Reads an answer to its end. */
  async #whole({ response, timer, failure }: Begun): Promise<Answer> {
    try {
      if (response.type === 'opaqueredirect') {
        return { status: 307, headers: {}, body: empty(), location: 'another address' };
      }
      const content = Buffer.from(await response.arrayBuffer());
      return { status: response.status, headers: Object.fromEntries(response.headers), body: content as unknown as Answer['body'] };
    } catch (error) {
      throw failure(error as Error);
    } finally {
      globalThis.clearTimeout(timer);
    }
  }

  /** Sends the request. The timer ends it after its time; the caller stops the timer. */
  async #begin({ method, path, headers, body, timeoutMs, isRead }: Request): Promise<Begun> {
    const abort = new AbortController();
    const timer = globalThis.setTimeout(() => { abort.abort(); }, timeoutMs);
    const init: RequestInit = {
      method,
      headers: { ...this.#headers, ...(headers as Record<string, string> | undefined) },
      body: (body ?? null) as Uint8Array<ArrayBuffer> | null,
      cache: 'no-store',
      credentials: 'omit',
      redirect: 'manual',
      referrerPolicy: 'no-referrer',
      signal: AbortSignal.any([abort.signal, this.#signal]),
    };
    const what = `${method} ${path.replace(/\?.*/, '')}`;
    const failure = (error: Error) => {
      if (this.#signal.aborted) {
        return new ClosedError();
      }
      return abort.signal.aborted ? new TimeoutError(`${what}: no answer in ${timeoutMs} ms`) : new NetworkError(`${what}: ${error.message}`, { cause: error });
    };
    try {
      return { abort, response: await this.#fetch(this.#base + path, init, isRead ? undefined : (body?.length ?? 0)), timer, failure };
    } catch (error) {
      globalThis.clearTimeout(timer);
      throw failure(error as Error);
    }
  }

  /**
   * Sends a write of this many bytes so that it outlives the page (keepalive), if the browser's limit for such requests has room. A read
   * has no bytes.
   */
  async #fetch(url: string, init: RequestInit, bytes: number | undefined): Promise<Response> {
    if (bytes === undefined || keepaliveBytes + bytes > keepaliveBytesMax) {
      return fetch(url, init);
    }
    keepaliveBytes += bytes;
    try {
      return await fetch(url, { ...init, keepalive: true });
    } catch (error) {
      // Other scripts of the page may have used up the limit. That looks like any other failure, so the request is sent once more without
      // keepalive.
      if (init.signal?.aborted) {
        throw error;
      }
      return await fetch(url, init);
    } finally {
      keepaliveBytes -= bytes;
    }
  }

  close(): void {
    // The abort signal has ended the requests already.
  }
}
