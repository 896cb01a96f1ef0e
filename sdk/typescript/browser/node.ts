/**
 * The parts of Node's modules that this library uses, built on what browsers have. The build of the browser bundle puts this file in the
 * place of Node's modules.
 */

const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** The part of Node's Buffer that this library uses. */
class Bytes extends Uint8Array<ArrayBuffer> {
  override toString(encoding: 'utf8' | 'base64' | 'hex' = 'utf8'): string {
    if (encoding === 'hex') {
      return Array.from(this, (byte) => byte.toString(16).padStart(2, '0')).join('');
    }
    if (encoding === 'utf8') {
      return decoder.decode(this);
    }
    let text = '';
    for (let at = 0; at < this.length; at += 0x8000) {
      text += String.fromCharCode(...this.subarray(at, at + 0x8000));
    }
    return btoa(text);
  }

  readUInt8(at: number): number {
    return this[at] ?? 0;
  }

  readUInt32LE(at: number): number {
    return this.#view().getUint32(at, true);
  }

  writeUInt16BE(value: number, at: number): void {
    this.#view().setUint16(at, value);
  }

  writeUInt32BE(value: number, at: number): void {
    this.#view().setUint32(at, value);
  }

  writeUIntBE(value: number, at: number, length: number): void {
    for (let i = at + length - 1; i >= at; i--) {
      this[i] = value % 256;
      value = Math.floor(value / 256);
    }
  }

  #view(): DataView {
    return new DataView(this.buffer, this.byteOffset, this.byteLength);
  }
}

function alloc(length: number): Bytes {
  return new Bytes(new ArrayBuffer(length));
}

function concat(parts: readonly Uint8Array[]): Bytes {
  const whole = alloc(parts.reduce((n, part) => n + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

export const Buffer = {
  alloc,
  byteLength: (text: string) => encoder.encode(text).length,
  concat,
  from(value: string | ArrayBuffer | Uint8Array, at?: number, length?: number): Bytes {
    if (typeof value === 'string') {
      return new Bytes(encoder.encode(value).buffer);
    }
    return value instanceof Uint8Array ? concat([value]) : new Bytes(value, at, length);
  },
};

/** Returns a timer that is an object with ref and unref, as in Node. */
export function setTimeout(callback: (...args: unknown[]) => void, ms?: number, ...args: unknown[]) {
  const id = globalThis.setTimeout(callback, ms, ...args);
  const timer = { id, ref: () => timer, unref: () => timer };
  return timer;
}

export function clearTimeout(timer: { id: number } | undefined): void {
  globalThis.clearTimeout(timer?.id);
}

/** A page has no process: no environment variables, and no exit events. */
export const process = {
  env: {} as Record<string, string | undefined>,
  on: () => process,
  once: () => process,
  off: () => process,
};

// node:crypto
export function randomBytes(length: number): Bytes {
  return crypto.getRandomValues(alloc(length));
}

// node:events
export function setMaxListeners(): void {
  // Browsers do not warn of many listeners.
}

// node:os
export function endianness(): 'LE' | 'BE' {
  return new Uint8Array(Uint16Array.of(1).buffer)[0] === 1 ? 'LE' : 'BE';
}

// node:util
export function inspect(value: unknown): string {
  if (typeof value === 'function') {
    return `[Function: ${value.name || '(anonymous)'}]`;
  }
  if (typeof value === 'object' && !(value instanceof RegExp || value instanceof Error || value instanceof Date)) {
    return Object.prototype.toString.call(value);
  }
  return String(value); // eslint-disable-line @typescript-eslint/no-base-to-string -- RegExp, Error and Date have a useful toString
}

export function promisify(callee: unknown): unknown {
  return callee; // only gzip is promisified, and the browser client refuses that option
}

export const gzip = undefined;

// node:util/types
export function isAnyArrayBuffer(value: unknown): boolean {
  return value instanceof ArrayBuffer || (typeof SharedArrayBuffer !== 'undefined' && value instanceof SharedArrayBuffer);
}

export function isNativeError(value: unknown): boolean {
  return Object.prototype.toString.call(value) === '[object Error]';
}

// node:http
export default { STATUS_CODES: {} };
