import type { SluiceError } from './errors.js';
import type { RawJson } from './payload.js';

/** A time: a `Date`, Unix milliseconds (fractions to the microsecond count), or RFC 3339 such as `2026-01-31T12:00:00.25Z`. */
export type Time = Date | number | string;

/** An embedding: 1 to 4,096 finite numbers. They are stored as float32. */
export type Embedding = readonly number[] | Float32Array | Float64Array;

/** An event to track. A field that is null or undefined is empty. */
export interface NewEvent {
  /**
   * An id of your own: 1 to 128 printable ASCII characters. The first create of an id wins. Default: a new id, minted from the timestamp
   * and the conversation.
   */
  id?: string | null | undefined;
  /** The id of the event's conversation: 1 to 256 bytes of UTF-8. */
  conversationId: string;
  /** Any JSON object of up to 16 KiB. Queries can filter by its members. */
  conversationMetadata?: object | null | undefined;
  /** The kind of event, one of the names that the server allows: 1 to 128 bytes. */
  eventName: string;
  /** When the event happened, from the year 2000 to 24 hours from now. Default: now. */
  timestamp?: Time | null | undefined;
  /** The error message; empty or absent for success. */
  error?: string | null | undefined;
  /** The duration in milliseconds: finite and not negative. */
  latency?: number | null | undefined;
  /** A string, or any other JSON, such as a list of messages. */
  input?: unknown;
  /** A string, or any other JSON. */
  output?: unknown;
  inputEmbeddings?: Embedding | null | undefined;
  outputEmbeddings?: Embedding | null | undefined;
}

/** The fields that an update changes. A null field is cleared; an undefined or absent field keeps its value. */
export interface EventUpdate {
  /** See {@link NewEvent}. It cannot be cleared. */
  eventName?: string | undefined;
  conversationMetadata?: object | null | undefined;
  error?: string | null | undefined;
  /** Milliseconds. */
  latency?: number | null | undefined;
  input?: unknown;
  output?: unknown;
  inputEmbeddings?: Embedding | null | undefined;
  outputEmbeddings?: Embedding | null | undefined;
}

/** An event as it is stored. */
export interface StoredEvent {
  id: string;
  conversationId: string;
  conversationMetadata: Record<string, unknown> | null;
  eventName: string;
  /** RFC 3339 in UTC, to the microsecond. A `Date` would lose the microseconds. */
  timestamp: string;
  error: string | null;
  /** Milliseconds. */
  latency: number | null;
  input: unknown;
  output: unknown;
  /** Undefined unless the read asked for embeddings. */
  inputEmbeddings?: number[] | null;
  outputEmbeddings?: number[] | null;
  /** The contents as JSON text with every digit, which can be written back unchanged. Undefined unless the read had `raw`. */
  raw?: { conversationMetadata: RawJson | null; input: RawJson | null; output: RawJson | null };
}

/** The kind of a write. */
export type Op = 'create' | 'update' | 'patch' | 'delete';

/** A failure that `onError` gets: a write that failed for good, a corrupt line of the spool, or a wrong clock. */
export interface WriteFailure {
  /** The kind of the write; undefined if the failure is not about a write. */
  op: Op | undefined;
  /** The id of the write's event; undefined if the failure is not about a write. */
  id: string | undefined;
  /** The HTTP status; undefined if the server did not answer. */
  status: number | undefined;
  /**
   * One of the following; undefined if the answer came from a proxy.
   *
   * - The API's code, such as `immutable`. With `waitAppliedSeconds`, also `id_taken` and `event_deleted` for writes without effect.
   * - `network` or `timeout`: the write was given up after `retryForMs`.
   * - `spool_corrupt`: a line of the spool could not be read.
   * - `wrong_clock`: this machine's clock is wrong.
   * - `invalid`, `queue_full`, `closed` or `spool`: the event of a traced call could not be queued.
   */
  code: string | undefined;
  /** An explanation for humans. */
  detail: string;
  /** The field at fault, by its name in the API; undefined if there is none. */
  field: string | undefined;
  /** The failure as an error. */
  error: SluiceError;
}

