/** Decides what is retried, and after which pause. */

import type { IncomingHttpHeaders } from 'node:http';

import { mediaTypeOf, parseJson, type Answer } from './answer.js';
import { ApiError, NetworkError, type SluiceError } from './errors.js';

/** The answer has a status of 2xx, and is not Sluice's. */
export class UnreadableError extends NetworkError {}

/** The connection failed, so that the request was not sent. */
export class NotSentError extends NetworkError {}

/** Whether the status is one that passes by itself, so that a retry may succeed. */
export function isTransient(status: number): boolean {
  return status === 408 || status === 425 || status === 429 || status >= 500;
}

/** The codes by which Sluice refuses a write for good. Other codes are about the request, its sender or the server. */
const finalCodes = new Set<string | undefined>([
  'invalid_json', 'too_deep', 'duplicate_field', 'unknown_field', 'invalid_type', 'required', 'invalid_value', 'too_large',
  'immutable', 'id_mismatch', 'unknown_event', 'bad_record', 'unsupported_version', 'unreadable_batch',
  'rejected_by_store', 'id_taken', 'event_deleted',
]);

/** Whether the answer is a problem document of Sluice, not of a proxy. */
export function isProblem(answer: Answer, { code }: ApiError): boolean {
  const mediaType = mediaTypeOf(answer.headers['content-type']);
  const problem = parseJson(answer.body) as { type?: unknown } | null | undefined;
  return mediaType === 'application/problem+json' && problem?.type === `urn:sluice:problem:${code ?? ''}`;
}

/**
 * Whether the answer to a request with one write refuses that write for good. Sluice does so by a final code in a problem document. A
 * proxy does so only by 413.
 */
export function isFinal(answer: Answer, error: ApiError): boolean {
  return answer.status === 413 || (finalCodes.has(error.code) && isProblem(answer, error));
}

/** Whether the error of a batch's item refuses the write for good. Only Sluice makes such errors. */
export function isFinalItem({ status, code }: ApiError): boolean {
  return finalCodes.has(code) || (!isTransient(status) && status !== 401 && status !== 403);
}

/** Whether the error holds writes: they are retried, but somebody must change something before they can succeed. */
export function isHeld(error: SluiceError): boolean {
  return error instanceof ApiError ? !isTransient(error.status) : error instanceof UnreadableError;
}

/** Whether the writes of a request may have reached the log although it ended with this error. */
export function mayHaveWritten(error: SluiceError): boolean {
  return error instanceof ApiError ? error.status >= 500 || error.status === 408 : !(error instanceof NotSentError);
}

const pauseMinMs = 100;
const pauseMaxMs = 10_000;
const retryAfterMaxMs = 60_000;

/**
 * Returns the pause after the given number of attempts, in milliseconds: exponential backoff with jitter, and at least `retryAfter`
 * milliseconds. `random` is from 0 to 1.
 */
export function pauseMs(attempts: number, retryAfter: number, random: number): number {
  const pause = Math.min(pauseMinMs * 2 ** (attempts - 1), pauseMaxMs);
  return Math.max(pause * (0.5 + random / 2), retryAfter);
}

/** Returns an answer's Retry-After in milliseconds, at most 60,000; 0 if there is none. */
export function retryAfterMs(headers: IncomingHttpHeaders): number {
  const value = headers['retry-after'] ?? '';
  const wait = /^\d+$/.test(value) ? Number(value) * 1000 : Date.parse(value) - Date.now();
  return Math.min(Math.max(wait || 0, 0), retryAfterMaxMs);
}
