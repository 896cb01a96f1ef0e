/**
 * The client library of Sluice for browsers. It is the library for Node without the options that need files or gzip.
 *
 * @packageDocumentation
 */
import { Client as AnyClient } from '../src/client.js';
import { ValidationError } from '../src/errors.js';
import type { ClientOptions, TimeoutOptions } from '../src/types.js';

export * from '../src/index.js';

/** The default size of a batch in bytes. Two batches of this size fit into the keepalive limit of browser/transport.ts. */
const batchBytes = 30_000;

/** A client for a page. When the page is hidden or left, it sends the queued writes in requests that outlive the page. */
export class Client extends AnyClient {
  readonly #listening = new AbortController();

  constructor(options: ClientOptions = {}) {
    for (const name of ['spoolDir', 'caFile'] as const) {
      if (options[name] !== undefined) {
        throw new ValidationError(name, 'cannot be used in a browser, which has no files');
      }
    }
    if (options.gzip) {
      throw new ValidationError('gzip', 'cannot be used in a browser, where a request must be sent at once when the page is left');
    }
    super({ ...options, batchBytesMax: options.batchBytesMax ?? batchBytes });
    const { signal } = this.#listening;
    globalThis.addEventListener('pagehide', () => { this.sendNow(); }, { signal });
    if (typeof document !== 'undefined') {
      // On a phone, this is often the last event that a page gets.
      document.addEventListener('visibilitychange', () => { if (document.visibilityState === 'hidden') this.sendNow(); }, { signal });
    }
  }

  override async close(options: TimeoutOptions = {}): Promise<void> {
    try {
      await super.close(options);
    } finally {
      this.#listening.abort();
    }
  }
}
