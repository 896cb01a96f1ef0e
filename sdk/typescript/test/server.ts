import { once } from 'node:events';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import type { TestContext } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { gunzipSync } from 'node:zlib';

/** A request that the server received. */
export interface Received {
  method: string;
  /** The request target as sent: a path or a whole address. */
  target: string;
  path: string;
  query: URLSearchParams;
  headers: http.IncomingHttpHeaders;
  /** The body as sent, possibly compressed. */
  body: Buffer;
  /** The items of a batch. */
  items: Item[];
}

export type Item = { op?: string; id: string } & Record<string, unknown>;

export interface Reply {
  status?: number;
  headers?: Record<string, string>;
  body?: string | object;
  /** Breaks the connection instead. */
  reset?: boolean;
}

/** Answers a request; undefined stands for Sluice's answer to a batch that it accepts. */
export type Answer = (received: Received, number: number) => Reply | undefined | Promise<Reply | undefined>;

/** A real HTTP server in this process. It answers as a test says, and records the requests. */
export class FakeServer {
  url = '';
  readonly received: Received[] = [];
  answer: Answer = () => undefined;
  #receipts = 0;

  static async start(t: TestContext, answer?: Answer): Promise<FakeServer> {
    const fake = new FakeServer();
    if (answer !== undefined) {
      fake.answer = answer;
    }
    const server = http.createServer((request, response) => {
      void fake.#serve(request, response);
    });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    fake.url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    t.after(() => {
      server.close();
      server.closeAllConnections();
    });
    return fake;
  }

  /** Every item that was sent, in order. */
  get items(): Item[] {
    return this.received.flatMap(({ items }) => items);
  }

  /** The ids of each batch. */
  get batches(): string[][] {
    return this.received.map(({ items }) => items.map(({ id }) => id));
  }

  async #serve(request: http.IncomingMessage, response: http.ServerResponse): Promise<void> {
    const chunks: Buffer[] = [];
    for await (const chunk of request) {
      chunks.push(chunk as Buffer);
    }
    const body = Buffer.concat(chunks);
    const { pathname, searchParams } = new URL(request.url ?? '/', 'http://x');
    const text = (request.headers['content-encoding'] === 'gzip' ? gunzipSync(body) : body).toString();
    const items = !pathname.endsWith('/events') ? [] : text.split('\n').filter((line) => line !== '').map((line) => JSON.parse(line) as Item);
    const received = { method: request.method ?? '', target: request.url ?? '', path: pathname, query: searchParams, headers: request.headers, body, items };
    this.received.push(received);
    const reply = (await this.answer(received, this.received.length)) ?? {};
    if (reply.reset) {
      request.socket.destroy();
      return;
    }
    const content = reply.body ?? this.taken(items);
    response.writeHead(reply.status ?? 202, { 'Content-Type': 'application/json', ...reply.headers });
    response.end(typeof content === 'string' ? content : JSON.stringify(content));
  }

  /** Returns the results of an accepted batch. */
  taken(items: Item[]): { results: object[] } {
    return { results: items.map(({ id }) => ({ id, receipt: `1.0.${this.#receipts++}` })) };
  }
}

/** Waits until the condition holds. */
export async function until(condition: () => boolean): Promise<void> {
  const end = Date.now() + 20_000;
  while (!condition()) {
    if (Date.now() > end) {
      throw new Error(`it never came to: ${condition.toString()}`);
    }
    await sleep(2);
  }
}

/** A promise, and the function that settles it. */
export function deferred<T = void>(): { promise: Promise<T>; resolve: (value: T) => void } {
  let resolve: (value: T) => void = () => undefined;
  const promise = new Promise<T>((r) => {
    resolve = r;
  });
  return { promise, resolve };
}
