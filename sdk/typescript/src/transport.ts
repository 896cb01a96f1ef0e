import http from 'node:http';
import https from 'node:https';

import { ApiError, ClosedError, NetworkError, TimeoutError, ValidationError, type SluiceError } from './errors.js';

/** An answer of the server's, of any status. */
export interface Answer {
  status: number;
  headers: http.IncomingHttpHeaders;
  body: Buffer;
  /** Where a redirect leads that was not followed, without what may be secret in it. */
  location?: string;
}

/** An answer of status 2xx that is not one of Sluice's. */
export class UnreadableError extends NetworkError {}

/** No connection came about, so that the request was not sent. */
class NotSentError extends NetworkError {}

const redirectsMax = 3;

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
   * Sends a request and returns the answer, whatever its status. It follows redirects that keep the method and the body, where
   * they lead to the same server. It throws a {@link NetworkError}, {@link TimeoutError} or {@link ClosedError}.
   */
  async send(request: Request): Promise<Answer> {
    const end = performance.now() + request.timeoutMs;
    // Kept as text, because a URL would take the ids %2E and %2E%2E for steps of the path.
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
      const request = (url.protocol === 'https:' ? https : http).request({
        protocol: url.protocol,
        hostname: url.hostname.replace(/^\[|\]$/g, ''),
        port: url.port,
        method,
        path: target,
        headers: { ...this.#headers, ...headers, ...(body && { 'Content-Length': body.length }) },
        agent: url.protocol === this.#url.protocol ? this.#agent : undefined,
        signal: this.#signal,
      });
      let connected = false;
      request.on('socket', (socket) => {
        connected = !socket.connecting;
        socket.once('connect', () => {
          connected = true;
        });
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
    this.#agent.destroy();
  }
}

/**
 * Whether a redirect keeps the request as it is and leads to the server that was asked: the same scheme, host and port. A host's
 * own step from http to https, each at its default port, counts as the same.
 */
export function mayFollow(status: number, from: URL, to: URL): boolean {
  if ((status !== 307 && status !== 308) || from.hostname !== to.hostname || to.username !== '' || to.password !== '') {
    return false;
  }
  if (from.protocol === 'http:' && to.protocol === 'https:') {
    return from.port === '' && to.port === ''; // which they are at their default
  }
  return from.protocol === to.protocol && from.port === to.port;
}

/** Whether a status says by itself that it may go better the next time. */
export function isTransient(status: number): boolean {
  return status === 408 || status === 425 || status === 429 || status >= 500;
}

/** The codes by which Sluice says that a write can never be. Others are about the request, its sender or the server. */
const judging = new Set<string | undefined>([
  'invalid_json', 'too_deep', 'duplicate_field', 'unknown_field', 'invalid_type', 'required', 'invalid_value', 'too_large',
  'immutable', 'id_mismatch', 'unknown_event', 'bad_record', 'unsupported_version', 'rejected_by_store', 'id_taken', 'event_deleted',
]);

/**
 * Whether the answer to a request with one write judges that write for good: Sluice does by the code of its problem, and anything
 * by saying that it is too large.
 */
export function isFinal(answer: Answer, { code }: ApiError): boolean {
  if (answer.status === 413) {
    return true;
  }
  const mediaType = answer.headers['content-type']?.split(';', 1)[0]?.trim().toLowerCase();
  const problem = parseJson(answer.body) as { type?: unknown } | null | undefined;
  return mediaType === 'application/problem+json' && problem?.type === `urn:sluice:problem:${code ?? ''}` && judging.has(code);
}

/** The same of an item's error, which nothing but Sluice makes. */
export function isFinalItem({ status, code }: ApiError): boolean {
  return judging.has(code) || (!isTransient(status) && status !== 401 && status !== 403);
}

/** Whether writes that were answered so wait for somebody to change something, rather than for time to pass. */
export function isHeld(error: SluiceError): boolean {
  return error instanceof ApiError ? !isTransient(error.status) : error instanceof UnreadableError;
}

/** Whether a request that ended so may have put its writes into the log. */
export function mayHaveWritten(error: SluiceError): boolean {
  return error instanceof ApiError ? error.status >= 500 || error.status === 408 : !(error instanceof NotSentError);
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
export function apiError({ status, body, location }: Answer): ApiError {
  if (location !== undefined) {
    return new ApiError(status, { detail: `a redirect to ${location} is not followed` });
  }
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