/** The options of a {@link Client}. */
export interface ClientOptions {
  /** The server's address. If it has a path, the path precedes the path of every request. Default `http://127.0.0.1:8080`. */
  url?: string | undefined;
  /** An API key with the scopes write and read as needed. Default: none. */
  apiKey?: string | undefined;
  /** The maximum number of writes in a batch: 1 to 50,000. Default 500. */
  batchWritesMax?: number | undefined;
  /** The maximum size of a batch in bytes, up to 16 MiB. Default 1 MiB. */
  batchBytesMax?: number | undefined;
  /** The maximum age of a batch's oldest write before the batch is sent, in milliseconds. Default 100. */
  batchAgeMaxMs?: number | undefined;
  /** The maximum number of queued writes. Default 10,000. */
  queueWritesMax?: number | undefined;
  /** The maximum size of the queue in bytes of encoded writes. Default 64 MiB. */
  queueBytesMax?: number | undefined;
  /** How long a write is retried, in milliseconds from its first attempt. Default: without a limit. */
  retryForMs?: number | undefined;
  /**
   * Has the server answer each batch when it is applied, or after this number of seconds: a whole number from 1 to 30. `onError` then also
   * gets writes that had no effect, with the codes `id_taken` (an id of your own exists already), `event_deleted` and `unknown_event`.
   * It slows sending down, because one batch is sent at a time. Default: the server answers a batch when it is in the log.
   */
  waitAppliedSeconds?: number | undefined;
  /** The timeout of one request, in milliseconds. Default 30,000. */
  requestTimeoutMs?: number | undefined;
  /** Whether bodies of 1 KiB and more are compressed with gzip. Default false. */
  gzip?: boolean | undefined;
  /** A PEM file of certificate authorities to trust in addition to Node's own. Default: none. */
  caFile?: string | undefined;
  /** A directory that keeps writes until they are answered, so that they survive the process. Default: none. */
  spoolDir?: string | undefined;
  /**
   * Whether a write is refused if its input, output or metadata is not JSON or is too large. Default false: a value that is not JSON is
   * encoded as the nearest JSON value (Map and Error as objects, Set as an array, bytes as base64, other values as text), and a value that
   * is too large is cut and marked `sluice_truncated`. Traced calls are never strict.
   */
  strict?: boolean | undefined;
  /**
   * Whether integers beyond 2^53, which a number does not hold exactly, are read as BigInt with all their digits: those of contents, and of
   * the rows of insights and SQL. This library writes BigInt as a number; `JSON.stringify` refuses it. Default false: they are read as the
   * nearest number.
   */
  bigIntegers?: boolean | undefined;
  /** The event name of traced calls. Default `event_a`. */
  traceEventName?: string | undefined;
  /**
   * Called once for each write that failed for good. It is called in the background, never within the call that queued the write. Default:
   * a warning on the console, without contents of events.
   */
  onError?: ((failure: WriteFailure) => void) | undefined;
}

/** The timeout of a flush or close. */
export interface TimeoutOptions {
  /** Milliseconds. */
  timeoutMs?: number | undefined;
}

/** Options of all reads. */
export interface ReadOptions {
  /**
   * Reads your own writes: the read flushes the queue, and then waits on the server until the flushed writes are applied. Each of the two
   * steps may take this number of seconds: a whole number from 1 to 30. Default: no flush and no wait.
   */
  waitSeconds?: number | undefined;
}

/** See {@link Client.event}. */
export interface EventOptions extends ReadOptions {
  /** Whether an event also has its contents as JSON text, in {@link StoredEvent.raw}. Default false. */
  raw?: boolean | undefined;
}

/** The order of events by their timestamps. `-timestamp` is the newest first. Events with equal timestamps are sorted by id. */
export type TimeOrder = 'timestamp' | '-timestamp';

