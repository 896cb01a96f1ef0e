import { randomBytes } from 'node:crypto';

import { endOfString, onOneLine } from './json-text.js';
import { RawJson } from './payload.js';

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
