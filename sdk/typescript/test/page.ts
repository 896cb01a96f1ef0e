import { once } from 'node:events';
import { existsSync, readFileSync } from 'node:fs';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

import { chromium, type Browser, type Page } from 'playwright-core';

const bundle = fileURLToPath(new URL('../../dist/browser/index.js', import.meta.url));

/** Debian's Chromium, where it is installed. */
export const chromiumPath = (process.env.PATH ?? '').split(':').map((dir) => path.join(dir, 'chromium')).find((file) => existsSync(file));

/** A real browser, and a server of pages that load this library. The pages have an origin of their own. */
export class Pages {
  private constructor(readonly origin: string, readonly browser: Browser, readonly server: http.Server) {}

  static async open(port = 0): Promise<Pages> {
    const server = http.createServer((request, response) => {
      if (request.url === '/sluice.js') {
        response.writeHead(200, { 'Content-Type': 'text/javascript' });
        response.end(readFileSync(bundle));
        return;
      }
      response.writeHead(200, { 'Content-Type': 'text/html' });
      response.end('<!doctype html><title>page</title><script type="module">import * as sluice from "/sluice.js"; globalThis.sluice = sluice;</script>');
    });
    server.listen(port, '127.0.0.1');
    await once(server, 'listening');
    const browser = await chromium.launch({ executablePath: chromiumPath ?? 'chromium', args: ['--no-sandbox'] });
    return new Pages(`http://127.0.0.1:${(server.address() as AddressInfo).port}`, browser, server);
  }

  /** Opens a page in which the library is `sluice`. */
  async page(): Promise<Page> {
    const page = await this.browser.newPage();
    await page.goto(this.origin, { waitUntil: 'load' });
    await page.waitForFunction('globalThis.sluice !== undefined');
    return page;
  }

  async close(): Promise<void> {
    await this.browser.close();
    this.server.close();
    this.server.closeAllConnections();
  }
}
