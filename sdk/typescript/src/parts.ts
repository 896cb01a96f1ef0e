import { isAnyArrayBuffer } from 'node:util/types';

import { writeBytesMax } from './encode.js';
import { encodeValue } from './payload.js';
import { marked } from './truncate.js';

/** How many bytes of a stream are kept for its event. The rest of a write is for the other fields. */
export const streamBytesMax = writeBytesMax - (64 << 10);

type Kept = { text: string } | { bytes: Buffer } | { json: string };

/** Collects the parts of a stream for the output of its event, up to {@link streamBytesMax}. */
export class Parts {
  readonly #kept: Kept[] = [];
  #texts = 0;
  #binaries = 0;
  #count = 0;
  #bytes = 0;
  #room = streamBytesMax;

  /** Adds a copy of a part, as the part is now. */
  add(part: unknown): void {
    let kept: Kept;
    let size: number;
    this.#count++;
    if (typeof part === 'string') {
      this.#texts++;
      size = Buffer.byteLength(part);
      kept = { text: part.slice(0, this.#room) };
    } else if (part instanceof Uint8Array || isAnyArrayBuffer(part)) {
      this.#binaries++;
      size = part.byteLength;
      const bytes = part instanceof Uint8Array ? part : new Uint8Array(part);
      kept = { bytes: Buffer.from(bytes.subarray(0, this.#room)) };
    } else {
      const json = encodeValue(part ?? null, true) ?? 'null';
      size = Buffer.byteLength(json);
      kept = { json };
    }
    this.#bytes += size;
    if (size <= this.#room || (this.#room > 0 && !('json' in kept))) {
      this.#kept.push(kept);
    }
    this.#room = size <= this.#room ? this.#room - size : 0;
  }

  /** Returns the parts as JSON: texts or bytes joined to one string, other parts as an array; undefined if there are none. */
  joined(): string | undefined {
    if (this.#count === 0) {
      return undefined;
    }
    if (this.#texts === this.#count) {
      return this.#text(this.#kept.map((part) => ('text' in part ? part.text : '')).join(''));
    }
    if (this.#binaries === this.#count) {
      return this.#text(decoded(Buffer.concat(this.#kept.map((part) => ('bytes' in part ? part.bytes : Buffer.alloc(0))))));
    }
    const members = this.#kept.map((part) => ('json' in part ? part.json : (encodeValue('text' in part ? part.text : part.bytes, true) ?? '')));
    if (this.#bytes > streamBytesMax) {
      members.push(JSON.stringify({ sluice_truncated: { bytes: this.#bytes, parts: this.#count } }));
    }
    return `[${members.join(',')}]`;
  }

  #text(text: string): string {
    return JSON.stringify((this.#bytes > streamBytesMax ? marked(text, this.#bytes) : text).toWellFormed());
  }
}

/** Decodes bytes as UTF-8, whose last character may be incomplete; bytes that are not UTF-8 become base64. */
function decoded(bytes: Buffer): string {
  const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
  let text: string;
  try {
    text = decoder.decode(bytes, { stream: true });
  } catch {
    return bytes.toString('base64');
  }
  try {
    return text + decoder.decode();
  } catch {
    return text + '\ufffd';
  }
}
