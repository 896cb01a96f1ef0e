import { ClosedError, NetworkError, TimeoutError, ValidationError } from '../src/errors.js';
import type { Answer, Request } from '../src/transport.js';
import { Buffer } from './node.js';

export * from '../src/transport.js';

/**
 * How many bytes of bodies may be under way in requests that outlive the page. Browsers allow 64 KiB for a page, of all its
 * scripts together.
 */
const keepaliveBytesMax = 60 << 10;
let keepaliveBytes = 0;

/** Sends requests to one server by fetch. */
export class Transport {
  readonly #base: string;
  readonly #headers: Record<string, string> = { Accept: 'application/json' };
  readonly #signal: AbortSignal;

  /** The signal ends what is under way with a {@link ClosedError}. */
  constructor(url: string, apiKey: string | undefined, signal: AbortSignal) {
    if (!URL.canParse(url) || !/^https?:$/.test(new URL(url).protocol)) {
      throw new ValidationError('url', 'must be an address such as https://events.example');
    }
    const { origin, pathname } = new URL(url);
    this.#base = origin + pathname.replace(/\/+$/, '');
    if (apiKey !== undefined) {
      if (!/^[!-~]+$/.test(apiKey)) {
        throw new ValidationError('apiKey', 'must be printable ASCII characters'); // never with the key itself
      }
      this.#headers.Authorization = `Bearer ${apiKey}`;
    }
    this.#signal = signal;
  }

  /**
   * Sends a request and returns the answer, whatever its status; redirects are not followed. It throws a {@link NetworkError},
   * {@link TimeoutError} or {@link ClosedError}. The request is under way when the call returns: a page that is left runs nothing
   * after that.
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

  /** Has the request outlive the page where there is room for that. */
  async #fetch(url: string, init: RequestInit, bytes: number): Promise<Response> {
    if (init.method === 'GET' || keepaliveBytes + bytes > keepaliveBytesMax) {
      return fetch(url, init);
    }
    keepaliveBytes += bytes;
    try {
      return await fetch(url, { ...init, keepalive: true });
    } catch (error) {
      // Other scripts of the page may have taken the room, which looks like any failure.
      if (init.signal?.aborted) {
        throw error;
      }
      return await fetch(url, init);
    } finally {
      keepaliveBytes -= bytes;
    }
  }

  close(): void {
    // The signal has ended what was under way.
  }
}
