// Tracks a question and its answer, and reads them back.
import { Client } from '@sluicehq/sluice';

const client = new Client({ url: process.env.SLUICE_URL });

const conversationId = `support-${Date.now()}`;
const id = client.trackEvent({
  conversationId,
  eventName: 'event_a',
  conversationMetadata: { plan: 'free' },
  latency: 412.5,
  input: 'Where is my order?',
});
client.updateEvent(id, { output: 'On its way: it arrives on Monday.' });

// With waitSeconds, the read includes the writes above.
for await (const event of client.conversationEvents(conversationId, { waitSeconds: 10 })) {
  console.log(event.timestamp, event.input, '→', event.output);
}
const { events, errorRate } = await client.errors({ conversationId });
console.log(`${events} event, error rate ${errorRate}`);

await client.close();
