import { ValidationError } from './errors.js';
import { formatMicros } from './timestamps.js';
import type { Condition, FilterOptions, MetadataValue, Time } from './types.js';

/** The parameters of a query string. */
export type Query = Record<string, Parameter | readonly Parameter[] | undefined>;

type Parameter = string | number | bigint | boolean;

export function queryString(query: Query): string {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    for (const one of Array.isArray(value) ? (value as readonly Parameter[]) : [value as Parameter | undefined]) {
      if (one !== undefined) {
        search.append(name, String(one));
      }
    }
  }
  return search.size === 0 ? '' : `?${search.toString()}`;
}

/**
 * Returns the parameters of a filter.
 *
 * @throws {@link ValidationError} for a time that is not valid, and for a condition that the API cannot express.
 */
export function filter(options: FilterOptions): Query {
  const { since, until, conversationId, eventName, eventNames, error, latencyMin, latencyMax, metadata = {}, conditions = [] } = options;
  const parameters = new Map<string, MetadataValue[]>();
  const equal = Object.entries(metadata).filter(([, value]) => (value as unknown) !== undefined);
  for (const condition of [...equal.map(([key, value]): Condition => ({ key, op: '=', value })), ...conditions]) {
    const [name, value] = parameter(condition);
    parameters.set(name, [...(parameters.get(name) ?? []), value]);
  }
  return {
    since: moment(since),
    until: moment(until),
    conversation_id: conversationId,
    event_name: [...(eventName === undefined ? [] : [eventName]), ...(eventNames ?? [])],
    error,
    latency_min: latencyMin,
    latency_max: latencyMax,
    ...Object.fromEntries(parameters),
  };
}

function moment(time: Time | undefined): string | undefined {
  if (time === undefined || typeof time === 'string') {
    return time;
  }
  const millis = Number(time);
  if (Number.isNaN(millis) || Math.abs(millis) > 8.64e15) {
    throw new ValidationError('since', 'and until must be valid times');
  }
  return formatMicros(Math.floor(millis * 1000));
}

/**
 * Returns the name and the value of the parameter for a condition.
 *
 * The API reads the comparison from the end of the name. If the parameter has no value, it also looks for the first comparison in the name,
 * because `metadata.KEY>5` is a name without a value. A few keys and values would be read in another way; they are refused.
 */
function parameter({ key, op, value }: Condition): [name: string, value: MetadataValue] {
  if (key === '') {
    throw new ValidationError('metadata', 'has a condition without a key');
  }
  const name = `metadata.${key}`;
  if (op === 'exists' || op === 'missing') {
    return [`${name}.exists`, op === 'exists'];
  }
  if (value === undefined || (value as unknown) === null) {
    throw new ValidationError(name, 'has a condition without a value');
  }
  const text = String(value);
  let isMisread = false;
  let sent: [string, MetadataValue] = [name + op, value];
  switch (op) {
    case '=':
      isMisread = endsWithOperator(key) || (text === '' && hasOperator(key)) || (key.endsWith('.exists') && (text === 'true' || text === 'false'));
      sent = [name, value];
      break;
    case '<':
    case '>':
      isMisread = hasOperator(key) || text === '' || text.startsWith('=') || endsWithOperator(text);
      sent = [name + op + text, ''];
      break;
    case '!=':
    case '<=':
    case '>=':
      break;
    default:
      throw new ValidationError(name, `has the unknown comparison ${JSON.stringify(op)}`);
  }
  if (isMisread) {
    throw new ValidationError(name, `cannot be compared by ${op} with this value, because the server would read the key or the value as another comparison`);
  }
  return sent;
}

/** Whether the API reads the end of the text as a comparison. */
function endsWithOperator(text: string): boolean {
  return /[!<>]=?$/.test(text);
}

/** Whether the API reads a part of the text as a comparison, if the parameter has no value. */
function hasOperator(text: string): boolean {
  return /[<>]|!=/.test(text);
}
