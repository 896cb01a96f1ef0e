import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { describe, test, type TestContext } from 'node:test';

import { Client, ValidationError, type Condition, type ConversationSummary, type FilterOptions } from '../src/index.js';
import { FakeServer } from './server.js';

const { conditions } = JSON.parse(readFileSync(new URL('../../../spec/vectors/filters.json', import.meta.url), 'utf8')) as {
  conditions: { name: string; key: string; op: Condition['op']; value?: string; parameter?: [string, string]; member?: [string, string]; refused?: boolean }[];
};

async function open(t: TestContext, body: object = { events: [], next_cursor: null }) {
  const server = await FakeServer.start(t, () => ({ status: 200, body }));
  const client = new Client({ url: server.url });
  t.after(() => client.close({ timeoutMs: 0 }));
  return { server, client };
}

describe('filters.json', () => {
  for (const { name, key, op, value, parameter, member, refused } of conditions) {
    test(name, async (t) => {
      const { server, client } = await open(t);
      const filters: FilterOptions[] = [{ conditions: [{ key, op, value } as Condition] }];
      if (op === '=') {
        filters.push({ metadata: { [key]: value ?? '' } });
      }
      for (const filter of filters) {
        server.received.length = 0;
        const read = client.listEvents(filter);
        if (refused) {
          await assert.rejects(read, (error) => error instanceof ValidationError && error.field === (key === '' ? 'metadata' : `metadata.${key}`));
          assert.equal(server.received.length, 0);
        } else {
          await read;
          assert.deepEqual([...(server.received[0]?.query ?? [])], [parameter]);
        }
      }
    });
    test(`${name}, in a search`, async (t) => {
      const { server, client } = await open(t, { results: [], next_cursor: null });
      const search = client.search({ text: 'a', conditions: [{ key, op, value } as Condition] });
      if (member === undefined) {
        await assert.rejects(search, (error) => error instanceof ValidationError && error.field === (key === '' ? 'metadata' : `metadata.${key}`));
        assert.equal(server.received.length, 0);
      } else {
        await search;
        assert.deepEqual(JSON.parse(String(server.received[0]?.body)), { text: 'a', filter: { [member[0]]: member[1] } });
      }
    });
  }
});

test('every read refuses a condition that cannot be sent', async (t) => {
  const { server, client } = await open(t);
  for (const condition of [{ key: 'plan', op: '~', value: 'a' }, { key: 'plan', op: '=' }, { key: 'plan', op: '!=', value: null }]) {
    const filter = { conditions: [condition as Condition] };
    for (const read of [
      client.errors(filter),
      client.latency(filter),
      client.conversations(filter),
      client.timeSeries(filter),
      client.listEvents(filter),
      client.allEvents(filter).next(),
      client.listConversations(filter),
      client.allConversations(filter).next(),
      client.conversation('c1', filter),
      client.conversationEvents('c1', filter).next(),
      client.search({ ...filter, text: 'a' }),
      client.searchAll({ ...filter, text: 'a' }).next(),
      client.exportEvents(filter).next(),
      client.insights({ ...filter, measures: ['events'] }),
      client.funnel({ ...filter, steps: ['a', 'b'] }),
      client.funnel({ steps: ['a', { eventName: 'b', ...filter }] }),
      client.retention({ ...filter, did: 'a' }),
      client.retention({ did: { eventName: 'b', ...filter } }),
      client.retention({ did: 'a', returned: { eventName: 'b', ...filter } }),
    ]) {
      await assert.rejects(read, (error) => error instanceof ValidationError && error.field === 'metadata.plan');
    }
  }
  assert.equal(server.received.length, 0);
});

