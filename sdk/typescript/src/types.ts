import type { SluiceError } from './errors.js';
import type { RawJson } from './payload.js';

/** A time: a `Date`, Unix milliseconds (fractions count, to the microsecond), or RFC 3339 such as `2026-01-31T12:00:00.25Z`. */
export type Time = Date | number | string;

/** An embedding: 1 to 4,096 finite numbers, which are kept as float32. */
export type Embedding = readonly number[] | Float32Array | Float64Array;

/** An event to track. A field that is null or undefined is empty. */
export interface NewEvent {
  /**
   * An id of your own, 1 to 128 printable ASCII characters. The first event of an id wins. Default: one is minted, from the
   * timestamp and the conversation.
   */
  id?: string | null | undefined;
  /** The conversation it belongs to: 1 to 256 bytes of UTF-8. */
  conversationId: string;
  /** Any JSON object of up to 16 KiB, to filter by. */
  conversationMetadata?: object | null | undefined;
  /** What kind of event it is, of those that the server knows; 1 to 128 bytes. */
  eventName: string;
  /** When it happened: from 2000 to 24 hours ahead. Default: now. */
  timestamp?: Time | null | undefined;
  /** What went wrong; empty for nothing. */
  error?: string | null | undefined;
  /** How long it took, in milliseconds: finite and not negative. */
  latency?: number | null | undefined;
  /** A string, or any other JSON such as a list of messages. */
  input?: unknown;
  /** A string, or any other JSON. */
  output?: unknown;
  inputEmbeddings?: Embedding | null | undefined;
  outputEmbeddings?: Embedding | null | undefined;
}

/** What changes of an event: a field that is null is cleared, one that is undefined or absent is left alone. */
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
  /** RFC 3339 in UTC, to the microsecond, which a `Date` would lose. */
  timestamp: string;
  error: string | null;
  /** Milliseconds. */
  latency: number | null;
  input: unknown;
  output: unknown;
  /** Undefined where embeddings were not asked for. */
  inputEmbeddings?: number[] | null;
  outputEmbeddings?: number[] | null;
  /** The contents as the JSON that they are, with every digit, to be written back as they are; where `raw` asked for it. */
  raw?: { conversationMetadata: RawJson | null; input: RawJson | null; output: RawJson | null };
}

/** What a write does. */
export type Op = 'create' | 'update' | 'patch' | 'delete';

/** A write that will never be, lines of the spool that cannot be read, or a clock that is wrong. */
export interface WriteFailure {
  /** What the write was; undefined where it is about none. */
  op: Op | undefined;
  /** The id of its event; undefined where it is about none. */
  id: string | undefined;
  /** The HTTP status; undefined where the server did not answer. */
  status: number | undefined;
  /**
   * The API's code, such as `immutable`, or, with `waitAppliedSeconds`, `id_taken` and `event_deleted` for writes that had no
   * effect; or `network` or `timeout` for what was given up after `retryForMs`, `spool_corrupt`
   * for a line of the spool, `wrong_clock` for this machine's clock, and `invalid`, `queue_full`, `closed` or `spool` for the event of a traced call that could not be
   * queued. Undefined where the answer was a proxy's.
   */
  code: string | undefined;
  /** What is wrong, for humans. */
  detail: string;
  /** The field that is meant, by its name in the API. */
  field: string | undefined;
  /** The same as an error. */
  error: SluiceError;
}

/** The options of a {@link Client}. */
export interface ClientOptions {
  /** The server's address; a path in it goes before that of every request. Default `http://127.0.0.1:8080`. */
  url?: string | undefined;
  /** An API key, with the scopes write and read as needed. Default none. */
  apiKey?: string | undefined;
  /** The most writes of a batch. Default 500, at most 50,000. */
  batchWritesMax?: number | undefined;
  /** The most bytes of a batch. Default 1 MiB, at most 16 MiB. */
  batchBytesMax?: number | undefined;
  /** How old the oldest write of a batch becomes before it is sent, in milliseconds. Default 100. */
  batchAgeMaxMs?: number | undefined;
  /** The most writes of the queue. Default 10,000. */
  queueWritesMax?: number | undefined;
  /** The most bytes of the queue, as the writes are encoded. Default 64 MiB. */
  queueBytesMax?: number | undefined;
  /** How long a write is tried, in milliseconds from its first try. Default for ever. */
  retryForMs?: number | undefined;
  /**
   * Has the server answer each batch only once it is applied, or after so many seconds, a whole number from 1 to 30. `onError` is
   * then also told of writes that had no effect, by the codes `id_taken` (the create of an id of your own that is taken),
   * `event_deleted` and `unknown_event`. It slows sending down, as one batch is sent at a time. Default: a batch is answered when
   * it is in the log.
   */
  waitAppliedSeconds?: number | undefined;
  /** The longest that one request takes, in milliseconds. Default 30,000. */
  requestTimeoutMs?: number | undefined;
  /** Whether bodies of 1 KiB and more are compressed with gzip. Default no. */
  gzip?: boolean | undefined;
  /** A PEM file of certificate authorities that are trusted beside Node's own. Default none. */
  caFile?: string | undefined;
  /** A directory where writes survive the process until they are answered. Default none. */
  spoolDir?: string | undefined;
  /**
   * Whether a write is refused whose input, output or metadata is not JSON, or is too large. Default no: it is encoded by what is
   * nearest (Map and Error as objects, Set as an array, bytes as base64, the rest as text), and what is too large is cut and says
   * so. Traced calls always do that.
   */
  strict?: boolean | undefined;
  /**
   * Whether integers of contents that a number does not hold exactly (beyond 2^53) are read as BigInt, with all their digits. This
   * library writes those as numbers; `JSON.stringify` refuses them. Default no: they are read as the nearest number.
   */
  bigIntegers?: boolean | undefined;
  /** The event name of traced calls. Default `event_a`. */
  traceEventName?: string | undefined;
  /**
   * Called once for each write that will never be, from the sender: soon after the call that made it, never within. Default: a
   * warning on the console, without contents.
   */
  onError?: ((failure: WriteFailure) => void) | undefined;
}