/** See {@link Client.conversationEvents}. */
export interface ConversationOptions extends EventOptions, Omit<FilterOptions, 'conversationId'> {
  /** Default `timestamp`. */
  order?: TimeOrder | undefined;
  /** The maximum number of events in a page: 1 to 1,000. Default 100. */
  limit?: number | undefined;
  /** Whether events have their embeddings. Default false. */
  embeddings?: boolean | undefined;
}

/** See {@link Client.conversation}. */
export interface ConversationPageOptions extends ConversationOptions {
  /** The `nextCursor` of the previous page, which must have had the same filter and order. Default: the first page. */
  cursor?: string | null | undefined;
}

/** A page of events. */
export interface EventPage {
  events: StoredEvent[];
  /** The cursor of the next page; null on the last page. */
  nextCursor: string | null;
}

/** A page of a conversation's events. */
export type ConversationPage = EventPage;

/** See {@link Client.listEvents} and {@link Client.allEvents}. */
export interface ListEventsOptions extends EventOptions, FilterOptions {
  /** Default `-timestamp`. */
  order?: TimeOrder | undefined;
  /** The maximum number of events in a page: 1 to 1,000. Default 100. */
  limit?: number | undefined;
  /** The `nextCursor` of the previous page, which must have had the same filter and order. Default: the first page. */
  cursor?: string | null | undefined;
  /** Whether events have their embeddings. Default false. */
  embeddings?: boolean | undefined;
}

/** See {@link Client.listConversations} and {@link Client.allConversations}. */
export interface ListConversationsOptions extends FilterOptions {
  /** The maximum number of conversations in a page: 1 to 1,000. Default 50. */
  limit?: number | undefined;
  /** The `nextCursor` of the previous page, which must have had the same filter. Default: the first page. */
  cursor?: string | null | undefined;
}

/** What the matching events of a conversation are like. */
export interface ConversationSummary {
  conversationId: string;
  /** The timestamps of the first and the last event, RFC 3339. */
  first: string;
  last: string;
  events: number;
  errors: number;
  /** Errors per event, 0 to 1. */
  errorRate: number;
  /** The names of the events in alphabetical order, at most 100 of them. */
  eventNames: string[];
  /** The first 200 characters of the first input among the first five events. JSON is shown as its text. */
  firstInput: string | null;
  /** The first 200 characters of the last output among the last five events. JSON is shown as its text. */
  lastOutput: string | null;
}

/** A page of conversations, the one with the latest event first. */
export interface ConversationList {
  conversations: ConversationSummary[];
  /** The cursor of the next page; null on the last page. */
  nextCursor: string | null;
}

/** A value that a member of the metadata is compared with. */
export type MetadataValue = string | number | bigint | boolean;

/**
 * A condition on a top-level member of the metadata.
 *
 * - `=`: the member is the string, or the number or boolean that is written like the value.
 * - `!=`: it is not; also for events without the member.
 * - `<`, `<=`, `>`, `>=`: numbers compare with numbers. If the value is not a number, strings are compared byte by byte.
 * - `exists`: the metadata has the member, whatever its value is. `missing`: it does not.
 *
 * Integers are compared exactly, whatever their size, and other numbers as 64-bit floats.
 */
export type Condition =
  | { key: string; op: '=' | '!=' | '<' | '<=' | '>' | '>='; value: MetadataValue }
  | { key: string; op: 'exists' | 'missing'; value?: undefined };

/** The filter of a read: it selects the events that match all of its members. */
export interface FilterOptions extends ReadOptions {
  /**
   * The earliest timestamp, inclusive: a time, or a duration before now such as `7d`, `24h`, `30m` or `90s`. Default: `7d` for analytics,
   * and no bound for lists of events and conversations.
   */
  since?: Time | undefined;
  /** The latest timestamp, exclusive, in the same form as `since`. Default: now for analytics, and no bound for lists. */
  until?: Time | undefined;
  conversationId?: string | undefined;
  /** Selects events that have this name or one of `eventNames`. There may be up to 100. */
  eventName?: string | undefined;
  eventNames?: readonly string[] | undefined;
  /** Selects events with an error (true) or without one (false). */
  error?: boolean | undefined;
  /** The least latency in milliseconds, inclusive. An event without a latency does not match. */
  latencyMin?: number | undefined;
  /** The greatest latency in milliseconds, inclusive. An event without a latency does not match. */
  latencyMax?: number | undefined;
  /** Selects events whose metadata has all these members. `metadata` and `conditions` may have up to 16 together. */
  metadata?: Record<string, MetadataValue> | undefined;
  /** More conditions on members of the metadata, which must all hold. */
  conditions?: readonly Condition[] | undefined;
}

