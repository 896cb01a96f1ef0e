import { randomBytes } from 'node:crypto';
import { inspect } from 'node:util';
import { isAnyArrayBuffer, isNativeError } from 'node:util/types';

/**
 * Encodes any JavaScript value as JSON, for input, output and metadata. A value that JSON does not have is encoded as the nearest JSON
 * value, or as its text. The only error that these functions throw for a value is {@link TwoKeysError}.
 */

/** How many levels a field may nest. The server allows 32, and the write itself is one. */
export const depthMax = 31;
export const metadataBytesMax = 16 << 10;
const textCharsMax = 1000;
const cutBytesMin = 256;
const circular = '"[circular]"';
const mark = /… \[sluice_truncated: (\d+) bytes\]$/;

/** Two keys of a Map have the same text, so that an object cannot have both. */
export class TwoKeysError extends Error {}

/** A value that was encoded earlier, as it was then. */
export class Snapshot {
  constructor(readonly json: string) {}
}

/**
 * JSON text that is written unchanged, with every digit of its numbers. A read with `raw` returns it, and you can make your own. Text
 * that is not valid JSON is written as a string; a strict client refuses it.
 */
export class RawJson {
  constructor(readonly json: string) {}

  /** Returns the JSON text. */
  toString(): string {
    return this.json;
  }

  /** Returns the parsed value, for `JSON.stringify`. Digits beyond the precision of a number are lost. */
  toJSON(): unknown {
    return JSON.parse(this.json);
  }
}

/**
 * Encodes the value as JSON; undefined for undefined. If two keys of a Map have the same text, the later one is renamed if `rename` is
 * true; otherwise it throws a {@link TwoKeysError}.
 */
export function encodeValue(value: unknown, rename: boolean): string | undefined {
  if (value === undefined) {
    return undefined;
  }
  try {
    if (value instanceof Snapshot) {
      return value.json;
    }
    if (isPlain(value, depthMax)) {
      return JSON.stringify(value); // much faster, and enough for most values
    }
    return write(value, depthMax, [], rename);
  } catch (error) {
    if (error instanceof TwoKeysError) {
      throw error;
    }
    return quote(textOf(value));
  }
}

/** Encodes metadata, which must be an object: any other value becomes the member `value` of an object. */
export function encodeObject(value: unknown): string | undefined {
  const json = encodeValue(value, true);
  return json === undefined || json === 'null' || json.startsWith('{') ? json : `{"value":${json}}`;
}

/** Returns the value's text. It does not throw, even if the value's own methods do. */
export function textOf(value: unknown): string {
  try {
    return (typeof value === 'string' ? value : inspect(value, { depth: 2 })).toWellFormed();
  } catch {
    return `[${typeof value}]`;
  }
}

/** Returns the message of an error, or the text of any other thrown value. */
export function messageOf(error: unknown): string {
  try {
    if (error instanceof Error) {
      return (error.message || error.name).toWellFormed();
    }
  } catch {
    // The error's properties throw, or are not strings.
  }
  return textOf(error);
}

/** Whether JSON.stringify encodes the value without loss. */
function isPlain(value: unknown, depth: number): boolean {
  switch (typeof value) {
    case 'string':
      return value.isWellFormed();
    case 'boolean':
      return true;
    case 'number':
      return Number.isFinite(value);
    case 'object':
      break;
    default:
      return false;
  }
  if (value === null) {
    return true;
  }
  const prototype = Object.getPrototypeOf(value) as unknown;
  if (depth === 0 || 'toJSON' in value) {
    return false;
  }
  if (Array.isArray(value)) {
    return prototype === Array.prototype && value.every((member) => isPlain(member, depth - 1));
  }
  if (prototype !== Object.prototype && prototype !== null) {
    return false;
  }
  for (const key of Object.keys(value)) {
    const member = (value as Record<string, unknown>)[key];
    if (!key.isWellFormed() || !(member === undefined || isPlain(member, depth - 1))) {
      return false;
    }
  }
  return true;
}

