/**
 * Measures the client: the cost of a trackEvent call, and the events per second to a server that discards them. With SLUICE_URL set, it
 * also measures the events per second to that server until all of them are applied.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

import { Client, QueueFullError, type ClientOptions, type NewEvent } from '../src/index.js';

const events = 200_000;
const text = 'The quick brown fox jumps over the lazy dog. '.repeat(10);
const embedding = Float32Array.from({ length: 384 }, (_, i) => Math.sin(i));

const kinds: Record<string, (i: number) => NewEvent> = {
  small: (i) => ({ conversationId: `support-${i % 1000}`, eventName: 'event_a', latency: i % 500 }),
  chat: (i) => ({ ...small(i), conversationMetadata: { plan: 'free' }, input: text, output: [{ role: 'assistant', content: text }] }),
  'embedding of 384': (i) => ({ ...small(i), outputEmbeddings: embedding }),
};

function small(i: number): NewEvent {
  return { conversationId: `support-${i % 1000}`, eventName: 'event_a', latency: i % 500 };
}

function memory(): number {
  globalThis.gc?.();
  const { heapUsed, arrayBuffers } = process.memoryUsage();
  return heapUsed + arrayBuffers;
}

/** Measures the cost of the call alone. Nothing is sent during the measurement. */
async function measureCall(kind: string, event: (i: number) => NewEvent): Promise<void> {
  const count = 50_000;
  let best = Infinity;
  let bytes = 0;
  for (let round = 0; round < 5; round++) {
    const client = new Client({ url: 'http://127.0.0.1:1', queueWritesMax: count, queueBytesMax: 1 << 30, onError: () => undefined });
    const before = memory();
    const start = performance.now();
    for (let i = 0; i < count; i++) {
      client.trackEvent(event(i));
    }
    best = Math.min(best, performance.now() - start);
    bytes = (memory() - before) / count;
    await client.close({ timeoutMs: 0 }).catch(() => undefined);
  }
  const perSecond = Math.round((count / best) * 1000);
  console.log(`trackEvent, ${kind}: ${perSecond} events/s, ${((best / count) * 1000).toFixed(2)} µs, ${Math.round(bytes)} bytes kept each`);
}

/** Measures how many events a second reach the server. */
async function measureSending(name: string, options: ClientOptions, event: (i: number) => NewEvent, applied = false): Promise<void> {
  const client = new Client(options);
  const start = performance.now();
  const cpu = process.cpuUsage();
  let last = '';
  for (let i = 0; i < events; ) {
    try {
      last = client.trackEvent(event(i));
      i++;
    } catch (error) {
      if (!(error instanceof QueueFullError)) {
        throw error;
      }
      await client.ready();
    }
  }
  await client.flush();
  const sent = performance.now() - start;
  const { user, system } = process.cpuUsage(cpu);
  let visible = '';
  if (applied) {
    await client.event(last, { waitSeconds: 30 });
    visible = `, ${Math.round((events / (performance.now() - start)) * 1000)} until all are applied`;
  }
  await client.close();
  const cost = ((user + system) / events).toFixed(2);
  console.log(`${name}: ${Math.round((events / sent) * 1000)} events/s${visible}; ${cost} µs of CPU each`);
}

for (const [kind, event] of Object.entries(kinds)) {
  await measureCall(kind, event);
}

const discard = spawn(process.execPath, [fileURLToPath(new URL('./discard.js', import.meta.url))], { stdio: ['pipe', 'pipe', 'inherit'] });
const [line] = (await once(discard.stdout, 'data')) as [Buffer];
const url = line.toString().trim();
const spoolDir = mkdtempSync(path.join(tmpdir(), 'sluice-bench-'));
for (const [kind, event] of Object.entries(kinds)) {
  await measureSending(`to a server that discards, ${kind}`, { url }, event);
}
await measureSending('the same of chat, with gzip', { url, gzip: true }, kinds.chat ?? small);
await measureSending('the same of chat, with a spool', { url, spoolDir }, kinds.chat ?? small);
rmSync(spoolDir, { recursive: true });
discard.stdin.end();

const server = process.env.SLUICE_URL;
if (server !== undefined) {
  for (const [kind, event] of Object.entries(kinds)) {
    await measureSending(`to ${server}, ${kind}`, { url: server }, event, true);
  }
}
