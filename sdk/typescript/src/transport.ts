import http from 'node:http';
import https from 'node:https';

import { authorities, hostOf, proxyHeaders, TunnelAgent } from './agents.js';
import { mediaTypeOf, type Answer } from './answer.js';
import { ClosedError, NetworkError, TimeoutError, ValidationError, type SluiceError } from './errors.js';
import { proxyOf, type Environment } from './proxies.js';
import { NotSentError } from './retry.js';

const redirectsMax = 3;

export interface Request {
  method: string;
  /** With the query string. */
  path: string;
  headers?: http.OutgoingHttpHeaders;
  body?: Buffer;
  timeoutMs: number;
  /** Whether the request changes nothing. In a browser, such a request does not outlive its page. */
  isRead?: boolean;
}

/** An answer that may be read while it comes. */
export interface OpenAnswer extends Answer {
  /**
   * The pieces of the body, if the status is 200 and the media type the one asked for; the body is empty then. The iteration throws a {@link NetworkError} if the body breaks
   * off, a {@link TimeoutError} if nothing comes for too long, and a {@link ClosedError}. Whoever leaves it early ends the request.
   */
  pieces?: AsyncGenerator<Uint8Array, void, undefined>;
}

export interface TransportOptions {
  /** A PEM file of further certificate authorities. */
  caFile?: string | undefined;
  /** Default: the process's own. */
  environment?: Environment;
}

/** Sends HTTP requests to one server. It keeps its connections open, uses the environment's proxy, and follows safe redirects. */
export class Transport {
  readonly #url: URL;
  readonly #basePath: string;
  readonly #headers: http.OutgoingHttpHeaders;
  readonly #agents = new Map<string, http.Agent>();
  readonly #ca: string[] | undefined;
  readonly #environment: Environment;
  readonly #signal: AbortSignal;