/** See {@link Client.latency}. */
export interface LatencyOptions extends FilterOptions {
  /** The quantiles, each above 0 and below 1. Default 0.95. */
  q?: readonly number[] | undefined;
  /** The fields to group by. Default: both. */
  groupBy?: readonly ('conversation' | 'event_name')[] | undefined;
  /** The maximum number of rows: 1 to 10,000. Default 100. */
  limit?: number | undefined;
}

/** See {@link Client.conversations}. */
export interface ConversationsOptions extends FilterOptions {
  /** The count that ranks the conversations. Default `error_rate`. */
  orderBy?: 'error_rate' | 'errors' | 'events' | undefined;
  /** Leaves out conversations with fewer events than this. Default 1. */
  minEvents?: number | undefined;
  /** The maximum number of rows: 1 to 10,000. Default 100. */
  limit?: number | undefined;
}

/** See {@link Client.timeSeries}. */
export interface TimeSeriesOptions extends FilterOptions {
  /** The length of a bucket, such as `5m`. Default `1h`. */
  interval?: string | undefined;
  /** The quantiles, each above 0 and below 1. Default 0.95. */
  q?: readonly number[] | undefined;
}

/** The number of events and errors. */
export interface ErrorCount {
  /** The event name of the filter; null if it has none or several. */
  eventName: string | null;
  events: number;
  errors: number;
  /** Errors per event, 0 to 1; 0 without events. */
  errorRate: number;
  /** The time range of the query, RFC 3339. */
  since: string;
  until: string;
}

/** Latencies in milliseconds, by quantile as text, such as `0.95`; null if no event has a latency. */
export type Quantiles = Record<string, number | null>;

/** The latency of a group. */
export interface LatencyRow {
  /** Null if the rows are not grouped by conversation. */
  conversationId: string | null;
  /** Null if the rows are not grouped by event name. */
  eventName: string | null;
  events: number;
  quantiles: Quantiles;
}

/** The counts of a conversation. */
export interface ConversationRow {
  conversationId: string;
  events: number;
  errors: number;
  /** Errors per event, 0 to 1. */
  errorRate: number;
  /** The timestamps of the first and the last event, RFC 3339. */
  first: string;
  last: string;
}

/** The counts of a bucket. Buckets without events have no row. */
export interface TimeSeriesRow {
  /** The start of the bucket, RFC 3339. */
  time: string;
  events: number;
  errors: number;
  /** Errors per event, 0 to 1. */
  errorRate: number;
  quantiles: Quantiles;
}

/** See {@link Client.search} and {@link Client.searchAll}. */
export interface SearchOptions extends EventOptions, FilterOptions {
  /**
   * Words, and phrases in double quotes. An event is found if one of its fields has all of them, whatever their case. The newest events come
   * first. A search needs `text`, `vector` or `like`, or `text` beside one of the other two.
   */
  text?: string | undefined;
  /** 1 to 4,096 numbers. Finds the events whose embeddings have as many dimensions and the nearest direction, the nearest first. */
  vector?: Embedding | undefined;
  /** The id of an event, whose embeddings are the vector. The event itself is not found. */
  like?: string | undefined;
  /**
   * The field that is searched; `error` only in a search of text alone. Default: all of them; for `like`, the input if the event has
   * embeddings of its input, otherwise the output.
   */
  field?: SearchField | undefined;
  /**
   * Whether a search by similarity compares every embedding. Among very many it otherwise chooses candidates first, and may miss some of the
   * nearest events. Default false.
   */
  exact?: boolean | undefined;
  /** The maximum number of results in a page: 1 to 100. Default 10. */
  limit?: number | undefined;
  /**
   * The `nextCursor` of the previous page, which must have had the same options. Only searches of text alone have several pages. Default:
   * the first page.
   */
  cursor?: string | null | undefined;
}

