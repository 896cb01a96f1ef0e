import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import { describe, test } from 'node:test';

import { Client } from '../src/index.js';
import { growAfterBatches } from '../src/limits.js';
import { mayFollow } from '../src/transport.js';
import { startSender } from './sender-harness.js';
import { FakeServer, type Item } from './server.js';

interface DeliveredWrite {
  op?: 'create' | 'update' | 'delete';
  id: string;
  minted?: boolean;
  bytes?: number;
}

/** A case of deliveries.json. */
interface Delivery {
  name: string;
  writes: DeliveredWrite[];
  more?: DeliveredWrite[][];
  limit_bytes?: number;
  wait_applied?: number;
  answers: { status: number; headers: Record<string, string>; body: string; hang_up?: boolean; missing_bytes?: number }[];
  requests: string[][] | null;
  paths?: string[];
  reported: { id: string; status: number; code: string }[];
  accepted?: [string, string][];
}

const vectors = JSON.parse(readFileSync(new URL('../../../spec/vectors/deliveries.json', import.meta.url), 'utf8')) as {
  deliveries: Delivery[];
  redirects: { status: number; from: string; location: string; followed: boolean }[];
};

function make(client: Client, { op, id, minted, bytes }: DeliveredWrite): string {
  switch (op) {
    case 'update':
      client.updateEvent(id, { latency: 1 });
      return id;
    case 'delete':
      client.deleteEvent(id);
      return id;
    default:
      return client.trackEvent({
        conversationId: 'c1',
        eventName: 'event_a',
        ...(!minted && { id }),
        ...(bytes && { input: 'x'.repeat(bytes) }),
      });
  }
}

describe('deliveries.json', { concurrency: true }, () => {
  for (const v of vectors.deliveries) {
    test(v.name, async (t) => {
      const requests: string[][] = [];
      const paths: string[] = [];
      const prefer = new Set<string | undefined>();
      const accepted: [string, string][] = [];
      let origin = new URL('http://x');
      const server = http.createServer((request, response) => {
        void (async () => {
          const chunks: Buffer[] = [];
          for await (const chunk of request) {
            chunks.push(chunk as Buffer);
          }
          const body = Buffer.concat(chunks);
          const items = body.toString().split('\n').filter((line) => line !== '').map((line) => JSON.parse(line) as Item);
          const answer = v.answers[requests.length];
          requests.push(items.map(({ id }) => id));
          paths.push(request.url ?? '');
          prefer.add(request.headers.prefer as string | undefined);
          assert.equal(request.method, 'POST');
          if (v.limit_bytes !== undefined && body.length > v.limit_bytes) {
            response.writeHead(413).end();
          } else if (answer?.hang_up) {
            request.socket.destroy();
          } else if (answer) {
            const fill = (text: string) =>
              text.replace('{origin}', origin.origin).replace('{scheme}', 'http').replace('{host}', origin.hostname).replace('{port}', origin.port);
            const headers = Object.fromEntries(Object.entries(answer.headers).map(([name, value]) => [name, fill(value)]));
            if (answer.missing_bytes !== undefined) {
              headers['Content-Length'] = String(Buffer.byteLength(answer.body) + answer.missing_bytes);
            }
            response.writeHead(answer.status, headers);
            if (answer.missing_bytes !== undefined) {
              response.write(answer.body, () => request.socket.destroy());
            } else {
              response.end(answer.body);
            }
          } else {
            accepted.push(...items.map(({ op, id }): [string, string] => [op ?? 'create', id]));
            response.writeHead(202).end(JSON.stringify({ results: items.map(({ id }, i) => ({ id, receipt: `1.0.${i}` })) }));
          }
        })();
      });
      server.listen(0, '127.0.0.1');
      await once(server, 'listening');
      origin = new URL(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
      t.mock.method(console, 'error', () => undefined);
      const reported: [string | undefined, number | undefined, string][] = [];
      const client = new Client({
        url: origin.href,
        batchAgeMaxMs: 3_600_000,
        waitAppliedSeconds: v.wait_applied,
        onError: ({ id, status, code }) => reported.push([id, status, code ?? '']),
      });
      t.after(async () => {
        await client.close({ timeoutMs: 0 }).catch(() => undefined);
        server.close();
        server.closeAllConnections();
      });
      const names = new Map<string | undefined, string>(); // names for minted ids
      let want: [string, string][] = [];
      for (const writes of [v.writes, ...(v.more ?? [])]) {
        for (const write of writes) {
          names.set(make(client, write), write.id);
          want.push([write.op ?? 'create', write.id]);
        }
        await client.flush({ timeoutMs: 60_000 });
      }

      assert.deepEqual(reported.map(([id, ...rest]) => [names.get(id), ...rest]), v.reported.map(({ id, status, code }) => [id, status, code]));
      if (v.requests !== null) {
        assert.deepEqual(requests.map((ids) => ids.map((id) => names.get(id))), v.requests);
      }
      if (v.paths !== undefined) {
        assert.deepEqual(paths, v.paths);
      }
      if (v.wait_applied !== undefined) {
        assert.deepEqual([...prefer], [`wait=${v.wait_applied}`]);
      } else {
        want = want.filter(([, id]) => !v.reported.some((error) => error.id === id));
        assert.deepEqual(accepted, v.accepted ?? want);
      }
    });
  }
});

describe('deliveries.json: redirects', () => {
  for (const { status, from, location, followed } of vectors.redirects) {
    test(`${status} from ${from} to ${location}`, () => {
      assert.equal(mayFollow(status, new URL(from), new URL(location, from)), followed);
    });
  }
});

test('a lowered byte limit is raised again after accepted batches', async (t) => {
  let refuse = true;
  const server = await FakeServer.start(t, ({ items }) => (refuse && items.length > 1 ? { status: 413, body: '' } : undefined));
  const { push, flush } = startSender(t, server);
  for (let i = 0; i < 4; i++) {
    push(`id-${i}`);
  }
  await flush();
  refuse = false;
  const before = server.received.length;
  for (let i = 0; i < 6 * growAfterBatches; i++) {
    push(`id-${i}`);
  }
  await flush();
  assert.ok(server.batches.slice(before).some((batch) => batch.length >= 4));
});
