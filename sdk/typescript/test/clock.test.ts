import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { afterEach, describe, test, type TestContext } from 'node:test';

import { clockOffsetMs, serverTimeMs } from '../src/clock.js';
import { followServer } from '../src/ids.js';
import { ApiError, Client, ClockError, ValidationError, type WriteFailure } from '../src/index.js';
import { FakeServer, type Reply } from './server.js';

const { clocks } = JSON.parse(readFileSync(new URL('../../../spec/vectors/clocks.json', import.meta.url), 'utf8')) as {
  clocks: { name: string; local: string; headers: { Date?: string; Age?: string }; offset_seconds: number | null }[];
};

const day = 24 * 3600_000;
const event = { conversationId: 'c1', eventName: 'event_a' };

describe('clocks.json', () => {
  for (const { name, local, headers, offset_seconds } of clocks) {
    test(name, () => {
      const server = serverTimeMs({ ...(headers.Date && { date: headers.Date }), ...(headers.Age && { age: headers.Age }) });
      assert.equal(server === undefined ? null : clockOffsetMs(server, Date.parse(local)) / 1000, offset_seconds);
    });
  }
});

describe('a clock that is wrong', () => {
  afterEach(() => { followServer(undefined); });

  async function open(t: TestContext) {
    const server = await FakeServer.start(t);
    const failures: WriteFailure[] = [];
    const told = t.mock.method(console, 'error', () => undefined);
    const client = new Client({ url: server.url, onError: (failure) => failures.push(failure) });
    t.after(() => client.close({ timeoutMs: 0 }).catch(() => undefined));
    /** Answers like a server whose clock is ahead by the given time. */
    const dated = (ahead: number, reply: Reply = {}) => {
      server.answer = ({ items }) => ({
        body: server.taken(items),
        ...reply,
        headers: { ...reply.headers, Date: new Date(Date.now() + ahead).toUTCString() },
      });
    };
    return { server, failures, told, client, dated };
  }

  function aheadOf(id: string): number {
    return parseInt(id.replaceAll('-', '').slice(0, 12), 16) - Date.now();
  }

  for (const days of [-2, 2, 20_000]) {
    test(`${days} days`, async (t) => {
      const { server, failures, told, client, dated } = await open(t);
      server.answer = ({ items }) => ({
        status: 422,
        headers: { Date: new Date(Date.now() + days * day).toUTCString() },
        body: { results: items.map(({ id }) => ({ id, error: { status: 422, code: 'invalid_value', field: 'id', detail: 'has a wrong time' } })) },
      });
      const first = client.trackEvent(event);
      await client.flush();
      assert.deepEqual(failures.map(({ op, id, code }) => [op, id, code]), [[undefined, undefined, 'wrong_clock'], ['create', first, 'invalid_value']]);
      assert.ok(failures[0]?.error instanceof ClockError);
      assert.equal(told.mock.callCount(), 1);
      const text = String(told.mock.calls[0]?.arguments[0]);
      for (const part of [`${Math.abs(days).toFixed(1)} days ${days > 0 ? 'behind' : 'ahead of'} the server's`, 'just refused 1 writes', 'Set the clock']) {
        assert.ok(text.includes(part) && failures[0].detail.includes(part), text);
      }

      dated(days * day);
      const ids = [0, 1, 2].map(() => client.trackEvent(event));
      assert.deepEqual(ids, ids.toSorted());
      client.trace('c1', (span) => ids.push(span.id));
      for (const id of ids) {
        assert.ok(Math.abs(aheadOf(id) - days * day) < 60_000, id);
      }
      await client.flush();
      assert.equal(told.mock.callCount(), 1);

      dated(0); // the clock was set right
      client.trackEvent(event);
      await client.flush();
      assert.ok(Math.abs(aheadOf(client.trackEvent(event))) < 60_000);
    });
  }

  test('is reported by a read too', async (t) => {
    const { told, client, dated } = await open(t);
    dated(2 * day, {
      status: 404,
      headers: { 'Content-Type': 'application/problem+json' },
      body: { type: 'urn:sluice:problem:unknown_event', status: 404, code: 'unknown_event' },
    });
    await assert.rejects(client.event('a'), ApiError);
    assert.match(String(told.mock.calls[0]?.arguments[0]), /2\.0 days behind/);
    assert.ok(Math.abs(aheadOf(client.trackEvent(event)) - 2 * day) < 60_000);
  });

  test('is not concluded from a proxy\'s answer', async (t) => {
    const { server, client, told } = await open(t);
    server.answer = (_, n) => (n > 1 ? undefined : { status: 200, body: '<html>', headers: { Date: new Date(Date.now() + 2 * day).toUTCString() } });
    client.trackEvent(event);
    await client.flush();
    assert.ok(told.mock.calls.every(({ arguments: [text] }) => !String(text).includes('clock')));
    assert.ok(Math.abs(aheadOf(client.trackEvent(event))) < 60_000);
  });

  test('does not limit timestamps', async (t) => {
    const { client, dated } = await open(t);
    const soon = { ...event, timestamp: Date.now() + 2.5 * day };
    assert.throws(() => client.trackEvent(soon), ValidationError);
    dated(2 * day);
    client.trackEvent(event);
    await client.flush();
    client.trackEvent(soon);
    t.mock.method(Date, 'now', () => 10_000);
    followServer(undefined);
    client.trackEvent({ ...event, timestamp: '2026-01-02T03:04:05Z' });
  });
});
