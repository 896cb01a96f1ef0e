import { setTimeout as sleep } from 'node:timers/promises';

import { apiError, parseJson, type Answer } from './answer.js';
import { parseBigIntegers } from './big-integers.js';
import { checkConversationId, checkId } from './encode.js';
import { ApiError, ClosedError, NetworkError, TimeoutError, ValidationError, type SluiceError } from './errors.js';
import { filter, queryString, type Query } from './filter.js';
import { membersOf, piecesOf } from './json-text.js';
import { RawJson } from './payload.js';
import { isProblem, isTransient, pauseMs, retryAfterMs } from './retry.js';
import type { Transport } from './transport.js';
import type {
  ConversationList,
  ConversationPageOptions,
  ConversationRow,
  ConversationsOptions,
  ConversationSummary,
  ErrorCount,
  EventOptions,
  EventPage,
  FilterOptions,
  LatencyOptions,
  LatencyRow,
  ListConversationsOptions,
  ListEventsOptions,
  Quantiles,
  ReadOptions,
  StoredEvent,
  TimeSeriesOptions,
  TimeSeriesRow,
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

  async conversation(id: string, options: ConversationPageOptions): Promise<EventPage> {
    checkConversationId(id);
    const { path, query } = locate('/conversation/events', '/conversations/', id, '/events');
    return this.#events(path, query, options);
  }

  async listEvents(options: ListEventsOptions): Promise<EventPage> {
    return this.#events('/events', {}, options);
  }

  async #events(path: string, query: Query, { order, limit, cursor, embeddings, raw, ...options }: ListEventsOptions): Promise<EventPage> {
    const json = await this.#read(path, { ...query, ...filter(options), order, limit, cursor: cursor ?? undefined, embeddings }, options);
    const page = this.#parse(json) as { events: ApiEvent[]; next_cursor: string | null };
    const raws = raw ? piecesOf(membersOf(json).get('events') ?? '[]') : [];
    return { events: page.events.map((event, i) => storedEvent(event, raws[i])), nextCursor: page.next_cursor };
  }

  async listConversations({ limit, cursor, ...options }: ListConversationsOptions): Promise<ConversationList> {
    const query = { ...filter(options), limit, cursor: cursor ?? undefined };
    const { conversations, next_cursor: nextCursor } = (await this.#get('/conversations', query, options)) as {
      conversations: ApiSummary[];
      next_cursor: string | null;
    };
    return { conversations: conversations.map(conversationSummary), nextCursor };
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

/** A conversation as the API lists it. */
interface ApiSummary {
  conversation_id: string;
  first: string;
  last: string;
  events: number;
  errors: number;
  error_rate: number;
  event_names: string[];
  first_input: string | null;
  last_output: string | null;
}

function conversationSummary(summary: ApiSummary): ConversationSummary {
  return {
    conversationId: summary.conversation_id,
    first: summary.first,
    last: summary.last,
    events: summary.events,
    errors: summary.errors,
    errorRate: summary.error_rate,
    eventNames: summary.event_names,
    firstInput: summary.first_input,
    lastOutput: summary.last_output,
  };
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
