import { promisify } from 'node:util';
import { gzip } from 'node:zlib';

import { apiError, itemError, type Answer } from './answer.js';
import { ClosedError, type ApiError, type SluiceError } from './errors.js';
import { BatchLimits } from './limits.js';
import type { Queue, Write } from './queue.js';
import { Receipts } from './receipts.js';
import { refusesTime, parseResults, type Result } from './results.js';
import { isFinal, isFinalItem, isHeld, isProblem, mayHaveWritten, pauseMs, retryAfterMs, UnreadableError } from './retry.js';
import type { Spool } from './spool.js';
import type { Transport } from './transport.js';

const gzipBytesMin = 1024;
const compress = promisify(gzip);

export interface SenderOptions {
  batchWritesMax: number;
  batchBytesMax: number;
  batchAgeMaxMs: number;
  /** Infinity: without a limit. */
  retryForMs: number;
  requestTimeoutMs: number;
  /** How many seconds the server waits until a batch is applied; 0: it does not wait. */
  waitAppliedSeconds: number;
  gzip: boolean;
}

/** The clock and timers of the sender. Tests have their own. */
export interface Clock {
  /** A monotonic time in milliseconds. */
  now(): number;
  /** Calls back after the given number of milliseconds. */
  start(ms: number, callback: () => void): Timer;
}

export interface Timer {
  cancel(): void;
  /** Whether the timer keeps the process from ending. */
  keepAlive(yes: boolean): void;
}

export const systemClock: Clock = {
  now: () => performance.now(),
  start(ms, callback) {
    const timer = setTimeout(callback, Math.ceil(ms));
    return {
      cancel: () => { clearTimeout(timer); },
      keepAlive: (yes) => { if (yes) timer.ref(); else timer.unref(); },
    };
  },
};

/** A flush that has not ended. */
interface Flush {
  /** The sequence number of the last write that it waits for. */
  seq: number;
  /** How many of its writes have no final answer yet. */
  left: number;
  end: (outcome: Outcome) => void;
}

/** How a flush ends: all its writes have their final answer, or the sender was stopped. */
export type Outcome = 'done' | 'stopped';

/** Writes of a batch that wait for their retry while other batches are sent. */
interface Delayed {
  writes: Write[];
  until: number;
}

/**
 * Sends the writes of the queue in the background, one batch at a time. It retries with backoff, and tells the client of writes that
 * failed for good.
 */
export class Sender {
  /** Called when a write is refused or given up. */
  onFailure: (write: Write, error: SluiceError) => void = () => undefined;
  /** Called when writes are held: an answer needs somebody to change something. It is called once for each such answer. */
  onHeld: (error: SluiceError) => void = () => undefined;
  /**
   * Called with each answer of Sluice, and with the number of writes that the answer refuses for their time. It is called before the
   * results are processed.
   */
  onAnswer: (answer: Answer, refused: number) => void = () => undefined;
  /** Called when the queue may have room again. */
  onRoom: () => void = () => undefined;
  /** The error of the last failed batch or write; undefined after a batch was acknowledged. */
  lastError: SluiceError | undefined;

  /** The message of the last error that was given to onHeld. */
  #toldHeld = '';
  readonly #limits: BatchLimits;
  readonly #queue: Queue;
  readonly #spool: Spool | undefined;
  readonly #transport: Transport;
  readonly #options: SenderOptions;
  readonly #clock: Clock;
  readonly #random: () => number;

  #running: Promise<void> | undefined;
  #stopped = false;
  /** The timer, the wake-up function and the end of the current sleep. */
  #timer: Timer | undefined;
  #wake: (() => void) | undefined;
  #sleepsUntil = 0;
  /** The number of calls that wait for the sender. */
  #holds = 0;

  /** The end of the pause after a batch failed as a whole. Nothing is sent before. */
  #pausedUntil = 0;
  readonly #delayed = new Set<Delayed>();
  readonly #flushes = new Set<Flush>();
  readonly #receipts = new Receipts();

  constructor(
    queue: Queue,
    spool: Spool | undefined,
    transport: Transport,
    options: SenderOptions,
    clock: Clock = systemClock,
    random: () => number = Math.random,
  ) {
    this.#queue = queue;
    this.#spool = spool;
    this.#transport = transport;
    this.#options = options;
    this.#limits = new BatchLimits(options.batchWritesMax, options.batchBytesMax);
    this.#clock = clock;
    this.#random = random;
  }

  /** Starts or wakes the sender after a write was queued. */
  poke(): void {
    if (this.#running === undefined) {
      this.#running = this.#run();
    } else if (this.#wake !== undefined && this.#isUrgent() && this.#clock.now() + this.#dueInMs() < this.#sleepsUntil) {
      this.#wake();
    }
  }

  /** The time of the sender's clock, for {@link Write.queuedAt}. */
  now(): number {
    return this.#clock.now();
  }

