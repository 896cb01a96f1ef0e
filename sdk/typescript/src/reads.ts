import { setTimeout as sleep } from 'node:timers/promises';

import { apiError, parseJson, type Answer } from './answer.js';
import { parseBigIntegers } from './big-integers.js';
import { checkConversationId, checkId, float32s } from './encode.js';
import { ApiError, ClosedError, NetworkError, TimeoutError, ValidationError, type SluiceError } from './errors.js';
import { filter, filterMembers, queryString, stepText, type Query } from './filter.js';
import { membersOf, piecesOf } from './json-text.js';
import { RawJson } from './payload.js';
import { isProblem, isTransient, pauseMs, retryAfterMs } from './retry.js';
import type { Request, Transport } from './transport.js';
import type {
  ConversationList,
  ConversationPageOptions,
  ConversationRow,
  ConversationsOptions,
  ConversationSummary,
  ErrorCount,
  EventOptions,
  EventPage,
  ExportOptions,
  FilterOptions,
  Funnel,
  FunnelOptions,
  FunnelStep,
  GroupValues,
  Insights,
  InsightsOptions,
  LatencyOptions,
  LatencyRow,
  ListConversationsOptions,
  ListEventsOptions,
  MeasureValues,
  Quantiles,
  ReadOptions,
  RetentionOptions,
  RetentionRow,
  SearchOptions,
  SearchPage,
  SearchResult,
  SqlResult,
  StoredEvent,
  StreamSqlOptions,
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

  async search({ text, vector, like, field, exact, limit, cursor, raw, ...options }: SearchOptions): Promise<SearchPage> {
    const body = {
      text,
      vector: vector && Array.from(float32s('vector', vector)),
      like,
      field,
      filter: filterMembers(options),
      exact,
      limit,
      cursor: cursor ?? undefined,
    };
    const headers = { 'Content-Type': 'application/json' };
    const json = await this.#ask({ method: 'POST', path: '/search', query: {}, headers, body: Buffer.from(JSON.stringify(body)) }, options);
    const page = this.#parse(json) as { results: (Omit<SearchResult, 'event'> & { event: ApiEvent })[]; next_cursor: string | null };
    const raws = raw ? piecesOf(membersOf(json).get('results') ?? '[]') : [];
    const rawEvent = (i: number) => (raws[i] === undefined ? undefined : membersOf(raws[i]).get('event'));
    return {
      results: page.results.map(({ event, score, highlights }, i) => ({ event: storedEvent(event, rawEvent(i)), score, highlights })),
      nextCursor: page.next_cursor,
    };
  }

  async insights({ measures, groupBy, interval, tz, orderBy, order, limit, ...options }: InsightsOptions): Promise<Insights> {
    const query = { ...filter(options), measure: measures, group_by: groupBy, interval, tz, order_by: orderBy, order, limit };
    const { rows, truncated } = this.#parse(await this.#read('/analytics/insights', query, options)) as { rows: ApiRow[]; truncated: boolean };
    return {
      rows: rows.map((row) => {
        const { time, ...rest } = row as ApiRow & { time?: string };
        const { groups, others } = grouped(rest);
        return { ...(time !== undefined && { time }), ...groups, measures: others as MeasureValues };
      }),
      truncated,
    };
  }

  async funnel({ steps, window, per, groupBy, limit, ...options }: FunnelOptions): Promise<Funnel> {
    const query = { ...filter(options), step: steps.map(stepText), window, per, group_by: groupBy, limit };
    const { rows, truncated } = this.#parse(await this.#read('/analytics/funnel', query, options)) as { rows: ApiRow[]; truncated: boolean };
    return {
      rows: rows.map((row) => {
        const { groups, others } = grouped(row);
        return { ...groups, steps: (others.steps as ApiStep[]).map(funnelStep) };
      }),
      truncated,
    };
  }

  async retention({ did, returned, interval, tz, per, ...options }: RetentionOptions): Promise<RetentionRow[]> {
    const query = { ...filter(options), did: stepText(did), returned: returned === undefined ? undefined : stepText(returned), interval, tz, per };
    const { rows } = (await this.#get('/analytics/retention', query, options)) as { rows: RetentionRow[] };
    return rows;
  }

  async sql(query: string, options: ReadOptions): Promise<SqlResult> {
    return this.#parse(await this.#ask(sqlQuestion(query), options)) as SqlResult;
  }

  async streamSql(query: string, { format, ...options }: StreamSqlOptions): Promise<AsyncGenerator<Uint8Array, void, undefined>> {
    const accept = ({ csv: 'text/csv', parquet: 'application/vnd.apache.parquet' } as Record<string, string>)[format];
    if (accept === undefined) {
      throw new ValidationError('format', 'must be csv or parquet');
    }
    return this.#waiting({ ...sqlQuestion(query), query: { format } }, options, (request) => this.#open(request, accept));
  }

  async *exportEvents({ embeddings, cursor, raw, ...options }: ExportOptions): AsyncGenerator<StoredEvent, void, undefined> {
    const query = { ...filter(options), embeddings };
    let last = cursor ?? undefined;
    let { waitSeconds } = options;
    let progress = performance.now();
    for (let failures = 1; ; failures++) {
      const question: Question = { method: 'GET', path: '/export', query: { ...query, cursor: last } };
      const pieces = await this.#waiting(question, { waitSeconds }, (request) => this.#open(request, 'application/x-ndjson'));
      waitSeconds = undefined;
      const before = last;
      const lines = linesOf(pieces);
      try {
        for await (const line of lines) {
          const event = this.#exported(line);
          last = event.id;
          yield storedEvent(event, raw ? line : undefined);
        }
        return;
      } catch (error) {
        if (!(error instanceof NetworkError || error instanceof TimeoutError) || error instanceof LongLineError) {
          throw error;
        }
        // Tries without a new event end as those of any read do.
        if (last !== before) {
          failures = 1;
          progress = performance.now();
        }
        const pause = pauseMs(failures, 0, Math.random());
        if (performance.now() + pause > progress + readForMs) {
          throw error;
        }
        await this.#sleep(pause);
        this.#options.checkOpen();
      }
    }
  }

  /** Parses a line of an export. */
  #exported(line: string): ApiEvent {
    let event: unknown;
    try {
      event = this.#parse(line);
    } catch (error) {
      throw new NetworkError('GET /export: a line is not JSON', { cause: error });
    }
    if (typeof (event as { id?: unknown } | null)?.id !== 'string') {
      throw new NetworkError('GET /export: a line is no event');
    }
    return event as ApiEvent;
  }

  async #get(path: string, query: Query, options: ReadOptions): Promise<unknown> {
    return JSON.parse(await this.#read(path, query, options));
  }

  async #read(path: string, query: Query, options: ReadOptions): Promise<string> {
    return this.#ask({ method: 'GET', path, query }, options);
  }

  /** Asks, after the wait if there is one, and returns the body: a JSON object or array. */
  async #ask(question: Question, options: ReadOptions): Promise<string> {
    return this.#waiting(question, options, (request) => this.#whole(request));
  }

  /** Waits as the options say, and then calls `attempt` with the request until it returns a value or half a minute is over. */
  async #waiting<T>(question: Question, { waitSeconds }: ReadOptions, attempt: (request: Request) => Promise<Try<T>>): Promise<T> {
    this.#options.checkOpen();
    const wait = waitSeconds ?? 0;
    if (!Number.isInteger(wait) || wait < 0 || wait > 30) {
      throw new ValidationError('waitSeconds', 'must be a whole number from 1 to 30');
    }
    const { method, path, query, body } = question;
    const headers = { ...question.headers, ...(wait > 0 && { Prefer: `wait=${wait}` }) };
    let receipts = wait > 0 ? await this.#options.writes(wait * 1000) : [];
    const end = performance.now() + readForMs;
    const send = <V>(after: string[], attempt: (request: Request) => Promise<Try<V>>) =>
      this.#retried({ method, path: path + queryString({ ...query, after }), headers, ...(body && { body }), isRead: true }, wait, end, attempt);
    // The log hardly ever has more than 100 partitions. If it has, all requests but the last only wait, and their results are ignored.
    for (; receipts.length > receiptsMax; receipts = receipts.slice(receiptsMax)) {
      try {
        await send(receipts.slice(0, receiptsMax), async (request) => this.#refusal(await this.#transport.send(request)) ?? { value: undefined });
      } catch (error) {
        if (!(error instanceof ApiError && error.code === 'unknown_event')) {
          throw error;
        }
      }
    }
    return send(receipts, attempt);
  }

  /** Sends the request with retries until `end`, in milliseconds of the performance clock. */
  async #retried<T>(request: Omit<Request, 'timeoutMs'>, wait: number, end: number, attempt: (request: Request) => Promise<Try<T>>): Promise<T> {
    for (let attempts = 1; ; attempts++) {
      const timeoutMs = Math.min(this.#options.requestTimeoutMs, Math.max(end - performance.now(), 1)) + wait * 1000;
      const tried = await this.#try(() => attempt({ ...request, timeoutMs }));
      if (!('error' in tried)) {
        return tried.value;
      }
      const pause = pauseMs(attempts, tried.retryAfter, Math.random());
      if (performance.now() + pause > end) {
        throw tried.error;
      }
      await this.#sleep(pause);
    }
  }

  /** Calls the attempt. A returned error may be retried; a thrown error may not. */
  async #try<T>(attempt: () => Promise<Try<T>>): Promise<Try<T>> {
    try {
      return await attempt();
    } catch (error) {
      if (error instanceof NetworkError || error instanceof TimeoutError) {
        return { error, retryAfter: 0 };
      }
      throw error;
    }
  }

  /** Sends the request once, and returns the body of the answer. */
  async #whole(request: Request): Promise<Try<string>> {
    const answer = await this.#transport.send(request);
    const refusal = this.#refusal(answer);
    if (refusal !== undefined) {
      return refusal;
    }
    const value = parseJson(answer.body);
    if (typeof value !== 'object' || value === null) {
      throw new NetworkError(`${request.method} ${request.path.replace(/\?.*/, '')}: the answer is not JSON`);
    }
    this.#options.observe(answer);
    return { value: answer.body.toString() };
  }

  /** Sends the request once, and returns the pieces of the answer, which has the media type `accept`, when it begins. */
  async #open(request: Request, accept: string): Promise<Try<AsyncGenerator<Uint8Array, void, undefined>>> {
    const headers = { ...request.headers, Accept: accept };
    const answer = await this.#transport.open({ ...request, headers }, accept, this.#options.requestTimeoutMs);
    if (answer.pieces === undefined) {
      const what = `${request.method} ${request.path.replace(/\?.*/, '')}`;
      return this.#refusal(answer) ?? { error: new NetworkError(`${what}: the answer is not ${accept}`), retryAfter: 0 };
    }
    this.#options.observe(answer);
    return { value: answer.pieces };
  }

  /** Returns the error of an answer whose status is not 200, if it may be retried; otherwise throws it. */
  #refusal(answer: Answer): { error: SluiceError; retryAfter: number } | undefined {
    if (answer.status === 200) {
      return undefined;
    }
    const error = apiError(answer);
    if (isProblem(answer, error)) {
      this.#options.observe(answer);
    }
    // A wait on the server that timed out is not repeated. 501 means that the server is not set up for the read.
    if (!isTransient(answer.status) || error.code === 'not_yet_applied' || answer.status === 501) {
      throw error;
    }
    return { error, retryAfter: retryAfterMs(answer.headers) };
  }

  async #sleep(ms: number): Promise<void> {
    try {
      await sleep(ms, undefined, { signal: this.#signal });
    } catch {
      throw new ClosedError();
    }
  }
}

