// Tracks a few events, and lists, searches and counts them by filters.
import { Client, type FilterOptions } from '@sluicehq/sluice';

const client = new Client({ url: process.env.SLUICE_URL });

for (const [tokens, error] of [[200, null], [1500, 'tool timeout'], [3000, 'tool timeout']] as const) {
  client.trackEvent({
    conversationId: 'lists-typescript',
    eventName: 'event_a',
    conversationMetadata: { plan: 'pro', tokens },
    input: 'Where is my order?',
    error,
  });
}

// The errors of the last hour that used many tokens, the newest first. With waitSeconds, the list has the events above.
const expensive: FilterOptions = {
  since: '1h',
  error: true,
  metadata: { plan: 'pro' },
  conditions: [{ key: 'tokens', op: '>', value: 1000 }],
};
let count = 0;
for await (const event of client.allEvents({ ...expensive, waitSeconds: 10 })) {
  count++;
  console.log(event.timestamp, event.conversationId, event.error);
}
if (count < 2) {
  throw new Error(`the list has ${count} events, not the two errors above`);
}

// The conversations that had these errors, the one with the latest error first.
const { conversations } = await client.listConversations({ ...expensive, limit: 20 });
for (const { conversationId, errors, first, firstInput } of conversations) {
  console.log(`${conversationId}: ${errors} errors since ${first}, first asked: ${firstInput ?? ''}`);
}

// Those of them that have all words of a text.
const { results } = await client.search({ ...expensive, text: 'order where' });
if (results.length < 2) {
  throw new Error(`the search found ${results.length} events, not the two errors above`);
}

// How many tokens they took.
const { rows } = await client.insights({ ...expensive, measures: ['events', 'sum(metadata.tokens)'], groupBy: ['event_name'] });
for (const { eventName, measures } of rows) {
  console.log(eventName, measures.events, measures['sum(metadata.tokens)']);
}

await client.close();
