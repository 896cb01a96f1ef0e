import { ValidationError } from './errors.js';
import { formatMicros } from './timestamps.js';
import type { Condition, FilterOptions, MetadataValue, Step, Time } from './types.js';

/** The parameters of a query string. */
export type Query = Record<string, Parameter | readonly Parameter[] | undefined>;

type Parameter = string | number | bigint | boolean;

export function queryString(query: Query): string {
  const search = new URLSearchParams();
  for (const [name, value] of parametersOf(query)) {
    search.append(name, String(value));
  }
  return search.size === 0 ? '' : `?${search.toString()}`;
}

/** Returns each parameter that has a value, also those of one name. */
function parametersOf(query: Query): [name: string, value: Parameter][] {
  return Object.entries(query).flatMap(([name, value]) =>
    (Array.isArray(value) ? (value as readonly Parameter[]) : [value as Parameter | undefined])
      .filter((one) => one !== undefined)
      .map((one): [string, Parameter] => [name, one]));
}

/**
 * Returns the parameters of a filter.
 *
 * @throws {@link ValidationError} for a time that is not valid, and for a condition that the API cannot express.
 */
export function filter(options: FilterOptions): Query {
  const { since, until, conversationId, eventName, eventNames, error, latencyMin, latencyMax } = options;
  const parameters = new Map<string, MetadataValue[]>();
  for (const condition of conditionsOf(options)) {
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

/**
 * Returns a filter as a JSON object of strings and lists of strings; undefined if it has no members. It throws as {@link filter} does.
 */
export function filterMembers(options: FilterOptions): Record<string, string | string[]> | undefined {
  const members = new Map<string, string[]>();
  const add = (name: string, value: Parameter) => members.set(name, [...(members.get(name) ?? []), String(value)]);
  for (const [name, values] of parametersOf(filter({ ...options, metadata: undefined, conditions: undefined }))) {
    add(name, values);
  }
  for (const condition of conditionsOf(options)) {
    add(...member(condition));
  }
  if (members.size === 0) {
    return undefined;
  }
  return Object.fromEntries(Array.from(members, ([name, [first = '', ...others]]) => [name, others.length === 0 ? first : [first, ...others]]));
}

/**
 * Returns a step of a funnel or of a retention as the API writes it: the name and the filters, separated by semicolons. What has a meaning
 * there is percent-encoded. It throws as {@link filter} does.
 */
export function stepText(step: string | Step): string {
  const { eventName, ...options } = typeof step === 'string' ? { eventName: step } : step;
  const { error, latencyMin, latencyMax, metadata, conditions } = options as Omit<Step, 'eventName'>;
  const parameters = parametersOf(filter({ error, latencyMin, latencyMax, metadata, conditions }));
  return [escapePart(eventName), ...parameters.map(([name, value]) => `${escapePart(name)}=${escapePart(String(value))}`)].join(';');
}

function escapePart(text: string): string {
  return text.replace(/[%;&+=]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`);
}

function conditionsOf({ metadata = {}, conditions = [] }: FilterOptions): Condition[] {
  const equal = Object.entries(metadata).filter(([, value]) => (value as unknown) !== undefined);
  return [...equal.map(([key, value]): Condition => ({ key, op: '=', value })), ...conditions];
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

/**
 * Returns the name and the value of a condition as a member of a filter in JSON. There, the value never becomes a part of the name, so only
 * `=` can be misread.
 */
function member(condition: Condition): [name: string, value: MetadataValue] {
  const { key, op, value } = condition;
  if (key !== '' && (op === '<' || op === '>') && (value as unknown) !== undefined && (value as unknown) !== null) {
    return [`metadata.${key}${op}`, value];
  }
  return parameter(condition);
}

/** Whether the API reads the end of the text as a comparison. */
function endsWithOperator(text: string): boolean {
  return /[!<>]=?$/.test(text);
}

/** Whether the API reads a part of the text as a comparison, if the parameter has no value. */
function hasOperator(text: string): boolean {
  return /[<>]|!=/.test(text);
}
