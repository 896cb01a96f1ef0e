import assert from 'node:assert/strict';
import { once } from 'node:events';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import { describe, test, type TestContext } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';

import { ApiError, Client, ClosedError, NetworkError, TimeoutError, ValidationError, type ClientOptions } from '../src/index.js';
import { FakeServer, type Answer } from './server.js';

async function open(t: TestContext, answer: Answer, options: ClientOptions = {}) {
  const server = await FakeServer.start(t, answer);
  const client = new Client({ url: server.url, ...options });
  t.after(() => client.close({ timeoutMs: 0 }).catch(() => undefined));
  return { server, client };
}

const stored = '{"id":"a","conversation_id":"c1","conversation_metadata":null,"event_name":"e","timestamp":"t","error":null,"latency":1,"input":[9007199254740993],"output":null}';

describe('search', () => {
  const result = `{"event":${stored},"score":0.5,"highlights":[{"field":"input","fragments":[{"text":"say ","match":false},{"text":"hi","match":true}]}]}`;

  test('iterates over all pages', async (t) => {
    const { server, client } = await open(t, ({ body }) => ({
      status: 200,
      body: `{"results":[${result}],"next_cursor":${String(body).includes('p2') ? 'null' : '"p2"'}}`,
    }), { bigIntegers: true });
    const seen = [];
    for await (const found of client.searchAll({ text: 'hi', limit: 1, raw: true, waitSeconds: 3 })) {
      seen.push(found);
    }
    assert.equal(seen.length, 2);
    for (const { event, score, highlights } of seen) {
      assert.equal(event.conversationId, 'c1');
      assert.deepEqual(event.input, [9007199254740993n]);
      assert.equal(event.raw?.input?.json, '[9007199254740993]');
      assert.equal(score, 0.5);
      assert.deepEqual(highlights, [{ field: 'input', fragments: [{ text: 'say ', match: false }, { text: 'hi', match: true }] }]);
    }
    assert.deepEqual(server.received.map(({ method, path, headers, body }) => [method, path, headers.prefer, String(body)]), [
      ['POST', '/search', 'wait=3', '{"text":"hi","limit":1}'],
      ['POST', '/search', undefined, '{"text":"hi","limit":1,"cursor":"p2"}'],
    ]);
  });

  test('refuses a vector that cannot be sent', async (t) => {
    const { server, client } = await open(t, () => ({}));
    for (const [field, vector] of [['vector', []], ['vector', new Float32Array(4097)], ['vector[1]', [1, 1e39]], ['vector[0]', [NaN]]] as const) {
      await assert.rejects(client.search({ vector }), (error) => error instanceof ValidationError && error.field === field);
    }
    assert.equal(server.received.length, 0);
  });
});

test('insights keep the digits of integers with bigIntegers', async (t) => {
  const body = '{"rows":[{"time":"2026-01-02T00:00:00Z","conversation_id":"c","event_name":"e","metadata.n":9007199254740993,"metadata.a b":null,' +
    '"events":3,"sum(metadata.n)":36893488147419103231,"avg(latency)":null}],"truncated":true}';
  const exact = await open(t, () => ({ status: 200, body }), { bigIntegers: true });
  const { rows, truncated } = await exact.client.insights({ measures: ['events', 'sum(metadata.n)', 'avg(latency)'] });
  assert.equal(truncated, true);
  assert.deepEqual(rows, [{
    time: '2026-01-02T00:00:00Z',
    conversationId: 'c',
    eventName: 'e',
    metadata: { n: 9007199254740993n, 'a b': null },
    measures: { events: 3, 'sum(metadata.n)': 36893488147419103231n, 'avg(latency)': null },
  }]);
  const rounded = await open(t, () => ({ status: 200, body }));
  const [row] = (await rounded.client.insights({ measures: ['events'] })).rows;
  assert.equal(row?.measures['sum(metadata.n)'], 36893488147419103000);
});

test('a funnel and a retention', async (t) => {
  const step = { event_name: 'a', subjects: 2, conversion: 1, conversion_from_previous: 1, median_ms_from_previous: null };
  const row = { time: '2026-01-02T00:00:00Z', complete: true, subjects: 3, returned: [2, 1] };
  const { client } = await open(t, ({ path }) => ({
    status: 200,
    body: path === '/analytics/funnel' ? { rows: [{ 'metadata.plan': { a: 1 }, steps: [step] }], truncated: false } : { rows: [row] },
  }));
  assert.deepEqual(await client.funnel({ steps: ['a', 'b'] }), {
    rows: [{ metadata: { plan: { a: 1 } }, steps: [{ eventName: 'a', subjects: 2, conversion: 1, conversionFromPrevious: 1, medianMsFromPrevious: null }] }],
    truncated: false,
  });
  assert.deepEqual(await client.retention({ did: 'a' }), [row]);
});

