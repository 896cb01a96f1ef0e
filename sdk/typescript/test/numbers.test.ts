import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { describe, test, type TestContext } from 'node:test';

import { Client, RawJson, ValidationError, type ClientOptions } from '../src/index.js';
import { FakeServer } from './server.js';

const { numbers } = JSON.parse(readFileSync(new URL('../../../spec/vectors/numbers.json', import.meta.url), 'utf8')) as {
  numbers: { name: string; json: string; integers: boolean }[];
};

/** Opens a client of a server that has one event with this input and metadata, and records the requests. */
async function open(t: TestContext, json: string, options: ClientOptions) {
  const event = `{"id":"a", "conversation_id":"c1","event_name":"event_a","timestamp":"2026-01-02T03:04:05Z","error":null,` +
    `"latency":12345678901234567890,"input_embeddings":[1,340282350000000000000000000000000000000],"conversation_metadata": {"v": ${json}},"input":${json} , "output":null}`;
  const server = await FakeServer.start(t, ({ method, path }) => {
    if (method !== 'GET') return undefined;
    return { status: 200, body: path.startsWith('/event/') ? event : `{"next_cursor":null,"events":[ ${event}, ${event}]}` };
  });
  const client = new Client({ url: server.url, ...options });
  t.after(() => client.close({ timeoutMs: 0 }).catch(() => undefined));
  const sent = async () => {
    await client.flush();
    return server.received.at(-1)?.body.toString() ?? '';
  };
  return { client, sent };
}

describe('numbers.json', () => {
  for (const { name, json, integers } of numbers) {
    for (const strict of [false, true]) {
      if (integers) {
        test(`${name}, by bigIntegers${strict ? ', strict' : ''}`, async (t) => {
          const { client, sent } = await open(t, json, { bigIntegers: true, strict });
          const { input, conversationMetadata, latency, inputEmbeddings } = await client.event('a');
          assert.equal(latency, 12345678901234567000);
          assert.deepEqual(inputEmbeddings, [1, 3.4028235e38]);
          client.updateEvent('a', { input, conversationMetadata });
          const body = await sent();
          assert.ok(body.includes(`"input":${json}`), body);
          assert.ok(body.includes(`"conversation_metadata":{"v":${json}}`), body);
        });
      }
      test(`${name}, by raw${strict ? ', strict' : ''}`, async (t) => {
        const { client, sent } = await open(t, json, { strict });
        const { raw, output } = await client.event('a', { raw: true });
        assert.equal(output, null);
        assert.equal(raw?.output, null);
        client.updateEvent('a', { input: raw.input, output: { was: raw.input }, conversationMetadata: raw.conversationMetadata });
        const body = await sent();
        for (const part of [`"input":${json}`, `"output":{"was":${json}}`, `"conversation_metadata":{"v": ${json}}`]) {
          assert.ok(body.includes(part), body);
        }
      });
    }
  }
});

test('a page with raw has the raw contents of its events', async (t) => {
  const { client } = await open(t, '[107505301260286111,"a,]}"]', { bigIntegers: true });
  const seen: unknown[] = [];
  for await (const { raw, input } of client.conversationEvents('c1', { raw: true })) {
    seen.push(raw?.input?.json, input);
  }
  const one = ['[107505301260286111,"a,]}"]', [107505301260286111n, 'a,]}']];
  assert.deepEqual(seen, [...one, ...one]);
});

test('without an option, an event has no raw contents', async (t) => {
  const { client } = await open(t, '1', {});
  assert.equal('raw' in (await client.event('a')), false);
});

test('raw JSON of your own', async (t) => {
  const { client, sent } = await open(t, '1', {});
  const deep = '['.repeat(40) + ']'.repeat(40);
  const event = { conversationId: 'c1', eventName: 'event_a', input: [new RawJson(' {"a":\n1.0}\r\n')], output: new RawJson('{"a":'), error: null };
  client.trackEvent({ ...event, conversationMetadata: new RawJson('{"n":1.50}') });
  assert.match(await sent(), /"conversation_metadata":\{"n":1\.50\},"error":null,"input":\[\{"a": 1\.0\}\],"output":"\{\\"a\\":"/);
  client.trackEvent({ ...event, output: new RawJson(deep) });
  assert.doesNotMatch(await sent(), /\[{35}/);
  client.trackEvent({ ...event, output: new RawJson('["\\ud83d"]') });
  assert.match(await sent(), /"output":\["\ufffd"\]/);
  assert.deepEqual(JSON.parse(JSON.stringify({ a: new RawJson('[1]') })), { a: [1] });
  assert.equal(String(new RawJson('[1]')), '[1]');

  const strict = await open(t, '1', { strict: true });
  for (const json of ['{"a":', deep, '["\\ud83d"]', '']) {
    assert.throws(() => strict.client.trackEvent({ ...event, output: new RawJson(json) }), ValidationError, json);
  }
});

test('cut metadata keeps the digits of its remaining members', async (t) => {
  const { client, sent } = await open(t, '1', {});
  client.trackEvent({ conversationId: 'c1', eventName: 'event_a', conversationMetadata: { n: 107505301260286111n, long: 'x'.repeat(20_000) } });
  assert.match(await sent(), /"n":107505301260286111\b/);
});
