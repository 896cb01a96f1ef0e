import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import { pauseMs, retryAfterMs } from '../src/retry.js';
import { startSender } from './sender-harness.js';
import { deferred, FakeServer, until, type Item } from './server.js';

const unavailable = { error: { status: 503, code: 'unavailable', detail: 'not acknowledged' } };
const immutable = { error: { status: 422, code: 'immutable', detail: 'never changes', field: 'conversation_id' } };

function ids(n: number): string[] {
  return Array.from({ length: n }, (_, i) => `id-${i}`);
}

describe('a batch is sent', () => {
  test('when its oldest write is 100 ms old', async (t) => {
    const server = await FakeServer.start(t);
    const { push, pauses } = startSender(t, server);
    push('a');
    push('b');
    await until(() => server.received.length === 1);
    assert.deepEqual(pauses, [100]);
    assert.deepEqual(server.batches, [['a', 'b']]);
    assert.equal(server.received[0]?.headers['content-type'], 'application/x-ndjson');
    assert.equal(server.received[0].path, '/events');
  });

  test('when it has batchWritesMax writes', async (t) => {
    const server = await FakeServer.start(t);
    const { push, pauses } = startSender(t, server);
    ids(1200).forEach((id) => { push(id); });
    await until(() => server.items.length === 1200);
    assert.deepEqual(server.batches.map((batch) => batch.length), [500, 500, 200]);
    assert.deepEqual(server.batches.flat(), ids(1200));
    assert.ok(pauses.length <= 1); // only the last 200 writes wait
  });

  test('when it has batchBytesMax bytes', async (t) => {
    const server = await FakeServer.start(t);
    const { push, pauses } = startSender(t, server, { batchBytesMax: 100, batchAgeMaxMs: 1e9 });
    ['a', 'b', 'c'].forEach((id) => { push(id); }); // 37 bytes each
    await until(() => server.items.length === 3);
    assert.deepEqual(server.batches, [['a', 'b'], ['c']]);
    assert.ok((server.received[0]?.body.length ?? 0) <= 100);
    assert.deepEqual(pauses, [1e9]);
  });

  test('on flush; a write larger than batchBytesMax is a batch of its own', async (t) => {
    const server = await FakeServer.start(t);
    const { push, flush, pauses } = startSender(t, server, { batchBytesMax: 10, batchAgeMaxMs: 1e9 });
    ['a', 'b'].forEach((id) => { push(id); });
    await flush();
    assert.deepEqual(server.batches, [['a'], ['b']]);
    assert.deepEqual(pauses, []);
  });

  test('one at a time', async (t) => {
    const gate = deferred();
    const server = await FakeServer.start(t, async () => {
      await gate.promise;
      return undefined;
    });
    const { push, flush } = startSender(t, server, { batchWritesMax: 1 });
    ids(5).forEach((id) => { push(id); });
    await until(() => server.received.length === 1);
    await new Promise(setImmediate);
    assert.equal(server.received.length, 1);
    gate.resolve();
    await flush();
    assert.deepEqual(server.batches, ids(5).map((id) => [id]));
  });
});

