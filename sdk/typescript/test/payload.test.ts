import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import { encodeCreate, encodeUpdate } from '../src/encode.js';
import { Client, ValidationError, type NewEvent } from '../src/index.js';
import { depthMax } from '../src/payload.js';
import { FakeServer } from './server.js';

const event = { conversationId: 'c1', eventName: 'event_a' };

function encoded(fields: Partial<NewEvent>): { text: string; item: Record<string, unknown> } {
  const text = encodeCreate({ ...event, ...fields }, {}).line.toString();
  return { text, item: JSON.parse(text) as Record<string, unknown> };
}

const cyclic: unknown[] = [1];
cyclic.push({ again: cyclic });

class Point {
  x = 1;
  #secret = 2;
  get sum(): number {
    return this.x + this.#secret;
  }
}

class Own {
  toJSON(): unknown {
    return { at: new Date(0), tags: new Set(['a']) };
  }
}

const thrower = {
  a: 1,
  get b(): never {
    throw new Error('on purpose');
  },
};

const failing = {
  toJSON(): never {
    throw new Error('on purpose');
  },
};

const values: [string, unknown, unknown][] = [
  ['a Date', new Date('2026-01-02T03:04:05.678Z'), '2026-01-02T03:04:05.678Z'],
  ['a Date that is none', new Date(NaN), 'Invalid Date'],
  ['a Map', new Map<unknown, unknown>([['a', 1], [2, new Map([[{}, 1n]])]]), { a: 1, 2: { '{}': 1 } }],
  ['a Set', new Set([1, 'a']), [1, 'a']],
  ['bytes', Uint8Array.of(0, 255), 'AP8='],
  ['a Buffer', Buffer.from('abc'), 'YWJj'],
  ['a part of a buffer', new Uint8Array(Buffer.from('xabcx').buffer, Buffer.from('xabcx').byteOffset + 1, 0), ''],
  ['an ArrayBuffer', Uint8Array.of(1, 2, 3).buffer, 'AQID'],
  ['floats', Float32Array.of(0.5, NaN), [0.5, 'NaN']],
  ['big integers', BigInt64Array.of(1n), [1]],
  ['NaN', NaN, 'NaN'],
  ['infinities', [Infinity, -Infinity], ['Infinity', '-Infinity']],
  ['half an emoji', '😀'.slice(0, 1), '\ufffd'],
  ['half an emoji as a key', { ['😀'.slice(1)]: '😀'.slice(0, 1) }, { '\ufffd': '\ufffd' }],
  ['a whole one', { '😀': '😀' }, { '😀': '😀' }],
  ['an array within itself', cyclic, [1, { again: '[circular]' }]],
  ['a class', new Point(), { x: 1 }],
  ['toJSON', new Own(), { at: '1970-01-01T00:00:00.000Z', tags: ['a'] }],
  ['a URL', new URL('http://h/x'), 'http://h/x'],
  ['a RegExp', /a/g, '/a/g'],
  ['undefined', [undefined, { a: undefined }], [null, {}]],
  ['boxed', [Object(1n), Object('a'), Object(true)], [1, 'a', true]],
  ['no prototype', Object.assign(Object.create(null) as object, { a: 1n }), { a: 1 }],
  ['a symbol', Symbol('s'), 'Symbol(s)'],
];

describe('values that JSON does not know', () => {
  for (const [name, value, want] of values) {
    test(name, () => {
      assert.deepEqual(encoded({ input: value }).item.input, want);
      assert.deepEqual(encoded({ output: { a: [value] } }).item.output, { a: [want ?? null] });
      assert.deepEqual(encoded({ conversationMetadata: { m: value } }).item.conversation_metadata, { m: want });
      assert.deepEqual((JSON.parse(encodeUpdate('x', { output: value }, {}).line.toString()) as { output: unknown }).output, want);
    });
  }

  test('a BigInt keeps all of its digits', () => {
    assert.ok(encoded({ input: { n: 12345678901234567890n } }).text.includes('"input":{"n":12345678901234567890}'));
  });

  test('an Error', () => {
    const error = Object.assign(new TypeError('no', { cause: new Error('deeper') }), { code: 'E1' });
    const { name, message, stack, cause, code } = (encoded({ output: { error } }).item.output as { error: Record<string, unknown> }).error;
    assert.deepEqual([name, message, code], ['TypeError', 'no', 'E1']);
    assert.match(String(stack), /payload\.test/);
    assert.equal((cause as Error).message, 'deeper');
  });

  test('a value whose methods throw', () => {
    for (const value of [thrower, failing, () => 1, new Proxy({}, { ownKeys: () => { throw new Error('on purpose'); } })]) {
      assert.equal(typeof encoded({ input: value }).item.input, 'string');
    }
  });

  test('the same object twice is not circular', () => {
    const part = { a: new Set([1]) };
    assert.deepEqual(encoded({ input: [part, part] }).item.input, [{ a: [1] }, { a: [1] }]);
  });

  test('a value that nests too deep becomes text', () => {
    for (const levels of [depthMax, depthMax + 1, 100_000]) {
      let value: unknown = 'end';
      for (let i = 0; i < levels; i++) {
        value = [value];
      }
      let depth = 0;
      let at = encoded({ input: value }).item.input;
      for (; Array.isArray(at); depth++) {
        at = (at as unknown[])[0];
      }
      assert.equal(depth, Math.min(levels, depthMax));
      assert.equal(typeof at, 'string');
    }
  });

  test('an Error in the field error is encoded as its message', () => {
    assert.equal(encoded({ error: new Error('late') as never }).item.error, 'late');
  });
});

