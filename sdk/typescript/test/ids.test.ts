import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { describe, test } from 'node:test';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { Worker } from 'node:worker_threads';

import { firstCount } from '../src/ids.js';
import { Client } from '../src/index.js';
import { FakeServer } from './server.js';

const dist = (form: 'esm' | 'cjs') => fileURLToPath(new URL(`../../dist/${form}/ids.js`, import.meta.url));

function ascending(ids: string[]): boolean {
  return ids.every((id, i) => i === 0 || (ids[i - 1] ?? '') < id);
}

describe('ids', () => {
  for (const [name, timestamp] of [['without timestamps', undefined], ['with equal timestamps', 1767323045678]] as const) {
    test(`ascend as events are tracked, ${name}`, async (t) => {
      const server = await FakeServer.start(t);
      const clients = [0, 1].map(() => new Client({ url: server.url }));
      const clock = t.mock.method(Date, 'now', () => 1767323045678); // the clock stands still
      const ids = Array.from({ length: 3000 }, (_, i) => {
        const conversationId = timestamp === undefined ? `c${i % 3}` : 'c1';
        return clients[i % 2]?.trackEvent({ conversationId, eventName: 'event_a', timestamp }) ?? '';
      });
      clock.mock.restore();
      assert.ok(ascending(ids));
      await Promise.all(clients.map((client) => client.close()));
    });
  }

  test('ascend as calls are traced, one in another', async (t) => {
    const server = await FakeServer.start(t);
    const client = new Client({ url: server.url });
    const ids: string[] = [];
    const trace = (): void => {
      client.trace('c1', (span) => {
        ids.push(span.id);
        if (ids.length < 20) {
          trace();
        }
      });
    };
    trace();
    assert.ok(ascending(ids));
    await client.close();
  });

  test('keep their order in the repeated hour at the end of summer time', async (t) => {
    const server = await FakeServer.start(t);
    const client = new Client({ url: server.url });
    const ids = ['2025-10-26T02:30:00+02:00', '2025-10-26T02:30:00+01:00'].map(
      (timestamp) => client.trackEvent({ conversationId: 'c1', eventName: 'event_a', timestamp }),
    );
    assert.ok(ascending(ids));
    await client.close();
  });

  test('are counted from a random number below 2^37', () => {
    const counts = Array.from({ length: 64 }, firstCount);
    assert.equal(new Set(counts).size, 64); // fails by chance once in 10^7 runs
    assert.ok(counts.every((count) => Number.isInteger(count) && count >= 0 && count < 2 ** 37));
    assert.equal(counts.reduce((bits, count) => bits | BigInt(count), 0n), 2n ** 37n - 1n);
  });

  test('are counted once for both forms of the package', () => {
    const program = `
      import { createRequire } from 'node:module';
      import { mintId } from ${JSON.stringify(pathToFileURL(dist('esm')).href)};
      const { mintId: mintRequired } = createRequire(import.meta.url)(${JSON.stringify(dist('cjs'))});
      console.log(JSON.stringify([mintId(1767323045678901, 1), mintRequired(1767323045678901, 1), mintId(1767323045678901, 1)]));
    `;
    const ids = JSON.parse(execFileSync(process.execPath, ['--input-type=module', '-e', program], { encoding: 'utf8' })) as string[];
    assert.equal(ids.length, 3);
    assert.ok(ascending(ids));
    assert.equal(parseInt(ids[2]?.slice(-8) ?? '', 16), (parseInt(ids[0]?.slice(-8) ?? '', 16) + 2) % 2 ** 32);
  });

  test('of workers differ, and ascend in each', async () => {
    const program = `
      const { parentPort } = require('node:worker_threads');
      const { mintId } = require(${JSON.stringify(dist('cjs'))});
      parentPort.postMessage(Array.from({ length: 1000 }, () => mintId(1767323045678901, 1)));
    `;
    const workers = await Promise.all(Array.from({ length: 4 }, () => new Promise<string[]>((resolve, reject) => {
      new Worker(program, { eval: true }).on('message', resolve).on('error', reject);
    })));
    assert.ok(workers.every(ascending));
    assert.equal(new Set(workers.flat()).size, 4000); // fails by chance once in 10^7 runs
  });
});
