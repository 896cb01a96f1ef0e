import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import http from 'node:http';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { describe, test, type TestContext } from 'node:test';
import { promisify } from 'node:util';

import {
  ApiError,
  Client,
  ClosedError,
  NetworkError,
  QueueFullError,
  SluiceError,
  TimeoutError,
  ValidationError,
  type ClientOptions,
  type NewEvent,
  type WriteFailure,
} from '../src/index.js';
import { deferred, FakeServer, until, type Answer } from './server.js';

const event: NewEvent = { conversationId: 'c1', eventName: 'event_a' };
const never: Answer = () => new Promise(() => undefined);

async function open(t: TestContext, options: ClientOptions = {}, answer?: Answer) {
  const server = await FakeServer.start(t, answer);
  const failures: WriteFailure[] = [];
  const client = new Client({ url: server.url, onError: (failure) => failures.push(failure), ...options });
  t.after(() => client.close({ timeoutMs: 0 }).catch(() => undefined));
  return { server, client, failures };
}

describe('writes', () => {
  test('have the API key, and keep the path of the url', async (t) => {
    const { server, client } = await open(t);
    const other = new Client({ url: `${server.url}/sluice/`, apiKey: 'secret' });
    client.trackEvent(event);
    await client.close();
    other.trackEvent(event);
    await other.close();
    assert.deepEqual(server.received.map(({ path, headers }) => [path, headers.authorization]), [
      ['/events', undefined],
      ['/sluice/events', 'Bearer secret'],
    ]);
    const { version } = createRequire(import.meta.url)('../../package.json') as { version: string };
    assert.equal(server.received[0]?.headers['user-agent'], `sluice-typescript/${version}`);
  });

  test('on one kept connection leave no listeners on it', async (t) => {
    const warnings: string[] = [];
    const warn = ({ name }: Error) => warnings.push(name);
    process.on('warning', warn);
    t.after(() => process.off('warning', warn));
    const { server, client } = await open(t);
    for (let i = 0; i < 30; i++) {
      client.trackEvent(event);
      await client.flush();
    }
    assert.equal(server.received.length, 30);
    assert.deepEqual(warnings, []);
  });

  test('are sent when their batch is old enough, without a flush', async (t) => {
    const { server, client } = await open(t, { batchAgeMaxMs: 5 });
    const ids = [client.trackEvent(event), client.trackEvent(event)];
    await until(() => server.received.length === 1);
    assert.deepEqual(server.batches, [ids]);
  });

  test('in one millisecond have ids in the order of the calls', async (t) => {
    const { client } = await open(t);
    const ids = Array.from({ length: 200 }, () => client.trackEvent(event));
    assert.deepEqual(ids.map((id) => id.slice(0, 18)), ids.map((id) => id.slice(0, 18)).toSorted());
  });

  test('accept every kind of timestamp', async (t) => {
    const { server, client } = await open(t);
    const times = [new Date(1767323045678), 1767323045678, 1767323045678.901, '2026-01-02t04:04:05.678901234+01:00', '2026-01-02T03:04:05Z'];
    times.forEach((timestamp, i) => client.trackEvent({ ...event, id: `own-${i}`, timestamp }));
    const minted = times.map((timestamp) => client.trackEvent({ ...event, timestamp }));
    await client.close();
    assert.deepEqual(server.items.slice(0, 5).map(({ timestamp }) => timestamp), [
      '2026-01-02T03:04:05.678Z',
      '2026-01-02T03:04:05.678Z',
      '2026-01-02T03:04:05.678901Z',
      '2026-01-02t04:04:05.678901234+01:00',
      '2026-01-02T03:04:05Z',
    ]);
    assert.deepEqual(minted.map((id) => id.slice(0, 18)), [
      '019b7ca9-8f2e-8000',
      '019b7ca9-8f2e-8000',
      '019b7ca9-8f2e-8385',
      '019b7ca9-8f2e-8385',
      '019b7ca9-8c88-8000',
    ]);
  });

  test('encode embeddings as float32 from every kind of array', async (t) => {
    const { server, client } = await open(t);
    for (const inputEmbeddings of [[1, 2], Float32Array.of(0, 1, 2).subarray(1), Float64Array.of(1, 2)]) {
      client.updateEvent('x', { inputEmbeddings });
    }
    await client.close();
    assert.deepEqual(server.items.map((item) => item.input_embeddings), ['AACAPwAAAEA=', 'AACAPwAAAEA=', 'AACAPwAAAEA=']);
  });

  test('keep an undefined field and clear a null field', async (t) => {
    const { server, client } = await open(t);
    client.updateEvent('x', { error: undefined, output: null });
    await client.close();
    assert.deepEqual(server.items, [{ op: 'update', id: 'x', output: null }]);
  });

  test('patch single keys of the metadata', async (t) => {
    const { server, client } = await open(t);
    client.patchEvent('x', { conversationMetadata: { score: 0.5, old: null }, latency: 1 });
    assert.throws(() => { client.patchEvent('x', {}); }, ValidationError);
    await client.close();
    assert.deepEqual(server.items, [{ op: 'patch', id: 'x', conversation_metadata: { score: 0.5, old: null }, latency: 1 }]);
  });

  for (const [name, fields, field] of [
    ['an unknown field', { conversation_id: 'c1' }, 'conversation_id'],
    ['metadata that is an array', { conversationMetadata: [] }, 'conversation_metadata'],
    ['a latency that is not finite', { latency: NaN }, 'latency'],
    ['a latency that is a string', { latency: '1' }, 'latency'],
    ['an embedding of strings', { inputEmbeddings: [1, '2'] }, 'input_embeddings[1]'],
    ['an embedding that is a string', { inputEmbeddings: 'AACAPw==' }, 'input_embeddings'],
    ['half a surrogate pair', { conversationId: '\ud800' }, 'conversation_id'],
    ['a day that is not', { timestamp: '2026-02-29T00:00:00Z' }, 'timestamp'],
    ['a time that is none', { timestamp: new Date(NaN) }, 'timestamp'],
    ['a time in words', { timestamp: 'yesterday' }, 'timestamp'],
    ['an event name that is null', { eventName: null }, 'event_name'],
    ['an id that is a number', { id: 7 }, 'id'],
  ] as const) {
    test(`refuse ${name}`, async (t) => {
      const { server, client } = await open(t);
      const bad = { ...event, ...fields } as NewEvent;
      assert.throws(() => client.trackEvent(bad), (error) => error instanceof ValidationError && error.field === field);
      await client.close();
      assert.equal(server.received.length, 0);
    });
  }

  test('accept a write of exactly 1 MiB', async (t) => {
    const { server, client } = await open(t, { strict: true });
    const rest = JSON.stringify({ op: 'update', id: 'x', input: '' }).length;
    client.updateEvent('x', { input: 'x'.repeat((1 << 20) - rest) });
    assert.throws(() => { client.updateEvent('x', { input: 'x'.repeat((1 << 20) - rest + 1) }); }, ValidationError);
    await client.close();
    assert.equal(server.items.length, 1);
  });
});