/** The maximum size of a line of an export. An event takes a few MiB at most. */
const lineBytesMax = 16 << 20;

/** A line of an export is too long. It would be again, so the export is not tried again. */
class LongLineError extends NetworkError {}

/** Splits an answer into lines. It throws a {@link NetworkError} if the last line has no end. */
async function* linesOf(pieces: AsyncGenerator<Uint8Array, void, undefined>): AsyncGenerator<string, void, undefined> {
  let parts: Uint8Array[] = []; // of a line that has no end yet
  let bytes = 0;
  for await (const piece of pieces) {
    let start = 0;
    for (let end = piece.indexOf(newline); ; end = piece.indexOf(newline, start)) {
      const part = piece.subarray(start, end < 0 ? undefined : end);
      bytes += part.length;
      if (bytes > lineBytesMax) {
        throw new LongLineError(`GET /export: a line is longer than ${lineBytesMax} bytes`);
      }
      parts.push(part);
      if (end < 0) {
        break;
      }
      yield Buffer.concat(parts).toString();
      parts = [];
      bytes = 0;
      start = end + 1;
    }
  }
  if (bytes > 0) {
    throw new NetworkError('GET /export: the answer broke off');
  }
}

const newline = 10;

/** The request of a read. Every read may be sent again, because it changes nothing. */
interface Question {
  method: 'GET' | 'POST';
  path: string;
  query: Query;
  headers?: Record<string, string>;
  body?: Buffer;
}

