import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { appendFileSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { describe, test, type TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';
import { crc32 } from 'node:zlib';

import { Client, QueueFullError, SluiceError, SpoolInUseError, TimeoutError, type ClientOptions, type WriteFailure } from '../src/index.js';
import { FakeServer, until, type Answer } from './server.js';

const down: Answer = () => ({ status: 503, headers: { 'Retry-After': '60' }, body: '' });

function makeDir(t: TestContext): string {
  const dir = mkdtempSync(path.join(tmpdir(), 'sluice-spool-'));
  t.after(() => { rmSync(dir, { recursive: true, force: true }); });
  return dir;
}

function open(t: TestContext, url: string, spoolDir: string, options: ClientOptions = {}) {
  const failures: WriteFailure[] = [];
  const client = new Client({ url, spoolDir, onError: (failure) => failures.push(failure), ...options });
  t.after(() => client.close({ timeoutMs: 0 }).catch(() => undefined));
  return { client, failures };
}

/** Leaves the writes unanswered in the spool, as a killed process does. */
async function leave(t: TestContext, dir: string, writes: (client: Client) => void): Promise<void> {
  const server = await FakeServer.start(t, down);
  const { client } = open(t, server.url, dir);
  writes(client);
  await assert.rejects(client.close({ timeoutMs: 0 }), TimeoutError);
}

function spoolFiles(dir: string): string[] {
  return readdirSync(dir).filter((name) => name.endsWith('.spool')).toSorted();
}

/** Makes a line of the spool's format without the library's code. */
function line(item: object): string {
  const json = JSON.stringify(item);
  return `${crc32(json).toString(16).padStart(8, '0')} ${json}\n`;
}

const update = (id: string, latency: number) => ({ op: 'update', id, latency });

test('a write is in a file, in the format that all libraries share, before the call returns', async (t) => {
  const server = await FakeServer.start(t, down);
  const dir = makeDir(t);
  const { client } = open(t, server.url, dir);
  client.updateEvent('a', { latency: 1 });
  client.updateEvent('b', { latency: 2, input: 'ü\n' });
  client.deleteEvent('c');
  assert.deepEqual(spoolFiles(dir), ['0000000001.spool']);
  assert.equal(
    readFileSync(path.join(dir, '0000000001.spool'), 'utf8'),
    line(update('a', 1)) + line({ op: 'update', id: 'b', latency: 2, input: 'ü\n' }) + line({ op: 'delete', id: 'c' }),
  );
  assert.equal(readFileSync(path.join(dir, 'done'), 'utf8').trim(), '1 0');
});

test('the next client sends the unanswered writes in order, before anything else', async (t) => {
  const dir = makeDir(t);
  await leave(t, dir, (client) => {
    client.updateEvent('a', { latency: 1 });
    client.updateEvent('b', { latency: 1 });
    client.updateEvent('a', { latency: 2 });
  });
  const server = await FakeServer.start(t);
  const { client } = open(t, server.url, dir, { batchWritesMax: 2 });
  client.updateEvent('c', { latency: 1 });
  client.updateEvent('a', { latency: 3 });
  await client.close();
  assert.deepEqual(server.items[0], update('a', 1));
  assert.deepEqual(server.items[1], update('b', 1));
  assert.deepEqual(server.items.filter(({ id }) => id === 'a').map((item) => item.latency), [1, 2, 3]);
  assert.equal(server.items.length, 5);
  assert.deepEqual(readdirSync(dir), ['done']); // all writes were answered
});

test('a spool that another library wrote is loaded', async (t) => {
  const dir = makeDir(t);
  writeFileSync(path.join(dir, '0000000007.spool'), line(update('a', 1)) + line(update('b', 2)).replace(/^\w+/, (hex) => hex.toUpperCase()));
  writeFileSync(path.join(dir, '0000000012.spool'), line({ op: 'delete', id: 'c' }));
  const server = await FakeServer.start(t);
  const { client, failures } = open(t, server.url, dir);
  client.updateEvent('d', { latency: 1 });
  assert.deepEqual(spoolFiles(dir).at(-1), '0000000013.spool');
  await client.close();
  assert.deepEqual(server.items.map(({ id }) => id), ['a', 'b', 'c', 'd']);
  assert.deepEqual(failures, []);
});

test('the next start begins at the place in done', async (t) => {
  const dir = makeDir(t);
  const lines = ['a', 'b', 'c'].map((id) => line(update(id, 1)));
  writeFileSync(path.join(dir, '0000000001.spool'), line(update('x', 1)));
  writeFileSync(path.join(dir, '0000000002.spool'), lines.join(''));
  writeFileSync(path.join(dir, 'done'), `2 ${lines[0]?.length ?? 0}`);
  const server = await FakeServer.start(t);
  const { client } = open(t, server.url, dir);
  assert.deepEqual(spoolFiles(dir), ['0000000002.spool', '0000000003.spool']);
  await client.close();
  assert.deepEqual(server.items.map(({ id }) => id), ['b', 'c']);
  assert.match(readFileSync(path.join(dir, 'done'), 'utf8'), /^3 0\s*$/);
  // A new file's number is higher than the number in done, even if no file is left, because files before done count as answered.
  await leave(t, dir, (client) => { client.deleteEvent('d'); });
  assert.deepEqual(spoolFiles(dir), ['0000000004.spool']);
});

test('the first unanswered write keeps its place and the places of all later writes', async (t) => {
  const dir = makeDir(t);
  const unavailable = { error: { status: 503, code: 'unavailable', detail: '' } };
  const server = await FakeServer.start(t, ({ items }) => ({
    status: 207,
    body: { results: items.map(({ id }) => (id === 'stuck' ? unavailable : { id, receipt: '1.0.1' })) },
  }));
  const { client } = open(t, server.url, dir, { queueWritesMax: 5 });
  client.updateEvent('a', { latency: 1 });
  client.updateEvent('stuck', { latency: 1 });
  client.updateEvent('b', { latency: 1 });
  client.updateEvent('b', { latency: 2 });
  await until(() => server.items.filter(({ id }) => id === 'b').length === 2);
  await until(() => readFileSync(path.join(dir, 'done'), 'utf8').trim() === `1 ${line(update('a', 1)).length}`);
  // The queue's bounds count the writes in the spool: 3 of 5.
  await client.ready();
  client.updateEvent('c', { latency: 1 });
  client.updateEvent('c', { latency: 2 });
  assert.throws(() => { client.updateEvent('c', { latency: 3 }); }, QueueFullError);
  await assert.rejects(client.close({ timeoutMs: 0 }), TimeoutError);

  // A start resends b, but never its first update without the second.
  const next = await FakeServer.start(t);
  const second = open(t, next.url, dir);
  await second.client.close();
  assert.deepEqual(next.items, [update('stuck', 1), update('b', 1), update('c', 1), update('b', 2), update('c', 2)]);
});

test('a new file begins every 4 MiB, and a file is removed when all writes up to its end are answered', async (t) => {
  const dir = makeDir(t);
  const server = await FakeServer.start(t, down);
  const { client } = open(t, server.url, dir);
  const input = 'x'.repeat(1_000_000);
  for (let n = 0; n < 11; n++) {
    client.updateEvent(`id-${n}`, { input });
  }
  assert.deepEqual(spoolFiles(dir), ['0000000001.spool', '0000000002.spool', '0000000003.spool']);
  assert.ok(statSync(path.join(dir, '0000000001.spool')).size < 6 << 20);
  await assert.rejects(client.close({ timeoutMs: 0 }), TimeoutError);

  const next = await FakeServer.start(t);
  const second = open(t, next.url, dir);
  await second.client.flush();
  assert.deepEqual(spoolFiles(dir), ['0000000004.spool']);
  await second.client.close();
  assert.deepEqual(next.items.map(({ id }) => id), Array.from({ length: 11 }, (_, n) => `id-${n}`));
});

test('torn and corrupt lines are skipped and reported', async (t) => {
  const dir = makeDir(t);
  const flipped = Buffer.from(line(update('flipped', 1)));
  flipped.writeUInt8(flipped.readUInt8(20) ^ 1, 20);
  const file = path.join(dir, '0000000001.spool');
  writeFileSync(file, line(update('a', 1)));
  appendFileSync(file, flipped);
  appendFileSync(file, 'no line\n');
  appendFileSync(file, '\n');
  appendFileSync(file, line(update('b', 1)));
  appendFileSync(file, line(update('torn', 1)).slice(0, -5));
  const json = '{"not":';
  writeFileSync(path.join(dir, '0000000002.spool'), `${crc32(json).toString(16).padStart(8, '0')} ${json}\n`);
  const server = await FakeServer.start(t);
  const { client, failures } = open(t, server.url, dir);
  assert.equal(failures.length, 0, 'not within the constructor');
  await client.close();
  assert.deepEqual(server.items.map(({ id }) => id), ['a', 'b']);
  assert.deepEqual(failures.map(({ op, id, code }) => [op, id, code]), Array(5).fill([undefined, undefined, 'spool_corrupt']));
  assert.match(failures[4]?.detail ?? '', /^0000000002\.spool: 17 bytes at 0 /);
  assert.deepEqual(readdirSync(dir), ['done']);
});

test('a write that cannot be spooled is refused', async (t) => {
  const dir = makeDir(t);
  const server = await FakeServer.start(t);
  const { client } = open(t, server.url, path.join(dir, 'below', 'it')); // the client makes the directory
  client.updateEvent('a', { latency: 1 });
  await client.close();
  const file = path.join(dir, 'file');
  writeFileSync(file, '');
  assert.throws(() => new Client({ spoolDir: file }), (error) => error instanceof SluiceError && error.message.startsWith("open the spool: "));
});

test('a killed process loses no write whose trackEvent had returned', { timeout: 60_000 }, async (t) => {
  const dir = makeDir(t);
  let healthy = false;
  const server = await FakeServer.start(t, (_, n) => (n % 3 === 0 && !healthy ? { status: 503, body: '' } : undefined));
  const returned: string[] = [];
  for (const kills of [300, 900, 1]) {
    const writer = fileURLToPath(new URL('./spool-writer.js', import.meta.url));
    const child = spawn(process.execPath, [writer, server.url, dir], { stdio: ['ignore', 'pipe', 'inherit'] });
    const exit = once(child, 'exit');
    const before = returned.length;
    for await (const id of createInterface({ input: child.stdout })) {
      returned.push(id);
      if (returned.length - before === kills) {
        child.kill('SIGKILL');
      }
    }
    await exit;
  }
  healthy = true;
  const { client, failures } = open(t, server.url, dir);
  await client.close({ timeoutMs: 60_000 });
  const received = new Set(server.items.map(({ id }) => id));
  assert.ok(returned.length > 1200);
  assert.deepEqual(returned.filter((id) => !received.has(id)), []);
  assert.ok(failures.every(({ code }) => code === 'spool_corrupt') && failures.length <= 3); // each kill may tear a line
});

describe('the lock', () => {
  test('belongs to one client of a process', async (t) => {
    const dir = makeDir(t);
    const server = await FakeServer.start(t);
    const { client } = open(t, server.url, dir);
    assert.throws(() => new Client({ url: server.url, spoolDir: `${dir}/.` }), SpoolInUseError);
    await client.close();
    await new Client({ url: server.url, spoolDir: dir }).close();
  });

  test('belongs to one process, and is free when the process dies', async (t) => {
    const dir = makeDir(t);
    const server = await FakeServer.start(t);
    const writer = fileURLToPath(new URL('./spool-writer.js', import.meta.url));
    const child = spawn(process.execPath, [writer, server.url, dir], { stdio: ['ignore', 'pipe', 'inherit'] });
    await once(child.stdout, 'data');
    child.stdout.resume();
    assert.throws(() => new Client({ spoolDir: dir }), (error) => error instanceof SpoolInUseError && error.message.includes(String(child.pid)));
    child.kill('SIGKILL');
    await once(child, 'exit');
    const { client } = open(t, server.url, dir);
    await client.close();
  });

  test('of an earlier process with the same pid is taken over', { skip: process.platform !== 'linux' }, async (t) => {
    const dir = makeDir(t);
    writeFileSync(path.join(dir, 'lock'), `${process.pid} 1 0f0e0d0c-0000-4000-8000-000000000000\n`);
    const server = await FakeServer.start(t);
    const { client } = open(t, server.url, dir);
    await client.close();
  });

  test('of another program is respected', (t) => {
    const dir = makeDir(t);
    writeFileSync(path.join(dir, 'lock'), '');
    assert.throws(() => new Client({ spoolDir: dir }), SpoolInUseError);
  });

  test('of a dead process is taken over by only one of many', { timeout: 60_000 }, async (t) => {
    const dir = makeDir(t);
    const dead = spawnSync(process.execPath, ['-e', '']).pid;
    const count = 30;
    for (let i = 0; i < count; i++) {
      writeFileSync(path.join(dir, String(i)), `${dead} 1 0f0e0d0c-0000-4000-8000-00000000000${i % 10}\n`);
    }
    const taker = fileURLToPath(new URL('./lock-taker.js', import.meta.url));
    const args = [taker, dir, String(count)];
    const takers = Array.from({ length: 4 }, () => spawn(process.execPath, args, { stdio: ['pipe', 'pipe', 'inherit'] }));
    const got: number[] = [];
    let ready = 0;
    let ended = 0;
    await Promise.all(
      takers.map(async (child) => {
        for await (const said of createInterface({ input: child.stdout })) {
          if (said === 'ready' && ++ready === takers.length) {
            takers.forEach(({ stdin }) => stdin.write(`${Date.now() + 20}\n`));
          } else if (said === 'end' && ++ended === takers.length) {
            takers.forEach(({ stdin }) => { stdin.end(); });
          } else if (/^\d+$/.test(said)) {
            got.push(Number(said));
          }
        }
      }),
    );
    assert.deepEqual(got.toSorted((a, b) => a - b), Array.from({ length: count }, (_, i) => i));
    assert.deepEqual(readdirSync(dir).filter((name) => name.includes('.')), [], 'no claims are left');
  });
});
