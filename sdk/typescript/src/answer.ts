import http from 'node:http';

import { ApiError } from './errors.js';

/** An HTTP answer of any status. */
export interface Answer {
  status: number;
  headers: http.IncomingHttpHeaders;
  body: Buffer;
  /** The target of a redirect that was not followed, without its query and login, which may be secret. */
  location?: string;
}

/** Returns the error for an answer whose status is not 2xx. */
export function apiError({ status, body, location }: Answer): ApiError {
  if (location !== undefined) {
    return new ApiError(status, { detail: `a redirect to ${location} is not followed` });
  }
  const problem = parseJson(body) as { code?: unknown; detail?: unknown; field?: unknown } | null | undefined;
  if (typeof problem?.code !== 'string') {
    return new ApiError(status, { detail: http.STATUS_CODES[status] ?? 'the answer is not Sluice\'s' });
  }
  return itemError(status, problem);
}

/** Returns the error for an item of a batch. */
export function itemError(status: number, problem: { code?: unknown; detail?: unknown; field?: unknown }): ApiError {
  const text = (value: unknown) => (typeof value === 'string' ? value : undefined);
  return new ApiError(status, { code: text(problem.code), detail: text(problem.detail) ?? '', field: text(problem.field) });
}

/** Returns the media type in a Content-Type, without its parameters. */
export function mediaTypeOf(contentType: string | null | undefined): string | undefined {
  return contentType?.split(';', 1)[0]?.trim().toLowerCase();
}

/** Parses a body; undefined if it is not JSON. */
export function parseJson(body: Buffer): unknown {
  try {
    return JSON.parse(body.toString());
  } catch {
    return undefined;
  }
}
