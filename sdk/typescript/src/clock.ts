import type { IncomingHttpHeaders } from 'node:http';

/** Compares this machine's clock with the server's, by the Date header of its answers. */

/** A clock that is off by more than this many milliseconds is wrong. */
const toleranceMs = 300_000;
/** 2000-01-01. A server whose time is before that has a wrong clock itself. */
const serverMinMs = 946_684_800_000;

/**
 * Returns the server's time in Unix milliseconds, from the Date header; undefined if the header is absent or not usable. An answer with
 * an Age header comes from a cache, so that its Date is old.
 */
export function serverTimeMs({ date, age }: IncomingHttpHeaders): number | undefined {
  const time = date === undefined || age !== undefined ? NaN : Date.parse(date);
  return time >= serverMinMs ? time : undefined;
}

/** Returns how many milliseconds the server's clock is ahead of the local clock; 0 if the difference is within the tolerance. */
export function clockOffsetMs(server: number, local: number): number {
  const ahead = server - local;
  return Math.abs(ahead) > toleranceMs ? ahead : 0;
}

/** Describes the wrong clock to an operator: how far it is off, what the library does now, and what to do. */
export function describeClock(server: number, local: number, refused: number): string {
  const ahead = server - local;
  const far = Math.abs(ahead);
  const text = far >= 1.5 * 86.4e6 ? `${(far / 86.4e6).toFixed(1)} days` : far >= 5.4e6 ? `${(far / 3.6e6).toFixed(1)} hours` : `${(far / 6e4).toFixed(0)} minutes`;
  return `the clock of this machine is ${text} ${ahead > 0 ? 'behind' : 'ahead of'} the server's: here ${new Date(local).toISOString()}, ` +
    `there ${new Date(server).toISOString()}. The ids minted so far have the wrong time. The server refuses ids before the year 2000 or more ` +
    `than 24 hours ahead (it just refused ${refused} writes; each goes to onError), and stores the others under the wrong time. From now on, ` +
    'events without a timestamp get the server\'s time. Set the clock of this machine, for example by NTP; no restart is needed';
}
