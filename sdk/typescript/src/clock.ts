import type { IncomingHttpHeaders } from 'node:http';

/** Whether this machine's clock is right, by what the server's answers say. */

/** How far a clock may be off before it counts as wrong. */
const toleranceMs = 300_000;
/** 2000-01-01, before which the server's own clock is wrong. */
const serverMinMs = 946_684_800_000;

/**
 * The time of an answer by its Date, in Unix milliseconds; undefined where that says nothing. An answer out of a cache, which has an
 * Age, is an old one.
 */
export function serverTimeMs({ date, age }: IncomingHttpHeaders): number | undefined {
  const time = date === undefined || age !== undefined ? NaN : Date.parse(date);
  return time >= serverMinMs ? time : undefined;
}

/** How many milliseconds the server's clock is ahead of the local one; 0 for as good as none. */
export function clockOffsetMs(server: number, local: number): number {
  const ahead = server - local;
  return Math.abs(ahead) > toleranceMs ? ahead : 0;
}

/** What is wrong with the clock, and what to do, for people. */
export function describeClock(server: number, local: number, refused: number): string {
  const ahead = server - local;
  const far = Math.abs(ahead);
  const text = far >= 1.5 * 86.4e6 ? `${(far / 86.4e6).toFixed(1)} days` : far >= 5.4e6 ? `${(far / 3.6e6).toFixed(1)} hours` : `${(far / 6e4).toFixed(0)} minutes`;
  return `the clock of this machine is ${text} ${ahead > 0 ? 'behind' : 'ahead of'} the server's: here ${new Date(local).toISOString()}, ` +
    `there ${new Date(server).toISOString()}. Ids that were minted by now have the wrong time: the server refuses those of before the year 2000 ` +
    `or of more than 24 hours ahead (of ${refused} writes just now; each goes to onError), and keeps the others under that time. From now on, ` +
    'events without a timestamp get the server\'s time. Set the clock of this machine, by NTP for one; no restart is needed';
}
