import { inspect } from 'node:util';
import { isAnyArrayBuffer, isNativeError } from 'node:util/types';

import { onOneLine, quote } from './json-text.js';

/**
 * Encodes any JavaScript value as JSON, for input, output and metadata. A value that JSON does not have is encoded as the nearest JSON
 * value, or as its text. The only error that these functions throw for a value is {@link TwoKeysError}.
 */

/** How many levels a field may nest. The server allows 32, and the write itself is one. */
export const depthMax = 31;
export const metadataBytesMax = 16 << 10;
const textCharsMax = 1000;
const circular = '"[circular]"';
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