describe('options', () => {
  for (const [name, options] of Object.entries({
    url: { url: 'localhost:8080' },
    apiKey: { apiKey: 'a\nb' },
    batchWritesMax: { batchWritesMax: 0 },
    queueBytesMax: { queueBytesMax: NaN },
    retryForMs: { retryForMs: 0 },
    waitAppliedSeconds: { waitAppliedSeconds: 31 },
  })) {
    test(`${name} is checked`, () => {
      assert.throws(() => new Client(options), (error) => error instanceof ValidationError && error.field === name);
    });
  }
});

describe('failures', () => {
  test('go to onError, once for each write', async (t) => {
    const error = { status: 422, detail: 'no', code: 'invalid_value', field: 'input' };
    const { client, failures } = await open(t, {}, ({ items }) => ({ status: 422, body: { results: items.map(() => ({ error })) } }));
    const id = client.trackEvent(event);
    client.updateEvent('b', { latency: 1 });
    client.deleteEvent('c');
    await client.flush();
    assert.deepEqual(failures.map(({ op, id, status, code, detail, field }) => [op, id, status, code, detail, field]), [
      ['create', id, 422, 'invalid_value', 'no', 'input'],
      ['update', 'b', 422, 'invalid_value', 'no', 'input'],
      ['delete', 'c', 422, 'invalid_value', 'no', 'input'],
    ]);
    assert.ok(failures[0]?.error instanceof ApiError);
  });

  test('to connect are given up after retryForMs', async (t) => {
    const { client, failures } = await open(t, { url: 'http://127.0.0.1:1', retryForMs: 1, batchAgeMaxMs: 0 });
    const id = client.trackEvent(event);
    await client.flush();
    assert.deepEqual(failures.map(({ op, id, status, code }) => [op, id, status, code]), [['create', id, undefined, 'network']]);
    assert.match(failures[0]?.detail ?? '', /ECONNREFUSED/);
  });

  test('are logged as warnings without contents if there is no onError', async (t) => {
    const warn = t.mock.method(console, 'warn', () => undefined);
    const error = { status: 422, detail: 'secret is not acceptable', code: 'invalid_value', field: 'input' };
    const { client } = await open(t, { onError: undefined }, () => ({ status: 207, body: { results: [{ error }] } }));
    const id = client.trackEvent({ ...event, input: 'secret' });
    await client.close();
    assert.deepEqual(warn.mock.calls.map((call) => call.arguments), [[`sluice: the create of ${id} failed: 422 invalid_value input`]]);
  });

  test('do not stop the sender if onError throws', async (t) => {
    const log = t.mock.method(console, 'error', () => undefined);
    const onError = () => {
      throw new Error('mine');
    };
    const { server, client } = await open(t, { onError }, (_, n) => (n === 1 ? { status: 413, body: '' } : undefined));
    client.trackEvent(event);
    await client.flush();
    client.trackEvent(event);
    await client.close();
    assert.equal(server.received.length, 2);
    assert.equal(log.mock.callCount(), 1);
  });

  test('do not include held writes, which stay in the spool and are logged once without contents', async (t) => {
    const log = t.mock.method(console, 'error', () => undefined);
    const problem = { type: 'urn:sluice:problem:unauthorized', status: 401, detail: 'secret', code: 'unauthorized' };
    const headers = { 'Content-Type': 'application/problem+json' };
    const spoolDir = mkdtempSync(path.join(tmpdir(), 'sluice-spool-'));
    t.after(() => { rmSync(spoolDir, { recursive: true, force: true }); });
    const { server, client, failures } = await open(t, { spoolDir }, (_, n) => (n <= 4 ? { status: 401, headers, body: problem } : undefined));
    const id = client.trackEvent(event);
    await until(() => server.received.length === 3);
    await assert.rejects(client.close({ timeoutMs: 0 }), (error) => error instanceof TimeoutError && (error.cause as ApiError).status === 401);
    assert.deepEqual(failures, []);
    const messages = log.mock.calls.map((call) => String(call.arguments[0]));
    assert.equal(messages.length, 1);
    assert.match(messages[0] ?? '', /held.*401 unauthorized$/);
    const next = new Client({ url: server.url, spoolDir });
    await next.close();
    assert.equal(server.items.at(-1)?.id, id);
  });
});

