import { existsSync, readFileSync } from 'node:fs';
import http from 'node:http';
import https from 'node:https';
import { isIP } from 'node:net';
import type { Duplex } from 'node:stream';
import tls from 'node:tls';

import { ApiError, ClosedError, NetworkError, TimeoutError, ValidationError, type SluiceError } from './errors.js';
import { proxyOf, type Environment } from './proxies.js';

/** An HTTP answer of any status. */
export interface Answer {
  status: number;
  headers: http.IncomingHttpHeaders;
  body: Buffer;
  /** The target of a redirect that was not followed, without its query and login, which may be secret. */
  location?: string;
}

/** The answer has a status of 2xx, and is not Sluice's. */
export class UnreadableError extends NetworkError {}

/** The connection failed, so that the request was not sent. */
class NotSentError extends NetworkError {}

const redirectsMax = 3;
const connectTimeoutMs = 30_000;

export interface Request {
  method: string;
  /** With the query string. */
  path: string;
  headers?: http.OutgoingHttpHeaders;
  body?: Buffer;
  timeoutMs: number;
}

export interface TransportOptions {
  /** A PEM file of further certificate authorities. */
  caFile?: string | undefined;
  /** Default: the process's own. */
  environment?: Environment;
}

function hostOf(url: URL): string {
  return url.hostname.replace(/^\[|\]$/g, '');
}

/** The headers by which the client logs in to a proxy. */
function proxyHeaders({ username, password }: URL): Record<string, string> {
  if (username === '') {
    return {};
  }
  const login = `${decodeURIComponent(username)}:${decodeURIComponent(password)}`;
  return { 'Proxy-Authorization': `Basic ${Buffer.from(login).toString('base64')}` };
}

/** Returns the certificates of the file, and the certificates that Node trusts without the file. */
function authorities(file: string): string[] {
  let own: string;
  try {
    own = readFileSync(file, 'utf8');
    // Node ignores text that is not a certificate.
    if (!own.includes('-----BEGIN CERTIFICATE-----')) {
      throw new Error('there is no certificate in PEM');
    }
    tls.createSecureContext({ ca: own });
  } catch (error) {
    throw new ValidationError('caFile', `cannot be used: ${(error as Error).message}`, { cause: error });
  }
  const extra = process.env.NODE_EXTRA_CA_CERTS;
  // An explicit list replaces Node's own, so it has to contain that.
  return [...tls.rootCertificates, ...(extra !== undefined && existsSync(extra) ? [readFileSync(extra, 'utf8')] : []), own];
}

/** An agent that makes TLS connections through the tunnel (CONNECT) of an HTTP proxy. */
class TunnelAgent extends https.Agent {
  readonly #proxy: URL;

  constructor(proxy: URL, options: https.AgentOptions) {
    super(options);
    this.#proxy = proxy;
  }

