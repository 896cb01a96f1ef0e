import { endianness } from 'node:os';

import { stringify } from './big-integers.js';
import { ValidationError } from './errors.js';
import { conversationHash, conversationIdBytesMax, mintId, nowMicros } from './ids.js';
import { encodeObject, encodeValue, messageOf, metadataBytesMax } from './payload.js';
import { formatMicros, timestampMicros } from './timestamps.js';
import { fit, fitObject } from './truncate.js';
import type { Embedding, EventUpdate, NewEvent } from './types.js';

/** The maximum size of an encoded write in bytes. It is the server's limit. */
export const writeBytesMax = 1 << 20;
const eventNameBytesMax = 128;
const dimensionsMax = 4096;

/** An encoded write. */
export interface Encoded {
  id: string;
  /** The line of NDJSON, with its newline. */
  line: Buffer;
  /** Whether this library minted the id. */
  minted: boolean;
}

/** The members of an item of `POST /events`. Undefined members are left out. */
interface Item {
  op: 'update' | 'patch' | 'delete' | undefined;
  id: string;
  conversation_id: string | undefined;
  timestamp: string | undefined;
  event_name: string | undefined;
  latency: number | null | undefined;
}

/** How values that are not JSON are encoded. */
export interface Encoding {
  /** Refuses values that are not JSON, and values that are too large. */
  strict?: boolean;
  /** Allows BigInt even if strict, because a client with this option reads BigInt. */
  bigIntegers?: boolean;
  /** Encodes every value in some way, because a call must not fail for being traced. */
  traced?: boolean;
}

/** Encodes a create. It throws a {@link ValidationError}. */
export function encodeCreate(event: NewEvent, encoding: Encoding): Encoded {
  checkProperties(event, createProperties);
  const hash = checkConversationId(event.conversationId);
  if (event.eventName as unknown === undefined) {
    throw new ValidationError('event_name', 'is required');
  }
  const timestamp = event.timestamp ?? undefined;
  const micros = timestamp === undefined ? undefined : timestampMicros(timestamp);
  if (event.id === undefined || event.id === null) {
    // The id contains the time, so there is no timestamp.
    return encode(makeItem(undefined, mintId(micros ?? nowMicros(), hash), event), event, encoding, true);
  }
  checkId(event.id);
  const item = makeItem(undefined, event.id, event);
  item.timestamp = micros === undefined || typeof timestamp === 'string' ? timestamp as string | undefined : formatMicros(micros);
  return encode(item, event, encoding);
}

/** Encodes the create of a traced call, whose id was minted at the start of the call. It throws a {@link ValidationError}. */
export function encodeTraced(id: string, event: NewEvent): Encoded {
  return encode(makeItem(undefined, id, event), event, { traced: true }, true);
}

/** Encodes an update or a patch. It throws a {@link ValidationError}. */
export function encodeUpdate(id: string, fields: EventUpdate, encoding: Encoding, op: 'update' | 'patch' = 'update'): Encoded {
  checkId(id);
  checkProperties(fields, updateProperties);
  if (Object.values(fields).every((value) => value === undefined)) {
    throw new ValidationError('', 'an update needs at least one field; null clears one');
  }
  return encode(makeItem(op, id, fields), fields, encoding);
}

/** Encodes a delete. It throws a {@link ValidationError}. */
export function encodeDelete(id: string): Encoded {
  checkId(id);
  return encode(makeItem('delete', id, {}), {}, {});
}

/** Checks an event's id. It throws a {@link ValidationError}. */
export function checkId(id: string): void {
  if (typeof id as unknown !== 'string' || !/^[ -~]{1,128}$/.test(id)) {
    throw new ValidationError('id', 'must be 1 to 128 printable ASCII characters');
  }
}

/** Checks a conversation's id and returns its 24-bit hash. It throws a {@link ValidationError}. */
export function checkConversationId(id: string): number {
  if (typeof id as unknown !== 'string' || id === '' || !id.isWellFormed()) {
    throw new ValidationError('conversation_id', 'must be a string of Unicode that is not empty');
  }
  const hash = conversationHash(id);
  if (hash === undefined) {
    throw new ValidationError('conversation_id', `is longer than ${conversationIdBytesMax} bytes`);
  }
  return hash;
}

const updateProperties = new Set<string>([
  'eventName',
  'conversationMetadata',
  'error',
  'latency',
  'input',
  'output',
  'inputEmbeddings',
  'outputEmbeddings',
] satisfies (keyof EventUpdate)[]);

const createProperties = new Set([
  ...updateProperties,
  ...(['id', 'conversationId', 'timestamp'] satisfies (keyof NewEvent)[]),
]);

/** Refuses unknown properties. Otherwise a misspelt field would be lost silently. */
function checkProperties(value: object, known: Set<string>): void {
  for (const name in value) {
    if (!known.has(name)) {
      throw new ValidationError(name, 'is not a field');
    }
  }
}

/** Checks the event name and the latency, and makes an item with them. */
function makeItem(op: Item['op'], id: string, fields: EventUpdate & { conversationId?: string }): Item {
  const { eventName, latency } = fields;
  if (eventName !== undefined && !isEventName(eventName)) {
    throw new ValidationError('event_name', `must be a string of 1 to ${eventNameBytesMax} bytes`);
  }
  if (latency !== undefined && latency !== null && !(Number.isFinite(latency) && latency >= 0)) {
    throw new ValidationError('latency', 'must be a finite number of milliseconds, 0 or more');
  }
  return { op, id, conversation_id: fields.conversationId, timestamp: undefined, event_name: eventName, latency };
}

