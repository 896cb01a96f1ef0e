// Keeps writes in a directory, so that they survive an outage of the server and the end of this process.
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';

import { Client, TimeoutError } from '@sluicehq/sluice';

// A service uses a permanent directory, one for each process.
const spoolDir = await mkdtemp(path.join(tmpdir(), 'sluice-spool-'));
const conversationId = `offline-${Date.now()}`;

// Nothing listens on this port.
const first = new Client({ url: 'http://127.0.0.1:1', spoolDir });
first.trackEvent({ conversationId, eventName: 'event_a', input: 'kept' });
try {
  await first.close({ timeoutMs: 100 });
} catch (error) {
  if (!(error instanceof TimeoutError)) throw error;
  console.log(error.message); // close: 1 write is left after 100 ms
}

// The next client that opens the directory sends the remaining writes.
const second = new Client({ url: process.env.SLUICE_URL, spoolDir });
const { events } = await second.conversation(conversationId, { waitSeconds: 10 });
console.log(events.map(({ input }) => input));
await second.close();
await rm(spoolDir, { recursive: true });
