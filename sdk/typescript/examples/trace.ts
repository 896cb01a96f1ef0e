// Traces the calls of a model. Each call is one event with its input, output, latency and error.
import { setTimeout as sleep } from 'node:timers/promises';

import { Client } from '@sluicehq/sluice';

const client = new Client({ url: process.env.SLUICE_URL, traceEventName: 'event_b' });
const conversationId = `assistant-${Date.now()}`;

/** In place of a real model. */
async function complete(messages: { role: string; content: string }[]): Promise<{ role: string; content: string }> {
  await sleep(50);
  const question = messages.at(-1)?.content ?? '';
  if (question.length > 30) {
    throw new Error('context too long');
  }
  return { role: 'assistant', content: `You said: ${question}` };
}

async function ask(question: string): Promise<string> {
  const answer = await client.trace(conversationId, (span) => {
    const messages = [{ role: 'user', content: question }];
    span.input = messages;
    span.conversationMetadata = { model: 'parrot-1' };
    return complete(messages);
  });
  return answer.content;
}

console.log(await ask('Hello!'));
await ask('What is the meaning of all this, in detail?').catch((error: unknown) => {
  console.log('the error goes on to the caller:', String(error));
});

for await (const { latency, error, output } of client.conversationEvents(conversationId, { waitSeconds: 10 })) {
  console.log(`${latency ?? 0} ms`, error ?? output);
}
await client.close();
