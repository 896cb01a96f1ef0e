import type { Op } from './types.js';

/** A queued write: a create, update, patch or delete of one event. */
export class Write {
  /** The write's place in the order of the calls, from 1. */
  seq = 0;
  /** How many times it was sent. */
  attempts = 0;
  /** When it was first sent, in milliseconds of the sender's clock. */
  triedAt: number | undefined;
  /** Whether it has its final answer. */
  answered = false;
  /** Whether this library minted the id of this create. */
  minted = false;
  /** Whether an earlier attempt may have reached the log: the write was sent, and no answer told its result. */
  unsure = false;
  /** The offset in bytes of its line in its spool file. */
  offset = 0;

  /** The next write in the ready list. */
  next: Write | undefined;
  /** The next write of the same id. It waits for the answer to this write. */
  later: Write | undefined;

  constructor(
    readonly op: Op,
    readonly id: string,
    /** The line of NDJSON, with its newline. */
    readonly line: Buffer,
    /** When it was queued, in milliseconds of the sender's clock. */
    readonly queuedAt: number,
  ) {}
}

/**
 * The bounded queue of all writes that have no final answer. It keeps an ordered list of the writes that are ready to be sent. A write
 * whose id has an earlier unanswered write is not ready: it waits as the `later` of that write. The cost of an operation does not depend
 * on the length of the queue.
 */
export class Queue {
  /** The number of ready writes, and their size in bytes. */
  readyWrites = 0;
  readyBytes = 0;
  /** The number of writes without a final answer. */
  unanswered = 0;
  /** The last sequence number that was assigned. */
  seq = 0;

  readonly #writesMax: number;
  readonly bytesMax: number;
  /** What counts against the bounds. With a spool, an answered write still counts until its place in the spool is free. */
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

  /** Whether there is room for a write of the given size in bytes. */
  hasRoom(bytes: number): boolean {
    return this.#writes < this.#writesMax && this.#bytes + bytes <= this.bytesMax;
  }

  /** The first ready write. It is the oldest, or a write that became ready late and was put in front. */
  get head(): Write | undefined {
    return this.#head;
  }

  /** Adds a write. If its id has an unanswered write, it waits for that one. */
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

  /** Takes the next batch off the ready list: at least one write if any is ready, even if it is larger than bytesMax. */
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

  /**
   * Takes a batch of any number of writes, including the writes that wait for them. Each waiting write follows the write that it waits
   * for.
   */
  takeChains(bytesMax: number): Write[] {
    const firsts = this.take(Infinity, bytesMax);
    let bytes = firsts.reduce((sum, { line }) => sum + line.length, 0);
    return firsts.flatMap((first) => {
      const chain = [first];
      for (let last = first; last.later !== undefined; ) {
        const { later } = last;
        bytes += later.line.length;
        if (bytes > bytesMax) {
          break; // it keeps waiting
        }
        last.later = undefined;
        chain.push(later);
        last = later;
      }
      return chain;
    });
  }

  /** Puts taken writes back in front of the ready list, in their order. Writes of one id wait for each other again. */
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

  /** Marks taken writes as answered. The next write of each of their ids becomes ready. */
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

  /** Frees the room of answered writes. */
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
