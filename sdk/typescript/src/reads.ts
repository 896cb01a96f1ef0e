import { setTimeout as sleep } from 'node:timers/promises';

import { apiError, parseJson, type Answer } from './answer.js';
import { parseBigIntegers } from './big-integers.js';
import { checkConversationId, checkId } from './encode.js';
import { ApiError, ClosedError, NetworkError, TimeoutError, ValidationError, type SluiceError } from './errors.js';
import { membersOf, piecesOf } from './json-text.js';
import { RawJson } from './payload.js';
import { isProblem, isTransient, pauseMs, retryAfterMs } from './retry.js';
import { formatMicros } from './timestamps.js';
import type { Transport } from './transport.js';
import type {
  ConversationPage,
  ConversationPageOptions,
  ConversationRow,
  ConversationsOptions,
  ErrorCount,
  EventOptions,
  FilterOptions,
  LatencyOptions,
  LatencyRow,
  Quantiles,
  ReadOptions,
  StoredEvent,
  TimeSeriesOptions,
  TimeSeriesRow,
  Time,
} from './types.js';

/** How long a read is retried, in milliseconds, without the time of `waitSeconds`. */
const readForMs = 30_000;
/** The maximum number of receipts in one request. It is the server's limit. */
const receiptsMax = 100;

export interface ReaderOptions {
  requestTimeoutMs: number;
  bigIntegers: boolean;
  /** Throws a {@link ClosedError} if the client is closed. */
  checkOpen: () => void;
  /** Called with each answer of Sluice. */
  observe: (answer: Answer) => void;
  /** Flushes the client's writes, and returns the receipts to wait for. */
  writes: (timeoutMs: number) => Promise<string[]>;
}

/** Reads events and analytics from the server, with retries. */
export class Reader {
  readonly #transport: Transport;
  readonly #options: ReaderOptions;
  readonly #signal: AbortSignal;

  constructor(transport: Transport, options: ReaderOptions, signal: AbortSignal) {
    this.#transport = transport;
    this.#options = options;
    this.#signal = signal;
  }

  async event(id: string, { raw, ...options }: EventOptions): Promise<StoredEvent> {
    checkId(id);
    const { path, query } = locate('/event', '/event/', id);
    const json = await this.#read(path, query, options);
    return storedEvent(this.#parse(json) as ApiEvent, raw ? json : undefined);
  }

  async conversation(id: string, { limit, cursor, embeddings, raw, ...options }: ConversationPageOptions): Promise<ConversationPage> {
    checkConversationId(id);
    const { path, query } = locate('/conversation/events', '/conversations/', id, '/events');
    const json = await this.#read(path, { ...query, limit, cursor: cursor ?? undefined, embeddings }, options);
    const page = this.#parse(json) as { events: ApiEvent[]; next_cursor: string | null };
    const raws = raw ? piecesOf(membersOf(json).get('events') ?? '[]') : [];
    return { events: page.events.map((event, i) => storedEvent(event, raws[i])), nextCursor: page.next_cursor };
  }

  /** Parses an answer that has contents of events. */
  #parse(json: string): unknown {
    return this.#options.bigIntegers ? parseBigIntegers(json) : JSON.parse(json);
  }

  async errors(options: FilterOptions): Promise<ErrorCount> {
    const count = (await this.#get('/analytics/errors', filter(options), options)) as {
      event_name: string | null;
      events: number;
      errors: number;
      error_rate: number;
      since: string;
      until: string;
    };
    const { event_name: eventName, error_rate: errorRate, ...rest } = count;
    return { eventName, errorRate, ...rest };
  }

  async latency(options: LatencyOptions): Promise<LatencyRow[]> {
    const query = { ...filter(options), q: options.q, group_by: options.groupBy?.join(','), limit: options.limit };
    const { rows } = (await this.#get('/analytics/latency', query, options)) as {
      rows: { conversation_id: string | null; event_name: string | null; events: number; quantiles: Quantiles }[];
    };
    return rows.map(({ conversation_id: conversationId, event_name: eventName, ...rest }) => ({ conversationId, eventName, ...rest }));
  }

