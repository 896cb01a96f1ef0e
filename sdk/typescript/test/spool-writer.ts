/**
 * A process that the spool's tests kill. It tracks events in an endless loop, and prints the id of each after trackEvent returned.
 * Arguments: the server's address, the spool's directory.
 */
import { writeSync } from 'node:fs';

import { Client, QueueFullError } from '../src/index.js';

const [, , url, spoolDir] = process.argv;
const client = new Client({ url, spoolDir, batchWritesMax: 20, batchAgeMaxMs: 1 });
for (let n = 0; ; n++) {
  try {
    const id = client.trackEvent({ conversationId: 'c1', eventName: 'event_a', input: 'x'.repeat(n % 3000) });
    writeSync(1, `${id}\n`);
  } catch (error) {
    if (!(error instanceof QueueFullError)) {
      throw error;
    }
    await client.ready();
  }
  if (n % 10 === 0) {
    await new Promise(setImmediate);
  }
}