describe('order', () => {
  test('a batch has one write of an id, and later writes of the id wait', async (t) => {
    const server = await FakeServer.start(t);
    const { push, flush } = startSender(t, server);
    for (let n = 0; n < 3; n++) {
      push('a', n);
      push('b', n);
    }
    push('c');
    await flush();
    assert.deepEqual(server.batches, [['a', 'b', 'c'], ['a', 'b'], ['a', 'b']]);
    assert.deepEqual(latencies(server.items, 'a'), [0, 1, 2]);
  });

  test('no write overtakes another write of its id, whatever is retried', async (t) => {
    let chance = 1;
    const server = await FakeServer.start(t, ({ items }) => {
      chance = (chance * 48271) % 2147483647;
      switch (chance % 4) {
        case 0:
          return { status: 503, body: '' };
        case 1:
          return { reset: true };
        case 2: // every other write is not acknowledged
          return { status: 207, body: { results: items.map(({ id }, i) => (i % 2 ? { id, receipt: '1.0.1' } : unavailable)) } };
        default:
          return undefined;
      }
    });
    const taken = new Map<string, number[]>();
    const answer = server.answer;
    server.answer = async (received, n) => {
      const reply = await answer(received, n);
      const results = (reply?.body as { results?: object[] } | undefined)?.results;
      received.items.forEach(({ id, latency }, i) => {
        if (reply === undefined || (results?.[i] && 'receipt' in results[i])) {
          taken.set(id, [...(taken.get(id) ?? []), latency as number]);
        }
      });
      return reply;
    };
    const { push, flush, failures } = startSender(t, server, { batchWritesMax: 7 });
    for (let n = 0; n < 200; n++) {
      push(`id-${n % 13}`, n);
    }
    await flush();
    assert.deepEqual(failures, []);
    assert.equal([...taken.values()].flat().length, 200);
    for (const [id, numbers] of taken) {
      assert.deepEqual(numbers, numbers.toSorted((a, b) => a - b), id);
    }
    for (const batch of server.batches) {
      assert.equal(new Set(batch).size, batch.length);
    }
  });

  test('many writes of one id cost no more than their requests', async (t) => {
    const server = await FakeServer.start(t);
    const { push, flush, queue } = startSender(t, server);
    for (let n = 0; n < 1000; n++) {
      push('hot', n);
    }
    push('other');
    assert.equal(queue.readyWrites, 2);
    await flush();
    assert.equal(server.received.length, 1000);
    assert.deepEqual(latencies(server.items, 'hot'), Array.from({ length: 1000 }, (_, n) => n));
  });
});

describe('207', () => {
  test('each item is acknowledged, refused or retried by its own result', async (t) => {
    const server = await FakeServer.start(t, ({ items }, n) => {
      if (n > 1) {
        return undefined;
      }
      const tooMany = { error: { status: 429, code: 'overloaded', detail: 'slow down' } };
      const results = [{ id: 'taken', receipt: '1.0.1' }, immutable, unavailable, tooMany];
      assert.equal(items.length, results.length);
      return { status: 207, body: { results } };
    });
    const { push, flush, failures, pauses } = startSender(t, server, { batchAgeMaxMs: 0 });
    ['taken', 'refused', 'again', 'busy'].forEach((id) => { push(id); });
    await flush();
    assert.deepEqual(server.batches[1], ['again', 'busy']);
    assert.deepEqual(pauses, [50]);
    assert.deepEqual(failures.map(({ id, error }) => [id, error.status, error.code, error.detail, error.field]), [
      ['refused', 422, 'immutable', 'never changes', 'conversation_id'],
    ]);
  });

  test('other writes are sent while some wait for their retry', async (t) => {
    const server = await FakeServer.start(t, ({ items }) => ({
      status: 207,
      body: { results: items.map(({ id }) => (id === 'stuck' && server.received.length < 8 ? unavailable : { id, receipt: '1.0.1' })) },
    }));
    const { push, flush } = startSender(t, server, { batchWritesMax: 2 });
    push('stuck');
    push('stuck', 1);
    ids(6).forEach((id) => { push(id); });
    await flush();
    const order = server.items.map(({ id }) => id);
    assert.ok(order.lastIndexOf('stuck') > order.indexOf('id-5'));
    assert.deepEqual(latencies(server.items, 'stuck').filter((n) => n === 1), [1]);
    assert.equal(server.items.filter(({ id }) => id !== 'stuck').length, 6);
  });
});