  /** The abort signal ends the requests under way with a {@link ClosedError}. It throws a {@link ValidationError}. */
  constructor(url: string, apiKey: string | undefined, signal: AbortSignal, { caFile, environment }: TransportOptions = {}) {
    if (!URL.canParse(url) || !/^https?:$/.test(new URL(url).protocol)) {
      throw new ValidationError('url', 'must be an address such as http://127.0.0.1:8080');
    }
    this.#url = new URL(url);
    this.#basePath = this.#url.pathname.replace(/\/+$/, '');
    this.#headers = { 'User-Agent': 'sluice-typescript/0.1.0', Accept: 'application/json' };
    if (apiKey !== undefined) {
      if (!/^[!-~]+$/.test(apiKey)) {
        throw new ValidationError('apiKey', 'must be printable ASCII characters'); // the message never contains the key
      }
      this.#headers.Authorization = `Bearer ${apiKey}`;
    }
    this.#ca = caFile === undefined ? undefined : authorities(caFile);
    this.#environment = environment ?? process.env;
    this.#signal = signal;
    proxyOf(this.#url, this.#environment); // throws for an invalid proxy
  }

  /** Returns the agent for requests to the URL, one for each scheme. */
  #agentOf(url: URL, proxy: URL | undefined): http.Agent {
    let agent = this.#agents.get(url.protocol);
    if (agent === undefined) {
      // Node lets the process end while kept connections are idle.
      const options = { keepAlive: true, ...(this.#ca && { ca: this.#ca }) };
      if (url.protocol === 'http:') {
        agent = new http.Agent(options);
      } else if (proxy === undefined) {
        agent = new https.Agent(options);
      } else {
        agent = new TunnelAgent(proxy, options);
      }
      this.#agents.set(url.protocol, agent);
    }
    return agent;
  }

  /**
   * Sends a request and returns the answer, whatever its status. It follows redirects 307 and 308 to the same server. It throws a
   * {@link NetworkError}, {@link TimeoutError} or {@link ClosedError}.
   */
  async send(request: Request): Promise<Answer> {
    return this.#follow(request, whole);
  }

  /**
   * Sends a request as {@link Transport.send} does, and returns the answer when it begins, if it has the media type. `idleMs` is how long
   * nothing may come then.
   */
  async open(request: Request, mediaType: string, idleMs: number): Promise<OpenAnswer> {
    return this.#follow(request, async (response, sent) =>
      response.statusCode === 200 && mediaTypeOf(response.headers['content-type']) === mediaType
        ? { status: 200, headers: response.headers, body: Buffer.alloc(0), pieces: pieces(response, sent, idleMs) }
        : whole(response, sent));
  }

  /** Sends the request and has `read` read the answer within the request's time. It follows redirects. */
  async #follow<T extends Answer>(request: Request, read: (response: http.IncomingMessage, sent: Sent) => Promise<T>): Promise<T> {
    const end = performance.now() + request.timeoutMs;
    // The path stays text, because a URL would resolve the ids %2E and %2E%2E as "." and "..".
    let path = this.#basePath + request.path;
    let url = new URL(path, this.#url);
    for (let hops = 0; ; hops++) {
      const answer = await this.#sendTo(url, path, request, Math.max(end - performance.now(), 1), read);
      const location = answer.status >= 300 && answer.status < 400 ? answer.headers.location : undefined;
      if (location === undefined) {
        return answer;
      }
      if (!URL.canParse(location, url.href)) {
        return { ...answer, location };
      }
      const target = new URL(location, url);
      if (hops === redirectsMax || !mayFollow(answer.status, url, target)) {
        return { ...answer, location: `${target.protocol}//${target.host}${target.pathname}` };
      }
      url = target;
      path = target.pathname + target.search;
    }
  }

  #sendTo<T>(
    url: URL,
    target: string,
    { method, path, headers, body, timeoutMs }: Request,
    leftMs: number,
    read: (response: http.IncomingMessage, sent: Sent) => Promise<T>,
  ): Promise<T> {
    return new Promise((resolve, reject) => {
      const proxy = proxyOf(url, this.#environment);
      // For http, the proxy gets the whole address instead of a path. For https, the proxy makes a tunnel.
      const asked = url.protocol === 'http:' ? proxy : undefined;
      const to = asked ?? url;
      const request = (url.protocol === 'https:' ? https : http).request({
        protocol: to.protocol,
        hostname: hostOf(to),
        port: to.port,
        method,
        path: asked === undefined ? target : url.origin + target,
        headers: {
          ...this.#headers,
          ...headers,
          ...(body && { 'Content-Length': body.length }),
          ...(asked && { Host: url.host, ...proxyHeaders(asked) }),
        },
        agent: this.#agentOf(url, proxy),
        signal: this.#signal,
      });
      let connected = false;
      request.on('socket', (socket) => {
        connected = !socket.connecting;
        if (socket.connecting) {
          // A kept connection never emits "connect" again, and would collect a listener for each request.
          socket.once('connect', () => {
            connected = true;
          });
        }
      });
      const what = `${method} ${path.replace(/\?.*/, '')}`;
      const sent: Sent = {
        what,
        failure: (error) => {
          if (this.#signal.aborted) {
            return new ClosedError();
          }
          // An address with several IPs fails with an AggregateError, whose own message is empty.
          const reason = error.message || (error.code ?? 'no connection');
          return new (connected ? NetworkError : NotSentError)(`${what}: ${reason}`, { cause: error });
        },
      };
      const timer = setTimeout(() => {
        reject(new TimeoutError(`${what}: no answer in ${timeoutMs} ms`));
        request.destroy();
      }, leftMs);
      const settled = () => { clearTimeout(timer); };
      request.on('error', (error) => {
        settled();
        reject(sent.failure(error));
      });
      request.on('response', (response) => {
        read(response, sent).then(resolve, reject).finally(settled);
      });
      request.end(body);
    });
  }

  close(): void {
    for (const agent of this.#agents.values()) {
      agent.destroy();
    }
  }
}

/** A request that was sent. */
interface Sent {
  /** The method and the path. */
  what: string;
  /** Returns the error of this library for an error of Node's. */
  failure: (error: NodeJS.ErrnoException) => SluiceError;
}

/** Reads an answer to its end. */
function whole(response: http.IncomingMessage, sent: Sent): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    response.on('data', (chunk: Buffer) => chunks.push(chunk));
    response.on('error', (error) => { reject(sent.failure(error)); });
    response.on('end', () => { resolve({ status: response.statusCode ?? 0, headers: response.headers, body: Buffer.concat(chunks) }); });
  });
}

async function* pieces(response: http.IncomingMessage, sent: Sent, idleMs: number): AsyncGenerator<Uint8Array, void, undefined> {
  let timer: NodeJS.Timeout | undefined;
  const wait = () => {
    timer = setTimeout(() => { response.destroy(new TimeoutError(`${sent.what}: nothing came for ${idleMs} ms`)); }, idleMs);
  };
  try {
    wait(); // the timer runs while this waits for the server, not while the caller has a piece
    for await (const piece of response as AsyncIterable<Buffer>) {
      clearTimeout(timer);
      yield piece;
      wait();
    }
  } catch (error) {
    throw error instanceof TimeoutError ? error : sent.failure(error as NodeJS.ErrnoException);
  } finally {
    clearTimeout(timer);
    response.destroy();
  }
}

/**
 * Whether a redirect may be followed: it keeps the method and the body (307 or 308), and leads to the same scheme, host and port. A
 * redirect of a host from http to https, both at their default ports, may be followed too.
 */
export function mayFollow(status: number, from: URL, to: URL): boolean {
  if ((status !== 307 && status !== 308) || from.hostname !== to.hostname || to.username !== '' || to.password !== '') {
    return false;
  }
  if (from.protocol === 'http:' && to.protocol === 'https:') {
    return from.port === '' && to.port === ''; // a default port is the empty string
  }
  return from.protocol === to.protocol && from.port === to.port;
}
