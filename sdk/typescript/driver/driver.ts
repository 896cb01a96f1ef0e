/**
 * The conformance driver. It reads commands from its standard input, one JSON object a line, and writes one JSON object a line for each.
 * ../../README.md lists the commands.
 */
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';

import { stringify } from '../src/big-integers.js';
import { conversationHash, makeId, mintId, nowMicros } from '../src/ids.js';
import {
  ApiError,
  Client,
  ClosedError,
  NetworkError,
  QueueFullError,
  SpoolInUseError,
  TimeoutError,
  ValidationError,
  type ClientOptions,
  type FunnelOptions,
  type GroupValues,
  type InsightsOptions,
  type NewEvent,
  type RetentionOptions,
  type StreamSqlOptions,
  type WriteFailure,
} from '../src/index.js';
import { camelCase, snakeCase } from './names.js';

interface Command {
  do: string;
  id: string;
  conversation_id: string;
  unix_micros: string;
  random: string;
  first: string;
  steps: { clock_micros: number; timestamp_micros?: number; conversation_id: string }[];
  options: Record<string, unknown> & {
    batch_age_max?: number;
    retry_for?: number;
    request_timeout?: number;
    fail_when_full?: boolean;
    block_timeout?: number;
  };
  event: object;
  fields: object;
  timeout?: number;
  wait?: number | undefined;
  limit?: number;
  embeddings?: boolean;
  query?: { wait?: number } & Record<string, unknown>;
  input?: unknown;
  output?: unknown;
  error?: string | null;
  sleep?: number;
}

let opened: Client | undefined;
const failures: WriteFailure[] = [];
/** How long a write waits for room in the queue, in milliseconds, as calls in Go and Python do. 0: it fails at once. */
let blockForMs = 0;

function client(): Client {
  if (opened === undefined) {
    throw new Error('the client is not open');
  }
  return opened;
}

const commands: Record<string, (command: Command) => unknown> = {
  mint({ conversation_id, unix_micros, random }) {
    const micros = BigInt(unix_micros);
    const bits = BigInt(random);
    const hash = conversationHash(conversation_id);
    if (hash === undefined) {
      throw new ValidationError('conversation_id', 'is too long');
    }
    return { id: makeId(Number(micros / 1000n), Number(micros % 1000n), hash, Number(bits >> 32n), Number(bits & 0xffffffffn)) };
  },
  sequence({ first, steps }) {
    const process = { count: Number(first), lastMicros: 0 };
    return {
      ids: steps.map(({ clock_micros, timestamp_micros, conversation_id }) =>
        mintId(timestamp_micros ?? nowMicros(clock_micros, process), conversationHash(conversation_id) ?? 0, process)),
    };
  },
  open({ options }) {
    const { batch_age_max, retry_for, request_timeout, wait_applied, fail_when_full, block_timeout, ...same } = options;
    blockForMs = fail_when_full === true ? 0 : (millis(block_timeout) ?? Infinity);
    opened = new Client({
      ...(camelCase(same) as ClientOptions),
      batchAgeMaxMs: millis(batch_age_max),
      retryForMs: retry_for === 0 ? undefined : millis(retry_for), // in the driver's protocol 0 means without a limit
      requestTimeoutMs: millis(request_timeout),
      waitAppliedSeconds: typeof wait_applied === 'number' ? wait_applied : undefined,
      onError: (failure) => failures.push(failure),
    });
    return {};
  },
  async track({ event }) {
    return { id: await whenRoom(() => client().trackEvent(camelCase(event) as unknown as NewEvent)) };
  },
  async update({ id, fields }) {
    await whenRoom(() => { client().updateEvent(id, camelCase(fields)); });
    return {};
  },
  async delete({ id }) {
    await whenRoom(() => { client().deleteEvent(id); });
    return {};
  },
  async flush({ timeout }) {
    await client().flush({ timeoutMs: millis(timeout) });
    return {};
  },
  async close({ timeout }) {
    await client().close({ timeoutMs: millis(timeout) });
    return {};
  },
  async event({ id, wait }) {
    return { event: snakeCase(await client().event(id, { waitSeconds: wait })) };
  },
  async conversation({ id, limit, embeddings, ...command }) {
    const options = { ...query(command), limit: limit === 0 ? undefined : limit, embeddings };
    return { events: await all(client().conversationEvents(id, options)) };
  },
  async list_events(command) {
    return { events: await all(client().allEvents(query(command))) };
  },
  async list_conversations(command) {
    return { conversations: await all(client().allConversations(query(command))) };
  },
  async errors(command) {
    return snakeCase(await client().errors(query(command)));
  },
  async latency(command) {
    return { rows: (await client().latency(query(command))).map(snakeCase) };
  },
  async conversations(command) {
    return { rows: (await client().conversations(query(command))).map(snakeCase) };
  },
  async timeseries(command) {
    return { rows: (await client().timeSeries(query(command))).map(snakeCase) };
  },
  async search(command) {
    const results: object[] = [];
    for await (const { event, ...rest } of client().searchAll(query(command))) {
      results.push({ event: snakeCase(event), ...rest });
    }
    return { results };
  },
  async export_events(command) {
    return { events: await all(client().exportEvents(query(command))) };
  },
  async insights(command) {
    const { rows, truncated } = await client().insights(query(command) as InsightsOptions);
    return { rows: rows.map(({ measures, ...row }) => ({ ...ungrouped(row), ...measures })), truncated };
  },
  async funnel(command) {
    const { rows, truncated } = await client().funnel(query(command) as FunnelOptions);
    return { rows: rows.map(({ steps, ...row }) => ({ ...ungrouped(row), steps: steps.map(snakeCase) })), truncated };
  },
  async retention(command) {
    return { rows: await client().retention(query(command) as RetentionOptions) };
  },
  sql({ query: { query: text, ...rest } = {}, wait }) {
    return client().sql(text as string, query({ query: rest, wait }));
  },
  async write_sql({ query: { query: text, ...rest } = {}, wait }) {
    const pieces: Uint8Array[] = [];
    for await (const piece of client().streamSql(text as string, query({ query: rest, wait }) as StreamSqlOptions)) {
      pieces.push(piece);
    }
    return { bytes: Buffer.concat(pieces).toString('base64') };
  },
  async trace({ conversation_id, input, output, error, sleep: seconds }) {
    let id = '';
    try {
      await client().trace(conversation_id, async (span) => {
        id = span.id;
        span.input = input;
        await sleep((seconds ?? 0) * 1000);
        if (typeof error === 'string' && error !== '') {
          throw new Error(error);
        }
        return output;
      });
    } catch (thrown) {
      if (id === '') {
        throw thrown;
      }
      return { id, raised: (thrown as Error).message };
    }
    return { id };
  },
  reported() {
    return {
      errors: failures.map(({ op, id, status, code, field }) => ({
        op: op ?? '',
        id: id ?? '',
        status: status ?? 0,
        code: code ?? '',
        field: field ?? '',
      })),
    };
  },
};

