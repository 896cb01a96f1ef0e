import { existsSync, readFileSync } from 'node:fs';
import http from 'node:http';
import https from 'node:https';
import { isIP } from 'node:net';
import type { Duplex } from 'node:stream';
import tls from 'node:tls';

import { ValidationError } from './errors.js';

const connectTimeoutMs = 30_000;

/** Returns the host name of a URL, without the brackets of an IPv6 address. */
export function hostOf(url: URL): string {
  return url.hostname.replace(/^\[|\]$/g, '');
}

/** The headers by which the client logs in to a proxy. */
export function proxyHeaders({ username, password }: URL): Record<string, string> {
  if (username === '') {
    return {};
  }
  const login = `${decodeURIComponent(username)}:${decodeURIComponent(password)}`;
  return { 'Proxy-Authorization': `Basic ${Buffer.from(login).toString('base64')}` };
}

/** Returns the certificates of the file, and the certificates that Node trusts without the file. */
export function authorities(file: string): string[] {
  let own: string;
  try {
    own = readFileSync(file, 'utf8');
    // Node ignores text that is not a certificate.
    if (!own.includes('-----BEGIN CERTIFICATE-----')) {
      throw new Error('there is no certificate in PEM');
    }
    tls.createSecureContext({ ca: own });
  } catch (error) {
    throw new ValidationError('caFile', `cannot be used: ${(error as Error).message}`, { cause: error });
  }
  const extra = process.env.NODE_EXTRA_CA_CERTS;
  // An explicit list replaces Node's own, so it has to contain that.
  return [...tls.rootCertificates, ...(extra !== undefined && existsSync(extra) ? [readFileSync(extra, 'utf8')] : []), own];
}

/** An agent that makes TLS connections through the tunnel (CONNECT) of an HTTP proxy. */
export class TunnelAgent extends https.Agent {
  readonly #proxy: URL;

  constructor(proxy: URL, options: https.AgentOptions) {
    super(options);
    this.#proxy = proxy;
  }

  override createConnection(
    options: tls.ConnectionOptions,
    callback?: (error: Error | null, stream: Duplex) => void,
  ): Duplex | null | undefined {
    // With an error there is no stream, which the declared type does not allow.
    const done = callback as (error: Error | null, stream?: Duplex) => void;
    const host = options.host ?? '';
    const place = `${host.includes(':') ? `[${host}]` : host}:${options.port ?? 443}`;
    const request = http.request({
      hostname: hostOf(this.#proxy),
      port: this.#proxy.port,
      method: 'CONNECT',
      path: place,
      headers: { Host: place, ...proxyHeaders(this.#proxy) },
      agent: false,
      timeout: connectTimeoutMs,
    });
    request.on('timeout', () => request.destroy(new Error('the proxy does not answer')));
    request.on('error', (error) => { done(error); });
    request.on('connect', (response, socket) => {
      if (response.statusCode !== 200) {
        socket.destroy();
        done(new Error(`the proxy answered ${response.statusCode ?? 0} to CONNECT`));
        return;
      }
      socket.setTimeout(0);
      done(null, tls.connect({ ...options, socket, ...(isIP(host) === 0 && { servername: host }) }));
    });
    request.end();
    return undefined;
  }
}
