import { promisify } from 'node:util';
import { gzip } from 'node:zlib';

import { ClosedError, type ApiError, type SluiceError } from './errors.js';
import { BatchLimits } from './limits.js';
import type { Queue, Write } from './queue.js';
import type { Spool } from './spool.js';
import {
  apiError,
  isFinal,
  isFinalItem,
  isHeld,
  isProblem,
  itemError,
  mayHaveWritten,
  parseJson,
  pauseMs,
  retryAfterMs,
  UnreadableError,
  type Answer,
  type Transport,
} from './transport.js';

const gzipBytesMin = 1024;
const compress = promisify(gzip);

export interface SenderOptions {
  batchWritesMax: number;
  batchBytesMax: number;
  batchAgeMaxMs: number;
  /** Infinity for ever. */
  retryForMs: number;
  requestTimeoutMs: number;
  /** How long the server waits until a batch is applied; 0 for not at all. */
  waitAppliedSeconds: number;
  gzip: boolean;
}

/** What the sender waits by. */
export interface Clock {
  /** Milliseconds since some moment. */
  now(): number;
  /** Calls back once so many milliseconds are over. */
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

/** A flush that is waited for. */
interface Flush {
  /** The last write that it is about. */
  seq: number;
  /** How many of those before were not answered for good. */
  left: number;
  end: (outcome: Outcome) => void;
}

/** How a flush ends: all was answered for good, or the sender was stopped. */
export type Outcome = 'done' | 'stopped';

/** Writes that wait to be tried again while others are sent. */
interface Delayed {
  writes: Write[];
  until: number;
}

/** Sends the writes of the queue, one batch at a time. */
export class Sender {
  /** Calls back when a write is refused or given up. */
  onFailure: (write: Write, error: SluiceError) => void = () => undefined;
  /** Calls back when writes are held because of an answer that time alone does not change; once for each such answer. */
  onHeld: (error: SluiceError) => void = () => undefined;
  /** Calls back with each answer of Sluice's, and how many writes it refuses for their time, before it goes by them. */
  onAnswer: (answer: Answer, refused: number) => void = () => undefined;
  /** Calls back when there may be room in the queue. */
  onRoom: () => void = () => undefined;
  /** Why the last batch failed; undefined once one got through. */
  lastError: SluiceError | undefined;

  /** What onHeld was told last. */
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
  /** Set while the sender sleeps. */
  #timer: Timer | undefined;
  #wake: (() => void) | undefined;
  #sleepsUntil = 0;
  /** How many calls wait for the sender. */
  #holds = 0;

  /** Nothing is sent before, after a batch failed as a whole. */
  #pausedUntil = 0;
  readonly #delayed = new Set<Delayed>();
  readonly #flushes = new Set<Flush>();
  /** The last receipt of each partition. */
  readonly #receipts = new Map<string, Receipt>();

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

  /** Says that something was queued. */
  poke(): void {
    if (this.#running === undefined) {
      this.#running = this.#run();
    } else if (this.#wake !== undefined && this.#isUrgent() && this.#clock.now() + this.#dueInMs() < this.#sleepsUntil) {
      this.#wake();
    }
  }

  /** The sender's time, which a write keeps as when it was queued. */
  now(): number {
    return this.#clock.now();
  }

  /**
   * Sends what is queued now without waiting for more. The promise is settled when all of it was answered for good, and never
   * after cancel.
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
   * While a call waits for the sender, its timers keep the process alive. It returns what ends that.
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

  /** The last receipt of each partition that a write of this client went to. */
  receipts(): string[] {
    return Array.from(this.#receipts.values(), (receipt) => receipt.text);
  }

  /**
   * Sends all that is ready, with what waits for it, before the call returns and without waiting for answers: nothing runs after it
   * in a page that is left.
   */
  sendNow(): void {
    while (!this.#stopped && this.#queue.head !== undefined) {
      void this.#send(this.#queue.takeChains(this.#limits.bytes)).then(() => {
        this.#wake?.(); // what is due may have changed
        this.poke();
      });
    }
  }

  /** Ends, without sending more. The transport's signal ends what is under way. */
  async stop(): Promise<void> {
    this.#stopped = true;
    this.#wake?.();
    await this.#running;
    for (const flush of this.#flushes) {
      flush.end('stopped');
    }
  }

  async #run(): Promise<void> {
    await Promise.resolve(); // so that no call pays for the sending
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

