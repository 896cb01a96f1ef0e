import { randomBytes } from 'node:crypto';

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

// XXH64 with seed 0, on one 64-bit register in two halves. BigInt would be ten times slower.
let hi = 0;
let lo = 0;

const [prime1Hi, prime1Lo] = [0x9e3779b1, 0x85ebca87];
const [prime2Hi, prime2Lo] = [0xc2b2ae3d, 0x27d4eb4f];
const [prime3Hi, prime3Lo] = [0x165667b1, 0x9e3779f9];
const [prime4Hi, prime4Lo] = [0x85ebca77, 0xc2b2ae63];
const [prime5Hi, prime5Lo] = [0x27d4eb2f, 0x165667c5];

function set(high: number, low: number): void {
  hi = high;
  lo = low;
}

function add(high: number, low: number): void {
  const sum = (lo >>> 0) + (low >>> 0);
  hi = (hi + high + (sum > 0xffffffff ? 1 : 0)) | 0;
  lo = sum | 0;
}

function xor(high: number, low: number): void {
  hi ^= high;
  lo ^= low;
}

function multiply(high: number, low: number): void {
  const a0 = lo & 0xffff;
  const a1 = lo >>> 16;
  const b0 = low & 0xffff;
  const b1 = low >>> 16;
  const bottom = Math.imul(a0, b0) >>> 0;
  const middle1 = a1 * b0 + (bottom >>> 16);
  const middle2 = a0 * b1 + (middle1 & 0xffff);
  const top = a1 * b1 + Math.floor(middle1 / 0x10000) + Math.floor(middle2 / 0x10000);
  hi = (top + Math.imul(hi, low) + Math.imul(lo, high)) | 0;
  lo = (middle2 << 16) | (bottom & 0xffff);
}

/** Rotates to the left by fewer than 32 bits. */
function rotate(bits: number): void {
  const high = hi;
  hi = (hi << bits) | (lo >>> (32 - bits));
  lo = (lo << bits) | (high >>> (32 - bits));
}

/** One step of a lane: rotate(lane + input * prime2, 31) * prime1. */
function round(laneHi: number, laneLo: number, inputHi: number, inputLo: number): void {
  set(inputHi, inputLo);
  multiply(prime2Hi, prime2Lo);
  add(laneHi, laneLo);
  rotate(31);
  multiply(prime1Hi, prime1Lo);
}

// The four lanes for inputs of 32 bytes and more, each in two halves.
const lanes = new Int32Array(8);
// prime1 + prime2, prime2, 0 and -prime1.
const lanesAtFirst = Int32Array.of(0x60ea27ee, 0xadc0b5d6, prime2Hi, prime2Lo, 0, 0, 0x61c8864e, 0x7a143579);
const laneRotations = [1, 7, 12, 18] as const;

function xxh64Top24(input: DataView, length: number): number {
  let at = 0;
  if (length >= 32) {
    lanes.set(lanesAtFirst);
    for (; at + 32 <= length; at += 32) {
      for (let i = 0; i < 8; i += 2) {
        round(lanes[i] ?? 0, lanes[i + 1] ?? 0, input.getInt32(at + 4 * i + 4, true), input.getInt32(at + 4 * i, true));
        lanes[i] = hi;
        lanes[i + 1] = lo;
      }
    }
    let sumHi = 0;
    let sumLo = 0;
    for (let i = 0; i < 8; i += 2) {
      set(lanes[i] ?? 0, lanes[i + 1] ?? 0);
      rotate(laneRotations[i >> 1] ?? 0);
      add(sumHi, sumLo);
      sumHi = hi;
      sumLo = lo;
    }
    for (let i = 0; i < 8; i += 2) {
      round(0, 0, lanes[i] ?? 0, lanes[i + 1] ?? 0);
      xor(sumHi, sumLo);
      multiply(prime1Hi, prime1Lo);
      add(prime4Hi, prime4Lo);
      sumHi = hi;
      sumLo = lo;
    }
  } else {
    set(prime5Hi, prime5Lo);
  }
  add(0, length);
  for (; at + 8 <= length; at += 8) {
    const hashHi = hi;
    const hashLo = lo;
    round(0, 0, input.getInt32(at + 4, true), input.getInt32(at, true));
    xor(hashHi, hashLo);
    rotate(27);
    multiply(prime1Hi, prime1Lo);
    add(prime4Hi, prime4Lo);
  }
  if (at + 4 <= length) {
    const hashHi = hi;
    const hashLo = lo;
    set(0, input.getInt32(at, true));
    multiply(prime1Hi, prime1Lo);
    xor(hashHi, hashLo);
    rotate(23);
    multiply(prime2Hi, prime2Lo);
    add(prime3Hi, prime3Lo);
    at += 4;
  }
  for (; at < length; at++) {
    const hashHi = hi;
    const hashLo = lo;
    set(0, input.getUint8(at));
    multiply(prime5Hi, prime5Lo);
    xor(hashHi, hashLo);
    rotate(11);
    multiply(prime1Hi, prime1Lo);
  }
  xor(0, hi >>> 1); // hash ^= hash >> 33
  multiply(prime2Hi, prime2Lo);
  xor(hi >>> 29, (lo >>> 29) | (hi << 3)); // hash ^= hash >> 29
  multiply(prime3Hi, prime3Lo);
  xor(0, hi); // hash ^= hash >> 32
  return hi >>> 8;
}
