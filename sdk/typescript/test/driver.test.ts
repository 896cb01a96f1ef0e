import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { text } from 'node:stream/consumers';
import { test, type TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';

import { FakeServer } from './server.js';

/** Runs the driver with the commands and returns its answers. */
async function drive(t: TestContext, commands: (object | string)[]): Promise<Record<string, unknown>[]> {
  const child = spawn(process.execPath, [fileURLToPath(new URL('../driver/driver.js', import.meta.url))], { stdio: ['pipe', 'pipe', 'inherit'] });
  t.after(() => child.kill());
  child.stdin.end(commands.map((command) => (typeof command === 'string' ? command : JSON.stringify(command)) + '\n').join(''));
  return (await text(child.stdout)).trim().split('\n').map((line) => JSON.parse(line) as Record<string, unknown>);
}

const refusedKey = 'metadata.n> cannot be compared by = with this value, because the server would read the key or the value as another comparison';
const event = { conversation_id: 'c1', event_name: 'event_a' };

test('the driver mints, writes, reads and reports failures', async (t) => {
  const stored = { id: 'x', ...event, conversation_metadata: null, timestamp: 't', error: null, latency: 1, input: null, output: { a_b: 1 } };
  const server = await FakeServer.start(t, ({ method, path, query, items }) => {
    if (method === 'POST') {
      const refused = { error: { status: 422, code: 'immutable', detail: 'd', field: 'f' } };
      return { status: 207, body: { results: items.map(({ id }) => (id === 'bad' ? refused : { id, receipt: '1.0.1' })) } };
    }
    if (path === '/conversations/c1/events' && query.get('error') === 'true') {
      return { status: 200, body: { events: [{ ...stored, id: query.get('order') }], next_cursor: null } };
    }
    if (path === '/events') {
      return { status: 200, body: { events: [{ ...stored, id: query.toString() }], next_cursor: null } };
    }
    return path.startsWith('/event/')
      ? { status: 404, body: { code: 'unknown_event', detail: 'none', field: 'id' } }
      : { status: 200, body: path.startsWith('/conv') ? { events: [stored], next_cursor: null } : { rows: [{ events: 1, error_rate: 0 }] } };
  });
  const answers = await drive(t, [
    '{"do":"mint","conversation_id":"c1","unix_micros":253402300799999999,"random":"274877906943"}',
    { do: 'open', options: { url: server.url, batch_age_max: 0.001, queue_writes_max: 1, retry_for: 0 } },
    { do: 'track', event: { ...event, id: 'own', output_embeddings: [1] } },
    { do: 'update', id: 'bad', fields: { error: null } }, // waits for room
    { do: 'delete', id: 'own' },
    { do: 'track', event: { ...event, latency: -1 } },
    { do: 'flush', timeout: 5 },
    { do: 'event', id: 'own', wait: 0 },
    { do: 'conversation', id: 'c1', limit: 0, embeddings: false, wait: 1 },
    { do: 'conversations', query: { order_by: 'events', metadata: { a_b: 'x' } }, wait: 2 },
    { do: 'trace', conversation_id: 'c1', input: 'q', error: 'boom', sleep: 0 },
    { do: 'list_events', query: { event_names: ['a', 'b'], latency_max: 2.5, conditions: [{ key: 'n', op: '>', value: 5 }], limit: 2 } },
    { do: 'list_conversations', query: { conditions: [{ key: 'n>', op: '=', value: 5 }] } },
    { do: 'conversation', id: 'c1', query: { error: true, order: '-timestamp' } },
    { do: 'reported' },
    { do: 'close', timeout: 5 },
    { do: 'delete', id: 'own' },
    { do: 'dance' },
  ]);
  const { id, ...traced } = answers[10] ?? {};
  assert.equal(typeof id, 'string');
  assert.deepEqual(traced, { raised: 'boom' });
  assert.deepEqual(answers.toSpliced(10, 1), [
    { id: 'e677d21f-dbff-83e7-82d3-933fffffffff' },
    {},
    { id: 'own' },
    {},
    {},
    { error: { kind: 'invalid', field: 'latency', detail: 'latency must be a finite number of milliseconds, 0 or more' } },
    {},
    { error: { kind: 'api', status: 404, code: 'unknown_event', detail: 'none', field: 'id' } },
    { events: [stored] },
    { rows: [{ error_rate: 0, events: 1 }] },
    { events: [{ ...stored, id: 'event_name=a&event_name=b&latency_max=2.5&metadata.n%3E5=&limit=2' }] },
    { error: { kind: 'invalid', field: 'metadata.n>', detail: refusedKey } },
    { events: [{ ...stored, id: '-timestamp' }] },
    { errors: [{ op: 'update', id: 'bad', status: 422, code: 'immutable', field: 'f' }] },
    {},
    { error: { kind: 'closed', detail: 'the client is closed' } },
    { error: { kind: 'other', detail: 'the command dance is not known' } },
  ]);
  assert.deepEqual(server.items[0], { ...event, id: 'own', output_embeddings: 'AACAPw==' });
  assert.equal(server.received.find(({ path }) => path === '/analytics/conversations')?.query.get('metadata.a_b'), 'x');
});

const { reads } = JSON.parse(readFileSync(new URL('../../../spec/vectors/reads.json', import.meta.url), 'utf8')) as {
  reads: {
    name: string;
    call: string;
    query: object;
    method: string;
    path: string;
    parameters: [string, string][];
    body?: object;
    text?: string;
    refused?: string;
  }[];
};

test('reads.json', async (t) => {
  const types: Record<string, string> = { csv: 'text/csv', parquet: 'application/vnd.apache.parquet' };
  const server = await FakeServer.start(t, ({ path, query }) => path === '/export'
    ? { status: 200, headers: { 'Content-Type': 'application/x-ndjson' }, body: '' }
    : {
      status: 200,
      headers: { 'Content-Type': types[query.get('format') ?? ''] ?? 'application/json' },
      body: { results: [], next_cursor: null, rows: [], truncated: false, columns: [] },
    });
  const answers = await drive(t, [{ do: 'open', options: { url: server.url } }, ...reads.map(({ call, query }) => ({ do: call, query }))]);
  const sent = [...server.received];
  for (const [i, { name, method, path, parameters, body, text, refused }] of reads.entries()) {
    const error = answers[i + 1]?.error as { kind: string; field?: string } | undefined;
    if (refused !== undefined) {
      assert.deepEqual({ kind: error?.kind, field: error?.field }, { kind: 'invalid', field: refused }, name);
      continue;
    }
    assert.equal(error, undefined, name);
    const request = sent.shift();
    assert.equal(`${request?.method ?? ''} ${request?.path ?? ''}`, `${method} ${path}`, name);
    request?.query.sort(); // by name, and parameters of one name keep their order
    assert.deepEqual([...(request?.query ?? [])], parameters, name);
    if (body !== undefined) {
      assert.deepEqual(JSON.parse(String(request?.body)), body, name);
      assert.equal(request?.headers['content-type'], 'application/json');
    } else {
      assert.equal(String(request?.body), text ?? '', name);
    }
  }
  assert.deepEqual(sent, []);
});

test('the driver fails at once on a full queue with fail_when_full', async (t) => {
  const server = await FakeServer.start(t, () => ({ status: 503, body: '' }));
  const answers = await drive(t, [
    { do: 'open', options: { url: server.url, queue_writes_max: 1, fail_when_full: true } },
    { do: 'delete', id: 'a' },
    { do: 'delete', id: 'b' },
    { do: 'flush', timeout: 0.01 },
    { do: 'close', timeout: 0 },
  ]);
  assert.deepEqual(answers.map((answer) => (answer.error as { kind?: string } | undefined)?.kind), [
    undefined,
    undefined,
    'queue_full',
    'timeout',
    'timeout',
  ]);
});
