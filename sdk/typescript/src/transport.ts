import http from 'node:http';
import https from 'node:https';

import { ApiError, ClosedError, NetworkError, TimeoutError, ValidationError } from './errors.js';

/** An answer of the server's, of any status. */
export interface Answer {
  status: number;
  headers: http.IncomingHttpHeaders;
  body: Buffer;
}

export interface Request {
  method: string;
  /** With the query string. */
  path: string;
  headers?: http.OutgoingHttpHeaders;
  body?: Buffer;
  timeoutMs: number;
}

/** Sends requests to one server, over connections that are kept. */
export class Transport {
  readonly #url: URL;
  readonly #basePath: string;
  readonly #headers: http.OutgoingHttpHeaders;
  readonly #agent: http.Agent;
  readonly #signal: AbortSignal;

  /** The signal ends what is under way with a {@link ClosedError}. */
  constructor(url: string, apiKey: string | undefined, signal: AbortSignal) {
    if (!URL.canParse(url) || !/^https?:$/.test(new URL(url).protocol)) {
      throw new ValidationError('url', 'must be an address such as http://127.0.0.1:8080');
    }
    this.#url = new URL(url);
    this.#basePath = this.#url.pathname.replace(/\/+$/, '');
    this.#headers = { 'User-Agent': 'sluice-typescript/0.1.0', Accept: 'application/json' };
    if (apiKey !== undefined) {
      if (!/^[!-~]+$/.test(apiKey)) {
        throw new ValidationError('apiKey', 'must be printable ASCII characters'); // never with the key itself
      }
      this.#headers.Authorization = `Bearer ${apiKey}`;
    }
    // Node lets the process end while kept connections are idle.
    this.#agent = new (this.#url.protocol === 'https:' ? https : http).Agent({ keepAlive: true });
    this.#signal = signal;
  }

  /**
   * Sends a request and returns the answer, whatever its status. It throws a {@link NetworkError}, {@link TimeoutError} or
   * {@link ClosedError}.
   */
  send({ method, path, headers, body, timeoutMs }: Request): Promise<Answer> {
    return new Promise((resolve, reject) => {
      const request = (this.#url.protocol === 'https:' ? https : http).request({
        protocol: this.#url.protocol,
        hostname: this.#url.hostname.replace(/^\[|\]$/g, ''),
        port: this.#url.port,
        method,
        path: this.#basePath + path,
        headers: { ...this.#headers, ...headers, ...(body && { 'Content-Length': body.length }) },
        agent: this.#agent,
        signal: this.#signal,
      });
      const what = `${method} ${path.replace(/\?.*/, '')}`;
      const timer = setTimeout(() => {
        reject(new TimeoutError(`${what}: no answer in ${timeoutMs} ms`));
        request.destroy();
      }, timeoutMs);
      const fail = (error: NodeJS.ErrnoException) => {
        clearTimeout(timer);
        // An address with several IPs fails with an AggregateError, whose own message is empty.
        const reason = error.message || (error.code ?? 'no connection');
        reject(this.#signal.aborted ? new ClosedError() : new NetworkError(`${what}: ${reason}`, { cause: error }));
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
    this.#agent.destroy();
  }
}

/** Whether a request or write with this status is tried again. */
export function isRetryable(status: number): boolean {
  return status === 429 || status >= 500;
}

const pauseMinMs = 100;
const pauseMaxMs = 10_000;
const retryAfterMaxMs = 60_000;

/** How long to wait after so many tries, in milliseconds. Random is from 0 to 1. */
export function pauseMs(attempts: number, retryAfter: number, random: number): number {
  const pause = Math.min(pauseMinMs * 2 ** (attempts - 1), pauseMaxMs);
  return Math.max(pause * (0.5 + random / 2), retryAfter);
}

/** What an answer's Retry-After says, in milliseconds, as far as it counts; 0 where it says nothing. */
export function retryAfterMs(headers: http.IncomingHttpHeaders): number {
  const value = headers['retry-after'] ?? '';
  const wait = /^\d+$/.test(value) ? Number(value) * 1000 : Date.parse(value) - Date.now();
  return Math.min(Math.max(wait || 0, 0), retryAfterMaxMs);
}

/** The error that an answer of a status other than 2xx is. */
export function apiError({ status, body }: Answer): ApiError {
  const problem = parseJson(body) as { code?: unknown; detail?: unknown; field?: unknown } | null | undefined;
  if (typeof problem?.code !== 'string') {
    return new ApiError(status, { detail: http.STATUS_CODES[status] ?? 'an answer that is not Sluice\'s' });
  }
  return itemError(status, problem);
}

/** The same of an item of a batch. */
export function itemError(status: number, problem: { code?: unknown; detail?: unknown; field?: unknown }): ApiError {
  const text = (value: unknown) => (typeof value === 'string' ? value : undefined);
  return new ApiError(status, { code: text(problem.code), detail: text(problem.detail) ?? '', field: text(problem.field) });
}

/** Undefined where the body is not JSON. */
export function parseJson(body: Buffer): unknown {
  try {
    return JSON.parse(body.toString());
  } catch {
    return undefined;
  }
}
