/**
 * The client library of Sluice, for browsers: the same as for Node, without what a page cannot have.
 *
 * @packageDocumentation
 */
import { Client as AnyClient } from '../src/client.js';
import { ValidationError } from '../src/errors.js';
import type { ClientOptions, TimeoutOptions } from '../src/types.js';

export * from '../src/index.js';

/** Two batches of this size may be under way when a page is left: see the transport. */
const batchBytes = 30_000;

/** A client that sends what is queued when the page is hidden or left, in requests that outlive it. */
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
      // The last that a page on a phone hears of, often.
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
