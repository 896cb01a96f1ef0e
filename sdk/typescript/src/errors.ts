/** The base class of every error of this library. */
export class SluiceError extends Error {
  override name = 'SluiceError';
}

/** A call was given an invalid argument. Nothing was queued or sent. */
export class ValidationError extends SluiceError {
  override name = 'ValidationError';
  /**
   * The invalid field by its name in the API, such as `latency` or `output_embeddings[1]`, or the option by its own name. It is empty if
   * the write as a whole is invalid: an update without fields, or a write that is too large.
   */
  readonly field: string;

  constructor(field: string, message: string, options?: ErrorOptions) {
    super(field === '' ? message : `${field} ${message}`, options);
    this.field = field;
  }
}

/** The queue has no room for the write, and the write was not queued. `client.ready()` waits for room. */
export class QueueFullError extends SluiceError {
  override name = 'QueueFullError';
}

/** The server refused a request or a write. */
export class ApiError extends SluiceError {
  override name = 'ApiError';
  /** The HTTP status of the answer, or the status of the write within a batch. */
  readonly status: number;
  /** The code of the problem, such as `unknown_event`; undefined if the answer came from a proxy and not from Sluice. */
  readonly code: string | undefined;
  /** An explanation for humans. */
  readonly detail: string;
  /** The field or parameter at fault, by its name in the API; undefined if there is none. */
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

/** The server could not be reached, or its answer was cut off or unreadable. `cause` is the underlying error, if there is one. */
export class NetworkError extends SluiceError {
  override name = 'NetworkError';
}

/**
 * A flush, a close or a request took longer than its timeout. After a flush, the remaining writes stay queued; after a close, they stay
 * in the spool if the client has one. `cause` is the sender's last error, if there is one.
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

/** The spool's directory is in use by another client, of this process or of another one. */
export class SpoolInUseError extends SluiceError {
  override name = 'SpoolInUseError';
}

/** This machine's clock is wrong. It goes to `onError` once; the message says what to do. */
export class ClockError extends SluiceError {
  override name = 'ClockError';
}
