import fs from 'node:fs';
import path from 'node:path';

import { SluiceError } from './errors.js';
import { lock } from './lock.js';
import { Write } from './queue.js';
import type { Op } from './types.js';

const fileBytesMax = 4 << 20;
const checksumBytes = 9; // with the space

/** A file of the spool, and its writes in order. */
interface SpoolFile {
  number: number;
  /** Where the next line begins. */
  size: number;
  writes: Write[];
  /** The first of the writes that was not answered. */
  first: number;
}

/**
 * Keeps writes in files until they are answered. Nothing is synced: what is in it survives the process, not the machine.
 *
 * Files are removed in order only, so that a start never sends an update again without the later ones of its id.
 */
export class Spool {
  /** The writes of earlier processes that were not answered, in order. */
  readonly loaded: Write[] = [];
  /** What could not be read of them. */
  readonly corrupt: string[] = [];

  readonly #dir: string;
  readonly #unlock: () => void;
  /** In order; the last is the one that is written. */
  readonly #files: SpoolFile[] = [];
  #fd = -1;
  /** What `done` holds. */
  #done = '';

  /** It throws a {@link SpoolInUseError}, or a {@link SluiceError} where the directory cannot be used. */
  constructor(dir: string) {
    this.#dir = path.resolve(dir);
    try {
      fs.mkdirSync(this.#dir, { recursive: true, mode: 0o700 });
      this.#unlock = lock(path.join(this.#dir, 'lock'));
    } catch (error) {
      throw asSluiceError('open the spool', error);
    }
    try {
      this.#load();
      this.free();
    } catch (error) {
      this.#unlock();
      throw asSluiceError('open the spool', error);
    }
  }

  /** Adds a write. It throws a {@link SluiceError}, and then the write is not in the spool. */
  append(write: Write): void {
    try {
      if (this.#current.size >= fileBytesMax) {
        this.#begin(this.#current.number + 1);
      }
      const file = this.#current;
      const line = Buffer.concat([checksumOf(write.line), write.line]);
      this.#write(line, file);
      write.offset = file.size;
      file.size += line.length;
      file.writes.push(write);
    } catch (error) {
      throw asSluiceError('write to the spool', error);
    }
  }

  /** Notes what was answered, and returns the writes whose places are free now: those before the first that was not. */
  free(): Write[] {
    const freed: Write[] = [];
    const finished: SpoolFile[] = [];
    let file = this.#first;
    for (;;) {
      let write = file.writes[file.first];
      for (; write?.answered; write = file.writes[++file.first]) {
        freed.push(write);
      }
      if (write !== undefined || file === this.#current) {
        break;
      }
      finished.push(file);
      this.#files.shift();
      file = this.#first;
    }
    this.#note(file);
    for (const { number } of finished) {
      this.#remove(number);
    }
    return freed;
  }

  /** Lets others use the directory. */
  close(): void {
    this.free();
    fs.closeSync(this.#fd);
    const { number, first, writes } = this.#current;
    if (first === writes.length) {
      this.#remove(number);
    }
    this.#unlock();
  }

  get #first(): SpoolFile {
    return this.#files[0] ?? this.#current;
  }

  get #current(): SpoolFile {
    const file = this.#files.at(-1);
    if (file === undefined) {
      throw new Error('BUG: the spool has no file');
    }
    return file;
  }

  #name(number: number): string {
    return path.join(this.#dir, `${String(number).padStart(10, '0')}.spool`);
  }