describe('SQL', () => {
  test('rows keep the digits of integers with bigIntegers', async (t) => {
    const large = '115792089237316195423570985008687907853269984665640564039457584007913129639935';
    const { client } = await open(t, () => ({ status: 200, body: `{"columns":[{"name":"n","type":"UInt256"}],"rows":[[${large}],[null]]}` }), { bigIntegers: true });
    assert.deepEqual(await client.sql('SELECT 1'), { columns: [{ name: 'n', type: 'UInt256' }], rows: [[BigInt(large)], [null]] });
  });

  test('reads by POST are retried, and wait for the client\'s writes', async (t) => {
    let failures = 0;
    const { server, client } = await open(t, ({ path, query }) => {
      if (path === '/events') return undefined;
      return failures++ % 2 === 0
        ? { status: 503, body: { status: 503, code: 'overloaded' } }
        : { status: 200, headers: query.has('format') ? { 'Content-Type': 'text/csv; header=present' } : {}, body: { results: [], next_cursor: null, columns: [], rows: [] } };
    });
    client.trackEvent({ conversationId: 'c1', eventName: 'event_a' });
    await client.search({ text: 'a', waitSeconds: 2 });
    await client.sql('SELECT 1', { waitSeconds: 2 });
    for await (const piece of client.streamSql('SELECT 1', { format: 'csv', waitSeconds: 2 })) {
      assert.ok(piece.length > 0);
    }
    const reads = server.received.slice(1);
    assert.deepEqual(reads.map(({ method, path, query, headers }) => [method, path, query.get('after'), headers.prefer]),
      ['/search', '/search', '/sql', '/sql', '/sql', '/sql'].map((path) => ['POST', path, '1.0.0', 'wait=2']));
    assert.deepEqual(reads.map(({ body }) => String(body)), [...Array<string>(2).fill('{"text":"a"}'), ...Array<string>(4).fill('SELECT 1')]);
  });

  test('a server without a user for SQL is not asked again', async (t) => {
    const { server, client } = await open(t, () => ({
      status: 501,
      headers: { 'Content-Type': 'application/problem+json' },
      body: { type: 'urn:sluice:problem:sql_not_set_up', status: 501, code: 'sql_not_set_up', detail: 'no' },
    }));
    const notSetUp = (error: unknown) => error instanceof ApiError && error.code === 'sql_not_set_up';
    await assert.rejects(client.sql('SELECT 1'), notSetUp);
    await assert.rejects(client.streamSql('SELECT 1', { format: 'csv' }).next(), notSetUp);
    assert.equal(server.received.length, 2);
  });
});

