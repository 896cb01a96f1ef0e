import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after, before, describe, test, type TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';

import { encodeCreate } from '../src/encode.js';
import { chromiumPath, Pages } from './page.js';
import { FakeServer, until, type Answer, type Item } from './server.js';

const cors = {
  'Access-Control-Allow-Origin': '*',
  'Access-Control-Allow-Headers': 'Authorization, Content-Type, Prefer',
  'Access-Control-Allow-Methods': 'GET, POST',
  'Access-Control-Expose-Headers': 'Retry-After',
};

/** Starts a server that allows the origin of every page. Its answers are the test's. */
async function serve(t: TestContext, answer: Answer = () => undefined): Promise<FakeServer> {
  let posts = 0;
  return FakeServer.start(t, async (received) => {
    if (received.method === 'OPTIONS') {
      return { status: 204, headers: cors, body: '' };
    }
    const reply = (await answer(received, ++posts)) ?? {};
    return { ...reply, headers: { ...cors, ...reply.headers } };
  });
}

test('the bundle imports nothing from Node', () => {
  const text = readFileSync(fileURLToPath(new URL('../../dist/browser/index.js', import.meta.url)), 'utf8');
  assert.doesNotMatch(text, /\bfrom\s*["']|\bimport\s*\(|\brequire\s*\(|["']node:/);
});

const missing = chromiumPath === undefined && process.env.SLUICE_TEST_BROWSER !== '1';

describe('in a browser', { skip: missing && 'there is no chromium' }, () => {
  let pages: Pages;
  before(async () => { pages = await Pages.open(); });
  after(() => pages.close());

  /** Runs the text in a new page, as the body of a function that has the library's names and the client. */
  async function run(options: object, text: string) {
    const page = await pages.page();
    const client = `globalThis.client = new sluice.Client({ onError: ({ id, code }) => failures.push([id, code]), ...${JSON.stringify(options)} })`;
    const result: unknown = await page.evaluate(`(async () => { const failures = []; const client = ${client}; ${text} })()`);
    return { page, result };
  }

  test('searches, and reads streams', async (t) => {
    const stored = (id: string) => `{"id":"${id}","conversation_id":"c","input":"漢","latency":null}\n`;
    const server = await serve(t, ({ path, query }) => {
      switch (path) {
        case '/search': return { status: 200, body: { results: [{ event: JSON.parse(stored('a')) as object, score: 1, highlights: [] }], next_cursor: null } };
        case '/sql': return { status: 200, headers: { 'Content-Type': 'text/csv' }, body: query.get('format') ?? '' };
        default: return query.has('cursor')
          ? { status: 200, headers: { 'Content-Type': 'application/x-ndjson' }, body: stored('c') }
          : { status: 200, headers: { 'Content-Type': 'application/x-ndjson' }, body: stored('a') + stored('b') + '{"id":"half' };
      }
    });
    const { result } = await run({ url: server.url }, `
      const { results } = await client.search({ text: 'a' });
      let csv = '';
      for await (const piece of client.streamSql('SELECT 1', { format: 'csv' })) csv += new TextDecoder().decode(piece);
      const exported = [];
      for await (const { id, input } of client.exportEvents()) exported.push(id + input);
      for await (const { id } of client.exportEvents()) break;
      await client.close();
      return [results[0].event.id, csv, exported, failures];
    `);
    assert.deepEqual(result, ['a', 'csv', ['a漢', 'b漢', 'c漢'], []]);
    assert.equal(String(server.received.find(({ path, method }) => path === '/sql' && method === 'POST')?.body), 'SELECT 1');
  });

  test('tracks, updates and reads', async (t) => {
    const server = await serve(t, ({ method }) => (method === 'GET' ? { status: 200, body: { id: 'a', conversation_id: 'c', timestamp: '2026-01-31T12:00:00Z' } } : undefined));
    const { result } = await run({ url: `${server.url}/base`, apiKey: 'key' }, `
      const id = client.trackEvent({ conversationId: 'grüße', eventName: 'event_a', input: new Map([[1, new Uint8Array([1, 2, 255])]]),
        inputEmbeddings: [1, -2.5], timestamp: '2026-01-31T12:00:00.25Z' });
      client.updateEvent(id, { output: '😀', error: () => 1 });
      await client.flush({ timeoutMs: 20000 });
      const event = await client.event(id);
      await client.close();
      return [id, event.conversationId, failures];
    `);
    const [id] = result as [string];
    assert.deepEqual(result, [id, 'c', []]);
    // The id's time and conversation hash, as Node mints them.
    const { id: ofNode } = encodeCreate({ conversationId: 'grüße', eventName: 'event_a', timestamp: '2026-01-31T12:00:00.25Z' }, {});
    assert.equal(id.slice(0, 25), ofNode.slice(0, 25));
    assert.equal(id.length, 36);
    const posts = server.received.filter(({ method }) => method === 'POST');
    assert.deepEqual(posts.map(({ path, headers }) => [path, headers.authorization, headers['content-type']]),
      posts.map(() => ['/base/events', 'Bearer key', 'application/x-ndjson']));
    const items = posts.flatMap((post) => post.items);
    assert.deepEqual(items.map(({ op }) => op), [undefined, 'update']);
    const [create, update] = items;
    assert.deepEqual([create?.input, create?.input_embeddings, update?.output], [{ 1: 'AQL/' }, 'AACAPwAAIMA=', '😀']);
  });

  test('retries, and reports refused writes', async (t) => {
    const server = await serve(t, ({ items }, number) => {
      if (number === 1) {
        return { status: 503, headers: { 'Retry-After': '1' }, body: '' };
      }
      return number === 2 ? { status: 422, body: { results: items.map(({ id }) => ({ id, error: { status: 422, code: 'invalid_value' } })) } } : undefined;
    });
    const { result } = await run({ url: server.url }, `
      const begun = performance.now();
      client.trackEvent({ id: 'a', conversationId: 'c', eventName: 'event_a' });
      await client.flush({ timeoutMs: 20000 });
      return [failures, performance.now() - begun >= 900];
    `);
    assert.deepEqual(result, [[['a', 'invalid_value']], true]);
  });

  for (const [how, leave] of [
    ['left', (page: Awaited<ReturnType<Pages['page']>>) => page.goto('about:blank')],
    ['hidden', (page: Awaited<ReturnType<Pages['page']>>) => page.evaluate(`
      Object.defineProperty(document, 'visibilityState', { get: () => 'hidden' });
      document.dispatchEvent(new Event('visibilitychange'));`)],
  ] as const) {
    test(`sends what is queued when the page is ${how}`, async (t) => {
      const server = await serve(t);
      // More than a batch, and less than the browser's limit.
      const { page } = await run({ url: server.url, batchAgeMaxMs: 600_000, batchWritesMax: 3 }, `
        for (const id of ['a', 'b', 'c', 'd', 'e']) {
          client.trackEvent({ id, conversationId: 'c', eventName: 'event_a', input: 'x'.repeat(9000) });
        }
        client.updateEvent('e', { output: 'last' });
        client.deleteEvent('e');
      `);
      if (how !== 'hidden') {
        assert.deepEqual(names(server.items).slice(3), []); // no more than a full batch
      }
      await leave(page);
      await until(() => server.items.length >= 7);
      // Creates of other ids may overtake each other, the writes of one id may not.
      assert.deepEqual(names(server.items).toSorted(), ['a', 'b', 'c', 'd', 'delete e', 'e', 'update e']);
      assert.deepEqual(names(server.items).filter((name) => name.endsWith('e')), ['e', 'update e', 'delete e']);
    });
  }

  test('goes on if the page comes back', async (t) => {
    let fail = true;
    const server = await serve(t, () => (fail ? { status: 503, body: '' } : undefined));
    const { page } = await run({ url: server.url, batchAgeMaxMs: 600_000 }, `
      client.trackEvent({ id: 'a', conversationId: 'c', eventName: 'event_a' });
      client.updateEvent('a', { output: 1 });
      dispatchEvent(new Event('pagehide'));
    `);
    await until(() => server.items.length >= 2);
    fail = false;
    const left: unknown = await page.evaluate("client.updateEvent('a', { output: 2 }); client.flush({ timeoutMs: 20000 }).then(() => 'done', String)");
    assert.equal(left, 'done');
    assert.deepEqual(server.items.slice(-2).map(({ output }) => output), [1, 2]);
  });

  test('sends what is too large for a request that outlives the page', async (t) => {
    const server = await serve(t);
    await run({ url: server.url }, `
      client.trackEvent({ id: 'large', conversationId: 'c', eventName: 'event_a', input: 'x'.repeat(200000) });
      client.trackEvent({ id: 'small', conversationId: 'c', eventName: 'event_a' });
      await client.flush({ timeoutMs: 20000 });
    `);
    assert.deepEqual(names(server.items), ['large', 'small']);
  });

  test('refuses options that need files', async (t) => {
    const server = await serve(t);
    const { result } = await run({ url: server.url }, `
      return ['spoolDir', 'caFile', 'gzip'].map((name) => { try { new sluice.Client({ [name]: 'x' }); } catch (error) { return [error.name, error.field]; } });
    `);
    assert.deepEqual(result, ['spoolDir', 'caFile', 'gzip'].map((name) => ['ValidationError', name]));
  });
});

function names(items: Item[]): string[] {
  return items.map(({ op, id }) => (op === undefined ? id : `${op} ${id}`));
}