test('all members of a filter are sent, by every read', async (t) => {
  const { server, client } = await open(t, { events: [], conversations: [], rows: [], next_cursor: null });
  const filter: FilterOptions = {
    since: '1h',
    until: new Date(1767323045678),
    eventName: 'event_a',
    eventNames: ['event_b', 'event_c'],
    error: false,
    latencyMin: 0,
    latencyMax: 2.5,
    metadata: { plan: 'pro', n: 1 },
    conditions: [
      { key: 'plan', op: '!=', value: 'a' },
      { key: 'plan', op: '!=', value: 'b' },
      { key: 'tokens', op: '>', value: 9007199254740993n },
      { key: 'ok', op: '=', value: true },
      { key: 'trial', op: 'missing' },
    ],
  };
  const sent = 'since=1h&until=2026-01-02T03:04:05.678Z&event_name=event_a&event_name=event_b&event_name=event_c&error=false&latency_min=0&latency_max=2.5' +
    '&metadata.plan=pro&metadata.n=1&metadata.plan!==a&metadata.plan!==b&metadata.tokens>9007199254740993=&metadata.ok=true&metadata.trial.exists=false';
  await client.errors(filter);
  await client.latency(filter);
  await client.conversations(filter);
  await client.timeSeries(filter);
  await client.listEvents({ ...filter, order: 'timestamp', limit: 2, cursor: 'k', embeddings: true });
  await client.listConversations({ ...filter, limit: 2, cursor: 'k' });
  await client.conversation('c1', { ...filter, order: '-timestamp', limit: 2 });
  assert.deepEqual(server.received.map(({ path, query }) => `${path}?${decodeURIComponent(query.toString())}`), [
    `/analytics/errors?${sent}`,
    `/analytics/latency?${sent}`,
    `/analytics/conversations?${sent}`,
    `/analytics/timeseries?${sent}`,
    `/events?${sent}&order=timestamp&limit=2&cursor=k&embeddings=true`,
    `/conversations?${sent}&limit=2&cursor=k`,
    `/conversations/c1/events?${sent}&order=-timestamp&limit=2`,
  ]);
});

describe('lists', () => {
  test('iterate over all events', async (t) => {
    const stored = { id: 'a', conversation_id: 'c1', conversation_metadata: null, event_name: 'e', timestamp: 't', error: null, latency: null, input: { n: 1 }, output: null };
    const pages: Record<string, object> = {
      k: { events: [stored, { ...stored, id: 'b' }], next_cursor: 'p2' },
      p2: { events: [], next_cursor: 'p3' },
      p3: { events: [{ ...stored, id: 'c' }], next_cursor: null },
    };
    const server = await FakeServer.start(t, ({ query }) => ({ status: 200, body: pages[query.get('cursor') ?? ''] }) as object);
    const client = new Client({ url: server.url });
    t.after(() => client.close());
    const seen: unknown[] = [];
    for await (const { id, conversationId, raw } of client.allEvents({ error: true, cursor: 'k', limit: 2, raw: true, waitSeconds: 3 })) {
      seen.push([id, conversationId, raw?.input?.json]);
    }
    assert.deepEqual(seen, ['a', 'b', 'c'].map((id) => [id, 'c1', '{"n":1}']));
    assert.deepEqual(server.received.map(({ path, headers, query }) => [path, headers.prefer, query.toString()]), [
      ['/events', 'wait=3', 'error=true&limit=2&cursor=k'],
      ['/events', undefined, 'error=true&limit=2&cursor=p2'],
      ['/events', undefined, 'error=true&limit=2&cursor=p3'],
    ]);
  });

  test('iterate over all conversations', async (t) => {
    const counts = { first: 'f', last: 'l', events: 4, errors: 1 };
    const listed = { conversation_id: 'c1', ...counts, error_rate: 0.25, event_names: ['a', 'b'], first_input: 'hi', last_output: null };
    const server = await FakeServer.start(t, ({ query }) => ({ status: 200, body: { conversations: [listed], next_cursor: query.has('cursor') ? null : 'p2' } }));
    const client = new Client({ url: server.url });
    t.after(() => client.close());
    const summary: ConversationSummary = { conversationId: 'c1', ...counts, errorRate: 0.25, eventNames: ['a', 'b'], firstInput: 'hi', lastOutput: null };
    assert.deepEqual(await client.listConversations({ cursor: 'p2' }), { conversations: [summary], nextCursor: null });
    const seen: ConversationSummary[] = [];
    for await (const conversation of client.allConversations({ limit: 1, waitSeconds: 3 })) {
      seen.push(conversation);
    }
    assert.deepEqual(seen, [summary, summary]);
    assert.deepEqual(server.received.map(({ path, headers, query }) => [path, headers.prefer, query.toString()]), [
      ['/conversations', undefined, 'cursor=p2'],
      ['/conversations', 'wait=3', 'limit=1'],
      ['/conversations', undefined, 'limit=1&cursor=p2'],
    ]);
  });
});
