import { mapStrings, membersOf, quote } from './json-text.js';

/** Strings of fewer bytes are not cut. */
const cutBytesMin = 256;
/** The end of a cut string, with its original size in bytes. */
const mark = /… \[sluice_truncated: (\d+) bytes\]$/;

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
