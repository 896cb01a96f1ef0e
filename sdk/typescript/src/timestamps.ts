import { ValidationError } from './errors.js';
import { currentMicros } from './ids.js';
import type { Time } from './types.js';

const timestampMinMicros = 946_684_800_000_000; // 2000-01-01
const timestampAheadMicros = 24 * 3600 * 1e6;

/** Formats Unix microseconds as RFC 3339 in UTC. */
export function formatMicros(micros: number): string {
  const millis = Math.floor(micros / 1000);
  const rest = micros - millis * 1000;
  return new Date(millis).toISOString().replace('Z', rest === 0 ? 'Z' : `${String(rest).padStart(3, '0')}Z`);
}

/** Checks a timestamp and returns it in Unix microseconds, rounded down. It throws a {@link ValidationError}. */
export function timestampMicros(time: Time): number {
  const micros = typeof time === 'string' ? parseRfc3339(time) : Math.floor(Number(time) * 1000);
  if (Number.isNaN(micros)) {
    throw new ValidationError('timestamp', 'must be a valid Date, Unix milliseconds, or RFC 3339 such as 2026-01-31T12:00:00.25Z');
  }
  const now = currentMicros();
  // A clock before 2000 is wrong, so it does not limit timestamps.
  if (micros < timestampMinMicros || (now >= timestampMinMicros && micros > now + timestampAheadMicros)) {
    throw new ValidationError('timestamp', 'must lie between 2000-01-01T00:00:00Z and 24 h from now');
  }
  return micros;
}

const rfc3339 = /^(\d{4})-(\d\d)-(\d\d)[Tt]([01]\d|2[0-3]):([0-5]\d):([0-5]\d)(?:\.(\d+))?(?:[Zz]|([+-])([01]\d|2[0-3]):([0-5]\d))$/;

/** Parses RFC 3339 to Unix microseconds; NaN if it is invalid. */
function parseRfc3339(text: string): number {
  const match = rfc3339.exec(text);
  if (match === null) {
    return NaN;
  }
  const part = (i: number) => Number(match[i] ?? 0);
  const date = new Date(Date.UTC(part(1), part(2) - 1, part(3), part(4), part(5), part(6)));
  if (date.getUTCMonth() !== part(2) - 1 || date.getUTCDate() !== part(3)) {
    return NaN; // the month does not have this day
  }
  const fraction = Number((match[7] ?? '').slice(0, 6).padEnd(6, '0'));
  const offsetMinutes = (match[8] === '-' ? -1 : 1) * (part(9) * 60 + part(10));
  return (date.getTime() - offsetMinutes * 60_000) * 1000 + fraction;
}