function sqlQuestion(query: string): Question {
  return { method: 'POST', path: '/sql', query: {}, headers: { 'Content-Type': 'text/plain; charset=utf-8' }, body: Buffer.from(query) };
}

type Try<T> = { value: T } | { error: SluiceError; retryAfter: number };

/** A row of an answer, whose members are named by the question. */
type ApiRow = Record<string, unknown>;

/** Takes the values of the groups out of a row. */
function grouped(row: ApiRow): { groups: GroupValues; others: ApiRow } {
  const groups: GroupValues = {};
  const others: ApiRow = {};
  const metadata: [string, unknown][] = [];
  for (const [name, value] of Object.entries(row)) {
    if (name === 'conversation_id') {
      groups.conversationId = value as string;
    } else if (name === 'event_name') {
      groups.eventName = value as string;
    } else if (name.startsWith('metadata.')) {
      metadata.push([name.slice('metadata.'.length), value]);
    } else {
      others[name] = value;
    }
  }
  if (metadata.length > 0) {
    groups.metadata = Object.fromEntries(metadata); // also the key __proto__
  }
  return { groups, others };
}

/** A step of a funnel as the API returns it. */
interface ApiStep {
  event_name: string;
  subjects: number;
  conversion: number | null;
  conversion_from_previous: number | null;
  median_ms_from_previous: number | null;
}

function funnelStep(step: ApiStep): FunnelStep {
  return {
    eventName: step.event_name,
    subjects: step.subjects,
    conversion: step.conversion,
    conversionFromPrevious: step.conversion_from_previous,
    medianMsFromPrevious: step.median_ms_from_previous,
  };
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