/** Starts a server that writes its answers itself. */
async function raw(
  t: TestContext,
  serve: (response: http.ServerResponse, request: http.IncomingMessage) => void | Promise<void>,
  options: ClientOptions = {},
  contentType = 'application/vnd.apache.parquet',
): Promise<Client> {
  const server = http.createServer((request, response) => {
    response.setHeader('Content-Type', contentType);
    request.resume();
    request.on('end', () => { void serve(response, request); });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const client = new Client({ url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, ...options });
  t.after(async () => {
    server.close();
    server.closeAllConnections();
    await client.close({ timeoutMs: 0 });
  });
  return client;
}

describe('an export', () => {
  const line = (id: string) => stored.replace('"a"', JSON.stringify(id)) + '\n';
  const open = (t: TestContext, serve: Parameters<typeof raw>[1], options: ClientOptions = {}) => raw(t, serve, options, 'application/x-ndjson');

  test('goes on after the last whole line', async (t) => {
    const asked: string[] = [];
    const client = await open(t, (response, request) => {
      asked.push(request.url ?? '');
      const broken = () => { response.destroy(); };
      switch (asked.length) {
        case 1: return void response.writeHead(503).end();
        case 2: return void response.write(line('é1') + line('e2') + line('e3').slice(0, 20), broken);
        case 3: return void response.end(line('e3') + '{"id":"half"'); // ends without a line's end
        case 4: return void response.write('', broken);
        default: response.end(line('e4'));
      }
    });
    const seen: unknown[] = [];
    for await (const { id, raw: { input } = {} } of client.exportEvents({ error: true, embeddings: true, cursor: 'e0', raw: true })) {
      seen.push([id, input?.json]);
    }
    assert.deepEqual(seen, ['é1', 'e2', 'e3', 'e4'].map((id) => [id, '[9007199254740993]']));
    assert.deepEqual(asked, ['e0', 'e0', 'e2', 'e3', 'e3'].map((id) => `/export?error=true&embeddings=true&cursor=${id}`));
  });

  test('ends with a refusal, and with a line that is too long', async (t) => {
    let requests = 0;
    const refusing = await open(t, (response) => {
      requests++;
      response.writeHead(404).end('{"code":"unknown_event","field":"cursor"}');
    });
    await assert.rejects(refusing.exportEvents({ cursor: 'x' }).next(), (error) => error instanceof ApiError && error.field === 'cursor');
    const long = await open(t, (response) => {
      requests++;
      for (let i = 0; i < 17; i++) response.write('x'.repeat(1 << 20));
    });
    await assert.rejects(long.exportEvents().next(), /a line is longer than 16777216 bytes/);
    assert.equal(requests, 2);
  });

  test('that is left ends the request', async (t) => {
    let closed = 0;
    const client = await open(t, async (response) => {
      response.on('close', () => { closed++; });
      while (!response.destroyed) {
        if (!response.write(line('e1'))) await Promise.race([once(response, 'drain'), once(response, 'close')]);
      }
    });
    for await (const { id } of client.exportEvents()) {
      assert.equal(id, 'e1');
      break;
    }
    while (closed < 1) await sleep(2);
  });

  test('of which no event comes ends after half a minute', async (t) => {
    const client = await open(t, (response) => { response.end('no event\n'); });
    let now = 0;
    const clock = t.mock.method(performance, 'now', () => (now += 2000)); // each look at the clock takes 2 s
    await assert.rejects(client.exportEvents().next(), NetworkError);
    assert.ok(clock.mock.callCount() > 4);
  });
});

describe('a stream of SQL', () => {
  const query = (client: Client) => client.streamSql('SELECT 1', { format: 'parquet' });

  test('is never in memory as a whole', async (t) => {
    const piece = Buffer.alloc(1 << 20, 'x');
    let written = 0;
    const client = await raw(t, async (response) => {
      while (written < 200 && !response.destroyed) {
        written++;
        if (!response.write(piece)) await Promise.race([once(response, 'drain'), once(response, 'close')]);
      }
      response.end();
    });
    const stream = query(client);
    let bytes = (await stream.next()).value?.length ?? 0;
    await sleep(300);
    // What the server could write meanwhile is in the buffers of the sockets and of Node.
    assert.ok(written < 50, `the server wrote ${written} MiB to a reader that took one piece`);
    for await (const { length } of stream) {
      bytes += length;
    }
    assert.equal(bytes, 200 << 20);
  });

  test('is not the page of a proxy', async (t) => {
    const client = await raw(t, (response) => { response.end('<html>'); }, {}, 'text/html');
    let now = 0;
    t.mock.method(performance, 'now', () => (now += 2000)); // each look at the clock takes 2 s
    await assert.rejects(query(client).next(), /the answer is not application\/vnd.apache.parquet/);
    await assert.rejects(client.streamSql('SELECT 1', { format: 'xml' as 'csv' }).next(), (error) => error instanceof ValidationError && error.field === 'format');
  });

  test('that breaks off is an error, and is not asked for again', async (t) => {
    let requests = 0;
    const client = await raw(t, (response) => {
      requests++;
      response.write('begins', () => { response.destroy(); });
    });
    const stream = query(client);
    assert.equal(String(Buffer.from((await stream.next()).value ?? [])), 'begins');
    await assert.rejects(stream.next(), NetworkError);
    assert.equal(requests, 1);
  });

  test('of which nothing comes for too long ends', async (t) => {
    const client = await raw(t, async (response) => {
      for (let i = 0; i < 5; i++) {
        response.write('x');
        await sleep(300);
      }
    }, { requestTimeoutMs: 1200 });
    let pieces = 0;
    await assert.rejects(async () => {
      for await (const piece of query(client)) pieces += piece.length;
    }, TimeoutError);
    assert.equal(pieces, 5); // which took longer than the timeout together
  });

  test('ends with the client, and when its reader leaves', async (t) => {
    let closed = 0;
    const client = await raw(t, (response) => {
      response.on('close', () => { closed++; });
      response.write('x');
    });
    for await (const piece of query(client)) {
      assert.equal(piece.length, 1);
      break;
    }
    const stream = query(client);
    await stream.next();
    const next = stream.next();
    await client.close();
    await assert.rejects(next, ClosedError);
    while (closed < 2) await sleep(2);
  });
});
