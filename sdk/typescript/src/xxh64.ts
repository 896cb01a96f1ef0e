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

/** Returns the top 24 bits of the XXH64 of the first `length` bytes. */
export function xxh64Top24(input: DataView, length: number): number {
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
