import fs from 'node:fs';
import path from 'node:path';

import { SluiceError } from './errors.js';
import { lock } from './lock.js';
import { Write } from './queue.js';
import type { Op } from './types.js';

const fileBytesMax = 4 << 20;
const checksumBytes = 9; // 8 hexadecimal digits and a space

/** A file of the spool, and its writes in order. */
interface SpoolFile {
  number: number;
  /** The offset of the next line, in bytes. */
  size: number;
  writes: Write[];
  /** The index of the first unanswered write. */
  first: number;
}

/**
 * A directory of files that keeps writes until they have their final answer. The files are not synced: they survive the process, but
 * not the machine.
 *
 * Files are removed only in order. So the next start never resends an update without the later updates of the same id.
 */
export class Spool {
  /** The unanswered writes of earlier processes, in order. */
  readonly loaded: Write[] = [];
  /** A description of each line that could not be read. */
  readonly corrupt: string[] = [];

  readonly #dir: string;
  readonly #unlock: () => void;
  /** The files in order. Writes are appended to the last one. */
  readonly #files: SpoolFile[] = [];
  #fd = -1;
  /** The content of the file `done`. */
  #done = '';

  /**
   * Locks the directory and loads what earlier processes left. It throws a {@link SpoolInUseError}, or a {@link SluiceError} if the
   * directory cannot be used.
   */
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

  /** Appends a write. If it throws a {@link SluiceError}, the write is not in the spool. */
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

  /**
   * Records in `done` how far all writes are answered, and removes the files before that place. It returns the writes whose places are
   * now free: all those before the first unanswered write.
   */
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

  /** Closes the spool and unlocks the directory. */
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
    // Exclusive and appending ("ax"), so that a file of another process is never overwritten.
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
        // The torn line would corrupt the next one, so the next write goes to a new file.
        file.size = Math.max(file.size, fileBytesMax);
      }
      throw error;
    }
  }

  /** Writes the place before which all writes are answered to `done`. */
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
      // The next start resends more writes, which is harmless.
    }
  }

  #remove(number: number): void {
    try {
      fs.unlinkSync(this.#name(number));
    } catch {
      // The next start removes the file, or resends its writes, which is harmless.
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

/** Parses a line of a spool file; undefined if it is torn or corrupt. */
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

/** Returns the beginning of a line: the CRC32 of the item without its newline, in hexadecimal, and a space. */
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