/** Encodes the value by this library's own rules. `parents` are the objects that contain it, to find cycles. */
function write(value: unknown, depth: number, parents: readonly object[], rename: boolean): string {
  switch (typeof value) {
    case 'string':
      return quote(value);
    case 'boolean':
      return String(value);
    case 'number':
      return Number.isFinite(value) ? JSON.stringify(value) : quote(String(value));
    case 'bigint':
      return value.toString();
    case 'object':
      break;
    case 'undefined':
      return 'null';
    default:
      return quote(textOf(value));
  }
  if (value === null) {
    return 'null';
  }
  if (parents.includes(value)) {
    return circular;
  }
  try {
    return writeObject(value, depth, [...parents, value], rename);
  } catch (error) {
    if (error instanceof TwoKeysError) {
      throw error;
    }
    return quote(textOf(value)); // the value's own methods threw
  }
}

function writeObject(value: object, depth: number, parents: readonly object[], rename: boolean): string {
  if (value instanceof RawJson) {
    return writeRaw(value.json, depth, rename);
  }
  const known = bytesOf(value);
  if (known !== undefined) {
    return quote(known.toString('base64'));
  }
  if (value instanceof Date && Number.isNaN(value.getTime())) {
    return quote('Invalid Date');
  }
  if (value instanceof String || value instanceof Number || value instanceof Boolean || value instanceof BigInt) {
    return write(value.valueOf(), depth, parents, rename);
  }
  if (value instanceof RegExp || value instanceof Promise || value instanceof WeakMap || value instanceof WeakSet) {
    return quote(textOf(value));
  }
  if (typeof (value as { toJSON?: unknown }).toJSON === 'function') {
    const other = (value as { toJSON: (key: string) => unknown }).toJSON('');
    return other === value ? quote(textOf(value)) : write(other, depth, parents, rename);
  }
  if (depth === 0) {
    return quote(textOf(value).slice(0, textCharsMax));
  }
  if (Array.isArray(value) || value instanceof Set || ArrayBuffer.isView(value)) {
    const members = Array.from(value as Iterable<unknown>, (member) => write(member, depth - 1, parents, rename));
    return `[${members.join(',')}]`;
  }
  let entries: Iterable<[unknown, unknown]>;
  if (value instanceof Map) {
    entries = value;
  } else if (isNativeError(value) || value instanceof Error) {
    const { name, message, stack, cause } = value;
    entries = Object.entries(Object.assign({ name, message, stack, cause }, value));
  } else {
    entries = Object.entries(value);
  }
  const members = new Map<string, string>();
  for (const [key, member] of entries) {
    if (member === undefined && !(value instanceof Map)) {
      continue;
    }
    let name = typeof key === 'string' ? key.toWellFormed() : textOf(key);
    if (members.has(name)) {
      if (!rename) {
        throw new TwoKeysError('has two keys that are the same as text');
      }
      let n = 2;
      while (members.has(`${name} (${n})`)) {
        n++;
      }
      name = `${name} (${n})`;
    }
    members.set(name, write(member, depth - 1, parents, rename));
  }
  return `{${Array.from(members, ([name, json]) => `${quote(name)}:${json}`).join(',')}}`;
}

function writeRaw(json: string, depth: number, rename: boolean): string {
  let parsed: unknown;
  try {
    parsed = JSON.parse(json);
  } catch {
    return quote(json);
  }
  if (isNestedWithin(parsed, depth) && !json.toLowerCase().includes('\\ud') && json.isWellFormed()) {
    return onOneLine(json);
  }
  return write(parsed, depth, [], rename);
}

/** Replaces the line breaks, which can only be between tokens, because a line of NDJSON has none. */
function onOneLine(json: string): string {
  return json.replace(/[\r\n]/g, ' ').trim();
}

function isNestedWithin(value: unknown, depth: number): boolean {
  return typeof value !== 'object' || value === null || (depth > 0 && Object.values(value).every((member) => isNestedWithin(member, depth - 1)));
}

