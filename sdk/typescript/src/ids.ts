import { randomBytes } from 'node:crypto';

import { xxh64Top24 } from './xxh64.js';

/** The most bytes of a conversation's id. */
export const conversationIdBytesMax = 256;

const encoder = new TextEncoder();
const utf8 = new Uint8Array(conversationIdBytesMax + 4);
const view = new DataView(utf8.buffer);
const bytes = Buffer.alloc(16);

/** Returns the 24-bit hash of a conversation's id; undefined if the id is too long. */
export function conversationHash(conversationId: string): number | undefined {
  const { read, written } = encoder.encodeInto(conversationId, utf8);
  if (read < conversationId.length || written > conversationIdBytesMax) {
    return undefined;
  }
  return xxh64Top24(view, written);
}

/**
 * Composes an id: a UUIDv8 of 48 bits Unix milliseconds, 12 bits microseconds within the millisecond, 24 bits conversation hash and 38
 * bits counter. The counter is given as its high 6 bits and its low 32 bits.
 */
export function makeId(unixMillis: number, micros: number, hash: number, countHigh: number, countLow: number): string {
  bytes.writeUIntBE(unixMillis, 0, 6);
  bytes.writeUInt16BE(0x8000 | micros, 6);
  bytes.writeUInt16BE(0x8000 | (hash >>> 10), 8);
  bytes.writeUInt16BE(((hash & 0x3ff) << 6) | countHigh, 10);
  bytes.writeUInt32BE(countLow, 12);
  const hex = bytes.toString('hex');
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`;
}

/** The state from which a process mints ids. */
export interface Minted {
  /** The 38-bit counter of the next id. */
  count: number;
  /** The last time that {@link nowMicros} returned, in Unix microseconds. */
  lastMicros: number;
  /**
   * Set while the system's clock is known to be wrong: the server's time in Unix milliseconds, and the performance clock's time when the
   * server's time was learned.
   */
  server?: { ms: number; since: number } | undefined;
}

const countMax = 2 ** 38 - 1;

// Bounds of nowMicros: how far its times may run ahead of the clock, a microsecond for each call, and the largest backward step of the
// clock that it does not follow.
const aheadMaxMicros = 5e6;
const backMaxMicros = 10e6;

/** The key of the state that all copies of this package in a process or worker share, for example the ESM and the CommonJS copy. */
const mintedKey = Symbol.for('@sluicehq/sluice minted 1');
let minted: Minted | undefined;

function ofProcess(): Minted {
  if (minted === undefined) {
    const shared = globalThis as unknown as Record<symbol, Minted | undefined>;
    minted = shared[mintedKey] ?? { count: firstCount(), lastMicros: 0 };
    shared[mintedKey] = minted;
  }
  return minted;
}

/**
 * Returns the random number at which a process or worker begins to count, so that no two of them mint the same ids. It is below 2^37,
 * so that at least 2^37 ids come before the 38-bit counter wraps around.
 */
export function firstCount(): number {
  const random = randomBytes(5);
  return (random.readUInt8(4) & 0x1f) * 2 ** 32 + random.readUInt32LE(0);
}

/**
 * Mints the id of an event at the given time, in Unix microseconds. The ids of one conversation and time ascend in the order in which
 * they are minted, and each id is unique.
 */
export function mintId(unixMicros: number, hash: number, process = ofProcess()): string {
  const { count } = process;
  process.count = count === countMax ? 0 : count + 1;
  const millis = Math.floor(unixMicros / 1000);
  return makeId(millis, unixMicros - millis * 1000, hash, Math.floor(count / 2 ** 32), count >>> 0);
}

/** Sets the time to the server's, in Unix milliseconds, from now on; undefined returns to the system's clock. */
export function followServer(ms: number | undefined): void {
  ofProcess().server = ms === undefined ? undefined : { ms, since: performance.now() };
}

/** Returns the time in Unix microseconds, from the system's clock, or from the server's time while the system's clock is wrong. */
export function currentMicros({ server } = ofProcess()): number {
  return server === undefined ? Date.now() * 1000 : Math.floor((server.ms + performance.now() - server.since) * 1000);
}

/**
 * Returns the time for an event without a timestamp, in Unix microseconds. It is the clock's time, but later than any time returned
 * before, so that events sort in the order in which they were tracked. If the clock is set back by more than 10 s, it follows the clock.
 */
export function nowMicros(clock?: number, process = ofProcess()): number {
  const clockMicros = clock ?? currentMicros(process);
  const ahead = process.lastMicros - clockMicros;
  if (ahead < 0 || ahead > backMaxMicros) {
    process.lastMicros = clockMicros;
  } else if (ahead < aheadMaxMicros) {
    process.lastMicros++;
  }
  return process.lastMicros;
}