describe('the queue', () => {
  test('refuses writes above queueWritesMax, and is ready when it has room', async (t) => {
    const gate = deferred();
    const { server, client } = await open(t, { queueWritesMax: 3, batchAgeMaxMs: 0 }, async () => {
      await gate.promise;
      return undefined;
    });
    for (let i = 0; i < 3; i++) {
      await client.ready();
      client.trackEvent(event);
    }
    assert.throws(() => client.trackEvent(event), QueueFullError);
    assert.throws(() => { client.updateEvent('x', { latency: 1 }); }, QueueFullError);
    assert.throws(() => { client.deleteEvent('x'); }, QueueFullError);
    let ready = false;
    const waits = client.ready().then(() => (ready = true));
    await until(() => server.received.length > 0); // writes under way still count against the bounds
    assert.equal(ready, false);
    gate.resolve();
    await waits;
    client.trackEvent(event);
    await client.close();
    assert.equal(server.items.length, 4);
  });

  test('refuses writes above queueBytesMax, and is ready when the refused write fits', async (t) => {
    const gates = [deferred(), deferred()];
    const { server, client } = await open(t, { queueBytesMax: 300, batchWritesMax: 1, batchAgeMaxMs: 0 }, async (_, n) => {
      await gates[n - 1]?.promise;
      return undefined;
    });
    const large = { input: 'x'.repeat(200) };
    client.updateEvent('a', { input: 'x'.repeat(80) });
    client.updateEvent('b', { input: 'x'.repeat(80) });
    assert.throws(() => { client.updateEvent('c', large); }, QueueFullError);
    let ready = false;
    const waits = client.ready().then(() => (ready = true));
    gates[0]?.resolve();
    await until(() => server.received.length === 2);
    assert.equal(ready, false, 'there is room for a small one only');
    gates[1]?.resolve();
    await waits;
    client.updateEvent('c', large);
    assert.throws(() => { client.updateEvent('d', { input: 'x'.repeat(300) }); }, ValidationError, 'it never has room');
    await client.close();
  });

  test('takes the writes of many callers that wait for room', async (t) => {
    const { server, client } = await open(t, { queueWritesMax: 10, batchWritesMax: 4, batchAgeMaxMs: 0 });
    const write = async () => {
      for (;;) {
        try {
          return client.trackEvent(event);
        } catch (error) {
          assert.ok(error instanceof QueueFullError);
          await client.ready();
        }
      }
    };
    const ids = await Promise.all(Array.from({ length: 100 }, write));
    await client.close();
    assert.deepEqual(server.items.map(({ id }) => id).toSorted(), ids.toSorted());
  });
});

