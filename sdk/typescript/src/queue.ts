import type { Op } from './types.js';

/** A write on its way. */
export class Write {
  /** In which order it was queued. */
  seq = 0;
  /** How often it was tried. */
  attempts = 0;
  /** When it was tried first, in the sender's clock. */
  triedAt: number | undefined;
  /** Whether it was answered for good. */
  answered = false;
  /** Whether this library made the id of this create. */
  minted = false;
  /** Whether an earlier attempt may have put it into the log: it was sent, and no answer said what became of it. */
  unsure = false;
  /** Where its line begins in its file of the spool. */
  offset = 0;

  /** The one behind it among those that are ready. */
  next: Write | undefined;
  /** The next write of the same id, which waits for this one. */
  later: Write | undefined;

  constructor(
    readonly op: Op,
    readonly id: string,
    /** The item as NDJSON has it, with its newline. */
    readonly line: Buffer,
    /** When it was queued, in the sender's clock. */
    readonly queuedAt: number,
  ) {}
}

/**
 * The writes that were not answered for good: those that are ready to be sent, in order, and those that wait for an earlier
 * write of their id, each behind it. Every operation takes the same time however many there are.
 */
export class Queue {
  /** The writes that are ready, and their bytes. */
  readyWrites = 0;
  readyBytes = 0;
  /** How many were not answered for good. */
  unanswered = 0;
  /** The last sequence number that was given. */
  seq = 0;

  readonly #writesMax: number;
  readonly bytesMax: number;
  /** What counts against the bounds. With a spool a write does until its place in the file is free. */
  #writes = 0;
  #bytes = 0;

  #head: Write | undefined;
  #tail: Write | undefined;
  /** The last unanswered write of each id. */
  readonly #lastOfId = new Map<string, Write>();

  constructor(writesMax: number, bytesMax: number) {
    this.#writesMax = writesMax;
    this.bytesMax = bytesMax;
  }

  /** Whether a write of so many bytes has room. */
  hasRoom(bytes: number): boolean {
    return this.#writes < this.#writesMax && this.#bytes + bytes <= this.bytesMax;
  }

  /** The oldest write that is ready, or as good as: one that became ready late is before all that came after it. */
  get head(): Write | undefined {
    return this.#head;
  }

  push(write: Write): void {
    write.seq = ++this.seq;
    this.unanswered++;
    this.#writes++;
    this.#bytes += write.line.length;
    const before = this.#lastOfId.get(write.id);
    this.#lastOfId.set(write.id, write);
    if (before !== undefined) {
      before.later = write;
      return;
    }
    if (this.#tail === undefined) {
      this.#head = write;
    } else {
      this.#tail.next = write;
    }
    this.#tail = write;
    this.#countReady(write, 1);
  }

  /** Takes the next batch: at least one write, where one is ready. */
  take(writesMax: number, bytesMax: number): Write[] {
    const batch: Write[] = [];
    let bytes = 0;
    for (let write = this.#head; write !== undefined && batch.length < writesMax; write = this.#head) {
      bytes += write.line.length;
      if (bytes > bytesMax && batch.length > 0) {
        break;
      }
      this.#head = write.next;
      write.next = undefined;
      this.#countReady(write, -1);
      batch.push(write);
    }
    if (this.#head === undefined) {
      this.#tail = undefined;
    }
    return batch;
  }

  /** The same, of any number, with the writes that wait for them, each behind the one that it waits for. */
  takeChains(bytesMax: number): Write[] {
    const firsts = this.take(Infinity, bytesMax);
    let bytes = firsts.reduce((sum, { line }) => sum + line.length, 0);
    return firsts.flatMap((first) => {
      const chain = [first];
      for (let last = first; last.later !== undefined; ) {
        const { later } = last;
        bytes += later.line.length;
        if (bytes > bytesMax) {
          break; // and it goes on waiting
        }
        last.later = undefined;
        chain.push(later);
        last = later;
      }
      return chain;
    });
  }

  /** Puts writes that were taken before all that are ready, in their order. Those of one id wait for each other again. */
  putBack(writes: readonly Write[]): void {
    const first = new Set<Write>();
    const last = new Map<string, Write>();
    for (const write of writes) {
      const before = last.get(write.id);
      if (before === undefined) {
        first.add(write);
      } else {
        before.later = write;
      }
      last.set(write.id, write);
    }
    for (const write of writes.toReversed()) {
      if (first.has(write)) {
        this.#pushFront(write);
      }
    }
  }

  /** Notes that writes that were taken were answered for good; the next ones of their ids are ready. */
  settle(writes: readonly Write[]): void {
    for (const write of writes.toReversed()) {
      write.answered = true;
      this.unanswered--;
      if (write.later === undefined) {
        if (this.#lastOfId.get(write.id) === write) {
          this.#lastOfId.delete(write.id);
        }
      } else {
        this.#pushFront(write.later);
        write.later = undefined;
      }
    }
  }

  /** Makes the room of settled writes free. */
  free(writes: readonly Write[]): void {
    this.#writes -= writes.length;
    for (const write of writes) {
      this.#bytes -= write.line.length;
    }
  }

  #pushFront(write: Write): void {
    write.next = this.#head;
    this.#head = write;
    this.#tail ??= write;
    this.#countReady(write, 1);
  }

  #countReady(write: Write, sign: 1 | -1): void {
    this.readyWrites += sign;
    this.readyBytes += sign * write.line.length;
  }
}