  async conversations(options: ConversationsOptions): Promise<ConversationRow[]> {
    const query = { ...filter(options), order_by: options.orderBy, min_events: options.minEvents, limit: options.limit };
    const { rows } = (await this.#get('/analytics/conversations', query, options)) as {
      rows: { conversation_id: string; events: number; errors: number; error_rate: number; first: string; last: string }[];
    };
    return rows.map(({ conversation_id: conversationId, error_rate: errorRate, ...rest }) => ({ conversationId, errorRate, ...rest }));
  }

  async timeSeries(options: TimeSeriesOptions): Promise<TimeSeriesRow[]> {
    const query = { ...filter(options), q: options.q, interval: options.interval };
    const { rows } = (await this.#get('/analytics/timeseries', query, options)) as {
      rows: { time: string; events: number; errors: number; error_rate: number; quantiles: Quantiles }[];
    };
    return rows.map(({ error_rate: errorRate, ...rest }) => ({ errorRate, ...rest }));
  }

  async #get(path: string, query: Query, options: ReadOptions): Promise<unknown> {
    return JSON.parse(await this.#read(path, query, options));
  }

  /** Reads, after the wait if there is one, and returns the body: a JSON object or array. */
  async #read(path: string, query: Query, { waitSeconds }: ReadOptions): Promise<string> {
    this.#options.checkOpen();
    const wait = waitSeconds ?? 0;
    if (!Number.isInteger(wait) || wait < 0 || wait > 30) {
      throw new ValidationError('waitSeconds', 'must be a whole number from 1 to 30');
    }
    const headers: Record<string, string> = {};
    if (wait > 0) {
      headers.Prefer = `wait=${wait}`;
    }
    let receipts = wait > 0 ? await this.#options.writes(wait * 1000) : [];
    const end = performance.now() + readForMs;
    // The log hardly ever has more than 100 partitions. If it has, all requests but the last only wait, and their results are ignored.
    for (; receipts.length > receiptsMax; receipts = receipts.slice(receiptsMax)) {
      try {
        await this.#ask(path + queryString({ ...query, after: receipts.slice(0, receiptsMax) }), headers, wait, end);
      } catch (error) {
        if (!(error instanceof ApiError && error.code === 'unknown_event')) {
          throw error;
        }
      }
    }
    return this.#ask(path + queryString({ ...query, after: receipts }), headers, wait, end);
  }

  /** Sends the request with retries until `end`, in milliseconds of the performance clock. */
  async #ask(target: string, headers: Record<string, string>, wait: number, end: number): Promise<string> {
    for (let attempts = 1; ; attempts++) {
      const timeoutMs = Math.min(this.#options.requestTimeoutMs, Math.max(end - performance.now(), 1)) + wait * 1000;
      const { value, error, retryAfter } = await this.#try(target, headers, timeoutMs);
      if (error === undefined) {
        return value ?? '';
      }
      const pause = pauseMs(attempts, retryAfter, Math.random());
      if (performance.now() + pause > end) {
        throw error;
      }
      await this.#sleep(pause);
    }
  }

  /** Sends the request once. A returned error may be retried; a thrown error may not. */
  async #try(path: string, headers: Record<string, string>, timeoutMs: number): Promise<Try> {
    try {
      const answer = await this.#transport.send({ method: 'GET', path, headers, timeoutMs });
      if (answer.status !== 200) {
        const error = apiError(answer);
        if (isProblem(answer, error)) {
          this.#options.observe(answer);
        }
        // A wait on the server that timed out is not repeated.
        if (!isTransient(answer.status) || error.code === 'not_yet_applied') {
          throw error;
        }
        return { error, retryAfter: retryAfterMs(answer.headers) };
      }
      const value = parseJson(answer.body);
      if (typeof value !== 'object' || value === null) {
        throw new NetworkError(`GET ${path.replace(/\?.*/, '')}: the answer is not JSON`);
      }
      this.#options.observe(answer);
      return { value: answer.body.toString(), retryAfter: 0 };
    } catch (error) {
      if (error instanceof NetworkError || error instanceof TimeoutError) {
        return { error, retryAfter: 0 };
      }
      throw error;
    }
  }

  async #sleep(ms: number): Promise<void> {
    try {
      await sleep(ms, undefined, { signal: this.#signal });
    } catch {
      throw new ClosedError();
    }
  }
}

