import { BlockList, isIP } from 'node:net';

import { ValidationError } from './errors.js';

/** Environment variables. */
export type Environment = Readonly<Record<string, string | undefined>>;

/**
 * Returns the proxy for requests to the URL from the environment, by the rules of Go's net/http; undefined for a direct connection. It
 * throws a {@link ValidationError} if the proxy is not an http address.
 */
export function proxyOf(url: URL, environment: Environment): URL | undefined {
  const text = proxyFor(url, environment);
  if (text === undefined) {
    return undefined;
  }
  if (!URL.canParse(text) || new URL(text).protocol !== 'http:') {
    const name = `${url.protocol.slice(0, -1).toUpperCase()}_PROXY`;
    throw new ValidationError(name, 'must be an address such as http://proxy.example:3128');
  }
  return new URL(text);
}

/** Returns the proxy's address as the environment has it, with a scheme added if it has none. */
export function proxyFor(url: URL, environment: Environment): string | undefined {
  // In a CGI script, HTTP_PROXY is the request's Proxy header, which must not be trusted.
  if (url.protocol === 'http:' && environment.REQUEST_METHOD) {
    return undefined;
  }
  const proxy = variable(environment, `${url.protocol.slice(0, -1)}_proxy`);
  const host = url.hostname.replace(/^\[|\]$|\.$/g, '');
  const port = url.port || (url.protocol === 'https:' ? '443' : '80');
  if (proxy === '' || !isProxied(host, port, variable(environment, 'no_proxy'))) {
    return undefined;
  }
  return proxy.includes('://') ? proxy : `http://${proxy}`;
}

function variable(environment: Environment, name: string): string {
  const upper = environment[name.toUpperCase()];
  return upper === undefined || upper === '' ? (environment[name] ?? '') : upper;
}

const loopback = new BlockList();
loopback.addSubnet('127.0.0.0', 8, 'ipv4');
loopback.addAddress('::1', 'ipv6');

function isProxied(host: string, port: string, noProxy: string): boolean {
  if (host === 'localhost' || includes(loopback, host)) {
    return false;
  }
  return !noProxy.split(',').some((entry) => matches(host, port, entry.trim().toLowerCase()));
}

function matches(host: string, port: string, entry: string): boolean {
  if (entry === '*') {
    return true;
  }
  const [, network, bits] = /^([0-9a-f.:]+)\/(\d+)$/.exec(entry) ?? [];
  if (network !== undefined && isIP(network) > 0) {
    const list = new BlockList();
    list.addSubnet(network, Math.min(Number(bits), isIP(network) === 4 ? 32 : 128), isIP(network) === 4 ? 'ipv4' : 'ipv6');
    return includes(list, host);
  }
  const [, before, number] = isIP(entry) > 0 ? [] : (/^(.*):(\d+)$/.exec(entry) ?? []);
  if (number !== undefined && number !== port) {
    return false;
  }
  const name = (before ?? entry).replace(/^\[|\]$/g, '').replace(/^\*\./, '.');
  if (name === '') {
    return false;
  }
  if (isIP(name) > 0) {
    const list = new BlockList();
    list.addAddress(name, isIP(name) === 4 ? 'ipv4' : 'ipv6');
    return includes(list, host);
  }
  return name.startsWith('.') ? host.endsWith(name) : host === name || host.endsWith(`.${name}`);
}

function includes(list: BlockList, host: string): boolean {
  const version = isIP(host);
  return version > 0 && list.check(host, version === 4 ? 'ipv4' : 'ipv6');
}