  /**
   * Sends all writes that are queued now, without waiting for a full batch. The promise is settled when all of them have their final
   * answer. It is never settled after cancel.
   */
  flush(): { done: Promise<Outcome>; cancel: () => void } {
    if (this.#queue.unanswered === 0) {
      return { done: Promise.resolve('done'), cancel: () => undefined };
    }
    const flush: Flush = { seq: this.#queue.seq, left: this.#queue.unanswered, end: () => undefined };
    const done = new Promise<Outcome>((resolve) => {
      flush.end = resolve;
    });
    this.#flushes.add(flush);
    this.poke();
    return { done, cancel: () => this.#flushes.delete(flush) };
  }

  /**
   * Keeps the process alive while a call waits for the sender. The returned function ends that.
   */
  hold(): () => void {
    this.#holds++;
    this.#timer?.keepAlive(true);
    return () => {
      if (--this.#holds === 0) {
        this.#timer?.keepAlive(false);
      }
    };
  }

  /** The last receipt of each partition that has writes of this client. */
  receipts(): string[] {
    return this.#receipts.all();
  }

  /**
   * Sends all ready writes and the writes that wait for them. All requests have begun when the call returns, because a page that is left
   * runs no code afterwards.
   */
  sendNow(): void {
    while (!this.#stopped && this.#queue.head !== undefined) {
      void this.#send(this.#queue.takeChains(this.#limits.bytes)).then(() => {
        this.#wake?.(); // the next batch may be due earlier now
        this.poke();
      });
    }
  }

  /** Stops the sender without sending more. The transport's abort signal ends the request under way. */
  async stop(): Promise<void> {
    this.#stopped = true;
    this.#wake?.();
    await this.#running;
    for (const flush of this.#flushes) {
      flush.end('stopped');
    }
  }

