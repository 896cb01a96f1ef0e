import { ApiError, ClockError, ClosedError, NetworkError, QueueFullError, TimeoutError, ValidationError, type SluiceError } from './errors.js';
import type { WriteFailure } from './types.js';

/** Returns the `code` of a {@link WriteFailure}. */
export function codeOf(error: SluiceError, write: object | undefined): string | undefined {
  if (error instanceof ApiError) return error.code;
  if (error instanceof NetworkError) return 'network';
  if (error instanceof TimeoutError) return 'timeout';
  if (error instanceof ValidationError) return 'invalid';
  if (error instanceof QueueFullError) return 'queue_full';
  if (error instanceof ClosedError) return 'closed';
  if (error instanceof ClockError) return 'wrong_clock';
  return write === undefined ? 'spool_corrupt' : 'spool';
}

/** The default `onError`: a warning on the console. It leaves out the detail, because a server's detail may quote contents. */
export function warn({ op, id, status, code, field, error }: WriteFailure): void {
  if (op === undefined) {
    console.warn(`sluice: ${error.message}`);
  } else {
    const why = [status, code, field].filter((part) => part !== undefined && part !== '').join(' ');
    console.warn(`sluice: the ${op} of ${String(id)} failed: ${why}`);
  }
}

/**
 * Logs that writes are held: they are retried, but somebody must change something before they can succeed. It is called once for each
 * cause. The line has no contents of events.
 */
export function warnHeld(error: SluiceError): void {
  const what = error instanceof ApiError ? describe(error) : error.message;
  console.error(`sluice: writes are held and retried: the server refuses this client, or is not Sluice; check the url and apiKey: ${what}`);
}

/** Describes the error without the detail, which may quote contents. */
function describe({ status, code, detail }: ApiError): string {
  // This library wrote the detail of a redirect, so it quotes nothing.
  return status < 400 ? `${status} ${detail}` : [status, code].filter((part) => part !== undefined).join(' ');
}
