import type { Write } from '../src/queue.js';

/** There is none in a browser, and the option is refused before. */
export class Spool {
  readonly loaded: Write[] = [];
  readonly corrupt: string[] = [];

  append(): void {
    throw new Error('no spool');
  }

  free(): Write[] {
    return [];
  }

  close(): void {
    // Nothing is open.
  }
}
