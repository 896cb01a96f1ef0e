import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { describe, test } from 'node:test';

import { camelCase } from '../driver/names.js';
import { conversationHash, makeId, mintId, nowMicros } from '../src/ids.js';
import { Client, ValidationError, type EventUpdate, type NewEvent } from '../src/index.js';
import { startSender } from './sender-harness.js';
import { FakeServer } from './server.js';

interface Call {
  name: string;
  call: 'track' | 'update' | 'delete';
  event: object;
  id: string;
  fields: EventUpdate;
}

const read = (name: string) => readFileSync(new URL(`../../../spec/vectors/${name}.json`, import.meta.url), 'utf8');

// Microseconds may be larger than the integers that a number holds exactly.
const ids = JSON.parse(read('ids').replace(/"unix_micros": (\d+)/g, '"unix_micros": "$1"')) as {
  sequences: {
    name: string;
    first: string;
    steps: { clock_micros: number; timestamp_micros?: number; conversation_id: string; unix_micros: string; id: string }[];
  }[];
  mint: { name: string; conversation_id: string; unix_micros: string; hash: string; random: string; id: string }[];
};

const clients = JSON.parse(read('clients')) as {
  bodies: (Call & { item: object; minted?: boolean; id_prefix?: string })[];
  invalid: (Call & { field: string; repeat_dimensions?: number })[];
  responses: {
    name: string;
    status: number;
    headers: Record<string, string>;
    body: string;
    outcome: 'done' | 'refused' | 'retried';
    error?: { status: number; code?: string; detail?: string; field?: string };
    retry_after?: number;
  }[];
};

function make(client: Client, { call, event, id, fields }: Call): string {
  switch (call) {
    case 'track':
      return client.trackEvent(camelCase(event) as unknown as NewEvent);
    case 'update':
      client.updateEvent(id, camelCase(fields));
      return id;
    case 'delete':
      client.deleteEvent(id);
      return id;
  }
}

describe('ids.json', () => {
  for (const { name, conversation_id, unix_micros, hash, random, id } of ids.mint) {
    test(name, () => {
      const micros = BigInt(unix_micros);
      const bits = BigInt(random);
      const got = conversationHash(conversation_id);
      assert.equal(got?.toString(16).padStart(6, '0'), hash);
      const parts = [Number(micros / 1000n), Number(micros % 1000n), got, Number(bits >> 32n), Number(bits & 0xffffffffn)] as const;
      assert.equal(makeId(...parts), id);
    });
  }
});

describe('ids.json: sequences', () => {
  for (const { name, first, steps } of ids.sequences) {
    test(name, () => {
      const process = { count: Number(first), lastMicros: 0 };
      for (const { clock_micros, timestamp_micros, conversation_id, unix_micros, id } of steps) {
        const micros = timestamp_micros ?? nowMicros(clock_micros, process);
        assert.equal(String(micros), unix_micros);
        const hash = conversationHash(conversation_id);
        assert.ok(hash !== undefined);
        assert.equal(mintId(micros, hash, process), id);
      }
    });
  }
});

describe('clients.json: bodies', () => {
  for (const vector of clients.bodies) {
    test(vector.name, async (t) => {
      const server = await FakeServer.start(t);
      const client = new Client({ url: server.url });
      const id = make(client, vector);
      await client.close();
      const [item] = server.items;
      assert.ok(item);
      if (vector.minted) {
        assert.equal(item.id, id);
        assert.ok(id.startsWith(vector.id_prefix ?? ''), id);
        assert.match(id, /^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
        assert.deepEqual(item, { ...vector.item, id });
      } else {
        assert.deepEqual(item, vector.item);
      }
    });
  }
});

describe('clients.json: invalid', () => {
  for (const vector of clients.invalid) {
    test(vector.name, async (t) => {
      const server = await FakeServer.start(t);
      const client = new Client({ url: server.url });
      if (vector.repeat_dimensions !== undefined) {
        Object.assign(vector.event, { output_embeddings: new Array(vector.repeat_dimensions).fill(0) });
      }
      assert.throws(
        () => make(client, vector),
        (error) => error instanceof ValidationError && error.field.startsWith(vector.field) && (vector.field !== '' || error.field === ''),
      );
      await client.close();
      assert.equal(server.received.length, 0);
    });
  }
});

describe('clients.json: responses', () => {
  for (const { name, status, headers, body, outcome, error, retry_after } of clients.responses) {
    test(name, async (t) => {
      const server = await FakeServer.start(t, (_, n) => (n === 1 ? { status, headers, body } : undefined));
      const { push, flush, failures, pauses } = startSender(t, server);
      push('order-1');
      await flush();
      assert.equal(server.received.length, outcome === 'retried' ? 2 : 1);
      if (outcome === 'refused') {
        const [failure] = failures;
        assert.equal(failure?.id, 'order-1');
        const { status, code, detail, field } = { code: undefined, detail: failure.error.detail, field: undefined, ...error };
        assert.deepEqual({ status, code, detail, field }, {
          status: failure.error.status,
          code: failure.error.code,
          detail: failure.error.detail,
          field: failure.error.field,
        });
      } else {
        assert.deepEqual(failures, []);
      }
      if (outcome === 'retried') {
        assert.ok((pauses.at(-1) ?? 0) >= Math.max(50, (retry_after ?? 0) * 1000), String(pauses));
      }
    });
  }
});
