import { parseJson } from './answer.js';

/** The result of one write of a batch. */
export interface Result {
  receipt?: string;
  error?: { status: number; code: string; detail?: unknown; field?: unknown; receipt?: unknown };
}

/** Parses the results of a batch; undefined if the body does not have a valid result for each write. */
export function parseResults(body: Buffer, writes: number): Result[] | undefined {
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

/** Whether the error refuses a write for its time, which may be in the timestamp or in a minted id. */
export function refusesTime({ code, field }: { code?: string | undefined; field?: unknown }): boolean {
  return code === 'invalid_value' && (field === 'id' || field === 'timestamp');
}