  #begin(number: number): void {
    // Appending and exclusive: what another process wrote is never written over.
    const fd = fs.openSync(this.#name(number), 'ax', 0o600);
    if (this.#fd >= 0) {
      fs.closeSync(this.#fd);
    }
    this.#fd = fd;
    this.#files.push({ number, size: 0, writes: [], first: 0 });
  }

  #write(line: Buffer, file: SpoolFile): void {
    try {
      for (let at = 0; at < line.length; ) {
        at += fs.writeSync(this.#fd, line, at);
      }
    } catch (error) {
      try {
        fs.ftruncateSync(this.#fd, file.size);
      } catch {
        // Half a line would take the next one with it, which therefore goes to a new file.
        file.size = Math.max(file.size, fileBytesMax);
      }
      throw error;
    }
  }

  /** Notes the place before which everything was answered. */
  #note(file: SpoolFile): void {
    const done = `${file.number} ${file.writes[file.first]?.offset ?? file.size}\n`;
    if (done === this.#done) {
      return;
    }
    const name = path.join(this.#dir, 'done');
    try {
      fs.writeFileSync(`${name}.new`, done);
      fs.renameSync(`${name}.new`, name);
      this.#done = done;
    } catch {
      // Then the next start sends more again, which is harmless.
    }
  }

  #remove(number: number): void {
    try {
      fs.unlinkSync(this.#name(number));
    } catch {
      // The next start removes it, or sends it again.
    }
  }

  #load(): void {
    const done = this.#readDone();
    let last = done.number;
    const numbers = fs.readdirSync(this.#dir).map((name) => /^(\d{10})\.spool$/.exec(name)?.[1]);
    for (const number of numbers.filter((n) => n !== undefined).map(Number).sort((a, b) => a - b)) {
      if (number < done.number) {
        this.#remove(number);
        continue;
      }
      last = number;
      this.#loadFile(number, number === done.number ? done.offset : 0);
    }
    this.#begin(last + 1);
  }

  #readDone(): { number: number; offset: number } {
    let text = '';
    try {
      text = fs.readFileSync(path.join(this.#dir, 'done'), 'utf8');
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') {
        throw error;
      }
    }
    const [, number, offset] = /^(\d+) (\d+)\s*$/.exec(text) ?? [];
    return { number: Number(number ?? 0), offset: Number(offset ?? 0) };
  }

  #loadFile(number: number, start: number): void {
    const data = fs.readFileSync(this.#name(number));
    const file: SpoolFile = { number, size: data.length, writes: [], first: 0 };
    for (let at = start; at < data.length; ) {
      const newline = data.indexOf('\n', at);
      const end = newline < 0 ? data.length : newline + 1;
      const write = parseLine(data.subarray(at, end));
      if (write === undefined) {
        this.corrupt.push(`${path.basename(this.#name(number))}: ${end - at} bytes at ${at} are torn or corrupt`);
      } else {
        write.offset = at;
        file.writes.push(write);
        this.loaded.push(write);
      }
      at = end;
    }
    this.#files.push(file);
  }
}

/** Undefined where the line is torn or corrupt. */
function parseLine(line: Buffer): Write | undefined {
  const item = line.subarray(checksumBytes);
  if (item.at(-1) !== 0x0a || line.toString('latin1', 0, checksumBytes).toLowerCase() !== checksumOf(item).toString('latin1')) {
    return undefined;
  }
  try {
    const { op, id } = JSON.parse(item.toString()) as { op?: Op; id: string };
    return new Write(op ?? 'create', id, item, -Infinity);
  } catch {
    return undefined;
  }
}

const crcTable = Int32Array.from({ length: 256 }, (_, i) => {
  for (let bit = 0; bit < 8; bit++) {
    i = i & 1 ? (i >>> 1) ^ 0xedb88320 : i >>> 1;
  }
  return i;
});

/** The CRC32 of an item without its newline, as a line begins with. */
function checksumOf(item: Buffer): Buffer {
  let crc = -1;
  for (let i = 0; i < item.length - 1; i++) {
    crc = (crc >>> 8) ^ (crcTable[(crc ^ (item[i] ?? 0)) & 0xff] ?? 0);
  }
  return Buffer.from((~crc >>> 0).toString(16).padStart(8, '0') + ' ');
}

function asSluiceError(what: string, error: unknown): SluiceError {
  if (error instanceof SluiceError) {
    return error;
  }
  return new SluiceError(`${what}: ${(error as Error).message}`, { cause: error });
}