describe('flush', () => {
  test('returns at once if nothing is queued, even without a server', async () => {
    const client = new Client({ url: 'http://127.0.0.1:1' });
    await client.flush();
    await client.close();
  });

  test('waits for the writes queued before the call, not for later ones', async (t) => {
    const gate = deferred();
    const { server, client } = await open(t, { batchWritesMax: 1, batchAgeMaxMs: 0 }, async (_, n) => {
      await (n === 2 ? gate.promise : undefined);
      return undefined;
    });
    client.trackEvent(event);
    const flushed = client.flush();
    client.trackEvent(event);
    await flushed;
    await until(() => server.received.length === 2);
    gate.resolve();
    await client.flush();
  });

  test('does not wait for batchAgeMaxMs', async (t) => {
    const { client } = await open(t, { batchAgeMaxMs: 2 ** 30 });
    client.trackEvent(event);
    await client.flush();
    client.trackEvent(event);
    await client.close();
  });

  test('fails after its timeout with the last error, and the writes stay queued', async (t) => {
    let healthy = false;
    const { server, client } = await open(t, {}, () => (healthy ? undefined : { status: 503, body: '' }));
    client.trackEvent(event);
    client.trackEvent(event);
    await assert.rejects(client.flush({ timeoutMs: 300 }), (error) => {
      assert.ok(error instanceof TimeoutError);
      assert.equal(error.message, 'flush: 2 writes are left after 300 ms');
      assert.equal((error.cause as ApiError).status, 503);
      return true;
    });
    healthy = true;
    await client.flush({ timeoutMs: 20_000 });
    assert.equal(server.batches.at(-1)?.length, 2);
  });
});