function isEventName(name: unknown): boolean {
  return typeof name === 'string' && name !== '' && name.length <= eventNameBytesMax && Buffer.byteLength(name) <= eventNameBytesMax;
}

/** Encodes the value of input, output or error as JSON; undefined if the field is left out. */
function encodeContent(field: string, value: unknown, { strict, bigIntegers, traced }: Encoding): string | undefined {
  if (value === undefined || value === null) {
    return value === null ? 'null' : undefined;
  }
  if (field === 'error' && typeof value !== 'string') {
    if (strict) {
      throw new ValidationError('error', 'must be a string');
    }
    return encodeValue(messageOf(value), false);
  }
  if (strict) {
    return encodeStrictly(field, value, bigIntegers ?? false);
  }
  try {
    return encodeValue(value, traced === true);
  } catch (error) {
    throw new ValidationError(field, (error as Error).message);
  }
}

/** Encodes a value as JSON. It throws a {@link ValidationError} for any value that JSON cannot represent exactly. */
function encodeStrictly(field: string, value: unknown, bigIntegers: boolean): string {
  try {
    const json = stringify(value, bigIntegers); // undefined for functions and symbols
    if (json !== undefined && json === encodeValue(value, false)) {
      return json;
    }
  } catch (cause) {
    throw new ValidationError(field, 'cannot be written as JSON', { cause });
  }
  throw new ValidationError(field, 'cannot be written as JSON as it is');
}

function encodeMetadata(value: unknown, encoding: Encoding): string | undefined {
  const field = 'conversation_metadata';
  if (value !== undefined && typeof value !== 'object' && !encoding.traced) {
    throw new ValidationError(field, 'must be an object');
  }
  const json = encoding.traced ? encodeObject(value) : encodeContent(field, value, encoding);
  if (json === undefined || json === 'null') {
    return json;
  }
  if (!json.startsWith('{')) {
    throw new ValidationError(field, 'must be an object');
  }
  return encoding.strict ? json : fitObject(json, metadataBytesMax);
}

const littleEndian = endianness() === 'LE';

/** Encodes an embedding as base64 of little-endian float32. It throws a {@link ValidationError}. */
function encodeEmbedding(field: string, values: Embedding | null | undefined): string | null | undefined {
  if (values === undefined || values === null) {
    return values;
  }
  const floats = float32s(field, values);
  const bytes = Buffer.from(floats.buffer, floats.byteOffset, floats.byteLength);
  return (littleEndian ? bytes : Buffer.from(bytes).swap32()).toString('base64');
}

/** Returns an embedding as float32. It throws a {@link ValidationError}. */
export function float32s(field: string, values: Embedding): Float32Array {
  if (!Array.isArray(values) && !(values instanceof Float32Array) && !(values instanceof Float64Array)) {
    throw new ValidationError(field, 'must be an array of numbers');
  }
  if (values.length < 1 || values.length > dimensionsMax) {
    throw new ValidationError(field, `must have 1 to ${dimensionsMax} dimensions`);
  }
  const floats = values instanceof Float32Array ? values : new Float32Array(values.length);
  for (let i = 0; i < values.length; i++) {
    const value = Math.fround(values[i] as number);
    if (typeof values[i] !== 'number' || !Number.isFinite(value)) {
      throw new ValidationError(`${field}[${i}]`, 'must be a finite number of the range of float32');
    }
    floats[i] = value;
  }
  return floats;
}

function encode(item: Item, fields: EventUpdate, encoding: Encoding, minted = false): Encoded {
  const contents = new Map<string, string>();
  for (const field of ['error', 'input', 'output'] as const) {
    const json = encodeContent(field, fields[field], encoding);
    if (json !== undefined) {
      contents.set(field, json);
    }
  }
  const parts = [JSON.stringify(item).slice(0, -1)];
  const metadata = encodeMetadata(fields.conversationMetadata, encoding);
  if (metadata !== undefined) {
    parts.push(`"conversation_metadata":${metadata}`);
  }
  for (const [field, embedding] of [['input_embeddings', fields.inputEmbeddings], ['output_embeddings', fields.outputEmbeddings]] as const) {
    const base64 = encodeEmbedding(field, embedding);
    if (base64 !== undefined) {
      parts.push(`"${field}":${base64 === null ? 'null' : `"${base64}"`}`);
    }
  }
  const join = (contents: Map<string, string>) =>
    Buffer.from(`${[...parts, ...Array.from(contents, ([field, json]) => `"${field}":${json}`)].join(',')}}\n`);
  let line = join(contents);
  const over = line.length - 1 - writeBytesMax;
  if (over > 0 && !encoding.strict) {
    const room = Array.from(contents.values()).reduce((sum, json) => sum + Buffer.byteLength(json), 0) - over;
    line = join(fit(contents, room));
  }
  if (line.length - 1 > writeBytesMax) {
    throw new ValidationError('', `the write is ${line.length - 1} bytes, more than ${writeBytesMax}`);
  }
  return { id: item.id, line, minted };
}
