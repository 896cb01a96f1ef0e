import type { Write } from '../src/queue.js';

/** Takes the place of src/spool.ts in the browser bundle. It is never used, because the browser client refuses `spoolDir`. */
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