describe('close', () => {
  test('flushes, and calls after it fail', async (t) => {
    const { server, client } = await open(t, { batchAgeMaxMs: 2 ** 30 });
    client.trackEvent(event);
    const closed = client.close();
    assert.throws(() => client.trackEvent(event), ClosedError);
    await assert.rejects(client.event('x'), ClosedError);
    await closed;
    assert.equal(server.items.length, 1);
    assert.throws(() => { client.updateEvent('x', { latency: 1 }); }, ClosedError);
    assert.throws(() => { client.deleteEvent('x'); }, ClosedError);
    assert.throws(() => { client.trace('c', () => undefined); }, ClosedError);
    for (const call of [client.flush(), client.ready(), client.event('x'), client.errors(), client.conversationEvents('c').next()]) {
      await assert.rejects(call, ClosedError);
    }
    await client.close(); // a second close waits for the first
  });

  test('fails after its timeout, and says how many writes are left', async (t) => {
    const { client } = await open(t, {}, never);
    client.trackEvent(event);
    client.trackEvent(event);
    const flushed = assert.rejects(client.flush(), ClosedError);
    const read = assert.rejects(client.event('x'), ClosedError);
    await assert.rejects(client.close({ timeoutMs: 20 }), (error) => error instanceof TimeoutError && error.message.startsWith("close: 2 writes are left"));
    await flushed;
    await read;
  });

  test('wakes callers that wait for room', async (t) => {
    const { client } = await open(t, { queueWritesMax: 1 }, never);
    client.trackEvent(event);
    const ready = assert.rejects(client.ready(), ClosedError);
    await assert.rejects(client.close({ timeoutMs: 1 }), TimeoutError);
    await ready;
  });

  test('is called by await using', async (t) => {
    const server = await FakeServer.start(t);
    {
      await using client = new Client({ url: server.url });
      client.trackEvent(event);
    }
    assert.equal(server.items.length, 1);
  });
});

describe('a program', () => {
  async function run(source: string, url: string) {
    const index = new URL('../src/index.js', import.meta.url).href;
    const script = `import { Client } from '${index}'; const client = new Client({ url: '${url}' });
      const event = { conversationId: 'c1', eventName: 'event_a' }; ${source}`;
    return await promisify(execFile)(process.execPath, ['--input-type=module', '-e', script], { timeout: 20_000 });
  }

  test('without close ends, and warns of lost writes', async (t) => {
    const server = await FakeServer.start(t, never);
    const { stderr } = await run('client.trackEvent(event)', server.url);
    assert.equal(stderr, 'sluice: 1 write is lost, because the process ends without client.close()\n');
  });

  test('without close ends silently if nothing is lost', async (t) => {
    const server = await FakeServer.start(t);
    const { stderr } = await run('client.trackEvent(event); await client.flush();', server.url);
    assert.equal(stderr, '');
  });

  test('lives until its flush, close or ready has ended', async (t) => {
    const server = await FakeServer.start(t, (_, n) => (n % 2 ? { status: 503, body: '' } : undefined));
    const source = `client.trackEvent(event); await client.flush(); for (let i = 0; i < 10000; i++) client.trackEvent(event);
      await client.ready(); await client.close(); console.log('done')`;
    assert.equal((await run(source, server.url)).stdout, 'done\n');
    assert.equal(new Set(server.items.map(({ id }) => id)).size, 10_001);
  });
});