/** Returns the bytes of a byte array or buffer; undefined for any other value, such as an array of larger numbers. */
function bytesOf(value: object): Buffer | undefined {
  if (value instanceof Uint8Array || value instanceof Uint8ClampedArray || value instanceof DataView) {
    return Buffer.from(value.buffer, value.byteOffset, value.byteLength);
  }
  return isAnyArrayBuffer(value) ? Buffer.from(value) : undefined;
}

function quote(text: string): string {
  return JSON.stringify(text.toWellFormed());
}

/**
 * Shortens fields of JSON to `room` bytes in total. It cuts the longest strings, and each cut string states its original size. If that
 * is not enough, the largest field is replaced by the beginning of its JSON.
 */
export function fit(fields: ReadonlyMap<string, string>, room: number): Map<string, string> {
  const lengths: number[] = [];
  for (const json of fields.values()) {
    mapStrings(json, (token) => {
      lengths.push(Buffer.byteLength(token) - 2);
      return '';
    });
  }
  const excess = total(fields) - room;
  // Find the largest limit for the length of strings that saves enough.
  let limit = cutBytesMin;
  for (let low = cutBytesMin, high = lengths.reduce((a, b) => Math.max(a, b), 0); low <= high; ) {
    const middle = Math.floor((low + high) / 2);
    const saved = lengths.reduce((sum, length) => sum + (length > middle && length > cutBytesMin ? length - middle - 64 : 0), 0);
    if (saved >= excess) {
      limit = middle;
      low = middle + 1;
    } else {
      high = middle - 1;
    }
  }
  const result = new Map(Array.from(fields, ([name, json]) => [name, mapStrings(json, (token) => cut(token, limit))]));
  while (total(result) > room) {
    const [name, json] = Array.from(result).reduce((a, b) => (Buffer.byteLength(b[1]) > Buffer.byteLength(a[1]) ? b : a));
    const rest = total(result) - Buffer.byteLength(json);
    const whole = fields.get(name) ?? '';
    const bytes = Buffer.byteLength(whole);
    const start = beginning(whole, Math.max(room - rest, Math.floor(room / 4)) - 128);
    result.set(name, JSON.stringify(name === 'error' ? marked(start, bytes) : { sluice_truncated: { bytes, beginning: start } }));
  }
  return result;
}

/** Shortens the JSON of an object to `room` bytes: its last members are left out, and `sluice_truncated` states the original size. */
export function fitObject(json: string, room: number): string {
  const bytes = Buffer.byteLength(json);
  if (bytes <= room) {
    return json;
  }
  const kept = [`"sluice_truncated":{"bytes":${bytes}}`];
  let size = (kept[0]?.length ?? 0) + 2;
  for (const [name, value] of membersOf(json)) {
    const member = `${JSON.stringify(name)}:${value}`;
    const more = Buffer.byteLength(member) + 1;
    if (size + more <= room && name !== 'sluice_truncated') {
      kept.push(member);
      size += more;
    }
  }
  return `{${kept.join(',')}}`;
}

/** Applies `change` to every string of the JSON that is not a key. A regular expression would overflow the stack for long strings. */
function mapStrings(json: string, change: (token: string) => string): string {
  const parts: string[] = [];
  for (let at = 0; ; ) {
    const start = json.indexOf('"', at);
    if (start < 0) {
      parts.push(json.slice(at));
      return parts.join('');
    }
    const end = endOfString(json, start);
    const token = json.slice(start, end);
    parts.push(json.slice(at, start), json[end] === ':' ? token : change(token));
    at = end;
  }
}

/** Returns the end of the string that begins at start. */
function endOfString(json: string, start: number): number {
  let end = start + 1;
  for (let escapes = 1; escapes % 2 === 1; ) {
    end = json.indexOf('"', end) + 1;
    for (escapes = 0; json[end - 2 - escapes] === '\\'; escapes++);
  }
  return end;
}