  override createConnection(
    options: tls.ConnectionOptions,
    callback?: (error: Error | null, stream: Duplex) => void,
  ): Duplex | null | undefined {
    // With an error there is no stream, which the declared type does not allow.
    const done = callback as (error: Error | null, stream?: Duplex) => void;
    const host = options.host ?? '';
    const place = `${host.includes(':') ? `[${host}]` : host}:${options.port ?? 443}`;
    const request = http.request({
      hostname: hostOf(this.#proxy),
      port: this.#proxy.port,
      method: 'CONNECT',
      path: place,
      headers: { Host: place, ...proxyHeaders(this.#proxy) },
      agent: false,
      timeout: connectTimeoutMs,
    });
    request.on('timeout', () => request.destroy(new Error('the proxy does not answer')));
    request.on('error', (error) => { done(error); });
    request.on('connect', (response, socket) => {
      if (response.statusCode !== 200) {
        socket.destroy();
        done(new Error(`the proxy answered ${response.statusCode ?? 0} to CONNECT`));
        return;
      }
      socket.setTimeout(0);
      done(null, tls.connect({ ...options, socket, ...(isIP(host) === 0 && { servername: host }) }));
    });
    request.end();
    return undefined;
  }
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
    const end = performance.now() + request.timeoutMs;
    // The path stays text, because a URL would resolve the ids %2E and %2E%2E as "." and "..".
    let path = this.#basePath + request.path;
    let url = new URL(path, this.#url);
    for (let hops = 0; ; hops++) {
      const answer = await this.#sendTo(url, path, request, Math.max(end - performance.now(), 1));
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

  #sendTo(url: URL, target: string, { method, path, headers, body, timeoutMs }: Request, leftMs: number): Promise<Answer> {
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
      const timer = setTimeout(() => {
        reject(new TimeoutError(`${what}: no answer in ${timeoutMs} ms`));
        request.destroy();
      }, leftMs);
      const fail = (error: NodeJS.ErrnoException) => {
        clearTimeout(timer);
        // An address with several IPs fails with an AggregateError, whose own message is empty.
        const reason = error.message || (error.code ?? 'no connection');
        reject(this.#signal.aborted ? new ClosedError() : new (connected ? NetworkError : NotSentError)(`${what}: ${reason}`, { cause: error }));
      };
      request.on('error', fail);
      request.on('response', (response) => {
        const chunks: Buffer[] = [];
        response.on('data', (chunk: Buffer) => chunks.push(chunk));
        response.on('error', fail);
        response.on('end', () => {
          clearTimeout(timer);
          resolve({ status: response.statusCode ?? 0, headers: response.headers, body: Buffer.concat(chunks) });
        });
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

/** Whether the status is one that passes by itself, so that a retry may succeed. */
export function isTransient(status: number): boolean {
  return status === 408 || status === 425 || status === 429 || status >= 500;
}

/** The codes by which Sluice refuses a write for good. Other codes are about the request, its sender or the server. */
const finalCodes = new Set<string | undefined>([
  'invalid_json', 'too_deep', 'duplicate_field', 'unknown_field', 'invalid_type', 'required', 'invalid_value', 'too_large',
  'immutable', 'id_mismatch', 'unknown_event', 'bad_record', 'unsupported_version', 'unreadable_batch',
  'rejected_by_store', 'id_taken', 'event_deleted',
]);

/** Whether the answer is a problem document of Sluice, not of a proxy. */
export function isProblem(answer: Answer, { code }: ApiError): boolean {
  const mediaType = answer.headers['content-type']?.split(';', 1)[0]?.trim().toLowerCase();
  const problem = parseJson(answer.body) as { type?: unknown } | null | undefined;
  return mediaType === 'application/problem+json' && problem?.type === `urn:sluice:problem:${code ?? ''}`;
}

/**
 * Whether the answer to a request with one write refuses that write for good. Sluice does so by a final code in a problem document. A
 * proxy does so only by 413.
 */
export function isFinal(answer: Answer, error: ApiError): boolean {
  return answer.status === 413 || (finalCodes.has(error.code) && isProblem(answer, error));
}

/** Whether the error of a batch's item refuses the write for good. Only Sluice makes such errors. */
export function isFinalItem({ status, code }: ApiError): boolean {
  return finalCodes.has(code) || (!isTransient(status) && status !== 401 && status !== 403);
}

/** Whether the error holds writes: they are retried, but somebody must change something before they can succeed. */
export function isHeld(error: SluiceError): boolean {
  return error instanceof ApiError ? !isTransient(error.status) : error instanceof UnreadableError;
}

/** Whether the writes of a request may have reached the log although it ended with this error. */
export function mayHaveWritten(error: SluiceError): boolean {
  return error instanceof ApiError ? error.status >= 500 || error.status === 408 : !(error instanceof NotSentError);
}

const pauseMinMs = 100;
const pauseMaxMs = 10_000;
const retryAfterMaxMs = 60_000;

/**
 * Returns the pause after the given number of attempts, in milliseconds: exponential backoff with jitter, and at least `retryAfter`
 * milliseconds. `random` is from 0 to 1.
 */
export function pauseMs(attempts: number, retryAfter: number, random: number): number {
  const pause = Math.min(pauseMinMs * 2 ** (attempts - 1), pauseMaxMs);
  return Math.max(pause * (0.5 + random / 2), retryAfter);
}

/** Returns an answer's Retry-After in milliseconds, at most 60,000; 0 if there is none. */
export function retryAfterMs(headers: http.IncomingHttpHeaders): number {
  const value = headers['retry-after'] ?? '';
  const wait = /^\d+$/.test(value) ? Number(value) * 1000 : Date.parse(value) - Date.now();
  return Math.min(Math.max(wait || 0, 0), retryAfterMaxMs);
}

/** Returns the error for an answer whose status is not 2xx. */
export function apiError({ status, body, location }: Answer): ApiError {
  if (location !== undefined) {
    return new ApiError(status, { detail: `a redirect to ${location} is not followed` });
  }
  const problem = parseJson(body) as { code?: unknown; detail?: unknown; field?: unknown } | null | undefined;
  if (typeof problem?.code !== 'string') {
    return new ApiError(status, { detail: http.STATUS_CODES[status] ?? 'the answer is not Sluice\'s' });
  }
  return itemError(status, problem);
}

/** Returns the error for an item of a batch. */
export function itemError(status: number, problem: { code?: unknown; detail?: unknown; field?: unknown }): ApiError {
  const text = (value: unknown) => (typeof value === 'string' ? value : undefined);
  return new ApiError(status, { code: text(problem.code), detail: text(problem.detail) ?? '', field: text(problem.field) });
}

/** Parses a body; undefined if it is not JSON. */
export function parseJson(body: Buffer): unknown {
  try {
    return JSON.parse(body.toString());
  } catch {
    return undefined;
  }
}
