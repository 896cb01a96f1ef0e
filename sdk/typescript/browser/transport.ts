import type { Answer } from '../src/answer.js';
import { ClosedError, NetworkError, TimeoutError, ValidationError } from '../src/errors.js';
import type { Request } from '../src/transport.js';
import { Buffer } from './node.js';

/**
 * The maximum size in bytes of all bodies under way in requests that outlive the page. Browsers allow 64 KiB for all scripts of a page
 * together.
 */
const keepaliveBytesMax = 60 << 10;
let keepaliveBytes = 0;

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
  async send({ method, path, headers, body, timeoutMs }: Request): Promise<Answer> {
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
    try {
      const response = await this.#fetch(this.#base + path, init, body?.length ?? 0);
      if (response.type === 'opaqueredirect') {
        return { status: 307, headers: {}, body: Buffer.alloc(0) as unknown as Answer['body'], location: 'another address' };
      }
      const content = Buffer.from(await response.arrayBuffer());
      return { status: response.status, headers: Object.fromEntries(response.headers), body: content as unknown as Answer['body'] };
    } catch (error) {
      if (this.#signal.aborted) {
        throw new ClosedError();
      }
      if (abort.signal.aborted) {
        throw new TimeoutError(`${what}: no answer in ${timeoutMs} ms`);
      }
      throw new NetworkError(`${what}: ${(error as Error).message}`, { cause: error });
    } finally {
      globalThis.clearTimeout(timer);
    }
  }

  /** Sends a write so that it outlives the page (keepalive), if the browser's limit for such requests has room. */
  async #fetch(url: string, init: RequestInit, bytes: number): Promise<Response> {
    if (init.method === 'GET' || keepaliveBytes + bytes > keepaliveBytesMax) {
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