/** See {@link Client.exportEvents}. */
export interface ExportOptions extends EventOptions, FilterOptions {
  /** Whether events have their embeddings. Default false. */
  embeddings?: boolean | undefined;
  /** The id of an event; the export begins after it. Default: the first event. */
  cursor?: string | null | undefined;
}

/** A field of an event that a search looks in. */
export type SearchField = 'input' | 'output' | 'error';

/** A page of what a search found, the best first. */
export interface SearchPage {
  results: SearchResult[];
  /** The cursor of the next page; null on the last page. */
  nextCursor: string | null;
}

/** An event that a search found. */
export interface SearchResult {
  /** The event, without its embeddings. */
  event: StoredEvent;
  /**
   * 1 for a search of text alone, and the cosine similarity for one by similarity alone. With both, it is the sum of 1/(60 + rank) over the
   * ranks that the event has among the first 50 of each.
   */
  score: number;
  /** The places in which the text was found, up to three of a field. */
  highlights: Highlight[];
}

/** A piece of a field in which a text was found. */
export interface Highlight {
  field: SearchField;
  /** The parts of the piece, and whether each is what was searched for. */
  fragments: { text: string; match: boolean }[];
}

/** What events are grouped by. A member of the metadata has its key after `metadata.`. */
export type Group = 'event_name' | 'conversation' | `metadata.${string}`;

/** What is counted: conversations, or the values of a member of the metadata, such as `metadata.user`. */
export type Subject = 'conversation' | `metadata.${string}`;

/** The measures that count. */
export type CountMeasure = 'events' | 'errors' | 'error_rate' | 'conversations';

/**
 * A number that is computed of the events of a row: a count, or sum, avg, min, max or a quantile of the latency or of a member of the
 * metadata, such as `p95(latency)` and `sum(metadata.tokens)`. A measure of a member uses only events in which the member is a number.
 */
export type Measure = CountMeasure | `${'sum' | 'avg' | 'min' | 'max' | `p${number}`}(${'latency' | `metadata.${string}`})`;

/** See {@link Client.insights}. */
export interface InsightsOptions extends FilterOptions {
  /** 1 to 16 measures. */
  measures: readonly Measure[];
  /** Up to three groups. Default: all events are one group. */
  groupBy?: readonly Group[] | undefined;
  /**
   * The length of a bucket of time: a number and s, m, h, d, w (weeks from Monday) or mo (months). Days, weeks and months are those of `tz`.
   * At most 10,000 buckets may lie between `since` and `until`. Default: no buckets.
   */
  interval?: string | undefined;
  /** The name of a time zone, such as `Europe/Berlin`. Default UTC. */
  tz?: string | undefined;
  /** One of the measures, or `time` with an interval. Default: `time` with an interval, otherwise the first measure. */
  orderBy?: Measure | 'time' | undefined;
  /** Default `asc` for the time, and `desc` for a measure. Rows without a value always come last. */
  order?: 'asc' | 'desc' | undefined;
  /** The maximum number of rows: 1 to 10,000. Default 100; with an interval 10,000. */
  limit?: number | undefined;
}

/** The values by which the events of a row are grouped. A member is there if the rows are grouped by it. */
export interface GroupValues {
  conversationId?: string;
  eventName?: string;
  /** The values of the members of the metadata, by their keys. The value is null in the group of the events without the member. */
  metadata?: Record<string, unknown>;
}

/** The measures of one group of events in one bucket of time. */
export interface InsightsRow extends GroupValues {
  /** The start of the bucket, RFC 3339; undefined without an interval. */
  time?: string;
  /** The values of the measures, by their texts. */
  measures: MeasureValues;
}