interface Try {
  /** The body of the answer. */
  value?: string;
  error?: SluiceError;
  retryAfter: number;
}

type Query = Record<string, string | number | boolean | readonly (string | number)[] | undefined>;

function queryString(query: Query): string {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    for (const one of Array.isArray(value) ? (value as readonly (string | number)[]) : [value as string | number | boolean | undefined]) {
      if (one !== undefined) {
        search.append(name, String(one));
      }
    }
  }
  return search.size === 0 ? '' : `?${search.toString()}`;
}

function filter({ since, until, conversationId, eventName, metadata }: FilterOptions): Query {
  return {
    since: moment(since),
    until: moment(until),
    conversation_id: conversationId,
    event_name: eventName,
    ...Object.fromEntries(Object.entries(metadata ?? {}).map(([key, value]) => [`metadata.${key}`, value])),
  };
}

function moment(time: Time | undefined): string | undefined {
  if (time === undefined || typeof time === 'string') {
    return time;
  }
  const millis = Number(time);
  if (Number.isNaN(millis) || Math.abs(millis) > 8.64e15) {
    throw new ValidationError('since', 'and until must be valid times');
  }
  return formatMicros(Math.floor(millis * 1000));
}

/**
 * Returns the path with the id in it. If the id has a slash or is "." or "..", it returns the path `byId` with the id as a query
 * parameter, because proxies decode an escaped slash and resolve dots in a path.
 */
function locate(byId: string, before: string, id: string, after = ''): { path: string; query: Query } {
  if (id === '.' || id === '..' || id.includes('/')) {
    return { path: byId, query: { id } };
  }
  return { path: before + encodeURIComponent(id) + after, query: {} };
}

/** An event as the API returns it. */
interface ApiEvent {
  id: string;
  conversation_id: string;
  conversation_metadata: Record<string, unknown> | null;
  event_name: string;
  timestamp: string;
  error: string | null;
  /** With `bigIntegers`, large integers are BigInt here and in the embeddings. */
  latency: number | bigint | null;
  input: unknown;
  output: unknown;
  input_embeddings?: (number | bigint)[] | null;
  output_embeddings?: (number | bigint)[] | null;
}

/** Converts an event of the API's. If its JSON is given, the event gets its contents as raw JSON too. */
function storedEvent(event: ApiEvent, json: string | undefined): StoredEvent {
  const members = json === undefined ? undefined : membersOf(json);
  const raw = (name: string) => {
    const text = members?.get(name);
    return text === undefined || text === 'null' ? null : new RawJson(text);
  };
  return {
    id: event.id,
    conversationId: event.conversation_id,
    conversationMetadata: event.conversation_metadata,
    eventName: event.event_name,
    timestamp: event.timestamp,
    error: event.error,
    latency: event.latency === null ? null : Number(event.latency),
    input: event.input,
    output: event.output,
    ...(event.input_embeddings !== undefined && { inputEmbeddings: event.input_embeddings?.map(Number) ?? null }),
    ...(event.output_embeddings !== undefined && { outputEmbeddings: event.output_embeddings?.map(Number) ?? null }),
    ...(members && { raw: { conversationMetadata: raw('conversation_metadata'), input: raw('input'), output: raw('output') } }),
  };
}
