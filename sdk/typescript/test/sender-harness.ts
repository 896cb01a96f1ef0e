import assert from 'node:assert/strict';
import type { TestContext } from 'node:test';

import { ApiError } from '../src/errors.js';
import { Queue, Write } from '../src/queue.js';
import { Sender, type Clock, type SenderOptions } from '../src/sender.js';
import { Transport } from '../src/transport.js';
import type { FakeServer } from './server.js';

/** A clock whose time advances only when the sender sleeps. A sleep takes no real time. */
export class FakeClock implements Clock {
  time = 1e6;
  readonly pauses: number[] = [];

  now(): number {
    return this.time;
  }

  start(ms: number, callback: () => void): { cancel: () => void; keepAlive: () => void } {
    this.pauses.push(ms);
    const timer = setImmediate(() => {
      this.time += ms;
      callback();
    });
    return { cancel: () => { clearImmediate(timer); }, keepAlive: () => undefined };
  }
}

/** Starts a sender without a client, so that a test controls its clock and its randomness. */
export function startSender(t: TestContext, server: FakeServer, options: Partial<SenderOptions> = {}, random = 0) {
  const clock = new FakeClock();
  const abort = new AbortController();
  const queue = new Queue(10_000, 64 << 20);
  const transport = new Transport(server.url, undefined, abort.signal);
  const all = {
    batchWritesMax: 500,
    batchBytesMax: 1 << 20,
    batchAgeMaxMs: 100,
    retryForMs: Infinity,
    requestTimeoutMs: 10_000,
    waitAppliedSeconds: 0,
    gzip: false,
    ...options,
  };
  const sender = new Sender(queue, undefined, transport, all, clock, () => random);
  const failures: { id: string; error: ApiError }[] = [];
  sender.onFailure = ({ id }, error) => {
    assert.ok(error instanceof ApiError);
    failures.push({ id, error });
  };
  t.after(async () => {
    abort.abort();
    await sender.stop();
    transport.close();
  });
  return {
    queue,
    failures,
    clock,
    pauses: clock.pauses,
    /** Queues an update with a number, which tells it from other updates of its id. */
    push: (id: string, n = 0): void => {
      queue.push(new Write('update', id, Buffer.from(JSON.stringify({ op: 'update', id, latency: n }) + '\n'), clock.now()));
      sender.poke();
    },
    flush: async (): Promise<void> => {
      await sender.flush().done;
    },
  };
}