/** How long a call may take. */
export interface TimeoutOptions {
  /** Milliseconds. */
  timeoutMs?: number | undefined;
}

/** What all reads take. */
export interface ReadOptions {
  /**
   * Reads your writes: a whole number of seconds from 1 to 30 in which what was queued before is flushed, and then again as
   * many in which the server waits until it is applied. Default: neither.
   */
  waitSeconds?: number | undefined;
}

/** See {@link Client.event}. */
export interface EventOptions extends ReadOptions {
  /** Whether an event brings its contents as JSON too, in {@link StoredEvent.raw}. Default no. */
  raw?: boolean | undefined;
}

/** See {@link Client.conversationEvents}. */
export interface ConversationOptions extends EventOptions {
  /** The most events of a page: 1 to 1,000. Default 100. */
  limit?: number | undefined;
  /** Whether events bring their embeddings. Default no. */
  embeddings?: boolean | undefined;
}

/** See {@link Client.conversation}. */
export interface ConversationPageOptions extends ConversationOptions {
  /** `nextCursor` of the page before. Default: the first page. */
  cursor?: string | null | undefined;
}

/** A page of a conversation's events, in order of time. */
export interface ConversationPage {
  events: StoredEvent[];
  /** Where the next page begins; null after the last. */
  nextCursor: string | null;
}

/** What narrows every analytics query. */
export interface FilterOptions extends ReadOptions {
  /** The earliest timestamp: a time, or one before now such as `7d`, `24h`, `30m` or `90s`. Default `7d`. */
  since?: Time | undefined;
  /** The timestamp before which events count, given as in since. Default now. */
  until?: Time | undefined;
  conversationId?: string | undefined;
  eventName?: string | undefined;
  /** Only events whose metadata has all these members; at most 16. */
  metadata?: Record<string, string | number | boolean> | undefined;
}

/** See {@link Client.latency}. */
export interface LatencyOptions extends FilterOptions {
  /** The quantiles wanted, each above 0 and below 1. Default 0.95. */
  q?: readonly number[] | undefined;
  /** What rows are grouped by. Default both. */
  groupBy?: readonly ('conversation' | 'event_name')[] | undefined;
  /** The most rows: 1 to 10,000. Default 100. */
  limit?: number | undefined;
}

/** See {@link Client.conversations}. */
export interface ConversationsOptions extends FilterOptions {
  /** Default `error_rate`. */
  orderBy?: 'error_rate' | 'errors' | 'events' | undefined;
  /** Leaves out conversations with fewer events. Default 1. */
  minEvents?: number | undefined;
  /** The most rows: 1 to 10,000. Default 100. */
  limit?: number | undefined;
}

/** See {@link Client.timeSeries}. */
export interface TimeSeriesOptions extends FilterOptions {
  /** The length of a bucket, such as `5m`. Default `1h`. */
  interval?: string | undefined;
  /** The quantiles wanted, each above 0 and below 1. Default 0.95. */
  q?: readonly number[] | undefined;
}

/** How many events were errors. */
export interface ErrorCount {
  /** That of the filter. */
  eventName: string | null;
  events: number;
  errors: number;
  /** Errors per event, 0 to 1; 0 without events. */
  errorRate: number;
  /** RFC 3339. */
  since: string;
  until: string;
}

/** Milliseconds by quantile as it was asked for, such as `0.95`; null where no event has a latency. */
export type Quantiles = Record<string, number | null>;

/** A group's latency. */
export interface LatencyRow {
  /** Null where rows are not grouped by it. */
  conversationId: string | null;
  /** Null where rows are not grouped by it. */
  eventName: string | null;
  events: number;
  quantiles: Quantiles;
}

/** A conversation's counts. */
export interface ConversationRow {
  conversationId: string;
  events: number;
  errors: number;
  /** Errors per event, 0 to 1. */
  errorRate: number;
  /** The timestamps of its first and last event, RFC 3339. */
  first: string;
  last: string;
}

/** The counts of a bucket. Buckets without events have no row. */
export interface TimeSeriesRow {
  /** When the bucket begins, RFC 3339. */
  time: string;
  events: number;
  errors: number;
  /** Errors per event, 0 to 1. */
  errorRate: number;
  quantiles: Quantiles;
}

/** See {@link Client.trace}. */
export interface TraceOptions {
  /** Default: the client's `traceEventName`. */
  eventName?: string | undefined;
  conversationMetadata?: object | undefined;
}