  /** Whether what is ready is sent whatever its age. */
  #isUrgent(): boolean {
    const { writes, bytes } = this.#limits;
    return this.#flushes.size > 0 || this.#queue.readyWrites >= writes || this.#queue.readyBytes >= bytes;
  }

  /** In how many milliseconds the next batch is sent; Infinity where there is none. */
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
    // A batch of which every write is refused may have a status of 4xx.
    const judged = answer.status < 300 || (answer.status >= 400 && answer.status < 500);
    const results = judged ? parseResults(answer.body, batch.length) : undefined;
    if (results !== undefined) {
      this.#limits.ok();
      this.onAnswer(answer, results.filter(({ error }) => error !== undefined && isOfTime(error)).length);
      this.#take(batch, results, retryAfterMs(answer.headers));
      return;
    }
    if (answer.status < 300) {
      const what = `POST /events: an answer of status ${answer.status} that is not one of Sluice's`;
      this.#retryAll(batch, new UnreadableError(what), 0);
      return;
    }
    const error = apiError(answer);
    if (isProblem(answer, error)) {
      this.onAnswer(answer, isOfTime(error) ? batch.length : 0);
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

  /** Puts back a batch that was refused as a whole, so that the next ones are smaller. */
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

  /** Goes by the results of a batch, one for each write. */
  #take(batch: Write[], results: Result[], retryAfter: number): void {
    this.lastError = undefined;
    this.#toldHeld = '';
    const settled: Write[] = [];
    const refused = new Map<Write, SluiceError>();
    const again = new Map<Write, SluiceError>();
    for (const [i, write] of batch.entries()) {
      const result = results[i];
      if (result?.error === undefined) {
        this.#note(result?.receipt);
        settled.push(write);
        continue;
      }
      this.#note(result.error.receipt);
      const error = itemError(result.error.status, result.error);
      if (error.code === 'id_taken' && write.op === 'create' && (write.minted || write.unsure)) {
        settled.push(write); // by an earlier attempt of its own
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

  /** Tries a batch again that failed as a whole; nothing else is sent before. */
  #retryAll(batch: Write[], error: SluiceError, retryAfter: number): void {
    this.lastError = error;
    const { writes, pause } = this.#keep(new Map(batch.map((write) => [write, error])), retryAfter);
    this.#tellHeld(error);
    this.#queue.putBack(writes);
    this.#pausedUntil = this.#clock.now() + pause;
  }

  /** Tells of an error that needs somebody to change something rather than time, once until that has happened. */
  #tellHeld(error: SluiceError): void {
    if (isHeld(error) && error.message !== this.#toldHeld) {
      this.#toldHeld = error.message;
      this.onHeld(error);
    }
  }

  /** Says which of the writes that failed are tried again, after which pause. The others' time is over: they are given up. */
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

  /** Notes that the writes were answered for good, and tells of those that failed. */
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

  #note(text: unknown): void {
    const receipt = typeof text === 'string' ? parseReceipt(text) : undefined;
    if (receipt === undefined) {
      return;
    }
    const before = this.#receipts.get(receipt.partition);
    if (
      before === undefined ||
      receipt.generation > before.generation ||
      (receipt.generation === before.generation && receipt.offset > before.offset)
    ) {
      this.#receipts.set(receipt.partition, receipt);
    }
  }
}

interface Receipt {
  text: string;
  generation: number;
  partition: string;
  offset: number;
}

function parseReceipt(text: string): Receipt | undefined {
  const [, generation, partition, offset] = /^(\d+)\.(\d+)\.(\d+)$/.exec(text) ?? [];
  if (partition === undefined) {
    return undefined;
  }
  return { text, generation: Number(generation), partition, offset: Number(offset) };
}

interface Result {
  receipt?: string;
  error?: { status: number; code: string; detail?: unknown; field?: unknown; receipt?: unknown };
}

/** Whether the time of a write is refused, which a minted id has. */
function isOfTime({ code, field }: { code?: string | undefined; field?: unknown }): boolean {
  return code === 'invalid_value' && (field === 'id' || field === 'timestamp');
}

/** The results of a batch; undefined where the body is not such, for each of its writes. */
function parseResults(body: Buffer, writes: number): Result[] | undefined {
  const answer = parseJson(body) as { results?: unknown } | null | undefined;
  const results = answer?.results;
  if (!Array.isArray(results) || results.length !== writes || !results.every(isResult)) {
    return undefined;
  }
  return results;
}

function isResult(value: unknown): value is Result {
  const { receipt, error } = (value ?? {}) as { receipt?: unknown; error?: { status?: unknown; code?: unknown } | null };
  if (error === undefined) {
    return typeof receipt === 'string' && receipt !== '';
  }
  return typeof error?.status === 'number' && error.status >= 400 && error.status < 600 && typeof error.code === 'string' && error.code !== '';
}
