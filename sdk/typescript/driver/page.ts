/**
 * Tracks events from a page in a real browser, and leaves the page at once. The page's origin is http://127.0.0.1:PORT:
 *
 *     node build/driver/page.js PORT URL KEY
 *
 * It prints a JSON object with the ids of the page's events, and the error code of a read that the server refuses.
 */
import { Pages } from '../test/page.js';

const [port, url, apiKey] = process.argv.slice(2);
const pages = await Pages.open(Number(port));
try {
  const page = await pages.page();
  const result = await page.evaluate(`(async () => {
    const { Client } = sluice;
    const client = globalThis.client = new Client(${JSON.stringify({ url, apiKey, batchAgeMaxMs: 60_000 })});
    const ids = [client.trackEvent({ conversationId: 'page', eventName: 'event_a', input: 'flushed' })];
    await client.flush({ timeoutMs: 30_000 });
    const refused = await client.event(ids[0]).then(() => 'nothing', ({ code }) => code);
    ids.push(client.trackEvent({ conversationId: 'page', eventName: 'event_b', input: 'left' }));
    client.updateEvent(ids[1], { output: 'as well' });
    return { ids, refused };
  })()`);
  await page.goto('about:blank');
  console.log(JSON.stringify(result));
} finally {
  await pages.close();
}