  async #run(): Promise<void> {
    await Promise.resolve(); // the call that queued the write returns first
    while (!this.#stopped) {
      const wait = this.#dueInMs();
      if (wait === Infinity) {
        break;
      }
      if (wait > 0) {
        await this.#sleep(wait);
        continue;
      }
      this.#endDelays();
      await this.#send(this.#queue.take(this.#limits.writes, this.#limits.bytes));
    }
    this.#running = undefined;
  }

  /** Whether the next batch is sent now, whatever its age: it is full, or a flush waits for it. */
  #isUrgent(): boolean {
    const { writes, bytes } = this.#limits;
    return this.#flushes.size > 0 || this.#queue.readyWrites >= writes || this.#queue.readyBytes >= bytes;
  }

  /** Returns in how many milliseconds the next batch is due; Infinity if there is nothing to send. */
  #dueInMs(): number {
    const now = this.#clock.now();
    let due = Infinity;
    const head = this.#queue.head;
    if (head !== undefined) {
      due = this.#isUrgent() ? now : head.queuedAt + this.#options.batchAgeMaxMs;
    }
    for (const { until } of this.#delayed) {
      due = Math.min(due, until);
    }
    return Math.max(due - now, this.#pausedUntil - now, 0);
  }

  async #sleep(ms: number): Promise<void> {
    this.#sleepsUntil = this.#clock.now() + ms;
    await new Promise<void>((resolve) => {
      this.#wake = resolve;
      this.#timer = this.#clock.start(ms, resolve);
      this.#timer.keepAlive(this.#holds > 0);
    });
    this.#timer?.cancel();
    this.#timer = this.#wake = undefined;
  }

  /** Puts delayed writes whose pause is over back into the queue. */
  #endDelays(): void {
    const now = this.#clock.now();
    for (const delayed of this.#delayed) {
      if (delayed.until <= now) {
        this.#delayed.delete(delayed);
        this.#queue.putBack(delayed.writes);
      }
    }
  }

  async #send(batch: Write[]): Promise<void> {
    const now = this.#clock.now();
    for (const write of batch) {
      write.triedAt ??= now;
      write.attempts++;
    }
    let answer: Answer;
    try {
      answer = await this.#post(Buffer.concat(batch.map((write) => write.line)));
    } catch (error) {
      if (!(error instanceof ClosedError)) {
        this.#retryAll(batch, error as SluiceError, 0);
      }
      return;
    }
    // A batch whose writes are all refused may have a status of 4xx, and has results too.
    const judged = answer.status < 300 || (answer.status >= 400 && answer.status < 500);
    const results = judged ? parseResults(answer.body, batch.length) : undefined;
    if (results !== undefined) {
      this.#limits.ok();
      this.onAnswer(answer, results.filter(({ error }) => error !== undefined && refusesTime(error)).length);
      this.#take(batch, results, retryAfterMs(answer.headers));
      return;
    }
    if (answer.status < 300) {
      const what = `POST /events: the answer of status ${answer.status} is not Sluice's`;
      this.#retryAll(batch, new UnreadableError(what), 0);
      return;
    }
    const error = apiError(answer);
    if (isProblem(answer, error)) {
      this.onAnswer(answer, refusesTime(error) ? batch.length : 0);
    }
    if (!isFinal(answer, error)) {
      this.#retryAll(batch, error, retryAfterMs(answer.headers));
    } else if (batch.length === 1) {
      this.lastError = error;
      this.#settle(batch, new Map(batch.map((write) => [write, error])));
    } else {
      this.#split(batch, error);
    }
  }

  /** Puts back a batch that was refused as a whole, and lowers the limits so that the next batches are smaller. */
  #split(batch: Write[], error: ApiError): void {
    if (error.status === 413) {
      this.#limits.tooLarge(batch.reduce((bytes, { line }) => bytes + line.length, 0));
    } else {
      this.#limits.halve(batch.length);
    }
    for (const write of batch) {
      write.attempts--;
    }
    this.#queue.putBack(batch);
  }

  async #post(body: Buffer): Promise<Answer> {
    const headers: Record<string, string> = { 'Content-Type': 'application/x-ndjson' };
    if (this.#options.gzip && body.length >= gzipBytesMin) {
      body = await compress(body, { level: 1 });
      headers['Content-Encoding'] = 'gzip';
    }
    const { requestTimeoutMs, waitAppliedSeconds } = this.#options;
    if (waitAppliedSeconds > 0) {
      headers.Prefer = `wait=${waitAppliedSeconds}`;
    }
    return this.#transport.send({ method: 'POST', path: '/events', headers, body, timeoutMs: requestTimeoutMs + waitAppliedSeconds * 1000 });
  }

  /** Processes the results of a batch, one for each write: acknowledged, refused, or to be retried. */
  #take(batch: Write[], results: Result[], retryAfter: number): void {
    this.lastError = undefined;
    this.#toldHeld = '';
    const settled: Write[] = [];
    const refused = new Map<Write, SluiceError>();
    const again = new Map<Write, SluiceError>();
    for (const [i, write] of batch.entries()) {
      const result = results[i];
      if (result?.error === undefined) {
        this.#receipts.add(result?.receipt);
        settled.push(write);
        continue;
      }
      this.#receipts.add(result.error.receipt);
      const error = itemError(result.error.status, result.error);
      if (error.code === 'id_taken' && write.op === 'create' && (write.minted || write.unsure)) {
        settled.push(write); // an earlier attempt of this same write took the id
        continue;
      }
      this.lastError = error;
      if (isFinalItem(error)) {
        settled.push(write);
        refused.set(write, error);
      } else {
        again.set(write, error);
      }
    }
    this.#settle(settled, refused);
    if (again.size > 0) {
      const { writes, pause } = this.#keep(again, retryAfter);
      this.#delayed.add({ writes, until: this.#clock.now() + pause });
    }
  }

  /** Retries a batch that failed as a whole, after a pause in which nothing else is sent. */
  #retryAll(batch: Write[], error: SluiceError, retryAfter: number): void {
    this.lastError = error;
    const { writes, pause } = this.#keep(new Map(batch.map((write) => [write, error])), retryAfter);
    this.#tellHeld(error);
    this.#queue.putBack(writes);
    this.#pausedUntil = this.#clock.now() + pause;
  }

  /** Calls onHeld if the error needs somebody to change something; once, until a batch is acknowledged. */
  #tellHeld(error: SluiceError): void {
    if (isHeld(error) && error.message !== this.#toldHeld) {
      this.#toldHeld = error.message;
      this.onHeld(error);
    }
  }

  /** Returns the failed writes to retry, and the pause before it in milliseconds. Writes past `retryForMs` are given up. */
  #keep(failed: ReadonlyMap<Write, SluiceError>, retryAfter: number): { writes: Write[]; pause: number } {
    const now = this.#clock.now();
    const attempts = Math.max(...Array.from(failed.keys(), (write) => write.attempts));
    const pause = pauseMs(attempts, retryAfter, this.#random());
    const writes: Write[] = [];
    const givenUp = new Map<Write, SluiceError>();
    for (const [write, error] of failed) {
      if (now + pause - (write.triedAt ?? now) > this.#options.retryForMs) {
        givenUp.set(write, error);
      } else {
        write.unsure ||= mayHaveWritten(error);
        writes.push(write);
      }
    }
    this.#settle([...givenUp.keys()], givenUp);
    return { writes, pause };
  }

  /** Ends writes that have their final answer: reports the failed ones, frees their room, and ends the flushes that waited for them. */
  #settle(writes: Write[], failed: ReadonlyMap<Write, SluiceError>): void {
    if (writes.length === 0) {
      return;
    }
    for (const [write, error] of failed) {
      this.onFailure(write, error);
    }
    this.#queue.settle(writes);
    this.#queue.free(this.#spool === undefined ? writes : this.#spool.free());
    for (const flush of this.#flushes) {
      flush.left -= writes.reduce((n, write) => n + (write.seq <= flush.seq ? 1 : 0), 0);
      if (flush.left === 0) {
        this.#flushes.delete(flush);
        flush.end('done');
      }
    }
    this.onRoom();
  }
}
