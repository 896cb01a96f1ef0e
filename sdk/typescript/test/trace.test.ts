import assert from 'node:assert/strict';
import { describe, test, type TestContext } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';

import { Client, ValidationError, type ClientOptions, type Span, type WriteFailure } from '../src/index.js';
import { FakeServer, type Item } from './server.js';

async function open(t: TestContext, options: ClientOptions = {}) {
  const server = await FakeServer.start(t);
  const failures: WriteFailure[] = [];
  const client = new Client({ url: server.url, onError: (failure) => failures.push(failure), ...options });
  const tracked = async (): Promise<Item> => {
    await client.close();
    const [item, ...others] = server.items;
    assert.ok(item);
    assert.deepEqual(others, []);
    return item;
  };
  return { server, client, failures, tracked };
}

describe('trace', () => {
  test('tracks the return value, and returns it', async (t) => {
    const { client, tracked } = await open(t);
    let id = '';
    const before = Date.now();
    const result = client.trace('c1', (span) => {
      id = span.id;
      span.input = 'question';
      return 42;
    });
    assert.equal(result, 42);
    const { latency, ...item } = await tracked();
    assert.deepEqual(item, { id, conversation_id: 'c1', event_name: 'event_a', input: 'question', output: 42 });
    assert.ok(typeof latency === 'number' && latency >= 0 && latency < 1000);
    const millis = parseInt(id.replaceAll('-', '').slice(0, 12), 16);
    assert.ok(millis >= before && millis <= Date.now());
  });

  test('tracks the result of a promise, from the start of the call to its end', async (t) => {
    const { client, tracked } = await open(t, { traceEventName: 'event_b' });
    const promise = Promise.resolve({ text: 'answer' });
    let startedBy = Infinity;
    const result = client.trace('c1', async () => {
      startedBy = Date.now();
      await sleep(20);
      return await promise;
    });
    assert.deepEqual(await result, { text: 'answer' });
    const { id, latency, output, event_name } = await tracked();
    assert.ok((latency as number) >= 19, String(latency));
    assert.ok(parseInt(id.replaceAll('-', '').slice(0, 12), 16) <= startedBy);
    assert.deepEqual(output, { text: 'answer' });
    assert.equal(event_name, 'event_b');
  });

  test('returns the same promise', async (t) => {
    const { client } = await open(t);
    class Special extends Promise<number> {}
    const promise = Special.resolve(1);
    assert.equal(client.trace('c1', () => promise), promise);
    await client.close();
  });

  test('calls then only once', async (t) => {
    const { client, tracked } = await open(t);
    let asked = 0;
    const thenable = {
      then<A>(done: (value: number) => A): Promise<A> {
        asked++;
        return Promise.resolve(7).then(done);
      },
    };
    assert.equal(await client.trace('c1', () => thenable as unknown as PromiseLike<number>), 7);
    assert.equal(asked, 1);
    assert.equal((await tracked()).output, 7);
  });

  for (const [name, fail] of Object.entries({
    throws: (error: unknown) => () => {
      throw error;
    },
    rejects: (error: unknown) => async () => {
      await sleep(1);
      throw error;
    },
  } satisfies Record<string, (error: unknown) => (span: Span) => unknown>)) {
    for (const [error, text] of [
      [new Error('boom'), 'boom'],
      [new TypeError(''), 'TypeError'],
      ['a string', 'a string'],
      ['', 'error'],
      [undefined, 'undefined'],
      [{ code: 7 }, '{ code: 7 }'],
    ] as const) {
      test(`tracks what it ${name}: ${text}`, async (t) => {
        const { client, tracked } = await open(t);
        let thrown: unknown = 'nothing';
        try {
          await client.trace('c1', fail(error));
        } catch (caught) {
          thrown = caught;
        }
        assert.equal(thrown, error);
        const item = await tracked();
        assert.equal(item.error, text);
        assert.equal('output' in item, false);
      });
    }
  }

  test('prefers the fields that are set on the span', async (t) => {
    const { client, tracked } = await open(t);
    const result = client.trace(
      'c1',
      (span) => {
        span.output = null;
        span.error = new Error('soft');
        span.conversationMetadata = { ...span.conversationMetadata, model: 'm' };
        span.inputEmbeddings = [1];
        span.outputEmbeddings = Float32Array.of(2);
        return 'returned';
      },
      { eventName: 'event_c', conversationMetadata: { plan: 'free' } },
    );
    assert.equal(result, 'returned');
    const { id, latency, ...item } = await tracked();
    assert.ok(id && latency !== undefined);
    assert.deepEqual(item, {
      conversation_id: 'c1',
      event_name: 'event_c',
      conversation_metadata: { plan: 'free', model: 'm' },
      error: 'soft',
      output: null,
      input_embeddings: 'AACAPw==',
      output_embeddings: 'AAAAQA==',
    });
  });

  test('never fails the call because its event cannot be queued', async (t) => {
    const { server, client, failures } = await open(t, { queueWritesMax: 1, batchAgeMaxMs: 2 ** 30 });
    client.trackEvent({ conversationId: 'c1', eventName: 'event_a' });
    assert.equal(client.trace('c1', () => 2), 2);
    await client.close();
    assert.equal(server.items.length, 1);
    assert.deepEqual(failures.map(({ op, code, field }) => [op, code, field]), [
      ['create', 'queue_full', undefined],
    ]);
  });

  test('refuses an invalid conversation before the call', async (t) => {
    const { client } = await open(t);
    let called = false;
    assert.throws(() => client.trace('', () => (called = true)), ValidationError);
    assert.equal(called, false);
    await client.close();
  });
});
