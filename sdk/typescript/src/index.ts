/**
 * The client library of Sluice.
 *
 * @packageDocumentation
 */
export { Client } from './client.js';
export * from './errors.js';
export { RawJson } from './payload.js';
export type { Span } from './trace.js';
export type * from './types.js';
