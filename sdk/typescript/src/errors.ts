/** What every error of this library is. */
export class SluiceError extends Error {
  override name = 'SluiceError';
}

/** A call refused its arguments; nothing was queued or sent. */
export class ValidationError extends SluiceError {
  override name = 'ValidationError';
  /**
   * What is wrong, by its name in the API, such as `latency` or `output_embeddings[1]`; an option by its own name. Empty
   * where it is the write as a whole: an update without fields, or a write that is too large.
   */
  readonly field: string;

  constructor(field: string, message: string, options?: ErrorOptions) {
    super(field === '' ? message : `${field} ${message}`, options);
    this.field = field;
  }
}

/** The queue has no room for the write, which was not taken. `client.ready()` waits for room. */
export class QueueFullError extends SluiceError {
  override name = 'QueueFullError';
}

/** The server refused a request or a write. */
export class ApiError extends SluiceError {
  override name = 'ApiError';
  /** The HTTP status, or that of the write within a batch. */
  readonly status: number;
  /** The code of the problem, such as `unknown_event`; undefined where the answer was not Sluice's, but a proxy's. */
  readonly code: string | undefined;
  /** What is wrong, for humans. */
  readonly detail: string;
  /** The field or parameter that is meant, by its name in the API. */
  readonly field: string | undefined;

  constructor(status: number, problem: { code?: string | undefined; detail: string; field?: string | undefined }) {
    const { code, detail, field } = problem;
    super([status, code, field].filter((part) => part !== undefined).join(' ') + `: ${detail}`);
    this.status = status;
    this.code = code;
    this.detail = detail;
    this.field = field;
  }
}

/** The server could not be reached, or its answer was cut off or could not be read. `cause` says more where there is more. */
export class NetworkError extends SluiceError {
  override name = 'NetworkError';
}

/**
 * The time was over: of a flush, a close or a request. What was queued stays queued, after a flush; or in the spool, after a
 * close with one. `cause` is the last error of the sender, if there was one.
 */
export class TimeoutError extends SluiceError {
  override name = 'TimeoutError';
}

/** The client is closed. */
export class ClosedError extends SluiceError {
  override name = 'ClosedError';

  constructor(message = 'the client is closed') {
    super(message);
  }
}

/** The spool's directory is in use, by another client of this process or by another process. */
export class SpoolInUseError extends SluiceError {
  override name = 'SpoolInUseError';
}

/** This machine's clock is wrong. `onError` gets it, once; the message says what to do. */
export class ClockError extends SluiceError {
  override name = 'ClockError';
}
