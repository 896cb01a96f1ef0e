import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('../..', import.meta.url));
const tsc = createRequire(import.meta.url).resolve('typescript/lib/tsc.js');

const consumer = `
import { Client, ApiError, ValidationError, type ClientOptions, type FilterOptions, type NewEvent, type StoredEvent, type Span } from '@sluicehq/sluice';

const options: ClientOptions = { url: 'http://127.0.0.1:1', apiKey: undefined, onError: ({ id, error }) => { console.log(id, error.message); } };
const event: NewEvent = { conversationId: 'c1', eventName: 'event_a', timestamp: new Date(), input: [{ role: 'user' }] };

export async function main(): Promise<StoredEvent | undefined> {
  await using client = new Client(options);
  const id: string = client.trackEvent(event);
  client.updateEvent(id, { error: null, output: 'done' });
  const answer: Promise<number> = client.trace('c1', async (span: Span) => { span.input = 1; return 42; }, { eventName: 'event_b' });
  const same: string = client.trace('c1', () => 'sync');
  console.log(await answer, same);
  // @ts-expect-error a misspelt field
  client.trackEvent({ conversationID: 'c1', eventName: 'event_a' });
  // @ts-expect-error an event name cannot be cleared
  client.updateEvent(id, { eventName: null });
  // @ts-expect-error what is internal is not in the types
  client.trackEvent.call(client, new Span());
  for await (const { timestamp } of client.conversationEvents('c1', { embeddings: true })) {
    console.log(timestamp.length);
  }
  const filter: FilterOptions = { error: true, conditions: [{ key: 'tokens', op: '>', value: 5 }, { key: 'trial', op: 'exists' }] };
  for await (const { latency } of client.allEvents({ ...filter, order: '-timestamp' })) {
    console.log(latency?.toFixed());
  }
  for await (const { firstInput } of client.allConversations(filter)) {
    console.log(firstInput?.length);
  }
  // @ts-expect-error a comparison needs a value
  void client.errors({ conditions: [{ key: 'tokens', op: '>' }] });
  // @ts-expect-error a conversation is named by its argument
  void client.conversation('c1', { conversationId: 'c1' });
  try {
    return await client.event(id, { waitSeconds: 5 });
  } catch (error) {
    if (error instanceof ApiError) console.log(error.status, error.code?.length);
    if (error instanceof ValidationError) console.log(error.field.length);
    return undefined;
  }
}
`;

const use = `
const client = new Client({ url: 'http://127.0.0.1:1', retryForMs: 1, onError: ({ code }) => console.log(code) });
const id = client.trackEvent({ conversationId: 'c1', eventName: 'event_a' });
client.flush().then(() => client.close()).then(() => console.log(id.length));
`;

describe('the package, packed and installed', () => {
  const dir = mkdtempSync(path.join(tmpdir(), 'sluice-package-'));

  function run(command: string, ...args: string[]): string {
    return execFileSync(command, args, { cwd: dir, encoding: 'utf8' });
  }

  before(() => {
    execFileSync('npm', ['pack', '--ignore-scripts', '--silent', '--pack-destination', dir], { cwd: root });
    writeFileSync(path.join(dir, 'package.json'), '{"private":true}');
    run('npm', 'install', '--offline', '--ignore-scripts', '--no-audit', '--no-fund', '--silent', './sluicehq-sluice-0.1.0.tgz');
  });
  after(() => { rmSync(dir, { recursive: true, force: true }); });

  test('has what it needs and nothing else', () => {
    const installed = path.join(dir, 'node_modules/@sluicehq/sluice');
    assert.deepEqual(readdirSync(installed).toSorted(), ['LICENSE', 'README.md', 'dist', 'package.json']);
    assert.deepEqual(readdirSync(path.join(installed, 'dist')).toSorted(), ['browser', 'cjs', 'esm']);
    assert.deepEqual(readdirSync(path.join(dir, 'node_modules')).filter((name) => !name.startsWith('.')), ['@sluicehq']);
  });

  test('is required', () => {
    writeFileSync(path.join(dir, 'use.cjs'), `const { Client } = require('@sluicehq/sluice');${use}`);
    assert.equal(run(process.execPath, 'use.cjs'), 'network\n36\n');
  });

  test('is imported', () => {
    writeFileSync(path.join(dir, 'use.mjs'), `import { Client } from '@sluicehq/sluice';${use}`);
    assert.equal(run(process.execPath, 'use.mjs'), 'network\n36\n');
  });

  for (const name of ['consumer.mts', 'consumer.cts']) {
    test(`type-checks in ${name}`, () => {
      // Without the types of Node, and with those of the package checked as well.
      const compilerOptions = {
        module: 'NodeNext',
        target: 'ES2022',
        lib: ['ES2022', 'DOM'],
        strict: true,
        exactOptionalPropertyTypes: true,
        noEmit: true,
        skipLibCheck: false,
        types: [],
      };
      writeFileSync(path.join(dir, name), consumer);
      writeFileSync(path.join(dir, 'tsconfig.json'), JSON.stringify({ compilerOptions, files: [name] }));
      try {
        run(process.execPath, tsc, '-p', '.');
      } catch (error) {
        assert.fail((error as { stdout: string }).stdout);
      }
    });
  }
});