function millis(seconds: number | null | undefined): number | undefined {
  return typeof seconds === 'number' ? seconds * 1000 : undefined;
}

function query({ query: { wait: inner, steps, did, returned, ...rest } = {}, wait = inner }: Pick<Command, 'query' | 'wait'>): object {
  return {
    ...camelCase(rest),
    ...(steps !== undefined && { steps: (steps as (string | object)[]).map(step) }),
    ...(did !== undefined && { did: step(did as string | object) }),
    ...(returned !== undefined && { returned: step(returned as string | object) }),
    waitSeconds: wait,
  };
}

function step(step: string | object): string | object {
  return typeof step === 'string' ? step : camelCase(step);
}

/** Returns the groups of a row as the API has them. */
function ungrouped({ metadata = {}, ...row }: GroupValues): object {
  return { ...snakeCase(row), ...Object.fromEntries(Object.entries(metadata).map(([key, value]) => [`metadata.${key}`, value])) };
}

/** Reads a generator to its end. */
async function all(items: AsyncGenerator<object>): Promise<object[]> {
  const list: object[] = [];
  for await (const item of items) {
    list.push(snakeCase(item));
  }
  return list;
}

async function whenRoom<T>(write: () => T): Promise<T> {
  const end = performance.now() + blockForMs;
  for (;;) {
    try {
      return write();
    } catch (error) {
      const left = end - performance.now();
      if (!(error instanceof QueueFullError) || !(left > 0)) {
        throw error;
      }
      const over = sleep(Math.min(left, 2 ** 31 - 1), undefined, { ref: false });
      await Promise.race([client().ready(), over]);
    }
  }
}

function describe(error: unknown): object {
  if (error instanceof ValidationError) return { kind: 'invalid', field: error.field, detail: error.message };
  if (error instanceof ApiError) {
    const { status, code, detail, field } = error;
    return { kind: 'api', status, code, detail, field };
  }
  const detail = error instanceof Error ? error.message : String(error);
  if (error instanceof QueueFullError) return { kind: 'queue_full', detail };
  if (error instanceof TimeoutError) return { kind: 'timeout', detail };
  if (error instanceof ClosedError) return { kind: 'closed', detail };
  if (error instanceof NetworkError) return { kind: 'network', detail };
  if (error instanceof SpoolInUseError) return { kind: 'in_use', detail };
  return { kind: 'other', detail };
}

for await (const line of createInterface({ input: process.stdin })) {
  if (line.trim() === '') {
    continue;
  }
  let answer: unknown;
  try {
    // Microseconds may be larger than the integers that a number holds exactly.
    const command = JSON.parse(line.replace(/"unix_micros":\s*(\d+)/, '"unix_micros":"$1"')) as Command;
    const run = commands[command.do];
    if (run === undefined) {
      throw new Error(`the command ${command.do} is not known`);
    }
    answer = await run(command);
  } catch (error) {
    answer = { error: describe(error) };
  }
  process.stdout.write(`${stringify(answer, true) ?? ''}\n`);
}
process.exit();
