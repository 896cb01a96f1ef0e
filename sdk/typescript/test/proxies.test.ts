import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { describe, test } from 'node:test';

import { camelCase } from '../driver/names.js';
import { ApiError, Client, NetworkError, ValidationError } from '../src/index.js';
import { proxyFor, proxyOf } from '../src/proxies.js';
import { Transport } from '../src/transport.js';
import { FakeServer } from './server.js';

const read = (name: string) => readFileSync(new URL(`../../../spec/vectors/${name}.json`, import.meta.url), 'utf8');

describe('proxies.json', () => {
  const { proxies } = JSON.parse(read('proxies')) as {
    proxies: { url: string; environment: Record<string, string>; proxy: string | null }[];
  };
  for (const { url, environment, proxy } of proxies) {
    test(`${url} ${JSON.stringify(environment)}`, () => {
      assert.equal(proxyFor(new URL(url), environment) ?? null, proxy);
    });
  }
});

describe('clients.json: options', () => {
  const { options } = JSON.parse(read('clients')) as { options: { option: string; value: unknown; valid: boolean }[] };
  for (const { option, value, valid } of options) {
    test(`${option} ${JSON.stringify(value)}`, async () => {
      const [name = ''] = Object.keys(camelCase({ [option]: value }));
      const mine = name === 'waitApplied' ? 'waitAppliedSeconds' : name;
      const make = () => new Client({ [mine]: value });
      if (valid) {
        await make().close();
      } else {
        assert.throws(make, (error) => error instanceof ValidationError && error.field === mine);
      }
    });
  }
});

test('proxies that are not http addresses are refused', () => {
  for (const HTTP_PROXY of ['socks5://h:1', 'https://h:1', 'http://', 'http://h:port']) {
    assert.throws(
      () => proxyOf(new URL('http://sluice.example'), { HTTP_PROXY }),
      (error) => error instanceof ValidationError && error.field === 'HTTP_PROXY',
    );
  }
});

test('an HTTP proxy gets the whole address of an http request', async (t) => {
  const server = await FakeServer.start(t);
  const environment = { HTTP_PROXY: server.url.replace('//', '//us%65r:secret@') };
  const transport = new Transport('http://sluice.example:8080/base', 'k1', new AbortController().signal, { environment });
  await transport.send({ method: 'POST', path: '/events', body: Buffer.from('{"id":"a"}\n'), timeoutMs: 10_000 });
  transport.close();
  const [received] = server.received;
  assert.equal(received?.target, 'http://sluice.example:8080/base/events');
  assert.equal(received.headers.host, 'sluice.example:8080');
  assert.equal(received.headers.authorization, 'Bearer k1');
  assert.equal(received.headers['proxy-authorization'], `Basic ${Buffer.from('user:secret').toString('base64')}`);
});

test('an HTTP proxy is asked for a tunnel for https, without the API key', async (t) => {
  const asked: http.IncomingMessage[] = [];
  const proxy = http.createServer().on('connect', (request: http.IncomingMessage, socket) => {
    asked.push(request);
    socket.end('HTTP/1.1 403 Forbidden\r\n\r\n');
  });
  proxy.listen(0, '127.0.0.1');
  await once(proxy, 'listening');
  t.after(() => proxy.close());
  const environment = { HTTPS_PROXY: `127.0.0.1:${(proxy.address() as AddressInfo).port}` };
  const transport = new Transport('https://sluice.example', 'secret', new AbortController().signal, { environment });
  await assert.rejects(
    transport.send({ method: 'GET', path: '/', timeoutMs: 10_000 }),
    (error) => error instanceof NetworkError && error.message.includes('403'),
  );
  transport.close();
  assert.equal(asked[0]?.url, 'sluice.example:443');
  assert.equal(asked[0].headers.authorization, undefined);
});

test('the certificate authorities must be readable', (t) => {
  const dir = mkdtempSync(path.join(tmpdir(), 'sluice-ca-'));
  t.after(() => { rmSync(dir, { recursive: true, force: true }); });
  writeFileSync(path.join(dir, 'empty.pem'), '');
  for (const file of ['empty.pem', 'missing.pem']) {
    assert.throws(
      () => new Client({ caFile: path.join(dir, file) }),
      (error) => error instanceof ValidationError && error.field === 'caFile',
    );
  }
});

test('a read waits for more receipts than one request can have', async (t) => {
  const storedEvent = { id: 'a', conversation_id: 'c1' };
  const server = await FakeServer.start(t, ({ items, query }, n) => {
    if (n === 1) {
      return { body: { results: items.map(({ id }, i) => ({ id, receipt: `1.${i}.0` })) } };
    }
    return n === 2 ? { status: 404, body: { code: 'unknown_event' } } : { status: 200, body: { ...storedEvent, after: query.size } };
  });
  const client = new Client({ url: server.url });
  for (let i = 0; i < 250; i++) {
    client.trackEvent({ conversationId: 'c1', eventName: 'event_a' });
  }
  assert.equal((await client.event('a', { waitSeconds: 1 })).id, 'a');
  const after = server.received.slice(1).map(({ query }) => query.getAll('after'));
  assert.deepEqual(after.map(({ length }) => length), [100, 100, 50]);
  assert.equal(new Set(after.flat()).size, 250);
  server.answer = () => ({ status: 503, body: { code: 'not_yet_applied' } });
  const before = server.received.length;
  await assert.rejects(client.event('a', { waitSeconds: 1 }), (error) => error instanceof ApiError && error.code === 'not_yet_applied');
  assert.equal(server.received.length, before + 1);
  await client.close();
});