/** Splits the JSON of an array into its elements, or the JSON of an object into its members with their names. */
export function piecesOf(json: string): string[] {
  const pieces: string[] = [];
  let depth = 0;
  let start = json.search(/[[{]/) + 1;
  for (let at = start - 1; at >= 0 && at < json.length; at++) {
    const c = json[at];
    if (c === '"') {
      at = endOfString(json, at) - 1;
    } else if (c === '{' || c === '[') {
      depth++;
    } else if (c === '}' || c === ']') {
      depth--;
    }
    if (depth === 0 || (c === ',' && depth === 1)) {
      pieces.push(json.slice(start, at).trim());
      start = at + 1;
    }
    if (depth === 0) {
      break;
    }
  }
  return pieces.filter((piece) => piece !== '');
}

/** Splits the JSON of an object into its members, by name. The values keep their text. */
export function membersOf(json: string): Map<string, string> {
  return new Map(piecesOf(json).map((piece) => {
    const end = endOfString(piece, 0);
    return [JSON.parse(piece.slice(0, end)) as string, piece.slice(piece.indexOf(':', end) + 1).trim()];
  }));
}

/** The prefix of strings that stand for large integers during parsing. It is random, so that no string of the caller's has it. */
const integerMark = `sluice integer ${randomBytes(16).toString('hex')} `;

/** Parses JSON. Integers that a number does not hold exactly become BigInt. */
export function parseBigIntegers(json: string): unknown {
  if (!/\d{16}/.test(json)) {
    return JSON.parse(json);
  }
  const parts: string[] = [];
  for (let at = 0; at < json.length; ) {
    const quoted = json.indexOf('"', at);
    const start = quoted < 0 ? json.length : quoted;
    parts.push(json.slice(at, start).replace(/-?\d+(\.\d+)?([eE][+-]?\d+)?/g, (token: string, fraction?: string, exponent?: string) =>
      fraction !== undefined || exponent !== undefined || Number.isSafeInteger(Number(token)) ? token : `"${integerMark}${token}"`));
    at = start < json.length ? endOfString(json, start) : start;
    parts.push(json.slice(start, at));
  }
  return JSON.parse(parts.join(''), (_, value: unknown) =>
    typeof value === 'string' && value.startsWith(integerMark) ? BigInt(value.slice(integerMark.length)) : value);
}

/**
 * Encodes the value as JSON.stringify does, except that {@link RawJson} is written unchanged, even if it is not valid JSON, and that
 * BigInt is written as a number if `bigIntegers` is true.
 */
export function stringify(value: unknown, bigIntegers: boolean): string | undefined {
  const raw: string[] = [];
  // JSON.stringify has called toJSON on the member already, so the RawJson itself is found in its holder.
  const json = JSON.stringify({ value }, function (this: Record<string, unknown>, name: string, member: unknown) {
    const own = this[name];
    if (!(typeof member === 'bigint' && bigIntegers) && !(own instanceof RawJson)) {
      return member;
    }
    raw.push(own instanceof RawJson ? onOneLine(own.json) : String(member));
    return integerMark;
  });
  const parts = json.split(JSON.stringify(integerMark));
  const whole = parts.map((part, i) => part + (raw[i] ?? '')).join('');
  return whole === '{}' ? undefined : whole.slice('{"value":'.length, -1);
}

function cut(token: string, limit: number): string {
  if (Buffer.byteLength(token) - 2 <= limit) {
    return token;
  }
  const text = JSON.parse(token) as string;
  // A string that was cut before, such as the input of a traced call, keeps its original size.
  const size = Number(mark.exec(text)?.[1] ?? Buffer.byteLength(text));
  return JSON.stringify(marked(beginning(text, limit), size));
}

/** Appends the mark of a cut text, with its original size in bytes. */
export function marked(text: string, bytes: number): string {
  return `${text}… [sluice_truncated: ${bytes} bytes]`;
}

/** Returns a beginning of the text whose JSON has at most `size` bytes, and nearly as many. */
function beginning(text: string, size: number): string {
  text = text.slice(0, size);
  for (;;) {
    const has = Buffer.byteLength(quote(text)) - 2;
    if (has <= size) {
      return text.toWellFormed();
    }
    text = text.slice(0, Math.floor((text.length * size) / has));
  }
}

function total(fields: ReadonlyMap<string, string>): number {
  return Array.from(fields.values()).reduce((sum, json) => sum + Buffer.byteLength(json), 0);
}