test('two keys with the same text are refused by trackEvent, and renamed in a traced call', async (t) => {
  const server = await FakeServer.start(t);
  const client = new Client({ url: server.url });
  const value = new Map<unknown, unknown>([[1, 'a'], ['1', 'b']]);
  assert.throws(
    () => client.trackEvent({ ...event, input: value }),
    (error) => error instanceof ValidationError && error.field === 'input',
  );
  client.trace('c1', () => value);
  await client.close();
  assert.deepEqual(server.items.map(({ output }) => output), [{ 1: 'a', '1 (2)': 'b' }]);
});

describe('a value that is too large', () => {
  const big: Record<string, Partial<NewEvent>> = {
    'a text': { input: 'x'.repeat(2_000_000) },
    'texts of more bytes as JSON': { input: 'é'.repeat(2_000_000), output: '\0'.repeat(1_000_000) },
    'many numbers': { input: Array.from({ length: 500_000 }, (_, i) => i), output: '"\\'.repeat(500_000) },
    'many short texts': { input: new Array(20_000).fill('\u0001'.repeat(100)), output: new Array(20_000).fill('\u0001'.repeat(100)) },
    'an error': { error: 'e'.repeat(3_000_000), input: 'y'.repeat(1_100_000), output: 'z' },
    'bytes': { input: { image: new Uint8Array(1_500_000) } },
    'a key': { input: { ['k'.repeat(2_000_000)]: 1 } },
  };
  for (const [name, fields] of Object.entries(big)) {
    test(`${name} is cut`, () => {
      const { text, item } = encoded({ ...fields, latency: 3 });
      assert.ok(Buffer.byteLength(text) - 1 <= 1 << 20 && text.length > 200_000, String(text.length));
      assert.ok(text.includes('sluice_truncated'));
      assert.equal(item.latency, 3);
      for (const field of Object.keys(fields)) {
        assert.ok(field in item, field);
      }
    });
  }

  test('keeps everything else', () => {
    const input = [{ role: 'user', content: 'x'.repeat(1_500_000) }, { role: 'assistant', content: 'hi' }];
    const [first, second] = encoded({ input }).item.input as { role: string; content: string }[];
    assert.equal(first?.role, 'user');
    assert.ok(first.content.endsWith('… [sluice_truncated: 1500000 bytes]') && first.content.length > 1_000_000);
    assert.deepEqual(second, input[1]);
  });

  test('metadata loses its last members', () => {
    const metadata = { plan: 'pro', large: 'x'.repeat(20_000), user: 'u1' };
    assert.deepEqual(encoded({ conversationMetadata: metadata }).item.conversation_metadata, {
      sluice_truncated: { bytes: JSON.stringify(metadata).length },
      plan: 'pro',
      user: 'u1',
    });
  });
});

describe('strict', () => {
  for (const [name, input] of Object.entries({
    'a field that refers to itself': cyclic,
    'a BigInt': [1n],
    'a function': () => 1,
    'a Map': new Map([[1, 2]]),
    'half an emoji': '😀'.slice(1),
    'NaN': { a: NaN },
    'more than 1 MiB': 'x'.repeat(1 << 20),
  })) {
    test(`refuses ${name}`, () => {
      assert.throws(() => encodeCreate({ ...event, input }, { strict: true }), ValidationError);
      assert.throws(() => encodeUpdate('x', { output: input }, { strict: true }), ValidationError);
    });
  }

  test('accepts every JSON value', () => {
    encodeCreate({ ...event, input: { a: [1, 'b', null, true], at: new Date(0) }, error: 'x' }, { strict: true });
    assert.throws(() => encodeCreate({ ...event, error: new Error('x') as never }, { strict: true }), ValidationError);
  });
});

describe('a traced call', () => {
  test('has its input as it was when it was set', async (t) => {
    const server = await FakeServer.start(t);
    const client = new Client({ url: server.url, strict: true });
    const messages = [{ role: 'user', content: 'hello' }];
    const plan: { plan?: string } = { plan: 'pro' };
    client.trace('c1', (span) => {
      span.input = messages;
      span.conversationMetadata = plan;
      assert.equal(span.input, messages);
      messages.push({ role: 'assistant', content: 'hi' });
      delete plan.plan;
      return new Map([['a', 'x'.repeat(2_000_000)]]);
    });
    await client.close();
    const [item] = server.items as unknown as { input: unknown; conversation_metadata: unknown; output: { a: string } }[];
    assert.deepEqual(item?.input, [{ role: 'user', content: 'hello' }]);
    assert.deepEqual(item.conversation_metadata, { plan: 'pro' });
    assert.ok(item.output.a.endsWith('… [sluice_truncated: 2000000 bytes]'));
  });

  test('leaves out invalid embeddings, and states the original size of a string that was cut twice', async (t) => {
    t.mock.method(console, 'warn', () => undefined);
    const server = await FakeServer.start(t);
    const client = new Client({ url: server.url });
    client.trace('c1', (span) => {
      span.input = 'x'.repeat(3_000_000);
      span.inputEmbeddings = [NaN];
      return 'y'.repeat(3_000_000);
    });
    await client.close();
    const [item] = server.items;
    assert.equal(item?.input_embeddings, undefined);
    for (const field of ['input', 'output'] as const) {
      assert.ok(String(item?.[field]).endsWith('… [sluice_truncated: 3000000 bytes]'), field);
    }
  });

  test('is not harmed by an error that throws when it is read', () => {
    const client = new Client({ url: 'http://127.0.0.1:1' });
    const error = new Proxy(new Error('x'), { get: () => { throw new Error('on purpose'); } });
    let thrown: unknown;
    try {
      client.trace('c1', () => { throw error; });
    } catch (caught) {
      thrown = caught;
    }
    assert.ok(thrown === error);
  });
});