/**
 * The values of measures. Null if there is none, such as the average of no numbers. With `bigIntegers`, an integer that a number does not
 * hold exactly is a BigInt.
 */
export interface MeasureValues {
  events?: number;
  errors?: number;
  /** Errors per event, 0 to 1. */
  error_rate?: number;
  conversations?: number;
  [measure: `${string}(${string})`]: number | bigint | null;
}

/** See {@link Client.insights}. */
export interface Insights {
  rows: InsightsRow[];
  /** Whether there are more rows than the limit. */
  truncated: boolean;
}

/** Selects the events of a step: those that have the name and match all other members, which are as in {@link FilterOptions}. */
export interface Step extends Pick<FilterOptions, 'error' | 'latencyMin' | 'latencyMax' | 'metadata' | 'conditions'> {
  eventName: string;
}

/** See {@link Client.funnel}. */
export interface FunnelOptions extends FilterOptions {
  /** 2 to 10 steps in their order: names of events, or names with filters. */
  steps: readonly (string | Step)[];
  /** The longest time from the first to the last step, inclusive, such as `30m` or `7d`, up to `366d`. Default `24h`. */
  window?: string | undefined;
  /** What is counted. Default `conversation`. */
  per?: Subject | undefined;
  /** Breaks the answer down by a property of the first event of the first step. Default: there is one row. */
  groupBy?: Group | undefined;
  /** The maximum number of rows: 1 to 10,000. Default 100. */
  limit?: number | undefined;
}

/** See {@link Client.funnel}. */
export interface Funnel {
  /** The group with the most subjects first. */
  rows: FunnelRow[];
  /** Whether there are more groups than the limit. */
  truncated: boolean;
}

/** The counts of one group. */
export interface FunnelRow extends GroupValues {
  /** A count for each step. */
  steps: FunnelStep[];
}

/** How many subjects reach a step. */
export interface FunnelStep {
  eventName: string;
  subjects: number;
  /** The share of the subjects of the first step, 0 to 1; null if there are none. */
  conversion: number | null;
  /** The share of the subjects of the step before. */
  conversionFromPrevious: number | null;
  /** The median time since the step before, in milliseconds. */
  medianMsFromPrevious: number | null;
}

/** See {@link Client.retention}. */
export interface RetentionOptions extends FilterOptions {
  /** The first event: its name, or a name with filters. */
  did: string | Step;
  /** The later event. Default: `did`. */
  returned?: string | Step | undefined;
  /** The length of a period in days, weeks or months, such as `1w`. At most 366 may lie between `since` and `until`. Default `1d`. */
  interval?: string | undefined;
  /** The name of a time zone, such as `Europe/Berlin`. Default UTC. */
  tz?: string | undefined;
  /** What is counted. Default `conversation`. */
  per?: Subject | undefined;
}

/** The counts of the subjects that did something in one period. */
export interface RetentionRow {
  /** The start of the period, RFC 3339. */
  time: string;
  /** Whether the period has ended. Otherwise its count may still grow. */
  complete: boolean;
  subjects: number;
  /** How many of them returned in the period itself and in each period after it. */
  returned: number[];
}

/** The answer to a query in SQL. */
export interface SqlResult {
  /** The names of the columns, and their types by ClickHouse's names, such as `UInt64`. */
  columns: { name: string; type: string }[];
  /**
   * A list for each row, with a value for each column. NaN and infinities are null, and times are RFC 3339 in UTC. With `bigIntegers`,
   * integers that a number does not hold exactly are BigInt; otherwise they are read as the nearest number.
   */
  rows: unknown[][];
}

/** See {@link Client.streamSql}. */
export interface StreamSqlOptions extends ReadOptions {
  /** `csv` has the names of the columns in its first line, and NULL as `\N`. */
  format: 'csv' | 'parquet';
}

/** See {@link Client.trace}. */
export interface TraceOptions {
  /** The event name. Default: the client's `traceEventName`. */
  eventName?: string | undefined;
  conversationMetadata?: object | undefined;
}
