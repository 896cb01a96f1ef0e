import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import { Readable, Writable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { describe, test, type TestContext } from 'node:test';

import { Client, type ClientOptions, type WriteFailure } from '../src/index.js';
import { FakeServer, type Item } from './server.js';

interface Case {
  name: string;
  parts: unknown[];
  repeat?: number;
  bytes?: boolean;
  take?: number;
  fails?: string;
  metadata?: object;
  output?: unknown;
  output_begins?: string;
  output_ends?: string;
  output_first?: unknown;
  output_last?: unknown;
  error?: string;
}

const { streams } = JSON.parse(readFileSync(new URL('../../../spec/vectors/streams.json', import.meta.url), 'utf8')) as { streams: Case[] };

async function open(t: TestContext, options: ClientOptions = {}) {
  const server = await FakeServer.start(t);
  const failures: WriteFailure[] = [];
  const client = new Client({ url: server.url, onError: (failure) => failures.push(failure), ...options });
  t.after(() => client.close({ timeoutMs: 0 }).catch(() => undefined));
  const tracked = async (): Promise<Item> => {
    await client.flush();
    const [item, ...others] = server.items;
    assert.ok(item);
    assert.deepEqual(others, []);
    return item;
  };
  return { server, client, failures, tracked };
}

function partsOf({ parts, repeat = 1, bytes }: Case): unknown[] {
  const once = parts.map((part) => (bytes ? Buffer.from(part as string, 'base64') : part));
  return Array.from({ length: repeat }, () => once).flat();
}

function* generated(c: Case): Generator<unknown, void, undefined> {
  yield* partsOf(c);
  if (c.fails !== undefined) {
    throw new Error(c.fails);
  }
}

async function* generatedLater(c: Case): AsyncGenerator<unknown, void, undefined> {
  await Promise.resolve();
  yield* generated(c);
}

/** An async iterable, as the client libraries of models return it. */
class ModelStream implements AsyncIterable<unknown> {
  readonly controller = new AbortController();
  constructor(private readonly iterate: () => AsyncIterator<unknown>) {}
  [Symbol.asyncIterator](): AsyncIterator<unknown> {
    return this.iterate();
  }
}

function webStream(c: Case): ReadableStream<unknown> {
  const parts = generated(c);
  return new ReadableStream<unknown>({
    pull(controller) {
      try {
        const { done, value } = parts.next();
        if (done) controller.close();
        else controller.enqueue(value);
      } catch (error) {
        controller.error(error);
      }
    },
  }, { highWaterMark: 0 });
}

/** Takes the given number of parts, closes the stream, and returns the parts. */
async function take(stream: AsyncIterable<unknown> | Iterable<unknown>, most = Infinity): Promise<unknown[]> {
  const taken: unknown[] = [];
  const iterator = Symbol.asyncIterator in stream ? stream[Symbol.asyncIterator]() : stream[Symbol.iterator]();
  while (taken.length < most) {
    const step: { done?: boolean | undefined; value?: unknown } = await iterator.next();
    if (step.done) return taken;
    taken.push(step.value);
  }
  await iterator.return?.();
  return taken;
}

const kinds: Record<string, (c: Case) => AsyncIterable<unknown> | Iterable<unknown>> = {
  'a generator': generated,
  'an async generator': generatedLater,
  'an iterable of a model': (c) => new ModelStream(() => generatedLater(c)),
  'a ReadableStream': webStream,
};

for (const [kind, make] of Object.entries(kinds)) {
  for (const settled of [false, true]) {
    describe(`streams.json: ${settled ? 'a promise of ' : ''}${kind}`, () => {
      for (const c of streams) {
        test(c.name, async (t) => {
          const { client, tracked } = await open(t);
          const call = () => (settled ? Promise.resolve(make(c)) : make(c));
          const stream = await client.trace('c1', call, { ...(c.metadata && { conversationMetadata: c.metadata }) });
          let failed: Error | undefined;
          const taken = await take(stream, c.take).catch((error: unknown) => {
            failed = error as Error;
            return partsOf(c);
          });
          assert.deepEqual(taken, partsOf(c).slice(0, c.take));
          assert.equal(failed?.message, c.fails);
          const { error, output, latency, conversation_metadata: metadata, ...rest } = await tracked();
          assert.equal(error, c.error);
          assert.equal('output' in rest, false);
          if (taken.length === 0) {
            assert.equal(metadata, undefined);
            assert.equal(output, undefined);
            return;
          }
          const { time_to_first_token_ms: first, ...others } = metadata as Record<string, unknown>;
          assert.ok(typeof first === 'number' && first >= 0 && first <= (latency as number), `${String(first)} of ${String(latency)}`);
          assert.deepEqual(others, c.metadata ?? {});
          if (c.output_ends !== undefined) {
            assert.ok((output as string).startsWith(c.output_begins ?? ''));
            assert.ok((output as string).endsWith(c.output_ends));
          } else if (c.output_last !== undefined) {
            assert.deepEqual((output as unknown[])[0], c.output_first);
            assert.deepEqual((output as unknown[]).at(-1), c.output_last);
          } else {
            assert.deepEqual(output, c.output);
          }
        });
      }
    });
  }
}

describe('the caller of a stream', () => {
  test('gets the same generator, with all its methods', async (t) => {
    const { client, tracked } = await open(t);
    const log: unknown[] = [];
    function* talk(): Generator<string, number, string> {
      log.push(yield 'one');
      try {
        yield 'two';
      } catch (error) {
        log.push((error as Error).message);
      }
      yield 'three';
      return 7;
    }
    const talking = talk();
    assert.equal(client.trace('c1', () => talking), talking);
    assert.equal(talking.next('').value, 'one');
    assert.equal(talking.next('hello').value, 'two');
    assert.equal(talking.throw(new Error('no')).value, 'three');
    assert.deepEqual(talking.next(''), { done: true, value: 7 });
    assert.deepEqual(log, ['hello', 'no']);
    assert.equal((await tracked()).output, 'onetwothree');
  });

  test('gets the same promise and stream if the promise has a class of its own', async (t) => {
    const { client, tracked } = await open(t);
    class ApiPromise<T> extends Promise<T> {}
    const stream = new ModelStream(() => generatedLater({ name: '', parts: ['a', 'b'] }));
    const promise = ApiPromise.resolve(stream);
    assert.equal(client.trace('c1', () => promise), promise);
    assert.equal(await promise, stream);
    for await (const part of await promise) {
      assert.equal(part, 'a');
      break;
    }
    assert.equal((await tracked()).output, 'a');
  });

  test('can cancel a ReadableStream', async (t) => {
    const { client, tracked } = await open(t);
    let cancelled: unknown;
    const plain = new ReadableStream<string>({ pull(c) { c.enqueue('x'); }, cancel(reason) { cancelled = reason; } });
    const reader = client.trace('c1', () => plain).getReader();
    assert.deepEqual(await reader.read(), { done: false, value: 'x' });
    await reader.cancel('enough');
    assert.equal(cancelled, 'enough');
    assert.equal((await tracked()).output, 'x');
  });

  test('keeps the pooled memory of the parts', async (t) => {
    const { client, tracked } = await open(t);
    const part = Buffer.from('pooled');
    const stream = client.trace('c1', () => new ReadableStream<Uint8Array>({ start(c) { c.enqueue(part); c.close(); } }));
    assert.equal(await new Response(stream).text(), 'pooled');
    assert.equal(part.toString(), 'pooled');
    assert.equal((await tracked()).output, 'pooled');
  });

  for (const how of ['for await', 'pipe', 'data'] as const) {
    test(`reads a Node stream by ${how}`, async (t) => {
      const { client, tracked } = await open(t);
      const source = Readable.from(['a', 'b', 'c'].map((text) => Buffer.from(text)));
      const stream = await client.trace('c1', () => Promise.resolve(source));
      assert.equal(stream, source);
      let got = '';
      if (how === 'for await') {
        for await (const part of stream) got += String(part);
      } else if (how === 'pipe') {
        await pipeline(stream, new Writable({ write(part, _, done) { got += String(part); done(); } }));
      } else {
        stream.on('data', (part) => { got += String(part); });
        await once(stream, 'end');
      }
      assert.equal(got, 'abc');
      assert.equal((await tracked()).output, 'abc');
    });
  }

  test('gets the error of a Node stream', async (t) => {
    const { client, tracked } = await open(t);
    const stream = client.trace('c1', () => Readable.from(generatedLater({ name: '', parts: ['a'], fails: 'broke' })));
    await assert.rejects(async () => {
      for await (const part of stream) assert.equal(part, 'a');
    }, /broke/);
    const { output, error } = await tracked();
    assert.deepEqual([output, error], ['a', 'broke']);
  });

  for (const value of [[1], new Map([[1, 2]]), new Set([1]), 'text', Buffer.from('x'), { next: 1 }, { a: 1 }]) {
    test(`gets a value that is not a stream: ${JSON.stringify(value)} ${value.constructor.name}`, async (t) => {
      const { client, tracked } = await open(t);
      assert.equal(client.trace('c1', () => value), value);
      assert.equal('conversation_metadata' in (await tracked()), false);
    });
  }

  test('gets a frozen stream unwatched', async (t) => {
    const { client, tracked } = await open(t);
    const stream = client.trace('c1', () => Object.freeze(generated({ name: '', parts: ['a'] })));
    assert.deepEqual([...stream], ['a']);
    await tracked();
  });
});

describe('a Response', () => {
  async function startModel(t: TestContext, listen: http.RequestListener): Promise<string> {
    const server = http.createServer(listen).listen(0, '127.0.0.1');
    await once(server, 'listening');
    t.after(() => {
      server.close();
      server.closeAllConnections();
    });
    return `http://127.0.0.1:${(server.address() as AddressInfo).port}/answer`;
  }

  for (const [how, read] of Object.entries({
    text: (response) => response.text(),
    json: async (response) => JSON.stringify(await response.json()),
    arrayBuffer: async (response) => Buffer.from(await response.arrayBuffer()).toString(),
    blob: async (response) => (await response.blob()).text(),
    body: async (response) => {
      const decoder = new TextDecoder();
      let text = '';
      for await (const part of response.body as unknown as AsyncIterable<Uint8Array>) text += decoder.decode(part, { stream: true });
      return text;
    },
    reader: async (response) => {
      const reader = (response.body as ReadableStream<Uint8Array>).getReader({ mode: 'byob' });
      let text = '';
      for (;;) {
        const { done, value } = await reader.read(new Uint8Array(3));
        if (done) return text;
        text += Buffer.from(value).toString();
      }
    },
    clone: async (response) => {
      const copy = response.clone();
      assert.equal(copy.url, response.url);
      const [a, b] = await Promise.all([copy.text(), response.text()]);
      assert.equal(a, b);
      return a;
    },
    'another response': (response) => new Response(response.body, response).text(),
  } satisfies Record<string, (response: Response) => Promise<string>>)) {
    test(`is read by ${how}`, async (t) => {
      const { client, tracked } = await open(t);
      const url = await startModel(t, (_, response) => response.writeHead(201, { 'Content-Type': 'application/json', 'X-Model': 'm' }).end('{"a":"b"}'));
      let own: Response | undefined;
      const response = await client.trace('c1', async () => (own = await fetch(url)));
      assert.equal(response, own);
      assert.ok(response instanceof Response);
      assert.deepEqual([response.status, response.ok, response.url, response.headers.get('x-model'), response.bodyUsed], [201, true, url, 'm', false]);
      assert.equal(await read(response), '{"a":"b"}');
      assert.equal(response.bodyUsed, true);
      const { output, conversation_metadata: metadata, latency } = await tracked();
      assert.equal(output, '{"a":"b"}');
      const { time_to_first_token_ms: first } = metadata as { time_to_first_token_ms: number };
      assert.ok(first >= 0 && first <= (latency as number));
    });
  }

  test('ends its request when the reader stops', async (t) => {
    const { client, tracked } = await open(t);
    const closed = new Promise<void>((resolve) => {
      t.after(() => { resolve(); });
      void startModel(t, (_, response) => {
        response.on('close', () => { resolve(); });
        response.write('data: 1\n\n');
      }).then(async (url) => {
        const response = await client.trace('c1', () => fetch(url));
        const reader = (response.body as ReadableStream<Uint8Array>).getReader();
        assert.equal(Buffer.from((await reader.read()).value ?? []).toString(), 'data: 1\n\n');
        await reader.cancel();
      });
    });
    await closed;
    assert.equal((await tracked()).output, 'data: 1\n\n');
  });

  test('is tracked without a body, or after it was read', async (t) => {
    const { client, server } = await open(t);
    const empty = client.trace('c1', () => new Response(null, { status: 204 }));
    assert.equal(empty.status, 204);
    const read = await client.trace('c1', async () => {
      const response = new Response('x');
      await response.text();
      return response;
    });
    assert.equal(read.bodyUsed, true);
    await client.flush();
    assert.deepEqual(server.items.map(({ output }) => output), [undefined, undefined]);
  });

  test('is tracked when the client is closed, if it is never read', async (t) => {
    const { client, server } = await open(t);
    const response = client.trace('c1', () => new Response('x'));
    await client.close();
    assert.equal(server.items.length, 1);
    assert.equal(await response.text(), 'x');
  });
});

test('a stream that is open when the client is closed is tracked with its parts so far', async (t) => {
  const { client, server } = await open(t);
  const stream = client.trace('c1', () => generated({ name: '', parts: ['a', 'b'] }));
  stream.next();
  await client.close();
  assert.deepEqual([...stream], ['b']);
  assert.deepEqual(server.items.map(({ output }) => output), ['a']);
});

test('fields that are set on the span during the stream are tracked', async (t) => {
  const { client, tracked } = await open(t);
  const stream = client.trace('c1', function* (span) {
    yield 'a';
    span.output = { usage: 1 };
    span.error = 'cut short';
  });
  assert.deepEqual([...stream], ['a']);
  const { output, error } = await tracked();
  assert.deepEqual([output, error], [{ usage: 1 }, 'cut short']);
});

test('an emoji that is split between two parts is tracked whole', async (t) => {
  const { client, tracked } = await open(t);
  assert.equal([...client.trace('c1', () => generated({ name: '', parts: ['\ud83d', '\ude00'] }))].length, 2);
  assert.equal((await tracked()).output, '\u{1f600}');
});

test('a full queue fails no stream', async (t) => {
  const { client, failures } = await open(t, { queueWritesMax: 1, batchAgeMaxMs: 2 ** 30 });
  client.trackEvent({ conversationId: 'c1', eventName: 'event_a' });
  assert.deepEqual([...client.trace('c1', () => generated({ name: '', parts: ['a'] }))], ['a']);
  await Promise.resolve();
  assert.deepEqual(failures.map(({ code }) => code), ['queue_full']);
});
