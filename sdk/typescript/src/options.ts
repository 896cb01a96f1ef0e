import { ValidationError } from './errors.js';

/** The longest delay of Node's timers, in milliseconds. */
export const timeoutMsMax = 2 ** 31 - 1;

/** Returns the numeric option, or its default if it is absent. It throws a {@link ValidationError} if it is out of bounds. */
export function bounded<K extends string>(
  options: Partial<Record<K, number | undefined>>,
  name: K,
  absent: number,
  min: number,
  max: number,
): number {
  const value = options[name] ?? absent;
  if (!(value >= min && value <= max)) {
    throw new ValidationError(name, `must be ${max === Infinity ? `at least ${min}` : `from ${min} to ${max}`}`);
  }
  return value;
}

/** Checks `waitAppliedSeconds`. It throws a {@link ValidationError} if it is out of bounds. */
export function wholeSeconds(seconds: number): number {
  if (!(Number.isInteger(seconds) && seconds >= 1 && seconds <= 30)) {
    throw new ValidationError('waitAppliedSeconds', 'must be a whole number from 1 to 30');
  }
  return seconds;
}