describe('pauses', () => {
  test('double from 100 ms to 10 s, with a random factor from 0.5 to 1', async (t) => {
    for (const [random, share] of [[0, 0.5], [1, 1]] as const) {
      const server = await FakeServer.start(t, (_, n) => (n <= 9 ? { status: 500, body: '' } : undefined));
      const { push, flush, pauses } = startSender(t, server, {}, random);
      push('a');
      await flush();
      assert.deepEqual(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000].map((ms) => ms * share));
    }
  });

  test('are at least Retry-After, up to 60 s', async (t) => {
    const after = ['1', '0', '7200', 'soon', undefined];
    const server = await FakeServer.start(t, (_, n) => {
      const value = after[n - 1];
      return n <= after.length ? { status: 503, body: '', ...(value && { headers: { 'Retry-After': value } }) } : undefined;
    });
    const { push, flush, pauses } = startSender(t, server);
    push('a');
    await flush();
    assert.deepEqual(pauses, [1000, 100, 60_000, 400, 800]);
    assert.equal(retryAfterMs({ 'retry-after': new Date(Date.now() + 3600_000).toUTCString() }), 60_000);
    assert.equal(retryAfterMs({ 'retry-after': new Date(0).toUTCString() }), 0);
    assert.equal(pauseMs(100, 0, 1), 10_000);
  });

  test('stop all sending after a whole batch failed, and a flush does not shorten them', async (t) => {
    const gate = deferred();
    const server = await FakeServer.start(t, async (_, n) => {
      await gate.promise;
      return n === 1 ? { status: 429, headers: { 'Retry-After': '5' }, body: '' } : undefined;
    });
    const { push, flush, pauses } = startSender(t, server, { batchWritesMax: 1 });
    push('a');
    await until(() => server.received.length === 1);
    push('b');
    const flushed = flush();
    gate.resolve();
    await flushed;
    assert.deepEqual(pauses, [5000]);
    assert.deepEqual(server.batches, [['a'], ['a'], ['b']]);
  });
});

describe('retried:', () => {
  for (const [name, reply] of Object.entries({
    'a broken connection': { reset: true },
    'a status of 599': { status: 599, body: '' },
    'results for more items': { body: { results: [{ id: 'a', receipt: '1.0.1' }, { id: 'b', receipt: '1.0.2' }] } },
    'results that are none': { body: { results: [{ id: 'a' }] } },
    'a body that is no object': { body: '7' },
  })) {
    test(name, async (t) => {
      const server = await FakeServer.start(t, (_, n) => (n <= 2 ? reply : undefined));
      const { push, flush, failures } = startSender(t, server);
      push('a');
      await flush();
      assert.equal(server.received.length, 3);
      assert.deepEqual(failures, []);
    });
  }

  test('a request that takes too long', async (t) => {
    const server = await FakeServer.start(t, (_, n) => (n === 1 ? new Promise(() => undefined) : undefined));
    const { push, flush, failures } = startSender(t, server, { requestTimeoutMs: 20 });
    push('a');
    await flush();
    assert.equal(server.received.length, 2);
    assert.deepEqual(failures, []);
  });

  test('a write, until it is given up after retryForMs with the last error', async (t) => {
    const server = await FakeServer.start(t, () => ({ status: 503, body: '' }));
    const { push, flush, failures, clock } = startSender(t, server, { retryForMs: 1000, batchAgeMaxMs: 0 }, 1);
    const start = clock.now();
    push('a');
    push('a', 1);
    await flush();
    assert.deepEqual(failures.map(({ id, error }) => [id, error.status]), [['a', 503], ['a', 503]]);
    assert.deepEqual(latencies(server.items, 'a'), [0, 0, 0, 0, 1, 1, 1, 1]); // after 0, 100, 300 and 700 ms
    assert.equal(clock.now() - start, 700 + 800 + 700); // the pause after the fourth try holds the second write back
  });
});

test('bodies of 1 KiB and more are compressed', async (t) => {
  const server = await FakeServer.start(t);
  const { push, flush } = startSender(t, server, { gzip: true });
  push('small');
  await flush();
  ids(100).forEach((id) => { push(id); });
  await flush();
  assert.deepEqual(server.received.map(({ headers }) => headers['content-encoding']), [undefined, 'gzip']);
  assert.equal(server.batches[1]?.length, 100);
});

function latencies(items: Item[], id: string): unknown[] {
  return items.filter((item) => item.id === id).map(({ latency }) => latency);
}