describe('reads', () => {
  const stored = {
    id: '.',
    conversation_id: 'c1',
    conversation_metadata: { plan_b: 1 },
    event_name: 'event_a',
    timestamp: '2026-01-02T03:04:05.678901Z',
    error: null,
    latency: 1.5,
    input: 'Hi',
    output: [{ a_b: 1 }],
  };
  const read = {
    id: '.',
    conversationId: 'c1',
    conversationMetadata: { plan_b: 1 },
    eventName: 'event_a',
    timestamp: '2026-01-02T03:04:05.678901Z',
    error: null,
    latency: 1.5,
    input: 'Hi',
    output: [{ a_b: 1 }],
  };
  const problem = { type: 'x', title: 'x', status: 404, detail: 'names no event', code: 'unknown_event', field: 'id' };

  test('an event by an id that needs escaping', async (t) => {
    const body = { ...stored, input_embeddings: [1, 2], output_embeddings: null };
    const { server, client } = await open(t, { apiKey: 'k' }, () => ({ status: 200, body }));
    assert.deepEqual(await client.event('a?b&c %'), { ...read, inputEmbeddings: [1, 2], outputEmbeddings: null });
    assert.equal(server.received[0]?.path, '/event/a%3Fb%26c%20%25');
    assert.equal(server.received[0].headers.authorization, 'Bearer k');
    assert.equal(server.received[0].headers.prefer, undefined);
  });

  test('send ids as a parameter if a path would change them', async () => {
    // A URL parser would resolve the path, so this server looks at the bytes.
    const paths: (string | undefined)[] = [];
    const server = http.createServer(({ url }, response) => {
      paths.push(url);
      response.end(JSON.stringify({ ...stored, events: [], next_cursor: null }));
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const client = new Client({ url: `http://127.0.0.1:${(server.address() as { port: number }).port}` });
    await client.event('.');
    await client.event('..');
    await client.event('a/b &');
    await client.conversation('..', { limit: 5 });
    await client.close();
    server.close();
    assert.deepEqual(paths, ['/event?id=.', '/event?id=..', '/event?id=a%2Fb+%26', '/conversation/events?id=..&limit=5']);
  });

  test('fail with the status, code and detail of the server', async (t) => {
    const { client } = await open(t, {}, () => ({ status: 404, body: problem }));
    await assert.rejects(client.event('x'), (error) => {
      assert.ok(error instanceof ApiError && error instanceof SluiceError);
      assert.deepEqual([error.status, error.code, error.detail, error.field], [404, 'unknown_event', 'names no event', 'id']);
      return true;
    });
  });

  test('are retried', async (t) => {
    const replies = [{ status: 503, body: '' }, { reset: true }, { status: 200, body: '{"id":' }];
    const { server, client } = await open(t, {}, (_, n) => replies[n - 1] ?? { status: 200, body: stored });
    assert.deepEqual(await client.event('x'), read);
    assert.equal(server.received.length, 4);
  });

  test('are not retried if the wait timed out', async (t) => {
    const body = '{"status":503,"code":"not_yet_applied","detail":"not yet"}';
    const { server, client } = await open(t, {}, () => ({ status: 503, body }));
    await assert.rejects(client.event('x', { waitSeconds: 1 }), (error) => error instanceof ApiError && error.code === 'not_yet_applied');
    assert.equal(server.received.length, 1);
  });

  test('are not retried if the pause would end after 30 s', async (t) => {
    const { server, client } = await open(t, {}, () => ({ status: 503, headers: { 'Retry-After': '31' }, body: '' }));
    await assert.rejects(client.event('x'), (error) => error instanceof ApiError && error.status === 503);
    assert.equal(server.received.length, 1);
  });

  test('fail with a NetworkError or TimeoutError if the server does not answer', async (t) => {
    const { client } = await open(t, { requestTimeoutMs: 10 }, never);
    const clock = t.mock.method(performance, 'now');
    const start = performance.now();
    let calls = 0;
    clock.mock.mockImplementation(() => start + (calls++ > 2 ? 30_000 : 0)); // all but the first try is too late
    await assert.rejects(client.event('x'), TimeoutError);
    calls = 0;
    const other = new Client({ url: 'http://127.0.0.1:1' });
    await assert.rejects(other.event('x'), NetworkError);
  });

  test('with waitSeconds flush, then wait for the last receipt of each partition', async (t) => {
    const receipts = ['1.0.7', '1.3.1', '1.0.12', '2.3.0', '1.0.9'];
    const { server, client } = await open(t, { batchAgeMaxMs: 2 ** 30 }, ({ method, items }) => {
      return method === 'GET' ? { status: 200, body: stored } : { body: { results: items.map(({ id }, i) => ({ id, receipt: receipts[i] })) } };
    });
    receipts.forEach((_, i) => client.trackEvent({ ...event, id: `e${i}` }));
    await client.event('e0', { waitSeconds: 7 });
    const [write, get] = server.received;
    assert.equal(write?.method, 'POST');
    assert.deepEqual(get?.query.getAll('after'), ['1.0.12', '2.3.0']);
    assert.equal(get.headers.prefer, 'wait=7');
    for (const waitSeconds of [-1, 0.5, 31, NaN]) {
      await assert.rejects(client.event('e0', { waitSeconds }), ValidationError);
    }
  });

  test('with waitSeconds fail if the writes cannot be flushed in time', async (t) => {
    const { client } = await open(t, {}, never);
    client.trackEvent(event);
    await assert.rejects(client.event('e0', { waitSeconds: 1 }), TimeoutError);
  });

  test('a page of a conversation, or all of it', async (t) => {
    const pages: Record<string, object> = {
      '': { events: [{ ...stored, id: 'a' }, { ...stored, id: 'b' }], next_cursor: 'p2' },
      p2: { events: [], next_cursor: 'p3' },
      p3: { events: [{ ...stored, id: 'c' }], next_cursor: null },
    };
    const { server, client } = await open(t, {}, ({ query }) => ({ status: 200, body: pages[query.get('cursor') ?? ''] }) as object);
    assert.deepEqual(await client.conversation('c 1', { limit: 2, embeddings: true }), {
      events: [{ ...read, id: 'a' }, { ...read, id: 'b' }],
      nextCursor: 'p2',
    });
    assert.equal(server.received[0]?.path, '/conversations/c%201/events');
    assert.equal(server.received[0].query.toString(), 'limit=2&embeddings=true');
    const ids: string[] = [];
    for await (const { id } of client.conversationEvents('c 1', { limit: 2, waitSeconds: 1 })) {
      ids.push(id);
    }
    assert.deepEqual(ids, ['a', 'b', 'c']);
    assert.deepEqual(server.received.slice(1).map(({ headers, query }) => [headers.prefer, query.toString()]), [
      ['wait=1', 'limit=2'],
      [undefined, 'limit=2&cursor=p2'],
      [undefined, 'limit=2&cursor=p3'],
    ]);
    await assert.rejects(client.conversation(''), ValidationError);
  });

  test('analytics', async (t) => {
    const counts = { events: 4, errors: 1, error_rate: 0.25 };
    const bodies: Record<string, object> = {
      errors: { event_name: null, ...counts, since: 's', until: 'u' },
      latency: { rows: [{ conversation_id: 'c1', event_name: null, events: 4, quantiles: { '0.5': 1, '0.95': null } }] },
      conversations: { rows: [{ conversation_id: 'c1', ...counts, first: 'f', last: 'l' }] },
      timeseries: { rows: [{ time: 't', ...counts, quantiles: { '0.95': 2 } }] },
    };
    const { server, client } = await open(t, {}, ({ path }) => ({ status: 200, body: bodies[path.replace('/analytics/', '')] }) as object);
    const filter = { since: new Date(1767323045678), until: '1h', conversationId: 'c 1', eventName: 'event_a', metadata: { plan: 'free', n: 1 } };
    assert.deepEqual(await client.errors(filter), { eventName: null, events: 4, errors: 1, errorRate: 0.25, since: 's', until: 'u' });
    assert.deepEqual(await client.latency({ q: [0.5, 0.95], groupBy: ['conversation'], limit: 3 }), [
      { conversationId: 'c1', eventName: null, events: 4, quantiles: { '0.5': 1, '0.95': null } },
    ]);
    assert.deepEqual(await client.conversations({ orderBy: 'errors', minEvents: 2, limit: 3 }), [
      { conversationId: 'c1', events: 4, errors: 1, errorRate: 0.25, first: 'f', last: 'l' },
    ]);
    assert.deepEqual(await client.timeSeries({ interval: '5m', q: [0.95], since: 1767323045678.901 }), [
      { time: 't', events: 4, errors: 1, errorRate: 0.25, quantiles: { '0.95': 2 } },
    ]);
    assert.deepEqual(server.received.map(({ query }) => decodeURIComponent(query.toString())), [
      'since=2026-01-02T03:04:05.678Z&until=1h&conversation_id=c+1&event_name=event_a&metadata.plan=free&metadata.n=1',
      'q=0.5&q=0.95&group_by=conversation&limit=3',
      'order_by=errors&min_events=2&limit=3',
      'since=2026-01-02T03:04:05.678901Z&q=0.95&interval=5m',
    ]);
  });
});
