import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { describe, test, type TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';

import { FakeServer } from './server.js';

const root = fileURLToPath(new URL('../..', import.meta.url));

/** Runs a program in its own process. */
async function run(server: string, program: string, { commonJs = false } = {}) {
  const begin = commonJs
    ? `const { Client } = require(${JSON.stringify(`${root}/dist/cjs/index.js`)});`
    : `import { Client } from ${JSON.stringify(new URL('../../dist/esm/index.js', import.meta.url).href)};`;
  const child = spawn(process.execPath, [`--input-type=${commonJs ? 'commonjs' : 'module'}`, '-e', `
    ${begin}
    const url = ${JSON.stringify(server)};
    const client = new Client({ url, batchAgeMaxMs: 3_600_000, onError: ({ code }) => console.log(code) });
    const track = (id, c = client) => c.trackEvent({ id, conversationId: 'c1', eventName: 'event_a' });
    ${program}`]);
  let output = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream.on('data', (part) => { output += String(part); });
  }
  const [code] = (await once(child, 'close')) as [number | null];
  return { code, output };
}

async function start(t: TestContext): Promise<FakeServer> {
  return FakeServer.start(t);
}

describe('a process that ends without close', () => {
  for (const commonJs of [false, true]) {
    test(`sends what is queued when it has nothing else to do, ${commonJs ? 'CommonJS' : 'ESM'}`, async (t) => {
      const server = await start(t);
      assert.deepEqual(await run(server.url, 'track("a"); setTimeout(() => track("b"), 10);', { commonJs }), { code: 0, output: '' });
      assert.deepEqual(server.batches, [['a', 'b']]);
    });
  }

  test('tracks an open stream with its parts so far', async (t) => {
    const server = await start(t);
    const program = 'const stream = client.trace("c1", function* () { yield "a"; yield "b"; }); stream.next(); globalThis.kept = stream;';
    assert.deepEqual(await run(server.url, program), { code: 0, output: '' });
    assert.deepEqual(server.items.map(({ output }) => output), ['a']);
  });

  test('sends the writes of its last beforeExit handler', async (t) => {
    const server = await start(t);
    assert.deepEqual(await run(server.url, 'process.once("beforeExit", () => { setImmediate(() => track("a")); });'), { code: 0, output: '' });
    assert.deepEqual(server.batches, [['a']]);
  });

  test('does not hang without a server, and warns of lost writes', async (t) => {
    const server = await start(t);
    server.answer = () => ({ status: 503, body: '' });
    const { code, output } = await run(server.url, `
      const { setTimeout: real } = globalThis;
      globalThis.setTimeout = (fn, ms, ...rest) => real(fn, ms === 10_000 ? 200 : ms, ...rest);
      track("a");`);
    assert.equal(code, 0);
    assert.match(output, /1 write is lost/);
  });

  test('by process.exit warns of lost writes', async (t) => {
    const server = await start(t);
    const { code, output } = await run(server.url, 'track("a"); process.exit(3);');
    assert.equal(code, 3);
    assert.match(output, /1 write is lost/);
    assert.deepEqual(server.batches, []);
  });

  test('by a SIGTERM handler that closes loses nothing', async (t) => {
    const server = await start(t);
    const program = `
      process.on("SIGTERM", () => { client.close().then(() => process.exit(0)); });
      track("a");
      setInterval(() => {}, 1000);
      process.kill(process.pid, "SIGTERM");`;
    assert.deepEqual(await run(server.url, program), { code: 0, output: '' });
    assert.deepEqual(server.batches, [['a']]);
  });

  test('by the end of a worker thread', async (t) => {
    const server = await start(t);
    const program = `
      const { Worker } = require("node:worker_threads");
      track("main");
      new Worker('const { Client } = require(' + JSON.stringify(${JSON.stringify(`${root}/dist/cjs/index.js`)}) + ');' +
        'const c = new Client({ url: ' + JSON.stringify(url) + ', batchAgeMaxMs: 3600000 });' +
        'c.trackEvent({ id: "worker", conversationId: "c1", eventName: "event_a" });', { eval: true });`;
    assert.deepEqual(await run(server.url, program, { commonJs: true }), { code: 0, output: '' });
    assert.deepEqual(server.batches.flat().toSorted(), ['main', 'worker']);
  });
});
